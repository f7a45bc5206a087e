//! Connections that end with a reset, before everything was read, or after the command: the same bytes arrive as
//! without a relay in between.

use std::process::{Command, Output};

use crate::support::{BINARY, succeed, text};

/// Code of both ends. `ended` reads to the end and returns the number of bytes and how the stream ended.
const COMMON: &str = "
import errno, fcntl, os, signal, socket, struct, subprocess, sys, termios, threading, time
def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.close()
def outq(s): return struct.unpack('i', fcntl.ioctl(s.fileno(), termios.TIOCOUTQ, b'0000'))[0]
def acknowledged(s):
    while outq(s): time.sleep(0.002)
def ended(s):
    n = 0
    try:
        while data := s.recv(65536): n += len(data)
        return f'{n} end'
    except OSError as e: return f'{n} {errno.errorcode[e.errno]}'
def listen(address, port, serve, rcvbuf=0):
    l = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET)
    l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if rcvbuf: l.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    l.bind((address, port)); l.listen(100)
    def accept():
        while True: threading.Thread(target=serve, args=(l.accept()[0],), daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()
# A reset that comes before connect(2) returned is its error, so all of them wait a little.
def banner(s): time.sleep(0.05); s.sendall(b'too many connections'); reset(s)
def answer(s): time.sleep(0.05); s.sendall(b'a' * 60000); acknowledged(s); reset(s)
def end_then_reset(s):
    time.sleep(0.05); s.sendall(b'a' * 60000); s.shutdown(socket.SHUT_WR); acknowledged(s); time.sleep(0.1); reset(s)
def early(s): s.recv(10); s.sendall(b'a' * 5000); s.close()
servers = {9101: banner, 9102: answer, 9103: end_then_reset, 9104: early}
def connect(address, port): return socket.create_connection((address, port))
def patient(a, p): s = connect(a, p); time.sleep(0.3); return ended(s)
def eager(a, p): return ended(connect(a, p))
def writer(a, p):
    s = connect(a, p); time.sleep(0.3)
    try: s.send(b'more'); how = 'sent'
    except OSError as e: how = errno.errorcode[e.errno]
    return f'{how} {ended(s)}'
def post(a, p):
    s = connect(a, p)
    try: s.sendall(b'p' * 100000)
    except OSError: pass
    time.sleep(0.1)
    return ended(s).split()[0]
def all_of(clients, address, times):
    def one(port, client):
        for _ in range(times): print(f'{port} {client.__name__} {client(address, port)}\\n', end='')
    at_once = [threading.Thread(target=one, args=c) for c in clients]
    for thread in at_once: thread.start()
    for thread in at_once: thread.join()
clients = [(p, c) for p in (9101, 9102, 9103) for c in (patient, eager, writer)] + [(9104, post)]
";

/// Runs the scripts in a network namespace of their own, with the binary as the first argument.
fn outside(script: &str, inside: &str) -> Output {
    let script = format!(
        "{COMMON}\nsubprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)\n{script}"
    );
    let inside = format!("{COMMON}{inside}");
    Command::new("unshare")
        .args(["--net", "python3", "-c", &script, BINARY, &inside])
        .output()
        .unwrap()
}

#[track_caller]
fn agrees(output: &Output) {
    let said = succeed(output);
    assert!(said.ends_with("agrees\n"), "{said}{}", text(&output.stderr));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn an_answer_before_a_reset_arrives_as_without_a_relay() {
    agrees(&outside(
        "
for a in ('127.0.0.1', '::1'):
    for port, serve in servers.items(): listen(a, port, serve)
def run(prefix, address):
    out = subprocess.run([*prefix, 'python3', '-c', sys.argv[2], address], capture_output=True, text=True)
    assert out.returncode == 0 and not out.stderr, out
    return sorted(set(out.stdout.splitlines()))
for own, gateway in (('127.0.0.1', '10.0.2.2'), ('::1', 'fd00::2')):
    direct, relayed = run([], own), run([sys.argv[1], 'run', '--'], gateway)
    assert relayed == direct, (relayed, direct)
print('agrees')",
        "all_of(clients, sys.argv[1], 4)",
    ));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_last_words_before_a_reset_arrive_as_without_a_relay() {
    agrees(&outside(
        "
heard, lock = [], threading.Lock()
def slow(s):
    time.sleep(0.5); n = ended(s)
    with lock: heard.append(n)
for a in ('127.0.0.1', '::1'): listen(a, 9201, slow)
def run(prefix, address):
    heard.clear()
    subprocess.run([*prefix, 'python3', '-c', sys.argv[2], address], check=True)
    time.sleep(1)
    return sorted(heard)
for own, gateway in (('127.0.0.1', '10.0.2.2'), ('::1', 'fd00::2')):
    direct, relayed = run([], own), run([sys.argv[1], 'run', '--'], gateway)
    assert relayed == direct == ['50000 ECONNRESET'] * 5, (relayed, direct)
print('agrees')",
        "
for _ in range(5):
    s = connect(sys.argv[1], 9201); s.sendall(b'w' * 50000); acknowledged(s); reset(s)",
    ));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn published_ports_pass_resets_on_as_the_kernel_does_also_those_before_accept() {
    agrees(&outside(
        "
ports = sum([['-p', f'127.0.0.1:{p}:{p}'] for p in (*servers, 9301, 9302)], [])
pipe = subprocess.PIPE
command = [sys.argv[1], 'run', '--hard', '8MiB', *ports, '--', 'python3', '-c', sys.argv[2]]
out = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
assert out.stdout.readline() == 'listening\\n'
import io, contextlib
def results(address):
    with contextlib.redirect_stdout(io.StringIO()) as f: all_of([c for c in clients if c[1] is not eager], address, 3)
    return sorted(set(f.getvalue().splitlines()))
relayed = results('127.0.0.1')
# Health checks: nothing, or a request, and a reset at once; to a port that listens and to one that does not.
for _ in range(100):
    for port, words in ((9301, b''), (9301, b'GET'), (9302, b'')):
        s = connect('127.0.0.1', port)
        if words: s.sendall(words)
        reset(s)
time.sleep(1)
out.stdin.write('?\\n'); out.stdin.flush()
seen = out.stdout.readline()
for port, serve in servers.items(): listen('127.0.0.2', port, serve)
direct = results('127.0.0.2')
assert relayed == direct, (relayed, direct)
# A connection that ends before the container has answered it is not seen there, unless it brought something.
empty, words, left = seen.split()
assert int(empty) <= 100 and (words, left) == ('100', '0'), seen
out.stdin.close(); assert out.wait() == 0
print('agrees')",
        "
import collections
seen = collections.Counter()
listen('0.0.0.0', 9301, lambda s: seen.update([ended(s)]))
for port, serve in servers.items(): listen('0.0.0.0', port, serve)
print('listening', flush=True); sys.stdin.readline()
def established(): return subprocess.run(['ss', '-Htan', 'state', 'established'], capture_output=True, text=True).stdout
for _ in range(100):
    left = established()
    if seen['3 ECONNRESET'] >= 100 and not left: break
    time.sleep(0.1)
assert set(seen) <= {'0 ECONNRESET', '3 ECONNRESET'}, seen
print(seen['0 ECONNRESET'], seen['3 ECONNRESET'], len(left.splitlines()), flush=True)
sys.stdin.readline()",
    ));
}

/// Sends until a send would block for long, closes, prints the number of bytes sent, and exits with a code.
const SENDER: &str = "
for size in map(int, sys.argv[2:]):
    s = connect('10.0.2.2', 9401); s.settimeout(0.5); n = 0
    try:
        while n < size: n += s.send(b's' * min(size - n, 65536))
    except TimeoutError: pass
    print(n, flush=True); s.close()
sys.exit(int(sys.argv[1]))";

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn what_the_command_sent_is_delivered_after_its_end() {
    agrees(&outside(
        "
heard = []
def slow(s):
    time.sleep(4); heard.append(ended(s))
listen('127.0.0.1', 9401, slow, 8192)
for code in (0, 3):
    heard.clear()
    command = ['python3', '-c', sys.argv[2], str(code), '600000', '100', '600000']
    out = subprocess.run([sys.argv[1], 'run', '--', *command], capture_output=True, text=True)
    assert (out.returncode, out.stderr) == (code, ''), out
    time.sleep(0.3)
    sent = [f'{n} end' for n in out.stdout.split()]
    assert sorted(heard) == sorted(sent) and len(max(sent)) > 6, (heard, sent)
print('agrees')",
        SENDER,
    ));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_signal_ends_the_wait_and_lost_bytes_are_one_message_and_a_code() {
    agrees(&outside(
        "
held = []
listen('127.0.0.1', 9401, held.append, 8192)
def queues():
    out = subprocess.run(['ss', '-Htanm', 'dport', '=', '9401'], capture_output=True, text=True).stdout
    return out.count(',w') - out.count(',w0')
for code, end in ((0, signal.SIGTERM), (3, signal.SIGTERM), (0, signal.SIGINT), (0, signal.SIGKILL)):
    command = ['python3', '-c', sys.argv[2], str(code), '600000', '600000']
    pipe = subprocess.PIPE
    job = subprocess.Popen([sys.argv[1], 'run', '--', *command], stderr=pipe, stdout=pipe, text=True)
    for _ in range(2): job.stdout.readline()
    time.sleep(2)
    assert job.poll() is None and queues() > 0, 'it waits'
    job.send_signal(end)
    said = job.stderr.read().splitlines()
    job.wait()
    time.sleep(0.2)
    assert queues() == 0, 'no queue outlives it'
    if end == signal.SIGKILL: continue
    assert job.returncode == (code or 1), job.returncode
    assert len(said) == 1 and 'bytes' in said[0] and '2 connections' in said[0], said
print('agrees')",
        SENDER,
    ));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn nothing_is_waited_for_that_was_never_acknowledged() {
    agrees(&outside(
        "
silence = 'ip link add va type veth peer name vb; ip link set va up; ip link set vb up; ip addr add 192.0.2.1/24 dev va'
subprocess.run(silence + '; ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev va', shell=True, check=True)
listen('127.0.0.1', 9401, lambda s: (s.recv(1), time.sleep(99)))
began = time.time()
out = subprocess.run([sys.argv[1], 'run', '--', 'python3', '-c', sys.argv[2]], capture_output=True, text=True)
assert (out.returncode, out.stderr) == (0, ''), out
assert time.time() - began < 30, 'a connection that was not made holds nothing up'
print('agrees')",
        "
# One that nobody answers, and one that is delivered and whose receiver never ends.
s = socket.socket(); s.setblocking(False)
try: s.connect(('192.0.2.9', 80))
except BlockingIOError: pass
t = connect('10.0.2.2', 9401); t.send(b'x'); acknowledged(t); time.sleep(0.2)",
    ));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn no_queue_of_a_closed_connection_is_left_to_the_kernel() {
    agrees(&outside(
        "
import re
held = []
def warm(s):
    n = 0
    while n < 3 << 20: n += len(s.recv(65536))
    s.shutdown(socket.SHUT_WR); held.append(s)
listen('127.0.0.1', 9501, warm, 16384)
command = ['python3', '-c', sys.argv[2]]
pipe = subprocess.PIPE
run = [sys.argv[1], 'run', '--hard', '4MiB', '--', *command]
job = subprocess.Popen(run, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
assert job.stdout.readline() == 'closed\\n'
def queues():
    out = subprocess.run(['ss', '-HtmnpO', 'dport', '=', '9501'], capture_output=True, text=True).stdout
    sizes = [('users:' in line, int(re.search(r',w(\\d+)', line)[1])) for line in out.splitlines()]
    return sum(n for open, n in sizes if open), sum(n for open, n in sizes if not open)
for _ in range(20):
    open, closed = queues()
    assert 0 < open < 4 << 20 and closed == 0, (open, closed)
    time.sleep(0.1)
job.stdin.close(); time.sleep(0.5); job.send_signal(signal.SIGTERM)
assert job.wait() == 1 and ' bytes ' in job.stderr.read()
time.sleep(0.2)
assert queues() == (0, 0), queues()
print('agrees')",
        "
for _ in range(8):
    s = connect('10.0.2.2', 9501); s.sendall(b'w' * (3 << 20)); s.settimeout(0.5)
    try:
        for _ in range(20): s.sendall(b'x' * 20000)
    except TimeoutError: pass
    s.close()
print('closed', flush=True); sys.stdin.read()",
    ));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn bytes_that_are_lost_with_a_deleted_device_are_one_message_and_a_code() {
    agrees(&outside(
        "
import json, re, tempfile
heard, go = [], threading.Event()
def late(s): go.wait(); heard.append(ended(s))
listen('127.0.0.1', 9601, late, 65536); listen('127.0.0.1', 9602, ended)
for code in (0, 7):
    go.clear(); heard.clear(); stats = tempfile.NamedTemporaryFile()
    run = [sys.argv[1], 'run', '--cap-add', 'NET_ADMIN', '--stats-file', stats.name, '--']
    out = subprocess.run([*run, 'python3', '-c', sys.argv[2], str(code)], capture_output=True, text=True)
    go.set()
    while not heard: time.sleep(0.01)
    delivered, how = heard[0].split(); acknowledged = int(out.stdout)
    lost = re.findall(r'(\\d+) bytes that the command sent on 1 connections', out.stderr)
    assert out.returncode == (code or 1) and how == 'ECONNRESET', (out, how)
    assert len(lost) == 1 and int(delivered) + int(lost[0]) == acknowledged, (out, delivered)
    container, = json.load(open(stats.name))['containers']; stats.close()
    assert container['bytes_from_guest'] == acknowledged and container['flows'] == 0, container
    assert container['max_usage_bytes'] > int(lost[0]) and container['flows_total'] == 2, container
    assert container['counters']['OrphanBytesLost'] == int(lost[0]), container
print('agrees')",
        "
idle = connect('10.0.2.2', 9602)
s = connect('10.0.2.2', 9601); s.setblocking(False); n = tries = 0
while tries < 25:
    try: n += s.send(bytes(65536)); tries = 0
    except BlockingIOError: tries += 1; time.sleep(0.02)
left = -1
while (now := outq(s)) != left: left = now; time.sleep(0.3)
print(n - left, flush=True)
subprocess.run(['ip', 'link', 'del', 'tap0'], check=True); time.sleep(0.2); os._exit(int(sys.argv[1]))",
    ));
}
