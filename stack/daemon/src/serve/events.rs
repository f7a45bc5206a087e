//! What happens, for clients that follow it: server-sent events with numbers, of which the last ones are kept, so that
//! a client that was away for a while can resume.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use skbudget_controller::Instant;
use tokio::sync::watch;

use crate::clock;
use crate::types::DaemonEvent;

/// Events kept for clients that resume or are slow.
const KEPT_MAX: usize = 1024;

/// Events that a client gets in one piece.
const BATCH_MAX: usize = 128;

/// Least interval between two events of one kind that a container can cause at will.
const REPEATED_EVERY: Duration = Duration::from_secs(1);

/// Budgets with such events that are remembered; beyond it the old ones are forgotten.
const REPEATED_MAX: usize = 1024;

/// The last events, and those that wait for the next one.
#[derive(Debug)]
pub(super) struct Events {
    state: Mutex<State>,
    /// Changes with every event, and at the end.
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    /// Number of the next event.
    next: u64,
    /// Kind and JSON. The last one has the number `next - 1`.
    kept: VecDeque<(&'static str, String)>,
    /// By kind and budget: the time of the last event, and the number not reported since.
    repeated: HashMap<(&'static str, String), (Instant, u64)>,
    /// The daemon ends: clients get what is left, and then the end.
    closed: bool,
}

/// What a client gets next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Text for the client, and the number of its last event.
    Text(String, u64),
    /// There is no event after that number yet.
    Nothing,
    /// There will be none.
    End,
}

impl Default for Events {
    fn default() -> Self {
        let state =
            State { next: 1, kept: VecDeque::new(), repeated: HashMap::new(), closed: false };
        Self { state: Mutex::new(state), changed: watch::Sender::new(()) }
    }
}

impl Events {
    /// Adds an event of the workers.
    pub(super) fn add_worker_event(&self, event: &DaemonEvent) {
        let now = clock::now();
        match event {
            DaemonEvent::ContainerEnded { name } => {
                self.add("container_ended", json!({ "container": name }));
            }
            DaemonEvent::PressureStarted { budget } => {
                self.add("pressure_started", json!({ "container": budget }));
            }
            DaemonEvent::PressureEnded { budget, after_ms } => {
                self.add("pressure_ended", json!({ "container": budget, "after_ms": after_ms }));
            }
            DaemonEvent::FlowRefused { budget, .. } => self.repeated("flow_refused", budget, now),
            DaemonEvent::HardReached { budget } => self.repeated("hard_reached", budget, now),
            DaemonEvent::Lost { events } => self.add("lost", json!({ "events": events })),
        }
    }

    /// Adds an event of which a container can cause any number: one in each interval, with the number of others since
    /// the last one.
    fn repeated(&self, kind: &'static str, budget: &str, now: Instant) {
        let mut state = self.state();
        let seen = state.repeated.entry((kind, budget.to_owned())).or_insert((now, 0));
        let is_first = *seen == (now, 0);
        if !is_first && now.since(seen.0) < REPEATED_EVERY {
            seen.1 += 1;
            return;
        }
        let others = std::mem::replace(seen, (now, 0)).1;
        if state.repeated.len() > REPEATED_MAX {
            state.repeated.retain(|_, (at, _)| now.since(*at) < REPEATED_EVERY);
        }
        drop(state);
        self.add(kind, json!({ "container": budget, "others": others }));
    }

    /// Adds an event.
    pub(super) fn add(&self, kind: &'static str, mut event: Value) {
        event["type"] = kind.into();
        event["time_ns"] = clock::now().as_nanos().into();
        let mut state = self.state();
        // The number is taken under the lock: numbers and order agree.
        state.next += 1;
        if state.kept.len() == KEPT_MAX {
            state.kept.pop_front();
        }
        state.kept.push_back((kind, event.to_string()));
        drop(state);
        self.changed.send_replace(());
    }

    /// No event follows.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.changed.send_replace(());
    }

    /// Number of the last event.
    pub(super) fn last(&self) -> u64 {
        self.state().next - 1
    }

    /// Changes with every event.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The events after that number. Before those that are not kept any more, their number.
    pub(super) fn after(&self, number: u64) -> Next {
        let state = self.state();
        let oldest = state.next - state.kept.len() as u64;
        // Numbers start at 1 with the daemon: a later one is that of an earlier daemon.
        let (from, lost) = match number + 1 {
            from if number >= state.next => (oldest, Some(Value::Null).filter(|_| from > 0)),
            from if from < oldest => (oldest, Some((oldest - from).into())),
            from => (from, None),
        };
        let skip = (from - oldest) as usize;
        let mut text = String::new();
        // Writing to a String does not fail.
        if let Some(lost) = lost {
            let event = json!({ "type": "lost", "events": lost });
            let _ = write!(text, "id: {}\nevent: lost\ndata: {event}\n\n", from - 1);
        }
        let mut last = from - 1;
        for (kind, event) in state.kept.iter().skip(skip).take(BATCH_MAX) {
            last += 1;
            let _ = write!(text, "id: {last}\nevent: {kind}\ndata: {event}\n\n");
        }
        match (text.is_empty(), state.closed) {
            (false, _) => Next::Text(text, last),
            (true, false) => Next::Nothing,
            (true, true) => Next::End,
        }
    }

    /// Locks the state, also after a panic of another thread.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids and kinds of the next events.
    fn next(events: &Events, after: u64) -> (Vec<String>, u64) {
        let Next::Text(text, last) = events.after(after) else { return (Vec::new(), after) };
        let parts = text.split("\n\n").filter(|part| !part.is_empty());
        let heads = parts.map(|part| part.lines().take(2).collect::<Vec<_>>().join(" "));
        (heads.collect(), last)
    }

    #[test]
    fn a_client_resumes_where_it_stopped_and_learns_what_it_missed() {
        let events = Events::default();
        assert_eq!((events.last(), events.after(0)), (0, Next::Nothing));
        events.add("attached", json!({ "container": "a" }));
        events.add("detached", json!({ "container": "a" }));
        let both = vec!["id: 1 event: attached".to_owned(), "id: 2 event: detached".to_owned()];
        assert_eq!(next(&events, 0), (both, 2));
        assert_eq!(next(&events, 1), (vec!["id: 2 event: detached".to_owned()], 2));
        assert_eq!(events.after(2), Next::Nothing);
        for _ in 0..KEPT_MAX {
            events.add("attached", json!({}));
        }
        let (heads, last) = next(&events, 1);
        assert_eq!((heads.len(), heads[0].as_str()), (BATCH_MAX + 1, "id: 2 event: lost"));
        assert_eq!(last, 2 + BATCH_MAX as u64);
        // A number of an earlier daemon.
        let (heads, _) = next(&events, 1 << 40);
        assert_eq!(heads[0], "id: 2 event: lost");
        events.close();
        assert_eq!(events.after(events.last()), Next::End);
    }

    #[test]
    fn a_flood_of_refusals_is_an_event_a_second() {
        let events = Events::default();
        for i in 0..1000 {
            events.repeated("flow_refused", "a", Instant::from_millis(5 * i));
            events.repeated("flow_refused", "b", Instant::from_millis(5 * i));
        }
        let (heads, last) = next(&events, 0);
        assert_eq!((heads.len(), last), (10, 10));
        let Next::Text(text, _) = events.after(2) else { panic!() };
        assert!(text.contains(r#""others":199"#), "{text}");
    }
}
