//! Names of scenarios and arms, which become part of file names, tags and labels.

/// The rule that `fits` checks, for error messages.
pub(crate) const RULE: &str =
    "1 to 64 letters, digits, '.', '_' and '-', starting with a letter or a digit";
const LENGTH_MAX: usize = 64;

/// Whether a name follows [`RULE`].
pub(crate) fn fits(name: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=LENGTH_MAX).contains(&name.len())
        && name.chars().all(part)
        // Neither a hidden file nor an option of a command.
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
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
}
