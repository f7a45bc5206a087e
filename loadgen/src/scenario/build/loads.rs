//! The loads of a group: checks, and their plans.

use super::{CONNECTIONS_MAX, MS, SECOND, range, wrong};
use crate::scenario::file::{self, GroupTable};
use crate::scenario::plan::{Fill, Load, ProbeSpec, Role};
use crate::scenario::schedule::Wrong;
use crate::scenario::values::{Bytes, Rate};
use crate::units::Unit;

pub(super) fn check_loads(at: &str, g: &GroupTable) -> Result<(), Wrong> {
    let conns = |load: &str, n: u64| {
        range(&["group", at, load, "conns"], Unit::Count, n, 0, CONNECTIONS_MAX)
    };
    if let Some(up) = &g.up {
        range(&["group", at, "up", "conns"], Unit::Count, up.conns.0, 1, 900)?;
        range(&["group", at, "up", "share"], Unit::Count, up.share.0, 1, 1000)?;
    }
    if let Some(down) = &g.down {
        range(&["group", at, "down", "conns"], Unit::Count, down.conns.0, 1, 900)?;
    }
    if let Some(p) = &g.probe {
        let key = |k| ["group", at, "probe", k];
        range(&key("rate"), Unit::Count, p.rate.0, 1, 100_000)?;
        range(&key("request"), Unit::Bytes, p.request.0, 1, 65_536)?;
        range(&key("response"), Unit::Bytes, p.response.0, 1, 1 << 20)?;
        range(&key("deadline"), Unit::Nanos, p.deadline.0, MS, 60 * SECOND)?;
        range(&key("outstanding"), Unit::Count, p.outstanding.0, 1, 1_000_000)?;
    }
    if let Some(s) = &g.stuff {
        conns("stuff", s.conns.0)?;
    }
    if let Some(h) = &g.hoard {
        conns("hoard", h.conns.0)?;
    }
    if let Some(a) = &g.accept {
        conns("accept", a.conns.0)?;
    }
    if let Some(o) = &g.orphans {
        range(&["group", at, "orphans", "rate"], Unit::Count, o.rate.0, 1, 100_000)?;
        range(&["group", at, "orphans", "bytes"], Unit::Bytes, o.bytes.0, 1, 16 << 20)?;
    }
    if let Some(i) = &g.incast {
        range(&["group", at, "incast", "conns"], Unit::Count, i.conns.0, 1, 900)?;
        range(&["group", at, "incast", "bytes"], Unit::Bytes, i.bytes.0, 1, 16 << 20)?;
        range(&["group", at, "incast", "every"], Unit::Nanos, i.every.0, MS / 10, 10 * SECOND)?;
    }
    if let Some(f) = &g.flood {
        conns("flood", f.conns.0)?;
        range(&["group", at, "flood", "rate"], Unit::Count, f.rate.0, 1, 1_000_000)?;
        // The guest of a flood has no TCP, so it can carry no other load.
        let streams = g.up.is_some() || g.down.is_some() || g.probe.is_some();
        let fills = g.stuff.is_some() || g.hoard.is_some() || g.orphans.is_some();
        if streams || fills || g.accept.is_some() || g.incast.is_some() {
            let what = "cannot be combined with another load: the guest of a flood has no TCP";
            return wrong(&["group", at, "flood"], what);
        }
    }
    if g.role == Role::Victim && g.up.is_none() && g.down.is_none() && g.probe.is_none() {
        return wrong(&["group", at], "a victim needs up, down or probe");
    }
    Ok(())
}

pub(super) fn loads(g: &GroupTable, nth: u64, victims: u64) -> Vec<Load> {
    let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let mut loads = Vec::new();
    if let Some(up) = &g.up {
        // The share is relative to the link and divided between the connections.
        let reads = g.rate.0 * up.share.0 / 100 / up.conns.0.max(1);
        loads.push(Load::Up { connections: count(up.conns.0), reads_bits_per_second: reads });
    }
    if let Some(down) = &g.down {
        loads.push(Load::Down { connections: count(down.conns.0) });
    }
    if let Some(p) = &g.probe {
        let every_ns = SECOND / p.rate.0.max(1);
        loads.push(Load::Probe(ProbeSpec {
            every_ns,
            // Staggered over one interval, so that the victims do not send in step.
            offset_ns: 10 * MS + every_ns * nth / victims,
            request_bytes: count(p.request.0),
            response_bytes: count(p.response.0),
            outstanding_max: count(p.outstanding.0),
            deadline_ns: p.deadline.0,
            fresh: p.fresh.0 != 0,
        }));
    }
    if let Some(file::Stuff { conns, reads, bytes, buffer }) = &g.stuff {
        loads.push(Load::Stuff(fill(conns.0, reads, bytes, buffer)));
    }
    if let Some(file::Hoard { conns, reads, bytes, buffer }) = &g.hoard {
        loads.push(Load::Hoard(fill(conns.0, reads, bytes, buffer)));
    }
    if let Some(o) = &g.orphans {
        loads.push(Load::Orphans { per_second: count(o.rate.0), bytes: o.bytes.0 });
    }
    if let Some(a) = &g.accept {
        loads.push(Load::Accept { connections: count(a.conns.0) });
    }
    if let Some(i) = &g.incast {
        let (connections, bytes) = (count(i.conns.0), count(i.bytes.0));
        loads.push(Load::Incast { connections, bytes, every_ns: i.every.0 });
    }
    if let Some(f) = &g.flood {
        let (connections, per_second) = (count(f.conns.0), count(f.rate.0));
        loads.push(Load::Flood { kind: f.kind, connections, per_second });
    }
    loads
}

fn fill(conns: u64, reads: &Option<Rate>, bytes: &Option<Bytes>, buffer: &Option<Bytes>) -> Fill {
    Fill {
        connections: u32::try_from(conns).unwrap_or(u32::MAX),
        reads_bits_per_second: reads.map(|r| r.0),
        bytes: bytes.map(|b| b.0),
        buffer_bytes: buffer.map(|b| b.0),
    }
}
