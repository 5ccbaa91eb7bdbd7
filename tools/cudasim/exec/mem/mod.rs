//! Memory instructions: from the addresses of the lanes to checked host pointers, and the traffic they cause.

pub(crate) mod atom;
pub(crate) mod copies;
pub(crate) mod load;
pub(crate) mod matrix;
pub(crate) mod mbarrier;
pub(crate) mod runs;
pub(crate) mod shared;
pub(crate) mod special;
pub(crate) mod store;
pub(crate) mod traffic;

use std::sync::Arc;

use super::cx::{Cx, Lately};
use super::inst::Inst;
use crate::check::FaultKind;
use crate::decode::dec::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use runs::Runs;
use shared::{Accessor, Conflict};

/// Spaces as constants, to instantiate functions for.
pub(crate) mod space {
    pub(crate) const GLOBAL: u8 = 0;
    pub(crate) const SHARED: u8 = 1;
    pub(crate) const LOCAL: u8 = 2;
    pub(crate) const PARAM: u8 = 3;
    pub(crate) const GENERIC: u8 = 4;
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Load,
    Store,
    Atomic,
    /// Source of a `cp.async`.
    CopyFrom,
}

/// Bits of `aux[0]` of memory instructions.
pub(crate) mod mem_flag {
    /// The address is a 64-bit row.
    pub(crate) const WIDE: u8 = 1;
    /// Ordered or volatile: no race, and a poll when it loads.
    pub(crate) const ORDERED: u8 = 2;
    /// Does not go through L1.
    pub(crate) const NO_L1: u8 = 4;
    /// What others published is seen from here on.
    pub(crate) const ACQUIRE: u8 = 8;
    /// Publishes the writes before it.
    pub(crate) const RELEASE: u8 = 16;
}

/// The addresses of the lanes.
///
/// # Safety
///
/// `ops[0]` is a 32- or 64-bit row as `aux[0]` says.
#[inline(always)]
pub(crate) unsafe fn addresses(cx: &Cx, i: &Inst) -> [u64; 32] {
    // SAFETY: passed on to the caller.
    unsafe {
        let mut out = [0u64; 32];
        if i.aux[0] & mem_flag::WIDE != 0 {
            let row = cx.row::<u64>(i.ops[0]);
            for l in 0..32 {
                out[l] = row[l].wrapping_add(i.imm as u64);
            }
        } else {
            let row = cx.row::<u32>(i.ops[0]);
            for l in 0..32 {
                out[l] = u64::from(row[l].wrapping_add(i.imm as u32));
            }
        }
        out
    }
}

/// Checks the addresses of the lanes of `mask` in a space, does the bookkeeping of the access, and leaves host
/// pointers in [`Cx::ptrs`]. Returns `false`, with a fault, when the kernel must stop.
///
/// A load sees uninitialised bytes as they are in memory; they are made poison by [`poison`].
///
/// The space is `aux[1]`, see [`space`].
#[inline(always)]
pub(crate) fn resolve(
    cx: &mut Cx,
    i: &Inst,
    mask: u32,
    addr: &[u64; 32],
    bytes: u32,
    access: Access,
) -> bool {
    match i.aux[1] {
        space::GLOBAL => global(cx, i, mask, addr, [bytes, bytes], access),
        space::SHARED => shared_access(cx, i, mask, addr, bytes, access),
        space::LOCAL => local(cx, mask, addr, bytes, access),
        space::PARAM => param(cx, mask, addr, bytes),
        _ => generic(cx, i, mask, addr, bytes, access),
    }
}

