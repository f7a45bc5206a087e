//! Filters of captures: a small part of the language of tcpdump.
//!
//! ```text
//! expression = term { or term }            or: `or`, `||`
//! term       = factor { and factor }       and: `and`, `&&`
//! factor     = not factor | ( expression ) | primitive          not: `not`, `!`
//! primitive  = [src|dst] host ADDRESS | [src|dst] net CIDR | [tcp|udp] [src|dst] port N[-M]
//!            | ip | ip6 | arp | icmp | icmp6 | tcp | udp
//! ```

use std::fmt;
use std::io::IoSlice;
use std::net::IpAddr;

use super::packet::{HEAD_BYTES, Packet};
use crate::keys::hint;

/// Longest filter, bytes.
const TEXT_MAX: usize = 1024;

/// Most primitives: each frame is compared with all of them at worst.
const PRIMITIVES_MAX: usize = 64;

/// Deepest nesting of parentheses and `not`.
const DEPTH_MAX: usize = 16;

/// The words of the language.
const WORDS: [&str; 15] = [
    "host", "net", "port", "src", "dst", "tcp", "udp", "icmp", "icmp6", "arp", "ip", "ip6", "and",
    "or", "not",
];

/// A filter, and its text. It is compared with the first bytes of a frame, without state: a fragment after the first
/// has no ports, and a packet that an ICMP error quotes is not searched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// As typed: the capture names it.
    text: String,
    root: Node,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    All(Vec<Self>),
    Any(Vec<Self>),
    Not(Box<Self>),
    Is(Test),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    /// Ethernet type.
    Link(u16),
    /// Protocol number in the IP header.
    Protocol(u8),
    /// An address within these bits.
    Net(End, IpAddr, u8),
    /// A port within these, of TCP or UDP.
    Port(End, u16, u16),
}

/// The end of a packet that a test applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
    Either,
}

