//! Any bytes as a model archive: it ends, and what it gives lies within the archive and has the manifest's hashes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use visaged::models::archive::Unpacked;

fuzz_target!(|bytes: &[u8]| {
    let Ok(unpacked) = Unpacked::read(bytes) else { return };
    let within = bytes.as_ptr_range();
    for (name, content) in &unpacked.files {
        assert!(!name.contains(['/', '\0']) && !name.starts_with('.'));
        let range = content.as_ptr_range();
        assert!(within.start <= range.start && range.end <= within.end);
    }
    assert_eq!(unpacked.files.len(), unpacked.manifest.files.len());
});
