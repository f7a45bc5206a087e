//! The way in which each peer gives a container its network.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use crate::lab::{CONGESTION_CONTROL_KEY, Lab, Netns, Process, UNPACED};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Peer {
    /// The kernel's own: a pair of devices without a program in between.
    Veth,
    #[value(name = "slirp4netns")]
    Slirp4netns,
    Pasta,
    Skbudget,
}

/// Paths of programs that are not looked up in PATH.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) skbudget: PathBuf,
    pub(crate) skbudget_args: Vec<String>,
    pub(crate) pasta: PathBuf,
}

/// A running container. Fields are dropped in this order: first the program, then the namespace.
#[derive(Debug)]
pub(crate) struct Container {
    /// Prefix of a command that runs inside.
    pub(crate) inside: Vec<OsString>,
    /// The host's address, as seen from inside.
    pub(crate) servers: &'static str,
    _program: Option<Process>,
    _netns: Option<Netns>,
}

impl Peer {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub(crate) fn start(
        self,
        lab: &Lab,
        programs: &Programs,
        mtu: u16,
    ) -> Result<Container, String> {
        let mtu = mtu.to_string();
        if self == Self::Skbudget {
            let mut inside = lab.host.exec();
            inside.push(programs.skbudget.clone().into_os_string());
            inside.extend(["run", "--mtu", &mtu].map(OsString::from));
            inside.extend(programs.skbudget_args.iter().map(OsString::from));
            // `run` creates the namespace itself, so the command sets the key before its first socket.
            let unpaced = format!("sysctl -qw {CONGESTION_CONTROL_KEY}={UNPACED} && exec \"$@\"");
            inside.extend(["--", "sh", "-c", &unpaced, "sh"].map(OsString::from));
            return Ok(Container { inside, servers: "10.0.2.2", _program: None, _netns: None });
        }
        let netns = lab.container()?;
        let path = format!("/var/run/netns/{}", netns.0);
        let (program, servers) = match self {
            Self::Veth => {
                veth(lab, &netns, &mtu)?;
                (None, "10.97.0.1")
            }
            Self::Slirp4netns => {
                let args = ["--netns-type=path", "-c", "-m", &mtu, &path, "tap0"];
                (Some(lab.in_host("slirp4netns", &args)?), "10.0.2.2")
            }
            Self::Pasta => {
                let args =
                    ["-f", "-4", "--config-net", "-m", &mtu, "--runas", "0", "--netns", &path];
                (Some(lab.in_host(&programs.pasta, &args)?), lab.gateway)
            }
            Self::Skbudget => unreachable!("has no namespace of ours"),
        };
        // slirp4netns and pasta configure the address after they have started.
        netns.await_address()?;
        Ok(Container { inside: netns.exec(), servers, _program: program, _netns: Some(netns) })
    }
}

fn veth(lab: &Lab, netns: &Netns, mtu: &str) -> Result<(), String> {
    // The last round's device is deleted with its peer, a moment after the namespace.
    for _ in 0..100 {
        if lab.host.ip("link show v0").is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    lab.host.ip(&format!("link add v0 type veth peer name eth0 netns {}", netns.0))?;
    lab.host.ip("addr add 10.97.0.1/24 dev v0")?;
    netns.ip("addr add 10.97.0.2/24 dev eth0")?;
    lab.host.ip(&format!("link set v0 mtu {mtu} up"))?;
    netns.ip(&format!("link set eth0 mtu {mtu} up"))?;
    Ok(())
}
