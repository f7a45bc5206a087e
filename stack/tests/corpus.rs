//! Runs every input under `stack/fuzz/corpus`, and random ones, through the code of the fuzz targets: faults that a
//! fuzzer found stay found without a fuzzer.

use std::fs;
use std::path::Path;

use skbudget_sim::Rng;
use skbudget_sim::fuzz::TARGETS;

/// Bytes of all committed inputs together, at most.
const CORPUS_BYTES_MAX: u64 = 200 << 10;

#[test]
fn committed_inputs_are_replayed() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let folders = fs::read_dir(&corpus).unwrap().count();
    assert_eq!(folders, TARGETS.len(), "a folder that no target replays");
    let mut bytes = 0;
    for (name, target) in TARGETS {
        let mut files: Vec<_> = fs::read_dir(corpus.join(name))
            .unwrap_or_else(|e| panic!("corpus of {name}: {e}"))
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "no input for {name}");
        for file in files {
            let input = fs::read(&file).unwrap();
            bytes += input.len() as u64;
            // Caught to name the input that fails.
            let outcome = std::panic::catch_unwind(|| target(&input));
            assert!(outcome.is_ok(), "{}", file.display());
        }
    }
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes of inputs");
}

/// Random bytes: shallow, but they run where no fuzzer does.
#[test]
fn random_inputs() {
    for (name, target) in TARGETS {
        for seed in 0..400 {
            let mut rng = Rng::new(seed);
            let len = rng.below(1500) as usize;
            let input: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
            let outcome = std::panic::catch_unwind(|| target(&input));
            assert!(outcome.is_ok(), "{name}, seed {seed}");
        }
    }
}
