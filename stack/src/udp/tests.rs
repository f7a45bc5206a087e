//! The table against a model of it: a plain list, and every number computed again.

use std::collections::BTreeMap;
use std::net::IpAddr;

use skbudget_controller::{Budget, BudgetConfig, Limits, MemberId, Rules, SockLimits};
use skbudget_seed::{Rng, each_seed};

use super::*;

/// A mapping of the model.
#[derive(Debug, Clone)]
struct Naive {
    id: DatagramId,
    last_sent: Instant,
    only_dns: bool,
    /// The destinations, the latest last.
    remotes: Vec<IpAddr>,
}

impl Naive {
    fn ends_at(&self) -> Instant {
        self.last_sent + Duration::from_secs(if self.only_dns { 20 } else { 120 })
    }
}

struct Bench {
    mappings: Mappings,
    budget: Budget,
    member: MemberId,
    now: Instant,
    model: BTreeMap<SocketAddr, Naive>,
}

impl Bench {
    fn new(hard: u64, rules: Rules) -> Self {
        let limits = Limits::from_bytes(hard, None, None).unwrap();
        let sock = SockLimits::default();
        let config = BudgetConfig { rules, limits, sock, min_bytes: 0, weight: 100 };
        let mut budget = Budget::new(config, None).unwrap();
        let member = budget.add_member(0).unwrap();
        let now = Instant::from_millis(1000);
        Self { mappings: Mappings::new([3, 5]), budget, member, now, model: BTreeMap::new() }
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut Mappings, &mut MemberCtx<'_>) -> R) -> R {
        let Self { mappings, budget, member, now, .. } = self;
        f(mappings, &mut MemberCtx { now: *now, budget, member: *member })
    }

    /// Opens the guest's port if need be, as the container does, and sends to `to`.
    fn send(&mut self, guest: SocketAddr, to: SocketAddr) {
        let found = self.mappings.find(DatagramKind::Udp, guest);
        assert_eq!(found, self.model.get(&guest).map(|naive| naive.id));
        let id = found.or_else(|| self.open(guest));
        let Some(id) = id else { return };
        self.with(|mappings, mem| mappings.note_sent(id, to, 100, mem));
        let now = self.now;
        let naive = self.model.entry(guest).or_insert_with(|| Naive {
            id,
            last_sent: now,
            only_dns: true,
            remotes: Vec::new(),
        });
        naive.last_sent = now;
        naive.only_dns &= to.port() == 53;
        naive.remotes.retain(|ip| *ip != to.ip());
        naive.remotes.push(to.ip());
    }

    fn open(&mut self, guest: SocketAddr) -> Option<DatagramId> {
        let opened = self.with(|mappings, mem| mappings.open(DatagramKind::Udp, guest, mem));
        opened.or_else(|| {
            let oldest = self.mappings.oldest()?;
            let expected = self.model.values().map(|naive| naive.last_sent).min();
            let (&key, naive) = self.model.iter().find(|(_, naive)| naive.id == oldest).unwrap();
            assert_eq!(Some(naive.last_sent), expected, "the longest silent one");
            self.model.remove(&key);
            self.with(|mappings, mem| mappings.close(oldest, mem));
            self.with(|mappings, mem| mappings.open(DatagramKind::Udp, guest, mem))
        })
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        let now = self.now;
        let mut expected: Vec<DatagramId> =
            self.model.values().filter(|n| n.ends_at() <= now).map(|n| n.id).collect();
        let mut found = Vec::new();
        while let Some(id) = self.mappings.expired(now) {
            self.with(|mappings, mem| mappings.close(id, mem));
            found.push(id);
        }
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
        self.model.retain(|_, naive| naive.ends_at() > now);
    }

    fn check(&mut self) {
        assert_eq!(self.mappings.len(), self.model.len());
        assert!(self.mappings.len() <= MAPPINGS_MAX);
        let charged = self.budget.member_stats(self.member).udp;
        let sum = self.model.values().filter_map(|naive| {
            let mapping = self.mappings.slots[naive.id.index as usize].mapping.as_ref()?;
            assert_eq!(mapping.id, naive.id);
            // The latest ones may answer, whatever memory there is.
            let known = naive.remotes.iter().rev().take(4);
            assert!(known.clone().all(|ip| mapping.remotes.contains(*ip)), "{naive:?}");
            assert!(caps_bytes(mapping.caps) + MAPPING_BYTES + BEYOND_CAP <= mapping.charged);
            Some(mapping.charged)
        });
        assert_eq!(charged, sum.sum::<u64>(), "the charge is that of the mappings");
        assert!(charged <= self.budget.limits().hard_bytes() / 8, "M4");
        let fast = self.mappings.fast.front().map(|(at, _)| *at);
        let ends = self.model.values().map(Naive::ends_at);
        assert_eq!(self.mappings.deadline(), ends.chain(fast).min());
    }
}

