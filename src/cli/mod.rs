//! The command line: one file a subcommand. Parses, calls the library, turns errors into one line and an exit code.
//!
//! Exit codes (fixed): 0 success, 1 a failed run, 2 bad usage or configuration. Data goes to stdout, all else to stderr.

use std::fmt;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::nn::{KERNELS_VARIABLE, Settings};

pub mod analyze;
pub mod bench;
pub mod check;
pub mod completions;
#[cfg(feature = "demo")]
pub mod demo;
pub mod embed;
pub mod logging;
pub mod models;
pub mod probe;
pub mod run;
pub mod synth;

mod drive;
mod owner;
mod stream;

const EXAMPLES: &str = "Examples:
  visaged demo                            the whole way on the bundled clip, with a live page
  visaged probe                           which cameras are there, and what they offer
  visaged check --config visaged.toml     what would work, what would not, and why
  visaged run --config visaged.toml       the daemon
  visaged analyze --json photo.jpg        one JSON line a picture
  visaged embed --json photos/            whose faces these are, as embeddings
  visaged synth makeup me.jpg --reference star.jpg -o me-made-up.jpg";

/// Reads emotions from faces on the device, by de-expression, and reports over MQTT.
#[derive(Debug, Parser)]
#[command(name = "visaged", version, about, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    #[cfg(feature = "demo")]
    Demo(demo::DemoArgs),
    Analyze(analyze::AnalyzeArgs),
    Embed(embed::EmbedArgs),
    Synth(synth::SynthArgs),
    /// List cameras, what they offer, and what would be taken
    Probe(probe::ProbeArgs),
    Check(check::CheckArgs),
    Models(models::ModelsArgs),
    Bench(bench::BenchArgs),
    Completions(completions::CompletionsArgs),
}

/// The process's exit code where it does not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The run failed.
    Failed,
    /// Bad usage or configuration.
    Usage,
}

/// Why a subcommand ends without success: one line for stderr and an exit code.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: Option<String>,
}

impl Failure {
    /// Exit 1 with the error and its causes on one line.
    pub fn failed(error: impl std::error::Error) -> Self {
        Self { exit: Exit::Failed, message: Some(chain(&error)) }
    }

    /// Exit 2 with the error and its causes.
    pub fn usage(error: impl std::error::Error) -> Self {
        Self { exit: Exit::Usage, message: Some(chain(&error)) }
    }

    /// Exit 1 where the daemon has stopped as it should and is to be started again: whatever restarts on failure does.
    pub fn start_again() -> Self {
        Self { exit: Exit::Failed, message: Some("stopped to be started again, as was asked over MQTT".into()) }
    }

    /// Exit 1 where the lines on stderr have been written already.
    pub fn reported() -> Self {
        Self { exit: Exit::Failed, message: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message.as_deref().unwrap_or_default())
    }
}

/// How networks are run where no configuration says so: in int8, on the kernels that the environment names.
///
/// # Errors
/// [`Failure`] with exit 2 where it names none.
fn settings() -> Result<Settings, Failure> {
    let name = std::env::var(KERNELS_VARIABLE).ok();
    Settings::default().with_kernels(name.as_deref()).map_err(Failure::usage)
}

/// An error and its causes, without saying twice what a message already holds.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Parses the arguments and runs the subcommand.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        #[cfg(feature = "demo")]
        Command::Demo(args) => demo::run(&args),
        Command::Analyze(args) => analyze::run(&args),
        Command::Embed(args) => embed::run(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Models(args) => models::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Probe(args) => probe::run(&args, &mut std::io::stdout().lock()).map_err(Failure::failed),
        Command::Completions(args) => completions::run(&args, &mut Cli::command()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for line in failure.message.iter().flat_map(|message| message.lines()) {
                eprintln!("visaged: {line}");
            }
            match failure.exit {
                Exit::Failed => ExitCode::from(1),
                Exit::Usage => ExitCode::from(2),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
