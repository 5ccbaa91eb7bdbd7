//! The counters of a launch from those of its host threads.

use super::inst::flag;
use super::launch::Launching;
use super::stats::Stats;
use crate::counters::{Counters, InstructionCount};

/// Sums up what the host threads counted.
pub(super) fn counters(
    l: &Launching,
    stats: &Stats,
    sample: Option<u64>,
    per_cta: &mut [(u64, u32)],
    scale: impl Fn(u64) -> u64,
) -> Counters {
    let whole = sample.map(|_| super::sampled::whole(l.memory, &l.table, &scale));
    let touched = l.memory.take_sectors();
    let sectors = whole.unwrap_or(touched);
    let mut instructions = Vec::new();
    for ((inst, meta), s) in l.program.insts.iter().zip(&l.program.meta).zip(&stats.insts) {
        if inst.flags & flag::HIDDEN != 0 {
            continue;
        }
        let mut memory = s.memory;
        for n in [
            &mut memory.requests,
            &mut memory.bytes_asked,
            &mut memory.sectors,
            &mut memory.ideal_sectors,
            &mut memory.passes,
            &mut memory.wavefronts,
            &mut memory.ideal_wavefronts,
            &mut memory.collisions,
        ] {
            *n = scale(*n);
        }
        instructions.push(InstructionCount {
            file: meta.source.map(|s| s.0),
            line: meta.source.map_or(meta.ptx_line, |s| s.1),
            text: meta.text.clone(),
            class: meta.class,
            warp_execs: scale(s.warp),
            thread_execs: scale(s.threads),
            memory: (memory.requests > 0).then_some(memory),
        });
    }
    per_cta.sort_unstable();
    Counters {
        kernel: l.kernel.name.clone(),
        grid: l.launch.grid,
        block: l.launch.block,
        static_shared_bytes: l.program.static_shared - l.program.reserved_shared,
        dynamic_shared_bytes: l.launch.dynamic_shared_bytes,
        ctas: l.ctas(),
        sampled_ctas: sample,
        files: l.kernel.files.clone(),
        instructions,
        unique_read_sectors: sectors.read,
        unique_written_sectors: sectors.written,
        read_bytes_asked: scale(stats.read_bytes),
        written_bytes_asked: scale(stats.written_bytes),
        l2_read_sectors: scale(stats.l2_read),
        l2_written_sectors: scale(stats.l2_written),
        l2_atomic_sectors: scale(stats.l2_atomic),
        host_bytes: scale(stats.host_bytes),
        longest_warp: stats.longest,
        global_rounds: scale(stats.global_rounds),
        async_waits: scale(stats.async_waits),
        async_groups_at_wait: scale(stats.async_groups),
        cta_warp_instructions: per_cta.iter().map(|c| c.1).collect(),
        chunks: sectors.chunks,
    }
}
