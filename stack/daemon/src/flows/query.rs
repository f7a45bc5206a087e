//! Which flows are selected.

use std::net::IpAddr;

use serde::Deserialize;
use serde::de::{self, Deserializer};

use super::{Cursor, FlowProtocol, FlowReport, UNCONNECTED};
use crate::keys::hint;

/// Flows in one answer, at most: about half a megabyte of JSON.
pub(crate) const LIMIT_MAX: u32 = 1000;

/// What is reported of flows, by what is typed: the names of `ss`'s filters, and those that it prints.
const STATES: [(&str, &str); 15] = [
    ("connecting", "CONNECTING"),
    ("syn-sent", "SYN-SENT"),
    ("syn-recv", "SYN-RECV"),
    ("established", "ESTAB"),
    ("estab", "ESTAB"),
    ("fin-wait-1", "FIN-WAIT-1"),
    ("fin-wait-2", "FIN-WAIT-2"),
    ("close-wait", "CLOSE-WAIT"),
    ("closing", "CLOSING"),
    ("last-ack", "LAST-ACK"),
    ("time-wait", "TIME-WAIT"),
    ("closed", "CLOSED"),
    ("orphan", "ORPHAN"),
    ("unconnected", UNCONNECTED),
    ("unconn", UNCONNECTED),
];

/// Protocols by their names.
const PROTOCOLS: [(&str, FlowProtocol); 3] =
    [("tcp", FlowProtocol::Tcp), ("udp", FlowProtocol::Udp), ("icmp", FlowProtocol::Icmp)];

/// A state that flows are selected by, as reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowState(&'static str);

/// Keys of the query.
pub(crate) const QUERY_KEYS: [&str; 6] = ["protocol", "state", "port", "addr", "limit", "after"];

/// The flows to list. What is not given selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct FlowQuery {
    /// What the flow carries.
    #[serde(deserialize_with = "protocol")]
    pub(crate) protocol: Option<FlowProtocol>,
    /// State of the connection.
    #[serde(deserialize_with = "state")]
    pub(crate) state: Option<FlowState>,
    /// Port of either end.
    #[serde(deserialize_with = "port")]
    pub(crate) port: Option<u16>,
    /// Address of either end.
    pub(crate) addr: Option<IpAddr>,
    /// Flows in the answer, at most.
    #[serde(deserialize_with = "limit")]
    pub(crate) limit: Option<u32>,
    /// The `next` of the answer before.
    pub(crate) after: Option<Cursor>,
}

impl FlowQuery {
    /// Whether the flow is selected.
    pub(crate) fn selects(&self, flow: &FlowReport) -> bool {
        let ends = || [Some(flow.guest), flow.peer].into_iter().flatten();
        self.protocol.is_none_or(|protocol| protocol == flow.protocol)
            && self.state.is_none_or(|state| state.0 == flow.state)
            && self.port.is_none_or(|port| ends().any(|end| end.port() == port))
            && self.addr.is_none_or(|addr| ends().any(|end| end.ip() == addr))
    }

    /// The query as a part of a path; empty if it has no key. No value needs an escape.
    pub(crate) fn to_path(&self) -> String {
        let Self { protocol, state, port, addr, limit, after } = self;
        // The first name of a protocol or state is what is printed; others are accepted, too.
        let name = protocol.and_then(|is| PROTOCOLS.iter().find(|(_, known)| *known == is));
        let given = [
            ("protocol", name.map(|(name, _)| (*name).to_owned())),
            ("state", state.map(|state| state.0.to_lowercase())),
            ("port", port.map(|port| port.to_string())),
            ("addr", addr.map(|addr| addr.to_string())),
            ("limit", limit.map(|limit| limit.to_string())),
            ("after", after.map(|after| after.to_string())),
        ];
        let given = given.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        given.enumerate().fold(String::new(), |path, (index, (key, value))| {
            format!("{path}{}{key}={value}", if index == 0 { '?' } else { '&' })
        })
    }
}

/// The state of that name, as reported. The name may be in any case.
pub(crate) fn parse_state(name: &str) -> Result<FlowState, String> {
    word(name, &STATES).map(FlowState)
}

/// The protocol of that name, in any case.
pub(crate) fn parse_protocol(name: &str) -> Result<FlowProtocol, String> {
    word(name, &PROTOCOLS)
}

/// The value of a word, or an error with the nearest word and all of them.
fn word<T: Copy>(name: &str, known: &[(&str, T)]) -> Result<T, String> {
    let found = known.iter().find(|(word, _)| word.eq_ignore_ascii_case(name));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        format!("unknown{}", hint(name, &words))
    })
}

fn protocol<'de, D: Deserializer<'de>>(from: D) -> Result<Option<FlowProtocol>, D::Error> {
    let name = String::deserialize(from)?;
    parse_protocol(&name).map(Some).map_err(de::Error::custom)
}

fn state<'de, D: Deserializer<'de>>(from: D) -> Result<Option<FlowState>, D::Error> {
    let name = String::deserialize(from)?;
    parse_state(&name).map(Some).map_err(de::Error::custom)
}

fn port<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    number(from, 0, u16::MAX.into()).map(|port| Some(port as u16))
}

fn limit<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    number(from, 1, LIMIT_MAX).map(Some)
}

/// Reads a number: in a query it is a text.
fn number<'de, D: Deserializer<'de>>(from: D, least: u32, most: u32) -> Result<u32, D::Error> {
    let text = String::deserialize(from)?;
    // Out of the range of the type is out of the allowed range, too.
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| de::Error::custom(format!("{least} to {most} is allowed")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;
    use crate::keys;

    fn parse(keys: &[(&str, &str)]) -> Result<FlowQuery, String> {
        let keys = keys.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value)));
        keys::parse(&Map::from_iter(keys), &QUERY_KEYS).map_err(|e| e.message)
    }

    #[test]
    fn a_query_is_the_same_after_a_round_trip() {
        let query = FlowQuery {
            protocol: Some(FlowProtocol::Udp),
            state: Some(FlowState("FIN-WAIT-1")),
            port: Some(53),
            addr: Some("fd00::100".parse().unwrap()),
            limit: Some(7),
            after: Some(Cursor::Mappings(3)),
        };
        let path = query.to_path();
        assert_eq!(path, "?protocol=udp&state=fin-wait-1&port=53&addr=fd00::100&limit=7&after=u3");
        let pairs = path[1..].split('&').map(|pair| pair.split_once('=').unwrap());
        assert_eq!(parse(&pairs.collect::<Vec<_>>()).unwrap(), query);
        assert_eq!(FlowQuery::default().to_path(), "");
    }

    #[test]
    fn a_wrong_value_is_named_with_what_is_allowed() {
        for (key, value, expected) in [
            ("protocol", "tpc", "protocol: unknown; did you mean tcp? allowed: tcp, udp, icmp"),
            ("state", "establish", "did you mean established?"),
            ("port", "65536", "port: 0 to 65535 is allowed"),
            ("port", "-1", "0 to 65535"),
            ("addr", "10.0.2", "addr: "),
            ("limit", "0", "limit: 1 to 1000 is allowed"),
            ("limit", "1001", "1 to 1000"),
            ("after", "9", "after: the `next` of an earlier answer"),
            ("states", "x", "states: unknown key; did you mean state?"),
        ] {
            let message = parse(&[(key, value)]).unwrap_err();
            assert!(message.contains(expected), "{key}={value}: {message}");
        }
        assert_eq!(
            parse(&[("state", "ESTAB")]).unwrap(),
            parse(&[("state", "established")]).unwrap()
        );
    }
}
