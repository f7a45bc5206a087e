use super::*;
use crate::command::selftest::sample;

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("loadgen-place-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Every file that any format writes is recognized as loadgen's own and removed.
#[test]
fn own_files_are_cleared() {
    let dir = scratch("own");
    write(&dir, &sample(), &Format::all()).unwrap();
    assert!(names(&dir).len() > 15, "{:?}", names(&dir));
    write_file(&dir, "sweep.json", "{\"schema\": \"loadgen.sweep/1\"}".to_owned()).unwrap();
    fs::write(dir.join(".loadgen.junit.xml.tmp"), "of a run that was killed").unwrap();
    fs::write(dir.join("summary.md"), "").unwrap();
    clear(&dir).unwrap();
    assert_eq!(names(&dir), Vec::<String>::new());
    fs::remove_dir_all(&dir).unwrap();
}

/// Files with the same names and other content, and files with other names, are not loadgen's.
#[test]
fn foreign_files_stay() {
    let dir = scratch("foreign");
    let mut kept: Vec<String> = OWN.iter().map(|(name, _)| (*name).to_owned()).collect();
    kept.extend(
        ["notes.txt", "theirs.hgrm", ".loadgen.toml", "result.json.bak"].map(str::to_owned),
    );
    for name in &kept {
        fs::write(dir.join(name), "<testsuites name=\"pytest\"/>, with a target").unwrap();
    }
    fs::create_dir(dir.join("folder.hgrm")).unwrap();
    let linked = dir.join("linked");
    fs::write(&linked, format!("{HGRM_HEAD}\n")).unwrap();
    std::os::unix::fs::symlink(&linked, dir.join("link.hgrm")).unwrap();
    kept.extend(["folder.hgrm", "linked", "link.hgrm"].map(str::to_owned));
    kept.sort();
    clear(&dir).unwrap();
    assert_eq!(names(&dir), kept);
    // A run replaces these two in any case.
    prepare_run(&dir).unwrap();
    kept.retain(|n| n != "verdict.json" && n != "result.json");
    assert_eq!(names(&dir), kept);
    fs::remove_dir_all(&dir).unwrap();
}

/// Wherever the writing fails, there is no verdict afterwards, not even an older one, and no temporary file.
#[test]
fn a_verdict_is_never_beside_a_failure() {
    let result = sample();
    for blocked in [".loadgen.metrics.prom.tmp", "metrics.prom", ".loadgen.verdict.json.tmp"] {
        let dir = scratch(&format!("fails-{blocked}"));
        write(&dir, &result, &[Format::Result, Format::Verdict]).unwrap();
        // A folder with that name blocks the file.
        fs::create_dir(dir.join(blocked)).unwrap();
        let failed = write(&dir, &result, &Format::all()).unwrap_err();
        // A folder with a final name is not loadgen's, which is an error of usage.
        let code = if is_temporary(blocked) { 1 } else { 2 };
        assert_eq!(failed.exit().code(), code, "{failed}");
        assert!(failed.to_string().contains(blocked), "{failed}");
        let left = names(&dir);
        assert!(!left.contains(&VERDICT.to_owned()), "{blocked}: {left:?}");
        let temporary: Vec<_> = left.iter().filter(|n| is_temporary(n) && *n != blocked).collect();
        assert!(temporary.is_empty(), "{temporary:?}");
        fs::remove_dir_all(&dir).unwrap();
    }
}

/// Between publishing and finishing, all files but the verdict exist; without finishing it never appears.
#[test]
fn the_verdict_is_the_last() {
    let dir = scratch("last");
    let mut staged = stage(&dir, &sample(), &Format::all()).unwrap();
    assert!(names(&dir).iter().all(|n| is_temporary(n)), "{:?}", names(&dir));
    staged.publish().unwrap();
    assert!(dir.join("result.json").exists() && dir.join("report.html").exists());
    assert!(JUDGEMENT.iter().all(|name| !dir.join(name).exists()), "{:?}", names(&dir));
    drop(staged);
    assert!(!dir.join(VERDICT).exists() && !names(&dir).iter().any(|n| is_temporary(n)));
    stage(&dir, &sample(), &Format::all()).unwrap().finish().unwrap();
    assert!(dir.join(VERDICT).exists());
    fs::remove_dir_all(&dir).unwrap();
}

/// Neither before a run nor after it, when the names of all files are known.
#[test]
fn foreign_files_are_not_overwritten() {
    let dir = scratch("overwrite");
    let all: Vec<&str> = Format::all().into_iter().flat_map(Format::names).copied().collect();
    for name in all.iter().copied().chain(["container-a-solo.hgrm"]) {
        let path = dir.join(name);
        fs::write(&path, "by hand").unwrap();
        let refused = keep_foreign(&dir, [name]).unwrap_err();
        assert_eq!(refused.exit().code(), 2, "{name}");
        assert!(refused.to_string().contains(&path.display().to_string()), "{refused}");
        // A run has removed these two, and `report` has read them.
        if name != VERDICT && name != RESULT {
            assert!(write_file(&dir, name, "new".to_owned()).is_err(), "{name}");
            assert_eq!(fs::read_to_string(&path).unwrap(), "by hand");
        }
        fs::remove_file(&path).unwrap();
        // A link, even to a file of loadgen, belongs to the user.
        std::os::unix::fs::symlink(dir.join("elsewhere"), &path).unwrap();
        assert!(keep_foreign(&dir, [name]).is_err(), "{name}");
        fs::remove_file(&path).unwrap();
    }
    // The files of a run without arms lack most texts, and are replaced nevertheless.
    let schema = crate::measure::result::SCHEMA.to_owned();
    let empty = RunResult { schema, ..RunResult::default() };
    for _ in 0..2 {
        write(&dir, &empty, &Format::all()).unwrap();
        keep_foreign(&dir, &all).unwrap();
    }
    fs::remove_dir_all(&dir).unwrap();
}

/// A link with a temporary name does not lead to another file.
#[test]
fn temporary_files_do_not_follow_links() {
    let dir = scratch("links");
    let other = dir.join("other");
    fs::write(&other, "kept").unwrap();
    for name in ["probe", "containers.csv"] {
        std::os::unix::fs::symlink(&other, dir.join(temporary(name))).unwrap();
    }
    prepare(&dir).unwrap();
    write(&dir, &sample(), &[Format::Csv]).unwrap();
    assert_eq!(fs::read_to_string(&other).unwrap(), "kept");
    assert!(fs::symlink_metadata(dir.join("containers.csv")).unwrap().is_file());
    fs::remove_dir_all(&dir).unwrap();
}
