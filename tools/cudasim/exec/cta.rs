//! One CTA: its warps, registers, shared and local memory, and barriers.

use super::cx::Cx;
use super::inst::Inst;
use super::mem::shared::SharedMemory;
use super::warp::{State, Warp};
use crate::check::FaultKind;

/// Words in cache lines, so that rows are aligned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows(Vec<Line>);

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line(#[allow(dead_code, reason = "read and written through pointers")] [u32; 16]);

impl Rows {
    /// `words` words, all ones.
    pub(crate) fn new(words: usize) -> Rows {
        Rows(vec![Line([u32::MAX; 16]); words.div_ceil(16)])
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u32 {
        self.0.as_mut_ptr().cast()
    }

    pub(crate) fn words(&mut self) -> &mut [u32] {
        // SAFETY: a line is 16 words.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }
}

/// Operations of `bar`.
pub(crate) mod bar {
    pub(crate) const SYNC: u8 = 0;
    pub(crate) const ARRIVE: u8 = 1;
    pub(crate) const POPC: u8 = 2;
    pub(crate) const AND: u8 = 3;
    pub(crate) const OR: u8 = 4;
}

/// One of the 16 barriers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Barrier {
    /// Threads that arrived.
    threads: u32,
    /// The same in whole warps, as hardware counts them.
    units: u32,
    /// Threads that it waits for; 0 is all of the CTA.
    expected: u32,
    /// Instruction at which the first ones wait.
    first: Option<u32>,
    /// Waits at other instructions too.
    places: Option<(u32, u32)>,
    counted: u32,
    all: bool,
    any: bool,
    /// For the race check: what each arriving warp knew.
    clocks: Vec<u32>,
}

/// A resident CTA.
#[derive(Debug)]
pub(crate) struct Cta {
    pub(crate) linear: u64,
    pub(crate) block: [u32; 3],
    pub(crate) dims: [u32; 3],
    pub(crate) registers: Rows,
    pub(crate) consts: Rows,
    pub(crate) shared: SharedMemory,
    pub(crate) local: Rows,
    /// Bytes of local memory per thread.
    pub(crate) local_bytes: u32,
    pub(crate) warps: Vec<Warp>,
    pub(crate) alive: u32,
    pub(crate) barriers: Vec<Barrier>,
    /// A small L1 cache: sector numbers.
    pub(crate) l1: Vec<u64>,
    /// Turns in which all its warps only polled or waited.
    pub(crate) turns_without_news: u32,
    /// See [`Cx::segment`].
    pub(crate) segment: Option<u32>,
    /// Those before a fence: the next atomic or ordered store publishes them.
    pub(crate) fenced: Vec<u32>,
    /// When it last saw what others published.
    pub(crate) acquired: u64,
    /// How much had been published when it last read an atomic or ordered location.
    pub(crate) observed: u64,
    /// Warp instructions of its warps that ended.
    pub(crate) instructions: u64,
}

/// Sectors of the simple L1 cache that each CTA is given.
pub(crate) const L1_SECTORS: usize = 1024;

impl Cta {
    /// What a context holds between CTAs.
    pub(crate) fn empty() -> Cta {
        Cta {
            linear: 0,
            block: [0; 3],
            dims: [1; 3],
            registers: Rows::default(),
            consts: Rows::default(),
            shared: SharedMemory::new(0, 4, 0),
            local: Rows::default(),
            local_bytes: 0,
            warps: Vec::new(),
            alive: 0,
            barriers: Vec::new(),
            l1: Vec::new(),
            turns_without_news: 0,
            segment: None,
            fenced: Vec::new(),
            acquired: 0,
            observed: 0,
            instructions: 0,
        }
    }

    /// Index of a thread in the CTA.
    pub(crate) fn thread_linear(&self, warp: usize, lane: u32) -> u32 {
        warp as u32 * 32 + lane.min(31)
    }

    /// `%tid` of a lane.
    pub(crate) fn thread_index(&self, warp: usize, lane: u32) -> [u32; 3] {
        let t = self.thread_linear(warp, lane);
        let [x, y, _] = self.dims;
        [t % x, t / x % y, t / (x * y)]
    }

    /// Threads ended: barriers no longer wait for them.
    pub(crate) fn threads_exited(&mut self, n: u32, insts: &[Inst]) {
        self.alive -= n;
        if self.alive == 0 {
            return;
        }
        for id in 0..self.barriers.len() {
            let b = &self.barriers[id];
            if b.threads != 0 && b.expected == 0 && b.threads == self.alive {
                self.reductions(id, insts);
                self.complete(id);
            }
        }
    }

    /// All that a barrier waits for have arrived: its groups go on.
    fn complete(&mut self, id: usize) {
        let n = self.warps.len();
        let b = std::mem::take(&mut self.barriers[id]);
        for w in 0..n {
            let warp = &mut self.warps[w];
            let mut waited = false;
            for g in warp.groups.iter_mut().filter(|g| g.state == State::Barrier(id as u8)) {
                g.state = State::Ready;
                g.pc += 1;
                waited = true;
            }
            if waited && !b.clocks.is_empty() {
                self.shared.knows(w, &b.clocks);
            }
        }
    }

    /// Results of `bar.red` for the groups that wait at a barrier: they differ by instruction.
    fn reductions(&mut self, id: usize, insts: &[Inst]) {
        let b = self.barriers[id].clone();
        for warp in &mut self.warps {
            // SAFETY: the registers of a warp lie inside those of the CTA.
            let base = unsafe { self.registers.0.as_mut_ptr().cast::<u32>().add(warp.registers) };
            for g in warp.groups.iter().filter(|g| g.state == State::Barrier(id as u8)) {
                // SAFETY: the destination was placed by the decoder.
                unsafe { put_reduction(&insts[g.pc as usize], g.mask, &b, base) };
            }
        }
    }
}

/// Writes the result of `bar.red`.
///
/// # Safety
///
/// `base` points to the registers of the warp that executes `i`.
unsafe fn put_reduction(i: &Inst, mask: u32, b: &Barrier, base: *mut u32) {
    // SAFETY: `ops[0]` is a 32-bit row or a predicate in the registers.
    unsafe {
        let to = base.add(i.ops[0] as usize);
        match i.aux[0] {
            bar::POPC => {
                for l in 0..32 {
                    if mask >> l & 1 != 0 {
                        *to.add(l) = b.counted;
                    }
                }
            }
            bar::AND | bar::OR => {
                let value = if i.aux[0] == bar::AND { b.all } else { b.any };
                *to = (*to & !mask) | if value { mask } else { 0 };
            }
            _ => {}
        }
    }
}

/// A group arrives at a barrier with the lanes of `mask`. Returns the barrier's number when it has to wait there.
///
/// # Safety
///
/// The operands of `i` are placed rows: number and count 32-bit rows, the source predicate a predicate.
pub(crate) unsafe fn barrier(cx: &mut Cx, i: &Inst, mask: u32) -> Option<u8> {
    let lane = mask.trailing_zeros();
    // SAFETY: see above.
    let (id, count) = unsafe {
        let id = cx.row::<u32>(i.ops[1])[lane as usize];
        (id, if i.aux[3] != 0 { Some(cx.row::<u32>(i.ops[2])[lane as usize]) } else { None })
    };
    if id >= 16 {
        cx.fail(FaultKind::IllegalInstruction, lane, None, format!("there is no barrier {id}"));
        return None;
    }
    if let Some(n) = count
        && (n == 0 || n % 32 != 0)
    {
        cx.fail(
            FaultKind::IllegalInstruction,
            lane,
            None,
            format!("a barrier for {n} threads, no multiple of 32"),
        );
        return None;
    }
    let expected = count.unwrap_or(0);
    let (op, aligned) = (i.aux[0], i.aux[2] != 0);
    let whole = mask == cx.cta.warps[cx.warp].alive;
    // SAFETY: see above.
    let source = if op >= bar::POPC { unsafe { cx.pred(i.ops[3]) } } else { 0 };
    let w = cx.warp;
    let pc = cx.pc;
    let checks = cx.launch.options.checks;
    let cta = &mut *cx.cta;
    cta.turns_without_news = 0;
    let alive = cta.alive;
    if checks.races {
        cta.shared.arrives(w, &mut cta.warps, &mut cta.barriers[id as usize].clocks);
    }
    cta.warps[w].syncs += 1;
    let b = &mut cta.barriers[id as usize];
    if b.first.is_none() {
        b.expected = expected;
        b.all = true;
    }
    let mismatch = (b.expected != expected).then_some(b.expected);
    b.threads += mask.count_ones();
    b.units += if aligned || whole { 32 } else { mask.count_ones() };
    if op >= bar::POPC {
        b.counted += (source & mask).count_ones();
        b.all &= source & mask == mask;
        b.any |= source & mask != 0;
    }
    match b.first {
        None => b.first = Some(pc),
        Some(first) if first != pc && expected == 0 && b.places.is_none() => b.places = Some((first, pc)),
        _ => {}
    }
    let complete = if b.expected == 0 { b.threads >= alive } else { b.units >= b.expected };
    let places = b.places;
    if let Some(other) = mismatch {
        cx.warn(FaultKind::DivergentBarrier, lane, None, || {
            format!("barrier {id} for {expected} threads, others came for {other} (0 is all)")
        });
    }
    if !complete {
        return (op != bar::ARRIVE).then_some(id as u8);
    }
    if let Some((first, second)) = places.filter(|_| checks.divergence) {
        let (a, b) = (cx.launch.place_of(first), cx.launch.place_of(second));
        if a != b {
            cx.warn(FaultKind::DivergentBarrier, lane, None, || {
                format!("some warps wait at {a}, others at {b}")
            });
        }
    }
    let launch = cx.launch;
    let clocks = cx.cta.barriers[id as usize].clocks.clone();
    if op >= bar::POPC {
        let state = cx.cta.barriers[id as usize].clone();
        // SAFETY: the destination was placed by the decoder.
        unsafe { put_reduction(i, mask, &state, cx.bases[0]) };
    }
    cx.cta.reductions(id as usize, &launch.program.insts);
    cx.cta.complete(id as usize);
    if op != bar::ARRIVE && !clocks.is_empty() {
        cx.cta.shared.knows(w, &clocks);
    }
    None
}
