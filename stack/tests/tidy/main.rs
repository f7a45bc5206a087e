//! Checks that the linter cannot make, over every source file of the workspace.

mod language;
mod layers;
mod pages;

use std::fs;
use std::path::{Path, PathBuf};

const LINE_MAX: usize = 120;
const FILE_MAX: usize = 600;

/// The packages' folders.
const PACKAGES: &[&str] = &["controller", "stack", "loadgen", "benches"];

/// A source file: path from the root of the workspace, and text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Tests, and code that only tests use, may use more.
    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.name().ends_with("tests.rs")
    }

    /// These checks themselves, which spell out what they search for.
    fn is_tidy(&self) -> bool {
        self.path.starts_with("stack/tests/tidy/")
    }

    /// The text without the unit tests at its end.
    fn product(&self) -> &str {
        // Unit tests are at the end of a file.
        let end = self.text.find("\n#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        &self.text[..end]
    }

    /// Lines of code with their numbers, without comments and unit tests.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.product().lines().enumerate().filter_map(|(i, line)| {
            let line = line.split("//").next().unwrap_or_default();
            (!line.trim().is_empty()).then_some((i + 1, line))
        })
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut found = Vec::new();
    for package in PACKAGES {
        collect(&root.join(package), &mut found);
    }
    assert!(found.len() > 50, "the workspace is somewhere else");
    let source = |path: PathBuf| Source {
        text: fs::read_to_string(&path).expect("a source file"),
        path: path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned(),
    };
    found.into_iter().map(source).collect()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        // Cargo marks its output; a module may be named `target` too.
        let is_output = path.join("CACHEDIR.TAG").exists();
        if path.is_dir() && !is_output && path.file_name().is_some_and(|n| n != "out") {
            collect(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
}

/// Fails with all findings, one a line.
fn none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

/// Lines of code that contain any of the words, in the files that `applies` selects.
fn lines_with(words: &[&str], applies: impl Fn(&Source) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| applies(s)) {
        for (number, line) in source.code() {
            if words.iter().any(|w| has_word(line, w)) {
                found.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    found
}

/// Whether `word` is in `line`, and not as part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let joins = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        let (before, after) =
            (line[..at].chars().next_back(), line[at + word.len()..].chars().next());
        let starts_name = word.starts_with(|c: char| c.is_alphanumeric());
        let ends_name = word.ends_with(|c: char| c.is_alphanumeric());
        !(starts_name && joins(before) || ends_name && joins(after))
    })
}

#[test]
fn lines_and_files_are_short() {
    let mut found = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > FILE_MAX {
            found.push(format!("{}: {lines} lines", source.path));
        }
        // Tables are wide, and so are texts that are printed as one line.
        let table = |line: &str| line.starts_with("//! |") || line.ends_with('\\');
        // A vector is one line, whatever its length.
        if source.path.contains("_vectors") {
            continue;
        }
        for (i, line) in source.text.lines().enumerate().filter(|(_, line)| !table(line)) {
            let width = line.chars().count();
            if width > LINE_MAX {
                found.push(format!("{}:{}: {width} columns", source.path, i + 1));
            }
        }
    }
    none("too long", &found);
}

#[test]
fn unsafe_stays_in_its_files() {
    let found = lines_with(&["unsafe"], |s| s.name() != "sys.rs" && !s.is_tidy());
    none("`unsafe` outside a file named sys.rs", &found);
}

#[test]
fn the_stack_and_the_controller_reach_for_nothing() {
    let reach = [
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "UnixStream",
        "UnixListener",
        "std::fs",
        "std::process",
        "std::thread",
        "Instant::now",
        "SystemTime",
    ];
    let found = lines_with(&reach, |s| {
        let sans_io = ["controller/src", "stack/src", "stack/sim/src"];
        let sans_io = sans_io.iter().any(|folder| s.path.starts_with(folder));
        sans_io && !s.is_test() && !s.path.starts_with("stack/src/tap")
    });
    none("the system, where only values are", &found);
}

#[test]
fn what_ships_reports_through_the_logger() {
    // A print macro panics when stderr is a full disk or a closed pipe, and blocks when it is a full pipe.
    let printing = ["println!", "print!", "eprintln!", "eprint!", "io::stderr", "io::stdout"];
    let found = lines_with(&printing, |s| {
        let ships = ["controller/src", "stack/src", "stack/daemon/src"];
        // The writer itself, and the results of commands that only print.
        let writers = ["stack/daemon/src/logger/writer.rs", "stack/daemon/src/stdout.rs"];
        ships.iter().any(|folder| s.path.starts_with(folder)) && !writers.contains(&s.path.as_str())
    });
    none("printed, and not through `logger`", &found);
}

#[test]
fn memory_is_charged_where_the_head_of_the_stack_lists_it() {
    let charges = [
        (".rx_open(", &["stack/src/queue/receive.rs"][..]),
        (".rx_fill(", &["stack/src/queue/receive.rs"]),
        (".tx_grant(", &["stack/src/queue/send.rs"]),
        (".establish(", &["stack/src/container/admission.rs"]),
        ("budget.admit(", &["stack/src/container/admission.rs"]),
        (".host_raise(", &["stack/src/relay/host_caps.rs"]),
        (".charge_compact(", &["stack/src/flow/syn_backlog.rs", "stack/src/flow/time_wait.rs"]),
        (".charge_udp(", &["stack/src/udp.rs", "stack/src/udp/outbox.rs", "stack/src/dns.rs"]),
        (".charge_frag(", &["stack/src/wire/reassembly.rs"]),
        (".charge_listen(", &["stack/daemon/src/worker/add.rs", "stack/daemon/src/worker/live.rs"]),
    ];
    let head =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let mut found = Vec::new();
    for (call, allowed) in charges {
        for file in allowed {
            // The head names modules: paths without folder and ending.
            let module = file.trim_start_matches("stack/src/").trim_end_matches(".rs");
            let module = module.trim_start_matches("stack/daemon/src/");
            assert!(head.contains(&format!("`{module}`")), "lib.rs does not name {module}");
        }
        let elsewhere = |s: &Source| {
            let uses = s.path.starts_with("stack/") || s.path.starts_with("loadgen/");
            uses && !s.is_test() && !allowed.contains(&s.path.as_str())
        };
        found.extend(lines_with(&[call], elsewhere));
    }
    none("a charge elsewhere", &found);
}

#[test]
fn nothing_is_left_to_do_later() {
    let words = ["FIXME", "TODO", "XXX", "todo!", "unimplemented!", "dbg!"];
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| !s.is_tidy()) {
        for (i, line) in source.text.lines().enumerate() {
            if words.iter().any(|w| has_word(line, w)) {
                found.push(format!("{}:{}: {}", source.path, i + 1, line.trim()));
            }
        }
    }
    none("left over", &found);
}