fn any<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.below(of.len() as u64) as usize]
}

#[test]
fn the_table_is_that_of_a_plain_list() {
    each_seed!(0..60, |seed| {
        let mut rng = Rng::new(seed);
        let hard = any(&mut rng, &[1 << 20, 4 << 20, 32 << 20, 256 << 20]);
        let mut bench = Bench::new(hard, any(&mut rng, &[Rules::Strict, Rules::Linux]));
        for _ in 0..600 {
            let port = 1 + rng.below(60) as u16;
            let guest: IpAddr = any(&mut rng, &["10.0.2.100", "fd00::100"]).parse().unwrap();
            let (guest, v6) = (SocketAddr::new(guest, port), guest.is_ipv6());
            match rng.below(10) {
                0 => bench.pass(Duration::from_millis(rng.below(30_000))),
                1 => {
                    let id = bench.mappings.find(DatagramKind::Udp, guest);
                    let receive = rng.below(2) == 0;
                    let raise = |id| bench.with(|m, mem| m.raise(id, receive, mem).is_some());
                    id.map(raise);
                }
                2 => while bench.with(|m, mem| m.lower_idle(mem)).is_some() {},
                3 => bench
                    .mappings
                    .find(DatagramKind::Udp, guest)
                    .into_iter()
                    .for_each(|id| bench.mappings.mark_ready(id)),
                4 => drop(bench.mappings.pop_ready()),
                _ => {
                    let host = rng.below(400) as u8;
                    let ip =
                        if v6 { format!("2001:db8::{host:x}") } else { format!("192.0.2.{host}") };
                    let to = SocketAddr::new(ip.parse().unwrap(), any(&mut rng, &[53, 53, 443]));
                    bench.send(guest, to);
                }
            }
            bench.check();
        }
        bench.pass(Duration::from_secs(120));
        while bench.with(|m, mem| m.lower_idle(mem)).is_some() {}
        assert_eq!((bench.mappings.len(), bench.mappings.deadline()), (0, None));
        assert_eq!(bench.budget.member_stats(bench.member).udp, 0);
    });
}

#[test]
fn mappings_are_as_many_as_an_eighth_of_hard_holds() {
    for (hard, expected) in [(256 << 20, 320), (64 << 20, 80), (4 << 20, 5), (512 << 10, 0)] {
        let mut bench = Bench::new(hard, Rules::Strict);
        for port in 1..2000 {
            bench.send(SocketAddr::from(([10, 0, 2, 100], port)), "192.0.2.1:9".parse().unwrap());
        }
        let most = (hard / 8 / NEW_BYTES) as usize;
        assert_eq!(bench.mappings.len(), most);
        assert!(most.abs_diff(expected) <= expected / 10, "{most} in {hard}");
    }
    // Without a limit their number is the bound.
    let mut bench = Bench::new(4 << 30, Rules::Strict);
    for port in 1..6000 {
        bench.send(SocketAddr::from(([10, 0, 2, 100], port)), "192.0.2.1:9".parse().unwrap());
    }
    assert_eq!(bench.mappings.len(), MAPPINGS_MAX);
}

#[test]
fn fast_sockets_are_slow_again_after_a_silence() {
    let mut bench = Bench::new(256 << 20, Rules::Strict);
    let guest = SocketAddr::from(([10, 0, 2, 100], 7));
    bench.send(guest, "192.0.2.1:9".parse().unwrap());
    let id = bench.mappings.find(DatagramKind::Udp, guest).unwrap();
    let mut caps = CAPS;
    while let Some(more) = bench.with(|m, mem| m.raise(id, true, mem)) {
        assert_eq!(more, HostCaps { rcvbuf: 2 * caps.rcvbuf, ..caps });
        caps = more;
    }
    assert_eq!(caps.rcvbuf, CAPS_MAX.rcvbuf);
    let lowered = |bench: &mut Bench| bench.with(|m, mem| m.lower_idle(mem));
    // It was active since the raise, and once more.
    bench.now = bench.now + FAST_FOR;
    assert_eq!(lowered(&mut bench), None);
    bench.mappings.get_mut(id).unwrap().note_received(100);
    bench.now = bench.now + FAST_FOR;
    assert_eq!(lowered(&mut bench), None);
    bench.now = bench.now + FAST_FOR;
    assert_eq!(lowered(&mut bench), Some(id));
    assert_eq!(bench.budget.member_stats(bench.member).udp, NEW_BYTES);
    bench.check();
}
