//! The order of a crate's modules: `use` lines make no new circle, and none points against the order that the head of
//! the crate's `lib.rs` states.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::{Source, none, sources};

/// Source folders, and their modules that are still on a circle: the list only gets shorter.
const CRATES: &[(&str, &[&str])] = &[
    ("controller/src", &[]),
    ("stack/src", &[]),
    ("stack/sim/src", &[]),
    ("stack/daemon/src", &[]),
    ("loadgen/src", &[]),
    ("loadgen/src/command", &[]),
    ("loadgen/src/judge", &[]),
    ("loadgen/src/measure", &[]),
    ("loadgen/src/output", &[]),
    ("loadgen/src/run", &[]),
    ("loadgen/src/scenario", &[]),
    ("loadgen/src/target", &[]),
    ("loadgen/src/traffic", &[]),
];

/// Source folders whose `lib.rs` states the order of its modules.
const ORDERED: &[&str] = &["stack/src", "loadgen/src"];

/// By module: the modules of the same crate that it uses, with a file that does.
type Uses = BTreeMap<String, BTreeMap<String, String>>;

/// The module of a folder that a file belongs to; `None` for the crate's root and for files elsewhere.
fn top<'a>(path: &'a str, folder: &str) -> Option<&'a str> {
    let inner = path.strip_prefix(folder)?.strip_prefix('/')?;
    let top = inner.split('/').next()?.trim_end_matches(".rs");
    (!["lib", "main"].contains(&top)).then_some(top)
}

/// The names that follow `prefix` in a text: with `crate::`, those of `crate::a::b` and `crate::{a, b::c}`.
fn used<'a>(code: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        let first = |text: &'_ str| text.find(|c: char| !c.is_alphanumeric() && c != '_');
        match rest.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some((group, _)) => {
                names.extend(
                    group.split(',').map(|n| n.trim()).map(|n| &n[..first(n).unwrap_or(n.len())]),
                );
            }
            None => {
                names.insert(&rest[..first(rest).unwrap_or(rest.len())]);
            }
        }
    }
    names
}

/// The path of a folder's module: `crate::` of `loadgen/src`, `crate::judge::` of `loadgen/src/judge`.
fn path_of(folder: &str) -> String {
    let inner = folder.rsplit_once("src").map_or("", |(_, inner)| inner);
    let parts = inner.split('/').filter(|part| !part.is_empty());
    parts.fold("crate::".to_owned(), |path, part| format!("{path}{part}::"))
}

fn uses(sources: &[Source], folder: &str) -> Uses {
    let tops: BTreeSet<&str> = sources.iter().filter_map(|s| top(&s.path, folder)).collect();
    let path = path_of(folder);
    let mut uses = Uses::new();
    for source in sources.iter().filter(|s| !s.is_test()) {
        let Some(from) = top(&source.path, folder) else { continue };
        let code: String = source.code().map(|(_, line)| format!("{line}\n")).collect();
        let mut names = used(&code, &path);
        // In a file of the folder itself, `super` is the folder's module.
        if source.path == format!("{folder}/{from}.rs") {
            names.extend(used(&code, "super::"));
        }
        for to in names.into_iter().filter(|to| *to != from && tops.contains(to)) {
            let to_files = uses.entry(from.to_owned()).or_default();
            to_files.entry(to.to_owned()).or_insert_with(|| source.path.clone());
        }
    }
    uses
}

/// All modules that `from` uses, directly or not.
fn reached<'a>(uses: &'a Uses, from: &'a str) -> BTreeSet<&'a str> {
    let (mut found, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(module) = open.pop() {
        let next = uses.get(module).into_iter().flat_map(BTreeMap::keys);
        open.extend(next.map(String::as_str).filter(|to| found.insert(*to)));
    }
    found
}

#[test]
fn modules_make_no_new_circle() {
    let sources = sources();
    let mut found = Vec::new();
    for (folder, known) in CRATES {
        let uses = uses(&sources, folder);
        assert!(uses.len() > if folder.ends_with("/src") { 5 } else { 0 }, "{folder}: {uses:?}");
        let on_circle: Vec<&str> = uses
            .keys()
            .map(String::as_str)
            .filter(|module| reached(&uses, module).contains(module))
            .collect();
        if on_circle != *known {
            found.push(format!("{folder}: {on_circle:?}, listed {known:?}"));
        }
    }
    none("modules on circles", &found);
}

#[test]
fn modules_use_what_is_before_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let sources = sources();
    for folder in ORDERED {
        let head = fs::read_to_string(root.join(folder).join("lib.rs")).expect("the head");
        // It may be longer than a line.
        let lines = head.lines().filter_map(|line| line.strip_prefix("//!"));
        let order = lines.filter(|line| line.contains(" < ")).collect::<Vec<_>>().join(" ");
        let order: Vec<&str> = order.split('<').map(str::trim).collect();
        assert!(order.len() > 3, "the order of modules");
        let place = |module: &str| order.iter().position(|m| *m == module);
        let mut found = Vec::new();
        for (from, to) in uses(&sources, folder) {
            for (to, file) in to {
                match (place(&from), place(&to)) {
                    (Some(from), Some(to)) if to < from => {}
                    _ => found.push(format!("{file}: {from} uses {to}")),
                }
            }
        }
        none(&format!("against the order: {}", order.join(" < ")), &found);
    }
}
