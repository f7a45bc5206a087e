//! `starvation`: one hog that fills buffers nobody empties, and victims that want their link.
//!
//! The hog's connections go into servers that never read and come from servers that push while it never reads, so
//! every buffer on its way, in both directions, fills and stays full. Under one shared budget that takes the memory
//! the victims' segments need; with a budget each it takes the hog's own.

use super::{Params, Scenario};
use crate::exit::Failure;
use crate::plan::{
    ArmPlan, ArmRole, ContainerPlan, Isolation, LinkPlan, Load, Phase, Plan, ProbeSpec, Role,
    RuleSet,
};
use crate::units::Unit;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "starvation",
    about: "a hog with hundreds of connections that nobody reads, against victims with bulk both ways and a probe",
    params,
    plan,
};

const MS: u64 = 1_000_000;
const MIB: u64 = 1 << 20;

/// Wall-clock runs need longer phases for the same certainty, and no more link than two cores carry.
fn params(target: &str) -> Params {
    let wall = target != "virtual";
    let pick = |virt: u64, tap: u64| if wall { tap } else { virt };
    Params::new(&[
        ("victims", Unit::Count, 4, "containers that want their share"),
        ("stuff", Unit::Count, 300, "the hog's connections into servers that never read"),
        ("hoard", Unit::Count, 300, "the hog's connections from servers that push, never read"),
        ("hog-hard", Unit::Bytes, 32 * MIB, "the hog's hard limit"),
        ("victim-hard", Unit::Bytes, 4 * MIB, "each victim's hard limit"),
        ("rate", Unit::BitsPerSecond, pick(500, 100) * 1_000_000, "link of each victim, each way"),
        ("hog-rate", Unit::BitsPerSecond, 5_000_000_000, "link of the hog: fast to fill (virtual)"),
        ("server-share", Unit::Count, 88, "percent of the link at which an upload's server reads"),
        ("rtt", Unit::Nanos, MS, "guest to server and back (virtual)"),
        (
            "rmem",
            Unit::Bytes,
            256 << 10,
            "tcp_rmem's default, as autotuning leaves it on a used flow",
        ),
        ("wmem-max", Unit::Bytes, 256 << 10, "tcp_wmem's maximum; bounds host sockets too"),
        (
            "guest-buffer",
            Unit::Bytes,
            128 << 10,
            "send and receive buffer of a guest's socket (virtual)",
        ),
        ("mtu", Unit::Count, 1500, "IP MTU"),
        ("offload", Unit::Flag, 1, "checksum and segmentation offload"),
        ("warmup", Unit::Nanos, pick(200, 1000) * MS, "before the first phase"),
        ("solo", Unit::Nanos, pick(2000, 5000) * MS, "the victims alone"),
        ("contended", Unit::Nanos, pick(3000, 8000) * MS, "the hog is there"),
        ("recovery", Unit::Nanos, pick(1000, 3000) * MS, "the hog is gone"),
        ("window", Unit::Nanos, pick(10, 50) * MS, "of the goodput series"),
        ("probe-rate", Unit::Count, 1000, "requests a second of each victim"),
        ("request", Unit::Bytes, 64, "of a probe"),
        ("response", Unit::Bytes, pick(16 << 10, 1024), "of a probe"),
        ("deadline", Unit::Nanos, 1000 * MS, "a later response was not delivered"),
        ("outstanding", Unit::Count, 4096, "probes under way; more are shed"),
    ])
}

fn plan(p: &Params, seed: u64) -> Result<Plan, Failure> {
    check(p)?;
    let grace_ns = 20 * MS;
    let window_ns = p.value("window");
    let align = |ns: u64| ns.div_ceil(window_ns) * window_ns;
    let solo = align(p.value("warmup"));
    let contended = align(solo + p.value("solo") + grace_ns);
    let recovery = align(contended + p.value("contended"));
    let end = align(recovery + p.value("recovery"));
    let phase = |name: &str, start_ns, end_ns| Phase { name: name.to_owned(), start_ns, end_ns };
    Ok(Plan {
        scenario: SCENARIO.name,
        seed,
        params: p.record(),
        link: LinkPlan {
            rtt_ns: p.value("rtt"),
            guest_buffer_bytes: p.value("guest-buffer"),
            mtu: u16::try_from(p.value("mtu")).unwrap_or(u16::MAX),
            offload: p.value("offload") != 0,
        },
        rmem_bytes: u32::try_from(p.value("rmem")).unwrap_or(u32::MAX),
        wmem_max_bytes: u32::try_from(p.value("wmem-max")).unwrap_or(u32::MAX),
        window_ns,
        grace_ns,
        phases: vec![
            phase("solo", solo, solo + p.value("solo")),
            phase("contended", contended, recovery),
            phase("recovery", recovery, end),
        ],
        containers: containers(p),
        arms: vec![
            ArmPlan {
                name: "shared",
                role: ArmRole::Control,
                isolation: Isolation::Shared,
                rules: RuleSet::Linux,
            },
            ArmPlan {
                name: "container",
                role: ArmRole::Subject,
                isolation: Isolation::Container,
                rules: RuleSet::Strict,
            },
        ],
    })
}

