//! Any bytes as an AVI: it ends, and what it gives lies within the file.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use visaged::picture::avi::AviReader;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut avi) = AviReader::open(Cursor::new(bytes)) else { return };
    assert!(avi.frame_time().as_secs_f64() > 0.0);
    let (mut data, mut first) = (Vec::new(), None);
    // A chunk takes eight bytes at least.
    for _ in 0..=bytes.len() / 8 {
        match avi.next_frame(&mut data) {
            Ok(true) => assert!(!data.is_empty() && data.len() < bytes.len()),
            Ok(false) => {
                first.get_or_insert_with(Vec::new);
                avi.rewind();
                break;
            }
            Err(_) => return,
        }
        first.get_or_insert_with(|| data.clone());
    }
    let first = first.expect("it has an end");
    if avi.next_frame(&mut data).is_ok_and(|more| more) {
        assert!(first.is_empty() || first == data, "the second round begins as the first did");
    }
});
