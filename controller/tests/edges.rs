//! Edges of the contract: bounded events, lost ledgers, errors of constructors.

use skbudget_controller::share::{Child, Share};
use skbudget_controller::{
    Budget, BudgetConfig, Counter, Event, FlowSizes, Instant, Level, LevelConfig, LimitError,
    Limits, MemberId, Pressure, Rules, ShareClock, SockLimits,
};

const SIZES: FlowSizes =
    FlowSizes { sock: 1536, rmem_min: 4096, wmem_min: 4096, host_floor: 32_768 };

fn config(hard: u64) -> BudgetConfig {
    BudgetConfig {
        rules: Rules::Strict,
        limits: Limits::from_bytes(hard, None, None).unwrap(),
        sock: SockLimits::default(),
        min_bytes: 0,
        weight: 1,
    }
}

#[test]
fn missing_limits_follow_from_those_given() {
    let limits = |low, soft, hard| Ok(Limits { low, soft, hard });
    assert_eq!(Limits::from_bytes(256 << 20, None, None), limits(32_768, 43_690, 65_536));
    assert_eq!(Limits::from_bytes(100 << 12, Some(40 << 12), None), limits(30, 40, 100));
    assert_eq!(Limits::from_bytes(100 << 12, Some(90 << 12), None), limits(50, 90, 100));
    // Bytes are rounded down to pages.
    assert_eq!(Limits::from_bytes(8191, Some(4096), Some(0)), limits(0, 1, 1));
    assert!(matches!(Limits::from_bytes(4095, None, None), Err(LimitError::TooSmall { .. })));
    assert!(matches!(
        Limits::from_bytes(1 << 20, Some(2 << 20), None),
        Err(LimitError::Disorder { low: _, soft: 512, hard: 256 })
    ));
}

#[test]
fn constructors_refuse() {
    let new = |config, parent| Budget::new(config, parent).map(|_| ());
    let base = config(1 << 20);
    assert_eq!(new(BudgetConfig { weight: 0, ..base }, None), Err(LimitError::ZeroWeight));
    let limits = Limits { low: 2, soft: 1, hard: 3 };
    let disorder = Err(LimitError::Disorder { low: 2, soft: 1, hard: 3 });
    assert_eq!(new(BudgetConfig { limits, ..base }, None), disorder);
    // A guarantee above the container's own limit can never be used.
    let above = Err(LimitError::MinAboveHard { min_bytes: 2 << 20, hard_bytes: 1 << 20 });
    assert_eq!(new(BudgetConfig { min_bytes: 2 << 20, ..base }, None), above);

    let ten = LevelConfig { low: 10, soft: 10, hard: 10 };
    let host = Level::new(ten, None).unwrap();
    let min_bytes = 11 * 4096;
    let unfit = Err(LimitError::MinDoesNotFit { min_bytes, room_bytes: 40_960 });
    assert_eq!(new(BudgetConfig { min_bytes, ..base }, Some(host.clone())), unfit);
    // The refused budget left nothing behind at its level.
    assert_eq!(host.usage(), 0);

    let group = Level::new(ten, Some(host)).unwrap();
    let inner = Level::new(ten, Some(group)).unwrap();
    assert!(matches!(Level::new(ten, Some(inner.clone())), Err(LimitError::TooDeep)));
    assert_eq!(new(base, Some(inner)), Ok(()), "three levels and the container are four");
}

#[test]
fn events_are_bounded_and_the_lost_are_counted() {
    let mut budget = Budget::new(config(1 << 20), None).unwrap();
    let member = budget.add_member(0).unwrap();
    for _ in 0..300 {
        budget.count(member, Counter::AdmissionDenied, 1);
    }
    let counters = budget.member_stats(member).counters;
    assert_eq!(counters[Counter::AdmissionDenied as usize], 300);
    assert_eq!(counters[Counter::EventsLost as usize], 300 - 256);
    let denied = Event::AdmissionDenied { member, at: Instant(0) };
    assert_eq!(std::iter::from_fn(|| budget.poll_event()).filter(|e| *e == denied).count(), 256);
}

