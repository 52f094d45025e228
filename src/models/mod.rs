//! Model bundles: manifest, verification, the defaults inside the binary.
//!
//! A bundle is a folder with `manifest.toml`, `model.onnx` and whatever else the manifest lists.
//! Invariant: a [`Bundle`] that exists has been verified: schema, version, paths, sizes and SHA-256 of its files. Nothing
//! parses a model before that.

mod manifest;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

pub use manifest::{
    DerlManifest, DetectionEntry, DetectorManifest, FileEntry, InputEntry, Manifest, NeutralityEntry, OutputEntry,
    SCHEMA, Task,
};

const MANIFEST: &str = "manifest.toml";
const MODEL: &str = "model.onnx";
/// No file of a bundle may be larger.
pub const MAX_FILE_BYTES: u64 = 256 << 20;
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// A verified bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    origin: Origin,
    manifest: Manifest,
    model: Cow<'static, [u8]>,
}

/// Where a bundle comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Compiled into this binary.
    BuiltIn(Task),
    /// A folder.
    Folder(PathBuf),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BuiltIn(task) => write!(f, "built-in {task}"),
            Self::Folder(path) => path.display().fmt(f),
        }
    }
}

/// A bundle was refused.
#[derive(Debug, thiserror::Error)]
#[error("model bundle {origin}: {fault}")]
pub struct BundleError {
    /// Which bundle.
    pub origin: Origin,
    /// Why.
    #[source]
    pub fault: BundleFault,
}

/// Why a bundle was refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleFault {
    /// A file cannot be read.
    #[error("cannot read {file}: {source}; a bundle is a folder with manifest.toml and model.onnx")]
    Read {
        /// Which file of the bundle.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// The manifest is not TOML or lacks a key.
    #[error("manifest.toml: {0}")]
    Syntax(String),
    /// The manifest has a schema of another program version.
    #[error("manifest.toml has schema {found}, this program reads {supported}: take a bundle made for it")]
    Schema {
        /// In the manifest.
        found: i64,
        /// Of this program.
        supported: i64,
    },
    /// The bundle is for something else.
    #[error("it is a {found} bundle where a {expected} bundle is needed")]
    Task {
        /// Needed.
        expected: Task,
        /// In the manifest.
        found: Task,
    },
    /// The bundle's interface is of another major version.
    #[error(
        "{task} version {found} does not fit this program, which takes {supported}.x: install the bundle made for it"
    )]
    Version {
        /// Of the bundle.
        task: Task,
        /// In the manifest.
        found: String,
        /// Major and minor version that fit.
        supported: String,
    },
    /// A value in the manifest is not usable.
    #[error("manifest.toml: `{key}` {reason}")]
    Value {
        /// Which key.
        key: String,
        /// Why not.
        reason: String,
    },
    /// A listed path leaves the bundle's folder.
    #[error("manifest.toml lists {path:?}, which is not a plain path inside the bundle")]
    UnsafePath {
        /// As listed.
        path: String,
    },
    /// `model.onnx` is not among the listed files.
    #[error("manifest.toml does not list model.onnx under [[files]]")]
    Unlisted,
    /// A file has another size than listed.
    #[error("{file} has {found} bytes, manifest.toml lists {expected}: copy the bundle again")]
    Size {
        /// Which file.
        file: String,
        /// Listed.
        expected: u64,
        /// On disk.
        found: u64,
    },
    /// A file has another hash than listed.
    #[error(
        "{file} has SHA-256 {found}, manifest.toml lists {expected}: it was changed or damaged, copy the bundle again"
    )]
    Hash {
        /// Which file.
        file: String,
        /// Listed.
        expected: String,
        /// Computed.
        found: String,
    },
    /// A tensor has another shape than this program works with.
    #[error("{tensor} has shape {found:?}, this program needs {expected:?} (0: any)")]
    Shape {
        /// Which input or output.
        tensor: String,
        /// Needed.
        expected: Vec<usize>,
        /// In the manifest or the graph.
        found: Vec<usize>,
    },
}

impl Bundle {
    /// The bundle for `task` inside this binary.
    ///
    /// # Errors
    /// [`BundleError`]; only where the binary was built from a damaged tree.
    pub fn built_in(task: Task) -> Result<Self, BundleError> {
        let (manifest, model): (&str, &'static [u8]) = match task {
            Task::Detector => (
                include_str!("../../models-quantized/detector/manifest.toml"),
                include_bytes!("../../models-quantized/detector/model.onnx"),
            ),
            Task::Derl => (
                include_str!("../../models-quantized/derl/manifest.toml"),
                include_bytes!("../../models-quantized/derl/model.onnx"),
            ),
        };
        let origin = Origin::BuiltIn(task);
        Self::verify_built_in(task, manifest, model)
            .map(|manifest| Self { origin: origin.clone(), manifest, model: Cow::Borrowed(model) })
            .map_err(|fault| BundleError { origin, fault })
    }

