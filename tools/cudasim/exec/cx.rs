//! What an instruction sees while it executes: the registers of its warp, its CTA, the launch.

use super::cta::Cta;
use super::elem::Raw;
use super::inst::Inst;
use super::launch::Launching;
use super::mem::{mem_flag, space};
use super::stats::Stats;
use crate::check::FaultKind;
use crate::memory::Allocation;

/// A fault at the current instruction.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    pub(crate) lane: u32,
    pub(crate) address: Option<u64>,
    pub(crate) message: String,
}

/// The context of one host thread that executes warps.
pub(crate) struct Cx<'l> {
    /// Registers of the warp, constants of the CTA.
    pub(crate) bases: [*mut u32; 2],
    /// Further operands of instructions.
    pub(crate) pool: *const u32,
    pub(crate) launch: &'l Launching<'l>,
    /// The CTA that runs; a placeholder between CTAs.
    pub(crate) cta: Box<Cta>,
    /// Index of the warp that runs.
    pub(crate) warp: usize,
    /// Index of the instruction.
    pub(crate) pc: u32,
    /// Set by an instruction that stops the kernel.
    pub(crate) fault: Option<Box<Fault>>,
    /// Set by an instruction after which the warp should let others run.
    pub(crate) yield_now: bool,
    /// What `%clock` gave last.
    pub(crate) clock: u64,
    pub(crate) stats: Stats,
    /// Addresses of the lanes of the access that was resolved last, in host memory.
    pub(crate) ptrs: [u64; 32],
    /// The allocation that the last access hit.
    pub(crate) allocation: *const Allocation,
    /// Allocations hit lately, by instruction.
    pub(crate) lately: [Lately; 16],
    /// The access that was resolved last read bytes that nobody wrote.
    pub(crate) unwritten: bool,
    /// Where bytes with poison are put together.
    pub(crate) scratch: Box<[u64; 32 * 8]>,
}

/// An allocation that was hit lately; it lives in the launch's table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lately {
    pub(crate) base: u64,
    pub(crate) end: u64,
    pub(crate) allocation: *const Allocation,
}

impl Lately {
    /// No allocation.
    pub(crate) const NONE: Lately = Lately { base: 1, end: 0, allocation: std::ptr::null() };
}

