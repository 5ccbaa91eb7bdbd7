//! Memory pools: what `cuMemAllocAsync` takes from. A pool here only counts, as memory goes back to the device at
//! once; the counts are those that a program can ask for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::entry::{In, Out, api};
use super::error::{Error, Result};
use super::state::{current, driver, lock};

/// A pool.
pub(super) struct Pool {
    pub handle: usize,
    pub ordinal: usize,
    state: Mutex<State>,
}

struct State {
    live: HashMap<u64, u64>,
    used: u64,
    high: u64,
    release_threshold: u64,
    reuse: [i32; 3],
}

impl Pool {
    /// An empty pool of a device.
    pub fn new(handle: usize, ordinal: usize) -> Pool {
        let state = State { live: HashMap::new(), used: 0, high: 0, release_threshold: 0, reuse: [1; 3] };
        Pool { handle, ordinal, state: Mutex::new(state) }
    }

    /// An allocation was made.
    pub fn taken(&self, addr: u64, bytes: u64) {
        let mut state = lock(&self.state);
        state.live.insert(addr, bytes);
        state.used += bytes;
        state.high = state.high.max(state.used);
    }

    /// An allocation was freed.
    pub fn returned(&self, addr: u64) {
        let mut state = lock(&self.state);
        if let Some(bytes) = state.live.remove(&addr) {
            state.used -= bytes;
        }
    }
}

/// The pool behind a handle, default pools included.
pub(super) fn find(handle: usize) -> Result<Arc<Pool>> {
    let driver = driver()?;
    let default = driver.devices.iter().map(|device| &device.default_pool).find(|pool| pool.handle == handle);
    default.map_or_else(|| driver.pools.get(handle), |pool| Ok(pool.clone()))
}

/// The start of `CUmemPoolProps`: all that matters here.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PoolProps {
    allocation_type: u32,
    handle_types: u32,
    location_type: u32,
    location_id: i32,
}

// CUmemPool_attribute: three reuse switches (`int`), then a threshold and counts of reserved and used bytes (64 bit).
const RELEASE_THRESHOLD: u32 = 4;
const RESERVED_HIGH: u32 = 6;
const USED_CURRENT: u32 = 7;
const USED_HIGH: u32 = 8;

api! {
    fn cuDeviceGetDefaultMemPool(pool: Out<usize>, device: i32) {
        pool.set(driver()?.device(device)?.default_pool.handle)
    }

    fn cuDeviceGetMemPool(pool: Out<usize>, device: i32) {
        pool.set(lock(&driver()?.device(device)?.pool).handle)
    }

    fn cuDeviceSetMemPool(device: i32, pool: usize) {
        let device = driver()?.device(device)?;
        let pool = find(pool)?;
        if pool.ordinal != device.ordinal {
            return Err(Error::INVALID_VALUE);
        }
        *lock(&device.pool) = pool;
        Ok(())
    }

    fn cuMemPoolCreate(pool: Out<usize>, props: In<PoolProps>) {
        pool.check()?;
        let (driver, props) = (driver()?, props.get()?);
        current()?;
        // CU_MEM_ALLOCATION_TYPE_PINNED on CU_MEM_LOCATION_TYPE_DEVICE, not to be shared.
        if props.allocation_type != 1 || props.location_type != 1 {
            return Err(Error::INVALID_VALUE);
        }
        if props.handle_types != 0 {
            return Err(Error::NOT_SUPPORTED);
        }
        let ordinal = driver.device(props.location_id)?.ordinal;
        pool.set(driver.pools.insert(|handle| Pool::new(handle, ordinal)).handle)
    }

    fn cuMemPoolDestroy(pool: usize) {
        let driver = driver()?;
        let pool = driver.pools.remove(pool)?;
        for device in &driver.devices {
            let mut current = lock(&device.pool);
            if current.handle == pool.handle {
                *current = device.default_pool.clone();
            }
        }
        Ok(())
    }

    fn cuMemPoolTrimTo(pool: usize, _keep: usize) {
        find(pool).map(|_| ())
    }

    fn cuMemPoolGetAttribute(pool: usize, attribute: u32, value: usize) {
        let pool = find(pool)?;
        let state = lock(&pool.state);
        if let 1..=3 = attribute {
            return Out::<i32>::at(value).set(state.reuse[attribute as usize - 1]);
        }
        Out::<u64>::at(value).set(match attribute {
            RELEASE_THRESHOLD => state.release_threshold,
            5 | USED_CURRENT => state.used,
            RESERVED_HIGH | USED_HIGH => state.high,
            _ => return Err(Error::INVALID_VALUE),
        })
    }

    fn cuMemPoolSetAttribute(pool: usize, attribute: u32, value: usize) {
        let pool = find(pool)?;
        let mut state = lock(&pool.state);
        if let 1..=3 = attribute {
            state.reuse[attribute as usize - 1] = In::<i32>::at(value).get()?;
            return Ok(());
        }
        let value = In::<u64>::at(value).get()?;
        match attribute {
            RELEASE_THRESHOLD => state.release_threshold = value,
            // The high-water marks can only be reset.
            RESERVED_HIGH | USED_HIGH if value == 0 => state.high = state.used,
            _ => return Err(Error::INVALID_VALUE),
        }
        Ok(())
    }
}