/// Makes the bytes of the last access that nobody wrote poison, in a copy that [`Cx::ptrs`] then point to.
#[cold]
pub(crate) fn poison(cx: &mut Cx, mask: u32, bytes: u32) {
    cx.unwritten = false;
    let scratch = cx.scratch.as_mut_ptr().cast::<u8>();
    for l in (0..32).filter(|&l| mask >> l & 1 != 0) {
        // SAFETY: the scratch has 64 bytes for each lane, the most that a lane accesses; the pointer was resolved for
        // as many bytes as are copied.
        unsafe {
            let to = scratch.add(l * 64);
            let from = cx.ptrs[l];
            std::ptr::copy_nonoverlapping(from as *const u8, to, bytes as usize);
            if let Some(a) = cx.launch.table.find(from) {
                for b in 0..u64::from(bytes) {
                    if !cx.launch.memory.is_initialised(a, from + b, 1) {
                        *to.add(b as usize) = crate::memory::POISON;
                    }
                }
            }
            cx.ptrs[l] = to as u64;
        }
    }
}

fn generic(cx: &mut Cx, i: &Inst, mask: u32, addr: &[u64; 32], bytes: u32, access: Access) -> bool {
    let (mut shared, mut local_lanes, mut params) = (0u32, 0u32, 0u32);
    for l in 0..32 {
        match addr[l] & !0xffff_ffff {
            SHARED_WINDOW => shared |= 1 << l,
            LOCAL_WINDOW => local_lanes |= 1 << l,
            PARAM_WINDOW => params |= 1 << l,
            _ => {}
        }
    }
    let (shared, local_lanes, params) = (shared & mask, local_lanes & mask, params & mask);
    let global_lanes = mask & !(shared | local_lanes | params);
    if global_lanes == mask {
        return global(cx, i, mask, addr, [bytes, bytes], access);
    }
    let offsets = addr.map(|a| a & 0xffff_ffff);
    let mut ptrs = [0; 32];
    let mut keep = |cx: &Cx, lanes: u32| {
        for l in 0..32 {
            if lanes >> l & 1 != 0 {
                ptrs[l] = cx.ptrs[l];
            }
        }
    };
    if global_lanes != 0 {
        if !global(cx, i, global_lanes, addr, [bytes, bytes], access) {
            return false;
        }
        keep(cx, global_lanes);
    }
    if shared != 0 {
        if !shared_access(cx, i, shared, &offsets, bytes, access) {
            return false;
        }
        keep(cx, shared);
    }
    if local_lanes != 0 {
        if !local(cx, local_lanes, &offsets, bytes, access) {
            return false;
        }
        keep(cx, local_lanes);
    }
    if params != 0 {
        if access != Access::Load {
            let lane = params.trailing_zeros();
            cx.fail(
                FaultKind::OutOfBounds,
                lane,
                Some(addr[lane as usize]),
                "a write to the kernel's parameters",
            );
            return false;
        }
        if !param(cx, params, &offsets, bytes) {
            return false;
        }
        keep(cx, params);
    }
    cx.ptrs = ptrs;
    true
}

/// The first lane of a mask for which a condition holds.
fn first(mask: u32, holds: impl Fn(usize) -> bool) -> Option<u32> {
    (0..32u32).find(|&l| mask >> l & 1 != 0 && holds(l as usize))
}

/// Whether all lanes of the mask are at multiples of `bytes`.
#[inline(always)]
fn aligned(mask: u32, addr: &[u64; 32], bytes: u32) -> bool {
    let mut bits = 0;
    for l in 0..32 {
        bits |= if mask >> l & 1 != 0 { addr[l] } else { 0 };
    }
    bits & u64::from(bytes - 1) == 0
}

#[cold]
fn misaligned(cx: &mut Cx, mask: u32, addr: &[u64; 32], bytes: u32) -> bool {
    let lane = first(mask, |l| !addr[l].is_multiple_of(u64::from(bytes))).unwrap_or(0);
    let message = format!("an access of {bytes} bytes");
    cx.fail(FaultKind::Misaligned, lane, Some(addr[lane as usize]), message);
    false
}

