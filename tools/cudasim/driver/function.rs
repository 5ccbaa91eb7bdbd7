//! Attributes of kernels, and occupancy.

use std::collections::HashMap;
use std::ffi::{CString, c_char};
use std::sync::{Mutex, OnceLock};

use super::entry::{In, Out, api};
use super::error::{Error, Result};
use super::module::Function;
use super::state::{current, driver, lock};
use crate::device::{DeviceSpec, Resources};

/// What a kernel needs and may have on a device.
pub(super) struct Limits {
    pub registers: u32,
    pub static_shared: u32,
    /// Dynamic shared memory that a launch may ask for.
    pub max_dynamic: u32,
    pub local: u32,
    /// Whether registers and local memory come from a cubin.
    pub from_cubin: bool,
    /// Machine instructions, when a cubin tells.
    pub machine_instructions: Option<u32>,
}

/// Registers and shared memory: from the cubin beside the PTX when there is one, else from the PTX.
pub(super) fn limits(function: &Function, spec: &DeviceSpec) -> Result<Limits> {
    let kernel = function.kernel()?;
    let cubin = function.module.resources.get(&function.name);
    let static_shared = kernel.static_shared_bytes;
    let usual = spec.shared_bytes_per_cta().saturating_sub(static_shared);
    // A compiler spills rather than exceed what the largest block of `.maxntid` leaves to a thread.
    let of_block =
        |n: [u32; 3]| spec.registers_per_sm / n.iter().product::<u32>().next_multiple_of(32).max(1) / 8 * 8;
    let most = kernel.max_threads.map_or(255, of_block).clamp(1, 255);
    Ok(Limits {
        registers: cubin.map_or(kernel.registers_estimate.min(most), |own| own.registers).clamp(1, 255),
        static_shared,
        max_dynamic: lock(&function.max_dynamic).unwrap_or(usual),
        local: cubin.map_or(kernel.local_bytes, |own| own.local_bytes),
        from_cubin: cubin.is_some(),
        machine_instructions: cubin.map(|own| own.machine_instructions),
    })
}

/// The name as a C string that lives as long as the process.
pub(super) fn c_name(function: &Function) -> *const c_char {
    static NAMES: OnceLock<Mutex<HashMap<String, CString>>> = OnceLock::new();
    let mut names = lock(NAMES.get_or_init(Mutex::default));
    let name = names
        .entry(function.name.clone())
        .or_insert_with(|| CString::new(function.name.as_str()).unwrap_or_default());
    // The string's bytes do not move when the map grows, and nothing is removed from it.
    name.as_ptr()
}

/// Threads that a block may have: the launch bound, and what the registers allow.
fn max_threads(function: &Function, spec: &DeviceSpec) -> Result<u32> {
    let kernel = function.kernel()?;
    let limits = limits(function, spec)?;
    let bound = kernel.max_threads.map_or(1024, |n| n.iter().product::<u32>().min(1024));
    let fits = |threads: u32| {
        let resources =
            Resources { threads, registers: limits.registers, shared_bytes: limits.static_shared };
        spec.occupancy(&resources).ctas_per_sm > 0
    };
    Ok((1..=bound / 32).rev().map(|warps| warps * 32).find(|threads| fits(*threads)).unwrap_or(bound.min(32)))
}

// CUfunction_attribute.
const SHARED_SIZE: u32 = 1;
const CONST_SIZE: u32 = 2;
const LOCAL_SIZE: u32 = 3;
const NUM_REGS: u32 = 4;
const PTX_VERSION: u32 = 5;
const BINARY_VERSION: u32 = 6;
const CACHE_MODE_CA: u32 = 7;
const MAX_DYNAMIC_SHARED: u32 = 8;
const PREFERRED_CARVEOUT: u32 = 9;

fn attribute(function: &Function, attribute: u32) -> Result<i32> {
    let spec = &current()?.device.spec;
    let limits = limits(function, spec)?;
    let value = match attribute {
        0 => max_threads(function, spec)?,
        SHARED_SIZE => limits.static_shared,
        // Parameters and variables in constant memory; a real driver reports the variables of the module.
        CONST_SIZE => function.kernel()?.param_bytes,
        LOCAL_SIZE => limits.local,
        NUM_REGS => limits.registers,
        PTX_VERSION | BINARY_VERSION => spec.compute_capability[0] * 10 + spec.compute_capability[1],
        CACHE_MODE_CA => 0,
        MAX_DYNAMIC_SHARED => limits.max_dynamic,
        PREFERRED_CARVEOUT => return Ok(*lock(&function.carveout)),
        // Clusters: none set, none needed.
        10..=15 => 0,
        _ => return Err(Error::INVALID_VALUE),
    };
    Ok(value as i32)
}

/// CTAs per SM.
fn occupancy(function: usize, block: i32, dynamic: usize) -> Result<i32> {
    let function = driver()?.functions.get(function)?;
    let spec = &current()?.device.spec;
    let threads = u32::try_from(block).ok().filter(|n| *n > 0).ok_or(Error::INVALID_VALUE)?;
    let limits = limits(&function, spec)?;
    let dynamic = u32::try_from(dynamic).unwrap_or(u32::MAX);
    if threads > 1024 || dynamic > limits.max_dynamic || threads > max_threads(&function, spec)? {
        return Ok(0);
    }
    let shared_bytes = limits.static_shared + dynamic;
    Ok(spec.occupancy(&Resources { threads, registers: limits.registers, shared_bytes }).ctas_per_sm as i32)
}

/// `CUoccupancyB2DSize`: dynamic shared memory for a block size.
type BlockToShared = extern "C" fn(i32) -> usize;

