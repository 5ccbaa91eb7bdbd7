//! Devices and contexts, errors, versions.

use std::ffi::c_char;
use std::sync::Arc;

use super::entry::{Out, api, put_text};
use super::error::{Error, Result, c_name, c_text};
use super::state::{
    Context, current, current_any, driver, initialise, lock, pop_current, push_current, set_current,
};
use super::stream;

/// Scheduling (0 to 7), map-host, keep-local-memory, coredump and sync-memops bits.
const KNOWN_FLAGS: u32 = 0xff;
/// `CU_LIMIT_*`: the last that has a value here, and the values of a new context.
const LIMITS: [(u32, usize); 7] = [
    (0, 1024),    // stack size
    (1, 1 << 20), // printf buffer
    (2, 8 << 20), // malloc heap
    (3, 2),       // dynamic parallelism: depth
    (4, 2048),    // dynamic parallelism: pending launches
    (5, 128),     // L2 fetch granularity
    (6, 0),       // persisting L2
];

/// 16 bytes that name a device: the same in every process, different for each ordinal.
fn uuid(ordinal: usize) -> [u8; 16] {
    let mut id = *b"cudasim-device\0\0";
    id[14..].copy_from_slice(&(ordinal as u16).to_be_bytes());
    id
}

fn create(context: Out<usize>, flags: u32, device: i32) -> Result {
    context.check()?;
    let driver = driver()?;
    let device = driver.device(device)?;
    device.check()?;
    if flags & !KNOWN_FLAGS != 0 {
        return Err(Error::INVALID_VALUE);
    }
    let made = Context::create(driver, device, false, flags);
    push_current(made.clone());
    context.set(made.handle)
}

/// The current context's cell, read or changed.
fn set_primary_flags(device: i32, flags: u32) -> Result {
    let device = driver()?.device(device)?;
    if flags & !KNOWN_FLAGS != 0 {
        return Err(Error::INVALID_VALUE);
    }
    let mut primary = lock(&device.primary);
    primary.flags = flags;
    if let Some(context) = &primary.context {
        *lock(&context.flags) = flags;
    }
    Ok(())
}

fn release_primary(device: i32, all: bool) -> Result {
    let driver = driver()?;
    let mut primary = lock(&driver.device(device)?.primary);
    if !all {
        primary.retained = primary.retained.checked_sub(1).ok_or(Error::INVALID_CONTEXT)?;
    }
    if (all || primary.retained == 0)
        && let Some(context) = primary.context.take()
    {
        context.destroy(driver);
    }
    Ok(())
}

