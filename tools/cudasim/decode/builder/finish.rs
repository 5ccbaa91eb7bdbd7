//! What is done once all routines of a kernel are there: registers get their places, frames their sizes.

use super::super::flow;
use super::super::place::{self, Virtual};
use super::super::program::{Class, Routine};
use super::{Builder, MAX_LOCAL_BYTES, Result};
use crate::exec::inst::{CONST, Kind, NONE, flag};
use crate::ptx::Pos;

/// Local memory of a thread whose functions may call themselves.
const RECURSIVE_STACK_BYTES: u32 = 64 << 10;

impl Builder<'_> {
    /// Checks that the calls make sense, finds reconvergence points, places registers.
    pub(super) fn finish(&mut self) -> Result<()> {
        let addressed: Vec<usize> = (0..self.pending.len())
            .filter(|&r| self.scope.addressed.contains(&self.pending[r].function))
            .collect();
        for p in &mut self.pending {
            if p.calls_indirectly {
                p.calls.extend(&addressed);
            }
        }
        self.frames()?;
        self.place_calls();
        let n = self.virtuals.len();
        let mut place = vec![NONE; n];
        let mut start = 0;
        // Registers that belong to no routine alone.
        let loose: Vec<usize> = (0..n).filter(|&v| self.virtuals[v].pinned).collect();
        for class in [Class::Pred, Class::W32, Class::W64, Class::W128] {
            if class == Class::W32 {
                start = u32::next_multiple_of(start, 16);
            }
            for &v in loose.iter().filter(|&&v| self.virtuals[v].class == class) {
                place[v] = start;
                start += class.words();
            }
        }
        self.mark_loads();
        for meta in &mut self.program.meta {
            meta.class = crate::class::Class::of(&meta.text);
        }
        let tables = std::mem::take(&mut self.program.tables);
        for r in 0..self.pending.len() {
            let (range, first) = (self.pending[r].range.clone(), self.pending[r].first_virtual);
            let last = self.pending.get(r + 1).map_or(n as u32, |p| p.first_virtual);
            let blocks = flow::blocks(&self.program.insts, range, &tables);
            flow::reconverge(&mut self.program.insts, &blocks);
            let own: Vec<Virtual> = self.virtuals[first as usize..last as usize]
                .iter()
                .map(|v| Virtual { pinned: false, ..*v })
                .collect();
            let saved: Vec<(usize, u32)> = loose
                .iter()
                .filter(|&&v| (first..last).contains(&(v as u32)))
                .map(|&v| (v, place[v]))
                .collect();
            let placed = place::place(
                &blocks,
                &self.program.insts,
                &self.program.meta,
                &own,
                first,
                start,
                &mut place,
            );
            // Pinned registers made while this routine was decoded keep their own places.
            for (v, at) in saved {
                place[v] = at;
            }
            start = placed.region.end();
            self.program.poison.extend(placed.poison.iter().filter(|p| p.0 != NONE));
            self.program.pressure = self.program.pressure.max(placed.pressure);
            self.program.routines.push(Routine {
                entry: self.pending[r].range.start as u32,
                frame_row: self.pending[r].frame,
                frame_bytes: self.pending[r].frame_bytes,
                region: placed.region,
                module_index: self.pending[r].function as u32,
            });
        }
        self.program.tables = tables;
        // A pinned register that lanes may read before it is written: special registers are always set.
        let special: Vec<u32> = self.specials.values().map(|&v| place[v as usize]).collect();
        self.program.poison.retain(|p| !special.contains(&p.0));
        self.program.specials = self.specials.iter().map(|(&s, &v)| (place[v as usize], s)).collect();
        self.program.specials.sort_by_key(|s| s.0);
        self.program.warp_words = start.max(16);
        let at = |op: u32| {
            if op == NONE || op & CONST != 0 { op } else { place[op as usize] }
        };
        for inst in &mut self.program.insts {
            for op in &mut inst.ops {
                *op = at(*op);
            }
            inst.guard = if inst.guard == NONE { self.program.always | CONST } else { at(inst.guard) };
        }
        for op in &mut self.program.pool {
            *op = at(*op);
        }
        for routine in &mut self.program.routines {
            routine.frame_row = at(routine.frame_row);
        }
        if self.program.const_words > 1 << 26 || self.program.warp_words > 1 << 24 {
            return Err(Pos { line: 1, column: 1 }.invalid("a kernel with too many registers or constants"));
        }
        Ok(())
    }

    /// Copies to and from a callee's frame: it begins where the caller's ends.
    fn place_calls(&mut self) {
        for p in &self.pending {
            for inst in &mut self.program.insts[p.range.clone()] {
                if inst.flags & flag::HIDDEN != 0 && inst.kind == Kind::Memory {
                    match inst.aux[0] {
                        1 => inst.target += p.frame_bytes,
                        2 => inst.imm += i64::from(p.frame_bytes),
                        _ => {}
                    }
                }
            }
        }
    }

    /// Local memory: the deepest chain of calls.
    fn frames(&mut self) -> Result<()> {
        let n = self.pending.len();
        let mut need = vec![0u64; n];
        let mut stable = false;
        // A chain without recursion has at most n links.
        for _ in 0..=n {
            stable = true;
            for r in 0..n {
                let p = &self.pending[r];
                let deepest = p.calls.iter().map(|&c| need[c]).max().unwrap_or(0);
                let new = u64::from(p.frame_bytes) + deepest;
                if new != need[r] {
                    stable = false;
                    need[r] = new;
                }
            }
            if stable {
                break;
            }
        }
        // Functions without frames still must not recurse unnoticed.
        let mut depth = vec![0usize; n];
        let mut cyclic = false;
        for _ in 0..=n {
            let mut changed = false;
            for r in 0..n {
                let new = self.pending[r].calls.iter().map(|&c| depth[c] + 1).max().unwrap_or(0);
                if new != depth[r] {
                    depth[r] = new.min(n + 1);
                    changed = true;
                }
            }
            cyclic = changed;
            if !changed {
                break;
            }
        }
        self.program.recursive = cyclic || !stable;
        let bytes = if self.program.recursive { u64::from(RECURSIVE_STACK_BYTES) } else { need[0] };
        if bytes > MAX_LOCAL_BYTES {
            return Err(Pos { line: 1, column: 1 }.invalid("more than 512 KiB of local memory per thread"));
        }
        self.program.local_bytes = (bytes as u32).next_multiple_of(16);
        Ok(())
    }

    /// Marks instructions that read what a load defined: where a warp waits.
    fn mark_loads(&mut self) {
        let mut loaded = vec![0u8; self.virtuals.len()];
        for meta in self.program.meta.iter().filter(|m| m.load != 0) {
            for &d in &meta.defs {
                loaded[d as usize] |= meta.load;
            }
        }
        for (inst, meta) in self.program.insts.iter_mut().zip(&self.program.meta) {
            let waits = meta.uses.iter().fold(0, |m, &u| m | loaded[u as usize]);
            if waits & 1 != 0 {
                inst.flags |= flag::NEEDS_GLOBAL;
            }
            if waits & 2 != 0 {
                inst.flags |= flag::NEEDS_SHARED;
            }
        }
    }
}
