//! resolv.conf(5): the host's name servers, and the file that a container gets.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use skbudget_stack::ContainerConfig;

/// The file, on the host and in the container.
pub(crate) const PATH: &str = "/etc/resolv.conf";

/// Longest file that is read, bytes.
const LEN_MAX: u64 = 64 << 10;
/// Name servers that are used, at most.
const SERVERS_MAX: usize = 8;
/// Search domains that are used, at most: what resolv.conf(5) allowed before there was no limit.
const SEARCH_MAX: usize = 6;
const PORT: u16 = 53;

/// The text of the file; `None` if it cannot be read, is no regular file, too long, or no text.
pub(crate) fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    // A FIFO without a writer would block the open, and with it the worker.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let len = file.take(LEN_MAX + 1).read_to_string(&mut text).ok()?;
    (len as u64 <= LEN_MAX).then_some(text)
}

/// The name servers, in their order.
pub(crate) fn servers(text: &str) -> Vec<SocketAddr> {
    let addresses = lines(text).filter(|(key, _)| *key == "nameserver");
    addresses.filter_map(|(_, value)| server(value)).take(SERVERS_MAX).collect()
}

/// One name server: an address, of a link-local one with its interface.
fn server(value: &str) -> Option<SocketAddr> {
    let value = value.split_whitespace().next()?;
    if let Some((ip, interface)) = value.split_once('%') {
        let ip: Ipv6Addr = ip.parse().ok()?;
        let index = nix::net::if_::if_nametoindex(interface).ok();
        let scope = index.or_else(|| interface.parse().ok())?;
        return Some(SocketAddrV6::new(ip, PORT, 0, scope).into());
    }
    let ip: IpAddr = value.parse().ok()?;
    // As the C library: the unspecified address is this host.
    let ip = match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => [127, 0, 0, 1].into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Some(SocketAddr::new(ip, PORT))
}

/// Reads the file again when it changes.
#[derive(Debug)]
pub(crate) struct Watch {
    path: PathBuf,
    /// Device, inode, size and time of the file that was read.
    stamp: Option<(u64, u64, u64, i64, i64)>,
}

impl Watch {
    /// A file that has not been read yet.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), stamp: None }
    }

    /// The servers, if the file is another one than before, or has changed. Without a file the last servers stay: it is
    /// missing for a moment while it is replaced.
    pub(crate) fn changed(&mut self) -> Option<Vec<SocketAddr>> {
        let meta = fs::metadata(&self.path).ok()?;
        // The size as well: the time of some file systems has a resolution of a second.
        let stamp = (meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
        if self.stamp == Some(stamp) {
            return None;
        }
        let text = read(&self.path)?;
        self.stamp = Some(stamp);
        let servers = servers(&text);
        tracing::debug!("name servers: {servers:?}");
        Some(servers)
    }
}

/// The host's name servers, in a process that may not read the file: another process reads it and hands them over.
#[derive(Debug, Clone, Default)]
pub struct HostServers {
    shared: Arc<(AtomicU64, Mutex<Vec<SocketAddr>>)>,
}

impl HostServers {
    /// Replaces the servers.
    pub fn set(&self, servers: Vec<SocketAddr>) {
        let (version, current) = &*self.shared;
        let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = servers.into_iter().take(SERVERS_MAX).collect();
        // Under the lock: a reader of the version finds these servers or newer ones.
        version.fetch_add(1, Ordering::Release);
    }

    /// The servers, if they were replaced since `seen`, which is updated. The first value of `seen` is zero.
    pub(crate) fn newer(&self, seen: &mut u64) -> Option<Vec<SocketAddr>> {
        let (version, current) = &*self.shared;
        let now = version.load(Ordering::Acquire);
        if now == *seen {
            return None;
        }
        *seen = now;
        Some(current.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Keyword and rest of each line, without comments.
fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    lines.filter_map(|line| line.split_once(char::is_whitespace))
}

/// The host's search domains, as of the first call. A process that will not be able to read the file calls it before.
pub(crate) fn search_of_host() -> &'static [String] {
    static FOUND: OnceLock<Vec<String>> = OnceLock::new();
    FOUND.get_or_init(|| read(Path::new(PATH)).map(|text| search(&text)).unwrap_or_default())
}

/// The search domains. A single dot, which means none, is no domain.
fn search(text: &str) -> Vec<String> {
    let domains = last_search(text).map_or("", |(_, value)| value).split_whitespace();
    domains.filter(|domain| *domain != ".").take(SEARCH_MAX).map(str::to_owned).collect()
}

/// The line with the search domains: of several the last one counts.
fn last_search(text: &str) -> Option<(&str, &str)> {
    lines(text).filter(|(key, _)| ["search", "domain"].contains(key)).last()
}

/// The file for a container: its forwarder's addresses, and the host's search domains and options.
pub(crate) fn for_container(host: &str, config: &ContainerConfig) -> String {
    let mut text = format!("nameserver {}\n", config.dns_ip);
    if let Some(net) = &config.ipv6 {
        text += &format!("nameserver {}\n", net.dns);
    }
    if let Some((key, value)) = last_search(host) {
        text += &format!("{key} {}\n", value.trim());
    }
    for (_, value) in lines(host).filter(|(key, _)| *key == "options") {
        text += &format!("options {}\n", value.trim());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# a comment\n; another\nnameserver 192.0.2.1\nnameserver\t127.0.0.53 # stub\n\
                        nameserver 2001:db8::1\nnameserver fe80::1%lo\nnameserver nonsense\nnameserver 0.0.0.0\n\
                        domain old.example\nsearch a.example b.example\noptions edns0 trust-ad\noptions ndots:2\n\
                        sortlist 192.0.2.0\nnameserver";

    #[test]
    fn only_a_regular_file_is_read_and_no_other_blocks() {
        let path = std::env::temp_dir().join(format!("resolv-fifo-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(read(&path), None);
        fs::remove_file(&path).unwrap();
        assert_eq!(read(&std::env::temp_dir()), None, "a folder");
    }

    #[test]
    fn servers_of_every_form() {
        let found: Vec<String> = servers(FILE).iter().map(ToString::to_string).collect();
        assert_eq!(found[..3], ["192.0.2.1:53", "127.0.0.53:53", "[2001:db8::1]:53"]);
        assert_eq!(found.last().map(String::as_str), Some("127.0.0.1:53"));
        assert!(servers("").is_empty());
        assert_eq!(servers(&"nameserver 192.0.2.1\n".repeat(50)).len(), SERVERS_MAX);
    }

    #[test]
    fn search_domains() {
        assert_eq!(search(FILE), ["a.example", "b.example"]);
        assert_eq!(search("domain a.example\n"), ["a.example"]);
        assert!(search("search .\n").is_empty() && search("").is_empty());
    }

    #[test]
    fn a_container_gets_its_forwarder_and_the_hosts_domains() {
        let mut config = ContainerConfig::new(1500, true, None, [1, 2]);
        let expected = "nameserver 10.0.2.3\nnameserver fd00::3\nsearch a.example b.example\n\
                        options edns0 trust-ad\noptions ndots:2\n";
        assert_eq!(for_container(FILE, &config), expected);
        config.ipv6 = None;
        assert_eq!(for_container("", &config), "nameserver 10.0.2.3\n");
    }
}