api! {
    fn cuInit(flags: u32) {
        if flags != 0 {
            return Err(Error::INVALID_VALUE);
        }
        let driver = initialise()?;
        if driver.devices.is_empty() { Err(Error::NO_DEVICE) } else { Ok(()) }
    }

    fn cuDriverGetVersion(version: Out<i32>) {
        version.check()?;
        // May be called before cuInit, which then reads the same settings.
        let (major, minor) = match initialise() {
            Ok(driver) => driver.config.driver,
            Err(_) => (13, 0),
        };
        version.set((major * 1000 + minor * 10) as i32)
    }

    fn cuGetErrorName(error: u32, name: Out<*const c_char>) {
        name.check()?;
        let known = c_name(error);
        name.set(known.unwrap_or(std::ptr::null()))?;
        known.map(|_| ()).ok_or(Error::INVALID_VALUE)
    }

    fn cuGetErrorString(error: u32, text: Out<*const c_char>) {
        text.check()?;
        let known = c_text(error);
        text.set(known.unwrap_or(std::ptr::null()))?;
        known.map(|_| ()).ok_or(Error::INVALID_VALUE)
    }

    fn cuDeviceGetCount(count: Out<i32>) {
        count.check()?;
        count.set(driver()?.devices.len() as i32)
    }

    fn cuDeviceGet(device: Out<i32>, ordinal: i32) {
        device.check()?;
        driver()?.device(ordinal)?;
        device.set(ordinal)
    }

    fn cuDeviceGetName(name: *mut c_char, room: i32, device: i32) {
        let device = driver()?.device(device)?;
        put_text(name, usize::try_from(room).unwrap_or(0), &device.spec.name)
    }

    fn cuDeviceGetUuid(id: Out<[u8; 16]>, device: i32) {
        id.set(uuid(driver()?.device(device)?.ordinal))
    }

    fn cuDeviceGetUuid_v2(id: Out<[u8; 16]>, device: i32) {
        id.set(uuid(driver()?.device(device)?.ordinal))
    }

    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) {
        bytes.check()?;
        bytes.set(driver()?.device(device)?.memory.capacity() as usize)
    }

    fn cuDeviceGetAttribute(value: Out<i32>, attribute: i32, device: i32) {
        value.check()?;
        let device = driver()?.device(device)?;
        let known = device.spec.attribute(attribute, device.ordinal as u32);
        value.set(known.ok_or(Error::INVALID_VALUE)?)
    }

    fn cuDeviceComputeCapability(major: Out<i32>, minor: Out<i32>, device: i32) {
        let device = driver()?.device(device)?;
        major.set(device.spec.compute_capability[0] as i32)?;
        minor.set(device.spec.compute_capability[1] as i32)
    }

    fn cuDeviceGetPCIBusId(id: *mut c_char, room: i32, device: i32) {
        let device = driver()?.device(device)?;
        put_text(id, usize::try_from(room).unwrap_or(0), &format!("0000:{:02X}:00.0", device.ordinal + 1))
    }

    fn cuDeviceCanAccessPeer(can: Out<i32>, device: i32, peer: i32) {
        let driver = driver()?;
        driver.device(device)?;
        driver.device(peer)?;
        // A kernel reaches the memory of its own device and pinned memory only; peer copies work.
        can.set(0)
    }

    fn cuCtxEnablePeerAccess(peer: usize, flags: u32) {
        driver()?.contexts.get(peer).map_err(|_| Error::INVALID_CONTEXT)?;
        current()?;
        Err(if flags == 0 { Error::PEER_ACCESS_UNSUPPORTED } else { Error::INVALID_VALUE })
    }

    fn cuCtxDisablePeerAccess(peer: usize) {
        driver()?.contexts.get(peer).map_err(|_| Error::INVALID_CONTEXT)?;
        current()?;
        Err(Error::PEER_ACCESS_NOT_ENABLED)
    }

    fn cuDevicePrimaryCtxRetain(context: Out<usize>, device: i32) {
        context.check()?;
        let driver = driver()?;
        let device = driver.device(device)?;
        device.check()?;
        let mut primary = lock(&device.primary);
        let flags = primary.flags;
        let own = primary.context.get_or_insert_with(|| Context::create(driver, device, true, flags)).handle;
        primary.retained += 1;
        context.set(own)
    }

    fn cuDevicePrimaryCtxRelease_v2(device: i32) {
        release_primary(device, false)
    }

    fn cuDevicePrimaryCtxReset_v2(device: i32) {
        release_primary(device, true)
    }

    fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) {
        let primary = lock(&driver()?.device(device)?.primary);
        flags.set(primary.flags)?;
        active.set(primary.context.is_some().into())
    }

    fn cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32) {
        set_primary_flags(device, flags)
    }

    fn cuCtxCreate_v2(context: Out<usize>, flags: u32, device: i32) {
        create(context, flags, device)
    }

    fn cuCtxCreate_v3(context: Out<usize>, _affinity: usize, affinities: i32, flags: u32, device: i32) {
        if affinities != 0 {
            return Err(Error::NOT_SUPPORTED);
        }
        create(context, flags, device)
    }

    fn cuCtxCreate_v4(context: Out<usize>, params: usize, flags: u32, device: i32) {
        if params != 0 {
            return Err(Error::NOT_SUPPORTED);
        }
        create(context, flags, device)
    }

    fn cuCtxDestroy_v2(context: usize) {
        let driver = driver()?;
        let context = driver.contexts.get(context).map_err(|_| Error::INVALID_CONTEXT)?;
        if context.primary {
            return Err(Error::INVALID_CONTEXT);
        }
        if current_any().is_ok_and(|own| Arc::ptr_eq(&own, &context)) {
            pop_current()?;
        }
        context.destroy(driver);
        Ok(())
    }

    fn cuCtxGetCurrent(context: Out<usize>) {
        context.check()?;
        driver()?;
        context.set(current_any().map_or(0, |own| own.handle))
    }

    fn cuCtxSetCurrent(context: usize) {
        let driver = driver()?;
        if context == 0 {
            set_current(None);
            return Ok(());
        }
        set_current(Some(driver.contexts.get(context).map_err(|_| Error::INVALID_CONTEXT)?));
        Ok(())
    }

    fn cuCtxPushCurrent_v2(context: usize) {
        push_current(driver()?.contexts.get(context).map_err(|_| Error::INVALID_CONTEXT)?);
        Ok(())
    }

    fn cuCtxPopCurrent_v2(context: Out<usize>) {
        driver()?;
        context.set_if_wanted(pop_current()?.handle);
        Ok(())
    }

    fn cuCtxGetDevice(device: Out<i32>) {
        device.set(current_any()?.device.ordinal as i32)
    }

    fn cuCtxGetId(context: usize, id: Out<u64>) {
        let handle = if context == 0 { current_any()?.handle } else { context };
        id.set(driver()?.contexts.get(handle).map_err(|_| Error::CONTEXT_IS_DESTROYED)?.handle as u64)
    }

    fn cuCtxGetApiVersion(context: usize, version: Out<u32>) {
        if context == 0 {
            current_any()?;
        } else {
            driver()?.contexts.get(context).map_err(|_| Error::INVALID_CONTEXT)?;
        }
        version.set(3020)
    }

    fn cuCtxGetFlags(flags: Out<u32>) {
        flags.set(*lock(&current()?.flags))
    }

    fn cuCtxSetFlags(flags: u32) {
        let context = current()?;
        if flags & !KNOWN_FLAGS != 0 {
            return Err(Error::INVALID_VALUE);
        }
        *lock(&context.flags) = flags;
        Ok(())
    }

    fn cuCtxGetLimit(value: Out<usize>, limit: u32) {
        let context = current()?;
        let usual = LIMITS.iter().find(|(own, _)| *own == limit).ok_or(Error::UNSUPPORTED_LIMIT)?.1;
        value.set(lock(&context.limits).get(&limit).copied().unwrap_or(usual))
    }

    fn cuCtxSetLimit(limit: u32, value: usize) {
        let context = current()?;
        LIMITS.iter().find(|(own, _)| *own == limit).ok_or(Error::UNSUPPORTED_LIMIT)?;
        lock(&context.limits).insert(limit, value);
        Ok(())
    }

    fn cuCtxGetCacheConfig(config: Out<u32>) {
        config.set(*lock(&current()?.cache_config))
    }

    fn cuCtxSetCacheConfig(config: u32) {
        let context = current()?;
        if config > 3 {
            return Err(Error::INVALID_VALUE);
        }
        *lock(&context.cache_config) = config;
        Ok(())
    }

    fn cuCtxGetSharedMemConfig(config: Out<u32>) {
        current()?;
        // CU_SHARED_MEM_CONFIG_FOUR_BYTE_BANK_SIZE, the only one since Maxwell.
        config.set(1)
    }

    fn cuCtxSetSharedMemConfig(config: u32) {
        current()?;
        if config > 2 { Err(Error::INVALID_VALUE) } else { Ok(()) }
    }

    fn cuCtxResetPersistingL2Cache() {
        current().map(|_| ())
    }

    fn cuCtxSynchronize() {
        stream::synchronise(driver()?, &*current()?)
    }

    fn cuCtxSynchronize_v2(context: usize) {
        let driver = driver()?;
        stream::synchronise(driver, &*driver.contexts.get(context).map_err(|_| Error::INVALID_CONTEXT)?)
    }

    fn cuProfilerStart() {
        current().map(|_| ())
    }

    fn cuProfilerStop() {
        current().map(|_| ())
    }
}
