//! What the command may do, and what it can reach: only its own namespaces, whatever it tries.

use std::fs;
use std::process::{Command, Output};

use crate::rootless::as_user;
use crate::support::{
    BINARY, Running, TempFile, netns_in_use, process_with, script, skbudget, succeed, text, unique,
    until,
};

/// Privileges with which each escape is tried.
const PRIVILEGES: [&[&str]; 3] = [
    &[],
    &["--cap-add", "NET_ADMIN", "--cap-add", "SYS_ADMIN", "--cap-add", "CAP_SYS_PTRACE"],
    &["--privileged"],
];

/// Tries every way to trace process 1, and to stop it.
const TRACE_INIT: &str = "
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
ATTACH, SEIZE = 16, 0x4206
for request in (ATTACH, SEIZE):
    ctypes.set_errno(0)
    print(libc.ptrace(request, 1, 0, 0), ctypes.get_errno())
class Part(ctypes.Structure):
    _fields_ = [('at', ctypes.c_void_p), ('len', ctypes.c_size_t)]
byte = ctypes.create_string_buffer(1)
part = Part(ctypes.addressof(byte), 1)
print(libc.process_vm_writev(1, ctypes.byref(part), 1, ctypes.byref(part), 1, 0), ctypes.get_errno())
for path in ('mem', 'environ', 'ns/net', 'ns/user', 'root/etc/passwd', 'cwd', 'fd/0', 'exe'):
    try:
        open('/proc/1/' + path, 'rb').read(1)
        print('open', path)
    except PermissionError:
        pass
