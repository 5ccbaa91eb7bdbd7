//! Handles that programs hold: numbers that are looked up, never pointers that are followed, so that a stale or
//! invented handle is an error code.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::error::{Error, Result};

/// One number space for all kinds, so that a stream is never taken for an event. Numbers are not used twice. They
/// lie in the unused part of the address space between user and kernel addresses, away from real pointers.
static NEXT: AtomicUsize = AtomicUsize::new(0x00c5_0000_0000_0010);

/// A fresh number that no table gave out.
pub fn fresh() -> usize {
    NEXT.fetch_add(16, Ordering::Relaxed)
}

/// Live objects of one kind.
#[derive(Debug)]
pub struct Table<T>(RwLock<HashMap<usize, Arc<T>>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table(RwLock::default())
    }
}

impl<T> Table<T> {
    /// Keeps the object that `make` builds from its own handle.
    pub fn insert(&self, make: impl FnOnce(usize) -> T) -> Arc<T> {
        let handle = fresh();
        let object = Arc::new(make(handle));
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(handle, object.clone());
        object
    }

    /// The object behind a handle.
    ///
    /// # Errors
    /// [`Error::INVALID_HANDLE`] when there is none.
    pub fn get(&self, handle: usize) -> Result<Arc<T>> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.get(&handle).cloned().ok_or(Error::INVALID_HANDLE)
    }

    /// Forgets an object.
    ///
    /// # Errors
    /// [`Error::INVALID_HANDLE`] when there is none.
    pub fn remove(&self, handle: usize) -> Result<Arc<T>> {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        table.remove(&handle).ok_or(Error::INVALID_HANDLE)
    }

    /// Forgets the objects for which `gone` holds.
    pub fn remove_where(&self, mut gone: impl FnMut(&T) -> bool) {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        table.retain(|_, object| !gone(object));
    }

    /// The live objects, in no order.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_valid_until_removed_and_in_its_own_table_only() {
        let (streams, events) = (Table::default(), Table::<u8>::default());
        let own = Arc::new(AtomicUsize::new(0));
        let stream = streams.insert(|handle| {
            own.store(handle, Ordering::Relaxed);
            7u8
        });
        let handle = own.load(Ordering::Relaxed);
        assert_eq!(*streams.get(handle).unwrap(), *stream);
        assert_eq!(events.get(handle), Err(Error::INVALID_HANDLE));
        streams.remove(handle).unwrap();
        assert_eq!(streams.get(handle), Err(Error::INVALID_HANDLE));
        assert_eq!(streams.get(0), Err(Error::INVALID_HANDLE));
    }
}
