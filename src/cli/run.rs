//! `visaged run`: the daemon.

use std::path::PathBuf;

use clap::Args;

use super::Failure;
use super::drive::drive;
use super::logging::{self, LogHandle};
use crate::config::{Config, SourceConfig};
use crate::daemon::{Daemon, Parts};

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

/// Runs until a signal comes, a clip ends, or a stage cannot go on.
///
/// # Errors
/// Exit 2 for a wrong configuration, 1 for a failed run.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref(), std::env::vars()).map_err(Failure::usage)?;
    let log = logging::start(&config.log).map_err(Failure::failed)?;
    if config.mqtt.is_none() && config.web.is_none() {
        tracing::warn!("neither [mqtt] nor [web] is on: nobody will learn what is seen");
    }
    if let SourceConfig::V4l2 { device, .. } = &config.camera.source {
        tracing::info!(camera = %device.display(), "starting");
    }
    let daemon = Daemon::start(config, Parts::default()).map_err(Failure::failed)?;
    drive(daemon, None, |daemon| reload(daemon, args, &log), || false)?;
    Ok(())
}

/// A wrong file changes nothing: the daemon goes on as it is.
fn reload(daemon: &mut Daemon, args: &RunArgs, log: &LogHandle) {
    match Config::load(args.config.as_deref(), std::env::vars()) {
        Ok(config) => {
            log.apply(&config.log);
            let waiting = daemon.reload(config);
            tracing::info!(?waiting, "configuration read again; what is waiting takes effect at the next start");
        }
        Err(error) => tracing::error!(%error, "configuration not taken over"),
    }
}
