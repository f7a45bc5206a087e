//! An open-loop request/response client on one connection: one thread sends requests when they are due, another
//! receives.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use skbudget_sim::{Observer, Pattern};

use super::bulk::{PIECE, connect, is_wait};
use super::{STOP_CHECK_EVERY, Shared, locked};
use crate::measure::ProbeRecorder;
use crate::measure::result::ProbePhase;
use crate::scenario::plan::ProbeSpec;

/// The schedule and the recorder, shared by sender, receiver and timekeeper.
#[derive(Debug)]
pub(crate) struct ProbeClient {
    spec: ProbeSpec,
    end_ns: u64,
    state: Mutex<ProbeState>,
    /// Signals a new connection to the receiver.
    opened: Condvar,
}

#[derive(Debug)]
struct ProbeState {
    log: ProbeRecorder,
    next_id: u64,
    outstanding: std::collections::VecDeque<u64>,
    /// Requests of `outstanding` without a written byte.
    unsent: std::collections::VecDeque<u64>,
    /// Bytes of requests that are due and not written.
    to_send: u64,
    /// Time until which a full socket blocked the sender: delays before it are not the generator's lag.
    held_until_ns: u64,
    stream: Option<TcpStream>,
    done: bool,
}

impl ProbeClient {
    pub(crate) fn new(spec: ProbeSpec, log: ProbeRecorder, end_ns: u64) -> Self {
        let state = ProbeState {
            log,
            next_id: 0,
            outstanding: std::collections::VecDeque::new(),
            unsent: std::collections::VecDeque::new(),
            to_send: 0,
            held_until_ns: 0,
            stream: None,
            done: false,
        };
        Self { spec, end_ns, state: Mutex::new(state), opened: Condvar::new() }
    }

    fn due_ns(&self, id: u64) -> Option<u64> {
        let at = self.spec.offset_ns + id * self.spec.every_ns;
        (at < self.end_ns).then_some(at)
    }

    /// Records every request due by now, even while the sender is blocked in a write. `by_sender`: the caller is the
    /// sender, so the delay is the generator's lag.
    fn issue(&self, state: &mut ProbeState, now_ns: u64, by_sender: bool) {
        while let Some(at) = self.due_ns(state.next_id).filter(|at| *at <= now_ns) {
            let id = state.next_id;
            state.next_id += 1;
            state.log.intend(id, at);
            if by_sender {
                // Counted from `held_until_ns`: a blocked write is not the generator's delay.
                let late = now_ns - at.max(state.held_until_ns.min(now_ns));
                state.log.record_lag(id, at + late);
            }
            if state.outstanding.len() >= self.spec.outstanding_max as usize {
                // Above the limit of outstanding requests: recorded, but not sent.
                state.log.shed(id);
                continue;
            }
            state.outstanding.push_back(id);
            state.unsent.push_back(id);
            state.to_send += u64::from(self.spec.request_bytes);
        }
    }

    pub(super) fn spec(&self) -> ProbeSpec {
        self.spec
    }

    /// Takes the oldest request that is due and not started; otherwise returns the time of the next one.
    pub(super) fn take_due(&self, now_ns: u64) -> Result<u64, Option<u64>> {
        let mut state = locked(&self.state);
        self.issue(&mut state, now_ns, false);
        match state.unsent.pop_front() {
            Some(id) => {
                // All workers were waiting for responses until then: that delay is not the generator's lag.
                let at = self.spec.offset_ns + id * self.spec.every_ns;
                let late = now_ns - at.max(state.held_until_ns.min(now_ns));
                state.log.record_lag(id, at + late);
                Ok(id)
            }
            None => {
                state.held_until_ns = 0;
                Err(self.due_ns(state.next_id))
            }
        }
    }

    pub(super) fn sent(&self, id: u64, now_ns: u64) {
        locked(&self.state).log.send(id, now_ns);
    }
    pub(super) fn completed(&self, id: u64, now_ns: u64) {
        let mut state = locked(&self.state);
        state.outstanding.retain(|o| *o != id);
        // A worker was busy until now and could not handle another request before.
        state.held_until_ns = now_ns;
        state.log.complete(id, now_ns);
    }
    pub(super) fn fail(&self, id: u64) {
        let mut state = locked(&self.state);
        state.outstanding.retain(|o| *o != id);
        state.log.failed(id);
    }

    /// Records that `n` bytes of requests were written in a call from `from_ns` to `to_ns`.
    fn wrote(&self, n: u64, from_ns: u64, to_ns: u64) {
        let mut state = locked(&self.state);
        state.to_send -= n;
        state.held_until_ns = to_ns;
        // The remaining bytes end with complete requests that are not started.
        let untouched = state.to_send / u64::from(self.spec.request_bytes.max(1));
        while state.unsent.len() as u64 > untouched {
            let Some(id) = state.unsent.pop_front() else { break };
            state.log.send(id, from_ns);
        }
    }

