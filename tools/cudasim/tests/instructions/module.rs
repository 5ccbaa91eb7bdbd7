//! What surrounds instructions: parameters, module variables, barriers in memory.

use cudasim::check::FaultKind;

use crate::harness::{Config, bytes_of, kernel, run, run_clean, run_with, values_of};

#[test]
fn parameters_have_their_alignment_and_type() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p0, .param .u8 a, .param .s16 b, \
        .param .f32 c, .param .align 8 .b8 d[20], .param .s32 e) {
        .reg .b64 q, x, d0; .reg .b32 v; .reg .f32 f; .reg .b16 g, h, i, j;
        ld.param.u64 q, [p0]; ld.param.u8 x, [a]; st.global.u64 [q], x; ld.param.s16 x, [b]; st.global.u64 [q+8], x;
        ld.param.f32 f, [c]; st.global.f32 [q+16], f; ld.param.u32 v, [d+16]; st.global.u32 [q+20], v;
        mov.b64 d0, d; cvta.param.u64 d0, d0; ld.u64 x, [d0+8]; st.global.u64 [q+24], x; ld.param.s32 x, [e]; st.global.u64 [q+32], x;
        ld.param.v2.u32 {v, v}, [d]; st.global.u32 [q+40], v;
        ld.param.v4.u8 {g, i, j, h}, [d+4]; st.global.u16 [q+44], i; st.global.u8 [q+46], j; st.global.u8 [q+47], h;
        ld.param.v2.s8 {h, i}, [d+18]; cvt.s32.s16 v, i; st.global.u32 [q+48], v; ret; }";
    let mut more = vec![0xf0u8, 0, 0xfe, 0xff];
    more.extend_from_slice(&1.5f32.to_le_bytes());
    // The structure is at 16: eight bytes for the pointer, eight for the scalars.
    let structure: Vec<u8> = (0..20).map(|i| if i == 19 { 0x85 } else { i * 3 }).collect();
    more.extend(&structure);
    more.extend_from_slice(&(-7i32).to_le_bytes());
    let out = run_with(text, Config::new(1, 1), &[vec![0; 56]], &more);
    assert!(out.reports.is_empty(), "{:?}", out.reports);
    let words: Vec<u64> = values_of(&out.buffers[0]);
    assert_eq!(words[0], 0xf0);
    assert_eq!(words[1], (-2i64) as u64);
    assert_eq!(words[2] as u32, 1.5f32.to_bits());
    assert_eq!((words[2] >> 32) as u32, u32::from_le_bytes(structure[16..].try_into().unwrap()));
    assert_eq!(words[3], u64::from_le_bytes(structure[8..16].try_into().unwrap()));
    assert_eq!(words[4], (-7i64) as u64);
    assert_eq!(words[5] as u32, u32::from_le_bytes(structure[4..8].try_into().unwrap()));
    assert_eq!((words[5] >> 32) as u32, u32::from_le_bytes([structure[5], 0, structure[6], structure[7]]));
    assert_eq!(words[6] as i32, 0x85u8 as i8 as i32);
}

#[test]
fn variables_begin_with_their_values() {
    let body = ".reg .b64 q, a; .reg .b32 x, y; ld.param.u64 q, [p0];
        ld.const.u32 x, [table+8]; st.global.u32 [q], x; ld.global.u8 x, [bytes+1]; st.global.u32 [q+4], x;
        ld.global.u64 a, [pointer]; ld.global.u32 x, [a]; st.global.u32 [q+8], x;
        ld.global.u32 x, [counter]; add.u32 x, x, 1; st.global.u32 [counter], x; st.global.u32 [q+12], x;
        mov.u64 a, table; cvta.const.u64 a, a; ld.u32 x, [a+4]; st.global.u32 [q+16], x;
        ld.global.f32 x, [floats+4]; st.global.u32 [q+20], x; ld.global.u32 x, [zeros+60]; st.global.u32 [q+24], x;
        ld.const.v2.u32 {x, y}, [table]; st.global.u32 [q+28], y;";
    let variables = ".const .align 8 .u32 table[4] = {10, 20, 30, 40};
        .global .align 1 .b8 bytes[3] = {1, 0xfe, 3};
        .global .align 4 .f32 floats[2] = {0f3FC00000, 2.5};
        .global .align 8 .u64 pointer = floats;
        .global .u32 counter = 41;
        .global .align 4 .b8 zeros[64];
        .visible";
    let text = kernel(1, body).replacen(".visible", variables, 1);
    let out = run_clean(&text, Config::new(1, 1), &[vec![0; 32]]);
    let found: Vec<u32> = values_of(&out.buffers[0]);
    assert_eq!(found, [30, 0xfe, 1.5f32.to_bits(), 42, 20, 2.5f32.to_bits(), 0, 20]);
}

