//! The host's name servers: those given, or those of /etc/resolv.conf, which is read again when it changes.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use skbudget_controller::Instant;

use crate::resolv_conf;

/// Least time between two checks for a change: programs send questions in bursts.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The name servers of one container's forwarder.
#[derive(Debug)]
pub(super) struct Resolvers {
    servers: Vec<SocketAddr>,
    /// The file; `None`: the servers are given.
    file: Option<PathBuf>,
    checked: Option<Instant>,
    /// Device, inode, size and time of the file that was read.
    stamp: Option<(u64, u64, u64, i64, i64)>,
}

impl Resolvers {
    /// `given`: `None` for those of the host.
    pub(super) fn new(given: Option<Vec<SocketAddr>>) -> Self {
        match given {
            Some(servers) => Self { servers, file: None, checked: None, stamp: None },
            None => Self::of_file(Path::new(resolv_conf::PATH)),
        }
    }

    fn of_file(path: &Path) -> Self {
        let file = Some(path.to_owned());
        Self { servers: Vec::new(), file, checked: None, stamp: None }
    }

    /// The servers now.
    pub(super) fn servers(&mut self, now: Instant) -> &[SocketAddr] {
        let is_due = self.checked.is_none_or(|at| now.since(at) >= CHECK_EVERY);
        if let Some(file) = self.file.clone().filter(|_| is_due) {
            self.checked = Some(now);
            self.check(&file);
        }
        &self.servers
    }

    /// Reads the file if it is another one than before, or has changed. Without a file the last servers stay: it is
    /// missing for a moment while it is replaced.
    fn check(&mut self, file: &Path) {
        let Ok(meta) = fs::metadata(file) else { return };
        let stamp = (meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
        if self.stamp == Some(stamp) {
            return;
        }
        if let Some(text) = resolv_conf::read(file) {
            self.stamp = Some(stamp);
            self.servers = resolv_conf::servers(&text);
            log::debug!("name servers: {:?}", self.servers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_again_when_it_changes_and_its_servers_stay_while_it_is_gone() {
        let path = std::env::temp_dir().join(format!("resolv-{}", std::process::id()));
        let mut resolvers = Resolvers::of_file(&path);
        let at = Instant::from_millis;
        assert_eq!(resolvers.servers(at(0)), []);
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(resolvers.servers(at(500)), [], "not checked yet");
        assert_eq!(resolvers.servers(at(1000)).len(), 1);
        fs::write(&path, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n").unwrap();
        assert_eq!(resolvers.servers(at(2000)).len(), 2);
        fs::remove_file(&path).unwrap();
        assert_eq!(resolvers.servers(at(3000)).len(), 2);
        // Another file of the same size in its place.
        fs::write(&path, "nameserver 192.0.2.3\nnameserver 192.0.2.4\n").unwrap();
        assert_eq!(resolvers.servers(at(4000))[0].to_string(), "192.0.2.3:53");
        fs::remove_file(&path).unwrap();
        let given = vec!["192.0.2.9:53".parse().unwrap()];
        assert_eq!(Resolvers::new(Some(given.clone())).servers(at(0)), given);
    }
}
