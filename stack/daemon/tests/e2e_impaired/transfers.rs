//! Transfers through the cable, in both directions at once and one half after the other.

use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use skbudget_sim::Faults;
use skbudget_testbed::cable::{Bench, Cable, Far};
use skbudget_testbed::streams::{receive_all, send_all};

/// Time without any byte after which a transfer hangs: longer than an RTO that was backed off five times.
const PATIENCE: Duration = Duration::from_secs(20);

/// Impairments: 1 % lost, 1 % reordered, 0.5 % duplicated.
const BAD: Faults = Faults {
    loss: 10_000,
    duplicate: 5_000,
    corrupt: 0,
    reorder: 10_000,
    reorder_by: Duration::from_millis(3),
};

/// Sends `len` bytes and a FIN, and receives the other half to its end.
fn talk(stream: TcpStream, who: u64, len: u64) -> thread::JoinHandle<()> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    thread::spawn(move || {
        let mut reader = stream.try_clone().unwrap();
        let heard = thread::spawn(move || receive_all(&mut reader));
        send_all(&mut &stream, who, len).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let heard = heard.join().unwrap().unwrap();
        assert_eq!((heard.got, heard.wrong), (len, 0));
        assert_eq!(heard.sender(), 3 - who);
    })
}

fn both_ways(congestion: &str, sack: bool, timestamps: bool, v6: bool, seed: u64) {
    let cable = Cable {
        round_trip: Duration::from_millis(6),
        bits_per_second: Some(200_000_000),
        faults: BAD,
        seed,
    };
    let bench = Bench::new(Far::Ours, cable, None);
    bench.set_guest("tcp_sack", if sack { "1" } else { "0" });
    bench.set_guest("tcp_timestamps", if timestamps { "1" } else { "0" });
    let began = Instant::now();
    let connect = if v6 { Bench::connect_v6 } else { Bench::connect };
    let (client, server) = connect(&bench, congestion);
    let len = 1_500_000;
    let ends = [talk(client, 1, len), talk(server, 2, len)];
    for end in ends {
        end.join().unwrap();
    }
    let took = began.elapsed();
    let drops = bench.device_drops();
    let report = bench.end();
    println!(
        "impaired: cc={congestion} sack={sack} timestamps={timestamps} ipv6={v6} seconds={:.2} \
         up={:?} down={:?} device_drops={drops}",
        took.as_secs_f64(),
        report.up,
        report.down
    );
    // The cable impaired frames, and only as the seed planned.
    for link in [report.up, report.down] {
        assert!(link.lost > 0 && link.duplicated > 0 && link.reordered > 0, "{link:?}");
    }
    assert_eq!((report.oversized, report.full), (0, 0));
}

fn with_every_option(congestion: &str) {
    for (seed, (sack, timestamps)) in
        [(true, true), (false, true), (true, false), (false, false)].into_iter().enumerate()
    {
        both_ways(congestion, sack, timestamps, false, 100 + seed as u64);
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn both_ways_over_ipv6() {
    for (seed, (congestion, sack)) in [("cubic", true), ("reno", false)].into_iter().enumerate() {
        both_ways(congestion, sack, sack, true, 200 + seed as u64);
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn both_ways_under_cubic() {
    with_every_option("cubic");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn both_ways_under_reno() {
    with_every_option("reno");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn both_ways_under_bbr() {
    with_every_option("bbr");
}

/// One side sends a few bytes and a FIN. The other side then sends 100 MB into its own open half.
fn after_the_first_fin(guest_first: bool) {
    let cable = Cable {
        round_trip: Duration::from_millis(2),
        bits_per_second: None,
        faults: Faults { loss: 30, duplicate: 30, reorder: 100, ..BAD },
        seed: 7,
    };
    let bench = Bench::new(Far::Ours, cable, None);
    let (client, server) = bench.connect("cubic");
    let (mut first, mut second) = if guest_first { (client, server) } else { (server, client) };
    for end in [&first, &second] {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
        end.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    let len = 100_000_000;
    send_all(&mut first, 1, 1000).unwrap();
    first.shutdown(Shutdown::Write).unwrap();
    let began = Instant::now();
    let heard = thread::spawn(move || {
        let heard = receive_all(&mut first).unwrap();
        (heard.got, heard.wrong)
    });
    let word = receive_all(&mut second).unwrap();
    assert_eq!((word.got, word.wrong), (1000, 0), "the first FIN came, behind its word");
    send_all(&mut second, 2, len).unwrap();
    second.shutdown(Shutdown::Write).unwrap();
    assert_eq!(heard.join().unwrap(), (len, 0));
    assert_eq!(second.read(&mut [0; 1]).unwrap(), 0);
    let report = bench.end();
    println!(
        "half-close: guest_first={guest_first} seconds={:.2} up={:?} down={:?}",
        began.elapsed().as_secs_f64(),
        report.up,
        report.down
    );
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_hundred_megabytes_after_the_guests_fin() {
    after_the_first_fin(true);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_hundred_megabytes_after_the_hosts_fin() {
    after_the_first_fin(false);
}

/// Proves that the relay itself is not the bottleneck.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_clean_cable_carries_everything_between_two_kernels() {
    let cable = Cable {
        round_trip: Duration::ZERO,
        bits_per_second: None,
        faults: Faults::default(),
        seed: 1,
    };
    for far in [Far::Kernel, Far::Ours] {
        let bench = Bench::new(far, cable, None);
        let (mut client, mut server) = bench.connect("cubic");
        let len = 200_000_000;
        let began = Instant::now();
        let sender = thread::spawn(move || {
            send_all(&mut client, 1, len).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            client
        });
        let heard = receive_all(&mut server).unwrap();
        assert_eq!((heard.got, heard.wrong), (len, 0));
        let rate = len as f64 * 8e-6 / began.elapsed().as_secs_f64();
        drop(sender.join().unwrap());
        let drops = bench.device_drops();
        let report = bench.end();
        println!("clean: far={far:?} mbit_per_second={rate:.0} device_drops={drops} {report:?}");
        assert_eq!((report.up.lost, report.oversized), (0, 0));
    }
}
