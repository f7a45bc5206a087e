//! What `top` shows, and what keys change.

use ratatui_core::backend::TestBackend;
use ratatui_core::terminal::Terminal;
use serde_json::{Value, json};

use super::keys::Key;
use super::model::{Outcome, Sample, Top};
use super::screen;
use crate::flows::FlowReport;

/// A sample of four containers at that second.
fn sample(second: u64) -> Sample {
    let container = |name: &str, usage: u64, pressure: &str, flows: u64, rate: u64| {
        json!({
            "name": name, "usage_bytes": usage, "max_usage_bytes": usage + 4096,
            "low_bytes": 8 << 20, "soft_bytes": 11 << 20, "hard_bytes": 16 << 20,
            "pressure": pressure, "flows": flows, "bytes_from_guest": second * rate,
            "bytes_to_guest": second * rate * 3, "cpu_ns": second * rate / 20,
            "counters": { "AdmissionDenied": flows / 100 },
        })
    };
    let mut free = container("free", 3 << 20, "none", 2, 0);
    for limit in ["low_bytes", "soft_bytes", "hard_bytes"] {
        free[limit] = Value::Null;
    }
    Sample::parse(&json!({
        "time_ns": second * 1_000_000_000,
        "host": { "usage_bytes": 33 << 20, "hard_bytes": 64 << 20, "pressure": "none" },
        "containers": [
            container("db", 2 << 20, "none", 12, 125_000_000),
            free,
            container("hog", 16 << 20, "hard", 1000, 1_250_000_000),
            container("a-container-with-a-long-name", 12 << 20, "soft", 40, 12_500),
        ],
    }))
}

fn flows() -> Vec<FlowReport> {
    let flow = |port: u16, held: u64| {
        json!({
            "protocol": "tcp", "state": "ESTAB", "guest": format!("10.0.2.100:{port}"),
            "peer": "192.0.2.10:443", "published": false, "recv_queue_bytes": 0,
            "send_queue_bytes": held / 2, "charged_bytes": held, "rmem_bytes": 0, "ofo_bytes": 0,
            "wmem_bytes": 0, "fwd_bytes": 0, "sock_bytes": 1536, "host_bytes": 12_800,
            "rcvbuf_bytes": 0, "sndbuf_bytes": 0, "drops": 0, "bytes_from_guest": 0,
            "bytes_to_guest": 0, "idle_ms": 3,
            "tcp": {
                "rtt_us": 1250, "rttvar_us": 20, "rto_us": 201_250, "mss_bytes": 1448,
                "cwnd_bytes": 14_480, "ssthresh_bytes": null, "unacked_bytes": 0, "retransmits": 2,
                "snd_wnd_bytes": 0, "rcv_wnd_bytes": 0,
            },
        })
    };
    let flows = [flow(40_000, 22_528), flow(40_001, 131_072)];
    flows.into_iter().map(|flow| serde_json::from_value(flow).unwrap()).collect()
}

fn top() -> Top {
    let mut top = Top::default();
    top.update(sample(1), Vec::new());
    top.update(sample(2), Vec::new());
    top
}

/// The lines of the screen.
fn drawn(top: &Top, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen::draw(frame.buffer_mut(), top)).unwrap();
    let text = terminal.backend().to_string();
    let lines = text.lines().map(|line| line.trim_matches('"').trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// Compares with the file of that name. With SKBUDGET_WRITE_SCREENS the file is written instead.
#[track_caller]
fn same(name: &str, screen: &str) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/client/top/screens");
    let path = format!("{folder}/{name}.txt");
    if std::env::var_os("SKBUDGET_WRITE_SCREENS").is_some() {
        std::fs::write(&path, screen).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(screen == expected, "{name}:\n{screen}\nexpected:\n{expected}");
}

#[test]
fn the_screen_fits_terminals_of_all_sizes() {
    let mut top = top();
    same("80x24", &drawn(&top, 80, 24));
    same("40x10", &drawn(&top, 40, 10));
    assert_eq!(top.on_key(Key::Down), Outcome::Stay);
    assert_eq!(top.on_key(Key::Enter), Outcome::Refresh);
    assert_eq!(top.details(), Some("a-container-with-a-long-name"));
    top.update(sample(3), flows());
    same("80x24-details", &drawn(&top, 80, 24));
    same("200x60", &drawn(&top, 200, 60));
    // None of them panics.
    for (width, height) in [(1, 1), (2, 2), (9, 3), (20, 4), (65, 5)] {
        drawn(&top, width, height);
    }
}

/// Names of the containers from the top of the screen on.
fn names(top: &Top) -> Vec<&str> {
    top.shown().iter().map(|row| row.name.as_str()).collect()
}

#[test]
fn keys_sort_filter_and_select() {
    let mut top = top();
    assert_eq!(names(&top), ["hog", "a-container-with-a-long-name", "free", "db"]);
    top.on_key(Key::Char('r'));
    assert_eq!(names(&top)[0], "db");
    top.on_key(Key::Char('r'));
    // Share of hard, flows, sent: without a limit the share is 0.
    top.on_key(Key::Char('s'));
    assert_eq!(names(&top)[3], "free");
    for _ in 0..2 {
        top.on_key(Key::Char('s'));
    }
    assert_eq!((top.sort_name(), names(&top)[1]), ("sent", "db"));
    // The selected container stays selected when the order changes.
    top.on_key(Key::Down);
    let selected = |top: &Top| names(top)[top.selected()].to_owned();
    assert_eq!(selected(&top), "db");
    for _ in 0..5 {
        top.on_key(Key::Char('s'));
    }
    assert_eq!((top.sort_name(), selected(&top).as_str()), ("usage", "db"));
    top.on_key(Key::PageDown);
    assert_eq!(top.selected(), 3);
    for key in ['/', 'q', 'o'].map(Key::Char) {
        assert_eq!(top.on_key(key), Outcome::Stay);
    }
    assert!(names(&top).is_empty() && drawn(&top, 80, 24).contains("filter by name: qo_"));
    top.on_key(Key::Backspace);
    top.on_key(Key::Backspace);
    top.on_key(Key::Char('o'));
    top.on_key(Key::Enter);
    assert_eq!(names(&top), ["hog", "a-container-with-a-long-name"]);
    top.on_key(Key::Escape);
    assert_eq!(names(&top).len(), 4);
    assert_eq!(top.on_key(Key::Char('q')), Outcome::Quit);
}

#[test]
fn a_daemon_that_is_gone_is_reported_until_it_answers() {
    let mut top = top();
    top.lost("/run/x.sock: no daemon serves this socket".to_owned());
    let screen = drawn(&top, 120, 24);
    assert!(screen.contains("NOT CURRENT, trying again: /run/x.sock: no daemon"), "{screen}");
    assert!(screen.contains("hog"), "what was known is still shown");
    top.update(sample(3), Vec::new());
    assert!(!drawn(&top, 120, 24).contains("NOT CURRENT"));
}
