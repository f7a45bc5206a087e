//! Datagrams of the guest between their frames and the end of the turn, when each mapping sends its own in batches.
//!
//! Datagrams share chunks, which are charged while they are used. A datagram that does not fit is not stored: the
//! caller sends it at once, from its frame.

use std::net::SocketAddr;

use skbudget_controller::CHUNK_SIZE;

use crate::io::datagram::{DatagramId, IpFields, SendDatagram};
use crate::queue::MemberCtx;
use crate::queue::chunk::{Chunk, ChunkPool, PAYLOAD};

/// Most datagrams stored.
const ENTRIES_MAX: usize = 64;

/// One datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) id: DatagramId,
    /// Destination as the guest sees it, and on the host's network.
    pub(crate) remote: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) ip: IpFields,
    /// Number of the entry: the order of arrival.
    number: u16,
    chunk: u16,
    at: u16,
    len: u16,
}

/// The datagrams of a container.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    chunks: Vec<Chunk>,
    /// Bytes used of the last chunk.
    used: usize,
    entries: Vec<Entry>,
}

impl Outbox {
    /// Stores a datagram. Returns false without room for it, or without memory.
    pub(crate) fn push(
        &mut self,
        id: DatagramId,
        remote: SocketAddr,
        datagram: &SendDatagram<'_>,
        pool: &mut ChunkPool,
        mem: &mut MemberCtx<'_>,
    ) -> bool {
        let SendDatagram { to, ip, payload } = *datagram;
        if payload.len() > PAYLOAD || self.entries.len() >= ENTRIES_MAX {
            return false;
        }
        if self.chunks.is_empty() || self.used + payload.len() > PAYLOAD {
            if !mem.budget.charge_udp(mem.member, CHUNK_SIZE, mem.now) {
                return false;
            }
            self.chunks.push(pool.take());
            self.used = 0;
        }
        let (number, chunk) = (self.entries.len() as u16, self.chunks.len() as u16 - 1);
        let Some(last) = self.chunks.last_mut() else { return false };
        last.bytes_mut()[self.used..self.used + payload.len()].copy_from_slice(payload);
        let (at, len) = (self.used as u16, payload.len() as u16);
        self.entries.push(Entry { id, remote, to, ip, number, chunk, at, len });
        self.used += payload.len();
        true
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sorts the datagrams by mapping, in the order of arrival within each.
    pub(crate) fn sort(&mut self) {
        self.entries.sort_unstable_by_key(|entry| (entry.id, entry.number));
    }

    /// The datagrams in their order.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// A stored datagram, to be sent.
    pub(crate) fn datagram(&self, entry: &Entry) -> SendDatagram<'_> {
        let (at, len) = (usize::from(entry.at), usize::from(entry.len));
        let payload = &self.chunks[usize::from(entry.chunk)].bytes()[at..at + len];
        SendDatagram { to: entry.to, ip: entry.ip, payload }
    }

    /// Removes all datagrams and uncharges them.
    pub(crate) fn clear(&mut self, pool: &mut ChunkPool, mem: &mut MemberCtx<'_>) {
        let bytes = self.chunks.len() as u64 * CHUNK_SIZE;
        if bytes > 0 {
            mem.budget.uncharge_udp(mem.member, bytes, mem.now);
        }
        self.chunks.drain(..).for_each(|chunk| pool.give(chunk));
        self.entries.clear();
        self.used = 0;
    }

    /// Frees the lists, which are part of the charge of the mappings: the last one has ended.
    pub(crate) fn shrink(&mut self) {
        debug_assert!(self.is_empty(), "datagrams of no mapping");
        *self = Self::default();
    }
}
