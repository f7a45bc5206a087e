//! Frames read from a device and not yet processed.
//!
//! The device's queue is short, because it is charged to the container, and it drops what does not fit. Frames arrive
//! in bursts: connection attempts while earlier ones are being carried out, and the guest's kernel answers what we
//! write to the device before the write returns. What is dropped comes again after a second at the earliest. So the
//! device is emptied into here before a batch is processed and while frames are sent; the memory is the worker's, not
//! the container's (pressure model B12).

use std::io::{self, IoSlice};
use std::mem;
use std::ops::Range;

use skbudget_stack::tap::SCRATCH_BYTES;
use skbudget_stack::{Device, Tap, VnetHdr};

/// What is read ahead of what is processed. A larger frame ends a batch: reading on would push it out of the cache.
const SMALL_BYTES: usize = 4096;

/// Room for small frames; one large one always fits behind them.
const BATCH_BYTES: usize = 256 << 10;

/// Frames sent between two looks at the device, well below the length of its queue where that is not tiny.
const SENDS_PER_LOOK: u32 = 8;

/// Two batches: one is processed while the other is filled.
#[derive(Debug)]
pub(super) struct Stage {
    front: Batch,
    back: Batch,
}

#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    frames: Vec<(VnetHdr, Range<usize>)>,
    /// Where the next frame goes; beyond `BATCH_BYTES` when it is full.
    end: usize,
}

impl Stage {
    pub(super) fn new() -> Self {
        Self { front: Batch::new(), back: Batch::new() }
    }

    /// Takes what was read out, to be processed and then given to [`Self::put_back`].
    pub(super) fn take(&mut self) -> Batch {
        let filled = mem::replace(&mut self.back, mem::take(&mut self.front));
        debug_assert!(self.back.frames.is_empty(), "the batch before was processed");
        filled
    }

    pub(super) fn put_back(&mut self, mut batch: Batch) {
        batch.clear();
        self.front = batch;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.back.frames.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.front.bytes.len() + self.back.bytes.len()
    }
}

impl Batch {
    fn new() -> Self {
        Self { bytes: vec![0; BATCH_BYTES + SCRATCH_BYTES], ..Self::default() }
    }

    pub(super) fn frames(&self) -> impl Iterator<Item = (&VnetHdr, &[u8])> {
        self.frames.iter().map(|(vnet, range)| (vnet, &self.bytes[range.clone()]))
    }

    fn clear(&mut self) {
        self.frames.clear();
        self.end = 0;
    }

    /// Reads frames until it is full or the device has none.
    fn fill(&mut self, tap: &mut Tap) -> io::Result<()> {
        while self.end <= BATCH_BYTES {
            let (vnet, range) = tap.recv(&mut self.bytes[self.end..])?;
            let large = range.len() > SMALL_BYTES;
            let range = self.end + range.start..self.end + range.end;
            self.end = if large { BATCH_BYTES + 1 } else { range.end };
            self.frames.push((vnet, range));
        }
        Ok(())
    }
}

/// A device together with the stage its frames are read into.
#[derive(Debug)]
pub(super) struct Port<'a> {
    pub(super) tap: &'a mut Tap,
    pub(super) stage: &'a mut Stage,
    /// The device may hold frames.
    pub(super) ready: &'a mut bool,
    pub(super) ahead: bool,
    /// Sent since the last look.
    pub(super) sent: u32,
}

impl Port<'_> {
    /// Reads what the device holds and there is room for.
    pub(super) fn look(&mut self) {
        self.sent = 0;
        if !*self.ready || !self.ahead {
            return;
        }
        if let Err(e) = self.stage.back.fill(self.tap) {
            *self.ready = false;
            // A device that is gone says so by itself, one that is down answers EIO until it comes up.
            if e.kind() != io::ErrorKind::WouldBlock && !self.tap.gone() {
                log::debug!("device: {e}");
            }
        }
    }
}

impl Device for Port<'_> {
    fn send(&mut self, vnet: &VnetHdr, parts: &[IoSlice<'_>]) -> bool {
        let taken = self.tap.send(vnet, parts);
        self.sent += 1;
        if self.sent >= SENDS_PER_LOOK {
            // The poll has not said so yet: the guest may have answered within the write.
            *self.ready = true;
            self.look();
        }
        taken
    }
}
