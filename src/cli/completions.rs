//! `visaged completions SHELL`: a completion script on stdout.

use clap::Args;
use clap_complete::Shell;

use super::Failure;

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  visaged completions bash > /usr/share/bash-completion/completions/visaged")]
pub struct CompletionsArgs {
    /// Which shell.
    shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// None: a closed stdout ends the process as for any filter.
pub fn run(args: &CompletionsArgs, command: &mut clap::Command) -> Result<(), Failure> {
    clap_complete::generate(args.shell, command, "visaged", &mut std::io::stdout());
    Ok(())
}
