//! Model bundles: manifest, verification, the defaults inside the binary, and the store of installed ones.
//!
//! A bundle is a folder with `manifest.toml`, `model.onnx` and whatever else the manifest lists. It travels as one signed file
//! ([`archive`]) and is installed into the [`store`].
//! Invariant: a [`Bundle`] that exists has been verified: schema, version, paths, sizes and SHA-256 of its files. Nothing
//! parses a model before that.

pub mod archive;
pub mod chunks;
pub mod fetch;
pub mod seal;
pub mod store;

mod disk;
mod manifest;
mod version;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

pub use manifest::{
    AvatarsEntry, DerlManifest, DetectionEntry, DetectorManifest, EMBEDDING_LEN, FileEntry, IDENTITY_SIDE_PX,
    IdentityManifest, InputEntry, MakeupManifest, Manifest, NeutralityEntry, OutputEntry, SCHEMA, Task,
    VerificationEntry,
};
pub use seal::ModelKey;
pub use store::{Store, StoreSettings};
pub use version::{NoVersion, Version};

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
    manifest_sha256: String,
    version: Version,
    model: Cow<'static, [u8]>,
    /// The file of `[avatars]`.
    avatars: Option<Cow<'static, [u8]>>,
}

/// What is inside this binary of a bundle.
struct Inside {
    manifest: &'static str,
    model: &'static [u8],
    avatars: Option<&'static [u8]>,
}

/// What was read of a bundle, verified.
struct Parts {
    manifest: Manifest,
    manifest_sha256: String,
    version: Version,
    model: Vec<u8>,
    avatars: Option<Vec<u8>>,
}

