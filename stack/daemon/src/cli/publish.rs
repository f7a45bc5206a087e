//! Published ports as typed: `[ADDR:]HOSTPORT[-LAST]:PORT[-LAST][/tcp|/udp]`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

const ALLOWED: &str = "[ADDR:]HOSTPORT[-LAST]:PORT[-LAST][/udp] is allowed, e.g. 8080:80, 127.0.0.1:8080:80, \
                       [::1]:8080:80, 53:53/udp or 8000-8010:9000-9010";

/// Protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// Published ports as typed: consecutive ones of one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublishArg {
    /// Address and first port on the host.
    pub host: SocketAddr,
    /// First port in the container.
    pub guest_port: u16,
    /// Number of ports.
    pub count: u16,
    pub protocol: Protocol,
}

impl PublishArg {
    /// The ports one by one.
    pub fn each(self) -> impl Iterator<Item = Self> {
        (0..self.count).map(move |n| Self {
            host: SocketAddr::new(self.host.ip(), self.host.port() + n),
            guest_port: self.guest_port + n,
            count: 1,
            ..self
        })
    }
}

impl TryFrom<String> for PublishArg {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parse_publish(&text)
    }
}

impl From<PublishArg> for String {
    fn from(PublishArg { host, guest_port, count, protocol }: PublishArg) -> Self {
        let last =
            |first: u16| if count > 1 { format!("-{}", first + (count - 1)) } else { Self::new() };
        let udp = if protocol == Protocol::Udp { "/udp" } else { "" };
        // An IPv6 address has its brackets from `SocketAddr`.
        format!("{host}{}:{guest_port}{}{udp}", last(host.port()), last(guest_port))
    }
}

/// Parses published ports, with an IPv6 ADDR in brackets.
pub(crate) fn parse_publish(text: &str) -> Result<PublishArg, String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => return Err(format!("unknown protocol {other:?}: {ALLOWED}")),
    };
    // IPv6 first: its address contains colons.
    let (addr, ports) = match ports.strip_prefix('[').map(|rest| rest.split_once("]:")) {
        None => (None, ports),
        Some(None) => return Err(ALLOWED.to_owned()),
        Some(Some((addr, ports))) => {
            let addr: Result<Ipv6Addr, _> = addr.parse();
            let addr = addr.map_err(|_| format!("address in [] is not IPv6: {ALLOWED}"))?;
            (Some(IpAddr::V6(addr)), ports)
        }
    };
    let parts: Vec<&str> = ports.split(':').collect();
    let (addr, host, guest) = match (addr, &parts[..]) {
        (None, [host, guest]) => (Ipv4Addr::UNSPECIFIED.into(), *host, *guest),
        (Some(addr), [host, guest]) => (addr, *host, *guest),
        (None, [addr, host, guest]) => {
            let addr: Result<Ipv4Addr, _> = addr.parse();
            let addr = addr.map_err(|_| format!("address is not IPv4: {ALLOWED}"))?;
            (addr.into(), *host, *guest)
        }
        _ => return Err(ALLOWED.to_owned()),
    };
    let ((host, count), (guest_port, guest_count)) = (range(host)?, range(guest)?);
    if count != guest_count {
        return Err(format!(
            "{count} ports of the host and {guest_count} of the container: as many of both are needed"
        ));
    }
    Ok(PublishArg { host: SocketAddr::new(addr, host), guest_port, count, protocol })
}

/// First port and number of ports of `PORT` or `FIRST-LAST`.
fn range(text: &str) -> Result<(u16, u16), String> {
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("port {text:?} is not in 1..=65535: {ALLOWED}")),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    match last.checked_sub(first) {
        Some(more) => Ok((first, more + 1)),
        None => Err(format!("range {text:?} ends before it starts: {ALLOWED}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_in_json_as_they_are_read() {
        for text in ["0.0.0.0:8080:80", "[::1]:53:53/udp", "127.0.0.1:8000-8010:9000-9010"] {
            let json = serde_json::to_string(text).unwrap();
            let ports: PublishArg = serde_json::from_str(&json).unwrap();
            assert_eq!(serde_json::to_string(&ports).unwrap(), json);
        }
        let wrong = serde_json::from_str::<PublishArg>(r#""80""#).unwrap_err();
        assert!(wrong.to_string().contains("HOSTPORT"), "{wrong}");
    }

    #[test]
    fn ports() {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let expect = |addr: IpAddr, host, guest_port| {
            let (host, protocol) = (SocketAddr::new(addr, host), Protocol::Tcp);
            Ok(PublishArg { host, guest_port, count: 1, protocol })
        };
        assert_eq!(parse_publish("8080:80"), expect(any, 8080, 80));
        let local = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
        assert_eq!(parse_publish("127.0.0.1:8080:80/tcp"), expect(local.0, 8080, 80));
        assert_eq!(parse_publish("[::1]:8080:80"), expect(local.1, 8080, 80));
        let any_v6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        assert_eq!(parse_publish("[::]:8080:80"), expect(any_v6, 8080, 80));
        for bad in ["80", "0:80", "80:0", "x:80", "::1:80:80", "1:2:3:4", "80:80/sctp", "70000:80"]
        {
            assert!(parse_publish(bad).is_err(), "{bad}");
        }
        for bad in
            ["[::1]80:80", "[::1:80:80", "[127.0.0.1]:80:80", "[::1]:80", "[]:80:80", "[::1]:1:2:3"]
        {
            assert!(parse_publish(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_and_udp() {
        let arg = parse_publish("[::1]:8000-8002:9000-9002/udp").unwrap();
        assert_eq!((arg.count, arg.protocol), (3, Protocol::Udp));
        let each: Vec<(u16, u16)> =
            arg.each().map(|one| (one.host.port(), one.guest_port)).collect();
        assert_eq!(each, [(8000, 9000), (8001, 9001), (8002, 9002)]);
        assert_eq!(parse_publish("65535-65535:1-1").unwrap().count, 1);
        for (bad, expected) in [
            ("8000-8002:9000-9001", "as many of both"),
            ("8002-8000:9000-9002", "ends before it starts"),
            ("8000-70000:1-2", "70000"),
            ("-:1", "1..=65535"),
        ] {
            assert!(parse_publish(bad).unwrap_err().contains(expected), "{bad}");
        }
    }
}
