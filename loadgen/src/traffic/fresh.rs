//! An open-loop client that opens a connection for every request.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use skbudget_sim::Pattern;

use super::probe::ProbeClient;
use super::{STOP_CHECK_EVERY, Shared};

/// Maximum number of concurrent requests.
const WORKERS: usize = 16;

pub(super) fn run(to: SocketAddr, shared: &Shared, client: &ProbeClient) {
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| work(to, shared, client));
        }
    });
}

fn work(to: SocketAddr, shared: &Shared, client: &ProbeClient) {
    while !shared.stopped() {
        let now = shared.clock.now();
        match client.take_due(now) {
            Ok(id) => {
                if once(to, id, shared, client).is_none() && !shared.stopped() {
                    client.fail(id);
                }
            }
            // Nothing is due: sleep until the next request, or until the stop flag must be checked.
            Err(next) => {
                let at = next.unwrap_or(now + STOP_CHECK_EVERY.as_nanos() as u64);
                let _ = shared.clock.sleep_until(at, &shared.stop);
            }
        }
    }
}

/// One request on one connection; `None`: it failed, or the run ended.
fn once(to: SocketAddr, id: u64, shared: &Shared, client: &ProbeClient) -> Option<()> {
    let spec = client.spec();
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).ok()?;
    let _ = stream.set_nodelay(true);
    stream.set_read_timeout(Some(STOP_CHECK_EVERY)).ok()?;
    shared.note_connected();
    let mut request = vec![0; spec.request_bytes as usize];
    Pattern::from_guest(to.port()).fill(0, &mut request);
    // Before the write, which is a part of the service time.
    client.sent(id, shared.clock.now());
    stream.write_all(&request).ok()?;
    let mut buf = vec![0; 16 << 10];
    let mut received = 0;
    while received < u64::from(spec.response_bytes) {
        match stream.read(&mut buf) {
            Ok(n) if n > 0 => {
                if Pattern::from_host(to.port()).check(received, &buf[..n]).is_err() {
                    shared.note_corrupt();
                }
                received += n as u64;
            }
            Err(e) if super::bulk::is_wait(e.kind()) && !shared.stopped() => {}
            Ok(_) | Err(_) => return None,
        }
    }
    client.completed(id, shared.clock.now());
    Some(())
}
