//! `visaged run`: the daemon.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::Failure;
use super::drive::{Driven, drive};
use super::logging::{self, LogHandle};
use crate::config::{Config, ConfigError, SourceConfig};
use crate::daemon::trial::{self, Phase, Trial, TrialError};
use crate::daemon::{CommandParts, Daemon, Parts};

/// Watch the camera and report over MQTT until told to stop.
#[derive(Debug, Args)]
#[command(after_help = "Signals: SIGTERM and SIGINT stop within two seconds, SIGHUP reads the configuration again.
Any key can be overridden: VISAGED_MQTT__HOST=broker.local visaged run

Examples:
  visaged run --config /etc/visaged/visaged.toml
  VISAGED_CAMERA__SOURCE=pattern visaged run")]
pub struct RunArgs {
    /// TOML file; without one the defaults hold (see docs/configuration.md)
    #[arg(long, short, value_name = "FILE", env = "VISAGED_CONFIG")]
    config: Option<PathBuf>,
}

/// Runs until a signal comes, a clip ends, a stage cannot go on, or a command wants a new start.
///
/// # Errors
/// Exit 2 for a wrong configuration, 1 for a failed run, and 1 where systemd is to start the daemon again.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let environment = environment();
    let mut trial = trial_at_start(args.config.as_deref())?;
    let config = match load(args, &environment) {
        Err(error) if trial.is_some() => {
            take_back(args, &mut trial, &error.to_string())?;
            load(args, &environment).map_err(Failure::usage)?
        }
        config => config.map_err(Failure::usage)?,
    };
    let log = logging::start(&config.log).map_err(Failure::failed)?;
    if config.mqtt.is_none() && config.web.is_none() {
        tracing::warn!("neither [mqtt] nor [web] is on: nobody will learn what is seen");
    }
    if let SourceConfig::V4l2 { device, .. } = &config.camera.source {
        tracing::info!(camera = %device.display(), "starting");
    }
    let control = log.clone();
    let commands = CommandParts {
        config_file: args.config.clone(),
        environment: environment.clone(),
        log: Some(Box::new(move |filter| control.set(filter))),
    };
    let daemon = match Daemon::start(config, Parts { commands, ..Parts::default() }) {
        Err(error) if trial.is_some() => {
            tracing::error!(%error, "the daemon does not start with the new configuration");
            take_back(args, &mut trial, &error.to_string())?;
            return start_anew();
        }
        daemon => daemon.map_err(Failure::failed)?,
    };
    match drive(daemon, None, |daemon| reload(daemon, args, &environment, &log), || false) {
        Ok(Driven::Restart) => start_anew(),
        Ok(Driven::Stopped | Driven::Finished) => Ok(()),
        // It may have begun or ended meanwhile.
        Err(failure) => match args.config.as_deref().map(trial::read) {
            Some(Ok(Some(mut on_trial))) if matches!(on_trial.phase, Phase::Running { .. }) => {
                tracing::error!(%failure, "the daemon does not run with the new configuration");
                let file = args.config.as_deref().unwrap_or(Path::new(""));
                trial::roll_back(file, &mut on_trial, &failure.to_string()).map_err(Failure::failed)?;
                start_anew()
            }
            _ => Err(failure),
        },
    }
}

/// What is no Unicode is no setting of ours.
fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn load(args: &RunArgs, environment: &[(String, String)]) -> Result<Config, ConfigError> {
    Config::load(args.config.as_deref(), environment.iter().cloned())
}

/// The trial that this start belongs to; one that did not outlast the process before is taken back.
fn trial_at_start(file: Option<&Path>) -> Result<Option<Trial>, Failure> {
    let Some(file) = file.filter(|file| file.exists()) else { return Ok(None) };
    match trial::at_start(file) {
        Ok(trial) => Ok(trial.filter(|trial| matches!(trial.phase, Phase::Running { .. }))),
        // Without the journal nothing can be taken back; what stands in the file is all there is.
        Err(error @ TrialError::Unreadable { .. }) => {
            eprintln!("visaged: {error}");
            Ok(None)
        }
        Err(error) => Err(Failure::failed(error)),
    }
}

fn take_back(args: &RunArgs, trial: &mut Option<Trial>, reason: &str) -> Result<(), Failure> {
    if let (Some(file), Some(mut trial)) = (args.config.as_deref(), trial.take()) {
        trial::roll_back(file, &mut trial, &reason.replace('\n', "; ")).map_err(Failure::failed)?;
    }
    Ok(())
}

/// Under systemd the process ends so that it is started again, with whatever has changed in its unit; elsewhere it takes
/// its own place, as nobody might start it.
fn start_anew() -> Result<(), Failure> {
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        return Err(Failure::start_again());
    }
    let program = std::env::current_exe().map_err(Failure::failed)?;
    // Where the program was replaced meanwhile, the kernel says so behind its name.
    let program =
        program.to_str().and_then(|name| name.strip_suffix(" (deleted)")).map_or(program.clone(), PathBuf::from);
    tracing::info!("starting anew");
    let error = std::process::Command::new(&program).args(std::env::args_os().skip(1)).exec();
    Err(Failure::failed(error))
}

/// A wrong file changes nothing: the daemon goes on as it is.
fn reload(daemon: &mut Daemon, args: &RunArgs, environment: &[(String, String)], log: &LogHandle) {
    match load(args, environment) {
        Ok(config) => {
            log.apply(&config.log);
            let waiting = daemon.reload(config);
            tracing::info!(?waiting, "configuration read again; what is waiting takes effect at the next start");
        }
        Err(error) => tracing::error!(%error, "configuration not taken over"),
    }
}
