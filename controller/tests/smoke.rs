//! Calls every public operation once, under both rule sets.

use skbudget_controller::{
    Budget, BudgetConfig, Counter, FlowSizes, Instant, Level, LevelConfig, Limits, Rules, RxKind,
    SockLimits,
};

const SIZES: FlowSizes =
    FlowSizes { sock: 1536, rmem_min: 4096, wmem_min: 4096, host_floor: 32768 };

#[test]
fn every_call_once_and_back_to_zero() {
    for rules in [Rules::Strict, Rules::Linux] {
        let host = Level::new(LevelConfig { low: 500, soft: 600, hard: 1000 }, None).unwrap();
        let config = BudgetConfig {
            rules,
            limits: Limits::from_bytes(1 << 20, None, None).unwrap(),
            sock: SockLimits::default(),
            min_bytes: 0,
            weight: 1,
        };
        let mut budget = Budget::new(config, Some(host.clone())).unwrap();
        let now = Instant::from_millis(1);
        let member = budget.add_member(131_072).unwrap();
        let mut flow = budget.admit(member, &SIZES, now).unwrap();
        budget.establish(&mut flow, now).unwrap();
        assert_eq!(budget.rx_open(&mut flow, 16, now), 16);
        assert_eq!(budget.rx_fill(&mut flow, 3, RxKind::Ofo, now), 3);
        assert_eq!(budget.rx_fill(&mut flow, 2, RxKind::InOrder, now), 2);
        budget.rx_settle(&mut flow, 2);
        budget.rx_prune(&mut flow, 1, now);
        budget.rx_free(&mut flow, 4, now);
        assert_eq!(budget.tx_grant(&mut flow, 4, now), 4);
        budget.tx_free(&mut flow, 1, now);
        assert!(budget.host_raise(&mut flow, 65_536, now));
        budget.host_lower(&mut flow, 1 << 30, now);
        // Lowering stops at the floor.
        assert_eq!(flow.host(), 32_768);
        budget.rx_close(&mut flow, 100, now);
        assert!(budget.charge_compact(member, 64, now));
        assert!(budget.charge_udp(member, 2048, now));
        assert!(budget.charge_frag(member, 1024, now));
        budget.set_idle(&mut flow, true, now);
        budget.count(member, Counter::PruneCalled, 2);
        budget.wait(7, 4096);
        budget.forget(7);
        assert_eq!(budget.poll_wake(now), None);
        let stats = budget.member_stats(member);
        assert_eq!((stats.wmem, stats.flows, stats.dev), (12_288, 1, 131_072));
        budget.release(flow, now);
        budget.uncharge_udp(member, 2048, now);
        budget.uncharge_frag(member, 1024, now);
        budget.uncharge_compact(member, 64, now);
        budget.remove_member(member, now);
        assert_eq!(budget.meter_stats(now).usage_bytes, 0);
        assert_eq!(host.usage(), 0);
    }
}
