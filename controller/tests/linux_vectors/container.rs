//! Vectors 48 to 53, 84, 85 and 102: the container's counters beside the pool, refused data.

use std::sync::Arc;

use skbudget_controller::linux::Cause::Container;
use skbudget_controller::linux::Kind::{Rmem, Wmem};
use skbudget_controller::linux::Verdict::{Deny, Forced, UnderLow};
use skbudget_controller::linux::{Chain, Pool, Sock};
use skbudget_controller::sizing::{Refused, on_refused};
use skbudget_controller::{
    Budget, BudgetConfig, FlowSizes, Instant, Level, LevelConfig, Limits, Rules, RxKind, SockLimits,
};

const NOW: Instant = Instant(0);

fn level(max: u64, usage: u64, parent: Option<Arc<Level>>) -> Arc<Level> {
    let level = Level::new(LevelConfig { low: max, soft: max, hard: max }, parent).unwrap();
    level.try_charge(usage).unwrap();
    level
}

fn pool(alloc: u64) -> Pool {
    let mut pool = Pool::new(100, 200, 300);
    (pool.alloc, pool.nsock) = (alloc, 10);
    pool
}

#[test]
fn vectors_48_to_53_the_container_is_charged_first() {
    let (mut dom, cg) = (pool(50), level(16, 16, None));
    let mut chain = Chain { leaf: Some(cg.clone()), flag: false };
    let mut sock = Sock::new(16_384, 131_072);
    let verdict = sock.schedule(&mut dom, &mut chain, Rmem, 4096, NOW);
    assert_eq!(verdict, Deny(Container), "vector 48");
    let seen = (cg.usage(), cg.failcnt(), chain.flag, dom.alloc);
    assert_eq!(seen, (16, 1, true, 50), "vector 48");

    // The leaf has room; its parent is full.
    let parent = level(20, 15, None);
    let leaf = level(100, 5, Some(parent.clone()));
    let mut chain = Chain { leaf: Some(leaf.clone()), flag: false };
    let verdict = sock.schedule(&mut dom, &mut chain, Rmem, 4096, NOW);
    assert_eq!(verdict, Deny(Container), "vector 49");
    // Only the parent counts the refusal.
    assert_eq!((leaf.usage(), leaf.failcnt(), chain.flag), (5, 0, true), "vector 49");
    assert_eq!((parent.usage(), parent.failcnt()), (20, 1), "vector 49");

    let mut chain = Chain { leaf: Some(cg.clone()), flag: false };
    let mut sock = Sock::new(200_000, 131_072);
    sock.wmem = 100_000;
    let verdict = sock.schedule(&mut dom, &mut chain, Wmem, 2304, NOW);
    assert_eq!(verdict, Forced(Container), "vector 50");
    let seen = (cg.usage(), chain.flag, sock.sndbuf, dom.alloc);
    assert_eq!(seen, (17, true, 50_000, 51), "vector 50");
    // Undo the forced page: the next vectors start at the full container again.
    cg.uncharge(1);

    let mut sock = Sock::new(16_384, 131_072);
    let verdict = sock.schedule(&mut dom, &mut chain, Wmem, 2304, NOW);
    assert_eq!(verdict, Deny(Container), "vector 51");
    assert_eq!((cg.usage(), chain.flag, sock.sndbuf), (16, true, 4608), "vector 51");

    cg.uncharge(1);
    let verdict = sock.schedule(&mut dom, &mut chain, Rmem, 4096, NOW);
    assert_eq!((verdict, cg.usage(), chain.flag), (UnderLow, 16, false), "vector 52");

    let mut dom = pool(50);
    dom.flag = true;
    let mut sock = Sock::new(16_384, 131_072);
    let verdict = sock.schedule(&mut dom, &mut chain, Rmem, 4096, NOW);
    assert_eq!((verdict, dom.flag), (Deny(Container), true), "vector 53: no low test");
}

#[test]
fn vectors_84_and_85_an_empty_receive_queue_accepts_one() {
    assert_eq!(on_refused(false, false), Refused::Drop, "vector 84");
    assert_eq!(on_refused(true, false), Refused::Force, "vector 85");
    let config = BudgetConfig {
        rules: Rules::Linux,
        limits: Limits { low: 1, soft: 2, hard: 2 },
        sock: SockLimits::default(),
        min_bytes: 0,
        weight: 1,
    };
    let sizes = FlowSizes { sock: 1536, rmem_min: 4096, wmem_min: 4096, host_floor: 32_768 };
    let mut budget = Budget::new(config, None).unwrap();
    let member = budget.add_member(0).unwrap();
    let mut hog = budget.admit(member, &sizes, NOW).unwrap();
    let mut flow = budget.admit(member, &sizes, NOW).unwrap();
    // The hog fills the pool of two pages.
    assert_eq!(budget.rx_fill(&mut hog, 9, RxKind::InOrder, NOW), 2);
    assert_eq!(budget.rx_fill(&mut flow, 1, RxKind::Ofo, NOW), 0, "no force for a hole");
    assert_eq!(budget.rx_fill(&mut flow, 2, RxKind::InOrder, NOW), 1, "vector 85");
    assert_eq!(budget.rx_fill(&mut flow, 1, RxKind::InOrder, NOW), 0, "vector 84");
    assert_eq!(budget.meter_stats(NOW).usage_bytes, 3 * 4096);
    budget.release(hog, NOW);
    budget.release(flow, NOW);
    assert_eq!(budget.meter_stats(NOW).usage_bytes, 0);
}

#[test]
fn vector_102_a_parent_refuses() {
    let parent = level(20, 15, None);
    let leaf = level(100, 5, Some(parent.clone()));
    let mut chain = Chain { leaf: Some(leaf.clone()), flag: false };
    let mut sock = Sock::new(16_384, 131_072);
    let verdict = sock.schedule(&mut pool(0), &mut chain, Rmem, 4096, NOW);
    assert_eq!(verdict.cause(), Some(Container));
    assert_eq!((leaf.usage(), parent.usage(), chain.flag), (5, 20, true));
}