fn best_block(
    grid: Out<i32>,
    block: Out<i32>,
    function: usize,
    shared_for: usize,
    dynamic: usize,
    limit: i32,
) -> Result {
    grid.check()?;
    block.check()?;
    let function = driver()?.functions.get(function)?;
    let spec = &current()?.device.spec;
    let limits = limits(&function, spec)?;
    let bound = max_threads(&function, spec)?;
    let limit = u32::try_from(limit).ok().filter(|n| *n > 0).map_or(bound, |n| n.min(bound));
    let shared = |threads: u32| {
        let dynamic = if shared_for == 0 {
            dynamic
        } else {
            // SAFETY: the program passed a function of this type, by the interface of the entry point.
            let shared_for: BlockToShared = unsafe { std::mem::transmute(shared_for) };
            shared_for(threads as i32)
        };
        match u32::try_from(dynamic) {
            Ok(dynamic) if dynamic <= limits.max_dynamic => limits.static_shared + dynamic,
            _ => u32::MAX / 2,
        }
    };
    let (grid_size, block_size) = spec.best_block(limits.registers, limit, shared);
    grid.set(grid_size as i32)?;
    block.set(block_size as i32)
}

api! {
    fn cuFuncGetAttribute(value: Out<i32>, attribute: u32, function: usize) {
        value.check()?;
        let function = driver()?.functions.get(function)?;
        value.set(self::attribute(&function, attribute)?)
    }

    fn cuFuncSetAttribute(function: usize, attribute: u32, value: i32) {
        let function = driver()?.functions.get(function)?;
        let spec = &current()?.device.spec;
        match attribute {
            MAX_DYNAMIC_SHARED => {
                let limits = limits(&function, spec)?;
                let most = spec.shared_bytes_per_cta_optin.saturating_sub(limits.static_shared);
                let bytes = u32::try_from(value).ok().filter(|bytes| *bytes <= most);
                *lock(&function.max_dynamic) = Some(bytes.ok_or(Error::INVALID_VALUE)?);
                Ok(())
            }
            PREFERRED_CARVEOUT if (-1..=100).contains(&value) => {
                *lock(&function.carveout) = value;
                Ok(())
            }
            // Clusters.
            11..=15 if value == 0 => Ok(()),
            11..=15 => Err(Error::NOT_SUPPORTED),
            _ => Err(Error::INVALID_VALUE),
        }
    }

    fn cuFuncSetCacheConfig(function: usize, config: u32) {
        let function = driver()?.functions.get(function)?;
        current()?;
        if config > 3 {
            return Err(Error::INVALID_VALUE);
        }
        *lock(&function.cache_config) = config;
        Ok(())
    }

    fn cuFuncGetModule(module: Out<usize>, function: usize) {
        module.set(driver()?.functions.get(function)?.module.handle)
    }

    fn cuFuncGetParamInfo(function: usize, index: usize, offset: Out<usize>, bytes: Out<usize>) {
        let function = driver()?.functions.get(function)?;
        let param = function.kernel()?.params.get(index).ok_or(Error::INVALID_VALUE)?;
        offset.set(param.offset as usize)?;
        bytes.set_if_wanted(param.size as usize);
        Ok(())
    }

    fn cuFuncLoad(function: usize) {
        driver()?.functions.get(function).map(|_| ())
    }

    fn cuFuncIsLoaded(state: Out<u32>, function: usize) {
        driver()?.functions.get(function)?;
        state.set(1)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: Out<i32>, function: usize, block: i32, dynamic: usize) {
        blocks.set(occupancy(function, block, dynamic)?)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: Out<i32>,
        function: usize,
        block: i32,
        dynamic: usize,
        flags: u32,
    ) {
        if flags > 1 {
            return Err(Error::INVALID_VALUE);
        }
        blocks.set(occupancy(function, block, dynamic)?)
    }

    fn cuOccupancyMaxPotentialBlockSize(
        grid: Out<i32>,
        block: Out<i32>,
        function: usize,
        shared_for: usize,
        dynamic: usize,
        limit: i32,
    ) {
        best_block(grid, block, function, shared_for, dynamic, limit)
    }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: Out<i32>,
        block: Out<i32>,
        function: usize,
        shared_for: usize,
        dynamic: usize,
        limit: i32,
        flags: u32,
    ) {
        if flags > 1 {
            return Err(Error::INVALID_VALUE);
        }
        best_block(grid, block, function, shared_for, dynamic, limit)
    }

    fn cuOccupancyAvailableDynamicSMemPerBlock(bytes: Out<usize>, function: usize, blocks: i32, block: i32) {
        bytes.check()?;
        let function = driver()?.functions.get(function)?;
        let spec = &current()?.device.spec;
        let limits = limits(&function, spec)?;
        let threads = u32::try_from(block).ok().filter(|n| (1..=1024).contains(n)).ok_or(Error::INVALID_VALUE)?;
        let ctas = u32::try_from(blocks).map_err(|_| Error::INVALID_VALUE)?;
        let resources =
            Resources { threads, registers: limits.registers, shared_bytes: limits.static_shared };
        let most = spec.available_dynamic_shared(&resources, limits.max_dynamic, ctas);
        bytes.set(most.ok_or(Error::INVALID_VALUE)? as usize)
    }

    fn cuOccupancyMaxActiveClusters(clusters: Out<i32>, function: usize, _config: In<u8>) {
        clusters.check()?;
        driver()?.functions.get(function)?;
        Err(Error::NOT_SUPPORTED)
    }

    fn cuOccupancyMaxPotentialClusterSize(size: Out<i32>, function: usize, _config: In<u8>) {
        size.check()?;
        driver()?.functions.get(function)?;
        // The size that needs no cluster support.
        size.set(1)
    }
}