#[test]
fn every_counter_is_at_its_index_and_exported_by_its_name() {
    for (i, counter) in Counter::ALL.into_iter().enumerate() {
        assert_eq!(counter as usize, i);
        assert_eq!(counter.name(), format!("{counter:?}"));
    }
    let budget = Budget::new(config(1 << 20), None).unwrap();
    let none = budget.member_stats(MemberId(0));
    assert_eq!(none.counters.len(), Counter::ALL.len());
}

#[test]
fn one_hard_event_for_a_run_of_refusals() {
    let mut budget = Budget::new(config(45_056), None).unwrap();
    let member = budget.add_member(0).unwrap();
    let now = Instant::from_millis(3);
    let mut flow = budget.admit(member, &SIZES, now).unwrap();
    budget.establish(&mut flow, now).unwrap();
    // One slot of the reserve is granted; the other four requests are refused.
    let opened = [0; 5].map(|_| budget.rx_open(&mut flow, 9, now));
    assert_eq!(opened, [1, 0, 0, 0, 0], "the reserve's slot, then nothing");
    assert_eq!(budget.meter_stats(now).pressure, Pressure::Hard);
    let events: Vec<Event> = std::iter::from_fn(|| budget.poll_event()).collect();
    assert_eq!(events, [Event::HardRefused { at: now }]);
    budget.release(flow, now);
}

#[test]
fn fragments_and_datagrams_share_an_eighth_and_are_reported_apart() {
    for rules in [Rules::Strict, Rules::Linux] {
        let mut budget = Budget::new(BudgetConfig { rules, ..config(1 << 20) }, None).unwrap();
        let member = budget.add_member(0).unwrap();
        let now = Instant(0);
        assert!(budget.charge_frag(member, 100_000, now));
        assert!(!budget.charge_udp(member, 40_000, now), "140,000 of 131,072");
        assert!(budget.charge_udp(member, 31_072, now));
        assert!(!budget.charge_frag(member, 1, now));
        let stats = budget.member_stats(member);
        assert_eq!((stats.frag, stats.udp), (100_000, 31_072));
        budget.uncharge_frag(member, 60_000, now);
        assert!(budget.charge_udp(member, 60_000, now));
        let stats = budget.member_stats(member);
        assert_eq!((stats.frag, stats.udp), (40_000, 91_072));
        // Both are uncharged with the member.
        budget.remove_member(member, now);
        assert_eq!(budget.meter_stats(now).usage_bytes, 0);
        let next = budget.add_member(0).unwrap();
        assert!(budget.charge_frag(next, 131_072, now));
    }
}

#[test]
fn seats_are_used_again() {
    let mut budget = Budget::new(config(1 << 20), None).unwrap();
    let first = budget.add_member(4096).unwrap();
    let second = budget.add_member(0).unwrap();
    budget.count(first, Counter::PruneCalled, 3);
    budget.remove_member(first, Instant(0));
    assert_eq!(budget.add_member(0), Ok(first));
    assert_eq!(budget.member_stats(first).counters[Counter::PruneCalled as usize], 0);
    assert_ne!(first, second);
    assert_eq!(budget.meter_stats(Instant(0)).usage_bytes, 0);
}

#[test]
fn backlogs_are_charged_as_host_memory_until_the_container_leaves() {
    let mut budget = Budget::new(config(1 << 20), None).unwrap();
    let (member, now) = (budget.add_member(4096).unwrap(), Instant(0));
    assert!(budget.charge_listen(member, 1 << 20, now).is_err());
    assert_eq!(budget.meter_stats(now).usage_bytes, 4096, "all or nothing");
    budget.charge_listen(member, 100_000, now).unwrap();
    let stats = budget.member_stats(member);
    assert_eq!((stats.host, stats.listen, stats.reserve), (100_000, 100_000, 0));
    assert_eq!(budget.meter_stats(now).usage_bytes, 106_496);
    budget.uncharge_listen(member, 60_000, now);
    let stats = budget.member_stats(member);
    assert_eq!((stats.host, stats.listen), (40_000, 40_000));
    assert_eq!(budget.meter_stats(now).usage_bytes, 45_056);
    budget.remove_member(member, now);
    assert_eq!(budget.meter_stats(now).usage_bytes, 0);
}