/// Defines a function with a body compiled for the vector extensions.
macro_rules! vectored_access {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) -> bool = $body:ident) => {
        $(#[$doc])*
        fn $name(cx: &mut Cx, $($arg: $ty),*) -> bool {
            #[cfg_attr(
                target_arch = "x86_64",
                target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")
            )]
            unsafe fn vector(cx: &mut Cx, $($arg: $ty),*) -> bool {
                $body(cx, $($arg),*)
            }
            // SAFETY: nothing executes on a machine without these extensions.
            unsafe { vector(cx, $($arg),*) }
        }
    };
}

vectored_access!(
    /// Global memory; `size` is the number of bytes and the alignment.
    fn global(i: &Inst, mask: u32, addr: &[u64; 32], size: [u32; 2], access: Access) -> bool = global_body
);
vectored_access!(
    /// Shared memory.
    fn shared_access(i: &Inst, mask: u32, addr: &[u64; 32], bytes: u32, access: Access) -> bool = shared_body
);

#[inline(always)]
fn global_body(cx: &mut Cx, i: &Inst, mask: u32, addr: &[u64; 32], size: [u32; 2], access: Access) -> bool {
    let [bytes, align] = size;
    if !aligned(mask, addr, align) {
        return misaligned(cx, mask, addr, align);
    }
    let runs = Runs::of(mask, addr, bytes);
    for r in runs.iter() {
        if !in_allocation(cx, r.start, r.end) && !lanes_in_allocations(cx, mask, addr, bytes, access) {
            return false;
        }
        global_run(cx, i, r.start, r.end - r.start, access);
    }
    if cx.stats.on {
        traffic::global(cx, i, mask, &runs, bytes, access);
    }
    cx.ptrs = *addr;
    true
}

/// Whether a range lies in an allocation, which becomes [`Cx::allocation`].
#[inline(always)]
fn in_allocation(cx: &mut Cx, start: u64, end: u64) -> bool {
    let lately = &cx.lately[cx.pc as usize % 16];
    if start >= lately.base && end <= lately.end && start < end {
        cx.allocation = lately.allocation;
        return true;
    }
    find_allocation(cx, start, end)
}

#[inline(never)]
fn find_allocation(cx: &mut Cx, start: u64, end: u64) -> bool {
    match cx.launch.table.find(start) {
        Some(a) if end <= a.end() && start < end => {
            cx.allocation = Arc::as_ptr(a);
            cx.lately[cx.pc as usize % 16] = Lately { base: a.base, end: a.end(), allocation: cx.allocation };
            true
        }
        _ => false,
    }
}

/// A run that lies in no allocation: perhaps it spans two; else a lane is out of bounds.
#[cold]
fn lanes_in_allocations(cx: &mut Cx, mask: u32, addr: &[u64; 32], bytes: u32, access: Access) -> bool {
    for l in (0..32).filter(|&l| mask >> l & 1 != 0) {
        let at = addr[l];
        let end = at.wrapping_add(u64::from(bytes));
        if !in_allocation(cx, at, end) {
            let what =
                if access == Access::Load || access == Access::CopyFrom { "a read" } else { "a write" };
            let near = match cx.launch.table.nearest(at) {
                Some(a) if at >= a.end() => format!(
                    "{} bytes after the end of the allocation of {} bytes at {:#x}",
                    at - a.end(),
                    a.bytes,
                    a.base
                ),
                Some(a) if at < a.base => format!(
                    "{} bytes before the allocation of {} bytes at {:#x}",
                    a.base - at,
                    a.bytes,
                    a.base
                ),
                Some(a) => format!("across the end of the allocation of {} bytes at {:#x}", a.bytes, a.base),
                None => "there are no allocations".into(),
            };
            cx.fail(FaultKind::OutOfBounds, l as u32, Some(at), format!("{what} of {bytes} bytes, {near}"));
            return false;
        }
    }
    true
}

