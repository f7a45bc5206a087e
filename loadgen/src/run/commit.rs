//! The commit and the command line of a run, as far as the environment shows them: for `meta` only.

use std::fs;
use std::path::{Path, PathBuf};

/// The commit that CI names, or that of the repository around the current folder.
pub(crate) fn find() -> Option<String> {
    let named = ["GITHUB_SHA", "CI_COMMIT_SHA"].iter().filter_map(|v| std::env::var(v).ok());
    named.into_iter().find(|id| is_id(id)).or_else(|| of(&std::env::current_dir().ok()?))
}

/// Reads the commit from the files of the repository, as git does: git may not be installed.
fn of(dir: &Path) -> Option<String> {
    // From the folder upwards, as git searches.
    let git = dir.ancestors().map(|d| d.join(".git")).find(|p| p.exists())?;
    // In a worktree, `.git` is a file that contains the path of the git folder.
    let git = match fs::read_to_string(&git) {
        Ok(text) => dir_beside(&git, text.strip_prefix("gitdir:")?.trim()),
        Err(_) => git,
    };
    let head = fs::read_to_string(git.join("HEAD")).ok()?;
    let Some(branch) = head.trim().strip_prefix("ref: ") else {
        return Some(head.trim().to_owned()).filter(|id| is_id(id));
    };
    // The branches of a worktree are stored in the folder of the main repository.
    let common = fs::read_to_string(git.join("commondir")).ok();
    let common = common.map_or_else(|| git.clone(), |text| dir_beside(&git.join("x"), text.trim()));
    let loose = fs::read_to_string(common.join(branch)).ok().map(|t| t.trim().to_owned());
    let packed = || {
        let text = fs::read_to_string(common.join("packed-refs")).ok()?;
        let line = text.lines().find(|l| l.split(' ').nth(1) == Some(branch))?;
        line.split(' ').next().map(str::to_owned)
    };
    // A branch is a loose file, or after `git gc` a line of packed-refs.
    loose.or_else(packed).filter(|id| is_id(id))
}

/// A path relative to the folder of `file`.
fn dir_beside(file: &Path, path: &str) -> PathBuf {
    file.parent().unwrap_or(file).join(path)
}

/// Whether a text is a commit id of git.
fn is_id(text: &str) -> bool {
    // SHA-1 has 40 digits, SHA-256 has 64.
    (40..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The command line, quoted so that a shell parses it back.
pub(crate) fn command(args: impl Iterator<Item = std::ffi::OsString>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:+@%".contains(c);
    let quote = |a: std::ffi::OsString| {
        let a = a.to_string_lossy().into_owned();
        if !a.is_empty() && a.chars().all(plain) {
            a
        } else {
            format!("'{}'", a.replace('\'', "'\\''"))
        }
    };
    args.map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_found_from_a_folder_a_worktree_and_packed_branches() {
        let dir = std::env::temp_dir().join(format!("loadgen-commit-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let (main, tree) = (dir.join("main"), dir.join("tree/deep"));
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        fs::create_dir_all(main.join(".git/refs/heads")).unwrap();
        fs::create_dir_all(main.join(".git/worktrees/tree")).unwrap();
        fs::create_dir_all(&tree).unwrap();
        fs::write(main.join(".git/HEAD"), "ref: refs/heads/x\n").unwrap();
        fs::write(
            main.join(".git/packed-refs"),
            format!("# pack\n{b} refs/heads/y\n{a} refs/heads/x\n"),
        )
        .unwrap();
        // No loose ref exists: the commit is in packed-refs.
        assert_eq!(of(&main), Some(a));
        fs::write(main.join(".git/refs/heads/x"), format!("{b}\n")).unwrap();
        // A loose ref has precedence.
        assert_eq!(of(&main), Some(b.clone()));
        // The `.git` of a worktree is a file; its branches are in the main repository.
        fs::write(
            dir.join("tree/.git"),
            format!("gitdir: {}\n", main.join(".git/worktrees/tree").display()),
        )
        .unwrap();
        fs::write(main.join(".git/worktrees/tree/HEAD"), "ref: refs/heads/y\n").unwrap();
        fs::write(main.join(".git/worktrees/tree/commondir"), "../..\n").unwrap();
        assert_eq!(of(&tree), Some(b.clone()));
        // A detached HEAD contains the id itself.
        fs::write(main.join(".git/worktrees/tree/HEAD"), format!("{b}\n")).unwrap();
        assert_eq!(of(&tree), Some(b));
        // Neither a ref nor an id.
        fs::write(main.join(".git/worktrees/tree/HEAD"), "nonsense\n").unwrap();
        assert_eq!(of(&tree), None);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_command_can_be_pasted() {
        let args = ["loadgen", "run", "a b", "--set", "x=1", "it's", ""].map(Into::into);
        assert_eq!(command(args.into_iter()), "loadgen run 'a b' --set x=1 'it'\\''s' ''");
    }
}
