//! `/metrics`: the stats in Prometheus' text format, through the `metrics` crate and its exporter.
//!
//! Every scrape fills a recorder of its own from one snapshot: a container that has ended leaves no series behind, and
//! the number of series is bounded by that of the containers.

use metrics::{Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use skbudget_controller::Pressure;

use crate::stats::{Categories, ContainerReport, Counters, Meter, Stats};

/// Content type of the text format.
pub(super) const TEXT: &str = "text/plain; version=0.0.4";

/// Of every series: the exporter ignores it.
static METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// The stats as text. `restarts`: processes that served the containers before this one.
pub(super) fn render(stats: &Stats, restarts: u64) -> String {
    let out = Series { recorder: PrometheusBuilder::new().build_recorder() };
    out.meter("host", "all containers", &[], &stats.host);
    for group in &stats.groups {
        out.meter("group", "the group", &[("group", &group.name)], &group.meter);
    }
    // Sorted by name already; the exporter orders the series of one name as it likes.
    for container in &stats.containers {
        out.meter(
            "container",
            "the container",
            &[("container", &container.name)],
            &container.meter,
        );
        out.container(container);
    }
    let help = "Buffers of the workers for the frame that is processed, charged to no container";
    out.gauge("skbudget_platform_bytes", help, &[], stats.platform_bytes);
    let help = "Free chunks that the workers keep for reuse, charged to no container";
    out.gauge("skbudget_pool_bytes", help, &[], stats.pool_bytes);
    let help = "Containers attached";
    out.gauge("skbudget_containers", help, &[], stats.containers.len() as u64);
    let help = "Ends of the process that serves the containers; each costs their connections";
    out.counter("skbudget_relay_restarts_total", help, &[], restarts);
    out.recorder.handle().render()
}

/// Names and values of labels.
type Labels<'a> = [(&'static str, &'a str)];

struct Series {
    recorder: PrometheusRecorder,
}

impl Series {
    /// Limits and usage. A limit that does not exist has no series.
    fn meter(&self, what: &str, whose: &str, labels: &Labels<'_>, meter: &Meter) {
        let name = |rest: &str| format!("skbudget_{what}_{rest}");
        // In the order of the thresholds, not of their names.
        let limits = [
            ("low_bytes", "Pressure ends below this usage", meter.low_bytes),
            ("soft_bytes", "Pressure starts above this usage", meter.soft_bytes),
            ("hard_bytes", "No charge exceeds this usage", meter.hard_bytes),
        ];
        for (rest, help, bytes) in limits {
            if let Some(bytes) = bytes {
                self.gauge(&name(rest), help, labels, bytes);
            }
        }
        let help = format!("Bytes charged to {whose}");
        self.gauge(&name("usage_bytes"), &help, labels, meter.usage_bytes);
        let help = format!("Most bytes charged to {whose} so far");
        self.gauge(&name("max_usage_bytes"), &help, labels, meter.max_usage_bytes);
        self.gauge(&name("min_bytes"), "The guaranteed part", labels, meter.min_bytes);
        let pressure = u64::from(meter.pressure != Pressure::None);
        self.gauge(&name("pressure"), "1 while under pressure", labels, pressure);
        let help = "Charges that the hard limit refused";
        self.counter(&name("refused_charges_total"), help, labels, meter.failcnt);
    }

    /// Flows, traffic and charges of a container.
    fn container(&self, report: &ContainerReport) {
        let container = ("container", report.name.as_str());
        let labels = &[container];
        let gauge = |name: &str, help, value| self.gauge(name, help, labels, value);
        let counter = |name: &str, help, value| self.counter(name, help, labels, value);
        gauge("skbudget_container_flows", "Flows open", report.flows.into());
        gauge("skbudget_container_host_sockets", "Host sockets open", report.host_sockets);
        let mappings = report.udp_mappings;
        gauge("skbudget_container_udp_mappings", "UDP mappings open", mappings.into());
        counter("skbudget_container_flows_total", "Flows opened", report.flows_total);
        let help = "Payload received from the container";
        counter("skbudget_container_sent_bytes_total", help, report.bytes_from_guest);
        let help = "Payload delivered to the container";
        counter("skbudget_container_received_bytes_total", help, report.bytes_to_guest);
        let help = "Frames received from the container";
        counter("skbudget_container_sent_frames_total", help, report.frames_from_guest);
        let help = "Frames delivered to the container";
        counter("skbudget_container_received_frames_total", help, report.frames_to_guest);
        let help = "CPU time of the worker for the container";
        counter("skbudget_container_cpu_nanoseconds_total", help, report.cpu_ns);
        let help = "Time under pressure";
        let pressure_ns = report.meter.pressure_ns;
        counter("skbudget_container_pressure_nanoseconds_total", help, pressure_ns);
        for (category, bytes) in categories(&report.categories) {
            let labels = &[container, ("category", category)];
            let help = "Bytes charged by category";
            self.gauge("skbudget_container_memory_bytes", help, labels, bytes);
        }
        // Last: the largest part of the text.
        self.events(container, &report.counters);
    }

    /// The counters of the kernel's names. Their set is fixed.
    fn events(&self, container: (&'static str, &str), counters: &Counters) {
        for (event, value) in counters {
            let labels = &[container, ("event", &**event)];
            let help = "Events by name; the kernel's names where the kernel has them";
            self.counter("skbudget_container_events_total", help, labels, *value);
        }
    }

    /// Sets a value that can fall.
    fn gauge(&self, name: &str, help: &str, labels: &Labels<'_>, value: u64) {
        self.recorder.describe_gauge(
            KeyName::from(name.to_owned()),
            unit(name),
            help.to_owned().into(),
        );
        self.recorder.register_gauge(&key(name, labels), &METADATA).set(value as f64);
    }

    /// Sets a value that only rises.
    fn counter(&self, name: &str, help: &str, labels: &Labels<'_>, value: u64) {
        self.recorder.describe_counter(
            KeyName::from(name.to_owned()),
            unit(name),
            help.to_owned().into(),
        );
        self.recorder.register_counter(&key(name, labels), &METADATA).absolute(value);
    }
}

/// The series of that name with those labels.
fn key(name: &str, labels: &Labels<'_>) -> Key {
    let labels: Vec<Label> =
        labels.iter().map(|(key, value)| Label::new(*key, (*value).to_owned())).collect();
    Key::from_parts(name.to_owned(), labels)
}

/// The unit that a name ends with.
fn unit(name: &str) -> Option<Unit> {
    let name = name.trim_end_matches("_total");
    match name.rsplit('_').next() {
        Some("bytes") => Some(Unit::Bytes),
        Some("nanoseconds") => Some(Unit::Nanoseconds),
        _ => None,
    }
}

/// The categories that add up to the charge of a container; `listen` is a part of `host`.
fn categories(categories: &Categories) -> [(&'static str, u64); 12] {
    let Categories {
        rmem_bytes,
        ofo_bytes,
        credit_bytes,
        wmem_bytes,
        fwd_bytes,
        reserve_bytes,
        udp_bytes,
        frag_bytes,
        sock_bytes,
        host_bytes,
        listen_bytes,
        dev_bytes,
    } = *categories;
    [
        ("rmem", rmem_bytes),
        ("ofo", ofo_bytes),
        ("credit", credit_bytes),
        ("wmem", wmem_bytes),
        ("fwd", fwd_bytes),
        ("reserve", reserve_bytes),
        ("udp", udp_bytes),
        ("frag", frag_bytes),
        ("sock", sock_bytes),
        // Without the part that is reported apart.
        ("host", host_bytes.saturating_sub(listen_bytes)),
        ("listen", listen_bytes),
        ("dev", dev_bytes),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::stats::{GroupReport, SCHEMA};

    pub(in crate::serve) fn stats() -> Stats {
        let meter = Meter { hard_bytes: Some(1 << 20), usage_bytes: 4096, ..Meter::NONE };
        let container = |name: &str| ContainerReport {
            name: name.to_owned(),
            meter,
            budget: name.to_owned(),
            flows: 3,
            flows_total: 7,
            categories: Categories { host_bytes: 10, listen_bytes: 4, ..Categories::default() },
            bytes_from_guest: 1,
            bytes_to_guest: 2,
            frames_from_guest: 3,
            frames_to_guest: 4,
            host_meminfo_bytes: None,
            host_sockets: 3,
            udp_mappings: 2,
            cpu_ns: 5,
            turns: 6,
            counters: Counters::from([("AdmissionDenied".into(), 9)]),
        };
        let group = GroupReport { name: "web".to_owned(), parent: None, weight: 1, meter };
        Stats {
            schema: SCHEMA,
            time_ns: 0,
            host: Meter::NONE,
            groups: vec![group],
            containers: vec![container("a"), container("b-1")],
            platform_bytes: 1,
            pool_bytes: 2,
        }
    }

    #[test]
    fn every_series_has_a_type_a_help_and_one_value() {
        let text = render(&stats(), 3);
        let (mut types, mut helps, mut seen) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                assert!(helps.insert(rest.split_once(' ').unwrap().0.to_owned()), "{line}");
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                assert!(value.parse::<f64>().unwrap() >= 0.0, "{line}");
                assert!(seen.insert(series.to_owned()), "{line}");
                let name = series.split('{').next().unwrap();
                let kind = types.get(name).unwrap_or_else(|| panic!("no type: {line}"));
                assert!(helps.contains(name) && name.starts_with("skbudget_"), "{line}");
                assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            }
        }
        let has = |line: &str| assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        has(r#"skbudget_container_usage_bytes{container="a"} 4096"#);
        has(r#"skbudget_container_memory_bytes{container="a",category="host"} 6"#);
        has(r#"skbudget_container_events_total{container="a",event="AdmissionDenied"} 9"#);
        has(r#"skbudget_group_hard_bytes{group="web"} 1048576"#);
        has("skbudget_host_usage_bytes 0");
        has("skbudget_containers 2");
        // A limit that does not exist.
        assert!(!text.contains("skbudget_host_hard_bytes"));
    }
}
