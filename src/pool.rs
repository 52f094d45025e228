//! Values that are used again instead of being allocated for every frame.
//!
//! A [`Pooled`] goes back to its [`Pool`] when dropped. Invariant: the pool never holds more than `limit` idle values,
//! so a burst is paid for once and its memory is given back.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// A shared store of idle values.
#[derive(Debug)]
pub struct Pool<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    idle: Mutex<Vec<T>>,
    limit: usize,
}

impl<T> Clone for Pool<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T: Default> Pool<T> {
    /// A pool that keeps at most `limit` idle values.
    pub fn new(limit: usize) -> Self {
        Self { shared: Arc::new(Shared { idle: Mutex::new(Vec::with_capacity(limit)), limit }) }
    }

    /// An idle value as its last user left it, or `T::default()` where none is idle.
    pub fn take(&self) -> Pooled<T> {
        let value = self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        Pooled { value: Some(value), home: Arc::clone(&self.shared) }
    }
}

/// A value on loan; dropping it gives it back.
#[derive(Debug)]
pub struct Pooled<T> {
    value: Option<T>,
    home: Arc<Shared<T>>,
}

impl<T> Deref for Pooled<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.value.as_ref().expect("present until dropped")
    }
}

impl<T> DerefMut for Pooled<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("present until dropped")
    }
}

impl<T> Drop for Pooled<T> {
    fn drop(&mut self) {
        let Some(value) = self.value.take() else { return };
        let mut idle = self.home.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.home.limit {
            idle.push(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_value_is_handed_out_again_with_its_capacity() {
        let pool: Pool<Vec<u8>> = Pool::new(2);
        let mut first = pool.take();
        first.reserve(1000);
        let place = first.as_ptr();
        drop(first);
        assert_eq!(pool.take().as_ptr(), place);
    }

    #[test]
    fn the_pool_keeps_no_more_than_its_limit() {
        let pool: Pool<Vec<u8>> = Pool::new(1);
        let (a, b) = (pool.take(), pool.take());
        drop(a);
        drop(b);
        assert_eq!(pool.shared.idle.lock().unwrap().len(), 1);
    }
}
