//! The bytes that a warp accesses as few contiguous ranges.

/// A range of addresses, `end` excluded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Disjoint ranges in ascending order, none touching the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runs {
    runs: [Run; 32],
    len: usize,
}

impl Runs {
    /// The ranges that lanes of `mask` access, `bytes` each.
    #[inline(always)]
    pub(crate) fn of(mask: u32, addr: &[u64; 32], bytes: u32) -> Runs {
        let size = u64::from(bytes);
        // Most often lane l accesses the l-th element of an array.
        let base = addr[0];
        let mut off = 0;
        for l in 0..32 {
            off |= addr[l].wrapping_sub(base.wrapping_add(l as u64 * size));
        }
        if mask == u32::MAX && off == 0 && base < u64::MAX - 32 * size {
            let mut runs = Runs { runs: [Run::default(); 32], len: 1 };
            runs.runs[0] = Run { start: base, end: base + 32 * size };
            return runs;
        }
        Runs::general(mask, addr, size)
    }

    #[inline(never)]
    fn general(mask: u32, addr: &[u64; 32], size: u64) -> Runs {
        let mut out = Runs { runs: [Run::default(); 32], len: 0 };
        let mut rest = mask;
        let mut sorted = true;
        while rest != 0 {
            let l = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let (start, end) = (addr[l], addr[l].saturating_add(size));
            if out.len > 0 {
                let last = &mut out.runs[out.len - 1];
                if start >= last.start && start <= last.end {
                    last.end = last.end.max(end);
                    continue;
                }
                sorted &= start > last.end;
            }
            out.runs[out.len] = Run { start, end };
            out.len += 1;
        }
        if !sorted {
            out.sort();
        }
        out
    }

    fn sort(&mut self) {
        let runs = &mut self.runs[..self.len];
        runs.sort_unstable_by_key(|r| r.start);
        let mut n = 0;
        for k in 1..runs.len() {
            if runs[k].start <= runs[n].end {
                runs[n].end = runs[n].end.max(runs[k].end);
            } else {
                n += 1;
                runs[n] = runs[k];
            }
        }
        self.len = n + 1;
    }

    /// The ranges.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs[..self.len].iter().copied()
    }

    /// Distinct 32-byte sectors.
    pub(crate) fn sectors(&self) -> u64 {
        let mut n = 0;
        let mut last = u64::MAX;
        for r in self.iter() {
            let (first, end) = (r.start / 32, (r.end - 1) / 32);
            n += end - first + 1 - u64::from(first == last);
            last = end;
        }
        n
    }

    /// Distinct bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.iter().map(|r| r.end - r.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_become_few_ranges() {
        let linear: [u64; 32] = std::array::from_fn(|l| 1024 + 4 * l as u64);
        let r = Runs::of(u32::MAX, &linear, 4);
        assert_eq!((r.iter().count(), r.sectors(), r.bytes()), (1, 4, 128));
        let mut backwards = linear;
        backwards.reverse();
        let r = Runs::of(u32::MAX, &backwards, 4);
        assert_eq!((r.iter().count(), r.sectors(), r.bytes()), (1, 4, 128));
        let strided: [u64; 32] = std::array::from_fn(|l| 1024 + 8 * l as u64);
        let r = Runs::of(u32::MAX, &strided, 4);
        assert_eq!((r.iter().count(), r.sectors(), r.bytes()), (32, 8, 128));
        let r = Runs::of(5, &strided, 4);
        assert_eq!((r.iter().count(), r.sectors(), r.bytes()), (2, 1, 8));
        let r = Runs::of(u32::MAX, &[64; 32], 16);
        assert_eq!((r.iter().count(), r.sectors(), r.bytes()), (1, 1, 16));
    }
}
