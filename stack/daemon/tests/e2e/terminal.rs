//! A terminal shared by the caller and the command.

use std::io::Write;
use std::net::TcpListener;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::support::{BINARY, TempFile, process_with, skbudget, succeed, text, unique, until};
use skbudget_testbed::pty::Session;

const OUTER: &[(&str, &str)] = &[("PS1", "outer> "), ("TERM", "dumb"), ("INNER", "inner> ")];

/// An interactive shell that shows its prompt.
fn shell() -> Session {
    let mut session = Session::start(&["bash", "--norc", "--noediting", "-i"], OUTER);
    session.expect("outer> ");
    session
}

/// A command that runs until it is killed.
fn sleeper(marker: &str) -> String {
    format!("echo star\"ted\"; exec -a {marker} sleep 1000")
}

fn prompts_until(session: &mut Session, text: &str) {
    while !session.shown().contains(text) {
        session.type_in("sleep 0.1\n");
        session.expect("outer> ");
    }
}

fn inner_shell() -> String {
    format!("PS1=$INNER {BINARY} run -- bash --norc --noediting -i")
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_script_reads_the_terminal_after_an_interactive_shell_in_the_container() {
    // Without job control in the caller's shell, only skbudget returns the terminal.
    let script = format!("{}; read -t 20 line; echo \"read: $line\"", inner_shell());
    let mut session = Session::start(&["bash", "--norc", "-c", &script], OUTER);
    session.expect("inner> ");
    session.type_in("exit\n");
    session.expect("exit");
    session.type_in("something\n");
    session.expect("read: something");
    assert!(session.wait().success());
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_script_reads_the_terminal_after_a_shell_that_was_killed() {
    let script = format!("{}; echo code $?; read -t 20 line; echo \"read: $line\"", inner_shell());
    let mut session = Session::start(&["bash", "--norc", "-c", &script], OUTER);
    session.expect("inner> ");
    session.type_in("kill -KILL $$\n");
    session.expect("code 137");
    session.type_in("something\n");
    session.expect("read: something");
    assert!(session.wait().success());
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn ctrl_c_ends_the_wait_for_what_an_inner_shell_sent_last() {
    // The kernel accepts for it, and no process reads.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let script = format!("{}; echo code-$?", inner_shell());
    let mut session = Session::start(&["bash", "--norc", "-c", &script], OUTER);
    session.expect("inner> ");
    session.type_in(&format!("exec 3<>/dev/tcp/10.0.2.2/{port}; cat /dev/zero >&3 &\n"));
    session.expect("inner> ");
    // A Ctrl-C that is typed too early must not prevent the exit.
    session.type_in("trap '' INT; sleep 0.5; echo by\"e\"; exit 4\n");
    session.expect("bye");
    // Typed until the terminal is returned and the wait has ended.
    while !session.shown().contains("code-") {
        session.type_in("\u{3}");
        thread::sleep(Duration::from_millis(20));
    }
    session.expect("were not delivered");
    session.expect("code-4");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_command_that_stops_itself_leaves_a_prompt_and_goes_on_in_the_foreground() {
    for stop in ["kill -STOP $$", "kill -TSTP $$", "kill -TTIN 0"] {
        let mut session = shell();
        session.type_in(&format!("{BINARY} run -- bash -c '{stop}; echo went-\"on\"; exit 3'\n"));
        session.expect("Stopped");
        session.expect("outer> ");
        session.type_in("fg\n");
        session.expect("went-on");
        session.type_in("echo code-$?\n");
        session.expect("code-3");
        session.type_in("exit\n");
        session.wait();
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn an_inner_shell_suspends_and_has_the_terminal_again_afterwards() {
    let mut session = shell();
    session.type_in(&format!("{}\n", inner_shell()));
    session.expect("inner> ");
    for round in 0..2 {
        session.type_in("suspend\n");
        session.expect("Stopped");
        session.expect("outer> ");
        // Meanwhile the outer shell has the terminal.
        session.type_in(&format!("echo out-\"side\"-{round}\n"));
        session.expect(&format!("out-side-{round}"));
        session.type_in("fg\n");
        session.type_in(&format!("echo in-\"side\"-{round}\n"));
        session.expect(&format!("in-side-{round}"));
    }
    session.type_in("exit 4\n");
    session.expect("outer> ");
    session.type_in("echo code-$?\n");
    session.expect("code-4");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn ctrl_z_stops_all_and_ctrl_c_ends_all() {
    let mut session = shell();
    let marker = unique("stopped");
    session.type_in(&format!("{BINARY} run -- bash -c '{}'\n", sleeper(&marker)));
    session.expect("started");
    session.type_in("\u{1a}");
    session.expect("Stopped");
    session.expect("outer> ");
    session.type_in("bg\n");
    session.expect("outer> ");
    session.type_in("jobs -r\n");
    session.expect("Running");
    session.expect("outer> ");
    session.type_in("fg\n");
    session.expect("run -- bash");
    session.type_in("\u{3}");
    session.expect("outer> ");
    session.type_in("echo code-$?\n");
    session.expect("code-130");
    until(|| !process_with(&marker));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_run_in_the_background_takes_no_terminal_from_anybody() {
    let mut session = shell();
    session.type_in(&format!("{BINARY} run -- bash -c 'read line; echo never' &\n"));
    // A read from the background stops it, as any command. The shell reports that before its next prompt.
    prompts_until(&mut session, "Stopped");
    session.type_in("kill -KILL %1\n");
    prompts_until(&mut session, "Killed");
    session.type_in("echo still-\"here\"\n");
    session.expect("still-here");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_commands_of_a_session_leader_end_with_its_terminal() {
    let marker = unique("hung-up");
    let mut session = Session::start(&[BINARY, "run", "--", "bash", "-c", &sleeper(&marker)], &[]);
    session.expect("started");
    session.hang_up();
    assert_eq!(session.wait().code(), Some(128 + 1));
    until(|| !process_with(&marker));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_commands_of_a_shell_end_with_its_terminal() {
    let marker = unique("hung-up");
    let mut session = shell();
    session.type_in(&format!("{BINARY} run -- bash -c '{}'\n", sleeper(&marker)));
    session.expect("started");
    session.hang_up();
    session.wait();
    until(|| !process_with(&marker));
}

/// Prints the error of each request: 1 is EPERM.
pub(crate) const TYPES: &str = "import fcntl
for request, argument in ((0x5412, b'x'), (0x541C, b'\\x02' + bytes(15)), (0x10000005412, b'x')):
    try:
        fcntl.ioctl(0, request & 0xffffffff, argument)
        print('typed')
    except OSError as e:
        print(e.errno)
";

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_command_cannot_type_into_the_terminal() {
    let mut session = shell();
    let file = TempFile::new("types");
    std::fs::File::create(&file.0).unwrap().write_all(TYPES.as_bytes()).unwrap();
    for options in ["", "--cap-add NET_ADMIN"] {
        session.type_in(&format!(
            "{BINARY} run {options} -- python3 {}; echo do-\"ne\"\n",
            file.path()
        ));
        session.expect("do-ne");
    }
    let shown = session.shown();
    assert_eq!(shown.lines().filter(|line| line.trim() == "1").count(), 6, "{shown}");
    assert!(!shown.contains("typed"), "{shown}");
    // Nothing but these requests is refused: its own terminals work, and so do programs that gain privileges.
    let output = skbudget(&[])
        .args(["bash", "-c", "script -qc 'stty size' /dev/null; grep NoNewPrivs /proc/self/status"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = succeed(&output);
    assert!(said.contains("NoNewPrivs:\t0"), "{said} {}", text(&output.stderr));
}
