//! The cost of a charge: schedule+uncharge pairs and the life of a flow, for the controller alone.
//!
//! `reserve`: within the flow's own guarantee, no meter is touched. `page`: the budget's usage crosses a page in both
//! directions, at one level (the budget) and at four (three shared meters above it). One iteration is one pair.

use std::hint::black_box;
use std::sync::Arc;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use skbudget_controller::{
    Budget, BudgetConfig, FlowSizes, Instant, Ledger, Level, LevelConfig, Limits, MemberId, Rules,
    RxKind, SockLimits,
};

const SIZES: FlowSizes = FlowSizes { sock: 1536, rmem_min: 4096, wmem_min: 4096, host_floor: 8192 };
const NOW: Instant = Instant::from_millis(1);

/// A chain of `above` shared meters, none of them near a threshold.
fn chain(above: usize) -> Option<Arc<Level>> {
    let config = LevelConfig { low: 1 << 20, soft: 1 << 21, hard: 1 << 22 };
    // Built from the top: a level needs its parent.
    (0..above).fold(None, |parent, _| Some(Level::new(config, parent).expect("at most three")))
}

fn budget(rules: Rules, above: usize) -> (Budget, MemberId) {
    let limits = Limits::from_bytes(256 << 20, None, None).expect("in order");
    let sock = SockLimits::default();
    let config = BudgetConfig { rules, limits, sock, min_bytes: 0, weight: 100 };
    let mut budget = Budget::new(config, chain(above)).expect("in order");
    let member = budget.add_member(128 << 10).expect("room for the queue");
    (budget, member)
}

fn flow(budget: &mut Budget, member: MemberId) -> Ledger {
    let mut flow = budget.admit(member, &SIZES, NOW).expect("room");
    budget.establish(&mut flow, NOW).expect("room");
    flow
}

fn name(rules: Rules) -> &'static str {
    match rules {
        Rules::Strict => "strict",
        Rules::Linux => "linux",
    }
}

/// A pair within the flow's reserve.
fn reserve(group: &mut BenchmarkGroup<'_, WallTime>, rules: Rules) {
    let (mut budget, member) = budget(rules, 0);
    let mut ledger = flow(&mut budget, member);
    // Under the linux rules no send is within a reserve: even the first byte touches the pool.
    if rules == Rules::Strict {
        group.bench_function("send/reserve", |b| {
            b.iter(|| {
                let granted = budget.tx_grant(&mut ledger, black_box(1), NOW);
                budget.tx_free(&mut ledger, granted, NOW);
            });
        });
    }
    // An open window: data fills a slot and leaves it, the window does not move.
    budget.rx_open(&mut ledger, 16, NOW);
    group.bench_function("receive/credit", |b| {
        b.iter(|| {
            let filled = budget.rx_fill(&mut ledger, black_box(1), RxKind::InOrder, NOW);
            budget.rx_drain(&mut ledger, filled, NOW);
        });
    });
    budget.release(ledger, NOW);
}

/// A pair that crosses a page, at one level and at four.
fn page(group: &mut BenchmarkGroup<'_, WallTime>, rules: Rules, levels: usize) {
    let (mut budget, member) = budget(rules, levels - 1);
    let mut ledger = flow(&mut budget, member);
    // Linux rules: the flow must stay below its own cap, or the charge is refused before it reaches a meter.
    ledger.set_sndbuf(4 << 20);
    // Beyond the reserve, so that every further chunk is a page of the meter.
    budget.tx_grant(&mut ledger, 4, NOW);
    budget.rx_open(&mut ledger, 4, NOW);
    budget.rx_fill(&mut ledger, 4, RxKind::InOrder, NOW);
    group.bench_function(format!("send/page/{levels}"), |b| {
        b.iter(|| {
            let granted = budget.tx_grant(&mut ledger, black_box(1), NOW);
            budget.tx_free(&mut ledger, granted, NOW);
        });
    });
    group.bench_function(format!("receive/page/{levels}"), |b| {
        b.iter(|| {
            budget.rx_open(&mut ledger, black_box(1), NOW);
            let filled = budget.rx_fill(&mut ledger, black_box(1), RxKind::InOrder, NOW);
            budget.rx_free(&mut ledger, filled, NOW);
        });
    });
    // 64 KiB at once, as for a super-frame.
    group.bench_function(format!("send/17 pages/{levels}"), |b| {
        b.iter(|| {
            let granted = budget.tx_grant(&mut ledger, black_box(17), NOW);
            debug_assert_eq!(granted, 17);
            budget.tx_free(&mut ledger, granted, NOW);
        });
    });
    budget.release(ledger, NOW);
}

fn life(group: &mut BenchmarkGroup<'_, WallTime>, rules: Rules, levels: usize) {
    let (mut budget, member) = budget(rules, levels - 1);
    group.bench_function(format!("admit+establish+release/{levels}"), |b| {
        b.iter(|| {
            let ledger = flow(&mut budget, black_box(member));
            budget.release(ledger, NOW);
        });
    });
}

fn pressure(c: &mut Criterion) {
    for rules in [Rules::Strict, Rules::Linux] {
        let mut group = c.benchmark_group(name(rules));
        reserve(&mut group, rules);
        for levels in [1, 4] {
            page(&mut group, rules, levels);
            life(&mut group, rules, levels);
        }
        group.finish();
    }
}

criterion_group!(benches, pressure);
criterion_main!(benches);
