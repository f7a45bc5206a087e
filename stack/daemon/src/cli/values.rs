//! Values of options: how they are written, on the command line, in the config and in requests.
#![expect(missing_docs, reason = "clap prints doc comments: a comment here is a help text")]

use std::net::{IpAddr, SocketAddr};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use skbudget_stack::tap::{MTU_MAX, MTU_MIN};

use crate::units::{Bytes, parse_size};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    Container,
    /// Refused: one budget for several containers.
    #[value(hide = true)]
    Shared,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleSet {
    Strict,
    Linux,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    Cubic,
    Reno,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnOff {
    On,
    Off,
}

/// A name server as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct NameServer(pub SocketAddr);

impl TryFrom<String> for NameServer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parse_server(&text).map(Self)
    }
}

/// `min <= default <= max`, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "[Bytes; 3]")]
pub struct Triple(pub [u32; 3]);

impl TryFrom<[Bytes; 3]> for Triple {
    type Error = &'static str;

    fn try_from(sizes: [Bytes; 3]) -> Result<Self, &'static str> {
        Self::ordered(sizes.map(|Bytes(size)| size))
    }
}

impl Triple {
    fn ordered([min, default, max]: [u64; 3]) -> Result<Self, &'static str> {
        if !(1 <= min && min <= default && default <= max && max < 1 << 31) {
            return Err("min,default,max with 1 <= min <= default <= max < 2GiB is allowed");
        }
        Ok(Self([min as u32, default as u32, max as u32]))
    }
}

/// Maximum length of a name, characters: it becomes part of a file name.
const NAME_MAX: usize = 64;

/// An MTU that the kernel accepts for a TAP.
pub(super) fn parse_mtu() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(i64::from(MTU_MIN)..=i64::from(MTU_MAX))
}

/// Checks the name of a container, which must also be usable as a file name.
pub(crate) fn parse_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let fits = (1..=NAME_MAX).contains(&text.len());
    if fits && text.chars().all(allowed) && !text.starts_with(['.', '-']) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "1 to {NAME_MAX} letters, digits, '.', '_' and '-' are allowed; the first must not be '.' or '-'"
    ))
}

/// Parses the address of a name server; the port is 53 by default.
pub(super) fn parse_server(text: &str) -> Result<SocketAddr, String> {
    const ALLOWED: &str =
        "an address is allowed, e.g. 192.0.2.1, 2001:db8::1, 192.0.2.1:5353 or [2001:db8::1]:5353";
    let addr = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
    let addr: SocketAddr = addr.or_else(|_| text.parse()).map_err(|_| ALLOWED.to_owned())?;
    let ip = addr.ip();
    if ip.is_unspecified() || ip.is_multicast() || addr.port() == 0 {
        return Err(format!("{addr} is no server: {ALLOWED}"));
    }
    Ok(addr)
}

pub(crate) fn parse_triple(text: &str) -> Result<Triple, String> {
    let sizes = text.split(',').map(parse_size).collect::<Result<Vec<_>, _>>()?;
    // A wrong number of sizes gets the same message as a wrong order.
    Ok(Triple::ordered(<[u64; 3]>::try_from(sizes).unwrap_or_default())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers() {
        let server = |text: &str| parse_server(text).map(|addr| addr.to_string());
        assert_eq!(server("192.0.2.1").as_deref(), Ok("192.0.2.1:53"));
        assert_eq!(server("2001:db8::1").as_deref(), Ok("[2001:db8::1]:53"));
        assert_eq!(server("127.0.0.1:5353").as_deref(), Ok("127.0.0.1:5353"));
        for bad in ["", "name", "0.0.0.0", "::", "224.0.0.1", "192.0.2.1:0", "192.0.2.1:x"] {
            assert!(server(bad).unwrap_err().contains("is allowed"), "{bad}");
        }
    }

    #[test]
    fn values_are_written_in_json_as_they_are_read() {
        let server: NameServer = serde_json::from_str(r#""192.0.2.1""#).unwrap();
        assert_eq!(serde_json::to_string(&server).unwrap(), r#""192.0.2.1:53""#);
        let triple: Triple = serde_json::from_str(r#"["4KiB", 8192, "1MiB"]"#).unwrap();
        assert_eq!(serde_json::to_string(&triple).unwrap(), "[4096,8192,1048576]");
        assert!(serde_json::from_str::<Triple>("[3,2,1]").is_err());
    }
}