/// Where a bundle comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Compiled into this binary.
    BuiltIn(Task),
    /// A folder.
    Folder(PathBuf),
    /// Installed on this device.
    Store {
        /// What for.
        task: Task,
        /// Which.
        version: Version,
    },
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BuiltIn(task) => write!(f, "built-in {task}"),
            Self::Folder(path) => path.display().fmt(f),
            Self::Store { task, version } => write!(f, "installed {task} {version}"),
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
    /// No such bundle is inside this program.
    #[error(
        "this program was built without one: install one with `visaged models install`, or name the folder of one with \
         --bundle"
    )]
    Absent,
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
    /// A file that is needed is not among the listed files.
    #[error("manifest.toml does not list {0} under [[files]]")]
    Unlisted(String),
    /// The avatars are not the picture that they have to be.
    #[error("its avatars cannot be used: {0}; copy the bundle again, or make it anew")]
    Avatars(String),
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
    /// Whether a bundle for `task` is inside this binary; always, but for [optional](Task::is_optional) tasks.
    pub fn is_built_in(task: Task) -> bool {
        inside(task).is_some()
    }

    /// The bundle for `task` inside this binary.
    ///
    /// # Errors
    /// [`BundleError`]: there is none ([`BundleFault::Absent`]), or the binary was built from a damaged tree.
    pub fn built_in(task: Task) -> Result<Self, BundleError> {
        let Some(inside) = inside(task) else {
            return Err(BundleError { origin: Origin::BuiltIn(task), fault: BundleFault::Absent });
        };
        let verified = || {
            let (parsed, version) = Self::parse_built_in(task)?;
            verify_bytes(listed(&parsed, MODEL)?, inside.model)?;
            let avatars = match (&parsed.avatars, inside.avatars) {
                (None, _) => None,
                (Some(entry), Some(bytes)) => {
                    verify_bytes(listed(&parsed, &entry.file)?, bytes)?;
                    Some(Cow::Borrowed(bytes))
                }
                (Some(entry), None) => return Err(BundleFault::Unlisted(entry.file.clone())),
            };
            Ok((parsed, version, avatars))
        };
        let origin = Origin::BuiltIn(task);
        match verified() {
            Ok((parsed, version, avatars)) => {
                let manifest_sha256 = sha256_hex(inside.manifest.as_bytes());
                let model = Cow::Borrowed(inside.model);
                Ok(Self { origin, manifest: parsed, manifest_sha256, version, model, avatars })
            }
            Err(fault) => Err(BundleError { origin, fault }),
        }
    }

    /// The version of the bundle for `task` inside this binary; [`Version::NONE`] where there is none.
    ///
    /// # Errors
    /// [`BundleError`]; only where the binary was built from a damaged tree.
    pub fn built_in_version(task: Task) -> Result<Version, BundleError> {
        if !Self::is_built_in(task) {
            return Ok(Version::NONE);
        }
        let parsed = Self::parse_built_in(task);
        parsed.map(|(_, version)| version).map_err(|fault| BundleError { origin: Origin::BuiltIn(task), fault })
    }

    /// Opens and verifies the bundle in `folder`, every listed file of it.
    ///
    /// # Errors
    /// [`BundleError`]: the first thing that is wrong with it.
    pub fn open(folder: &Path) -> Result<Self, BundleError> {
        Self::from_files(Origin::Folder(folder.to_owned()), |name, limit| read_file(&folder.join(name), limit))
    }

    /// The bundle whose files `read` gives by name, and of each at most one byte more than it is told.
    fn from_files(origin: Origin, read: impl FnMut(&str, u64) -> io::Result<Vec<u8>>) -> Result<Self, BundleError> {
        match Self::read_files(read) {
            Ok(Parts { manifest, manifest_sha256, version, model, avatars }) => {
                let (model, avatars) = (Cow::Owned(model), avatars.map(Cow::Owned));
                Ok(Self { origin, manifest, manifest_sha256, version, model, avatars })
            }
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

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The bytes of `model.onnx`, verified.
    pub fn model(&self) -> &[u8] {
        &self.model
    }

    /// The bytes of the picture that holds its avatars, verified; `None` where it has none.
    pub fn avatars(&self) -> Option<&[u8]> {
        self.avatars.as_deref()
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

    /// What the identity network needs to know.
    ///
    /// # Errors
    /// [`BundleError`] where this is no `identity` bundle or its tensors or numbers do not fit.
    pub fn identity(&self) -> Result<IdentityManifest, BundleError> {
        IdentityManifest::from_manifest(&self.manifest).map_err(|fault| self.refuse(fault))
    }

    /// What the make-up networks need to know.
    ///
    /// # Errors
    /// [`BundleError`] where this is no `makeup` bundle or its tensors do not fit.
    pub fn makeup(&self) -> Result<MakeupManifest, BundleError> {
        MakeupManifest::from_manifest(&self.manifest).map_err(|fault| self.refuse(fault))
    }

    /// The same bundle, refused.
    pub(crate) fn refuse(&self, fault: BundleFault) -> BundleError {
        BundleError { origin: self.origin.clone(), fault }
    }

    fn check_task_view(&self, task: Task) -> Result<(), BundleError> {
        match task {
            Task::Detector => self.detector().map(drop),
            Task::Derl => self.derl().map(drop),
            Task::Identity => self.identity().map(drop),
            Task::Makeup => self.makeup().map(drop),
        }
    }

    fn parse_built_in(task: Task) -> Result<(Manifest, Version), BundleFault> {
        let manifest = Manifest::parse(inside(task).ok_or(BundleFault::Absent)?.manifest)?;
        if manifest.task != task {
            return Err(BundleFault::Task { expected: task, found: manifest.task });
        }
        let version = manifest.parsed_version()?;
        Ok((manifest, version))
    }

    fn read_files(mut read: impl FnMut(&str, u64) -> io::Result<Vec<u8>>) -> Result<Parts, BundleFault> {
        let mut read =
            |name: &str, limit| read(name, limit).map_err(|source| BundleFault::Read { file: name.into(), source });
        let text = read(MANIFEST, MAX_MANIFEST_BYTES)?;
        if text.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(BundleFault::Syntax(format!("is larger than {MAX_MANIFEST_BYTES} bytes")));
        }
        let manifest_sha256 = sha256_hex(&text);
        let text = String::from_utf8(text).map_err(|_| BundleFault::Syntax("is not UTF-8".into()))?;
        let manifest = Manifest::parse(&text)?;
        let (mut model, mut avatars) = (None, None);
        for entry in &manifest.files {
            if !is_plain(&entry.path) {
                return Err(BundleFault::UnsafePath { path: entry.path.clone() });
            }
            let bytes = read(&entry.path, entry.bytes.min(MAX_FILE_BYTES))?;
            verify_bytes(entry, &bytes)?;
            if entry.path == MODEL {
                model = Some(bytes);
            } else if manifest.avatars.as_ref().is_some_and(|avatars| avatars.file == entry.path) {
                avatars = Some(bytes);
            }
        }
        let version = manifest.parsed_version()?;
        let model = model.ok_or_else(|| BundleFault::Unlisted(MODEL.into()))?;
        if let (Some(entry), None) = (&manifest.avatars, &avatars) {
            return Err(BundleFault::Unlisted(entry.file.clone()));
        }
        Ok(Parts { manifest, manifest_sha256, version, model, avatars })
    }
}

/// Those that `VISAGED_BUILD_BUNDLES` named when the program was built: `IDENTITY` and `MAKEUP`.
mod optional {
    use super::Inside;
    include!(concat!(env!("OUT_DIR"), "/optional_bundles.rs"));
}

/// What is inside this binary of the bundle for `task`.
fn inside(task: Task) -> Option<Inside> {
    match task {
        Task::Detector => Some(Inside {
            manifest: include_str!("../../models-quantized/detector/manifest.toml"),
            model: include_bytes!("../../models-quantized/detector/model.onnx"),
            avatars: None,
        }),
        Task::Derl => Some(Inside {
            manifest: include_str!("../../models-quantized/derl/manifest.toml"),
            model: include_bytes!("../../models-quantized/derl/model.onnx"),
            avatars: None,
        }),
        Task::Identity => optional::IDENTITY,
        Task::Makeup => optional::MAKEUP,
    }
}

/// The entry of a file that has to be there.
fn listed<'a>(manifest: &'a Manifest, path: &str) -> Result<&'a FileEntry, BundleFault> {
    manifest.files.iter().find(|file| file.path == path).ok_or_else(|| BundleFault::Unlisted(path.into()))
}

fn is_plain(path: &str) -> bool {
    let path = Path::new(path);
    path.components().next().is_some() && path.components().all(|c| matches!(c, Component::Normal(_)))
}

/// Reads at most `limit + 1` bytes, so that a file that grew is seen as such without being read whole.
fn read_file(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
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

/// In lower-case hexadecimal.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
