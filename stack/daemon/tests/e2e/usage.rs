//! Errors of the caller are reported before anything is set up. Needs no privileges.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use crate::support::{BINARY, TempFile, skbudget, text};

fn run(options: &[&str], command: &[&str]) -> Output {
    skbudget(options).args(command).output().unwrap()
}

#[track_caller]
fn refused(output: &Output, code: i32, expected: &[&str]) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in expected {
        assert!(said.contains(word), "{word:?} in {said}");
    }
}

#[test]
fn unknown_option_is_usage() {
    refused(&run(&["--bogus"], &["true"]), 2, &["--bogus"]);
    let output = Command::new(BINARY).arg("bogus").output().unwrap();
    refused(&output, 2, &["bogus"]);
}

#[test]
fn limits_out_of_order_name_the_key() {
    refused(&run(&["--hard", "8MiB", "--soft", "8MiB"], &["true"]), 2, &["--soft", "low", "8MiB"]);
    refused(&run(&["--soft", "8MiB", "--low", "9MiB"], &["true"]), 2, &["--low", "9MiB"]);
}

#[test]
fn hard_too_small_names_the_least() {
    refused(&run(&["--hard", "64KiB"], &["true"]), 2, &["--hard", "64KiB", "at least"]);
}

#[test]
fn options_among_containers_name_the_daemon_that_has_several() {
    refused(&run(&["--min", "1MiB"], &["true"]), 2, &["--min", "skbudget serve"]);
    refused(&run(&["--isolation", "shared"], &["true"]), 2, &["--isolation", "skbudget serve"]);
}

#[test]
fn mtu_out_of_range() {
    refused(&run(&["--mtu", "67"], &["true"]), 2, &["--mtu", "68..=65521"]);
    refused(&run(&["--mtu", "65522"], &["true"]), 2, &["--mtu", "68..=65521"]);
}

#[test]
fn ports_that_cannot_be_told_apart_or_counted_are_refused_clearly() {
    let twice = run(&["-p", "53:53/udp", "-p", "54:53/udp"], &["true"]);
    refused(&twice, 2, &["--publish", "both lead to port 53"]);
    refused(&run(&["-p", "80-82:90-91"], &["true"]), 2, &["--publish", "as many of both"]);
}

#[test]
fn a_command_that_is_not_there_is_127() {
    refused(&run(&[], &["no-such-command"]), 127, &["no-such-command"]);
    refused(&run(&[], &["/no/such/command"]), 127, &["/no/such/command"]);
}

#[test]
fn a_command_that_is_not_executable_is_126() {
    let file = TempFile::new("not-executable");
    fs::write(&file.0, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&file.0, Permissions::from_mode(0o644)).unwrap();
    refused(&run(&[], &[file.path()]), 126, &[file.path(), "executable"]);
    refused(&run(&[], &["/etc"]), 126, &["/etc"]);
}

#[test]
fn version_and_help() {
    let output = Command::new(BINARY).arg("--version").output().unwrap();
    assert!(output.status.success());
    assert!(text(&output.stdout).starts_with("skbudget "));
    let help = Command::new(BINARY).args(["run", "--help"]).output().unwrap();
    assert!(help.status.success());
    assert!(text(&help.stdout).contains("every flow that is open"));
}

#[test]
fn the_inner_processes_are_not_for_people() {
    let output = Command::new(BINARY).args(["__sandbox", "9", "{}"]).output().unwrap();
    refused(&output, 1, &["__sandbox"]);
}
