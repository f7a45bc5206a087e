//! Runs as an unprivileged user. The machine's tun node is not changed: a private mount namespace has one that this
//! user may open.

use std::process::{Command, Output, Stdio};

use crate::support::{BINARY, TempFile, echo, process_with, serve, succeed, text, unique};

const USER: &str = "65534";

/// A copy of the program that unprivileged users can execute: they may have no access to the build folder.
#[derive(Debug)]
pub(crate) struct UsersCopy {
    binary: TempFile,
    node: TempFile,
}

pub(crate) fn copy_for_users() -> UsersCopy {
    let copy =
        UsersCopy { binary: TempFile::new("skbudget-copy"), node: TempFile::new("tun-node") };
    std::fs::copy(BINARY, &copy.binary.0).unwrap();
    copy
}

impl UsersCopy {
    /// Runs `skbudget ARGS` as an unprivileged user with access to the tun node.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.prepared("666", "\"$@\"");
        command.arg("-").args(args);
        command
    }

    /// `args` are in shell syntax.
    fn prepared(&self, mode: &str, args: &str) -> Command {
        let script = format!(
            "set -e; mknod -m {mode} {node} c 10 200; mount --bind {node} /dev/net/tun; \
             exec setpriv --reuid={USER} --regid={USER} --clear-groups {binary} {args}",
            node = self.node.path(),
            binary = self.binary.path(),
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "bash", "-c", &script]).stdin(Stdio::null());
        command
    }
}

/// Runs `skbudget run ARGS` as an unprivileged user, with or without access to a tun node.
pub(crate) fn as_user(access: bool, args: &str) -> Output {
    let mode = if access { "666" } else { "600" };
    copy_for_users().prepared(mode, &format!("run {args}")).output().unwrap()
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_user_with_access_to_tun_is_root_in_the_container() {
    let output = as_user(true, "-- bash -c 'id -u; ip addr show tap0; ls /proc | grep -c ^[0-9]'");
    let said = succeed(&output);
    assert!(said.starts_with("0\n"), "{said}");
    assert!(said.contains("10.0.2.100/24"), "{said}");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_user_reaches_the_hosts_loopback() {
    let (port, server) = serve(1, echo);
    let args = format!(
        "-- bash -c 'exec 3<>/dev/tcp/10.0.2.2/{port}; echo hello >&3; head -n1 <&3; exec 3>&-'"
    );
    assert_eq!(succeed(&as_user(true, &args)), "hello\n");
    assert_eq!(server.join().unwrap(), [6]);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_user_without_access_gets_a_message_that_helps() {
    let output = as_user(false, "-- true");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{said}");
    for expected in ["/dev/net/tun", "not root", "run as root"] {
        assert!(said.contains(expected), "{expected:?} in {said}");
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn nothing_of_a_user_stays_either() {
    let marker = unique("88888.");
    let args = format!("-- bash -c '(exec -a {marker} sleep 1000 &); exit 4'");
    assert_eq!(as_user(true, &args).status.code(), Some(4));
    assert!(!process_with(&marker));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_users_command_cannot_type_into_the_terminal_and_ends_by_any_signal() {
    let file = TempFile::new("types");
    std::fs::write(&file.0, crate::terminal::TYPES).unwrap();
    let output = as_user(true, &format!("-- python3 {}", file.path()));
    assert_eq!(succeed(&output), "1\n1\n1\n");
    let output =
        as_user(true, "-- bash -c '(bash -c \"kill -RTMIN \\$\\$\" &); sleep 0.3; kill -RTMAX $$'");
    assert_eq!(output.status.code(), Some(128 + 64), "{}", text(&output.stderr));
}
