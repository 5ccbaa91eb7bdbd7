//! Allocation: device memory, pools, pinned host memory, and what a pointer is.

use std::sync::{Arc, Weak};

use super::capture::refuse_unsafe;
use super::entry::{In, Out, api};
use super::error::{Error, Result};
use super::fault::Kind;
use super::op::Op;
use super::pool::{self, Pool};
use super::state::{Context, Driver, Pinned, current, driver, lock};
use super::stream::{of_context, open, submit};
use crate::memory::{Allocation, AllocationKind};

/// Takes device memory; work that is queued may hold some that it frees, so it is let run before giving up.
fn take(driver: &Driver, context: &Context, bytes: usize, pool: Option<Arc<Pool>>) -> Result<u64> {
    if bytes == 0 {
        return Err(Error::INVALID_VALUE);
    }
    driver.inject(Kind::Alloc, &context.device)?;
    let memory = &context.device.memory;
    let addr = memory.alloc(bytes as u64).or_else(|| {
        if driver.config.late {
            run_all(driver, context);
        }
        memory.alloc(bytes as u64)
    });
    let addr = addr.ok_or(Error::OUT_OF_MEMORY)?;
    if let Some(pool) = &pool {
        pool.taken(addr, bytes as u64);
    }
    lock(&context.owned).insert(addr, pool);
    Ok(addr)
}

/// Gives device memory back.
pub(super) fn release(context: &Context, addr: u64) {
    if let Some(pool) = lock(&context.owned).remove(&addr) {
        context.device.memory.free(addr);
        if let Some(pool) = pool {
            pool.returned(addr);
        }
    }
}

/// Memory that a captured allocation took. It has its address from the capture on, and goes when the last of the graph
/// and what was instantiated from it goes, or when the program frees it.
pub(super) struct GraphMemory {
    context: Weak<Context>,
    allocation: Arc<Allocation>,
}

impl GraphMemory {
    /// Where it lies.
    pub fn address(&self) -> u64 {
        self.allocation.base
    }
}

impl Drop for GraphMemory {
    fn drop(&mut self) {
        let Some(context) = self.context.upgrade() else { return };
        let addr = self.allocation.base;
        // The program may have freed it, and the address may be another's by now.
        if context.device.memory.find(addr).is_some_and(|found| Arc::ptr_eq(&found, &self.allocation)) {
            release(&context, addr);
        }
    }
}

/// Runs what is queued in streams that are not being captured.
fn run_all(driver: &Driver, context: &Context) {
    for stream in of_context(driver, context) {
        if stream.capture().is_none() {
            stream.finish(driver);
        }
    }
}

/// The context that owns an allocation beginning at `addr`.
fn owner(driver: &Driver, addr: u64) -> Result<Arc<Context>> {
    let device = driver.device_of(addr).ok_or(Error::INVALID_VALUE)?;
    let found = device.memory.find(addr).ok_or(Error::INVALID_VALUE)?;
    if found.base != addr || found.kind != AllocationKind::Device {
        return Err(Error::INVALID_VALUE);
    }
    let mut contexts = driver.contexts.all().into_iter();
    contexts.find(|context| lock(&context.owned).contains_key(&addr)).ok_or(Error::INVALID_VALUE)
}

fn take_async(address: Out<u64>, bytes: usize, pool: Option<Arc<Pool>>, stream: usize) -> Result {
    address.check()?;
    let (driver, context, stream) = open(stream)?;
    let pool = pool.unwrap_or_else(|| lock(&context.device.pool).clone());
    if pool.ordinal != context.device.ordinal {
        return Err(Error::INVALID_VALUE);
    }
    let addr = take(driver, &context, bytes, Some(pool))?;
    if let Some(capture) = stream.capture()
        && let Some(allocation) = context.device.memory.find(addr)
    {
        let memory = GraphMemory { context: Arc::downgrade(&context), allocation };
        // When the capture refuses it, the memory goes with the node.
        capture.add(&stream, Op::Alloc(Arc::new(memory)))?;
    }
    address.set(addr)
}

fn pin(pointer: Out<usize>, bytes: usize, flags: u32) -> Result {
    pointer.check()?;
    let (driver, context) = (driver()?, current()?);
    // Portable, device-mapped, write-combined.
    if bytes == 0 || flags > 7 {
        return Err(Error::INVALID_VALUE);
    }
    refuse_unsafe(driver)?;
    driver.inject(Kind::Alloc, &context.device)?;
    // SAFETY: a new anonymous mapping disturbs nothing.
    let made = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if made == libc::MAP_FAILED {
        return Err(Error::OUT_OF_MEMORY);
    }
    register(driver, made as u64, Pinned { bytes: bytes as u64, owned: true, flags });
    pointer.set(made as usize)
}