/// Shadows of one contiguous range of global memory.
#[inline(always)]
fn global_run(cx: &mut Cx, i: &Inst, start: u64, bytes: u64, access: Access) {
    let memory = cx.launch.memory;
    let checks = cx.launch.options.checks;
    let Some(allocation) = cx.allocation() else { return };
    match access {
        Access::Load | Access::CopyFrom => {
            if !allocation.wholly_initialised() && !memory.is_initialised(allocation, start, bytes) {
                uninitialised(cx, start);
            }
            if checks.write_conflicts && i.aux[0] & mem_flag::ORDERED == 0 && allocation.on_device() {
                check_read(cx, start, bytes);
            }
        }
        Access::Store => {
            if !allocation.wholly_initialised() {
                memory.mark_initialised(allocation, start, bytes);
            }
            if i.aux[0] & mem_flag::ORDERED != 0 {
                cx.publish(i);
            } else if checks.write_conflicts && allocation.on_device() {
                record_write(cx, start, bytes);
            }
        }
        Access::Atomic => {
            if !allocation.wholly_initialised() {
                if !memory.is_initialised(allocation, start, bytes) {
                    for at in start..start + bytes {
                        if !memory.is_initialised(allocation, at, 1) {
                            // SAFETY: the byte lies in the allocation; nobody wrote it, so nobody relies on it.
                            unsafe { (at as *mut u8).write(crate::memory::POISON) };
                        }
                    }
                    uninitialised(cx, start);
                    memory.mark_initialised(allocation, start, bytes);
                    return;
                }
                memory.mark_initialised(allocation, start, bytes);
            }
        }
    }
}

/// Notes a plain store to device memory, and reports one of another CTA that nothing orders before it.
#[inline]
fn record_write(cx: &mut Cx, start: u64, bytes: u64) {
    let segment = cx.segment();
    let pc = cx.pc.min(0xffff) as u16;
    if let Some(earlier) = cx.launch.memory.record_write(start, bytes, segment, pc)
        && let Some(cta) = cx.launch.unordered_writer(earlier.cta, cx.cta.linear, cx.cta.acquired)
    {
        write_conflict(cx, start, cta, earlier.instruction);
    }
}

/// Reports a plain load of what another CTA wrote in this launch, when nothing orders it before.
#[inline]
fn check_read(cx: &mut Cx, start: u64, bytes: u64) {
    let (launch, cta, acquired) = (cx.launch, cx.cta.linear, cx.cta.acquired);
    let unordered = |segment| launch.unordered_writer(segment, cta, acquired);
    if let Some((writer, instruction)) = launch.memory.find_writer(start, bytes, unordered) {
        let place = launch.place_of(u32::from(instruction));
        let block = launch.block_of(writer);
        cx.warn_pair(FaultKind::UnorderedRead, 0, Some(start), u32::from(instruction), || {
            format!("block ({}, {}, {}) wrote it at {place} in this launch", block[0], block[1], block[2])
        });
    }
}

#[cold]
fn uninitialised(cx: &mut Cx, start: u64) {
    cx.unwritten = true;
    if cx.launch.options.checks.uninitialised {
        let near = cx.allocation().map_or(String::new(), |a| {
            format!("byte {} of the allocation of {} bytes at {:#x}", start - a.base, a.bytes, a.base)
        });
        cx.warn(FaultKind::UninitialisedGlobal, 0, Some(start), || near);
    }
}

#[cold]
fn write_conflict(cx: &mut Cx, at: u64, cta: u64, instruction: u16) {
    let place = cx.launch.place_of(u32::from(instruction));
    let block = cx.launch.block_of(cta);
    cx.warn_pair(FaultKind::WriteConflict, 0, Some(at), u32::from(instruction), || {
        format!("block ({}, {}, {}) wrote it at {place} in this launch", block[0], block[1], block[2])
    });
}

#[inline(always)]
fn shared_body(cx: &mut Cx, i: &Inst, mask: u32, addr: &[u64; 32], bytes: u32, access: Access) -> bool {
    if !in_shared(cx, mask, addr, bytes, access) {
        return false;
    }
    if cx.stats.on {
        traffic::shared(cx, mask, addr, bytes, access);
    }
    shared_shadow(cx, i, mask, addr, bytes, access);
    let base = cx.cta.shared.as_mut_ptr() as u64;
    for l in 0..32 {
        cx.ptrs[l] = base + addr[l];
    }
    true
}

