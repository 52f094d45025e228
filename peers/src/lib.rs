//! Other inference engines behind one trait: ONNX Runtime, which says what a graph means, and LiteRT, which is fast.
//!
//! Both come as shared libraries in Python wheels and are opened at run time, so nothing here is linked or built. A test that needs
//! one and finds none says so and passes; see [`Missing`]. Only tests and benchmarks depend on this crate; it knows no other of ours.
//!
//! Invariant: each peer owns the memory that its library reads and writes, and lives no longer than its library, which is never closed.

pub mod litert;
pub mod onnxruntime;

use std::path::{Path, PathBuf};

/// One input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in the file.
    pub name: String,
    /// Its shape; a picture is NCHW here, whatever the engine wants.
    pub shape: Vec<usize>,
}

impl Tensor {
    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A network in another engine. Setting inputs and reading outputs are apart from running, so that only running is timed.
pub trait Peer {
    /// The inputs in order.
    fn inputs(&self) -> &[Tensor];
    /// The outputs in order.
    fn outputs(&self) -> &[Tensor];

    /// Fills an input.
    ///
    /// # Errors
    /// [`PeerError::Failed`] where `values` has another length or the engine refuses.
    fn set_input(&mut self, index: usize, values: &[f32]) -> Result<(), PeerError>;

    /// Runs once on the inputs that were set last.
    ///
    /// # Errors
    /// [`PeerError::Failed`] with what the engine said.
    fn run(&mut self) -> Result<(), PeerError>;

    /// An output of the last run.
    ///
    /// # Errors
    /// [`PeerError::Failed`] with what the engine said.
    fn output(&mut self, index: usize) -> Result<Vec<f32>, PeerError>;
}

/// Why a peer is not there or did not run.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The library was not found.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The library was found and cannot be used.
    #[error("{path}: {message}")]
    Load {
        /// The library.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// The engine refused.
    #[error("{engine}: {step}: {message}")]
    Failed {
        /// Which engine.
        engine: &'static str,
        /// While it did what.
        step: &'static str,
        /// What it said.
        message: String,
    },
}

/// A library that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no {library}: {variable} is not set and {searched} has none; `make training-venv` installs it")]
pub struct Missing {
    /// Which library.
    pub library: &'static str,
    /// The environment variable that would name it.
    pub variable: &'static str,
    /// Where it was looked for.
    pub searched: PathBuf,
}

/// Where a library is: what `variable` names, else the file in the training package's environment whose name begins with `prefix`.
fn locate(library: &'static str, variable: &'static str, folder: &str, prefix: &str) -> Result<PathBuf, Missing> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let environment = Path::new(env!("CARGO_MANIFEST_DIR")).join("../training/.venv/lib");
    let found = entries(&environment)
        .flat_map(|python| entries(&python.join("site-packages").join(folder)))
        .find(|file| file.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix)));
    found.ok_or(Missing { library, variable, searched: environment })
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The environment variable that, set to `required`, forbids that a test leaves a peer out.
pub const REQUIRED: &str = "VISAGED_PEERS";

/// For tests: the peer, or None, with a word on stderr, where its library is not installed.
///
/// # Panics
/// Where the peer failed otherwise, or is missing while [`REQUIRED`] says that none may.
pub fn installed<T>(peer: Result<T, PeerError>) -> Option<T> {
    match peer {
        Ok(peer) => Some(peer),
        Err(PeerError::Missing(missing)) => {
            let required = std::env::var_os(REQUIRED).is_some_and(|value| value == "required");
            assert!(!required, "{missing}");
            eprintln!("left out: {missing}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn check_length(engine: &'static str, tensor: &Tensor, got: usize) -> Result<(), PeerError> {
    if got == tensor.len() {
        return Ok(());
    }
    let message = format!("input {} takes {} values, got {got}", tensor.name, tensor.len());
    Err(PeerError::Failed { engine, step: "set an input", message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_nowhere_is_named_with_the_remedy() {
        let missing = locate("libnone.so", "VISAGED_NO_SUCH_LIB", "none", "libnone").unwrap_err();
        assert!(missing.to_string().contains("VISAGED_NO_SUCH_LIB"), "{missing}");
        assert!(missing.to_string().contains("make training-venv"), "{missing}");
        if std::env::var_os(REQUIRED).is_none() {
            assert_eq!(installed::<()>(Err(missing.into())), None);
        }
    }
}
