//! Vectors 1 to 40: one socket and one pool of 100/200/300 pages.

use skbudget_controller::Instant;
use skbudget_controller::linux::Cause::{OverHigh, Unfair};
use skbudget_controller::linux::Kind::{self, Rmem, Wmem};
use skbudget_controller::linux::Verdict::{
    self, Deny, Fair, Forced, Fwd, MinRmem, MinWmem, NoPressure, UnderLow,
};
use skbudget_controller::linux::{Chain, Pool, Sock};

/// Time of the operation, milliseconds; a state's flag was set `flag` milliseconds earlier.
const NOW_MS: u64 = 5000;

struct State {
    alloc: u64,
    flag: Option<u64>,
    fwd: u64,
    rmem: u64,
    wq: u64,
    snd: u32,
    locked: bool,
    nsock: u64,
}

const EMPTY: State =
    State { alloc: 0, flag: None, fwd: 0, rmem: 0, wq: 0, snd: 16_384, locked: false, nsock: 10 };

enum Act {
    Schedule(Kind, u64, Verdict),
    Uncharge(Kind, u64),
    /// Bytes requested, bytes granted, and the verdict of the ladder.
    Copy(u64, u64, Verdict),
    Force(u64),
}
use Act::{Copy, Force, Schedule, Uncharge};

/// Expected: alloc, flag, fwd, sndbuf.
type After = (u64, bool, u64, u32);

fn build(state: &State) -> (Pool, Sock) {
    let mut pool = Pool::new(100, 200, 300);
    pool.alloc = state.alloc;
    pool.nsock = state.nsock;
    pool.flag = state.flag.is_some();
    pool.since = Instant::from_millis(NOW_MS - state.flag.unwrap_or(0));
    let mut sock = Sock::new(state.snd, 131_072);
    (sock.fwd, sock.rmem, sock.wmem) = (state.fwd, state.rmem, state.wq);
    // A locked cap is not moderated (L3).
    sock.sndbuf_locked = state.locked;
    (pool, sock)
}

fn check(number: u32, state: &State, act: &Act, after: After) -> Pool {
    let (mut pool, mut sock) = build(state);
    let mut chain = Chain::default();
    let now = Instant::from_millis(NOW_MS);
    match *act {
        Schedule(kind, size, verdict) => {
            assert_eq!(
                sock.schedule(&mut pool, &mut chain, kind, size, now),
                verdict,
                "vector {number}"
            );
        }
        Uncharge(kind, size) => sock.uncharge(&mut pool, &mut chain, kind, size, now),
        Copy(size, granted, verdict) => {
            let answer = sock.wmem_copy(&mut pool, &mut chain, size, now);
            assert_eq!(answer, (granted, verdict), "vector {number}");
        }
        Force(size) => assert_eq!(sock.force(&mut pool, &mut chain, size), 1, "vector {number}"),
    }
    let seen = (pool.alloc, pool.flag, sock.fwd, sock.sndbuf);
    assert_eq!(seen, after, "vector {number}: alloc, flag, fwd, sndbuf");
    pool
}