/// Whether the lanes of the mask are aligned and inside the shared memory of the CTA.
#[inline(always)]
pub(crate) fn in_shared(cx: &mut Cx, mask: u32, addr: &[u64; 32], bytes: u32, access: Access) -> bool {
    if !aligned(mask, addr, bytes) {
        return misaligned(cx, mask, addr, bytes);
    }
    let limit = u64::from(cx.cta.shared.bytes);
    let mut highest = 0;
    for l in 0..32 {
        highest = highest.max(if mask >> l & 1 != 0 { addr[l] } else { 0 });
    }
    if highest.saturating_add(u64::from(bytes)) > limit {
        let lane = first(mask, |l| addr[l].saturating_add(u64::from(bytes)) > limit).unwrap_or(0);
        let what = if access == Access::Load { "a read" } else { "a write" };
        let message = format!("{what} of {bytes} bytes, the CTA has {limit} bytes of shared memory");
        cx.fail(FaultKind::OutOfBounds, lane, Some(addr[lane as usize]), message);
        return false;
    }
    true
}

/// Checks the sources of a `cp.async`: `bytes` each, at multiples of `align`.
pub(crate) fn resolve_source(
    cx: &mut Cx,
    i: &Inst,
    mask: u32,
    addr: &[u64; 32],
    bytes: u32,
    align: u32,
) -> bool {
    global(cx, i, mask, addr, [bytes, align], Access::CopyFrom)
}

/// Who accesses shared memory now.
#[inline]
pub(crate) fn accessor(cx: &Cx, lane: u32) -> Accessor {
    let warp = &cx.cta.warps[cx.warp];
    Accessor {
        warp: cx.warp,
        lane: lane as u8,
        clock: warp.clock,
        sync: warp.syncs as u16,
        pc: cx.pc,
        floor: cx.cta.shared.floor(cx.warp),
    }
}

/// Initialisation and races of an access to shared memory. Stores are recorded by [`store`], which knows the values.
#[inline(always)]
fn shared_shadow(cx: &mut Cx, i: &Inst, mask: u32, addr: &[u64; 32], bytes: u32, access: Access) {
    let checks = cx.launch.options.checks;
    if checks.uninitialised {
        if access != Access::Store && !cx.cta.shared.all_marked(mask, addr, bytes) {
            let unset = (0..32u32)
                .find(|&l| mask >> l & 1 != 0 && !cx.cta.shared.marked(addr[l as usize] as u32, bytes));
            if let Some(lane) = unset {
                let at = addr[lane as usize];
                cx.warn(FaultKind::UninitialisedShared, lane, Some(at), || format!("{bytes} bytes"));
            }
        }
        if access != Access::Load {
            cx.cta.shared.mark_all(mask, addr, bytes);
        }
    }
    if !cx.cta.shared.checks_races() {
        return;
    }
    let ordered = i.aux[0] & mem_flag::ORDERED != 0 || access == Access::Atomic;
    if ordered {
        ordered_shared(cx, mask, addr, bytes, access);
    } else if access == Access::Load {
        let mut by = accessor(cx, 0);
        let mut found = None;
        for l in (0..32u32).filter(|&l| mask >> l & 1 != 0) {
            by.lane = l as u8;
            let conflict = cx.cta.shared.read(addr[l as usize] as u32, bytes, &by);
            if found.is_none() {
                found = conflict.map(|c| (c, l));
            }
        }
        if let Some((conflict, lane)) = found {
            race(cx, conflict, lane, addr[lane as usize]);
        }
    }
}

