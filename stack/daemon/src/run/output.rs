//! The files that a run writes. They are opened before anything is set up, so that a wrong path is an early error. None
//! of them can block the run, and a later failure does not replace the command's exit code.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use skbudget_stack::Tap;
use skbudget_stack::tap::{CaptureHead, CaptureWriter};

use super::capture::{self, Capture};
use super::stats_file::{StatsFile, explain};
use crate::clock;
use crate::config::RunConfig;
use crate::exit::Failure;

/// Maximum length of a captured frame, bytes: holds whole super-frames.
const SNAPLEN: u32 = 262_144;

/// Longest wait for a file that accepts no data.
const STALL: Duration = Duration::from_secs(1);

/// The files that `skbudget` opens itself.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) pcap: Option<(PathBuf, File)>,
    stats: Option<(PathBuf, StatsFile)>,
}

impl Output {
    pub(super) fn open(config: &RunConfig) -> Result<Self, Failure> {
        let pcap = open("--pcap", config.pcap.as_deref(), create_capture)?;
        let stats = open("--stats-file", config.stats_file.as_deref(), StatsFile::open)?;
        Ok(Self { pcap, stats })
    }

    pub(super) fn wants_stats(&self) -> bool {
        self.stats.is_some()
    }

    /// Writes the stats. A failure is only a warning, since the command has run.
    pub(super) fn write_stats(&mut self, stats: String) {
        let Some((path, file)) = self.stats.take() else { return };
        if let Err(e) = file.write((stats + "\n").as_bytes()) {
            tracing::warn!("--stats-file {}: {e}: the stats are not written", path.display());
        }
    }
}

/// The relay's capture, if one was requested.
#[derive(Debug)]
pub(super) struct Recording {
    capture: Option<Capture>,
}

impl Recording {
    /// Starts the capture of the device.
    pub(super) fn start(pcap: Option<(OsString, File)>, tap: &mut Tap) -> Result<Self, Failure> {
        let Some((path, file)) = pcap else { return Ok(Self { capture: None }) };
        let path = Path::new(&path);
        let failed = |e: std::io::Error| cannot("--pcap", path, e);
        let (recorder, capture) =
            capture::start(file, path.display().to_string()).map_err(failed)?;
        let head = CaptureHead {
            ifname: tap.device_name().unwrap_or_default(),
            snaplen: SNAPLEN,
            epoch_offset_ns: clock::epoch_offset_ns(),
            ..CaptureHead::default()
        };
        let writer = CaptureWriter::new(Box::new(recorder), &head);
        let writer = writer.map_err(failed)?.with_later_losses(capture.lost());
        // Wait for the file's header: a disk that is full already must be an error before the command starts.
        capture.settle(STALL).map_err(|e| cannot("--pcap", path, e))?;
        tap.add_capture(writer);
        Ok(Self { capture: Some(capture) })
    }

    /// Writes what is queued. Call it before the stats are taken, so that they count the frames that the capture lost.
    pub(super) fn settle(&self) {
        if let Some(capture) = &self.capture {
            // A failure was reported when it occurred.
            let _ = capture.settle(STALL);
        }
    }

    /// Ends the capture; no frame may follow.
    pub(super) fn end(self) {
        if let Some(capture) = self.capture {
            capture.end(STALL);
        }
    }
}

/// Opens the output `key` if it was requested.
fn open<T>(
    key: &str,
    path: Option<&Path>,
    open: impl Fn(&Path) -> std::io::Result<T>,
) -> Result<Option<(PathBuf, T)>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let opened = open(path).map_err(|e| cannot(key, path, e))?;
    Ok(Some((path.to_owned(), opened)))
}

fn cannot(key: &str, path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::set_up(format!("{key} {}: {error}", path.display()))
}

/// Creates the capture file. Does not wait for the reader of a FIFO.
fn create_capture(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    // O_NOCTTY: a terminal given as the file must not become the controlling one.
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).map_err(explain)
}