#[test]
fn threads_meet_at_barriers_in_memory() {
    // Every thread writes a word, arrives, waits for the phase, and reads its neighbour's.
    let body = ".shared .align 8 .b64 bar; .shared .align 4 .b8 s[256]; .reg .b32 t, a, b, m, x; .reg .b64 q, o, state; .reg .pred p;
        mov.u32 t, %tid.x; mov.u32 b, bar; setp.eq.u32 p, t, 0; @p mbarrier.init.shared.b64 [b], 64; bar.sync 0;
        mov.u32 a, s; mad.lo.u32 a, t, 4, a; mul.lo.u32 x, t, 5; st.shared.u32 [a], x;
        mbarrier.arrive.shared.b64 state, [b];
        WAIT: mbarrier.test_wait.shared.b64 p, [b], state; @!p bra WAIT;
        xor.b32 m, t, 33; mov.u32 a, s; mad.lo.u32 a, m, 4, a; ld.shared.u32 x, [a];
        ld.param.u64 q, [p0]; mul.wide.u32 o, t, 4; add.s64 q, q, o; st.global.u32 [q], x;";
    let out = run(&kernel(1, body), Config::new(1, 64), &[vec![0; 256]]);
    for (i, found) in values_of::<u32>(&out.buffers[0]).into_iter().enumerate() {
        assert_eq!(found, 5 * (i as u32 ^ 33));
    }
}

#[test]
fn producers_arrive_and_consumers_wait() {
    // Warp 0 produces and goes on; warp 1 waits for it at a named barrier.
    let body = ".shared .align 4 .b8 s[128]; .reg .b32 t, l, a, x; .reg .b64 q, o; .reg .pred p; mov.u32 t, %tid.x;
        and.b32 l, t, 31; mov.u32 a, s; mad.lo.u32 a, l, 4, a; setp.ge.u32 p, t, 32; @p bra CONSUME;
        mul.lo.u32 x, l, 9; st.shared.u32 [a], x; bar.arrive 3, 64; bra DONE;
        CONSUME: bar.sync 3, 64; ld.shared.u32 x, [a]; ld.param.u64 q, [p0]; mul.wide.u32 o, l, 4; add.s64 q, q, o; st.global.u32 [q], x;
        DONE:";
    let out = run_clean(&kernel(1, body), Config::new(1, 64), &[vec![0; 128]]);
    for (i, found) in values_of::<u32>(&out.buffers[0]).into_iter().enumerate() {
        assert_eq!(found, 9 * i as u32);
    }
}

#[test]
fn dynamic_shared_memory_follows_the_static_one() {
    let body = ".shared .align 4 .b8 fixed[64]; .reg .b32 t, a, b, x; .reg .b64 q, o; mov.u32 t, %tid.x; mov.u32 a, more; mov.u32 b, fixed;
        mad.lo.u32 a, t, 4, a; st.shared.u32 [a], t; bar.sync 0; ld.shared.u32 x, [a]; mov.u32 b, %dynamic_smem_size; add.u32 x, x, b;
        ld.param.u64 q, [p0]; mul.wide.u32 o, t, 4; add.s64 q, q, o; st.global.u32 [q], x;";
    let text = kernel(1, body).replacen(".visible", ".extern .shared .align 16 .b8 more[];\n.visible", 1);
    let config = Config { dynamic_shared_bytes: 256, ..Config::new(1, 64) };
    let out = run_clean(&text, config, &[vec![0; 256]]);
    for (i, found) in values_of::<u32>(&out.buffers[0]).into_iter().enumerate() {
        assert_eq!(found, 256 + i as u32);
    }
}

