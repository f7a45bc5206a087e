//! Commands that print what other programs read: completions and man pages.
#![expect(missing_docs, reason = "clap prints doc comments: a comment here is a help text")]

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

const COMPLETIONS_HELP: &str = "\
bash: skbudget completions bash > /usr/share/bash-completion/completions/skbudget
zsh:  skbudget completions zsh > a folder of $fpath, as _skbudget
fish: skbudget completions fish > ~/.config/fish/completions/skbudget.fish";

#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_HELP)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// The page of this command [default: that of skbudget]
    #[arg(value_name = "COMMAND", conflicts_with = "out")]
    pub command: Option<String>,

    /// Write all pages to this folder
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
}
