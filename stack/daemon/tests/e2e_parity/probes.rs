//! Runs foreign tools against our stack and against a kernel, and compares their results: port scans, single probes,
//! and Wireshark's expert notes on captures of the same transfers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use skbudget_sim::Faults;
use skbudget_sim::packet::GATEWAY;
use skbudget_stack::tap::{CaptureHead, CaptureWriter};
use skbudget_testbed::cable::{Bench, Cable, Far};

/// True, with a message, when a program that the test needs is missing.
fn lacks(program: &str) -> bool {
    let mut command = Command::new(program);
    let found = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if let Err(e) = &found {
        println!("skipped: {program}: {e}");
    }
    found.is_err()
}

fn cable(loss: u32) -> Cable {
    Cable {
        round_trip: Duration::from_millis(2),
        bits_per_second: Some(300_000_000),
        faults: Faults { loss, ..Faults::default() },
        seed: 11,
    }
}

/// The output of a program in the guest, stdout and stderr.
fn in_guest(bench: &Bench, program: &str, args: &[&str]) -> String {
    let output = bench.in_guest(|| Command::new(program).args(args).output().unwrap());
    [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).join("")
}

/// A listener that the guest can reach, and its port.
fn listener(bench: &Bench, far: Far) -> (TcpListener, u16) {
    let ip = if far == Far::Kernel { GATEWAY } else { std::net::Ipv4Addr::LOCALHOST };
    let listener = bench.far(|| TcpListener::bind((ip, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn port_scans_find_what_they_find_at_a_kernel() {
    if lacks("nmap") {
        return;
    }
    let states = |far| -> Vec<String> {
        let bench = Bench::new(far, cable(0), None);
        let (_listener, port) = listener(&bench, far);
        let ports = format!("9,11,{port}");
        let scan = |kind| {
            let args = ["-n", "-Pn", kind, "-p", &ports, "--max-retries", "1", "10.0.2.2"];
            let said = in_guest(&bench, "nmap", &args);
            let lines = said.lines().filter(|line| line.contains("/tcp"));
            let state = |line: &str| line.split_whitespace().nth(1).unwrap_or("?").to_owned();
            let states: Vec<String> = lines.map(state).collect();
            assert!(!states.is_empty() || said.contains("All 3"), "{said}");
            format!("{kind} {}", states.join(" "))
        };
        ["-sS", "-sT", "-sA"].map(scan).to_vec()
    };
    let (ours, kernel) = (states(Far::Ours), states(Far::Kernel));
    println!("nmap: ours {ours:?}, kernel {kernel:?}");
    assert_eq!(ours, kernel);
    assert_eq!(ours[0], "-sS closed closed open");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn single_probes_are_answered_as_by_a_kernel() {
    if lacks("hping3") {
        return;
    }
    let flags = |far| -> BTreeMap<String, String> {
        let bench = Bench::new(far, cable(0), None);
        let (_listener, port) = listener(&bench, far);
        let (open, closed) = (port.to_string(), "9".to_owned());
        let mut answers = BTreeMap::new();
        for (to, port) in [("open", &open), ("closed", &closed)] {
            for probe in ["-S", "-A", "-R", "-SA", "-SR"] {
                let args = ["-c", "1", "-n", probe, "-p", port, "10.0.2.2"];
                let said = in_guest(&bench, "hping3", &args);
                let flags = said.split_whitespace().find_map(|word| word.strip_prefix("flags="));
                answers.insert(format!("{probe} {to}"), flags.unwrap_or("nothing").to_owned());
            }
        }
        answers
    };
    let (ours, kernel) = (flags(Far::Ours), flags(Far::Kernel));
    println!("hping3: {ours:?}");
    assert_eq!(ours, kernel);
    assert_eq!((ours["-S open"].as_str(), ours["-S closed"].as_str()), ("SA", "RA"));
}

/// Transfers in both directions, half-closes one after the other, short connections, one reset.
fn transfers(bench: &Bench) {
    let payload = vec![0x5a; 3_000_000];
    for up in [true, false] {
        let (client, server) = bench.connect("cubic");
        let (mut from, mut to) = if up { (client, server) } else { (server, client) };
        let payload = payload.clone();
        let sender = thread::spawn(move || {
            from.write_all(&payload).unwrap();
            from.shutdown(Shutdown::Write).unwrap();
            from.read_to_end(&mut Vec::new()).unwrap();
        });
        let mut received = Vec::new();
        to.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), 3_000_000);
        to.write_all(b"the other half").unwrap();
        drop(to);
        sender.join().unwrap();
    }
    for _ in 0..20 {
        let (mut client, mut server) = bench.connect("cubic");
        client.write_all(b"question").unwrap();
        server.read_exact(&mut [0; 8]).unwrap();
        server.write_all(b"answer").unwrap();
        client.read_exact(&mut [0; 6]).unwrap();
    }
    // Waits until the last FINs are on the cable.
    thread::sleep(Duration::from_millis(100));
}

/// Warnings that captures of our stack may show beyond the kernel's, and why.
const KNOWN_WARNINGS: &[(&str, &str)] = &[(
    "TCP window specified by the receiver is now completely full",
    "the budget grants the window: it starts at four chunks and grows with the data that the host reads, so a guest \
     that is faster for a moment fills it",
)];

/// Number of captures of the kernel that are merged. tshark distinguishes a loss from reordering by 3 ms, which the
/// scheduler may add or not, so a note can be missing in one capture and present in the next.
const KERNEL_CAPTURES: usize = 8;

/// tshark's notes by severity and summary, and the number of each.
fn expert(capture: &Path) -> BTreeMap<(String, String), u64> {
    let output =
        Command::new("tshark").args(["-q", "-z", "expert", "-r"]).arg(capture).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (mut severity, mut found) = (String::new(), BTreeMap::new());
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match (words.as_slice(), words.first().map(|word| word.parse::<u64>())) {
            ([name, count], _) if count.starts_with('(') => severity = (*name).to_owned(),
            ([_, _, _, summary @ ..], Some(Ok(count))) => {
                *found.entry((severity.clone(), summary.join(" "))).or_default() += count;
            }
            _ => {}
        }
    }
    assert!(found.keys().any(|key| key.0 == "Chats"), "{text}");
    found
}

/// tshark's notes on a capture of the transfers, without those of severity "chat".
fn notes(far: Far, loss: u32) -> BTreeSet<(String, String)> {
    let name = format!("skbudget-{far:?}-{loss}-{}.pcapng", std::process::id());
    let path = std::env::temp_dir().join(name);
    let file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    let head = CaptureHead { snaplen: 65_535, ..CaptureHead::default() };
    let capture = CaptureWriter::new(Box::new(file), &head).unwrap();
    let bench = Bench::new(far, cable(loss), Some(capture));
    transfers(&bench);
    bench.end();
    let mut notes = expert(&path);
    std::fs::remove_file(&path).unwrap();
    notes.retain(|(severity, _), _| severity != "Chats");
    for ((severity, summary), count) in &notes {
        println!("loss {loss} ppm: {far:?}: {severity} {count} {summary}");
    }
    notes.into_keys().collect()
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn wireshark_warns_of_nothing_that_it_does_not_warn_of_between_two_kernels() {
    if lacks("tshark") {
        return;
    }
    for loss in [0, 5000] {
        let ours = notes(Far::Ours, loss);
        let grave = ours.iter().filter(|(severity, summary)| {
            let known = KNOWN_WARNINGS.iter().any(|(known, _)| known == summary);
            severity == "Errors" || severity == "Warns" && !known
        });
        let mut more: BTreeSet<_> = grave.collect();
        for _ in 0..KERNEL_CAPTURES {
            if more.is_empty() {
                break;
            }
            let kernel = notes(Far::Kernel, loss);
            more.retain(|note| !kernel.contains(*note));
        }
        assert!(more.is_empty(), "loss {loss} ppm: {more:?}");
    }
}
