//! An archive that comes in pieces: in any order, some of them more than once.
//!
//! Invariants: nothing is written outside the announced size; what was not received is known byte for byte; the file is gone
//! when this is. Whether the bytes are the right ones is for the archive's hash and signature to say.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::fetch::FetchError;

/// More holes than this and the sender has lost its way.
const MAX_RANGES: usize = 4096;

/// A file that is being put together.
#[derive(Debug)]
pub struct Chunks {
    path: PathBuf,
    file: File,
    size: u64,
    /// Received: apart, in order, none empty.
    received: Vec<Range<u64>>,
}

/// Why a piece was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// It lies beyond the announced size.
    #[error("a piece of {bytes} bytes at {offset} does not lie within the {size} bytes that were announced")]
    Outside {
        /// Where it begins.
        offset: u64,
        /// Its length.
        bytes: usize,
        /// Announced.
        size: u64,
    },
    /// Pieces with too many holes between them.
    #[error("there are more than {MAX_RANGES} holes between the pieces: send them roughly in order")]
    Scattered,
    /// The disk.
    #[error("the piece could not be written: {0}")]
    Io(#[from] io::Error),
}

impl Chunks {
    pub(super) fn new(path: &Path, size: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Self { path: path.into(), file, size, received: Vec::new() })
    }

    /// Takes a piece; one that was there already is written again.
    ///
    /// # Errors
    /// [`ChunkError`]; what was received before stays.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ChunkError> {
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= self.size);
        let Some(end) = end else {
            return Err(ChunkError::Outside { offset, bytes: bytes.len(), size: self.size });
        };
        if bytes.is_empty() {
            return Ok(());
        }
        let joined = joined(&self.received, offset..end);
        if joined.len() > MAX_RANGES {
            return Err(ChunkError::Scattered);
        }
        self.file.write_all_at(bytes, offset)?;
        self.received = joined;
        Ok(())
    }

    /// Bytes received.
    pub fn received_bytes(&self) -> u64 {
        self.received.iter().map(|range| range.end - range.start).sum()
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What has not been received, in order.
    pub fn missing(&self) -> Vec<Range<u64>> {
        let starts = self.received.iter().map(|range| range.start).chain([self.size]);
        let ends = [0].into_iter().chain(self.received.iter().map(|range| range.end));
        ends.zip(starts).filter(|(from, to)| from < to).map(|(from, to)| from..to).collect()
    }

    /// Whether nothing is missing.
    pub fn complete(&self) -> bool {
        self.received_bytes() == self.size
    }

    pub(super) fn into_archive(self) -> Result<Vec<u8>, FetchError> {
        if let Some(first) = self.missing().first() {
            let missing = self.size - self.received_bytes();
            return Err(FetchError::Missing { missing, from: first.start, to: first.end });
        }
        let read = || {
            let mut archive = vec![0; usize::try_from(self.size).map_err(io::Error::other)?];
            self.file.read_exact_at(&mut archive, 0)?;
            Ok(archive)
        };
        read().map_err(|source| FetchError::File { path: self.path.clone(), source })
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "pieces not removed");
        }
    }
}

/// `ranges` with `new` among them, touching ones made one.
fn joined(ranges: &[Range<u64>], mut new: Range<u64>) -> Vec<Range<u64>> {
    let mut joined = Vec::with_capacity(ranges.len() + 1);
    for range in ranges {
        if range.end < new.start || range.start > new.end {
            joined.push(range.clone());
        } else {
            new = new.start.min(range.start)..new.end.max(range.end);
        }
    }
    let place = joined.partition_point(|range| range.start < new.start);
    joined.insert(place, new);
    joined
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunks(size: u64) -> (tempfile::TempDir, Chunks) {
        let folder = tempfile::tempdir().unwrap();
        let chunks = Chunks::new(&folder.path().join("x.chunks"), size).unwrap();
        (folder, chunks)
    }

    #[test]
    fn pieces_out_of_order_and_twice_make_the_archive_and_missing_ones_are_told() {
        let (folder, mut chunks) = chunks(10);
        chunks.put(6, b"6789").unwrap();
        chunks.put(0, b"01").unwrap();
        chunks.put(6, b"6789").unwrap();
        let missing = chunks.missing();
        assert_eq!((missing.len(), missing.first(), chunks.complete()), (1, Some(&(2..6)), false));
        chunks.put(1, b"12345").unwrap();
        assert!(chunks.complete());
        assert_eq!(chunks.into_archive().unwrap(), b"0123456789");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_incomplete_archive_is_refused_with_what_is_missing() {
        let (_folder, mut chunks) = chunks(10);
        chunks.put(0, b"012").unwrap();
        let error = chunks.into_archive().unwrap_err();
        assert!(matches!(error, FetchError::Missing { missing: 7, from: 3, to: 10 }), "{error}");
    }

    #[test]
    fn pieces_outside_the_announced_size_change_nothing() {
        let (_folder, mut chunks) = chunks(10);
        for (offset, bytes) in [(8, b"abc".as_slice()), (11, b"a"), (u64::MAX, b"a")] {
            assert!(matches!(chunks.put(offset, bytes), Err(ChunkError::Outside { .. })));
        }
        assert_eq!((chunks.received_bytes(), chunks.file.metadata().unwrap().len()), (0, 0));
    }

    #[test]
    fn pieces_with_holes_everywhere_do_not_fill_the_memory() {
        let (_folder, mut chunks) = chunks(1 << 20);
        let result = (0..=MAX_RANGES as u64).try_for_each(|i| chunks.put(2 * i, b"x"));
        assert!(matches!(result, Err(ChunkError::Scattered)));
        assert_eq!(chunks.received_bytes(), MAX_RANGES as u64);
    }

    proptest! {
        #[test]
        fn what_is_missing_is_known_byte_for_byte(pieces in proptest::collection::vec((0_u64..60, 0_usize..12), 0..40)) {
            let (_folder, mut chunks) = chunks(60);
            let mut seen = [false; 60];
            for (offset, length) in pieces {
                if chunks.put(offset, &vec![1; length]).is_ok() {
                    seen[offset as usize..offset as usize + length].fill(true);
                }
            }
            let missing: Vec<u64> = chunks.missing().into_iter().flatten().collect();
            let expected: Vec<u64> = (0..60).filter(|i| !seen[*i as usize]).collect();
            prop_assert_eq!(missing, expected);
        }
    }
}
