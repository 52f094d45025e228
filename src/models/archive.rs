//! A bundle as one file: a plain tar with `manifest.toml` and the files that it names, and nothing else.
//!
//! Invariants: any bytes whatever give a verified bundle or an error; what is given out points into the archive, so nothing
//! takes memory by a number that the archive names; each file has the size and the SHA-256 of the manifest.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::{Bundle, BundleError, BundleFault, MANIFEST, MAX_MANIFEST_BYTES, Manifest, verify_bytes};

/// More files than any bundle has.
const MAX_FILES: usize = 64;
/// The name field of a tar header.
const MAX_NAME_BYTES: usize = 100;
const BLOCK_BYTES: usize = 512;

/// What an archive holds; the files are slices of it.
#[derive(Clone, Debug)]
pub struct Unpacked<'a> {
    /// Parsed and checked.
    pub manifest: Manifest,
    /// `manifest.toml` as it is written.
    pub manifest_text: &'a [u8],
    /// Each file that the manifest names, verified; the manifest itself is not among them.
    pub files: Vec<(String, &'a [u8])>,
}

/// Why an archive is not one.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// No tar.
    #[error("it is no tar archive: {0}")]
    NotTar(String),
    /// Links, folders, devices, extended headers.
    #[error("it holds {name:?}, which is not a plain file: make it with `visaged models pack`")]
    NotAFile {
        /// As in the archive.
        name: String,
    },
    /// A path.
    #[error("it holds {name:?}, which is not a plain file name")]
    Name {
        /// As in the archive.
        name: String,
    },
    /// The same name twice.
    #[error("it holds {name:?} twice")]
    Twice {
        /// The name.
        name: String,
    },
    /// Too many.
    #[error("it holds more than {MAX_FILES} files")]
    TooMany,
    /// It ends in the middle of a file.
    #[error("it ends within {name:?}: copy it again")]
    CutOff {
        /// The file.
        name: String,
    },
    /// Something behind the end.
    #[error("something stands behind its end")]
    Trailing,
    /// A file that the manifest does not name.
    #[error("it holds {name:?}, which its manifest.toml does not name")]
    Unnamed {
        /// The file.
        name: String,
    },
    /// A file that is not there.
    #[error("its {name:?} is missing")]
    Missing {
        /// The file.
        name: String,
    },
    /// The manifest, or a file's size or hash.
    #[error(transparent)]
    Bundle(#[from] BundleFault),
}

impl<'a> Unpacked<'a> {
    /// Reads and verifies an archive.
    ///
    /// # Errors
    /// [`ArchiveError`]: the first thing that is wrong with it.
    pub fn read(archive: &'a [u8]) -> Result<Self, ArchiveError> {
        let mut found = entries(archive)?;
        let manifest_text = found.remove(MANIFEST).ok_or_else(|| ArchiveError::Missing { name: MANIFEST.into() })?;
        if manifest_text.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(BundleFault::Syntax(format!("is larger than {MAX_MANIFEST_BYTES} bytes")).into());
        }
        let text = std::str::from_utf8(manifest_text).map_err(|_| BundleFault::Syntax("is not UTF-8".into()))?;
        let manifest = Manifest::parse(text)?;
        let mut files = Vec::with_capacity(found.len());
        for entry in &manifest.files {
            let missing = || ArchiveError::Missing { name: entry.path.clone() };
            let bytes = found.remove(&entry.path).ok_or_else(missing)?;
            verify_bytes(entry, bytes)?;
            files.push((entry.path.clone(), bytes));
        }
        match found.into_keys().next() {
            Some(name) => Err(ArchiveError::Unnamed { name }),
            None => Ok(Self { manifest, manifest_text, files }),
        }
    }
}

