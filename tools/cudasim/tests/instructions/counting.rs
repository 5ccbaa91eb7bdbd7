//! Counters of access patterns whose cost follows from the rules of the CUDA guide: 32-byte sectors of global memory,
//! 32 banks of 4 bytes in shared memory.

use std::collections::BTreeSet;

use cudasim::counters::{Class, Counters, InstructionCount};

use crate::harness::{Config, bytes_of, kernel, run_clean};
use crate::random::Random;

fn only(counters: &Counters, class: Class) -> &InstructionCount {
    let mut found = counters.instructions.iter().filter(|i| i.class == class && i.warp_execs > 0);
    let first = found.next().unwrap_or_else(|| panic!("no {class:?} in {:?}", counters.instructions));
    assert!(found.next().is_none(), "more than one {class:?}");
    first
}

/// Runs one warp that reads its byte offset from the parameter space's first buffer and then accesses the second.
fn global(instruction: &str, offsets: &[u32; 32]) -> InstructionCount {
    let body = format!(
        ".reg .b32 t, f, x, y, z, v; .reg .b64 q, o, r; mov.u32 t, %tid.x; ld.param.u64 q, [p0]; mul.wide.u32 o, t, 4;
         add.s64 q, q, o; ld.volatile.global.u32 f, [q]; cvt.u64.u32 o, f; ld.param.u64 r, [p1]; add.s64 r, r, o; mov.u32 x, 1;
         mov.u32 y, 1; mov.u32 z, 1; mov.u32 v, 1; {instruction}"
    );
    let out = run_clean(&kernel(2, &body), Config::new(1, 32), &[bytes_of(offsets), vec![0; 1 << 16]]);
    let opcode = instruction.split_whitespace().next().unwrap();
    let found: Vec<&InstructionCount> =
        out.counters.instructions.iter().filter(|i| *i.text == *opcode).collect();
    assert_eq!(found.len(), 1, "{opcode} in {:?}", out.counters.instructions);
    found[0].clone()
}

fn each(f: impl Fn(u32) -> u32) -> [u32; 32] {
    std::array::from_fn(|i| f(i as u32))
}

#[test]
fn sectors_of_strided_and_random_loads() {
    let mut random = Random::new(1);
    let scattered: [u32; 32] = std::array::from_fn(|_| random.below(4096) * 4);
    let patterns: [(&str, [u32; 32]); 8] = [
        ("stride 1", each(|i| 4 * i)),
        ("stride 2", each(|i| 8 * i)),
        ("stride 32", each(|i| 128 * i)),
        ("all the same", each(|_| 64)),
        ("reversed", each(|i| 4 * (31 - i))),
        ("shifted by one word", each(|i| 4 * i + 4)),
        ("two groups", each(|i| i / 16 * 1024 + i % 16 * 4)),
        ("random", scattered),
    ];
    let known = [4, 8, 32, 1, 4, 5, 4];
    for (at, (name, offsets)) in patterns.iter().enumerate() {
        let sectors: BTreeSet<u32> = offsets.iter().map(|o| o / 32).collect();
        let words: BTreeSet<u32> = offsets.iter().map(|o| o / 4).collect();
        if let Some(&known) = known.get(at) {
            assert_eq!(sectors.len(), known, "{name}");
        }
        for instruction in ["ld.global.u32 x, [r]; st.volatile.global.u32 [q], x;", "st.global.u32 [r], t;"] {
            if instruction.starts_with("st") && words.len() < 32 {
                continue;
            }
            let memory = global(instruction, offsets).memory.unwrap();
            assert_eq!(memory.requests, 1, "{name}");
            assert_eq!(memory.sectors, sectors.len() as u64, "{name}: {instruction}");
            assert_eq!(memory.ideal_sectors, (words.len() as u64 * 4).div_ceil(32), "{name}: {instruction}");
            assert_eq!(memory.bytes_asked, 128, "{name}");
            assert_eq!(memory.passes, (sectors.len() as u64).div_ceil(4).max(1), "{name}");
        }
    }
}