    /// Opens and verifies the bundle in `folder`, every listed file of it.
    ///
    /// # Errors
    /// [`BundleError`]: the first thing that is wrong with it.
    pub fn open(folder: &Path) -> Result<Self, BundleError> {
        let origin = Origin::Folder(folder.to_owned());
        match Self::read_folder(folder) {
            Ok((manifest, model)) => Ok(Self { origin, manifest, model: Cow::Owned(model) }),
            Err(fault) => Err(BundleError { origin, fault }),
        }
    }

    /// The bundle for `task`: from `folder` where one is configured, else the one inside the binary.
    ///
    /// # Errors
    /// [`BundleError`], also where the folder holds a bundle for another task.
    pub fn load(task: Task, folder: Option<&Path>) -> Result<Self, BundleError> {
        let bundle = folder.map_or_else(|| Self::built_in(task), Self::open)?;
        bundle.check_task_view(task)?;
        Ok(bundle)
    }

    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The bytes of `model.onnx`, verified.
    pub fn model(&self) -> &[u8] {
        &self.model
    }

    /// The SHA-256 of `model.onnx`, in lower-case hexadecimal.
    pub fn model_sha256(&self) -> &str {
        self.manifest.files.iter().find(|f| f.path == MODEL).map_or("", |f| &f.sha256)
    }

    /// What a detector needs to know.
    ///
    /// # Errors
    /// [`BundleError`] where this is no detector bundle or its tensors do not fit.
    pub fn detector(&self) -> Result<DetectorManifest, BundleError> {
        DetectorManifest::from_manifest(&self.manifest).map_err(|fault| self.refuse(fault))
    }

    /// What de-expression needs to know.
    ///
    /// # Errors
    /// [`BundleError`] where this is no `derl` bundle or its tensors, labels or numbers do not fit.
    pub fn derl(&self) -> Result<DerlManifest, BundleError> {
        DerlManifest::from_manifest(&self.manifest).map_err(|fault| self.refuse(fault))
    }

    /// The same bundle, refused.
    pub(crate) fn refuse(&self, fault: BundleFault) -> BundleError {
        BundleError { origin: self.origin.clone(), fault }
    }

    fn check_task_view(&self, task: Task) -> Result<(), BundleError> {
        match task {
            Task::Detector => self.detector().map(drop),
            Task::Derl => self.derl().map(drop),
        }
    }

    fn verify_built_in(task: Task, manifest: &str, model: &[u8]) -> Result<Manifest, BundleFault> {
        let manifest = Manifest::parse(manifest)?;
        if manifest.task != task {
            return Err(BundleFault::Task { expected: task, found: manifest.task });
        }
        let entry = manifest.files.iter().find(|f| f.path == MODEL).ok_or(BundleFault::Unlisted)?;
        verify_bytes(entry, model)?;
        Ok(manifest)
    }

    fn read_folder(folder: &Path) -> Result<(Manifest, Vec<u8>), BundleFault> {
        let text = read_limited(folder, MANIFEST, MAX_MANIFEST_BYTES)?;
        let text = String::from_utf8(text).map_err(|_| BundleFault::Syntax("is not UTF-8".into()))?;
        let manifest = Manifest::parse(&text)?;
        let mut model = None;
        for entry in &manifest.files {
            if !is_plain(&entry.path) {
                return Err(BundleFault::UnsafePath { path: entry.path.clone() });
            }
            let bytes = read_limited(folder, &entry.path, entry.bytes.min(MAX_FILE_BYTES))?;
            verify_bytes(entry, &bytes)?;
            if entry.path == MODEL {
                model = Some(bytes);
            }
        }
        model.map(|model| (manifest, model)).ok_or(BundleFault::Unlisted)
    }
}

fn is_plain(path: &str) -> bool {
    let path = Path::new(path);
    path.components().next().is_some() && path.components().all(|c| matches!(c, Component::Normal(_)))
}

/// Reads at most `limit + 1` bytes, so that a file that grew is seen as such without being read whole.
fn read_limited(folder: &Path, name: &str, limit: u64) -> Result<Vec<u8>, BundleFault> {
    let mut bytes = Vec::new();
    File::open(folder.join(name))
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .map_err(|source| BundleFault::Read { file: name.into(), source })?;
    if name == MANIFEST && bytes.len() as u64 > limit {
        return Err(BundleFault::Syntax(format!("is larger than {limit} bytes")));
    }
    Ok(bytes)
}

fn verify_bytes(entry: &FileEntry, bytes: &[u8]) -> Result<(), BundleFault> {
    let found = bytes.len() as u64;
    if found != entry.bytes {
        return Err(BundleFault::Size { file: entry.path.clone(), expected: entry.bytes, found });
    }
    let found = sha256_hex(bytes);
    if !found.eq_ignore_ascii_case(&entry.sha256) {
        return Err(BundleFault::Hash { file: entry.path.clone(), expected: entry.sha256.clone(), found });
    }
    Ok(())
}

fn sha256_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
