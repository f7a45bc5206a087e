//! Peers that vanish: keep-alive probes of the container's kernel detect them, and only them.

use std::process::Command;

use crate::support::{BINARY, succeed};

/// The program in the container: opens or accepts a connection for each address, with keep-alive every second and three
/// probes, and prints how each ends. Arguments: `connect ADDRESS PORT` or `accept PORT`.
const INSIDE: &str = "
import socket, sys, threading
def say(*words):
    sys.stdout.write(' '.join(words) + '\\n')
def watch(name, c):
    for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3)):
        c.setsockopt(socket.IPPROTO_TCP, option, value)
    c.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    c.sendall(b'hi')
    c.settimeout(9)
    try:
        said = c.recv(1)
        say(name, 'ended' if not said else 'read')
    except TimeoutError as e:
        say(name, 'gone' if e.errno else 'there')
    except OSError as e:
        say(name, type(e).__name__)
threads = []
for spec in sys.argv[1:]:
    kind, name, address, port = spec.split(',')
    if kind == 'connect':
        c = socket.create_connection((address, int(port)))
    else:
        s = socket.create_server((address, int(port)), family=socket.AF_INET6 if ':' in address else socket.AF_INET)
        print('listening', flush=True)
        c = s.accept()[0]
    threads.append(threading.Thread(target=watch, args=(name, c)))
    threads[-1].start()
for t in threads:
    t.join()
";

/// The program outside, in a network namespace of its own: peers at addresses that are removed while the connections
/// are idle, and at addresses that stay.
const OUTSIDE: &str = "
import socket, subprocess, sys, threading, time
binary, inside = sys.argv[1:3]
def ip(*words): subprocess.run(('ip',) + words, check=True)
ip('link', 'set', 'lo', 'up')
addresses = {'gone4': '198.51.100.1', 'gone6': '2001:db8::1', 'there4': '198.51.100.2', 'there6': '2001:db8::2'}
for address in addresses.values(): ip('addr', 'add', address, 'dev', 'lo')
held, specs = [], []
for name, address in addresses.items():
    s = socket.create_server((address, 0), family=socket.AF_INET6 if ':' in address else socket.AF_INET)
    held.append(s)
    specs.append(f'connect,to-{name},{address},{s.getsockname()[1]}')
    def accept(s=s): held.append(s.accept()[0]); held[-1].recv(2)
    threading.Thread(target=accept, daemon=True).start()
options = []
for i, (name, address) in enumerate(addresses.items()):
    any = '::' if ':' in address else '0.0.0.0'
    options += ['-p', f'[{address}]:{7000 + i}:{80 + i}' if ':' in address else f'{address}:{7000 + i}:{80 + i}']
    specs.append(f'accept,from-{name},{any},{80 + i}')
command = [binary, 'run', *options, '--', 'python3', '-c', inside, *specs]
job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
for i, address in enumerate(addresses.values()):
    assert job.stdout.readline() == 'listening\\n'
    # The client's own address is the one that goes away or stays.
    held.append(socket.create_connection((address, 7000 + i), source_address=(address, 0)))
    held[-1].recv(2)
time.sleep(0.3)
for name, address in addresses.items():
    if name.startswith('gone'): ip('addr', 'del', address, 'dev', 'lo')
print(job.stdout.read(), end='')
sys.exit(job.wait())
";

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn peers_that_vanished_time_out_and_idle_ones_do_not() {
    let output =
        Command::new("unshare").args(["--net", "python3", "-c", OUTSIDE, BINARY, INSIDE]).output();
    let said = succeed(&output.unwrap());
    let mut lines: Vec<&str> = said.lines().collect();
    lines.sort_unstable();
    let expected = [
        "from-gone4 gone",
        "from-gone6 gone",
        "from-there4 there",
        "from-there6 there",
        "to-gone4 gone",
        "to-gone6 gone",
        "to-there4 there",
        "to-there6 there",
    ];
    assert_eq!(lines, expected);
}

/// A connection out of the container to a peer that vanishes after the container has turned keep-alive off. Prints how
/// many keep-alive probes the host sends in the five seconds that follow.
const TURNED_OFF: &str = "
import socket, subprocess, sys, time
def ip(*words): subprocess.run(('ip',) + words, check=True)
def probes():
    names, values = [line.split() for line in open('/proc/net/netstat') if line.startswith('TcpExt:')]
    return int(values[names.index('TCPKeepAlive')])
ip('link', 'set', 'lo', 'up')
ip('addr', 'add', '198.51.100.1', 'dev', 'lo')
s = socket.create_server(('198.51.100.1', 7000))
inside = sys.argv[2]
job = subprocess.Popen([sys.argv[1], 'run', '--', 'python3', '-c', inside], stdout=subprocess.PIPE, text=True)
peer = s.accept()[0]
assert job.stdout.readline() == 'off\\n'
seen = probes()
ip('addr', 'del', '198.51.100.1', 'dev', 'lo')
time.sleep(5)
print(seen, probes() - seen, job.poll())
job.terminate()
job.wait()
";

/// The program in the container of `TURNED_OFF`: one probe a second, then none.
const ON_AND_OFF: &str = "
import socket, time
c = socket.create_connection(('198.51.100.1', 7000))
for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL): c.setsockopt(socket.IPPROTO_TCP, option, 1)
c.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
time.sleep(4.5)
c.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
print('off', flush=True)
c.recv(1)
";

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_host_does_not_go_on_with_a_keep_alive_that_the_container_has_turned_off() {
    let mut command = Command::new("unshare");
    command.args(["--net", "python3", "-c", TURNED_OFF, BINARY, ON_AND_OFF]);
    let said = succeed(&command.output().unwrap());
    let numbers: Vec<&str> = said.split_whitespace().collect();
    let [before, after, "None"] = numbers[..] else { panic!("{said}") };
    // One may follow the last answer of the peer. A second one would be the first of 127, after which the kernel ends
    // the connection.
    let (before, after): (u32, u32) = (before.parse().unwrap(), after.parse().unwrap());
    assert!(before >= 2 && after <= 1, "{said}");
}
