//! Names of the containers of one loop: NAME and NAME.skbudget.internal, and the reverse. Only containers that reach
//! each other find each other; any other name of the zone does not exist.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};

use domain::base::iana::{Class, Opcode, Rcode, Rtype};
use domain::base::message_builder::MessageBuilder;
use domain::base::{Message, Name};
use domain::rdata::{A, Aaaa, Ptr};

use crate::config::ContainerConfig;

/// Zone of the names.
const ZONE: &str = "skbudget.internal";
/// Time that a guest may keep an answer, seconds: containers leave, and their addresses are given to others.
const TTL: u32 = 5;

/// The names of all containers of a loop. The loop changes them, the containers read them.
#[derive(Debug, Clone, Default)]
pub struct Directory(Arc<RwLock<Names>>);

#[derive(Debug, Default)]
struct Names {
    /// By name in lower case (RFC 4343).
    entries: BTreeMap<String, Entry>,
    by_address: BTreeMap<IpAddr, String>,
    all_see_all: bool,
}

#[derive(Debug)]
struct Entry {
    name: String,
    group: String,
    v4: Ipv4Addr,
    v6: Option<Ipv6Addr>,
}

/// Result of a search.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Addresses(Ipv4Addr, Option<Ipv6Addr>),
    Name(String),
    /// The name is of the zone, and no container has it.
    NoSuchName,
}

impl Directory {
    /// No names. `all_see_all`: groups do not hide names.
    pub(crate) fn new(all_see_all: bool) -> Self {
        Self(Arc::new(RwLock::new(Names { all_see_all, ..Names::default() })))
    }

    pub(crate) fn add(&self, name: &str, group: &str, config: &ContainerConfig) {
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let key = name.to_ascii_lowercase();
        let (v4, v6) = (config.guest_ip, config.ipv6.map(|net| net.guest));
        for address in [Some(IpAddr::V4(v4)), v6.map(IpAddr::V6)].into_iter().flatten() {
            names.by_address.insert(address, key.clone());
        }
        let entry = Entry { name: name.to_owned(), group: group.to_owned(), v4, v6 };
        names.entries.insert(key, entry);
    }

    pub(crate) fn set_group(&self, address: IpAddr, group: &str) {
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(key) = names.by_address.get(&address).cloned() else { return };
        if let Some(entry) = names.entries.get_mut(&key) {
            entry.group = group.to_owned();
        }
    }

    /// Removes the names of an address.
    pub(crate) fn remove(&self, address: IpAddr) {
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(key) = names.by_address.remove(&address) else { return };
        // Another container may have a name that differs only in case.
        let is_own =
            |entry: &Entry| address == entry.v4 || entry.v6.is_some_and(|v6| address == v6);
        if names.entries.get(&key).is_some_and(is_own) {
            names.entries.remove(&key);
        }
    }

    /// The answer to a question of the container with this configuration. `None`: the name is not of the zone, and is
    /// forwarded.
    pub(crate) fn answer(&self, config: &ContainerConfig, message: &[u8]) -> Option<Vec<u8>> {
        let message = Message::from_octets(message).ok()?;
        let header = message.header();
        let question = message.sole_question().ok()?;
        if header.qr() || header.opcode() != Opcode::QUERY || question.qclass() != Class::IN {
            return None;
        }
        let name = question.qname().to_string().trim_end_matches('.').to_ascii_lowercase();
        let found = self.0.read().unwrap_or_else(PoisonError::into_inner).find(config, &name)?;
        let rcode = if found == Found::NoSuchName { Rcode::NXDOMAIN } else { Rcode::NOERROR };
        let mut answer = MessageBuilder::new_vec().start_answer(&message, rcode).ok()?;
        answer.header_mut().set_aa(true);
        answer.header_mut().set_ra(true);
        let owner = question.qname();
        match (found, question.qtype()) {
            (Found::Addresses(v4, _), Rtype::A) => answer.push((owner, TTL, A::new(v4))).ok()?,
            (Found::Addresses(_, Some(v6)), Rtype::AAAA) => {
                answer.push((owner, TTL, Aaaa::new(v6))).ok()?;
            }
            (Found::Name(name), Rtype::PTR) => {
                let target = Name::<Vec<u8>>::from_str(&format!("{name}.{ZONE}")).ok()?;
                answer.push((owner, TTL, Ptr::new(target))).ok()?;
            }
            // The name exists, without a record of this type.
            _ => {}
        }
        Some(answer.finish())
    }
}

impl Names {
    /// Searches a name in lower case, without the dot at its end.
    fn find(&self, config: &ContainerConfig, name: &str) -> Option<Found> {
        if let Some(address) = address_of(name) {
            let here = match address {
                IpAddr::V4(ip) => config.in_subnet(ip),
                IpAddr::V6(ip) => config.ipv6.is_some_and(|net| net.contains(ip)),
            };
            let entry = self.by_address.get(&address).and_then(|key| self.visible(config, key));
            let found = entry.map_or(Found::NoSuchName, |entry| Found::Name(entry.name.clone()));
            return here.then_some(found);
        }
        let of_zone = name.strip_suffix(ZONE);
        let host = match of_zone {
            Some(host) => host.strip_suffix('.').or_else(|| host.is_empty().then_some(""))?,
            // Other names with a dot are those of the world.
            None if name.contains('.') => return None,
            None => name,
        };
        match self.visible(config, host) {
            Some(entry) => Some(Found::Addresses(entry.v4, entry.v6)),
            None => of_zone.map(|_| Found::NoSuchName),
        }
    }

