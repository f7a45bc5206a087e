//! Random operations for the strict model.

use skbudget_controller::RxKind;

use crate::strict::World;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Op {
    Admit { budget: usize, member: usize },
    Establish(usize),
    Release(usize),
    Open(usize, u64),
    Fill(usize, u64, RxKind),
    Settle(usize, u64),
    Free(usize, u64),
    Prune(usize, u64),
    Close(usize, u64),
    Grant(usize, u64),
    TxFree(usize, u64),
    HostRaise(usize, u64),
    HostLower(usize, u64),
    Idle(usize, bool),
    Transfer(usize, usize, u64),
    Udp { budget: usize, member: usize, bytes: u64 },
    UdpGone { budget: usize, member: usize },
    Compact { budget: usize, member: usize },
    CompactGone { budget: usize, member: usize },
    Limits { budget: usize, hard: u64 },
    Min { budget: usize, pages: u64 },
    Level { level: usize, hard: u64 },
    Share { level: usize, bound: bool },
    Move { budget: usize, to: Option<usize>, min: Option<u64> },
    Wait { budget: usize, key: u64, need: u64 },
    Wake { budget: usize },
    Hold { budget: usize, member: usize, bytes: u64 },
    Advance { ms: u64 },
}

impl World {
    pub(crate) fn choose(&mut self) -> Option<Op> {
        let live: Vec<usize> =
            (0..self.ledgers.len()).filter(|at| self.ledgers[*at].is_some()).collect();
        let rng = &mut self.rng;
        let budget = rng.below(self.budgets.len() as u64) as usize;
        let members = self.naive.domains[budget].members.len() as u64;
        let member = rng.below(members) as usize;
        let level = rng.below(3) as usize;
        // Weights of the operations, in percent.
        let roll = rng.below(100);
        if roll < 14 {
            return (members > 0 && live.len() < 14).then_some(Op::Admit { budget, member });
        }
        if roll < 30 && members > 0 {
            return Some(match rng.below(17) {
                0..=2 => Op::Udp { budget, member, bytes: rng.below(9000) },
                3 => Op::UdpGone { budget, member },
                4 => Op::Compact { budget, member },
                5 => Op::CompactGone { budget, member },
                6 => Op::Limits { budget, hard: 10 + rng.below(140) },
                7 => Op::Min { budget, pages: rng.below(60) },
                8 => Op::Level { level, hard: 30 + rng.below(250) },
                9 | 10 => Op::Share { level, bound: rng.below(4) > 0 },
                11 => {
                    let to = rng.pick(&[None, Some(0), Some(1), Some(2)]);
                    let min = rng.below(60);
                    Op::Move { budget, to, min: rng.pick(&[None, Some(min)]) }
                }
                12 => Op::Wait { budget, key: rng.below(6), need: 1 + rng.below(20_000) },
                13 => Op::Wake { budget },
                14 => Op::Hold { budget, member, bytes: rng.below(3) * rng.below(200_000) },
                _ => Op::Advance { ms: rng.below(50) },
            });
        }
        if live.is_empty() {
            return None;
        }
        let at = rng.pick(&live);
        let flow = self.naive.flows[at].as_ref().unwrap();
        // Mostly a few chunks, sometimes many.
        let n = 1 + rng.below(rng_size(roll));
        Some(match roll {
            30..=37 => Op::Establish(at),
            38..=40 => Op::Release(at),
            41..=52 => Op::Open(at, n),
            53..=60 => Op::Fill(at, n, RxKind::InOrder),
            61..=64 => Op::Fill(at, n, RxKind::Ofo),
            65..=66 => Op::Settle(at, n.min(flow.ofo)),
            67..=71 => Op::Free(at, n.min(flow.rmem)),
            72..=73 => Op::Prune(at, n.min(flow.ofo)),
            74..=75 => Op::Close(at, n),
            76..=84 => Op::Grant(at, n),
            85..=89 => Op::TxFree(at, n.min(flow.wmem)),
            90..=91 => Op::HostRaise(at, n * 1500),
            92 => Op::HostLower(at, n * 3000),
            93..=95 => Op::Idle(at, rng.below(3) > 0),
            _ => Op::Transfer(at, rng.pick(&live), n),
        })
    }
}

fn rng_size(roll: u64) -> u64 {
    if roll.is_multiple_of(3) { 40 } else { 6 }
}
