//! Decides which signals sent to `skbudget` must be forwarded to the command.
//!
//! The command is in the caller's process group, so that the terminal and the shell treat it as theirs. A signal sent
//! to the group therefore reaches both `skbudget` and the command; a signal sent to `skbudget` alone must be forwarded.
//! The kernel does not report which of the two it was. Two other processes of the run help to find out:
//!
//! | received by us | by process 1, in the group | by the sandbox, apart | so it was sent to | the command |
//! |---|---|---|---|---|
//! | yes | no | no | us: `kill PID`, alarm(2), a hang-up of the session leader | needs it |
//! | yes | yes | no | the group: `kill -PGID`, Ctrl-C, a new window size | has it |
//! | yes | yes or no | yes | each by its pid: `killall skbudget` | needs it |
//! | no | yes or no | yes or no | one of them | needs it |
//!
//! The kernel delivers a signal to a group from its newest process to its oldest: when it arrives here, process 1
//! already has it. A sender that uses pids may reach the sandbox after us. Only in the one case in which that would
//! turn "has it" into "needs it", the decision waits for the sandbox (`TOGETHER`). In doubt the signal is forwarded:
//! twice is better than never.

use std::time::Duration;

use skbudget_controller::Instant;

/// Longest wait for an observer's answer: one that was stopped does not answer.
const ANSWER_WAIT: Duration = Duration::from_millis(200);

/// Longest interval between the signals that one sender sends to each process by its pid.
const TOGETHER: Duration = Duration::from_millis(30);

/// Maximum number of undecided signals. More of them stay pending in the kernel.
const CASES_MAX: usize = 64;

/// Maximum number of unclaimed observations: the command may send any number of signals to process 1.
const SEEN_MAX: usize = 256;

/// A process that reports which signals it received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Observer {
    /// Process 1: in the command's process group, unless the command leaves that group.
    Inside,
    /// The sandbox: in a session of its own.
    Apart,
}

/// A signal that `skbudget` received and the arbiter has not decided about.
#[derive(Debug)]
struct Case {
    id: u8,
    signal: u8,
    since: Instant,
    inside: Option<Answer>,
    apart: Option<Answer>,
}

/// An observer's answer about one case.
#[derive(Debug, Clone, Copy)]
struct Answer {
    /// The observer received the signal, too.
    saw: bool,
    /// The command is in the observer's process group.
    with_command: bool,
}

/// A signal that an observer received and no case has claimed.
#[derive(Debug)]
struct Seen {
    by: Observer,
    signal: u8,
    since: Instant,
}

/// All undecided signals and observations.
#[derive(Debug, Default)]
pub(super) struct Arbiter {
    next_id: u8,
    cases: Vec<Case>,
    seen: Vec<Seen>,
    /// Forwarded lately, with the time.
    sent: Vec<(u8, Instant)>,
}

impl Arbiter {
    /// Whether another signal can be accepted.
    pub(super) fn has_room(&self) -> bool {
        self.cases.len() < CASES_MAX
    }

    /// Adds a signal that `skbudget` received. The caller sends the returned id to both observers, which answer with
    /// it.
    pub(super) fn caught(&mut self, signal: u8, now: Instant) -> u8 {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        self.cases.push(Case { id, signal, since: now, inside: None, apart: None });
        id
    }

    /// Records that an observer received a signal.
    pub(super) fn seen(&mut self, by: Observer, signal: u8, now: Instant) {
        if self.seen.len() < SEEN_MAX {
            self.seen.push(Seen { by, signal, since: now });
        }
    }

    /// Records an observer's answer. The observer has reported all that it received before. `with_command`: the command
    /// is in its process group.
    pub(super) fn answered(&mut self, by: Observer, id: u8, with_command: bool) {
        let Some(at) = self.cases.iter().position(|case| case.id == id) else { return };
        let saw = self.claim(by, self.cases[at].signal);
        let case = &mut self.cases[at];
        let answer = match by {
            Observer::Inside => &mut case.inside,
            Observer::Apart => &mut case.apart,
        };
        *answer = Some(Answer { saw, with_command });
    }

