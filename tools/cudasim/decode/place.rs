//! Liveness of virtual registers and their places in the register file of a warp.

use super::flow::Block;
use super::program::{Class, Meta, Region};
use crate::exec::inst::{Inst, NONE};

/// A dense set of small numbers.
#[derive(Clone, PartialEq)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(n: usize) -> Bits {
        Bits(vec![0; n.div_ceil(64)])
    }
    fn set(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }
    fn clear(&mut self, i: usize) {
        self.0[i / 64] &= !(1 << (i % 64));
    }
    fn has(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 == 1
    }
    fn each(&self, mut f: impl FnMut(usize)) {
        for (w, &word) in self.0.iter().enumerate() {
            let mut word = word;
            while word != 0 {
                f(w * 64 + word.trailing_zeros() as usize);
                word &= word - 1;
            }
        }
    }
}

/// What is known of a virtual register.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Virtual {
    pub(crate) class: Class,
    /// Not to share its place: it is read or written from outside the routine.
    pub(crate) pinned: bool,
}

/// The result of placing one routine's registers.
pub(super) struct Placement {
    pub(super) region: Region,
    /// Registers that may be read before they are written.
    pub(super) poison: Vec<(u32, u32)>,
    /// Most 32-bit registers live at once.
    pub(super) pressure: u32,
}

/// Places the registers `first..first + virtuals.len()` (numbers of the program), which `blocks` use, from word
/// `start` of the register file on; writes `place[register]`.
pub(super) fn place(
    blocks: &[Block],
    insts: &[Inst],
    meta: &[Meta],
    virtuals: &[Virtual],
    first: u32,
    start: u32,
    place: &mut [u32],
) -> Placement {
    let n = virtuals.len();
    let local = |v: u32| (v as usize).checked_sub(first as usize).filter(|&v| v < n);
    let (live_in, live_out) = liveness(blocks, insts, meta, n, &local);
    let mut intervals = vec![(usize::MAX, 0usize); n];
    let mut pressure = 0u32;
    for (b, block) in blocks.iter().enumerate() {
        let mut touch = |v: usize, pc: usize| {
            intervals[v].0 = intervals[v].0.min(pc);
            intervals[v].1 = intervals[v].1.max(pc);
        };
        live_in[b].each(|v| touch(v, block.start));
        live_out[b].each(|v| touch(v, block.end));
        let mut live = live_out[b].clone();
        let mut weight = 0;
        live.each(|v| weight += registers(virtuals[v].class));
        pressure = pressure.max(weight);
        for pc in (block.start..block.end).rev() {
            let mut dead_defs = 0;
            for v in meta[pc].defs.iter().filter_map(|&v| local(v)) {
                touch(v, pc);
                touch(v, pc + 1);
                if !live.has(v) {
                    dead_defs += registers(virtuals[v].class);
                } else if insts[pc].guard == NONE {
                    live.clear(v);
                    weight -= registers(virtuals[v].class);
                }
            }
            for v in meta[pc].uses.iter().filter_map(|&v| local(v)) {
                touch(v, pc);
                if !live.has(v) {
                    live.set(v);
                    weight += registers(virtuals[v].class);
                }
            }
            pressure = pressure.max(weight + dead_defs);
        }
    }
    let mut out = assign(&intervals, virtuals, start, |v, at| place[first as usize + v] = at);
    out.pressure = pressure;
    if let Some(entry) = live_in.first() {
        entry.each(|v| out.poison.push((place[first as usize + v], virtuals[v].class.words())));
    }
    out
}

/// How many 32-bit hardware registers a register takes.
fn registers(class: Class) -> u32 {
    match class {
        Class::Pred => 0,
        Class::W32 => 1,
        Class::W64 => 2,
        Class::W128 => 4,
    }
}