/// An atomic or volatile access: it orders, and races with plain accesses and pending copies.
#[cold]
fn ordered_shared(cx: &mut Cx, mask: u32, addr: &[u64; 32], bytes: u32, access: Access) {
    let w = cx.warp;
    let mut found = None;
    for l in (0..32u32).filter(|&l| mask >> l & 1 != 0) {
        let at = addr[l as usize] as u32;
        if access != Access::Store {
            cx.cta.shared.acquire(w, at);
        }
        let by = accessor(cx, l);
        let conflict = cx.cta.shared.ordered(at, bytes, &by, access != Access::Load);
        if found.is_none() {
            found = conflict.map(|c| (c, l));
        }
        if access != Access::Load {
            let cta = &mut *cx.cta;
            cta.shared.release(w, &mut cta.warps[w], at);
        }
    }
    cx.cta.warps[w].syncs += 1;
    if let Some((conflict, lane)) = found {
        race(cx, conflict, lane, addr[lane as usize]);
    }
}

/// Reports a conflict in shared memory.
#[cold]
pub(crate) fn race(cx: &mut Cx, conflict: Conflict, lane: u32, at: u64) {
    let place = cx.launch.place_of(conflict.other());
    let same_warp =
        |w: u8| if usize::from(w) == cx.warp { " of the same warp (no bar.warp.sync between)" } else { "" };
    let (kind, message) = match conflict {
        Conflict::Pending(_) => (FaultKind::MissingAsyncWait, format!("the cp.async at {place} writes it")),
        Conflict::ReadAfterWrite(_, w, l) => (
            FaultKind::SharedRace,
            format!(
                "thread {} wrote it at {place}{}, no barrier between",
                u32::from(w) * 32 + u32::from(l),
                same_warp(w)
            ),
        ),
        Conflict::WriteAfterWrite(_, w, l) => (
            FaultKind::SharedRace,
            format!(
                "thread {} also wrote it at {place}{}, no barrier between",
                u32::from(w) * 32 + u32::from(l),
                same_warp(w)
            ),
        ),
        Conflict::WriteAfterRead(_, w) => (
            FaultKind::SharedRace,
            format!("warp {w} reads it at {place}{}, no barrier between", same_warp(w)),
        ),
    };
    cx.warn_pair(kind, lane, Some(at), conflict.other(), || message);
}

fn local(cx: &mut Cx, mask: u32, addr: &[u64; 32], bytes: u32, access: Access) -> bool {
    if !aligned(mask, addr, bytes) {
        return misaligned(cx, mask, addr, bytes);
    }
    let stride = u64::from(cx.cta.local_bytes);
    if let Some(lane) = first(mask, |l| addr[l].saturating_add(u64::from(bytes)) > stride) {
        let message = format!("an access of {bytes} bytes, the thread has {stride} bytes of local memory");
        cx.fail(FaultKind::OutOfBounds, lane, Some(addr[lane as usize]), message);
        return false;
    }
    let base = cx.cta.local.as_mut_ptr() as u64 + cx.warp as u64 * 32 * stride;
    for l in 0..32 {
        // Lanes that take no part have any address.
        cx.ptrs[l] = (base + l as u64 * stride).wrapping_add(addr[l]);
    }
    if cx.stats.on {
        traffic::local(cx, mask, addr, bytes, access);
    }
    true
}

fn param(cx: &mut Cx, mask: u32, addr: &[u64; 32], bytes: u32) -> bool {
    if !aligned(mask, addr, bytes) {
        return misaligned(cx, mask, addr, bytes);
    }
    let limit = cx.launch.params.bytes();
    if let Some(lane) = first(mask, |l| addr[l].saturating_add(u64::from(bytes)) > limit) {
        let message = format!("a read of {bytes} bytes, the kernel has {limit} bytes of parameters");
        cx.fail(FaultKind::OutOfBounds, lane, Some(addr[lane as usize]), message);
        return false;
    }
    let base = cx.launch.params.address();
    for l in 0..32 {
        cx.ptrs[l] = base + addr[l];
    }
    true
}
