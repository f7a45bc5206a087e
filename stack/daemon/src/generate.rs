//! Completions and man pages, generated from the command line's definition. What the help hides is not in them.
//!
//! A package ships them as files; a user without one generates them.

use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::cli::{Cli, CompletionsArgs, ManArgs};
use crate::exit::Failure;
use crate::stdout;

/// Name of the program in both.
const NAME: &str = "skbudget";

/// `skbudget completions`.
///
/// # Errors
/// When stdout does not take the script.
pub fn completions(args: CompletionsArgs) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut visible(&Cli::command()), NAME, &mut script);
    stdout::print(&String::from_utf8_lossy(&script)).map(|()| 0)
}

/// `skbudget man`.
///
/// # Errors
/// When there is no such page, or the pages cannot be written.
pub fn man(args: ManArgs) -> Result<u8, Failure> {
    let pages = pages();
    let Some(folder) = args.out else {
        let wanted = args.command.map_or_else(|| NAME.to_owned(), |name| format!("{NAME}-{name}"));
        let page = pages.iter().find(|(name, _)| *name == wanted);
        let Some((_, text)) = page else {
            let names = pages.iter().filter_map(|(name, _)| name.strip_prefix("skbudget-"));
            let names = names.collect::<Vec<_>>().join(", ");
            return Err(Failure::usage(format!("{wanted}: no such page; commands: {names}")));
        };
        return stdout::print(text).map(|()| 0);
    };
    let failed = |path: &Path, e| Failure::other(format!("--out {}: {e}", path.display()));
    fs::create_dir_all(&folder).map_err(|e| failed(&folder, e))?;
    for (name, text) in pages {
        let path = folder.join(format!("{name}.1"));
        fs::write(&path, text).map_err(|e| failed(&path, e))?;
    }
    Ok(0)
}

/// Name and text of every page: the program's, and one for each command.
fn pages() -> Vec<(String, String)> {
    let whole = visible(&Cli::command());
    let of_commands = whole.get_subcommands().map(|command| {
        let name = format!("{NAME}-{}", command.get_name());
        (name.clone(), command.clone().name(name).version(env!("CARGO_PKG_VERSION")))
    });
    let all = std::iter::once((NAME.to_owned(), whole.clone())).chain(of_commands);
    all.map(|(name, command)| {
        let mut text = Vec::new();
        // Writing to a Vec does not fail.
        let _ = Man::new(command).manual("skbudget").render(&mut text);
        (name, String::from_utf8_lossy(&text).into_owned())
    })
    .collect()
}

/// The command without what the help hides, and without the rules between its options, which only a parser needs.
fn visible(command: &Command) -> Command {
    let args = command.get_arguments().filter(|arg| !arg.is_hide_set()).cloned();
    let commands = command.get_subcommands().filter(|command| !command.is_hide_set()).map(visible);
    // Built anew, since nothing can be removed from a command.
    let mut shown = Command::new(command.get_name().to_owned())
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(command.is_subcommand_required_set())
        .args(args)
        .subcommands(commands);
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(help) = command.get_after_help() {
        shown = shown.after_help(help.clone());
    }
    shown
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;
    use clap_complete::Shell;

    use super::*;

    fn script(shell: Shell) -> String {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut visible(&Cli::command()), NAME, &mut script);
        String::from_utf8(script).unwrap()
    }

    fn commands() -> Vec<String> {
        let command = Cli::command();
        let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
        shown.map(|command| command.get_name().to_owned()).collect()
    }

    #[test]
    fn every_shown_command_is_completed_and_nothing_hidden() {
        for shell in Shell::value_variants() {
            let script = script(*shell);
            for command in commands() {
                assert!(script.contains(&command), "{shell}: {command}");
            }
            assert!(script.contains("tcp-rmem") && !script.contains("Refused:"), "{shell}");
        }
    }

    /// What bash offers for a line, with the cursor at its end.
    fn offered(line: &str) -> Vec<String> {
        let words: Vec<&str> = line.split(' ').collect();
        let (last, before) = (words[words.len() - 1], words[words.len() - 2]);
        let script = format!(
            "{}\nCOMP_WORDS=({line}{}); COMP_CWORD={}; _skbudget skbudget '{last}' '{before}'; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script(Shell::Bash),
            if last.is_empty() { " ''" } else { "" },
            words.len() - 1,
        );
        let output = std::process::Command::new("bash").arg("-c").arg(script).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).unwrap();
        // Without any offer, one empty line is printed.
        lines.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn bash_completes_commands_options_and_values() {
        assert_eq!(offered("skbudget att"), ["attach"]);
        assert_eq!(offered("skbudget run --congestion c"), ["cubic"]);
        assert_eq!(offered("skbudget run --hard"), ["--hard"]);
        assert!(offered("skbudget run --wei").is_empty(), "hidden");
        let all = offered("skbudget ");
        assert!(commands().iter().all(|command| all.contains(command)), "{all:?}");
    }

    #[test]
    fn every_shown_command_has_a_page_with_its_options() {
        let pages = pages();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        let commands: Vec<String> =
            commands().iter().map(|name| format!("skbudget-{name}")).collect();
        assert_eq!(names[0], "skbudget");
        assert_eq!(names[1..], commands);
        for (name, text) in &pages {
            assert!(text.contains(".TH ") && text.contains(".SH SYNOPSIS"), "{name}");
        }
        let run = &pages.iter().find(|(name, _)| name == "skbudget-run").unwrap().1;
        assert!(run.contains("\\-\\-hard") && run.contains("Exit code"), "{run}");
        assert!(!run.contains("\\-\\-weight"), "hidden");
    }
}