/// Makes host memory reachable from all devices, as unified addressing does.
fn register(driver: &Driver, addr: u64, range: Pinned) {
    lock(&driver.pinned).insert(addr, range);
    for device in &driver.devices {
        device.memory.register_host(addr, range.bytes);
    }
}

fn unregister(driver: &Driver, addr: u64) {
    for device in &driver.devices {
        device.memory.unregister_host(addr);
    }
}

// CUpointer_attribute.
const CONTEXT: u32 = 1;
const MEMORY_TYPE: u32 = 2;
const DEVICE_POINTER: u32 = 3;
const HOST_POINTER: u32 = 4;
const IS_MANAGED: u32 = 8;
const DEVICE_ORDINAL: u32 = 9;
const RANGE_START: u32 = 11;
const RANGE_SIZE: u32 = 12;
const MAPPED: u32 = 13;
const MEMPOOL: u32 = 17;

/// Stores an attribute of a pointer at `data`, whose type depends on the attribute.
fn pointer_attribute(data: usize, attribute: u32, addr: u64) -> Result {
    let driver = driver()?;
    if let Some(device) = driver.device_of(addr) {
        let found = device.memory.find(addr).ok_or(Error::INVALID_VALUE)?;
        let context = owner(driver, found.base).ok();
        return match attribute {
            CONTEXT => Out::<usize>::at(data).set(context.map_or(0, |own| own.handle)),
            MEMORY_TYPE => Out::<u32>::at(data).set(2),
            DEVICE_POINTER => Out::<u64>::at(data).set(addr),
            IS_MANAGED => Out::<u8>::at(data).set(0),
            DEVICE_ORDINAL => Out::<i32>::at(data).set(device.ordinal as i32),
            RANGE_START => Out::<u64>::at(data).set(found.base),
            RANGE_SIZE => Out::<usize>::at(data).set(found.bytes as usize),
            MAPPED => Out::<u8>::at(data).set(1),
            MEMPOOL => {
                let pool = context.and_then(|own| lock(&own.owned).get(&found.base).cloned().flatten());
                Out::<usize>::at(data).set(pool.map_or(0, |pool| pool.handle))
            }
            _ => Err(Error::INVALID_VALUE),
        };
    }
    let (base, range) = driver.pinned_at(addr).ok_or(Error::INVALID_VALUE)?;
    match attribute {
        CONTEXT => Out::<usize>::at(data).set(0),
        MEMORY_TYPE => Out::<u32>::at(data).set(1),
        DEVICE_POINTER | HOST_POINTER => Out::<u64>::at(data).set(addr),
        IS_MANAGED => Out::<u8>::at(data).set(0),
        DEVICE_ORDINAL => Out::<i32>::at(data).set(0),
        RANGE_START => Out::<u64>::at(data).set(base),
        RANGE_SIZE => Out::<usize>::at(data).set(range.bytes as usize),
        MAPPED => Out::<u8>::at(data).set(1),
        _ => Err(Error::INVALID_VALUE),
    }
}