impl Filter {
    /// Parses a filter.
    ///
    /// # Errors
    /// One sentence that names the word that is wrong and what is allowed there.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > TEXT_MAX {
            return Err(format!("{} bytes long; at most {TEXT_MAX} are allowed", text.len()));
        }
        let tokens = tokens(text);
        let mut parser = Parser { tokens: &tokens, at: 0, depth: 0, primitives: 0 };
        let root = parser.expression()?;
        // A complete expression, and then another word.
        match parser.next() {
            None => Ok(Self { text: text.to_owned(), root }),
            Some(word) => Err(format!("{word:?}: `and` or `or` must be between two primitives")),
        }
    }

    /// Whether the filter selects the frame, given in parts.
    pub(crate) fn selects(&self, parts: &[IoSlice<'_>]) -> bool {
        // The headers are in the first part, except where that part is the Ethernet header alone.
        let mut head = [0; HEAD_BYTES];
        let mut len = 0;
        for part in parts {
            let take = part.len().min(HEAD_BYTES - len);
            head[len..len + take].copy_from_slice(&part[..take]);
            len += take;
        }
        self.root.holds(&Packet::parse(&head[..len]))
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Node {
    fn holds(&self, packet: &Packet) -> bool {
        match self {
            Self::All(nodes) => nodes.iter().all(|node| node.holds(packet)),
            Self::Any(nodes) => nodes.iter().any(|node| node.holds(packet)),
            Self::Not(node) => !node.holds(packet),
            Self::Is(test) => test.holds(packet),
        }
    }
}

impl Test {
    fn holds(&self, packet: &Packet) -> bool {
        match *self {
            Self::Link(kind) => packet.link == Some(kind),
            Self::Protocol(protocol) => packet.protocol == Some(protocol),
            Self::Net(end, net, bits) => {
                end.any(packet.addresses, |address| is_within(address, net, bits))
            }
            Self::Port(end, first, last) => {
                end.any(packet.ports, |port| (first..=last).contains(&port))
            }
        }
    }
}

impl End {
    /// Whether the test holds for this end. A packet without such a field passes no test.
    fn any<T: Copy>(self, ends: Option<[T; 2]>, test: impl Fn(T) -> bool) -> bool {
        ends.is_some_and(|[source, destination]| match self {
            Self::Source => test(source),
            Self::Destination => test(destination),
            Self::Either => test(source) || test(destination),
        })
    }
}

/// Whether the first `bits` of both addresses agree.
fn is_within(address: IpAddr, net: IpAddr, bits: u8) -> bool {
    let (a, b, width) = match (address, net) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    // A shift by the whole width of the type is not defined.
    let shift = u32::from(width - bits);
    (a ^ b).checked_shr(shift).unwrap_or(0) == 0
}

/// Words, parentheses and signs.
fn tokens(text: &str) -> Vec<String> {
    let spaced = ["(", ")", "&&", "||", "!"]
        .iter()
        .fold(text.to_owned(), |text, sign| text.replace(sign, &format!(" {sign} ")));
    spaced.split_whitespace().map(str::to_owned).collect()
}

/// Recursive descent, in the order of the grammar above.
struct Parser<'a> {
    tokens: &'a [String],
    /// Index of the next token.
    at: usize,
    /// Nesting now.
    depth: usize,
    /// Primitives so far.
    primitives: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.tokens.get(self.at).map(String::as_str)
    }

    fn next(&mut self) -> Option<&'a str> {
        let token = self.peek();
        self.at += 1;
        token
    }

    /// Takes the next word if it is one of these.
    fn take(&mut self, words: &[&str]) -> Option<&'a str> {
        let token = self.peek().filter(|token| words.contains(token));
        self.at += usize::from(token.is_some());
        token
    }

    /// The word that must follow `after`.
    fn value(&mut self, after: &str, what: &str) -> Result<&'a str, String> {
        self.next().ok_or_else(|| format!("ends after {after:?}: {what} must follow"))
    }

    /// Terms of which one must hold.
    fn expression(&mut self) -> Result<Node, String> {
        let mut nodes = vec![self.term()?];
        while self.take(&["or", "||"]).is_some() {
            nodes.push(self.term()?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Any(nodes) })
    }

    /// Factors that must all hold.
    fn term(&mut self) -> Result<Node, String> {
        let mut nodes = vec![self.factor()?];
        while self.take(&["and", "&&"]).is_some() {
            nodes.push(self.factor()?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::All(nodes) })
    }

    /// A primitive, its opposite, or an expression in parentheses.
    fn factor(&mut self) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("nested more than {DEPTH_MAX} deep"));
        }
        let node = if self.take(&["not", "!"]).is_some() {
            Node::Not(Box::new(self.factor()?))
        } else if self.take(&["("]).is_some() {
            let inner = self.expression()?;
            match self.next() {
                Some(")") => inner,
                Some(word) => return Err(format!("{word:?}: `)`, `and` or `or` is allowed here")),
                None => return Err("ends before a `)`".to_owned()),
            }
        } else {
            self.primitive()?
        };
        self.depth -= 1;
        Ok(node)
    }

    /// A protocol, an address or a port.
    fn primitive(&mut self) -> Result<Node, String> {
        self.primitives += 1;
        if self.primitives > PRIMITIVES_MAX {
            return Err(format!("more than {PRIMITIVES_MAX} primitives"));
        }
        let Some(protocol) = self.protocol() else { return self.field() };
        // `tcp port 80` is `tcp and port 80`.
        // Other protocols have no ports.
        let of_ports = protocol == Test::Protocol(TCP) || protocol == Test::Protocol(UDP);
        if of_ports && matches!(self.peek(), Some("port" | "src" | "dst")) {
            let at = self.at;
            let field = self.field()?;
            if !matches!(field, Node::Is(Test::Port(..))) {
                let word = &self.tokens[at];
                return Err(format!(
                    "{word:?}: after tcp or udp only a port is allowed without `and`"
                ));
            }
            return Ok(Node::All(vec![Node::Is(protocol), field]));
        }
        Ok(Node::Is(protocol))
    }

    /// The test of a protocol's name, if the next word is one.
    fn protocol(&mut self) -> Option<Test> {
        let test = match self.peek()? {
            "ip" => Test::Link(super::packet::IPV4),
            "ip6" => Test::Link(super::packet::IPV6),
            "arp" => Test::Link(super::packet::ARP),
            "tcp" => Test::Protocol(TCP),
            "udp" => Test::Protocol(UDP),
            "icmp" => Test::Protocol(ICMP),
            "icmp6" => Test::Protocol(ICMP6),
            _ => return None,
        };
        self.at += 1;
        Some(test)
    }

    /// A test of an address or a port.
    fn field(&mut self) -> Result<Node, String> {
        let end = match self.take(&["src", "dst"]) {
            Some("src") => End::Source,
            Some(_) => End::Destination,
            None => End::Either,
        };
        // A direction goes with the first three only.
        let allowed = if end == End::Either { &WORDS[..] } else { &WORDS[..3] };
        let word = match self.next() {
            Some(word) => word,
            None if self.at == 1 => return Err("empty; for all frames leave it out".to_owned()),
            None => {
                let last = &self.tokens[self.at - 2];
                return Err(format!("ends after {last:?}; allowed: {}", allowed.join(", ")));
            }
        };
        match word {
            "host" => {
                let value = self.value(word, "an address")?;
                let address = value
                    .parse()
                    .map_err(|_| format!("host: {value:?} must be an IPv4 or IPv6 address"))?;
                Ok(Node::Is(Test::Net(end, address, width(address))))
            }
            "net" => {
                let value = self.value(word, "a network")?;
                let (address, bits) = network(value).ok_or_else(|| {
                    format!("net: {value:?} must be ADDRESS/BITS, such as 10.0.0.0/8")
                })?;
                Ok(Node::Is(Test::Net(end, address, bits)))
            }
            "port" => {
                let value = self.value(word, "a number")?;
                let (first, last) = ports(value).ok_or_else(|| {
                    format!("port: {value:?} must be N or N-M, with numbers from 0 to 65535")
                })?;
                Ok(Node::Is(Test::Port(end, first, last)))
            }
            other => Err(format!("{other:?} is not allowed here{}", hint(other, allowed))),
        }
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;

/// Bits of an address.
fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// `ADDRESS/BITS`.
fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let address = address.parse().ok()?;
    let bits = bits.parse().ok().filter(|bits| *bits <= width(address))?;
    Some((address, bits))
}

/// `N` or `N-M`.
fn ports(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