fn entries(archive: &[u8]) -> Result<BTreeMap<String, &[u8]>, ArchiveError> {
    let not_tar = |error: io::Error| ArchiveError::NotTar(error.to_string());
    let (mut found, mut end) = (BTreeMap::new(), 0);
    let mut reader = tar::Archive::new(archive);
    // Raw: extended headers, which could give another name or size, are seen as the entries that they are, and refused.
    for entry in reader.entries().map_err(not_tar)?.raw(true) {
        let entry = entry.map_err(not_tar)?;
        let name = plain_name(&entry)?;
        if found.len() == MAX_FILES {
            return Err(ArchiveError::TooMany);
        }
        let cut_off = || ArchiveError::CutOff { name: name.clone() };
        let from = usize::try_from(entry.raw_file_position()).map_err(|_| cut_off())?;
        let size = usize::try_from(entry.size()).map_err(|_| cut_off())?;
        let to = from.checked_add(size).ok_or_else(cut_off)?;
        let bytes = archive.get(from..to).ok_or_else(cut_off)?;
        end = to.next_multiple_of(BLOCK_BYTES);
        if found.insert(name.clone(), bytes).is_some() {
            return Err(ArchiveError::Twice { name });
        }
    }
    match archive.get(end..).unwrap_or_default().iter().all(|byte| *byte == 0) {
        true => Ok(found),
        false => Err(ArchiveError::Trailing),
    }
}

fn plain_name<R: io::Read>(entry: &tar::Entry<'_, R>) -> Result<String, ArchiveError> {
    let bytes = entry.header().path_bytes();
    let shown: String = String::from_utf8_lossy(&bytes).chars().take(MAX_NAME_BYTES).collect();
    if !entry.header().entry_type().is_file() {
        return Err(ArchiveError::NotAFile { name: shown });
    }
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let plain = bytes.len() <= MAX_NAME_BYTES && bytes.iter().all(allowed) && bytes.first().is_some_and(|b| *b != b'.');
    if plain { Ok(shown) } else { Err(ArchiveError::Name { name: shown }) }
}

