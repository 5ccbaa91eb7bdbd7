//! Values of the constant rows.

use super::launch::Launching;
use crate::decode::program::{Fill, Uniform};

/// The constant rows of a launch; those that depend on the CTA are set by [`set_cta`].
pub(super) fn template(l: &Launching) -> Vec<u32> {
    let mut out = vec![0u32; (l.program.const_words as usize).max(1)];
    for &(at, fill) in &l.program.fills {
        put(l, &mut out, at as usize, fill, [0; 3], 0);
    }
    out
}

/// Sets the rows that differ between CTAs.
pub(super) fn set_cta(l: &Launching, words: &mut [u32], block: [u32; 3], linear: u64) {
    for &(at, fill) in &l.program.fills {
        if let Fill::Uniform32(Uniform::Ctaid(_) | Uniform::Smid)
        | Fill::Uniform64(Uniform::Ctaid(_) | Uniform::Smid) = fill
        {
            put(l, words, at as usize, fill, block, linear);
        }
    }
}

fn put(l: &Launching, words: &mut [u32], at: usize, fill: Fill, block: [u32; 3], linear: u64) {
    let mut narrow = |f: &dyn Fn(u32) -> u32| {
        for lane in 0..32 {
            words[at + lane as usize] = f(lane);
        }
    };
    let wide = |words: &mut [u32], v: u64| {
        for lane in 0..32 {
            words[at + 2 * lane] = v as u32;
            words[at + 2 * lane + 1] = (v >> 32) as u32;
        }
    };
    match fill {
        Fill::Word(v) => words[at] = v,
        Fill::Row32(v) => narrow(&|_| v),
        Fill::Row64(v) => wide(words, v),
        Fill::LaneId => narrow(&|lane| lane),
        Fill::LaneMask(kind) => narrow(&|lane| {
            let eq = 1u32 << lane;
            match kind {
                0 => eq,
                1 => eq | (eq - 1),
                2 => eq - 1,
                3 => !(eq - 1),
                _ => !(eq | (eq - 1)),
            }
        }),
        Fill::Uniform32(u) => {
            let v = uniform(l, u, block, linear);
            narrow(&|_| v as u32);
        }
        Fill::Uniform64(u) => wide(words, uniform(l, u, block, linear)),
        Fill::Param32(offset, bytes, signed) => {
            let v = param(l, offset, bytes, signed);
            narrow(&|_| v as u32);
        }
        Fill::Param64(offset, bytes, signed) => wide(words, param(l, offset, bytes, signed)),
        Fill::Global(index, offset) => {
            let name = l.kernel.global_names.get(index as usize).map(|n| n.as_str()).unwrap_or("");
            let address = l.launch.globals.get(name).unwrap_or(0);
            wide(words, address.wrapping_add(offset as u64));
        }
    }
}

fn param(l: &Launching, offset: u32, bytes: u8, signed: bool) -> u64 {
    let all = l.launch.params;
    let mut v = 0u64;
    for k in 0..usize::from(bytes) {
        v |= u64::from(all.get(offset as usize + k).copied().unwrap_or(0)) << (8 * k);
    }
    if signed {
        let shift = 64 - 8 * u32::from(bytes);
        return ((v << shift) as i64 >> shift) as u64;
    }
    v
}

fn uniform(l: &Launching, u: Uniform, block: [u32; 3], linear: u64) -> u64 {
    let threads: u32 = l.launch.block.iter().product();
    match u {
        Uniform::Ntid(a) => l.launch.block[usize::from(a)].into(),
        Uniform::Nctaid(a) => l.launch.grid[usize::from(a)].into(),
        Uniform::Ctaid(a) => block[usize::from(a)].into(),
        Uniform::Nwarpid => threads.div_ceil(32).into(),
        Uniform::Smid => linear % u64::from(l.options.sms.max(1)),
        Uniform::Nsmid => l.options.sms.into(),
        Uniform::GridId => 1,
        Uniform::DynamicShared => l.launch.dynamic_shared_bytes.into(),
        Uniform::TotalShared => (l.shared_bytes - l.program.reserved_shared).into(),
        Uniform::GridWorkspace(upper) => {
            l.workspace.map_or(0, |at| if upper { at >> 32 } else { at & 0xffff_ffff })
        }
        Uniform::DynamicSharedBase(offset) => u64::from(l.dynamic_base) + u64::from(offset),
    }
}