fn liveness(
    blocks: &[Block],
    insts: &[Inst],
    meta: &[Meta],
    n: usize,
    local: &dyn Fn(u32) -> Option<usize>,
) -> (Vec<Bits>, Vec<Bits>) {
    let mut uses = vec![Bits::new(n); blocks.len()];
    let mut defs = vec![Bits::new(n); blocks.len()];
    for (b, block) in blocks.iter().enumerate() {
        for pc in block.start..block.end {
            for v in meta[pc].uses.iter().filter_map(|&v| local(v)) {
                if !defs[b].has(v) {
                    uses[b].set(v);
                }
            }
            // A guarded write keeps the old value of some lanes, so it does not end the life of the old one.
            if insts[pc].guard == NONE {
                for v in meta[pc].defs.iter().filter_map(|&v| local(v)) {
                    defs[b].set(v);
                }
            }
        }
    }
    let mut live_in = uses.clone();
    let mut live_out = vec![Bits::new(n); blocks.len()];
    let mut predecessors = vec![Vec::new(); blocks.len()];
    for (b, block) in blocks.iter().enumerate() {
        for &s in &block.successors {
            predecessors[s].push(b);
        }
    }
    let mut work: Vec<usize> = (0..blocks.len()).collect();
    let mut queued = vec![true; blocks.len()];
    while let Some(b) = work.pop() {
        queued[b] = false;
        let mut out = Bits::new(n);
        for &s in &blocks[b].successors {
            for (o, i) in out.0.iter_mut().zip(&live_in[s].0) {
                *o |= i;
            }
        }
        let mut changed = false;
        for w in 0..out.0.len() {
            let new = uses[b].0[w] | (out.0[w] & !defs[b].0[w]);
            changed |= new != live_in[b].0[w];
            live_in[b].0[w] = new;
        }
        live_out[b] = out;
        if changed {
            for &p in &predecessors[b] {
                if !queued[p] {
                    queued[p] = true;
                    work.push(p);
                }
            }
        }
    }
    (live_in, live_out)
}

/// Linear scan: registers of one class whose lives do not overlap share a place. Classes never share, since lanes of
/// one warp may be at different instructions, and a 64-bit row puts a lane elsewhere than a 32-bit one.
fn assign(
    intervals: &[(usize, usize)],
    virtuals: &[Virtual],
    start: u32,
    mut set: impl FnMut(usize, u32),
) -> Placement {
    let mut order: Vec<usize> = (0..virtuals.len()).collect();
    order.sort_by_key(|&v| (intervals[v].0, intervals[v].1, v));
    let mut counts = [0u32; 4];
    let mut index = vec![0u32; virtuals.len()];
    for (c, class) in [Class::Pred, Class::W32, Class::W64, Class::W128].into_iter().enumerate() {
        let mut free: Vec<u32> = Vec::new();
        let mut active: std::collections::BinaryHeap<std::cmp::Reverse<(usize, u32)>> = Default::default();
        for &v in order.iter().filter(|&&v| virtuals[v].class == class) {
            let (from, to) = if virtuals[v].pinned { (0, usize::MAX) } else { intervals[v] };
            if from == usize::MAX {
                continue; // never used
            }
            while let Some(&std::cmp::Reverse((end, at))) = active.peek() {
                if end > from || virtuals[v].pinned {
                    break;
                }
                active.pop();
                free.push(at);
            }
            let at = match free.pop() {
                Some(at) if !virtuals[v].pinned => at,
                other => {
                    free.extend(other);
                    counts[c] += 1;
                    counts[c] - 1
                }
            };
            index[v] = at;
            active.push(std::cmp::Reverse((to, at)));
        }
    }
    let preds = start;
    let w32 = (preds + counts[0]).next_multiple_of(16);
    let w64 = w32 + counts[1] * 32;
    let w128 = w64 + counts[2] * 64;
    for (v, virt) in virtuals.iter().enumerate() {
        if intervals[v].0 == usize::MAX && !virt.pinned {
            continue;
        }
        let at = index[v];
        set(
            v,
            match virt.class {
                Class::Pred => preds + at,
                Class::W32 => w32 + at * 32,
                Class::W64 => w64 + at * 64,
                Class::W128 => w128 + at * 128,
            },
        );
    }
    Placement {
        region: Region {
            preds: (preds, counts[0]),
            w32: (w32, counts[1]),
            w64: (w64, counts[2] + 2 * counts[3]),
        },
        poison: Vec::new(),
        pressure: 0,
    }
}

impl Region {
    /// First word after it.
    pub(super) fn end(&self) -> u32 {
        self.w64.0 + self.w64.1 * 64
    }
}