#[test]
fn faults_that_do_not_stop_are_reported() {
    let address = ".reg .b32 t, a, x, y; .reg .b64 q, o; .reg .pred p; mov.u32 t, %tid.x; ld.param.u64 q, [p0]; mul.wide.u32 o, t, 4; add.s64 q, q, o;";
    let tile = ".shared .align 4 .b8 s[256]; mov.u32 a, s; mad.lo.u32 a, t, 4, a; xor.b32 y, t, 63; mov.u32 x, s; mad.lo.u32 y, y, 4, x;";
    let faults = |body: &str| -> Vec<FaultKind> {
        let text = kernel(1, &format!("{address}{body}"));
        run(&text, Config::new(2, 64), &[bytes_of(&[0u32; 64])]).reports.iter().map(|r| r.kind).collect()
    };
    // A missing barrier between writing and reading what another warp wrote.
    let race = faults(&format!("{tile} st.shared.u32 [a], t; ld.shared.u32 x, [y]; xor.b32 x, x, t;"));
    assert!(
        race.contains(&FaultKind::SharedRace) || race.contains(&FaultKind::UninitialisedShared),
        "{race:?}"
    );
    assert_eq!(faults(&format!("{tile} ld.shared.u32 x, [y];")), [FaultKind::UninitialisedShared]);
    assert_eq!(faults("st.global.u32 [q], t;"), [FaultKind::WriteConflict]);
    assert_eq!(faults("red.global.add.u32 [q], t;"), []);
    // A shuffle that names lanes which went elsewhere.
    let absent =
        faults("setp.lt.u32 p, t, 5; @p bra HERE; bra END; HERE: shfl.sync.bfly.b32 x, t, 1, 31, -1; END:");
    assert!(absent.contains(&FaultKind::InactiveLane), "{absent:?}");
}

#[test]
fn what_another_cta_wrote_is_read_only_after_it_was_published_and_acquired() {
    // Block 0 writes a word and says so; block 1 waits for that and reads the word.
    let faults = |write: &str, read: &str| -> Vec<FaultKind> {
        let body = format!(
            ".reg .b32 t, x; .reg .b64 q; .reg .pred p; mov.u32 t, %ctaid.x; ld.param.u64 q, [p0];
            setp.ne.u32 p, t, 0; @p bra READ; st.global.u32 [q], 7; {write} bra END;
            READ: {read} ld.global.u32 x, [q]; st.global.u32 [q+8], x; END:"
        );
        let out = run(&kernel(1, &body), Config::new(2, 1), &[vec![0; 12]]);
        assert_eq!(values_of::<u32>(&out.buffers[0])[2], 7, "{write} {read}");
        out.reports.iter().map(|r| r.kind).collect()
    };
    let wait = |load: &str| format!("WAIT: {load} setp.eq.u32 p, x, 0; @p bra WAIT;");
    let (relaxed, volatile) =
        (wait("ld.relaxed.gpu.u32 x, [q+4];"), wait("ld.volatile.global.u32 x, [q+4];"));
    let (acquire, atom) = (wait("ld.acquire.gpu.u32 x, [q+4];"), wait("atom.global.add.u32 x, [q+4], 0;"));
    let fence = "membar.gl;";
    let published = [
        format!("{fence} red.global.add.u32 [q+4], 1;"),
        format!("{fence} st.volatile.global.u32 [q+4], 1;"),
        "red.release.gpu.global.add.u32 [q+4], 1;".to_string(),
        "st.release.gpu.global.u32 [q+4], 1;".to_string(),
    ];
    let acquired = [
        format!("{relaxed} {fence}"),
        format!("{volatile} {fence}"),
        format!("{atom} fence.acq_rel.gpu;"),
        acquire.clone(),
        wait("atom.acquire.gpu.global.add.u32 x, [q+4], 0;"),
    ];
    for (write, read) in published.iter().flat_map(|write| acquired.iter().map(move |read| (write, read))) {
        assert_eq!(faults(write, read), [], "{write} {read}");
    }
    for write in ["red.global.add.u32 [q+4], 1;", "red.global.add.u32 [q+4], 1; membar.gl;"] {
        assert_eq!(faults(write, &acquire), [FaultKind::UnorderedRead], "{write}");
    }
    for read in [relaxed, volatile, atom] {
        assert_eq!(faults(&published[0], &read), [FaultKind::UnorderedRead], "{read}");
        assert_eq!(faults(&published[0], &format!("{fence} {read}")), [FaultKind::UnorderedRead], "{read}");
    }
}

