//! Names of scenarios and arms, which become part of file names, tags and labels.

use std::path::PathBuf;

use crate::exit::Failure;
use crate::scenario;

/// The rule that `fits` checks, for error messages.
pub const RULE: &str =
    "1 to 64 letters, digits, '.', '_' and '-', starting with a letter or a digit";
const LENGTH_MAX: usize = 64;

/// Whether a name follows [`RULE`].
pub fn fits(name: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=LENGTH_MAX).contains(&name.len())
        && name.chars().all(part)
        // Neither a hidden file nor an option of a command.
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// The default output folder of a command: `out/<prefix><name>-<seed>`.
///
/// # Errors
/// `given`, the argument as typed, is a file that sets the name of a built-in scenario or command: its results would
/// overwrite those of the built-in one.
pub fn default_out(given: &str, prefix: &str, name: &str, seed: u64) -> Result<PathBuf, Failure> {
    // These names belong to built-in scenarios and commands.
    let taken = name == "repro"
        || name.starts_with("sweep-")
        || name.starts_with("search-")
        || scenario::text(name).is_some();
    if taken && scenario::text(given).is_none() {
        let what = format!(
            "{given}: name: '{name}' is reserved in out/ for a built-in scenario or a command: \
             set another name in the file, or choose a folder with --out"
        );
        return Err(Failure::Usage(what));
    }
    Ok(PathBuf::from(format!("out/{prefix}{name}-{seed}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_in_its_folder() {
        for good in ["step", "a", "Step_2.b-c", "1st"] {
            assert!(fits(good), "{good}");
        }
        let long = "x".repeat(65);
        for bad in [
            "",
            ".",
            "..",
            "../../evil",
            "/etc",
            "a/b",
            "a b",
            "-rf",
            ".hidden",
            "é",
            "a\x1b[0m",
            &long,
        ] {
            assert!(!fits(bad), "{bad}");
        }
    }

    #[test]
    fn a_file_does_not_write_where_a_built_in_does() {
        let out = |given, name| default_out(given, "", name, 7);
        assert_eq!(out("step", "step").unwrap(), PathBuf::from("out/step-7"));
        assert_eq!(out("sweep-n", "sweep-n").unwrap(), PathBuf::from("out/sweep-n-7"));
        assert_eq!(out("my.toml", "mine").unwrap(), PathBuf::from("out/mine-7"));
        // A built-in scenario, and the folders of `repro`, `sweep` and `search`.
        for taken in ["step", "repro", "sweep-step", "search-aa"] {
            assert_eq!(out("my.toml", taken).unwrap_err().exit().code(), 2, "{taken}");
        }
    }
}