#[test]
fn wide_loads_ask_for_more_sectors_at_once() {
    for (instruction, bytes) in [
        ("ld.global.u8 x, [r];", 1),
        ("ld.global.u16 x, [r];", 2),
        ("ld.global.v2.u32 {x, y}, [r];", 8),
        ("ld.global.v4.u32 {x, y, z, v}, [r];", 16),
    ] {
        let memory = global(instruction, &each(|i| i * bytes)).memory.unwrap();
        assert_eq!((memory.requests, memory.sectors), (1, u64::from(bytes)), "{instruction}");
        assert_eq!(memory.ideal_sectors, u64::from(bytes));
        assert_eq!(memory.bytes_asked, 32 * u64::from(bytes));
        assert_eq!(memory.passes, u64::from(bytes).div_ceil(4));
    }
}

#[test]
fn inactive_lanes_ask_for_nothing() {
    let body = ".reg .pred p; setp.lt.u32 p, t, 5; @p ld.global.u32 x, [r];";
    let found = global_with_guard(body);
    assert_eq!((found.warp_execs, found.thread_execs), (1, 5));
    let memory = found.memory.unwrap();
    assert_eq!((memory.requests, memory.sectors, memory.bytes_asked), (1, 1, 20));
}

fn global_with_guard(text: &str) -> InstructionCount {
    let body = format!(
        ".reg .b32 t, x; .reg .b64 r, o; mov.u32 t, %tid.x; ld.param.u64 r, [p0]; mul.wide.u32 o, t, 4; add.s64 r, r, o; mov.u32 x, 0; {text} st.global.u32 [r], x;"
    );
    let out = run_clean(&kernel(1, &body), Config::new(1, 32), &[vec![0; 128]]);
    only(&out.counters, Class::LoadGlobal).clone()
}

/// Wavefronts by the rules: lanes in groups (all for up to 4 bytes, halves for 8, quarters for 16), in each the most
/// distinct words that any bank has to give.
fn wavefronts(offsets: &[u32; 32], bytes: u32) -> u64 {
    let group = match bytes {
        8 => 16,
        16 => 8,
        _ => 32,
    };
    offsets
        .chunks(group)
        .map(|lanes| {
            let words: BTreeSet<u32> =
                lanes.iter().flat_map(|o| (0..bytes.div_ceil(4)).map(move |w| o / 4 + w)).collect();
            (0..32).map(|bank| words.iter().filter(|w| *w % 32 == bank).count()).max().unwrap_or(0) as u64
        })
        .sum()
}

/// Runs one warp that accesses shared memory at the given byte offsets.
fn shared(instruction: &str, offsets: &[u32; 32]) -> InstructionCount {
    let body = format!(
        ".shared .align 128 .b8 s[16384]; .reg .b32 t, a, b, c, x, y, z, v; .reg .pred p; .reg .b64 q, o; mov.u32 t, %tid.x;
         mov.u32 x, 0; mov.u32 y, 0; mov.u32 z, 0; mov.u32 v, 0; mov.u32 c, s; mad.lo.u32 c, t, 4, c; mov.u32 b, 0;
         FILL: st.volatile.shared.u32 [c], x; add.u32 c, c, 128; add.u32 b, b, 128; setp.lt.u32 p, b, 16384; @p bra FILL; bar.sync 0;
         ld.param.u64 q, [p0]; mul.wide.u32 o, t, 4; add.s64 q, q, o; ld.global.u32 a, [q]; mov.u32 b, s; add.u32 a, a, b;
         {instruction}"
    );
    let out = run_clean(&kernel(1, &body), Config::new(1, 32), &[bytes_of(offsets)]);
    let opcode = instruction.split_whitespace().next().unwrap();
    out.counters
        .instructions
        .iter()
        .find(|i| *i.text == *opcode)
        .unwrap_or_else(|| panic!("no {opcode}"))
        .clone()
}