    /// Restarts all waits, after a time in which this process was stopped and could receive no answer.
    pub(super) fn start_waits_again(&mut self, now: Instant) {
        self.cases.iter_mut().for_each(|case| case.since = now);
        self.seen.iter_mut().for_each(|seen| seen.since = now);
    }

    /// Returns the signals to be forwarded to the command.
    pub(super) fn decide(&mut self, now: Instant) -> Vec<u8> {
        let mut send = Vec::new();
        let mut at = 0;
        while at < self.cases.len() {
            match self.verdict(at, now) {
                None => at += 1,
                Some(needed) => {
                    let case = self.cases.remove(at);
                    if needed {
                        send.push(case.signal);
                        self.sent.push((case.signal, now));
                    }
                }
            }
        }
        self.sent.retain(|(_, at)| now.since(*at) < 2 * TOGETHER);
        // Only an observer received the signal. It was meant for the command, unless it belongs to one just forwarded.
        while let Some(at) = self.seen.iter().position(|seen| now.since(seen.since) >= TOGETHER) {
            let signal = self.seen.remove(at).signal;
            let late = self.sent.iter().any(|(sent, _)| *sent == signal);
            if !late && !self.cases.iter().any(|case| case.signal == signal) {
                send.push(signal);
                self.sent.push((signal, now));
            }
        }
        send
    }