#[test]
fn reductions_at_a_barrier_complete_when_the_other_warps_end() {
    let address = ".reg .b32 t, x; .reg .b64 q, o; .reg .pred p, r; mov.u32 t, %tid.x; ld.param.u64 q, [p0]; mul.wide.u32 o, t, 4; add.s64 q, q, o;";
    for (op, want) in [("and.pred r, 0, p", 0), ("or.pred r, 0, p", 1), ("popc.u32 x, 0, p", 16)] {
        // Warp 0 waits; warp 1 ends without having come.
        let body = format!(
            "{address} setp.ge.u32 p, t, 32; @p exit; setp.lt.u32 p, t, 16; bar.red.{op}; {} st.global.u32 [q], x;",
            if op.starts_with("popc") { "" } else { "selp.u32 x, 1, 0, r;" }
        );
        let out = run_clean(&kernel(1, &body), Config::new(1, 64), &[vec![0; 128]]);
        assert_eq!(values_of::<u32>(&out.buffers[0]), vec![want; 32], "{op}");
    }
}

#[test]
fn the_grid_of_a_cooperative_launch_has_a_workspace() {
    // What cooperative groups do: the barrier of the grid is the second word of the workspace.
    let body = ".reg .b32 t, x, y, n; .reg .b64 w, q, o; .reg .pred p;
        mov.u32 x, %envreg1; mov.u32 y, %envreg2; mov.b64 w, {y, x}; mov.u32 n, %nctaid.x;
        setp.eq.u64 p, w, 0; mov.u32 x, 0; @p bra DONE;
        atom.add.release.gpu.u32 x, [w+4], 1;
        WAIT: ld.acquire.gpu.u32 x, [w+4]; setp.lt.u32 p, x, n; @p bra WAIT;
        DONE: ld.param.u64 q, [p0]; mov.u32 t, %ctaid.x; mul.wide.u32 o, t, 4; add.s64 q, q, o; st.global.u32 [q], x;";
    let config = Config::new(6, 1);
    let out = run_clean(&kernel(1, body), Config { cooperative: true, ..config }, &[vec![0; 24]]);
    assert_eq!(values_of::<u32>(&out.buffers[0]), [6; 6]);
    let out = run_clean(&kernel(1, body), config, &[vec![0; 24]]);
    assert_eq!(values_of::<u32>(&out.buffers[0]), [0; 6]);
}

#[test]
fn reserved_shared_memory_lies_apart_from_that_of_the_program() {
    let body = ".shared .align 4 .b8 own[128]; .reg .b32 t, a, b, x, y; .reg .b64 q, o; mov.u32 t, %tid.x;
        mov.u32 a, own; mad.lo.u32 a, t, 4, a; mov.u32 b, %reserved_smem_offset_1; mad.lo.u32 b, t, 4, b;
        ld.shared.u32 x, [b]; st.shared.u32 [a], t; add.u32 y, t, 100; st.shared.u32 [b], y;
        ld.shared.u32 y, [a]; add.u32 x, x, y; ld.shared.u32 y, [b]; mad.lo.u32 x, y, 1000, x; mov.u32 y, %total_smem_size;
        mad.lo.u32 x, y, 1000000, x;
        ld.param.u64 q, [p0]; mul.wide.u32 o, t, 4; add.s64 q, q, o; st.global.u32 [q], x;";
    let out = run_clean(&kernel(1, body), Config::new(1, 32), &[vec![0; 128]]);
    for (i, found) in values_of::<u32>(&out.buffers[0]).into_iter().enumerate() {
        assert_eq!(found, 128_000_000 + (100 + i as u32) * 1000 + i as u32);
    }
}