#[test]
fn wavefronts_of_shared_memory() {
    let mut random = Random::new(2);
    let known = [
        ("stride 1", each(|i| 4 * i), 1),
        ("stride 2", each(|i| 8 * i), 2),
        ("stride 3", each(|i| 12 * i), 1),
        ("stride 32", each(|i| 128 * i), 32),
        ("stride 33", each(|i| 132 * i), 1),
        ("all the same", each(|_| 12), 1),
        ("pairs share a word", each(|i| i / 2 * 4), 1),
    ];
    for (name, offsets, wanted) in known {
        assert_eq!(wavefronts(&offsets, 4), wanted, "{name}");
        let memory = shared("ld.shared.u32 x, [a];", &offsets).memory.unwrap();
        assert_eq!((memory.requests, memory.wavefronts), (1, wanted), "{name}");
        assert_eq!(memory.ideal_wavefronts, 1, "{name}");
        assert_eq!(memory.bytes_asked, 128, "{name}");
    }
    for _ in 0..20 {
        let offsets: [u32; 32] = std::array::from_fn(|_| random.below(4096) * 4);
        let memory = shared("ld.shared.u32 x, [a];", &offsets).memory.unwrap();
        assert_eq!(memory.wavefronts, wavefronts(&offsets, 4));
    }
    let stores = shared("st.shared.u32 [a], t;", &each(|i| 8 * i)).memory.unwrap();
    assert_eq!((stores.wavefronts, stores.ideal_wavefronts), (2, 1));
}

#[test]
fn wide_accesses_take_their_halves_and_quarters() {
    let mut random = Random::new(3);
    for (instruction, bytes, ideal) in
        [("ld.shared.v2.u32 {x, y}, [a];", 8, 2), ("ld.shared.v4.u32 {x, y, z, v}, [a];", 16, 4)]
    {
        let straight = each(|i| bytes * i);
        let memory = shared(instruction, &straight).memory.unwrap();
        assert_eq!((memory.wavefronts, memory.ideal_wavefronts), (ideal, ideal), "{instruction}");
        // Rows of 128 bytes, one column: every lane of a group hits the same banks.
        let column = each(|i| 128 * i);
        let memory = shared(instruction, &column).memory.unwrap();
        assert_eq!(memory.wavefronts, 32, "{instruction}");
        for _ in 0..10 {
            let offsets: [u32; 32] = std::array::from_fn(|_| random.below(16384 / bytes) * bytes);
            let memory = shared(instruction, &offsets).memory.unwrap();
            assert_eq!(memory.wavefronts, wavefronts(&offsets, bytes), "{instruction} {offsets:?}");
        }
    }
}

#[test]
fn ldmatrix_conflicts_without_a_swizzle() {
    let text = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {x, y, z, v}, [a];";
    // Rows of 128 bytes: the eight rows of a matrix lie in the same four banks.
    let plain = each(|i| i % 8 * 128 + i / 8 * 16);
    // The usual swizzle: 16-byte columns are exchanged by the row.
    let swizzled = each(|i| i % 8 * 128 + ((i / 8) ^ (i % 8)) * 16);
    let padded = each(|i| i % 8 * 144 + i / 8 * 16);
    for (name, offsets, wanted) in [("plain", plain, 32), ("swizzled", swizzled, 4), ("padded", padded, 4)] {
        let found = shared(text, &offsets);
        assert_eq!(found.class, Class::LoadMatrix);
        let memory = found.memory.unwrap();
        assert_eq!((memory.wavefronts, memory.ideal_wavefronts), (wanted, 4), "{name}");
    }
    let single = shared("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {x}, [a];", &plain).memory.unwrap();
    assert_eq!((single.wavefronts, single.ideal_wavefronts), (8, 1));
}

#[test]
fn asynchronous_copies_count_on_both_sides() {
    let text = "cp.async.cg.shared.global [a], [r], 16; cp.async.wait_all;";
    let body = format!(
        ".shared .align 128 .b8 s[512]; .reg .b32 t, a; .reg .b64 r, o; mov.u32 t, %tid.x; mov.u32 a, s; mad.lo.u32 a, t, 16, a;
         ld.param.u64 r, [p0]; mul.wide.u32 o, t, 16; add.s64 r, r, o; {text}"
    );
    let out = run_clean(&kernel(1, &body), Config::new(1, 32), &[vec![0; 512]]);
    let memory = only(&out.counters, Class::CopyAsync).memory.unwrap();
    assert_eq!((memory.requests, memory.sectors, memory.wavefronts, memory.ideal_wavefronts), (1, 16, 4, 4));
    assert_eq!((out.counters.unique_read_sectors, out.counters.read_bytes_asked), (16, 512));
    assert_eq!(out.counters.l2_read_sectors, 16);
}