impl<'l> Cx<'l> {
    /// The allocation that the last access hit.
    #[inline(always)]
    pub(crate) fn allocation(&self) -> Option<&'l Allocation> {
        // SAFETY: it is null or points into the table of the launch, which lives for `'l`.
        unsafe { self.allocation.as_ref() }
    }

    /// First word of an operand.
    ///
    /// # Safety
    ///
    /// `op` was placed by the decoder for the program whose rows `bases` points to.
    #[inline(always)]
    pub(crate) unsafe fn ptr(&self, op: u32) -> *mut u32 {
        // SAFETY: the offset lies in the area that its top bit selects.
        unsafe { self.bases.get_unchecked((op >> 31) as usize).add((op & 0x7fff_ffff) as usize) }
    }

    /// A row.
    ///
    /// # Safety
    ///
    /// As for [`Cx::ptr`]; the operand has the class of `R`, and is not written while the reference lives.
    #[inline(always)]
    pub(crate) unsafe fn row<'r, R: Raw>(&self, op: u32) -> &'r [R; 32] {
        // SAFETY: rows are 64-byte aligned and have 32 elements of their class.
        unsafe { &*self.ptr(op).cast() }
    }

    /// A row as 64-bit addresses, whichever class it has.
    #[inline(always)]
    pub(crate) unsafe fn row_as_u64(&self, op: u32, wide: bool) -> [u64; 32] {
        // SAFETY: passed on to the caller.
        unsafe {
            if wide {
                *self.row::<u64>(op)
            } else {
                let narrow = self.row::<u32>(op);
                std::array::from_fn(|l| u64::from(narrow[l]))
            }
        }
    }

    /// Stores the lanes of `mask` into a row.
    ///
    /// # Safety
    ///
    /// As for [`Cx::row`]; no reference to the row lives.
    #[inline(always)]
    pub(crate) unsafe fn put<R: Raw>(&mut self, op: u32, values: &[R; 32], mask: u32) {
        // SAFETY: rows are 64-byte aligned and have 32 elements of their class.
        unsafe {
            let row = &mut *self.ptr(op).cast::<[R; 32]>();
            if mask == u32::MAX {
                *row = *values;
            } else {
                for l in 0..32 {
                    row[l] = if mask >> l & 1 != 0 { values[l] } else { row[l] };
                }
            }
        }
    }

    /// A predicate: a bit per lane.
    ///
    /// # Safety
    ///
    /// As for [`Cx::ptr`]; the operand is a predicate.
    #[inline(always)]
    pub(crate) unsafe fn pred(&self, op: u32) -> u32 {
        // SAFETY: passed on to the caller.
        unsafe { *self.ptr(op) }
    }

    /// Stores the lanes of `mask` into a predicate.
    ///
    /// # Safety
    ///
    /// As for [`Cx::pred`].
    #[inline(always)]
    pub(crate) unsafe fn put_pred(&mut self, op: u32, value: u32, mask: u32) {
        // SAFETY: passed on to the caller.
        unsafe {
            let p = self.ptr(op);
            *p = (*p & !mask) | (value & mask);
        }
    }

    /// A further operand.
    ///
    /// # Safety
    ///
    /// `k` is below the instruction's number of further operands.
    #[inline(always)]
    pub(crate) unsafe fn more(&self, i: &super::inst::Inst, k: usize) -> u32 {
        debug_assert!(k < usize::from(i.pool_len));
        // SAFETY: the decoder put these operands there.
        unsafe { *self.pool.add(i.pool as usize + k) }
    }

    /// Stops the kernel at this instruction.
    #[cold]
    pub(crate) fn fail(
        &mut self,
        kind: FaultKind,
        lane: u32,
        address: Option<u64>,
        message: impl Into<String>,
    ) {
        if self.fault.is_none() {
            self.fault = Some(Box::new(Fault { kind, lane, address, message: message.into() }));
        }
    }

    /// Notes a fault that does not stop the kernel.
    #[cold]
    pub(crate) fn warn(
        &mut self,
        kind: FaultKind,
        lane: u32,
        address: Option<u64>,
        message: impl FnOnce() -> String,
    ) {
        self.warn_pair(kind, lane, address, u32::MAX, message);
    }

    /// The same for a fault between two instructions: one report for each pair.
    #[cold]
    pub(crate) fn warn_pair(
        &mut self,
        kind: FaultKind,
        lane: u32,
        address: Option<u64>,
        other: u32,
        message: impl FnOnce() -> String,
    ) {
        let place = super::launch::Place {
            kind,
            pc: self.pc,
            block: self.cta.block,
            linear: self.cta.linear,
            thread: self.cta.thread_index(self.warp, lane),
            address,
            other,
        };
        self.launch.report(&mut self.stats, place, message);
    }

    /// The stretch of plain stores that the CTA is in: its writes until it next publishes them.
    #[inline]
    pub(crate) fn segment(&mut self) -> u32 {
        match self.cta.segment {
            Some(s) => s,
            None => {
                let s = self.launch.new_segment(self.cta.linear);
                self.cta.segment = Some(s);
                s
            }
        }
    }

    /// A fence: the next atomic or ordered store of the CTA publishes what it wrote before.
    #[inline]
    pub(crate) fn fence(&mut self) {
        self.cta.fenced.extend(self.cta.segment.take());
        self.cta.acquired = self.cta.acquired.max(self.cta.observed);
    }

    /// An atomic or an ordered store publishes what was written before a fence, with `.release` all that was. What is in
    /// shared memory no other CTA sees.
    #[inline]
    pub(crate) fn publish(&mut self, i: &Inst) {
        let [flags, space, ..] = i.aux;
        if space == space::SHARED {
            return;
        }
        if flags & mem_flag::RELEASE != 0 {
            self.cta.fenced.extend(self.cta.segment.take());
        }
        for segment in self.cta.fenced.drain(..) {
            self.launch.close_segment(segment);
        }
    }

    /// An atomic or an ordered load read something: what others have published the CTA sees from here on if it has
    /// `.acquire`, else after a fence.
    #[inline]
    pub(crate) fn observe(&mut self, i: &Inst) {
        let [flags, space, ..] = i.aux;
        if space == space::SHARED {
            return;
        }
        self.cta.observed = self.launch.published();
        if flags & mem_flag::ACQUIRE != 0 {
            self.cta.acquired = self.cta.observed;
        }
    }

    /// Notes what a polling access saw: when it is nothing new for long, the warp gives way.
    pub(crate) fn poll(&mut self, mask: u32, addr: &[u64; 32], values: impl Fn(usize) -> u64) {
        let mut hash = u64::from(mask);
        for l in (0..32).filter(|&l| mask >> l & 1 != 0) {
            hash = (hash ^ addr[l]).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) ^ values(l);
        }
        let first = addr[mask.trailing_zeros() as usize & 31];
        self.cta.warps[self.warp].poll(self.pc, hash, first);
        self.yield_now = true;
    }
}