api! {
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        free.check()?;
        let memory = &current()?.device.memory;
        free.set(memory.capacity().saturating_sub(memory.used()) as usize)?;
        total.set(memory.capacity() as usize)
    }

    fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) {
        address.check()?;
        let (driver, context) = (driver()?, current()?);
        refuse_unsafe(driver)?;
        address.set(take(driver, &context, bytes, None)?)
    }

    fn cuMemAllocPitch_v2(address: Out<u64>, pitch: Out<usize>, width: usize, height: usize, element: u32) {
        address.check()?;
        pitch.check()?;
        let (driver, context) = (driver()?, current()?);
        refuse_unsafe(driver)?;
        if !matches!(element, 4 | 8 | 16) {
            return Err(Error::INVALID_VALUE);
        }
        let row = width.checked_next_multiple_of(512).ok_or(Error::INVALID_VALUE)?;
        let bytes = row.checked_mul(height).ok_or(Error::INVALID_VALUE)?;
        address.set(take(driver, &context, bytes, None)?)?;
        pitch.set(row)
    }

    fn cuMemFree_v2(address: u64) {
        let (driver, context) = (driver()?, current()?);
        if address == 0 {
            return Ok(());
        }
        refuse_unsafe(driver)?;
        let owner = owner(driver, address)?;
        // Work that uses the memory comes first.
        run_all(driver, &owner);
        context.check_work()?;
        release(&owner, address);
        Ok(())
    }

    fn cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: usize) {
        take_async(address, bytes, None, stream)
    }

    fn cuMemAllocFromPoolAsync(address: Out<u64>, bytes: usize, pool: usize, stream: usize) {
        take_async(address, bytes, Some(pool::find(pool)?), stream)
    }

    fn cuMemFreeAsync(address: u64, stream: usize) {
        let (driver, _, stream) = open(stream)?;
        let owner = owner(driver, address)?;
        // A graph may free only what a graph allocated.
        if stream.capture().is_some() && !driver.graphs.all().iter().any(|graph| graph.allocates(address)) {
            return Err(Error::INVALID_VALUE);
        }
        submit(driver, &owner, &stream, Op::Free { addr: address })
    }

    fn cuMemGetAddressRange_v2(base: Out<u64>, bytes: Out<usize>, address: u64) {
        let driver = driver()?;
        current()?;
        let found = driver.devices.iter().find_map(|device| device.memory.find(address));
        let found = found.ok_or(Error::NOT_FOUND)?;
        base.set_if_wanted(found.base);
        bytes.set_if_wanted(found.bytes as usize);
        Ok(())
    }

    fn cuMemHostAlloc(pointer: Out<usize>, bytes: usize, flags: u32) {
        pin(pointer, bytes, flags)
    }

    fn cuMemAllocHost_v2(pointer: Out<usize>, bytes: usize) {
        pin(pointer, bytes, 0)
    }

    fn cuMemFreeHost(pointer: usize) {
        let (driver, context) = (driver()?, current()?);
        let range = {
            let mut pinned = lock(&driver.pinned);
            match pinned.get(&(pointer as u64)) {
                Some(range) if range.owned => {}
                _ => return Err(Error::INVALID_VALUE),
            }
            pinned.remove(&(pointer as u64))
        };
        let Some(range) = range else { return Err(Error::INVALID_VALUE) };
        run_all(driver, &context);
        unregister(driver, pointer as u64);
        // SAFETY: `pin` mapped exactly this range, and it is out of all tables, so that no copy or kernel uses it.
        unsafe { libc::munmap(pointer as *mut libc::c_void, range.bytes as usize) };
        Ok(())
    }

    fn cuMemHostRegister_v2(pointer: usize, bytes: usize, flags: u32) {
        let driver = driver()?;
        current()?;
        if pointer == 0 || bytes == 0 || flags > 0xf {
            return Err(Error::INVALID_VALUE);
        }
        refuse_unsafe(driver)?;
        let end = (pointer as u64).checked_add(bytes as u64).ok_or(Error::INVALID_VALUE)?;
        let taken = lock(&driver.pinned)
            .iter()
            .any(|(base, range)| *base < end && base + range.bytes > pointer as u64);
        if taken {
            return Err(Error::HOST_MEMORY_ALREADY_REGISTERED);
        }
        register(driver, pointer as u64, Pinned { bytes: bytes as u64, owned: false, flags });
        Ok(())
    }

    fn cuMemHostUnregister(pointer: usize) {
        let (driver, context) = (driver()?, current()?);
        run_all(driver, &context);
        let mut pinned = lock(&driver.pinned);
        match pinned.get(&(pointer as u64)) {
            Some(range) if !range.owned => {}
            Some(_) => return Err(Error::INVALID_VALUE),
            None => return Err(Error::HOST_MEMORY_NOT_REGISTERED),
        }
        pinned.remove(&(pointer as u64));
        unregister(driver, pointer as u64);
        Ok(())
    }

    fn cuMemHostGetDevicePointer_v2(address: Out<u64>, pointer: usize, flags: u32) {
        address.check()?;
        let driver = driver()?;
        if flags != 0 || driver.pinned_at(pointer as u64).is_none() {
            return Err(Error::INVALID_VALUE);
        }
        address.set(pointer as u64)
    }

    fn cuMemHostGetFlags(flags: Out<u32>, pointer: usize) {
        flags.check()?;
        let (_, range) = driver()?.pinned_at(pointer as u64).ok_or(Error::INVALID_VALUE)?;
        flags.set(range.flags)
    }

    fn cuPointerGetAttribute(data: usize, attribute: u32, address: u64) {
        if data == 0 {
            return Err(Error::INVALID_VALUE);
        }
        pointer_attribute(data, attribute, address)
    }

    fn cuPointerGetAttributes(count: u32, attributes: In<u32>, data: In<usize>, address: u64) {
        let attributes = attributes.get_all(count as usize)?;
        for (attribute, data) in attributes.into_iter().zip(data.get_all(count as usize)?) {
            // This form answers with zeros for pointers that it does not know.
            let _ = pointer_attribute(data, attribute, address);
        }
        Ok(())
    }
}