#[test]
fn colliding_atomics_are_counted() {
    let run = |stride: u32| {
        let body = format!(
            ".reg .b32 t; .reg .b64 r, o; mov.u32 t, %tid.x; ld.param.u64 r, [p0]; mul.wide.u32 o, t, {stride}; add.s64 r, r, o;
             red.global.add.u32 [r], 1;"
        );
        let out = run_clean(&kernel(1, &body), Config::new(1, 32), &[vec![0; 128]]);
        only(&out.counters, Class::Atomic).memory.unwrap()
    };
    let (all, none) = (run(0), run(4));
    assert_eq!((all.requests, all.collisions, all.sectors), (1, 31, 1));
    assert_eq!((none.requests, none.collisions, none.sectors), (1, 0, 4));
}

#[test]
fn each_sector_of_a_launch_counts_once() {
    // Every CTA reads the same 1 KiB and writes 128 bytes of its own.
    let body = ".reg .b32 t, c, x, y; .reg .b64 r, w, o; mov.u32 t, %tid.x; mov.u32 c, %ctaid.x;
        ld.param.u64 r, [p0]; ld.param.u64 w, [p1]; mul.wide.u32 o, t, 4; add.s64 r, r, o; add.s64 w, w, o;
        mul.wide.u32 o, c, 128; add.s64 w, w, o; mov.u32 y, 0;
        ld.global.u32 x, [r]; add.u32 y, y, x; ld.global.u32 x, [r+512]; add.u32 y, y, x; ld.global.u32 x, [r]; add.u32 y, y, x;
        st.global.u32 [w], y;";
    let out = run_clean(&kernel(2, body), Config::new(40, 32), &[vec![0; 1024], vec![0; 40 * 128]]);
    let c = &out.counters;
    assert_eq!((c.unique_read_sectors, c.unique_written_sectors), (8, 40 * 4));
    assert_eq!((c.read_bytes_asked, c.written_bytes_asked), (40 * 3 * 128, 40 * 128));
    assert_eq!(c.l2_written_sectors, 40 * 4);
    // L1 serves at most what was read before.
    assert!((8..=40 * 12).contains(&c.l2_read_sectors), "{}", c.l2_read_sectors);
    assert_eq!((c.ctas, c.warps()), (40, 40));
}

#[test]
fn instructions_count_per_warp_and_per_lane() {
    // Ten rounds for the even lanes, five for the odd ones, in two warps.
    let body = ".reg .b32 t, n, i, x; .reg .pred p; .reg .b64 q; mov.u32 t, %tid.x; and.b32 n, t, 1; setp.eq.u32 p, n, 0;
        selp.u32 n, 10, 5, p; mov.u32 i, 0; LOOP: mul.lo.u32 x, i, 3; add.u32 i, i, 1; setp.lt.u32 p, i, n; @p bra LOOP;
        xor.b32 x, x, n;";
    let out = run_clean(&kernel(1, body), Config::new(1, 64), &[vec![0; 4]]);
    let by_text = |text: &str| out.counters.instructions.iter().find(|i| *i.text == *text).unwrap();
    let product = by_text("mul.lo.u32");
    assert_eq!((product.warp_execs, product.thread_execs), (2 * 10, 2 * (16 * 10 + 16 * 5)));
    let last = by_text("xor.b32");
    assert_eq!((last.warp_execs, last.thread_execs), (2, 64));
    assert_eq!(out.counters.block, [64, 1, 1]);
}

#[test]
fn waits_of_the_longest_warp() {
    // Three dependent loads, two barriers.
    let body = ".reg .b32 t, x; .reg .b64 q, o, r; mov.u32 t, %tid.x; ld.param.u64 q, [p0];
        ld.global.u32 x, [q]; mul.wide.u32 o, x, 4; add.s64 r, q, o; ld.global.u32 x, [r]; mul.wide.u32 o, x, 4; add.s64 r, q, o;
        bar.sync 0; ld.global.u32 x, [r]; bar.sync 0; add.u32 x, x, 1; mov.u32 x, %ctaid.x; mad.lo.u32 t, x, 64, t; mul.wide.u32 o, t, 4; add.s64 r, q, o; st.global.u32 [r+256], x;";
    let out = run_clean(&kernel(1, body), Config::new(2, 64), &[vec![0; 1024]]);
    let chain = out.counters.longest_warp;
    assert_eq!((chain.global_rounds, chain.barriers), (3, 2));
    assert_eq!(out.counters.global_rounds, 3 * 4);
}
