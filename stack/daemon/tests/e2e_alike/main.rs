//! The same segments to our stack and to the kernel of a namespace, each with a listener behind it: both must answer
//! alike. Where they do not, the difference and its reason are in `differences`, and a difference that is gone fails.
//! `cargo test -p skbudget --test e2e_alike -- --ignored --nocapture`.

#[path = "../wire/bench.rs"]
#[allow(dead_code, reason = "shared with the benches, which use the rest of it")]
mod bench;
#[path = "../wire/relay.rs"]
#[allow(dead_code, reason = "shared with the benches, which use the rest of it")]
mod relay;

mod differences;
mod probes;
mod scripts;
mod talk;

use bench::{Bare, Far};
use differences::DIFFERENCES;
use scripts::{SCRIPTS, Script};
use talk::Talk;

/// What each script was answered, by one of the two.
fn answers(far: Far) -> Vec<String> {
    let bare = Bare::new(far);
    let run = |index: usize, script: Script| {
        let mut talk = Talk::new(&bare, index as u16);
        script(&mut talk);
        talk.end()
    };
    SCRIPTS.iter().enumerate().map(|(index, (_, script))| run(index, *script)).collect()
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn our_stack_answers_as_the_kernel_does() {
    let (ours, kernel) = (answers(Far::Ours), answers(Far::Kernel));
    let mut wrong = Vec::new();
    for (((name, _), ours), kernel) in SCRIPTS.iter().zip(&ours).zip(&kernel) {
        let known = DIFFERENCES.iter().find(|d| d.0 == *name);
        println!("{name}\n    ours   {ours}\n    kernel {kernel}");
        let expected = known.map_or((kernel.as_str(), kernel.as_str()), |d| (d.1, d.2));
        if (ours.as_str(), kernel.as_str()) != expected {
            wrong.push(format!("{name}: ours {ours}, kernel {kernel}, known {known:?}"));
        }
    }
    let alike = ours.iter().zip(&kernel).filter(|(a, b)| a == b).count();
    println!(
        "{} scripts, {alike} answered alike, {} known differences",
        SCRIPTS.len(),
        DIFFERENCES.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (name, ours, kernel, reason) in DIFFERENCES {
        assert!(SCRIPTS.iter().any(|s| s.0 == *name), "{name} is no script");
        assert!(ours != kernel && !reason.is_empty(), "{name} is no difference");
    }
}
