//! Replays recorded traces of the kernel's ladder and compares every field after every operation.
//!
//! The traces come from an independent implementation of the same rules. `SKBUDGET_TRACES` names
//! another file. Format, one trace a line: the header `low`, `pressure`, `high` (pages), `counters`
//! (maxima of the chain, leaf first), `sockets`; then `ops`, each with the state expected `after`
//! it.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use skbudget_controller::linux::{Chain, Kind, Pool, Sock};
use skbudget_controller::{Instant, Level, LevelConfig};

#[test]
fn traces_match_in_every_field() {
    let path = std::env::var("SKBUDGET_TRACES").unwrap_or_else(|_| {
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/linux.jsonl").to_owned()
    });
    let text = fs::read_to_string(&path).expect("a file of traces");
    let mut ops = 0;
    let mut traces = 0;
    // All traces run before the test fails, to show every difference.
    let mut failures = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let trace: Value = serde_json::from_str(line).expect("a trace is JSON");
        traces += 1;
        match World::new(&trace).run(&trace) {
            Ok(count) => ops += count,
            Err(difference) => failures.push(difference),
        }
    }
    assert!(traces > 0, "{path} holds no trace");
    assert!(
        failures.is_empty(),
        "{} of {traces} traces of {path} differ:\n{}",
        failures.len(),
        failures.join("\n")
    );
    println!("{traces} traces, {ops} operations");
}

struct World {
    pool: Pool,
    chain: Chain,
    levels: Vec<Arc<Level>>,
    socks: Vec<Sock>,
    now: Instant,
}

impl World {
    fn new(trace: &Value) -> Self {
        let mut pool = Pool::new(num(&trace["low"]), num(&trace["pressure"]), num(&trace["high"]));
        let mut levels: Vec<Arc<Level>> = Vec::new();
        // The root is created first, because a level needs its parent; the list ends up leaf first.
        for max in trace["counters"].as_array().expect("counters").iter().rev() {
            let max = num(max);
            let config = LevelConfig { low: max, soft: max, hard: max };
            let parent = levels.first().cloned();
            levels.insert(0, Level::new(config, parent).expect("a level"));
        }
        let sockets = trace["sockets"].as_array().expect("sockets");
        let socks: Vec<Sock> = sockets
            .iter()
            .map(|socket| {
                let mut sock = Sock::new(num(&socket["sndbuf"]) as u32, 131_072);
                sock.sndbuf_locked = socket["locked"].as_bool().expect("locked");
                sock
            })
            .collect();
        pool.nsock = socks.len() as u64;
        let chain = Chain { leaf: levels.first().cloned(), flag: false };
        Self { pool, chain, levels, socks, now: Instant(0) }
    }

    fn run(&mut self, trace: &Value) -> Result<usize, String> {
        let ops = trace["ops"].as_array().expect("ops");
        for (at, op) in ops.iter().enumerate() {
            let who = || format!("trace {} op {at} ({})", trace["id"], op["op"]);
            self.step(op).map_err(|e| format!("{}: {e}", who()))?;
            let seen = self.snapshot(num(&op["sock"]) as usize);
            let expected = op["after"].as_object().expect("after");
            for (field, expected) in expected {
                if &seen[field] != expected {
                    let seen = &seen[field];
                    return Err(format!("{}: {field} is {seen}, expected {expected}", who()));
                }
            }
        }
        Ok(ops.len())
    }

    fn step(&mut self, op: &Value) -> Result<(), String> {
        let Self { pool, chain, levels: _, socks, now } = self;
        let sock = &mut socks[num(&op["sock"]) as usize];
        let size = op["size"].as_u64().unwrap_or(0);
        match op["op"].as_str().expect("op") {
            "schedule" => {
                let kind = kind(op);
                let verdict = sock.schedule(pool, chain, kind, size, *now);
                let result = if verdict.is_ok() { "ok" } else { "deny" };
                // `why` in the trace names the rule that the other implementation applied.
                if op["result"] != result {
                    return Err(format!("answer is {verdict:?}, expected {}", op["why"]));
                }
                if verdict.is_ok() {
                    sock.charge(kind, size);
                }
            }
            "copy" => {
                let (granted, verdict) = sock.wmem_copy(pool, chain, size, *now);
                if op["granted"] != granted {
                    let expected = &op["granted"];
                    return Err(format!("granted {granted} ({verdict:?}), expected {expected}"));
                }
                sock.charge(Kind::Wmem, granted);
            }
            "forced" => {
                // As for the first buffer of an empty send queue.
                sock.force(pool, chain, size);
                sock.charge(Kind::Wmem, size);
            }
            "uncharge" => sock.uncharge(pool, chain, kind(op), size, *now),
            "advance" => *now = *now + Duration::from_millis(num(&op["ms"])),
            other => return Err(format!("unknown operation {other}")),
        }
        Ok(())
    }

    fn snapshot(&self, at: usize) -> Value {
        let sock = &self.socks[at];
        json!({
            "fwd": sock.fwd,
            "rmem": sock.rmem,
            "wmem": sock.wmem,
            "sndbuf": sock.sndbuf,
            "alloc": self.pool.alloc,
            "pressure": u8::from(self.pool.flag),
            "enters": self.pool.enters,
            "chrono_ms": self.pool.chrono_ns / 1_000_000,
            "usage": self.levels.iter().map(|level| level.usage()).collect::<Vec<_>>(),
            "failcnt": self.levels.iter().map(|level| level.failcnt()).collect::<Vec<_>>(),
            "container_flag": u8::from(self.chain.flag),
        })
    }
}

fn num(value: &Value) -> u64 {
    value.as_u64().expect("a whole number")
}

fn kind(op: &Value) -> Kind {
    if op["kind"] == "R" { Kind::Rmem } else { Kind::Wmem }
}
