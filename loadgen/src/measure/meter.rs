//! Counts the bytes of one direction of one container.

use skbudget_controller::Instant;
use skbudget_sim::Observer;

/// The bytes of one phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PhaseBytes {
    pub bytes: u64,
    /// Longest time without a byte. Gaps at both ends of the phase count.
    pub stall_ns: u64,
}

#[derive(Debug, Clone)]
struct OpenPhase {
    start_ns: u64,
    bytes: u64,
    last_ns: u64,
    stall_ns: u64,
    steps: Vec<u32>,
}

/// Counts bytes per window over the whole run, and the total and the longest gap of each phase. The application behind
/// the meter always wants more, so a gap is a stall.
///
/// There are two kinds of intervals. The length of windows, which charts show, is up to the user. Recovery is judged by
/// steps: their length follows from the scenario alone, and they start with their phase.
#[derive(Debug)]
pub(crate) struct Meter {
    window_ns: u64,
    windows: Vec<u32>,
    step_ns: u64,
    /// By phase, complete steps only.
    steps: Vec<Vec<u32>>,
    total: u64,
    open: Option<OpenPhase>,
    done: Vec<PhaseBytes>,
    corrupt: u64,
    broken: u64,
}

impl Meter {
    /// Allocates all windows: a window without bytes is a zero, not a gap.
    pub(crate) fn new(window_ns: u64, step_ns: u64, end_ns: u64) -> Self {
        let count = end_ns.div_ceil(window_ns.max(1)) as usize;
        Self {
            window_ns: window_ns.max(1),
            windows: vec![0; count],
            step_ns: step_ns.max(1),
            steps: Vec::new(),
            total: 0,
            open: None,
            done: Vec::new(),
            corrupt: 0,
            broken: 0,
        }
    }

    /// Starts a phase.
    pub(crate) fn begin(&mut self, now_ns: u64) {
        let steps = Vec::new();
        self.open =
            Some(OpenPhase { start_ns: now_ns, bytes: 0, last_ns: now_ns, stall_ns: 0, steps });
    }

    /// Ends the open phase, if there is one.
    pub(crate) fn end(&mut self, now_ns: u64) {
        if let Some(mut p) = self.open.take() {
            // A step without a byte is a zero. A last step that the phase cuts short is dropped: it is no measure.
            p.steps.resize((now_ns.saturating_sub(p.start_ns) / self.step_ns) as usize, 0);
            self.steps.push(p.steps);
            let stall_ns = p.stall_ns.max(now_ns.saturating_sub(p.last_ns));
            self.done.push(PhaseBytes { bytes: p.bytes, stall_ns });
        }
    }

    /// Ends the open phase and the windows of a run that was stopped. Windows that never started are removed, not zero.
    pub(crate) fn stop(&mut self, now_ns: u64) {
        self.end(now_ns);
        // At least one window, so that bytes in flight have a place.
        self.windows.truncate((now_ns.div_ceil(self.window_ns) as usize).max(1));
    }

    /// Counts `n` bytes at `now_ns`.
    pub(crate) fn add(&mut self, now_ns: u64, n: u64) {
        if n == 0 {
            return;
        }
        self.total += n;
        // Bytes after the last window count in it: the windows must add up to the total.
        let last = self.windows.len().saturating_sub(1);
        let at = ((now_ns / self.window_ns) as usize).min(last);
        if let Some(w) = self.windows.get_mut(at) {
            *w = w.saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
        }
        if let Some(p) = &mut self.open {
            p.bytes += n;
            // The gap that these bytes end.
            p.stall_ns = p.stall_ns.max(now_ns.saturating_sub(p.last_ns));
            p.last_ns = now_ns;
            let step = (now_ns.saturating_sub(p.start_ns) / self.step_ns) as usize;
            // The length of a phase is bounded, so this vector is too.
            p.steps.resize(p.steps.len().max(step + 1), 0);
            p.steps[step] = p.steps[step].saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
        }
    }

    /// Bytes in complete steps, by phase.
    pub(crate) fn steps(&self) -> &[Vec<u32>] {
        &self.steps
    }

    pub(crate) fn phases(&self) -> &[PhaseBytes] {
        &self.done
    }
    pub(crate) fn windows(&self) -> &[u32] {
        &self.windows
    }
    pub(crate) fn total(&self) -> u64 {
        self.total
    }
    pub(crate) fn corrupt(&self) -> u64 {
        self.corrupt
    }
    pub(crate) fn broken(&self) -> u64 {
        self.broken
    }
}

impl Observer for Meter {
    fn bytes(&mut self, now: Instant, n: u64) {
        self.add(now.0, n);
    }
    fn corrupt(&mut self, _now: Instant, _position: u64) {
        self.corrupt += 1;
    }
    fn broken(&mut self, _now: Instant) {
        self.broken += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_reach_to_both_ends_of_a_phase() {
        let mut m = Meter::new(10, 10, 100);
        // Before the first phase: in the windows and the total only.
        m.add(5, 1);
        m.begin(10);
        m.add(30, 7);
        m.add(35, 1);
        m.end(50);
        m.begin(50);
        m.end(90);
        // After the last phase.
        m.add(95, 2);
        assert_eq!(
            m.phases(),
            [PhaseBytes { bytes: 8, stall_ns: 20 }, PhaseBytes { bytes: 0, stall_ns: 40 }]
        );
    }

    /// Steps start with the phase and do not follow the windows.
    #[test]
    fn steps_are_those_of_the_phase() {
        for window in [1, 3, 10, 50] {
            let mut m = Meter::new(window, 10, 100);
            m.add(12, 1);
            m.begin(15);
            m.add(16, 2);
            m.add(24, 4);
            m.add(25, 8);
            // A step that the phase cuts in half.
            m.add(56, 16);
            m.end(60);
            m.begin(60);
            m.end(81);
            assert_eq!(m.steps(), [vec![6, 8, 0, 0], vec![0, 0]], "{window}");
        }
    }

    #[test]
    fn a_stopped_meter_has_no_later_windows() {
        let mut m = Meter::new(10, 10, 100);
        m.begin(10);
        m.add(12, 5);
        m.stop(35);
        // In flight when the run was stopped.
        m.add(36, 7);
        assert_eq!(m.phases(), [PhaseBytes { bytes: 5, stall_ns: 23 }]);
        assert_eq!(m.windows(), [0, 5, 0, 7]);
        assert_eq!(m.total(), 12);
    }

    #[test]
    fn windows_add_up_to_the_total_zeros_included() {
        let mut m = Meter::new(10, 10, 95);
        // The last is beyond the end: it counts in the last window.
        for (at, n) in [(0, 1), (9, 2), (10, 4), (94, 8), (200, 16)] {
            m.add(at, n);
        }
        assert_eq!(m.windows(), [3, 4, 0, 0, 0, 0, 0, 0, 0, 24]);
        assert_eq!(m.windows().iter().map(|w| u64::from(*w)).sum::<u64>(), m.total());
    }
}
