//! The files a run writes: opened before anything is brought up, so that a wrong path is known at once.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use skbudget_stack::Tap;
use skbudget_stack::tap::PcapWriter;

use crate::clock;
use crate::config::RunConfig;
use crate::exit::Failure;
use crate::stats::Stats;

/// Whole super-frames.
const SNAPLEN: u32 = 262_144;

#[derive(Debug)]
pub(super) struct Output {
    pcap: Option<(PathBuf, File)>,
    stats: Option<(PathBuf, File)>,
}

impl Output {
    pub(super) fn open(config: &RunConfig) -> Result<Self, Failure> {
        Ok(Self {
            pcap: create("--pcap", config.pcap.as_deref())?,
            stats: create("--stats-file", config.stats_file.as_deref())?,
        })
    }

    /// Captures the device, if that was asked for.
    pub(super) fn capture(&mut self, tap: &mut Tap) -> Result<(), Failure> {
        let Some((path, file)) = self.pcap.take() else { return Ok(()) };
        let out = Box::new(BufWriter::with_capacity(1 << 18, file));
        let pcap = PcapWriter::new(out, SNAPLEN, clock::epoch_offset_ns())
            .map_err(|e| Failure::set_up(format!("--pcap {}: {e}", path.display())))?;
        tap.set_capture(pcap);
        Ok(())
    }

    pub(super) fn wants_stats(&self) -> bool {
        self.stats.is_some()
    }

    pub(super) fn write_stats(&mut self, stats: &Stats) -> Result<(), Failure> {
        let Some((path, file)) = &mut self.stats else { return Ok(()) };
        serde_json::to_writer_pretty(&*file, stats)
            .map_err(Into::into)
            .and_then(|()| file.write_all(b"\n"))
            .map_err(|e| Failure::other(format!("--stats-file {}: {e}", path.display())))
    }
}

fn create(key: &str, path: Option<&Path>) -> Result<Option<(PathBuf, File)>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let file = File::create(path)
        .map_err(|e| Failure::set_up(format!("{key} {}: {e}", path.display())))?;
    Ok(Some((path.to_owned(), file)))
}