    /// Closes a phase; called by the timekeeper.
    pub(crate) fn close(&self, phase: usize, now_ns: u64) {
        let mut state = locked(&self.state);
        // Record requests that are due but that the blocked sender has not handled: they belong to this phase.
        self.issue(&mut state, now_ns, false);
        state.log.close(phase, now_ns);
    }

    pub(crate) fn summaries(&self) -> Vec<ProbePhase> {
        locked(&self.state)
            .log
            .latencies()
            .iter()
            .map(crate::measure::PhaseLatency::summary)
            .collect()
    }

    /// Counts all outstanding requests as failed with their connection.
    fn fail_all(&self, shared: &Shared) {
        let mut state = locked(&self.state);
        shared.note_broken();
        state.stream = None;
        state.to_send = 0;
        state.unsent.clear();
        while let Some(id) = state.outstanding.pop_front() {
            // After the end of the run they stay outstanding, and closing the phases counts them.
            if !shared.stopped() {
                state.log.failed(id);
            }
        }
    }
}

pub(crate) fn run(to: SocketAddr, shared: &Shared, client: &ProbeClient) {
    thread::scope(|scope| {
        scope.spawn(|| receiver(to, shared, client));
        while let Some(stream) = connect(to, shared) {
            // Nagle's algorithm would hold a request back behind an earlier one.
            let _ = stream.set_nodelay(true);
            locked(&client.state).stream = stream.try_clone().ok();
            client.opened.notify_one();
            sender(to, stream, shared, client);
            if !shared.stopped() {
                client.fail_all(shared);
            }
        }
        // Ends the receiver, which the scope then joins.
        locked(&client.state).done = true;
        client.opened.notify_one();
    });
}

/// Sends until the connection breaks or the run ends.
fn sender(to: SocketAddr, mut stream: TcpStream, shared: &Shared, client: &ProbeClient) {
    let pattern = Pattern::from_guest(to.port());
    let mut sent = 0;
    let mut buf = vec![0; PIECE];
    while !shared.stopped() {
        let now = shared.clock.now();
        let (next, want, open) = {
            let mut state = locked(&client.state);
            client.issue(&mut state, now, true);
            (client.due_ns(state.next_id), state.to_send, state.stream.is_some())
        };
        // The receiver found the end of the stream and dropped it.
        if !open {
            return;
        }
        if want == 0 {
            let at = next.unwrap_or(now + STOP_CHECK_EVERY.as_nanos() as u64);
            let _ = shared.clock.sleep_until(at, &shared.stop);
            continue;
        }
        let n = (want as usize).min(buf.len());
        pattern.fill(sent, &mut buf[..n]);
        match stream.write(&buf[..n]) {
            Ok(n) => {
                sent += n as u64;
                client.wrote(n as u64, now, shared.clock.now());
            }
            Err(e) if is_wait(e.kind()) => {
                locked(&client.state).held_until_ns = shared.clock.now();
            }
            Err(_) => return,
        }
    }
}

/// Receives on each connection that the sender opens.
fn receiver(to: SocketAddr, shared: &Shared, client: &ProbeClient) {
    while let Some(stream) = opened(client) {
        receive(to, stream, shared, client);
        // The sender notices that the stream is gone and connects again.
        locked(&client.state).stream = None;
    }
}

/// Waits for the next connection.
fn opened(client: &ProbeClient) -> Option<TcpStream> {
    let mut state = locked(&client.state);
    loop {
        if state.done {
            return None;
        }
        if let Some(stream) = state.stream.as_ref().and_then(|s| s.try_clone().ok()) {
            return Some(stream);
        }
        let waited = client.opened.wait_timeout(state, STOP_CHECK_EVERY);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Receives responses until the connection breaks or the run ends.
fn receive(to: SocketAddr, mut stream: TcpStream, shared: &Shared, client: &ProbeClient) {
    let pattern = Pattern::from_host(to.port());
    let mut buf = vec![0; PIECE];
    let (mut received, mut unclaimed) = (0, 0);
    while !shared.stopped() {
        let n = match stream.read(&mut buf) {
            Ok(n) if n > 0 => n,
            Err(e) if is_wait(e.kind()) => continue,
            Ok(_) | Err(_) => return,
        };
        let now = shared.clock.now();
        if pattern.check(received, &buf[..n]).is_err() {
            shared.note_corrupt();
        }
        received += n as u64;
        unclaimed += n as u64;
        let mut state = locked(&client.state);
        // Responses arrive in the order of the requests.
        while unclaimed >= u64::from(client.spec.response_bytes) {
            unclaimed -= u64::from(client.spec.response_bytes);
            if let Some(id) = state.outstanding.pop_front() {
                state.log.complete(id, now);
            }
        }
    }
}