os.kill(1, signal.SIGSTOP)
os.kill(1, signal.SIGKILL)
";

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_command_has_dockers_capabilities_and_none_over_its_network() {
    let look = "grep CapEff /proc/self/status; ip link set tap0 txqueuelen 9000; \
                ip addr add 10.0.2.101/24 dev tap0; python3 -c 'import socket as s; s.socket(s.AF_PACKET, s.SOCK_RAW)'; \
                echo 0 > /proc/sys/net/ipv4/tcp_sack; cat /proc/sys/net/ipv4/tcp_sack; \
                echo 1 > /proc/sys/vm/drop_caches; echo done";
    let output = script(&["--hard", "16MiB"], look);
    assert_eq!(succeed(&output), "CapEff:\t00000000a80425fb\n0\ndone\n");
    let said = text(&output.stderr);
    assert_eq!(said.matches("not permitted").count(), 3, "{said}");
    assert_eq!(said.matches("Read-only").count(), 1, "{said}");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn low_ports_and_pings_need_no_capability() {
    let look = "
import socket
for family in (socket.AF_INET, socket.AF_INET6):
    s = socket.socket(family)
    s.bind(('', 80))
    s.listen()
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
s.sendto(b'\\x08' + bytes(15), ('10.0.2.2', 0))
print(s.recv(100)[0])
";
    let output = skbudget(&[]).args(["python3", "-c", look]).output().unwrap();
    assert_eq!(succeed(&output), "0\n");
    // The same for the other users of the container.
    let output = skbudget(&[])
        .args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["/usr/bin/python3", "-c", look])
        .output()
        .unwrap();
    assert_eq!(succeed(&output), "0\n");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn requested_capabilities_hold_over_the_containers_network() {
    let change = "ip addr add 10.0.2.101/24 dev tap0 && echo 0 > /proc/sys/net/ipv4/tcp_sack && \
                  grep CapBnd /proc/self/status; echo 1 > /proc/sys/vm/drop_caches";
    let output = script(&["--cap-add", "cap_net_admin"], change);
    assert!(text(&output.stdout).contains("CapBnd:\t00000000a80435fb"), "{output:?}");
    assert!(text(&output.stderr).contains("Read-only"), "{output:?}");
    let raw = "python3 -c 'import socket as s; s.socket(s.AF_PACKET, s.SOCK_RAW)'";
    succeed(&script(&["--cap-add", "NET_RAW"], raw));
    assert!(!script(&["--cap-add", "NET_RAW"], change).status.success());
    succeed(&script(&["--privileged"], "ip link add d0 type veth && mount -t tmpfs none /mnt"));
}

#[test]
fn a_capability_that_does_not_exist_is_refused_with_those_that_do() {
    let output = script(&["--cap-add", "NET_ADMINS"], "true");
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(said.contains("--cap-add") && said.contains("NET_ADMIN"), "{said}");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn no_way_leads_into_the_hosts_namespaces() {
    // A second mount of the host's /proc, as a chroot has: the container must be safe with it, too.
    let other = TempFile::new("other-proc");
    fs::create_dir(&other.0).unwrap();
    let tries = "
for proc in /proc OTHER; do for pid in 1 PARENT; do
    for kind in net mnt user; do nsenter --$kind=$proc/$pid/ns/$kind true && echo \"in $proc $pid $kind\"; done
    nsenter -t $pid -a true && echo in all
    cat $proc/$pid/environ $proc/$pid/maps && echo looked into $proc/$pid
done; done
umount /proc; umount -l /proc; umount -l /sys; umount -l /proc/sys
unshare -m sh -c 'umount /proc'; unshare -Urm sh -c 'umount /proc'
[ -e /proc/PARENT/ns ] && echo revealed
readlink /proc/self/ns/net
exit 0";
    for options in PRIVILEGES {
        let (other, options) = (other.path(), options.join(" "));
        let tries = tries.replace("OTHER", other);
        let line = format!(
            "mount --rbind /proc {other}; P=$$; TRIES='{}'\n\
             {BINARY} run {options} -- bash -c \"${{TRIES//PARENT/$P}}\"",
            tries.replace('\'', r"'\''"),
        );
        let output = Command::new("unshare").args(["-m", "bash", "-c", &line]).output().unwrap();
        let said = succeed(&output);
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        assert!(said.starts_with("net:[") && said.lines().count() == 1, "{options}: {said}");
        assert_ne!(said.trim(), own.to_str().unwrap(), "{options}");
    }
    fs::remove_dir(&other.0).unwrap();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn process_1_cannot_be_traced_or_stopped() {
    let expected = "-1 1\n".repeat(3);
    for options in PRIVILEGES {
        let output = skbudget(options).args(["python3", "-c", TRACE_INIT]).output().unwrap();
        assert_eq!(succeed(&output), expected, "{options:?}");
    }
    let script = TempFile::new("trace");
    fs::write(&script.0, TRACE_INIT).unwrap();
    let args = format!("--privileged -- /usr/bin/python3 {}", script.path());
    assert_eq!(succeed(&as_user(true, &args)), expected);
}

/// The end of the run does not depend on what the command did before.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn sigkill_ends_what_hides_in_sessions_and_namespaces() {
    let hide = [
        "setsid -f sleep MARK",
        "unshare -Urpf --kill-child sleep MARK &",
        "unshare -Urpmf setsid sleep MARK &",
        "(setsid sh -c 'trap \"\" HUP TERM INT; sleep MARK & wait' &)",
        "kill -STOP 1; sleep MARK &",
    ];
    for options in [&[][..], &["--privileged"]] {
        for way in hide {
            let marker = unique("66666.").replace('-', "");
            let line = way.replace("MARK", &marker);
            let line = format!("{line}\nsleep 0.2; readlink /proc/self/ns/net; sleep 1000");
            let mut running = Running::start(options, &line);
            assert!(process_with(&marker), "{way}");
            running.signal("KILL");
            running.wait();
            until(|| !process_with(&marker) && !netns_in_use(&running.line));
        }
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn sys_shows_the_containers_devices_and_is_read_only() {
    for options in [&[][..], &["--cap-add", "NET_ADMIN"], &["--privileged"]] {
        let look = "ls /sys/class/net; ls /sys/fs/cgroup | wc -l; cat /sys/class/net/tap0/mtu; \
                    echo 1400 > /sys/class/net/tap0/mtu";
        let output = script(options, look);
        let groups = fs::read_dir("/sys/fs/cgroup").map_or(0, Iterator::count);
        assert_eq!(text(&output.stdout), format!("lo\ntap0\n{groups}\n65520\n"), "{options:?}");
        assert!(text(&output.stderr).contains("Read-only"), "{output:?}");
    }
}

/// In a cgroup that the command freezes, process 1 would outlive skbudget.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_command_moves_no_process_to_another_cgroup() {
    // A hierarchy may be mounted anywhere.
    let look = "findmnt -nlo TARGET -t cgroup,cgroup2 | while read -r d; do \
                    mkdir \"$d\"/skbudget-test && echo made; echo 1 > \"$d\"/cgroup.procs && echo moved; \
                    mount -o remount,bind,rw \"$d\" && echo mounted; \
                done; true";
    let at = TempFile::new("cgroup at another place");
    let around = "mkdir \"$1\"; mount --bind $(findmnt -nlo TARGET -t cgroup,cgroup2 | tail -1) \"$1\"; \
                  \"$0\" run $2 -- bash -c \"$3\"; code=$?; umount \"$1\"; rmdir \"$1\"; exit $code";
    for options in ["", "--cap-add SYS_ADMIN", "--privileged"] {
        let mut outer = Command::new("unshare");
        outer.args(["--mount", "bash", "-c", around, BINARY, at.path(), options, look]);
        let output = outer.output().unwrap();
        assert_eq!(succeed(&output), "", "{options:?}: {output:?}");
    }
}

/// The owner of a cgroup namespace may mount hierarchies, writable. No user namespace within the container can own one.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_command_mounts_no_cgroup_hierarchy() {
    let look = "mkdir -p $0; try() { \"$@\" 2>/dev/null && echo \"$*\"; }
mounts='for type in freezer memory pids; do mount -t cgroup -o $type none $0 && echo $type; done
mount -t cgroup2 none $0 && echo cgroup2'
try bash -c \"$mounts\" $0; try unshare -C true
try unshare -UrCm bash -c \"$mounts\" $0; try unshare -Urm bash -c \"$mounts\" $0
try unshare -Urm unshare -UrCm true; unshare -Urm echo other namespaces are allowed; rmdir $0";
    for options in [&[][..], &["--cap-add", "SYS_ADMIN"], &["--privileged"]] {
        let at = TempFile::new("cgroup");
        let output = skbudget(options).args(["bash", "-c", look, at.path()]).output().unwrap();
        let expected = "other namespaces are allowed\n";
        assert_eq!(succeed(&output), expected, "{options:?}: {output:?}");
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn users_and_files_are_those_of_the_caller() {
    let file = TempFile::new("owned");
    let line = format!(
        "id -u; setpriv --reuid=65534 --regid=65534 --clear-groups id -u; touch {0}; chown 65534:12345 {0}; \
         cat /proc/self/uid_map | wc -l",
        file.path()
    );
    assert_eq!(succeed(&script(&[], &line)), "0\n65534\n1\n");
    let look = Command::new("stat").args(["-c", "%u:%g", file.path()]).output().unwrap();
    assert_eq!(succeed(&look), "65534:12345\n");
    let groups = Command::new("setpriv")
        .args(["--groups", "7,9", BINARY, "run", "--", "id", "-G"])
        .output()
        .unwrap();
    assert_eq!(succeed(&groups), "0 7 9\n");
}

/// Runs in an outer user namespace, which has its own limit of user namespaces.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn root_without_user_namespaces_runs_with_less_or_not_at_all() {
    let run = |options: &str| -> Output {
        let look = "grep CapEff /proc/self/status; umount /proc; ip link set tap0 mtu 1000";
        let line = format!(
            "echo 0 > /proc/sys/user/max_user_namespaces; {BINARY} run {options} -- sh -c '{look}; exit 3'"
        );
        Command::new("unshare").args(["-Ur", "bash", "-c", &line]).output().unwrap()
    };
    let output = run("");
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!((output.status.code(), &*out), (Some(3), "CapEff:\t00000000a80425fb\n"), "{said}");
    assert!(said.contains("no user namespace") && said.contains("not permitted"), "{said}");
    for options in ["--cap-add NET_ADMIN", "--privileged"] {
        let output = run(options);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(text(&output.stderr).contains("user namespace"), "{output:?}");
    }
}

/// sd_listen_fds(3) in the command: LISTEN_PID is its own pid, and the descriptor is a listening socket.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn descriptors_that_were_announced_are_announced_to_the_command() {
    let look = "
import os, socket
mine = os.environ.get('LISTEN_PID') == str(os.getpid())
print(mine, os.environ.get('LISTEN_FDS'), os.environ.get('LISTEN_FDNAMES'))
if mine: print(socket.socket(fileno=3).getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
";
    let caller = "
import os, socket, sys
s = socket.create_server(('127.0.0.1', 0))
if s.fileno() != 3: os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
pid = os.getpid() if sys.argv[1] == 'ours' else 1
os.environ.update(LISTEN_PID=str(pid), LISTEN_FDS='1', LISTEN_FDNAMES='web')
os.execv(sys.argv[2], [sys.argv[2], 'run', '--', 'python3', '-c', sys.argv[3]])
";
    for (whose, expected) in [("ours", "True 1 web\n1\n"), ("others", "False None None\n")] {
        let output = Command::new("python3").args(["-c", caller, whose, BINARY, look]).output();
        assert_eq!(succeed(&output.unwrap()), expected);
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn default_names_do_not_collide_across_pid_namespaces() {
    let line = format!("{BINARY} run -- sh -c 'echo ready; cat'");
    let start = || {
        let mut command = Command::new("unshare");
        command.args(["-pf", "--kill-child", "--mount-proc", "bash", "-c", &line]);
        Running::spawn(command.stdin(std::process::Stdio::piped()))
    };
    let mut both = [start(), start()];
    for running in &mut both {
        assert_eq!(running.line, "ready");
        drop(running.child.stdin.take());
        assert!(running.wait().success());
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn no_other_user_can_take_a_name() {
    let name = unique("web");
    let line = format!(
        "import socket\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.bind('\\0skbudget/0/{name}')\n\
         print('bound', flush=True)\ninput()"
    );
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c"]);
    let other = Running::spawn(command.arg(&line).stdin(std::process::Stdio::piped()));
    assert_eq!(other.line, "bound");
    succeed(&script(&["--name", &name], "true"));
    assert!(!std::path::Path::new("/run/skbudget").join(format!("{name}.lock")).exists());
}
