//! Turns the command line of `run` into its configuration. Every value is checked, every error names its key.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::caps::CapSet;
use crate::cli::{OnOff, RunArgs};
use crate::exit::Failure;
use crate::settings::{ContainerOptions, ContainerSettings, Scope};
use crate::units::Bytes;

/// The checked configuration of `skbudget run`.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// `None`: a random name.
    pub name: Option<String>,
    /// Budget, stack and ports of the container.
    pub settings: ContainerSettings,
    /// Capabilities of the command beyond the default set.
    pub added_caps: CapSet,
    /// The command has every capability, and its /proc is writable.
    pub privileged: bool,
    /// Whether the relay is restricted to its files and system calls.
    pub sandbox: OnOff,
    /// File for the frames.
    pub pcap: Option<PathBuf>,
    /// File for the final stats.
    pub stats_file: Option<PathBuf>,
    /// The command and its arguments.
    pub command: Vec<OsString>,
}

impl RunConfig {
    /// Checks the arguments. `secret`: two random numbers, for the stack's hashes.
    pub fn new(args: RunArgs, secret: [u64; 2]) -> Result<Self, Failure> {
        let options = ContainerOptions {
            min: args.min.map(Bytes),
            weight: args.weight,
            ..ContainerOptions::from(&args.container)
        };
        let settings = ContainerSettings::new(&options, Scope::Alone, secret)?;
        check_outputs(&args.pcap, &args.stats_file)?;
        Ok(Self {
            name: args.name,
            settings,
            added_caps: if args.privileged {
                CapSet::ALL
            } else {
                args.cap_add.into_iter().fold(CapSet::NONE, CapSet::with)
            },
            privileged: args.privileged,
            sandbox: args.sandbox,
            pcap: args.pcap,
            stats_file: args.stats_file,
            command: args.command,
        })
    }
}

