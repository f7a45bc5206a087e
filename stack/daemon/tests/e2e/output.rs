//! The files of `--pcap` and `--stats-file`, when they cannot be written normally.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Output, Stdio};

use nix::sys::stat::Mode;
use skbudget_stack::tap::{block_len, is_packet};

use crate::support::{BINARY, TempFile, script, serve, skbudget, succeed, text};

const BULK: usize = 24 << 20;

fn fifo(what: &str) -> TempFile {
    let file = TempFile::new(what);
    nix::unistd::mkfifo(&file.0, Mode::S_IRWXU).unwrap();
    file
}

fn read_all(mut stream: TcpStream) -> usize {
    std::io::copy(&mut stream, &mut std::io::sink()).unwrap() as usize
}

/// The command that sends BULK bytes to a server on the host.
fn upload(port: u16) -> String {
    format!("head -c {BULK} /dev/zero >/dev/tcp/10.0.2.2/{port}")
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_fifo_without_a_reader_is_refused_at_once() {
    for key in ["--pcap", "--stats-file"] {
        let fifo = fifo("nobody-reads");
        let output = skbudget(&[key, fifo.path()]).arg("true").output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{key}");
        let said = text(&output.stderr);
        assert!(said.contains(key) && said.contains("start the reader first"), "{said}");
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_folder_and_a_full_device_are_refused_at_once() {
    let refused = |key: &str, path: &str| {
        let output = skbudget(&[key, path]).arg("true").output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{key} {path}");
        assert!(text(&output.stderr).contains(key));
    };
    refused("--pcap", "/");
    refused("--stats-file", "/");
    refused("--pcap", "/dev/full");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_captures_reader_that_stalls_does_not_stop_the_network() {
    let (fifo, stats) = (fifo("stalls"), TempFile::new("stats"));
    let mut reader = OpenOptions::new();
    let reader = reader.read(true).custom_flags(libc::O_NONBLOCK).open(&fifo.0).unwrap();
    let (port, server) = serve(1, read_all);
    let options = ["--pcap", fifo.path(), "--stats-file", stats.path()];
    let output = script(&options, &format!("{}; exit 7", upload(port)));
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!(server.join().unwrap(), [BULK]);
    let lost = capture_lost(&stats);
    assert!(lost > 10, "{lost}");
    let said = text(&output.stderr);
    assert!(said.contains("frames were not captured"), "{said}");
    drop(reader);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_captures_reader_that_leaves_ends_the_capture_alone() {
    let fifo = fifo("leaves");
    let path = fifo.0.clone();
    let reader =
        std::thread::spawn(move || File::open(path).unwrap().read(&mut [0; 1000]).unwrap());
    let (port, server) = serve(1, read_all);
    // The run can open the FIFO only while a reader has it open.
    let run = |attempt: usize| {
        let output = script(&["--pcap", fifo.path()], &format!("{}; exit 7", upload(port)));
        let early = text(&output.stderr).contains("start the reader first");
        (!early || attempt > 1000).then_some(output)
    };
    let output = (0..).find_map(run).unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!(server.join().unwrap(), [BULK]);
    assert!(reader.join().unwrap() > 0);
    let said = text(&output.stderr);
    assert_eq!(said.matches("the capture ends here").count(), 1, "{said}");
}

/// Runs a script in a mount namespace of its own, with the binary as $0, in a folder on a small disk.
fn on_a_small_disk(script: &str, args: &[&str]) -> Output {
    let setup = "d=$(mktemp -d); mount -t tmpfs -o size=256k tmpfs $d; cd $d; \
                 trap 'cd /; umount $d; rmdir $d' EXIT; ";
    Command::new("unshare")
        .args(["-m", "bash", "-c", &format!("{setup}{script}"), BINARY])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_full_disk_leaves_a_capture_of_whole_blocks_and_the_commands_code() {
    let (pcap, stats) = (TempFile::new("pcap"), TempFile::new("stats"));
    let (port, server) = serve(1, read_all);
    let outer = "\"$0\" run --pcap pcap --stats-file \"$2\" -- bash -c \"$3\"; code=$?; \
                 cp pcap \"$1\"; exit $code";
    let inner = format!("{}; exit 7", upload(port));
    let output = on_a_small_disk(outer, &[pcap.path(), stats.path(), &inner]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert_eq!(server.join().unwrap(), [BULK]);
    assert_eq!(said.matches("the capture ends here").count(), 1, "{said}");
    assert!(capture_lost(&stats) > 10);
    let bytes = fs::read(&pcap.0).unwrap();
    let mut rest = &bytes[..];
    let mut frames = 0;
    while !rest.is_empty() {
        frames += usize::from(is_packet(rest));
        let len = block_len(rest).expect("a whole head");
        rest = rest.get(len..).expect("a whole block");
    }
    assert!(frames > 3, "{frames}");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn stats_that_find_no_room_leave_the_commands_code_and_no_part_of_a_file() {
    let outer = "\"$0\" run --stats-file stats -- bash -c 'cat /dev/zero >filler; exit 9' 2>\"$1\"; \
                 code=$?; ls -A; exit $code";
    let stderr = TempFile::new("stderr");
    let output = on_a_small_disk(outer, &[stderr.path()]);
    let said = fs::read_to_string(&stderr.0).unwrap();
    assert_eq!(output.status.code(), Some(9), "{said}");
    assert_eq!(text(&output.stdout), "filler\n");
    assert!(said.contains("warn: --stats-file stats: No space left"), "{said}");
    // A disk that is full from the start.
    let output = skbudget(&["--stats-file", "/dev/full"]).args(["bash", "-c", "exit 9"]).output();
    assert_eq!(output.unwrap().status.code(), Some(9));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn stats_arrive_through_a_fifo() {
    let fifo = fifo("stats");
    let mut reader = OpenOptions::new();
    let mut reader = reader.read(true).custom_flags(libc::O_NONBLOCK).open(&fifo.0).unwrap();
    succeed(&script(&["--stats-file", fifo.path()], "true"));
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert!(said.contains("skbudget.stats/1") && said.ends_with("}\n"), "{said}");
}

fn capture_lost(stats: &TempFile) -> u64 {
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&stats.0).unwrap()).unwrap();
    json["containers"][0]["counters"]["CaptureLost"].as_u64().unwrap()
}