fn containers(p: &Params) -> Vec<ContainerPlan> {
    let count = |key| u32::try_from(p.value(key)).unwrap_or(u32::MAX);
    let victims = p.value("victims");
    let every_ns = 1_000_000_000 / p.value("probe-rate");
    let victim = |i: u64| ContainerPlan {
        name: format!("victim{}", i + 1),
        role: Role::Victim,
        hard_bytes: p.value("victim-hard"),
        bits_per_second: p.value("rate"),
        loads: vec![
            Load::Up { reads_bits_per_second: p.value("rate") * p.value("server-share") / 100 },
            Load::Down,
            Load::Probe(ProbeSpec {
                every_ns,
                offset_ns: 10 * MS + every_ns * i / victims,
                request_bytes: count("request"),
                response_bytes: count("response"),
                outstanding_max: count("outstanding"),
                deadline_ns: p.value("deadline"),
            }),
        ],
    };
    let hog = ContainerPlan {
        name: "hog".to_owned(),
        role: Role::Hog,
        hard_bytes: p.value("hog-hard"),
        bits_per_second: p.value("hog-rate"),
        loads: vec![
            Load::Stuff { connections: count("stuff") },
            Load::Hoard { connections: count("hoard") },
        ],
    };
    std::iter::once(hog).chain((0..victims).map(victim)).collect()
}

fn check(p: &Params) -> Result<(), Failure> {
    let range = |key: &str, low: u64, high: u64| {
        let (v, param) = (p.value(key), p.iter().find(|q| q.key == key));
        let unit = param.map_or(Unit::Count, |q| q.unit);
        if (low..=high).contains(&v) {
            return Ok(());
        }
        let (v, low, high) = (unit.show(v), unit.show(low), unit.show(high));
        Err(Failure::Usage(format!("--set {key}={v}: must be {low} to {high}")))
    };
    range("victims", 1, 64)?;
    range("stuff", 0, 5000)?;
    range("hoard", 0, 5000)?;
    range("hog-hard", MIB, 1 << 40)?;
    range("victim-hard", MIB, 1 << 40)?;
    range("rate", 1_000_000, 100_000_000_000)?;
    range("hog-rate", 1_000_000, 100_000_000_000)?;
    range("server-share", 1, 1000)?;
    range("rtt", 1_000, 1000 * MS)?;
    range("rmem", 16 << 10, 6 * MIB)?;
    range("wmem-max", 16 << 10, 64 * MIB)?;
    range("guest-buffer", 4 << 10, 16 * MIB)?;
    range("mtu", 576, 65_521)?;
    range("warmup", MS, 60_000 * MS)?;
    for phase in ["solo", "contended", "recovery"] {
        range(phase, 10 * MS, 600_000 * MS)?;
    }
    range("window", MS, 1000 * MS)?;
    range("probe-rate", 1, 100_000)?;
    range("request", 1, 65_536)?;
    range("response", 1, 1 << 20)?;
    range("deadline", MS, 60_000 * MS)?;
    range("outstanding", 1, 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_arms_have_the_same_memory_and_phases_do_not_overlap() {
        let p = plan(&params("virtual"), 1).unwrap();
        assert_eq!(p.pool_bytes(), (32 + 4 * 4) * MIB);
        assert_eq!(p.containers.len(), 5);
        for pair in p.phases.windows(2) {
            assert!(pair[0].end_ns <= pair[1].start_ns);
        }
        assert!(p.phases[1].start_ns - p.phases[0].end_ns >= p.grace_ns);
        assert!(p.phases.iter().skip(1).all(|q| q.start_ns % p.window_ns == 0));
    }

    #[test]
    fn bad_values_name_the_range() {
        let mut p = params("virtual");
        p.set("victims=0").unwrap();
        let e = plan(&p, 1).unwrap_err().to_string();
        assert!(e.contains("victims=0") && e.contains("1 to 64"), "{e}");
        assert!(p.set("victms=3").unwrap_err().to_string().contains("'victims'"));
        assert!(p.set("victims").is_err());
        assert!(p.set("rate=fast").is_err());
    }
}
