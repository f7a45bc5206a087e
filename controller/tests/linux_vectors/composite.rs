//! Vectors 91 to 101, and the example that motivates the composite limit.

use std::time::Duration;

use skbudget_controller::composite::{
    Answer, Composite, FloorsExceedTotal, GiveBack, Spare, Written, level_max, total_under,
};
use skbudget_controller::linux::Kind::{Rmem, Wmem};
use skbudget_controller::linux::{Chain, Pool, Sock};
use skbudget_controller::share::{Child, Share, fair_level};
use skbudget_controller::{Instant, Level, LevelConfig, Limits};

fn hundred_mib() -> Composite {
    Composite::new(25_600, 256, 0).unwrap()
}

#[test]
fn vectors_91_to_93_thresholds() {
    let table = [
        (91, 20_480, (2560, 3413, 5120), 0),
        (92, 7680, (8960, 11_946, 17_920), 0),
        (93, 25_472, (128, 170, 256), 128),
    ];
    for (number, user, (low, soft, hard), over_total) in table {
        let split = hundred_mib().split(user, 0);
        assert_eq!(split.limits, Limits { low, soft, hard }, "vector {number}");
        assert_eq!(split.over_total, over_total, "vector {number}");
    }
    assert_eq!(hundred_mib().split(20_480, 256).limits.hard, 4864, "C4: the margin");
}

#[test]
fn vectors_94_and_95_user_memory_makes_room() {
    let limit = hundred_mib();
    assert_eq!(limit.ask(5120, 256, 256, 20_480, 15_360), Answer::Reclaim { pages: 256 });
    assert_eq!(limit.split(20_224, 0).limits.hard, 5376, "vector 94");
    assert_eq!(limit.ask(5120, 256, 256, 20_224, 15_104), Answer::Grant, "vector 94");
    assert_eq!(limit.ask(5120, 256, 256, 20_480, 0), Answer::Refuse, "vector 95");
    let far = limit.ask(5120, 16, 12_800, 20_480, 15_360);
    assert_eq!(far, Answer::Reclaim { pages: 1600 }, "C6: an eighth of the gap");
}

#[test]
fn vectors_96_to_98_user_memory_grows() {
    let limit = hundred_mib();
    let spare = Spare { fwd: 0, ofo: 1280, window: 0 };
    let plan = limit.give_back(5120, 23_040, spare);
    assert_eq!(limit.split(23_040, 0).limits.hard, 2560, "vector 96");
    assert_eq!(plan, GiveBack { take: spare, drain: 1280 }, "vector 96: T = 3840, intake stops");

    let Limits { low, soft, hard } = limit.split(23_040, 0).limits;
    let mut pool = Pool::new(low, soft, hard);
    (pool.flag, pool.nsock) = (true, 10);
    let mut sock = Sock::new(16_384, 131_072);
    let mut chain = Chain::default();
    // With the lowered H a socket needs its guarantee or its fair share.
    let mut ask = |pool: &mut Pool, alloc: u64, rmem: u64| {
        (pool.alloc, sock.rmem, sock.fwd) = (alloc, rmem, 0);
        sock.schedule(pool, &mut chain, Rmem, 4096, Instant(0)).is_ok()
    };
    assert!(!ask(&mut pool, 2560, 0), "vector 97: 2561 > high");
    assert!(ask(&mut pool, 2559, 0), "vector 97: by the guarantee");
    assert!(ask(&mut pool, 2559, 100 * 4096), "vector 97: by the fair share");
    assert!(!ask(&mut pool, 2559, 300 * 4096), "vector 97: by neither");

    let drain = |alloc: u64| {
        let mut pool = Pool::new(low, soft, hard);
        (pool.flag, pool.alloc) = (true, alloc + 1);
        let mut sock = Sock::new(16_384, 131_072);
        sock.wmem = 4096;
        sock.uncharge(&mut pool, &mut Chain::default(), Wmem, 4096, Instant(0));
        pool.flag
    };
    assert!(drain(1280), "vector 98: low = 1280, the release test is strict");
    assert!(!drain(1279), "vector 98");
}