#[test]
fn a_lowered_host_floor_is_still_charged_and_can_be_given_back() {
    let mut budget = Budget::new(config(1 << 20), None).unwrap();
    let (member, now) = (budget.add_member(0).unwrap(), Instant(0));
    // Under pressure caps are not raised, but reservations are charged.
    let mut other = budget.admit(member, &SIZES, now).unwrap();
    budget.establish(&mut other, now).unwrap();
    assert_eq!(budget.rx_open(&mut other, 200, now), 200);
    assert!(budget.under_pressure() && !budget.host_raise(&mut other, 4096, now));
    let sizes = FlowSizes { host_floor: 100_000, ..SIZES };
    let mut flow = budget.admit(member, &sizes, now).unwrap();
    budget.establish(&mut flow, now).unwrap();
    let usage = budget.meter_stats(now).usage_bytes;
    budget.lower_host_floor(&mut flow, SIZES.host_floor, now);
    assert_eq!((flow.host(), budget.meter_stats(now).usage_bytes), (100_000, usage));
    budget.host_lower(&mut flow, 1 << 20, now);
    assert_eq!(flow.host(), SIZES.host_floor.into());
    assert_eq!(budget.member_stats(member).host, 2 * u64::from(SIZES.host_floor));
    budget.release(flow, now);
    budget.release(other, now);
    assert_eq!(budget.meter_stats(now).usage_bytes, 0);
    assert!(!budget.under_pressure());
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "dropped without release")]
fn a_lost_ledger_is_loud() {
    let mut budget = Budget::new(config(1 << 20), None).unwrap();
    let member = budget.add_member(0).unwrap();
    drop(budget.admit(member, &SIZES, Instant(0)));
}

#[test]
fn many_wait_and_leave_in_any_order() {
    let mut budget = Budget::new(config(45_056), None).unwrap();
    let member = budget.add_member(0).unwrap();
    let mut flow = budget.admit(member, &SIZES, Instant(0)).unwrap();
    budget.establish(&mut flow, Instant(0)).unwrap();
    // The container is full now: every later need has to wait.
    assert_eq!(budget.tx_grant(&mut flow, 9, Instant(0)), 1);
    for key in 0..1000_u64 {
        budget.wait(key * 0x1_0000_0001, 40_000);
    }
    // Two of three leave, from the middle of the list too.
    for key in (0..1000_u64).filter(|key| key % 3 != 0) {
        budget.forget(key * 0x1_0000_0001);
    }
    assert_eq!(budget.waiting(), 334);
    // Nothing was released yet.
    assert_eq!(budget.poll_wake(Instant(0)), None);
    budget.release(flow, Instant(0));
    let woken: Vec<u64> = std::iter::from_fn(|| budget.poll_wake(Instant(0))).collect();
    let expected: Vec<u64> =
        (0..1000).filter(|key| key % 3 == 0).map(|key| key * 0x1_0000_0001).collect();
    assert_eq!(woken, expected, "all, oldest first");
    assert_eq!(budget.waiting(), 0);
}

#[test]
fn shares_are_published_at_once_then_at_intervals_and_lifted_after_the_pressure() {
    let config = LevelConfig { low: 4, soft: 8, hard: 10 };
    let level = Level::new(config, None).unwrap();
    let mut clock = ShareClock::default();
    let mut turn = |usage: u64, ms: u64| {
        let child = Child { usage, min: 0, weight: 1 };
        clock.on_turn(&level, || vec![child; 2], Instant::from_millis(ms));
        level.share()
    };
    assert_eq!(turn(9, 0), Share::NONE, "no pressure");
    level.try_charge(9).unwrap();
    assert_eq!(turn(9, 1).of(1), 4, "at once");
    assert_eq!(turn(1, 5).of(1), 4, "not due yet");
    assert_eq!(turn(7, 6).of(1), 4);
    assert_eq!(turn(2, 11), Share::NONE, "all demand fits");
    assert_eq!(turn(8, 16).of(1), 4);
    level.uncharge(9);
    assert_eq!(turn(8, 17), Share::NONE, "the pressure has ended");
}
