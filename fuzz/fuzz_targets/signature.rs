//! Any text as a minisign signature and as the comment that it trusts: no panic, and never a seal without a key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use visaged::models::ModelKey;
use visaged::models::seal::Seal;

fuzz_target!(|text: &str| {
    let key: ModelKey = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3".parse().expect("a key");
    assert!(Seal::verify(b"archive", text, &[key]).is_err());
    let _ = text.parse::<ModelKey>();
    if let Ok(seal) = text.parse::<Seal>() {
        assert!(text.starts_with(&format!("visaged:{}:{}", seal.task, seal.version)));
    }
});
