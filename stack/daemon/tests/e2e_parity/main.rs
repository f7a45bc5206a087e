//! Sends the same segments to our stack and to the kernel of a namespace, each with a listener: both must answer alike.
//! A difference must be listed in `differences` with its reason, and a listed difference that no longer shows fails the
//! test.
//! `cargo test -p skbudget --test e2e_parity -- --ignored --nocapture`.

mod datagrams;
mod differences;
mod exchange;
mod probes;
mod scripts;

use differences::DIFFERENCES;
use exchange::Exchange;
use scripts::{SCRIPTS, Script};
use skbudget_testbed::cable::{Bare, Far};

/// The answers to each script, from one of the two.
fn answers(far: Far, v6: bool) -> Vec<String> {
    let bare = Bare::new(far);
    let run = |index: usize, script: Script| {
        let mut talk = Exchange::new(&bare, v6, index as u16);
        script(&mut talk);
        talk.end()
    };
    SCRIPTS.iter().enumerate().map(|(index, (_, script))| run(index, *script)).collect()
}

fn compare(v6: bool) {
    let (ours, kernel) = std::thread::scope(|scope| {
        let ours = scope.spawn(|| answers(Far::Ours, v6));
        let kernel = answers(Far::Kernel, v6);
        (ours.join().unwrap(), kernel)
    });
    let differences = || DIFFERENCES.iter().filter(|d| d.0.holds_for(v6));
    let mut wrong = Vec::new();
    for (((name, _), ours), kernel) in SCRIPTS.iter().zip(&ours).zip(&kernel) {
        let known = differences().find(|d| d.1 == *name);
        println!("{name}\n    ours   {ours}\n    kernel {kernel}");
        let expected = known.map_or((kernel.as_str(), kernel.as_str()), |d| (d.2, d.3));
        if (ours.as_str(), kernel.as_str()) != expected {
            wrong.push(format!("{name}: ours {ours}, kernel {kernel}, known {known:?}"));
        }
    }
    let alike = ours.iter().zip(&kernel).filter(|(a, b)| a == b).count();
    println!(
        "{} scripts, ipv6={v6}, {alike} answered alike, {} known differences",
        SCRIPTS.len(),
        differences().count()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (_, name, ours, kernel, reason) in DIFFERENCES {
        assert!(SCRIPTS.iter().any(|s| s.0 == *name), "{name} is no script");
        assert!(ours != kernel && !reason.is_empty(), "{name} is no difference");
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn our_stack_answers_as_the_kernel() {
    compare(false);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn our_stack_answers_as_the_kernel_over_ipv6() {
    compare(true);
}