/// Refuses one file for both outputs: at the end of the run the stats would replace the capture. Devices are exempt.
fn check_outputs(pcap: &Option<PathBuf>, stats_file: &Option<PathBuf>) -> Result<(), Failure> {
    let same_name = pcap.is_some() && pcap == stats_file;
    if same_name && pcap.as_ref().is_some_and(|path| !path.starts_with("/dev")) {
        return Err(Failure::usage("--pcap and --stats-file: two different files are needed"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use skbudget_controller::{Limits, PAGE_SIZE};
    use skbudget_stack::{Algorithm, ContainerConfig};

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::units::{Size, parse_size};

    fn config(args: &[&str]) -> Result<RunConfig, Failure> {
        let line = ["skbudget", "run"].iter().chain(args).chain(&["--", "true"]);
        let Command::Run(run) = Cli::parse_from(line).command else { panic!("run") };
        RunConfig::new(*run, [1, 2])
    }

    #[test]
    fn missing_limits_follow_from_those_given() {
        let c = config(&["--hard", "12MiB"]).unwrap();
        let l = c.settings.budget.limits;
        assert_eq!((l.low * 4096, l.soft * 4096, l.hard * 4096), (6 << 20, 8 << 20, 12 << 20));
        assert!(c.settings.container.host_loopback);
    }

    #[test]
    fn disorder_names_the_key_and_what_is_needed() {
        for args in [
            ["--hard", "16MiB", "--soft", "16MiB"],
            ["--hard", "16MiB", "--soft", "20MiB"],
            ["--hard", "16MiB", "--low", "11MiB"],
            ["--soft", "8MiB", "--low", "8MiB"],
        ] {
            let failure = config(&args).unwrap_err();
            assert_eq!(failure.code, 2, "{args:?}");
            assert!(failure.message.contains("low"), "{failure}");
            assert!(failure.message.contains(args[2]), "{failure}");
        }
    }

    #[test]
    fn a_hard_limit_too_small_for_one_flow_names_the_least() {
        let least = ContainerConfig::least_hard_bytes(65520, true);
        for hard in ["64KiB", "4KiB", "1B"] {
            let failure = config(&["--hard", hard]).unwrap_err();
            assert_eq!(failure.code, 2);
            assert!(failure.message.starts_with("--hard"), "{failure}");
            assert!(failure.message.contains(&Size(least).to_string()), "{failure}");
        }
        assert!(config(&["--hard", &least.to_string()]).is_ok());
    }

    #[test]
    fn ports_whose_backlogs_do_not_fit_are_refused_with_the_least_that_holds_them() {
        let with = |hard: &str, ports: usize| {
            let ports: Vec<String> = (1..=ports).map(|port| format!("-p{port}:80")).collect();
            let ports = ports.iter().map(String::as_str);
            config(&["--hard", hard].into_iter().chain(ports).collect::<Vec<_>>())
        };
        assert!(with("512KiB", 4).is_ok() && with("4MiB", 40).is_ok());
        for (hard, ports) in [("512KiB", 40), ("512KiB", 6), ("200KiB", 1), ("3MiB", 60)] {
            let failure = with(hard, ports).unwrap_err();
            assert_eq!(failure.code, 2);
            assert!(failure.message.starts_with("--publish"), "{failure}");
            assert!(failure.message.contains(&format!("--hard {hard}")), "{failure}");
            let (_, least) = failure.message.split_once("at least ").unwrap();
            let least = parse_size(least).unwrap();
            assert!(with(&least.to_string(), ports).is_ok(), "{failure}");
            assert!(with(&(least - PAGE_SIZE).to_string(), ports).is_err(), "{failure}");
        }
        assert!(config(&["--isolation", "off", "-p80:80"]).is_ok());
    }

    #[test]
    fn udp_ports_are_refused_where_they_cannot_be_served() {
        let ok =
            config(&["--hard", "4MiB", "-p", "53:53/udp", "-p", "53:53", "-p", "[::]:53:53/udp"]);
        assert_eq!(ok.unwrap().settings.publish.len(), 3);
        assert_eq!(config(&["-p", "7000-7009:80-89/udp"]).unwrap().settings.publish.len(), 10);
        let four = ["--hard", "4MiB", "-p", "7000-7004:80-84/udp"];
        let failure = config(&four).unwrap_err();
        let (_, least) = failure.message.split_once("at least ").unwrap();
        assert!(config(&["--hard", least, four[2], four[3]]).is_ok(), "{failure}");
        for (args, expected) in [
            (&["-p", "53:53/udp", "-p", "54:53/udp"][..], "both lead to port 53"),
            (&["--ipv6", "off", "-p", "[::]:53:53/udp"], "no IPv6"),
        ] {
            let failure = config(args).unwrap_err();
            assert!(failure.code == 2 && failure.message.contains(expected), "{failure}");
        }
    }

    #[test]
    fn off_means_no_limit_and_takes_none() {
        assert_eq!(config(&["--isolation", "off"]).unwrap().settings.budget.limits, Limits::NONE);
        let failure = config(&["--isolation", "off", "--hard", "1MiB"]).unwrap_err();
        assert!(failure.message.starts_with("--hard"), "{failure}");
    }

    #[test]
    fn congestion_control_is_cubic_unless_reno_is_asked_for() {
        assert_eq!(config(&[]).unwrap().settings.container.congestion, Algorithm::Cubic);
        assert_eq!(
            config(&["--congestion", "reno"]).unwrap().settings.container.congestion,
            Algorithm::Reno
        );
    }

    #[test]
    fn ipv6_is_on_where_the_mtu_allows_for_it() {
        let ipv6 = |args: &[&str]| config(args).unwrap().settings.container.ipv6.is_some();
        assert!(ipv6(&[]) && ipv6(&["--mtu", "1280"]) && ipv6(&["--ipv6", "on"]));
        assert!(!ipv6(&["--ipv6", "off"]) && !ipv6(&["--mtu", "1279"]));
        let failure = config(&["--mtu", "1279", "--ipv6", "on"]).unwrap_err();
        assert_eq!(failure.code, 2);
        assert!(
            failure.message.contains("--ipv6") && failure.message.contains("1280"),
            "{failure}"
        );
    }

    #[test]
    fn an_outbound_address_no_interface_can_have_is_refused() {
        for addr in ["0.0.0.0", "224.0.0.1", "255.255.255.255"] {
            let failure = config(&["--outbound-addr", addr]).unwrap_err();
            assert_eq!(failure.code, 2);
            assert!(failure.message.starts_with(&format!("--outbound-addr {addr}")), "{failure}");
        }
        assert!(
            config(&["--outbound-addr", "127.0.0.1"]).unwrap().settings.outbound_addr.is_some()
        );
    }

    #[test]
    fn the_capture_and_the_stats_need_two_files() {
        let failure = config(&["--pcap", "out/x", "--stats-file", "out/x"]).unwrap_err();
        assert_eq!(failure.code, 2);
        assert!(
            failure.message.contains("--pcap") && failure.message.contains("--stats-file"),
            "{failure}"
        );
        // A device takes both.
        for same in ["/dev/null", "/dev/stderr"] {
            assert!(config(&["--pcap", same, "--stats-file", same]).is_ok(), "{same}");
        }
        assert!(config(&["--pcap", "out/x", "--stats-file", "out/y"]).is_ok());
    }

    #[test]
    fn options_that_act_among_containers_are_refused() {
        for (key, value) in [("--min", "1MiB"), ("--weight", "7"), ("--isolation", "shared")] {
            let failure = config(&[key, value]).unwrap_err();
            assert_eq!(failure.code, 2);
            assert!(failure.message.starts_with(key), "{failure}");
            assert!(failure.message.contains("`skbudget serve`"), "{failure}");
        }
        assert!(config(&["--isolation", "container"]).is_ok());
    }
}
