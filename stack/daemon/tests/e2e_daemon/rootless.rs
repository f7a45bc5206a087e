//! A daemon of an ordinary user, for the containers of that user.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::support::{BINARY, Netns, echo_server, text, unique};

const USER: &str = "65534";

/// What the user types. `BIN`: the program; `DIR`: a folder of the user; `PORT`: an echo server on the host's loopback;
/// `OTHER`: a namespace of root.
const SCRIPT: &str = r#"
set -e
export SKBUDGET_SOCKET=$DIR/run/skbudget.sock
$BIN serve & daemon=$!
until $BIN ls >/dev/null 2>&1; do kill -0 $daemon; sleep 0.02; done
unshare --user --map-root-user --net sleep 1000 & box=$!
until [ "$(readlink /proc/$box/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.02; done
$BIN attach box --pid $box --hard 16MiB
inside() { nsenter --target $box --user --net --preserve-credentials "$@"; }
inside ip -o addr show eth0 | grep -o 'inet 10.213[0-9./]*'
inside bash -c "exec 3<>/dev/tcp/10.213.0.2/$PORT; echo hello >&3; head -n1 <&3"
relay=$(pgrep -P $daemon -f __serve_relay)
grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/$relay/status
$BIN attach other --netns $OTHER 2>&1 | grep -o 'of its own user only' || true
kill -9 $relay
until [ -n "$(pgrep -P $daemon -f __serve_relay)" ] && $BIN ls >/dev/null 2>&1; do sleep 0.02; done
$BIN detach box
inside ip -o link show eth0 2>&1 | grep -o 'does not exist'
$BIN attach box --pid $box
kill $box
until [ -z "$($BIN ls --json | grep box)" ]; do sleep 0.02; done
kill -TERM $daemon
wait $daemon
ls $DIR/run
"#;

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_users_daemon_serves_the_containers_of_that_user() {
    let other = Netns::new();
    let folder = std::env::temp_dir().join(unique("user-"));
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    // The build folder may be closed to users.
    let (binary, node) = (folder.join("skbudget"), folder.join("tun"));
    fs::copy(BINARY, &binary).unwrap();
    let (port, server) = echo_server(1);
    // The machine's tun node is not changed: a private mount namespace has one that the user may open.
    let line = format!(
        "set -e; mknod -m 666 {node} c 10 200; mount --bind {node} /dev/net/tun; \
         exec setpriv --reuid={USER} --regid={USER} --clear-groups bash -c \"$SCRIPT\"",
        node = node.display(),
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c", &line]).stdin(Stdio::null());
    command.env("SCRIPT", SCRIPT).env("BIN", &binary).env("DIR", &folder);
    command.env("PORT", port.to_string()).env("OTHER", other.path());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    server.join().unwrap();
    let expected = "inet 10.213.0.4/16\nhello\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n\
                    of its own user only\ndoes not exist\n";
    assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
    fs::remove_dir_all(&folder).unwrap();
}
