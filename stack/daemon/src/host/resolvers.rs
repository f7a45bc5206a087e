//! The host's name servers: those given, or those of /etc/resolv.conf, which is read again when it changes.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use skbudget_controller::Instant;

use crate::resolv_conf::{self, HostServers, Watch};

/// Least time between two checks for a change: programs send questions in bursts.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The name servers of one container's forwarder.
#[derive(Debug)]
pub(super) struct Resolvers {
    servers: Vec<SocketAddr>,
    source: Source,
    /// Those of the host, where another process hands them over.
    handed: Option<HostServers>,
}

/// Where changes of the servers are found.
#[derive(Debug)]
enum Source {
    /// The servers are given and never change.
    Given,
    /// The file, and when it was checked.
    File { watch: Watch, checked: Option<Instant> },
    /// Another process reads the file.
    Handed { servers: HostServers, seen: u64 },
}

impl Resolvers {
    /// `given`: `None` for those of the host, which are read here, or handed over by another process.
    pub(super) fn new(given: Option<Vec<SocketAddr>>, handed: Option<HostServers>) -> Self {
        match (given, &handed) {
            (Some(servers), _) => Self { servers, source: Source::Given, handed },
            (None, Some(servers)) => {
                let source = Source::Handed { servers: servers.clone(), seen: 0 };
                Self { servers: Vec::new(), source, handed }
            }
            (None, None) => Self::of_file(Path::new(resolv_conf::PATH)),
        }
    }

    fn of_file(path: &Path) -> Self {
        let source = Source::File { watch: Watch::new(path), checked: None };
        Self { servers: Vec::new(), source, handed: None }
    }

    /// Uses other servers from now on; `None`: those of the host.
    pub(super) fn replace(&mut self, given: Option<Vec<SocketAddr>>) {
        *self = Self::new(given, self.handed.take());
    }

    /// The servers now.
    pub(super) fn servers(&mut self, now: Instant) -> &[SocketAddr] {
        let changed = match &mut self.source {
            Source::Given => None,
            Source::Handed { servers, seen } => servers.newer(seen),
            Source::File { checked: Some(at), .. } if now.since(*at) < CHECK_EVERY => None,
            Source::File { watch, checked } => {
                *checked = Some(now);
                watch.changed()
            }
        };
        if let Some(servers) = changed {
            self.servers = servers;
        }
        &self.servers
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

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
        assert_eq!(Resolvers::new(Some(given.clone()), None).servers(at(0)), given);
    }

    #[test]
    fn servers_of_another_process_are_used_as_soon_as_they_arrive() {
        let handed = HostServers::default();
        let mut resolvers = Resolvers::new(None, Some(handed.clone()));
        let at = Instant::from_millis;
        assert_eq!(resolvers.servers(at(0)), []);
        for last in [1, 2] {
            let servers = vec![SocketAddr::from(([192, 0, 2, last], 53))];
            handed.set(servers.clone());
            assert_eq!(resolvers.servers(at(0)), servers);
        }
        let given = vec!["192.0.2.9:53".parse().unwrap()];
        resolvers.replace(Some(given.clone()));
        assert_eq!(resolvers.servers(at(0)), given);
        handed.set(vec!["192.0.2.3:53".parse().unwrap()]);
        assert_eq!(resolvers.servers(at(0)), given);
        resolvers.replace(None);
        assert_eq!(resolvers.servers(at(0))[0].to_string(), "192.0.2.3:53");
    }
}
