//! Logs: text or JSON on stderr, or the journal; the filter can be changed while running.

use std::io::IsTerminal as _;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::config::{LogConfig, LogFormat};

/// Changes the filter of a running process.
#[derive(Clone, Debug)]
pub struct LogHandle(reload::Handle<EnvFilter, Registry>);

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// No journal on this machine.
    #[error("log.format = \"journald\": the journal's socket cannot be reached ({0}): use \"text\" or \"json\"")]
    NoJournal(#[source] std::io::Error),
}

/// Starts logging for the whole process.
///
/// # Errors
/// [`LoggingError::NoJournal`] where the journal was asked for and is not there.
pub fn start(config: &LogConfig) -> Result<LogHandle, LoggingError> {
    let (filter, handle) = reload::Layer::new(filter(config));
    let output: Box<dyn Layer<_> + Send + Sync> = match config.format {
        // Colours are for people: not for files, pipes and the journal.
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            Box::new(tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(std::io::stderr))
        }
        LogFormat::Json => Box::new(tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr)),
        LogFormat::Journald => Box::new(tracing_journald::layer().map_err(LoggingError::NoJournal)?),
    };
    // A second start in one process (tests) keeps the first subscriber.
    let _ = tracing_subscriber::registry().with(filter).with(output).try_init();
    Ok(LogHandle(handle))
}

/// Checked when the configuration was read; `info` stands in should that ever not hold.
fn filter(config: &LogConfig) -> EnvFilter {
    EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"))
}

impl LogHandle {
    /// Takes over another filter.
    ///
    /// # Errors
    /// Why it is none.
    pub fn set(&self, text: &str) -> Result<(), String> {
        let filter = EnvFilter::try_new(text)
            .map_err(|error| format!("is no log filter ({error}): try \"info\" or \"visaged=debug\""))?;
        self.0.reload(filter).map_err(|error| error.to_string())
    }

    /// Takes over the filter of a new configuration.
    pub fn apply(&self, config: &LogConfig) {
        if let Err(error) = self.0.reload(filter(config)) {
            tracing::warn!(%error, "the log filter could not be changed");
        }
    }
}
