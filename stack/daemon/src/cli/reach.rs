//! `--allow` and `--deny`, whose order counts: where a container may connect to.

use std::net::IpAddr;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};
use serde::{Deserialize, Serialize};
use skbudget_stack::ReachRule;

/// What messages allow.
const ALLOWED: &str = "ADDR, ADDR/BITS, ADDR[/BITS]:PORT or [IPV6[/BITS]]:PORT is allowed, e.g. 192.0.2.0/24, \
                       192.0.2.1:443, 2001:db8::/32 or [2001:db8::/32]:443";
/// The value in the help.
const VALUE: &str = "ADDR[/BITS][:PORT]";
/// The options, which are the verbs of a text as well.
const ALLOW: &str = "allow";
const DENY: &str = "deny";

/// A rule as a text: `allow 192.0.2.0/24:443` or `deny 0.0.0.0/0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reach(pub ReachRule);

impl TryFrom<String> for Reach {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once(' ') {
            Some((ALLOW, to)) => parse(to.trim(), true),
            Some((DENY, to)) => parse(to.trim(), false),
            _ => Err(format!(
                "{text:?}: \"allow\" or \"deny\" is needed, followed by a network: {ALLOWED}"
            )),
        }
    }
}

impl From<Reach> for String {
    fn from(Reach(ReachRule { allow, first, prefix_len, port }): Reach) -> Self {
        let verb = if allow { ALLOW } else { DENY };
        match (port, first) {
            (None, first) => format!("{verb} {first}/{prefix_len}"),
            (Some(port), IpAddr::V4(first)) => format!("{verb} {first}/{prefix_len}:{port}"),
            (Some(port), IpAddr::V6(first)) => format!("{verb} [{first}/{prefix_len}]:{port}"),
        }
    }
}

/// Parses a network, with a port or without. An address without BITS is a network of one address.
///
/// Bits beyond the prefix are an error: most likely the prefix is not the one that was meant.
fn parse(text: &str, allow: bool) -> Result<Reach, String> {
    let wrong = |what: &str| format!("{text:?}: {what}: {ALLOWED}");
    let (net, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once("]:") {
            Some((net, port)) => (net, Some(port)),
            None => (rest.strip_suffix(']').ok_or_else(|| wrong("a bracket is not closed"))?, None),
        },
        // An IPv6 address without brackets has several colons.
        None => match text.split_once(':') {
            Some((net, port)) if !port.contains(':') => (net, Some(port)),
            _ => (text, None),
        },
    };
    let (ip, bits) = net.split_once('/').map_or((net, None), |(ip, bits)| (ip, Some(bits)));
    let ip: IpAddr = ip.parse().map_err(|_| wrong("not an address"))?;
    let most = ReachRule::bits(ip);
    let prefix_len = match bits.map(str::parse::<u8>) {
        None => most,
        Some(Ok(bits)) if bits <= most => bits,
        Some(_) => return Err(wrong(&format!("BITS is a number from 0 to {most} here"))),
    };
    let first = ReachRule::masked(ip, prefix_len);
    if first != ip {
        return Err(wrong(&format!(
            "bits are set beyond the prefix; {first}/{prefix_len} is the network"
        )));
    }
    if matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some()) {
        return Err(wrong(
            "an IPv4-mapped address is reached by no packet; write the IPv4 address",
        ));
    }
    let port = match port.map(str::parse::<u16>) {
        None => None,
        Some(Ok(port)) if port > 0 => Some(port),
        Some(_) => return Err(wrong("PORT is a number from 1 to 65535")),
    };
    Ok(Reach(ReachRule { allow, first, prefix_len, port }))
}

/// The rules of a command line, in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReachArgs(pub Vec<Reach>);

impl FromArgMatches for ReachArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut rules = Vec::new();
        for id in [ALLOW, DENY] {
            let places = matches.indices_of(id).into_iter().flatten();
            let values = matches.get_many::<Reach>(id).into_iter().flatten();
            rules.extend(places.zip(values.copied()));
        }
        rules.sort_by_key(|(place, _)| *place);
        Ok(Self(rules.into_iter().map(|(_, rule)| rule).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for ReachArgs {
    fn augment_args(command: Command) -> Command {
        let option = |name: &'static str| {
            Arg::new(name).long(name).value_name(VALUE).action(ArgAction::Append)
        };
        let allow = option(ALLOW)
            .value_parser(|text: &str| parse(text, true))
            .help("Allow connections, datagrams and echo requests to these addresses (repeatable); see --deny");
        let deny = option(DENY).value_parser(|text: &str| parse(text, false)).help(
            "Refuse them (repeatable). The first --allow or --deny that matches decides, in the order of the command \
             line; without one everything is allowed. The gateway counts as 127.0.0.1 and ::1",
        );
        command.arg(allow).arg(deny)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_written_in_json_as_they_are_read() {
        for text in [
            "deny 0.0.0.0/0",
            "allow 192.0.2.0/24:443",
            "deny ::/0",
            "allow [2001:db8::/32]:443",
            "deny 127.0.0.1/32",
        ] {
            let rule: Reach = serde_json::from_value(text.into()).unwrap();
            assert_eq!(serde_json::to_value(rule).unwrap(), text);
        }
        for (short, long) in [
            ("deny 192.0.2.1", "deny 192.0.2.1/32"),
            ("allow ::1", "allow ::1/128"),
            ("allow [::1]:80", "allow [::1/128]:80"),
            ("allow [2001:db8::/32]", "allow 2001:db8::/32"),
        ] {
            assert_eq!(String::from(Reach::try_from(short.to_owned()).unwrap()), long);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("192.0.2.1", "\"allow\" or \"deny\""),
            ("permit 192.0.2.1", "\"allow\" or \"deny\""),
            ("deny example.org", "not an address"),
            ("deny 192.0.2.0/33", "from 0 to 32"),
            ("deny 2001:db8::/x", "from 0 to 128"),
            ("deny 192.0.2.1/24", "192.0.2.0/24 is the network"),
            ("deny 192.0.2.1:0", "from 1 to 65535"),
            ("deny 192.0.2.1:99999", "from 1 to 65535"),
            ("deny [::1:80", "not closed"),
            ("deny ::ffff:192.0.2.1", "IPv4-mapped"),
            ("deny ", "not an address"),
        ] {
            let error = Reach::try_from(text.to_owned()).unwrap_err();
            assert!(error.contains(expected) && error.contains("2001:db8::/32"), "{text}: {error}");
        }
    }

    #[test]
    fn the_order_of_the_command_line_counts() {
        let line = ["x", "--deny", "192.0.2.1", "--allow=192.0.2.0/24", "--deny", "0.0.0.0/0"];
        let matches = ReachArgs::augment_args(Command::new("x")).get_matches_from(line);
        let ReachArgs(rules) = ReachArgs::from_arg_matches(&matches).unwrap();
        let rules: Vec<String> = rules.into_iter().map(String::from).collect();
        assert_eq!(rules, ["deny 192.0.2.1/32", "allow 192.0.2.0/24", "deny 0.0.0.0/0"]);
    }
}