/// Why a folder could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The folder's bundle is refused.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A file cannot be read.
    #[error("{file}: {source}")]
    Read {
        /// Which.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// What came of it could not be read back.
    #[error("the bundle does not fit an archive: {0}")]
    Archive(#[from] ArchiveError),
}

/// The bundle in `folder` as an archive, and the bundle. The same files give the same bytes: order, times, owners and modes
/// are fixed.
///
/// # Errors
/// [`PackError`] where the bundle would be refused, or an archive cannot hold it.
pub fn pack(folder: &Path) -> Result<(Bundle, Vec<u8>), PackError> {
    let bundle = Bundle::open(folder)?;
    let names = std::iter::once(MANIFEST).chain(bundle.manifest().files.iter().map(|file| file.path.as_str()));
    let mut builder = tar::Builder::new(Vec::new());
    for name in names {
        let read = |source| PackError::Read { file: folder.join(name).display().to_string(), source };
        let bytes = std::fs::read(folder.join(name)).map_err(read)?;
        append(&mut builder, name, &bytes).map_err(read)?;
    }
    let archive = builder.into_inner().map_err(|source| PackError::Read { file: MANIFEST.into(), source })?;
    Unpacked::read(&archive)?;
    Ok((bundle, archive))
}

/// One file, without anything of the machine that packs.
pub(super) fn append(builder: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_cksum();
    builder.append(&header, bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::super::{MODEL, Task, sha256_hex};
    use super::*;

    /// A bundle like the built-in one, of another version, and with another model where one is given.
    pub(crate) fn archive_of(task: Task, version: &str, model: Option<&[u8]>) -> Vec<u8> {
        let built_in = Bundle::built_in(task).unwrap();
        let model = model.unwrap_or(built_in.model());
        let mut manifest = built_in.manifest().clone();
        manifest.version = version.into();
        manifest.files.retain(|file| file.path == MODEL);
        manifest.files[0].sha256 = sha256_hex(model);
        manifest.files[0].bytes = model.len() as u64;
        tar_of(&[(MANIFEST, toml::to_string(&manifest).unwrap().as_bytes()), (MODEL, model)])
    }

    pub(crate) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            append(&mut builder, name, bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn small() -> Vec<u8> {
        archive_of(Task::Derl, "0.1.9", Some(b"no model, but nobody looks"))
    }

    /// The archive with its first header changed and its sum put right.
    fn with_header(change: impl Fn(&mut tar::Header)) -> Vec<u8> {
        let mut archive = small();
        let mut header = tar::Header::from_byte_slice(&archive[..BLOCK_BYTES]).clone();
        change(&mut header);
        header.set_cksum();
        archive[..BLOCK_BYTES].copy_from_slice(header.as_bytes());
        archive
    }

    #[test]
    fn an_archive_holds_the_manifest_and_what_it_names() {
        let archive = small();
        let unpacked = Unpacked::read(&archive).unwrap();
        assert_eq!(unpacked.manifest.version, "0.1.9");
        assert_eq!(unpacked.files, [(MODEL.to_string(), b"no model, but nobody looks".as_slice())]);
    }

    #[test]
    fn packing_a_folder_twice_gives_the_same_bytes_and_a_bundle_that_is_taken() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models-quantized/detector");
        let (bundle, archive) = pack(&folder).unwrap();
        assert_eq!(archive, pack(&folder).unwrap().1);
        let unpacked = Unpacked::read(&archive).unwrap();
        assert_eq!(unpacked.manifest, *bundle.manifest());
        assert_eq!(unpacked.files.iter().find(|(name, _)| name == MODEL).unwrap().1, bundle.model());
    }

    #[test]
    fn links_folders_devices_and_extended_headers_are_refused() {
        use tar::EntryType as T;
        let kinds = [T::Symlink, T::Link, T::Directory, T::Char, T::Block, T::Fifo, T::GNULongName, T::GNULongLink];
        for kind in kinds.into_iter().chain([T::XHeader, T::XGlobalHeader, T::GNUSparse, T::Continuous]) {
            let archive = with_header(|header| header.set_entry_type(kind));
            assert!(matches!(Unpacked::read(&archive), Err(ArchiveError::NotAFile { .. })), "{kind:?}");
        }
    }

    #[test]
    fn names_that_are_paths_or_hidden_are_refused() {
        for name in ["../manifest.toml", "/etc/passwd", "a/manifest.toml", ".", "..", ".hidden", "a b", "ä", ""] {
            let archive = with_header(|header| {
                let field = &mut header.as_old_mut().name;
                field.fill(0);
                field[..name.len()].copy_from_slice(name.as_bytes());
            });
            assert!(matches!(Unpacked::read(&archive), Err(ArchiveError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn files_that_are_missing_too_many_twice_or_changed_are_refused() {
        let manifest = Unpacked::read(&small()).map(|u| u.manifest_text.to_vec()).unwrap();
        let model: &[u8] = b"no model, but nobody looks";
        let read = |files: &[(&str, &[u8])]| Unpacked::read(&tar_of(files)).map(drop).unwrap_err();
        assert!(matches!(read(&[(MODEL, model)]), ArchiveError::Missing { .. }));
        assert!(matches!(read(&[(MANIFEST, &manifest)]), ArchiveError::Missing { .. }));
        let both = [(MANIFEST, manifest.as_slice()), (MODEL, model)];
        assert!(matches!(read(&[both[0], both[1], ("more", b"x")]), ArchiveError::Unnamed { .. }));
        assert!(matches!(read(&[both[0], both[1], both[1]]), ArchiveError::Twice { .. }));
        let changed = [both[0], (MODEL, b"No model, but nobody looks".as_slice())];
        assert!(matches!(read(&changed), ArchiveError::Bundle(BundleFault::Hash { .. })));
        let names: Vec<String> = (0..=MAX_FILES).map(|i| format!("f{i}")).collect();
        let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), b"".as_slice())).collect();
        assert!(matches!(read(&many), ArchiveError::TooMany));
    }

    #[test]
    fn a_size_beyond_the_archive_and_bytes_behind_its_end_are_refused() {
        let archive = with_header(|header| header.set_size(u64::MAX >> 2));
        assert!(matches!(Unpacked::read(&archive), Err(ArchiveError::CutOff { .. } | ArchiveError::NotTar(_))));
        let mut archive = small();
        archive.push(1);
        assert!(matches!(Unpacked::read(&archive), Err(ArchiveError::Trailing)));
    }

    proptest! {
        #[test]
        fn no_bytes_whatever_make_the_reader_of_archives_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let _ = Unpacked::read(&bytes);
        }

        #[test]
        fn a_damaged_archive_is_refused_or_holds_what_was_packed(at in 0_usize..6000, value in any::<u8>(), cut in 0_usize..12_000) {
            let whole = small();
            let mut archive = whole.clone();
            let place = at % archive.len();
            archive[place] = value;
            archive.truncate(archive.len().min(cut));
            if let Ok(unpacked) = Unpacked::read(&archive) {
                prop_assert_eq!(unpacked.files, Unpacked::read(&whole).unwrap().files);
            }
        }
    }
}