    /// The latest time for the next call of `decide`, even if nothing arrives.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let cases = self.cases.iter().map(|case| {
            let answered = case.inside.is_some() && case.apart.is_some();
            case.since + if answered { TOGETHER } else { ANSWER_WAIT }
        });
        cases.chain(self.seen.iter().map(|seen| seen.since + TOGETHER)).min()
    }

    /// Whether the command needs the signal of a case. `None`: not known yet.
    fn verdict(&mut self, at: usize, now: Instant) -> Option<bool> {
        let Case { signal, since, inside, apart, .. } = self.cases[at];
        let (Some(inside), Some(apart)) = (inside, apart) else {
            // An observer does not answer: forward the signal, as in doubt.
            return (now.since(since) >= ANSWER_WAIT).then_some(true);
        };
        // Not sent to our group, or sent to each by its pid, or the command has left the group.
        if !inside.saw || apart.saw || !inside.with_command {
            return Some(true);
        }
        // The sandbox received it after its answer: sent to each by its pid.
        if self.claim(Observer::Apart, signal) {
            return Some(true);
        }
        // Sent to the group, as far as is known. The sandbox's may still arrive.
        (now.since(since) >= TOGETHER).then_some(false)
    }

    /// Takes one observation of that signal from the list. True if there was one.
    fn claim(&mut self, by: Observer, signal: u8) -> bool {
        let at = self.seen.iter().position(|seen| seen.by == by && seen.signal == signal);
        at.map(|at| self.seen.remove(at)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::Observer::{Apart, Inside};
    use super::*;

    const TERM: u8 = 15;

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    /// Both observers answer at once.
    fn answer(arbiter: &mut Arbiter, id: u8) {
        arbiter.answered(Inside, id, true);
        arbiter.answered(Apart, id, false);
    }

    /// Returns all that is forwarded until every case is decided.
    fn decide_all(arbiter: &mut Arbiter) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(at) = arbiter.deadline() {
            all.extend(arbiter.decide(at));
        }
        all
    }

    #[test]
    fn sent_to_us_alone_it_is_sent_on_at_once() {
        let mut arbiter = Arbiter::default();
        let id = arbiter.caught(TERM, at(0));
        assert!(arbiter.decide(at(0)).is_empty());
        answer(&mut arbiter, id);
        assert_eq!(arbiter.decide(at(1)), [TERM]);
        assert!(decide_all(&mut arbiter).is_empty());
    }

    #[test]
    fn sent_to_the_group_the_command_has_it() {
        for reports_first in [true, false] {
            let mut arbiter = Arbiter::default();
            if reports_first {
                arbiter.seen(Inside, TERM, at(0));
            }
            let id = arbiter.caught(TERM, at(0));
            if !reports_first {
                arbiter.seen(Inside, TERM, at(0));
            }
            answer(&mut arbiter, id);
            assert!(decide_all(&mut arbiter).is_empty());
        }
    }

    #[test]
    fn sent_to_the_group_that_the_command_has_left_it_is_sent_on() {
        let mut arbiter = Arbiter::default();
        let id = arbiter.caught(TERM, at(0));
        arbiter.seen(Inside, TERM, at(0));
        arbiter.answered(Apart, id, false);
        arbiter.answered(Inside, id, false);
        assert_eq!(decide_all(&mut arbiter), [TERM]);
    }

    #[test]
    fn sent_to_each_by_its_pid_it_is_sent_on_once_in_any_order() {
        // 0: us; 1: process 1; 2: the sandbox. One signal arrives each millisecond; the answers arrive at once.
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut arbiter = Arbiter::default();
            let mut sent = Vec::new();
            for (ms, who) in order.into_iter().enumerate() {
                let now = at(ms as u64);
                match who {
                    0 => {
                        let id = arbiter.caught(TERM, now);
                        answer(&mut arbiter, id);
                    }
                    1 => arbiter.seen(Inside, TERM, now),
                    _ => arbiter.seen(Apart, TERM, now),
                }
                sent.extend(arbiter.decide(now));
            }
            sent.extend(decide_all(&mut arbiter));
            assert_eq!(sent, [TERM], "{order:?}");
        }
    }

    #[test]
    fn sent_to_an_observer_alone_it_is_sent_on() {
        for by in [Inside, Apart] {
            let mut arbiter = Arbiter::default();
            arbiter.seen(by, TERM, at(0));
            assert_eq!(decide_all(&mut arbiter), [TERM]);
        }
    }

    #[test]
    fn every_one_of_many_is_counted() {
        let mut arbiter = Arbiter::default();
        let (rt, n) = (40, 20);
        for i in 0..n {
            let id = arbiter.caught(rt, at(i));
            answer(&mut arbiter, id);
        }
        // As many, sent to the group.
        for i in 0..n {
            arbiter.seen(Inside, 41, at(i));
            let id = arbiter.caught(41, at(i));
            answer(&mut arbiter, id);
        }
        assert_eq!(decide_all(&mut arbiter), vec![rt; n as usize]);
    }

    #[test]
    fn a_stop_of_ours_makes_nobody_late() {
        let mut arbiter = Arbiter::default();
        let id = arbiter.caught(20, at(0));
        arbiter.start_waits_again(at(60_000));
        assert!(arbiter.decide(at(60_000)).is_empty());
        arbiter.seen(Inside, 20, at(60_000));
        answer(&mut arbiter, id);
        assert!(decide_all(&mut arbiter).is_empty());
    }

    #[test]
    fn observers_that_do_not_answer_are_not_waited_for() {
        let mut arbiter = Arbiter::default();
        let id = arbiter.caught(TERM, at(0));
        arbiter.answered(Apart, id, false);
        assert_eq!(decide_all(&mut arbiter), [TERM]);
        // A late answer has no effect.
        answer(&mut arbiter, id);
        assert!(decide_all(&mut arbiter).is_empty());
    }

    #[test]
    fn what_is_in_hand_is_bounded() {
        let mut arbiter = Arbiter::default();
        for i in 0..10_000 {
            arbiter.seen(Inside, (i % 64) as u8, at(0));
            if arbiter.has_room() {
                arbiter.caught(TERM, at(0));
            }
        }
        assert!(arbiter.cases.len() <= CASES_MAX && arbiter.seen.len() <= SEEN_MAX);
        decide_all(&mut arbiter);
        assert!(arbiter.cases.is_empty() && arbiter.seen.is_empty());
    }
}
