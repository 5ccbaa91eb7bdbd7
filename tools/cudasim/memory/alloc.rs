//! The allocation table: which addresses are valid.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Alignment of device allocations, as the driver's.
const ALIGN: u64 = 512;
/// Least distance between two device allocations, so that a small overrun hits no neighbour.
const GAP: u64 = 64 << 10;

/// What an allocation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllocationKind {
    /// Device memory.
    Device,
    /// A `.global` or `.const` variable of a module.
    Variable(Box<str>),
    /// Pinned host memory.
    Host,
}

/// One range of valid addresses.
#[derive(Debug)]
pub struct Allocation {
    /// First address.
    pub base: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// What it is.
    pub kind: AllocationKind,
    wholly: AtomicBool,
    initialised_bytes: AtomicU64,
}

impl Allocation {
    fn new(base: u64, bytes: u64, kind: AllocationKind) -> Arc<Allocation> {
        let wholly = AtomicBool::new(kind == AllocationKind::Host);
        Arc::new(Allocation { base, bytes, kind, wholly, initialised_bytes: AtomicU64::new(0) })
    }

    /// First address after it.
    pub fn end(&self) -> u64 {
        self.base + self.bytes
    }

    /// Whether all of `addr..addr + bytes` lies in it.
    #[inline]
    pub fn contains(&self, addr: u64, bytes: u64) -> bool {
        addr >= self.base && addr - self.base <= self.bytes && bytes <= self.bytes - (addr - self.base)
    }

    /// Whether it is memory of the device rather than of the host.
    #[inline]
    pub fn on_device(&self) -> bool {
        self.kind != AllocationKind::Host
    }

    /// Whether every byte was written, which makes the shadow unnecessary.
    #[inline]
    pub fn wholly_initialised(&self) -> bool {
        self.wholly.load(Ordering::Relaxed)
    }

    pub(super) fn set_wholly_initialised(&self) {
        self.wholly.store(true, Ordering::Relaxed);
    }

    /// Returns whether it was set.
    pub(super) fn clear_wholly_initialised(&self) -> bool {
        let was = self.wholly.swap(false, Ordering::Relaxed);
        if was {
            self.initialised_bytes.store(0, Ordering::Relaxed);
        }
        was
    }

    pub(super) fn count_initialised(&self, new: u64) {
        if self.initialised_bytes.fetch_add(new, Ordering::Relaxed) + new >= self.bytes {
            self.set_wholly_initialised();
        }
    }

    pub(super) fn uncount_initialised(&self, gone: u64) {
        self.initialised_bytes.fetch_sub(gone, Ordering::Relaxed);
    }
}

/// The allocations at one moment, sorted by address.
#[derive(Debug, Default)]
pub struct AllocationTable {
    sorted: Vec<Arc<Allocation>>,
}

impl AllocationTable {
    /// The allocation that contains `addr`.
    #[inline]
    pub fn find(&self, addr: u64) -> Option<&Arc<Allocation>> {
        self.before(addr).filter(|a| addr - a.base < a.bytes)
    }

    /// The allocation closest to `addr`.
    pub fn nearest(&self, addr: u64) -> Option<&Arc<Allocation>> {
        let i = self.sorted.partition_point(|a| a.base <= addr);
        let before = i.checked_sub(1).map(|i| &self.sorted[i]);
        let after = self.sorted.get(i);
        match (before, after) {
            (Some(b), Some(a)) if a.base - addr < addr.saturating_sub(b.end() - 1) => Some(a),
            (Some(b), _) => Some(b),
            (None, a) => a,
        }
    }

    /// All allocations in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Allocation>> {
        self.sorted.iter()
    }

    fn before(&self, addr: u64) -> Option<&Arc<Allocation>> {
        self.sorted.partition_point(|a| a.base <= addr).checked_sub(1).map(|i| &self.sorted[i])
    }
}

/// Hands out addresses of a window.
pub(super) struct Allocator {
    start: u64,
    end: u64,
    capacity: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    by_base: BTreeMap<u64, Arc<Allocation>>,
    /// Where fresh addresses begin; freed ones are reused only when these are spent.
    fresh: u64,
    used: u64,
    /// Built when it is asked for after a change.
    table: Option<Arc<AllocationTable>>,
}

fn rounded(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGN)
}

impl Allocator {
    pub(super) fn new(start: u64, end: u64, capacity: u64) -> Allocator {
        let start = start.next_multiple_of(ALIGN) + GAP;
        let state = Mutex::new(State { fresh: start, ..State::default() });
        Allocator { start, end: end - GAP, capacity, state }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn alloc(&self, bytes: u64, kind: AllocationKind) -> Option<u64> {
        let mut state = self.lock();
        if bytes == 0 || bytes > self.capacity || rounded(bytes) > self.capacity - state.used {
            return None;
        }
        let needed = rounded(bytes) + GAP;
        let base = if needed <= self.end - state.fresh {
            let base = state.fresh;
            state.fresh += needed;
            base
        } else {
            self.first_fit(&state, needed)?
        };
        state.used += rounded(bytes);
        state.by_base.insert(base, Allocation::new(base, bytes, kind));
        state.table = None;
        Some(base)
    }

    fn first_fit(&self, state: &State, needed: u64) -> Option<u64> {
        let mut at = self.start;
        for a in state.by_base.range(self.start..self.end).map(|(_, a)| a) {
            if a.base - at >= needed {
                return Some(at);
            }
            at = a.base + rounded(a.bytes) + GAP;
        }
        (at <= self.end && self.end - at >= needed).then_some(at)
    }

    pub(super) fn free(&self, addr: u64) -> Option<Arc<Allocation>> {
        let mut state = self.lock();
        if !state.by_base.get(&addr)?.on_device() {
            return None;
        }
        let gone = state.by_base.remove(&addr)?;
        state.used -= rounded(gone.bytes);
        state.table = None;
        Some(gone)
    }

    pub(super) fn register(&self, addr: u64, bytes: u64) {
        let mut state = self.lock();
        // A range that wraps around or lies in the device's window is no host memory.
        if bytes > 0 && addr.checked_add(bytes).is_some_and(|end| end <= self.start - GAP || addr >= self.end)
        {
            state.by_base.insert(addr, Allocation::new(addr, bytes, AllocationKind::Host));
            state.table = None;
        }
    }

    pub(super) fn unregister(&self, addr: u64) -> bool {
        let mut state = self.lock();
        let registered = state.by_base.get(&addr).is_some_and(|a| !a.on_device());
        if registered {
            state.by_base.remove(&addr);
            state.table = None;
        }
        registered
    }

    pub(super) fn table(&self) -> Arc<AllocationTable> {
        let mut state = self.lock();
        if let Some(table) = &state.table {
            return Arc::clone(table);
        }
        let table = Arc::new(AllocationTable { sorted: state.by_base.values().cloned().collect() });
        state.table = Some(Arc::clone(&table));
        table
    }

    pub(super) fn used(&self) -> u64 {
        self.lock().used
    }

    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }
}
