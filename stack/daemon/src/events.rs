//! Where the events of a worker go: to the log, and to the channel that the daemon's caller gave.

use std::sync::mpsc::{SyncSender, TrySendError};

use crate::types::DaemonEvent;

/// The only consumer of a worker's events.
#[derive(Debug)]
pub(crate) struct EventSink {
    channel: Option<SyncSender<DaemonEvent>>,
    /// Events that found the channel full and are not reported in it yet.
    lost: u64,
}

impl EventSink {
    pub(crate) fn new(channel: Option<SyncSender<DaemonEvent>>) -> Self {
        Self { channel, lost: 0 }
    }

    /// True while a caller reads the channel.
    pub(crate) fn has_reader(&self) -> bool {
        self.channel.is_some()
    }

    /// Logs the event and sends it to the channel. `unlogged`: the number of events that the rate limit of the log
    /// suppressed before this one; `None`: it suppresses this one, too.
    pub(crate) fn send(&mut self, event: DaemonEvent, unlogged: Option<u64>) {
        if let Some(unlogged) = unlogged {
            log_event(&event, unlogged);
        }
        // The events lost before this one are reported before it.
        if self.lost > 0 && self.try_send(DaemonEvent::Lost { events: self.lost }) {
            self.lost = 0;
        }
        if self.lost > 0 || !self.try_send(event) {
            self.lost += 1;
        }
    }

    /// Sends to the channel without waiting: its reader must not delay the containers. False: the channel is full.
    fn try_send(&mut self, event: DaemonEvent) -> bool {
        let sent = self.channel.as_ref().map_or(Ok(()), |channel| channel.try_send(event));
        match sent {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => false,
            // The reader has gone: the containers run on without it.
            Err(TrySendError::Disconnected(_)) => {
                self.channel = None;
                true
            }
        }
    }
}

/// Writes one line, with the number of events that the log does not show.
fn log_event(event: &DaemonEvent, unlogged: u64) {
    let since = match unlogged {
        0 => String::new(),
        n => format!(" ({n} events not logged)"),
    };
    match event {
        DaemonEvent::ContainerEnded { name } => {
            tracing::info!(container = %name, "its device was closed or deleted");
        }
        DaemonEvent::PressureStarted { budget } => {
            tracing::info!(budget = %budget, "under pressure{since}");
        }
        DaemonEvent::PressureEnded { budget, after_ms } => {
            tracing::info!(budget = %budget, "pressure ended after {after_ms} ms{since}");
        }
        DaemonEvent::FlowRefused { budget, container } => {
            let container = container.as_deref().unwrap_or("(removed)");
            tracing::warn!(
                budget = %budget,
                container = %container,
                "flow refused for want of memory{since}"
            );
        }
        DaemonEvent::HardReached { budget } => {
            tracing::info!(budget = %budget, "hard limit reached{since}");
        }
        // Concerns the channel alone.
        DaemonEvent::Lost { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(name: &str) -> DaemonEvent {
        DaemonEvent::ContainerEnded { name: name.to_owned() }
    }

    #[test]
    fn events_beyond_the_channel_are_counted_and_reported_in_their_place() {
        let (channel, reader) = std::sync::mpsc::sync_channel(2);
        let mut sink = EventSink::new(Some(channel));
        for name in ["a", "b", "c", "d"] {
            sink.send(ended(name), None);
        }
        assert_eq!(reader.try_iter().collect::<Vec<_>>(), [ended("a"), ended("b")]);
        sink.send(ended("e"), None);
        let lost = DaemonEvent::Lost { events: 2 };
        assert_eq!(reader.try_iter().collect::<Vec<_>>(), [lost, ended("e")]);
    }

    #[test]
    fn an_event_that_is_lost_behind_the_report_of_others_is_reported_next() {
        let (channel, reader) = std::sync::mpsc::sync_channel(1);
        let mut sink = EventSink::new(Some(channel));
        sink.send(ended("a"), None);
        sink.send(ended("b"), None);
        assert_eq!(reader.try_recv(), Ok(ended("a")));
        // The report of "b" takes the only place.
        sink.send(ended("c"), None);
        assert_eq!(reader.try_recv(), Ok(DaemonEvent::Lost { events: 1 }));
        sink.send(ended("d"), None);
        assert_eq!(reader.try_recv(), Ok(DaemonEvent::Lost { events: 1 }));
    }

    #[test]
    fn a_reader_that_has_gone_is_forgotten() {
        let (channel, reader) = std::sync::mpsc::sync_channel(1);
        let mut sink = EventSink::new(Some(channel));
        drop(reader);
        sink.send(ended("a"), None);
        assert!(!sink.has_reader());
    }
}