    /// The entry of that name, if the container reaches it.
    fn visible(&self, config: &ContainerConfig, key: &str) -> Option<&Entry> {
        let own = self.by_address.get(&IpAddr::V4(config.guest_ip))?;
        let group = &self.entries.get(own)?.group;
        self.entries.get(key).filter(|entry| self.all_see_all || entry.group == *group)
    }
}

/// The address of a name of the reverse zones (RFC 1035 section 3.5, RFC 3596 section 2.5).
fn address_of(name: &str) -> Option<IpAddr> {
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let bytes: Vec<u8> =
            labels.rsplit('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        return <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let digit =
        |part: &str| if part.len() == 1 { u128::from_str_radix(part, 16).ok() } else { None };
    let digits: Vec<u128> = labels.rsplit('.').map(digit).collect::<Option<_>>()?;
    let bits = digits.iter().fold(0, |bits, digit| bits << 4 | digit);
    (digits.len() == 32).then(|| Ipv6Addr::from_bits(bits).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(number: u8) -> ContainerConfig {
        let mut config = ContainerConfig::new(1500, true, None, [1, 2]);
        config.guest_ip = Ipv4Addr::new(10, 213, 0, number);
        config.prefix_len = 16;
        if let Some(net) = &mut config.ipv6 {
            net.guest = Ipv6Addr::new(0xfd00, 0, 0, 0x213, 0, 0, 0, number.into());
        }
        config
    }

    /// The answer's code and its records as text; `None`: forwarded.
    fn ask(
        directory: &Directory,
        from: u8,
        name: &str,
        kind: Rtype,
    ) -> Option<(Rcode, Vec<String>)> {
        let mut question = MessageBuilder::new_vec().question();
        question.header_mut().set_id(77);
        question.push((Name::<Vec<u8>>::from_str(name).unwrap(), kind)).unwrap();
        let answer = directory.answer(&config(from), &question.finish())?;
        let answer = Message::from_octets(answer).unwrap();
        assert!(answer.header().id() == 77 && answer.header().qr() && answer.header().aa());
        let records = answer.answer().unwrap().map(|record| {
            let record = record.unwrap();
            let data = record.to_any_record::<domain::rdata::AllRecordData<_, _>>().unwrap();
            data.data().to_string()
        });
        Some((answer.header().rcode(), records.collect()))
    }

    fn directory(all_see_all: bool) -> Directory {
        let directory = Directory::new(all_see_all);
        directory.add("Web", "default", &config(4));
        directory.add("db", "default", &config(5));
        directory.add("other", "prod", &config(6));
        directory
    }

    #[test]
    fn siblings_are_found_by_name_and_by_address() {
        let names = directory(false);
        let found = |name: &str, kind, expected: &str| {
            let (code, records) = ask(&names, 5, name, kind).unwrap();
            assert_eq!((code, records), (Rcode::NOERROR, vec![expected.to_owned()]), "{name}");
        };
        found("web", Rtype::A, "10.213.0.4");
        found("WEB.skbudget.internal", Rtype::A, "10.213.0.4");
        found("web.skbudget.internal", Rtype::AAAA, "fd00:0:0:213::4");
        found("4.0.213.10.in-addr.arpa", Rtype::PTR, "Web.skbudget.internal.");
        let v6 = "4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.1.2.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        found(v6, Rtype::PTR, "Web.skbudget.internal.");
        // The name exists, and has no record of this type.
        assert_eq!(ask(&names, 5, "web", Rtype::MX), Some((Rcode::NOERROR, Vec::new())));
    }

    #[test]
    fn other_names_of_the_zone_do_not_exist_and_those_of_the_world_are_forwarded() {
        let names = directory(false);
        for name in [
            "none.skbudget.internal",
            "skbudget.internal",
            "other.skbudget.internal",
            "9.0.213.10.in-addr.arpa",
        ] {
            assert_eq!(
                ask(&names, 5, name, Rtype::A),
                Some((Rcode::NXDOMAIN, Vec::new())),
                "{name}"
            );
        }
        for name in ["none", "other", "web.example", "xskbudget.internal", "8.8.8.8.in-addr.arpa"] {
            assert_eq!(ask(&names, 5, name, Rtype::A), None, "{name}");
        }
        assert!(ask(&directory(true), 5, "other", Rtype::A).is_some());
    }

    #[test]
    fn names_come_and_go_with_their_containers() {
        let names = directory(false);
        names.remove(IpAddr::V4(Ipv4Addr::new(10, 213, 0, 4)));
        assert_eq!(ask(&names, 5, "web", Rtype::A), None);
        names.set_group(IpAddr::V4(Ipv4Addr::new(10, 213, 0, 6)), "default");
        assert!(ask(&names, 5, "other", Rtype::A).is_some());
        assert!(names.answer(&config(5), b"no question").is_none());
    }
}