fn level_of(children: &[(u64, u32)], soft: u64) -> Share {
    let child = |&(usage, weight): &(u64, u32)| Child { usage, min: 0, weight };
    fair_level(&children.iter().map(child).collect::<Vec<_>>(), soft)
}

#[test]
fn the_fair_level_fills_from_below() {
    let mut children = vec![(100, 1); 10];
    // One child uses more than its share of 20,000 beside nine of 100.
    children[0] = (19_101, 1);
    assert_eq!(level_of(&children, 20_000).of(1), 19_100, "S13");
    children[1] = (5100, 1);
    assert_eq!(level_of(&children, 20_000).of(1), 14_100, "S13, next tick");
    assert_eq!(level_of(&[(10, 1), (10, 2)], 20), Share::NONE, "all fit");
    assert_eq!(level_of(&[(100, 1), (100, 3)], 100).of(1), 25, "weights");
    assert_eq!(level_of(&[], 0), Share::NONE);
    assert_eq!(level_of(&[(5, 1)], 0).of(1), 0);
}

#[test]
fn weights_beyond_the_number_of_pages_still_divide_them() {
    let share = level_of(&[(1000, 1000), (1000, 3000)], 1000);
    assert_eq!((share.of(1000), share.of(3000)), (250, 750));
    assert_eq!((Share::NONE.of(1), Share::pages(7).of(3)), (u64::MAX, 21));
}

#[test]
fn a_guarantee_takes_its_whole_size_from_what_is_divided() {
    let guaranteed = Child { usage: 10, min: 40, weight: 1 };
    let greedy = Child { usage: 100, min: 0, weight: 1 };
    assert_eq!(fair_level(&[guaranteed, greedy], 100).of(1), 60);
    assert_eq!(fair_level(&[guaranteed, greedy], 140), Share::NONE);
    assert_eq!(fair_level(&[guaranteed, greedy], 50).of(1), 10, "less than the guarantee");
}

#[test]
fn floors_ancestors_and_hysteresis() {
    let refused = Composite::new(1000, 256, 800);
    assert_eq!(refused, Err(FloorsExceedTotal { floors: 1056, total: 1000 }), "S18");
    assert_eq!(total_under(25_600, 5120), 20_480);

    let ancestor = level_max(25_600, 10_240);
    let config = LevelConfig { low: ancestor, soft: ancestor, hard: ancestor };
    let level = Level::new(config, None).unwrap();
    level.try_charge(15_000).unwrap();
    assert_eq!(level.try_charge(361), Err(0), "S17");
    assert_eq!(level.try_charge(360), Ok(()), "S17");

    let at = |ms| Instant(0) + Duration::from_millis(ms);
    let mut written = Written { value: 10_000, lowered_at: at(0) };
    assert!(!written.update(9900, at(1000)), "less than 1 MiB");
    assert!(written.update(9000, at(1000)));
    assert!(!written.update(8000, at(1200)), "lowered 200 ms ago");
    assert!(written.update(9500, at(1201)), "relief is never delayed");
    assert!(written.update(8000, at(1250)));
    assert_eq!(hundred_mib().user_high(6000, 19_000, 64), 19_600);
    assert_eq!(hundred_mib().user_high(6000, 19_600, 64), 19_664, "C5: never below user + batch");
}

/// 100 MiB at 20 TCP / 80 user: TCP grows to 70 as user memory is reclaimed, step by step.
#[test]
fn twenty_eighty_becomes_seventy_thirty() {
    let limit = hundred_mib();
    let (mut tcp, mut user, mut steps) = (5120_u64, 20_480_u64, 0);
    while tcp < 17_920 {
        let gap = 17_920 - tcp;
        let need = gap.min(256);
        match limit.ask(tcp, need, gap, user, user - 7680) {
            Answer::Grant => tcp += need,
            Answer::Reclaim { pages } => user -= pages,
            Answer::Refuse => panic!("refused at tcp {tcp}, user {user}"),
        }
        // The total holds at every step, not only at the end.
        assert!(tcp + user <= 25_600);
        steps += 1;
    }
    assert_eq!((tcp, user), (17_920, 7680));
    assert!(steps < 100, "{steps} steps");
    let separate = Limits::new(2560, 3413, 5120).unwrap();
    assert!(separate.hard < 17_920, "a limit of its own would have refused it");
}