#[test]
#[rustfmt::skip]
fn vectors_1_to_28_charge_and_the_ladder() {
    let set = Some(0);
    let full = State { alloc: 300, flag: set, ..EMPTY };
    let mid = State { alloc: 200, ..EMPTY };
    let table: &[(u32, State, Act, After)] = &[
        (1, EMPTY, Schedule(Wmem, 2304, UnderLow), (1, false, 4096, 16_384)),
        (2, State { alloc: 1, wq: 2304, fwd: 1792, ..EMPTY }, Schedule(Wmem, 1500, Fwd), (1, false, 1792, 16_384)),
        (3, State { alloc: 1, wq: 2304, fwd: 1792, ..EMPTY }, Schedule(Wmem, 2304, UnderLow), (2, false, 5888, 16_384)),
        (4, EMPTY, Schedule(Rmem, 66_112, UnderLow), (17, false, 69_632, 16_384)),
        (5, State { alloc: 2, wq: 4608, fwd: 3584, ..EMPTY }, Uncharge(Wmem, 2304), (1, false, 1792, 16_384)),
        (6, State { alloc: 2, wq: 2304, fwd: 1792, ..EMPTY }, Uncharge(Wmem, 2304), (1, false, 0, 16_384)),
        (7, State { alloc: 2, wq: 2304, fwd: 1791, ..EMPTY }, Uncharge(Wmem, 2304), (2, false, 4095, 16_384)),
        (8, State { alloc: 99, ..EMPTY }, Schedule(Wmem, 4096, UnderLow), (100, false, 4096, 16_384)),
        (9, State { alloc: 99, flag: Some(500), ..EMPTY }, Schedule(Wmem, 4096, UnderLow), (100, false, 4096, 16_384)),
        (10, State { alloc: 100, wq: 4096, ..EMPTY }, Schedule(Wmem, 4096, NoPressure), (101, false, 4096, 16_384)),
        (11, State { alloc: 100, flag: set, wq: 4096, ..EMPTY }, Schedule(Wmem, 4096, Fair), (101, true, 4096, 16_384)),
        (12, State { alloc: 199, wq: 4096, snd: 1 << 20, ..EMPTY }, Schedule(Wmem, 4096, NoPressure), (200, false, 4096, 1 << 20)),
        (13, State { ..mid }, Schedule(Wmem, 4096, MinWmem), (201, true, 4096, 16_384)),
        (14, State { wq: 4095, ..mid }, Schedule(Wmem, 2304, MinWmem), (201, true, 4096, 16_384)),
        (15, State { rmem: 4095, ..mid }, Schedule(Rmem, 4096, MinRmem), (201, true, 4096, 16_384)),
        (16, State { rmem: 4096, ..mid }, Schedule(Rmem, 4096, Fair), (201, true, 4096, 16_384)),
        (17, State { rmem: 114_688, ..mid }, Schedule(Rmem, 4096, Fair), (201, true, 4096, 16_384)),
        (18, State { rmem: 118_784, ..mid }, Schedule(Rmem, 4096, Deny(Unfair)), (200, true, 0, 16_384)),
        (19, State { wq: 122_880, snd: 131_072, ..mid }, Schedule(Wmem, 2304, Forced(Unfair)), (201, true, 4096, 61_440)),
        (20, State { wq: 122_880, snd: 1 << 20, locked: true, ..mid }, Schedule(Wmem, 2304, Deny(Unfair)), (200, true, 0, 1 << 20)),
        (21, State { wq: 122_880, snd: 125_184, locked: true, ..mid }, Schedule(Wmem, 2304, Forced(Unfair)), (201, true, 4096, 125_184)),
        (22, State { ..full }, Schedule(Wmem, 2304, Deny(OverHigh)), (300, true, 0, 4608)),
        (23, State { wq: 2304, ..full }, Schedule(Wmem, 2304, Forced(OverHigh)), (301, true, 4096, 4608)),
        (24, State { wq: 2303, ..full }, Schedule(Wmem, 2304, Deny(OverHigh)), (300, true, 0, 4608)),
        (25, State { ..full }, Schedule(Rmem, 4096, Deny(OverHigh)), (300, true, 0, 16_384)),
        (26, State { alloc: 299, flag: set, ..EMPTY }, Schedule(Wmem, 4096, MinWmem), (300, true, 4096, 16_384)),
        (27, State { ..mid }, Schedule(Rmem, 614_400, Deny(OverHigh)), (200, true, 0, 16_384)),
        (28, State { alloc: 150, flag: set, ..EMPTY }, Schedule(Rmem, 610_304, MinRmem), (299, true, 610_304, 16_384)),
    ];
    for (number, state, act, after) in table {
        check(*number, state, act, *after);
    }
    // Vector 3 continues: the buffer takes what was scheduled.
    let (mut pool, mut sock) = build(&table[2].1);
    sock.schedule(&mut pool, &mut Chain::default(), Wmem, 2304, Instant(0));
    sock.charge(Wmem, 2304);
    assert_eq!((sock.fwd, sock.wmem), (3584, 4608), "vector 3, after the charge");
}

#[test]
#[rustfmt::skip]
fn vectors_29_to_33_leaving_and_shares() {
    let held = State { alloc: 150, flag: Some(1500), rmem: 614_400, ..EMPTY };
    let hot = State { alloc: 250, flag: Some(0), ..EMPTY };
    let pool = check(29, &held, &Uncharge(Rmem, 50 * 4096), (100, true, 0, 16_384));
    assert_eq!(pool.chrono_ns, 0, "vector 29: the release test is a strict <");
    let pool = check(30, &held, &Uncharge(Rmem, 51 * 4096), (99, false, 0, 16_384));
    assert_eq!(pool.chrono_ns, 1_500_000_000, "vector 30");
    let state = State { alloc: 99, flag: Some(700), ..EMPTY };
    let pool = check(31, &state, &Schedule(Wmem, 4096, UnderLow), (100, false, 4096, 16_384));
    assert_eq!(pool.chrono_ns, 700_000_000, "vector 31: the charge test is <=");
    let state = State { nsock: 300, rmem: 4096, ..hot };
    check(32, &state, &Schedule(Rmem, 4096, Deny(Unfair)), (250, true, 0, 16_384));
    let state = State { nsock: 0, rmem: 40_960, ..hot };
    check(33, &state, &Schedule(Rmem, 4096, Fair), (251, true, 4096, 16_384));
}

#[test]
#[rustfmt::skip]
fn vectors_34_to_40_the_copy_rule_and_force() {
    let full = State { alloc: 300, flag: Some(0), ..EMPTY };
    let over = State { alloc: 301, flag: Some(0), wq: 832, fwd: 3264, ..EMPTY };
    let table: &[(u32, State, Act, After)] = &[
        (34, State { ..full }, Copy(1448, 1448, Deny(OverHigh)), (301, true, 4096, 4608)),
        (35, State { ..over }, Copy(32_768, 32_768, Forced(OverHigh)), (309, true, 36_032, 4608)),
        (36, State { snd: 65_536, locked: true, ..over }, Copy(32_768, 3264, Deny(OverHigh)), (301, true, 3264, 65_536)),
        (37, State { wq: 4096, ..full }, Copy(100, 0, Deny(OverHigh)), (300, true, 0, 4608)),
        (38, State { wq: 4000, ..full }, Copy(100, 100, Deny(OverHigh)), (301, true, 4096, 4608)),
        (39, State { wq: 4096, fwd: 60, ..full }, Copy(100, 60, Deny(OverHigh)), (300, true, 60, 4608)),
        (40, State { ..full }, Force(832), (301, true, 4096, 16_384)),
    ];
    for (number, state, act, after) in table {
        check(*number, state, act, *after);
    }
}
