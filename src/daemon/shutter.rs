//! A picture of what the camera sees, for whoever asks: the command `snapshot`.
//!
//! Invariants: a frame that nobody asked for costs one look at a flag; whoever asks waits no longer than he says, and gets a frame that
//! was captured after he asked; nothing of a picture stays here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::frame::RgbImage;

/// Between the thread that has the pictures and one that asks for them.
#[derive(Debug, Default)]
pub(super) struct Shutter {
    wanted: AtomicBool,
    taken: Mutex<Option<RgbImage>>,
    there: Condvar,
}

impl Shutter {
    /// Copies the picture if somebody waits for one.
    pub(super) fn pass(&self, picture: &RgbImage) {
        if !self.wanted.load(Ordering::Relaxed) || !self.wanted.swap(false, Ordering::AcqRel) {
            return;
        }
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = Some(picture.clone());
        self.there.notify_all();
    }

    /// The next picture that passes; `None` where none does within `patience`.
    pub(super) fn take(&self, patience: Duration) -> Option<RgbImage> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken = None;
        self.wanted.store(true, Ordering::Release);
        let waited = self.there.wait_timeout_while(taken, patience, |taken| taken.is_none());
        let (mut taken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        self.wanted.store(false, Ordering::Release);
        taken.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(value: u8) -> RgbImage {
        RgbImage { width_px: 1, height_px: 1, data: vec![value; 3] }
    }

    #[test]
    fn only_a_picture_that_passes_after_the_asking_is_given_and_nothing_stays() {
        let shutter = Shutter::default();
        shutter.pass(&picture(1));
        assert!(shutter.take(Duration::ZERO).is_none());
        shutter.pass(&picture(2));
        let given = std::thread::scope(|scope| {
            let asked = scope.spawn(|| shutter.take(Duration::from_secs(60)));
            while shutter.taken.lock().unwrap().is_none() && !asked.is_finished() {
                shutter.pass(&picture(3));
                std::thread::yield_now();
            }
            asked.join().unwrap()
        });
        assert_eq!(given.unwrap().data, [3; 3]);
        assert!(shutter.taken.lock().unwrap().is_none());
    }
}
