//! Loads, stores, atomics and asynchronous copies.

use cudasim::check::FaultKind;

use crate::harness::{Config, bytes_of, kernel, map1, run, run_clean, values_of};
use crate::random::Random;
use crate::soft::{self, BF16, F16, Round};

/// `q` points to this thread's `size` bytes of buffer 0, `w` to those of buffer 1.
fn addresses(size: u32, out: u32) -> String {
    format!(
        ".reg .b32 t; .reg .b64 q, w, o; mov.u32 t, %tid.x; ld.param.u64 q, [p0]; ld.param.u64 w, [p1];
         mul.wide.u32 o, t, {size}; add.s64 q, q, o; mul.wide.u32 o, t, {out}; add.s64 w, w, o;\n"
    )
}

fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..n).map(|_| random.u32() as u8).collect()
}

#[test]
fn loads_extend_by_their_type() {
    let bytes = noise(64 * 8, 1);
    for (ty, size, signed) in [
        ("u8", 1, false),
        ("s8", 1, true),
        ("u16", 2, false),
        ("s16", 2, true),
        ("u32", 4, false),
        ("s32", 4, true),
        ("b8", 1, false),
        ("b16", 2, false),
    ] {
        for space in ["global", "global.nc", "global.cg", "volatile.global"] {
            let op = if space.starts_with("volatile") {
                format!("ld.volatile.global.{ty}")
            } else {
                format!("ld.{space}.{ty}")
            };
            let body = addresses(8, 8) + &format!(".reg .b64 x; {op} x, [q]; st.global.u64 [w], x;");
            let out = run_clean(&kernel(2, &body), Config::new(1, 64), &[bytes.clone(), vec![0; 64 * 8]]);
            for (i, found) in values_of::<u64>(&out.buffers[1]).into_iter().enumerate() {
                let mut wide = [0u8; 8];
                wide[..size].copy_from_slice(&bytes[8 * i..8 * i + size]);
                let shift = 64 - 8 * size as u32;
                let x = u64::from_le_bytes(wide) << shift;
                let wanted = if signed { (x as i64 >> shift) as u64 } else { x >> shift };
                assert_eq!(found, wanted, "{op}");
            }
        }
    }
}

#[test]
fn vectors_move_their_elements_in_order() {
    let bytes = noise(64 * 32, 2);
    for (count, ty, register, size) in [
        (2, "u8", "b16", 1),
        (4, "u8", "b16", 1),
        (2, "u16", "b16", 2),
        (4, "u16", "b16", 2),
        (2, "u32", "b32", 4),
        (4, "u32", "b32", 4),
        (4, "f32", "f32", 4),
        (2, "u64", "b64", 8),
        (2, "f64", "f64", 8),
        (2, "b32", "b32", 4),
        (4, "s8", "b32", 1),
        (2, "s16", "b32", 2),
    ] {
        // The elements come back in reverse order.
        let names: Vec<String> = (0..count).map(|i| format!("v{i}")).collect();
        let reversed: Vec<&str> = names.iter().rev().map(String::as_str).collect();
        let stride = count * size;
        let body = addresses(stride, stride)
            + &format!(
                ".reg .{register} {list}; ld.global.v{count}.{ty} {{{list}}}, [q]; st.global.v{count}.{ty} [w], {{{back}}};",
                list = names.join(", "),
                back = reversed.join(", ")
            );
        let n = 64 * stride as usize;
        let out = run_clean(&kernel(2, &body), Config::new(1, 64), &[bytes[..n].to_vec(), vec![0; n]]);
        for (found, given) in out.buffers[1].chunks(stride as usize).zip(bytes.chunks(stride as usize)) {
            let wanted: Vec<u8> = given.chunks(size as usize).rev().flatten().copied().collect();
            assert_eq!(found, wanted, "v{count}.{ty}");
        }
    }
}

#[test]
fn addresses_have_offsets_and_may_be_generic() {
    let bytes = noise(64 * 16, 3);
    let body = addresses(16, 4)
        + ".reg .b64 g; .reg .b32 x, y; add.s64 q, q, 16; ld.global.u32 x, [q+-8]; cvta.global.u64 g, q; ld.u32 y, [g+-12]; \
           add.u32 x, x, y; cvta.global.u64 g, w; st.u32 [g], x;";
    let out = run_clean(&kernel(2, &body), Config::new(1, 64), &[bytes.clone(), vec![0; 256]]);
    let words: Vec<u32> = values_of(&bytes);
    for (i, found) in values_of::<u32>(&out.buffers[1]).into_iter().enumerate() {
        assert_eq!(found, words[4 * i + 2].wrapping_add(words[4 * i + 1]));
    }
}

#[test]
fn shared_memory_is_shared_and_local_memory_is_not() {
    let bytes = noise(128 * 4, 4);
    let body = addresses(4, 4)
        + ".shared .align 8 .b8 tile[512]; .reg .b32 x, y, a; .reg .b64 g;
           ld.global.u32 x, [q]; mov.u32 a, tile; mad.lo.u32 a, t, 4, a; st.shared.u32 [a], x; bar.sync 0;
           xor.b32 y, t, 127; mov.u32 a, tile; mad.lo.u32 a, y, 4, a; ld.shared.u32 x, [a];
           cvt.u64.u32 g, a; cvta.shared.u64 g, g; ld.u32 y, [g]; add.u32 x, x, y; st.global.u32 [w], x;";
    let out = run_clean(&kernel(2, &body), Config::new(1, 128), &[bytes.clone(), vec![0; 512]]);
    let words: Vec<u32> = values_of(&bytes);
    for (i, found) in values_of::<u32>(&out.buffers[1]).into_iter().enumerate() {
        assert_eq!(found, words[i ^ 127].wrapping_mul(2));
    }
    let body = addresses(4, 4)
        + ".local .align 4 .b8 stack[64]; .reg .b32 x, y, i; .reg .b64 a, d, g; .reg .pred p;
           ld.global.u32 x, [q]; mov.u64 a, stack; mov.u32 i, 0;
           FILL: mul.wide.u32 d, i, 4; add.s64 d, d, a; add.u32 y, x, i; st.local.u32 [d], y;
           add.u32 i, i, 1; setp.lt.u32 p, i, 16; @p bra FILL;
           and.b32 i, x, 15; mul.wide.u32 d, i, 4; add.s64 d, d, a; ld.local.u32 y, [d];
           cvta.local.u64 g, d; ld.u32 x, [g]; add.u32 x, x, y; st.global.u32 [w], x;";
    let out = run_clean(&kernel(2, &body), Config::new(1, 128), &[bytes, vec![0; 512]]);
    for (i, found) in values_of::<u32>(&out.buffers[1]).into_iter().enumerate() {
        assert_eq!(found, words[i].wrapping_add(words[i] & 15).wrapping_mul(2));
    }
}

#[test]
fn the_space_of_a_generic_address_is_known() {
    let body = addresses(4, 4)
        + ".shared .b32 s; .local .b32 l; .reg .b64 g; .reg .pred p; .reg .b32 x, y;
           mov.u64 g, s; cvta.shared.u64 g, g; isspacep.shared p, g; selp.u32 x, 1, 0, p;
           isspacep.global p, g; selp.u32 y, 2, 0, p; or.b32 x, x, y;
           isspacep.global p, q; selp.u32 y, 4, 0, p; or.b32 x, x, y;
           mov.u64 g, l; cvta.local.u64 g, g; isspacep.local p, g; selp.u32 y, 8, 0, p; or.b32 x, x, y;
           isspacep.shared p, g; selp.u32 y, 16, 0, p; or.b32 x, x, y; st.global.u32 [w], x;";
    let out = run_clean(&kernel(2, &body), Config::new(1, 1), &[vec![0; 4], vec![0; 4]]);
    assert_eq!(values_of::<u32>(&out.buffers[1]), [1 + 4 + 8]);
}

/// Runs an atomic of every thread on its own element; returns old and new values.
fn atomic(
    op: &str,
    ty: &str,
    size: u32,
    targets: &[u8],
    operands: &[u8],
    shared: bool,
) -> (Vec<u8>, Vec<u8>) {
    let register = match size {
        2 => "b16",
        4 => "b32",
        _ => "b64",
    };
    let second = if op == "cas" { ", b" } else { "" };
    let load =
        if op == "cas" { format!("ld.global.b{b} b, [q+{size}];", b = 8 * size) } else { String::new() };
    let step = if op == "cas" { 2 * size } else { size };
    let access = if shared {
        format!(
            ".shared .align 16 .b8 s[2048]; .reg .b32 c; mov.u32 c, s; mad.lo.u32 c, t, {size}, c; ld.global.b{b} x, [w];
             st.shared.b{b} [c], x; atom.shared.{op}.{ty} x, [c], a{second}; ld.shared.b{b} b, [c]; st.global.b{b} [w], b;",
            b = 8 * size
        )
    } else {
        format!("atom.global.{op}.{ty} x, [w], a{second};")
    };
    let body = addresses(step, size)
        + &format!(
            ".reg .{register} x, a, b; ld.global.b{bits} a, [q]; {load} {access}
             ld.param.u64 o, [p2]; mul.wide.u32 w, t, {size}; add.s64 o, o, w; st.global.b{bits} [o], x;",
            bits = 8 * size
        );
    let n = targets.len() as u32 / size;
    let out = run_clean(
        &kernel(3, &body),
        Config::new(1, n),
        &[operands.to_vec(), targets.to_vec(), vec![0; targets.len()]],
    );
    (out.buffers[2].clone(), out.buffers[1].clone())
}

#[test]
fn integer_atomics_return_the_old_value() {
    let mut random = Random::new(5);
    for shared in [false, true] {
        macro_rules! check {
            ($t:ty, $size:literal, $($op:literal, $ty:literal, $f:expr;)*) => {$(
                let a: Vec<$t> = (0..128).map(|_| random.integer(8 * $size) as $t).collect();
                let b: Vec<$t> = (0..128).map(|_| random.integer(8 * $size) as $t).collect();
                let (old, new) = atomic($op, $ty, $size, &bytes_of(&a), &bytes_of(&b), shared);
                assert_eq!(values_of::<$t>(&old), a, "{} {}", $op, $ty);
                let f: fn($t, $t) -> $t = $f;
                let wanted: Vec<$t> = a.iter().zip(&b).map(|(&a, &b)| f(a, b)).collect();
                assert_eq!(values_of::<$t>(&new), wanted, "{} {}", $op, $ty);
            )*};
        }
        check! {u32, 4,
            "add", "u32", |a, b| a.wrapping_add(b);
            "add", "s32", |a, b| a.wrapping_add(b);
            "min", "u32", |a, b| a.min(b);
            "max", "u32", |a, b| a.max(b);
            "and", "b32", |a, b| a & b;
            "or", "b32", |a, b| a | b;
            "xor", "b32", |a, b| a ^ b;
            "exch", "b32", |_, b| b;
            "inc", "u32", |a, b| if a >= b { 0 } else { a + 1 };
            "dec", "u32", |a, b| if a == 0 || a > b { b } else { a - 1 };
        }
        check! {i32, 4, "min", "s32", |a, b| a.min(b); "max", "s32", |a, b| a.max(b); }
        check! {u64, 8,
            "add", "u64", |a, b| a.wrapping_add(b);
            "min", "u64", |a, b| a.min(b);
            "max", "u64", |a, b| a.max(b);
            "and", "b64", |a, b| a & b;
            "or", "b64", |a, b| a | b;
            "xor", "b64", |a, b| a ^ b;
            "exch", "b64", |_, b| b;
        }
        check! {i64, 8, "min", "s64", |a, b| a.min(b); "max", "s64", |a, b| a.max(b); }
    }
}

#[test]
fn compare_and_swap_compares() {
    let mut random = Random::new(6);
    for shared in [false, true] {
        macro_rules! check {
            ($t:ty, $size:literal, $ty:literal) => {
                let a: Vec<$t> = (0..128).map(|_| random.integer(8 * $size) as $t).collect();
                let pairs: Vec<$t> = a
                    .iter()
                    .flat_map(|&a| {
                        [if random.below(2) == 0 { a } else { random.u64() as $t }, random.u64() as $t]
                    })
                    .collect();
                let (old, new) = atomic("cas", $ty, $size, &bytes_of(&a), &bytes_of(&pairs), shared);
                assert_eq!(values_of::<$t>(&old), a);
                let wanted: Vec<$t> =
                    a.iter().zip(pairs.chunks(2)).map(|(&a, p)| if a == p[0] { p[1] } else { a }).collect();
                assert_eq!(values_of::<$t>(&new), wanted);
            };
        }
        check!(u32, 4, "b32");
        check!(u64, 8, "b64");
        check!(u16, 2, "b16");
    }
}

#[test]
fn float_atomics_add_with_one_rounding() {
    let mut random = Random::new(7);
    let a: Vec<u32> = (0..128).map(|_| random.u32() & 0x3f7f_ffff | 0x3000_0000).collect();
    let b: Vec<u32> = (0..128).map(|_| random.u32() & 0xbf7f_ffff | 0x3000_0000).collect();
    for shared in [false, true] {
        let (old, new) = atomic("add", "f32", 4, &bytes_of(&a), &bytes_of(&b), shared);
        assert_eq!(values_of::<u32>(&old), a);
        for i in 0..128 {
            let wanted = soft::add(soft::F32, a[i].into(), b[i].into(), Round::Rn).unwrap();
            assert_eq!(u64::from(values_of::<u32>(&new)[i]), wanted);
        }
    }
    let c: Vec<f64> = (0..128).map(|_| random.u32() as f64 / 3.0).collect();
    let d: Vec<f64> = (0..128).map(|_| random.u32() as f64 / -7.0).collect();
    let (_, new) = atomic("add", "f64", 8, &bytes_of(&c), &bytes_of(&d), false);
    for i in 0..128 {
        assert_eq!(values_of::<f64>(&new)[i], c[i] + d[i]);
    }
    for (f, ty) in [(F16, "noftz.f16x2"), (BF16, "noftz.bf16x2")] {
        let a: Vec<u32> = (0..128).map(|_| random.u32() & 0x3bff_3bff).collect();
        let (old, new) = atomic("add", ty, 4, &bytes_of(&a), &bytes_of(&b), false);
        assert_eq!(values_of::<u32>(&old), a);
        for i in 0..128 {
            let found = values_of::<u32>(&new)[i];
            for shift in [0, 16] {
                let half = |x: u32| u64::from(x >> shift & 0xffff);
                match soft::add(f, half(a[i]), half(b[i]), Round::Rn) {
                    Some(wanted) => assert_eq!(half(found), wanted, "{ty} {:x} {:x}", a[i], b[i]),
                    None => assert!(f.is_nan(half(found))),
                }
            }
        }
    }
}

#[test]
fn colliding_atomics_lose_nothing() {
    let body = addresses(0, 4)
        + ".reg .b32 x, c; mov.u32 c, %ctaid.x; mad.lo.u32 t, c, 128, t;
           atom.global.add.u32 x, [q], 1; red.global.max.u32 [q+4], t; red.global.add.u64 [q+8], 3;
           ld.param.u64 w, [p1]; mul.wide.u32 o, t, 4; add.s64 w, w, o; st.global.u32 [w], x;";
    let n = 128 * 16;
    let out = run_clean(&kernel(2, &body), Config::new(16, 128), &[vec![0; 16], vec![0; 4 * n]]);
    assert_eq!(values_of::<u32>(&out.buffers[0])[..2], [n as u32, n as u32 - 1]);
    assert_eq!(values_of::<u64>(&out.buffers[0])[1], 3 * n as u64);
    let mut seen: Vec<u32> = values_of(&out.buffers[1]);
    seen.sort_unstable();
    assert_eq!(seen, (0..n as u32).collect::<Vec<_>>());
}

/// Copies with `cp.async`, waits and reads what arrived.
fn copy_async(instruction: &str, wait: &str) -> Vec<u8> {
    let source: Vec<u8> = (0..32 * 16).map(|i| (i * 7 + 1) as u8).collect();
    let body = addresses(16, 16)
        + &format!(
            ".shared .align 16 .b8 s[512]; .reg .b32 a, x, y, z, v, n; .reg .pred p; mov.u32 a, s; mad.lo.u32 a, t, 16, a;
             mov.u32 x, 0x11111111; st.shared.v4.u32 [a], {{x, x, x, x}}; and.b32 n, t, 15; setp.lt.u32 p, t, 16;
             {instruction} {wait} ld.shared.v4.u32 {{x, y, z, v}}, [a]; st.global.v4.u32 [w], {{x, y, z, v}};"
        );
    let out = run_clean(&kernel(2, &body), Config::new(1, 32), &[source, vec![0; 512]]);
    out.buffers[1].clone()
}

#[test]
fn asynchronous_copies_arrive_after_the_wait() {
    let commit = "cp.async.commit_group; cp.async.wait_group 0;";
    for (size, cache) in [(4, "ca"), (8, "ca"), (16, "ca"), (16, "cg")] {
        for wait in [commit, "cp.async.wait_all;"] {
            let found = copy_async(&format!("cp.async.{cache}.shared.global [a], [q], {size};"), wait);
            for (i, &byte) in found.iter().enumerate() {
                let wanted = if i % 16 < size { (i * 7 + 1) as u8 } else { 0x11 };
                assert_eq!(byte, wanted, "{cache} {size} byte {i}");
            }
        }
    }
}

#[test]
fn asynchronous_copies_fill_the_rest_with_zero() {
    // Each thread gives the number of bytes to read: 0 to 15.
    let found = copy_async(
        "cp.async.cg.shared.global.L2::128B [a], [q], 16, n;",
        "cp.async.commit_group; cp.async.wait_group 0;",
    );
    for (i, &byte) in found.iter().enumerate() {
        let (lane, at) = (i / 16, i % 16);
        assert_eq!(byte, if at < lane & 15 { (i * 7 + 1) as u8 } else { 0 }, "byte {i}");
    }
    // With a predicate the source is ignored as a whole.
    let found = copy_async("cp.async.ca.shared.global [a], [q], 16, p;", "cp.async.wait_all;");
    for (i, &byte) in found.iter().enumerate() {
        assert_eq!(byte, if i / 16 < 16 { 0 } else { (i * 7 + 1) as u8 }, "byte {i}");
    }
}

#[test]
fn groups_are_waited_for_in_order() {
    // Three groups; after wait_group 1 the first two are there, the third after wait_group 0.
    let body = addresses(48, 12)
        + ".shared .align 16 .b8 s[384]; .reg .b32 a, x, y, z; mov.u32 a, s; mad.lo.u32 a, t, 12, a;
           cp.async.ca.shared.global [a], [q], 4; cp.async.commit_group;
           cp.async.ca.shared.global [a+4], [q+16], 4; cp.async.commit_group;
           cp.async.ca.shared.global [a+8], [q+32], 4; cp.async.commit_group;
           cp.async.wait_group 1; ld.shared.u32 x, [a]; ld.shared.u32 y, [a+4];
           cp.async.wait_group 0; ld.shared.u32 z, [a+8];
           st.global.u32 [w], x; st.global.u32 [w+4], y; st.global.u32 [w+8], z;";
    let source: Vec<u32> = (0..32 * 12).map(|i| i * 3).collect();
    let out = run_clean(&kernel(2, &body), Config::new(1, 32), &[bytes_of(&source), vec![0; 384]]);
    for (i, found) in values_of::<u32>(&out.buffers[1]).into_iter().enumerate() {
        assert_eq!(found, source[i / 3 * 12 + i % 3 * 4]);
    }
    // Reading the third group too early is a fault.
    let early = kernel(2, &body.replace("cp.async.wait_group 0;", ""));
    let out = run(&early, Config::new(1, 32), &[bytes_of(&source), vec![0; 384]]);
    assert!(out.reports.iter().any(|r| r.kind == FaultKind::MissingAsyncWait), "{:?}", out.reports);
}

#[test]
fn hints_change_nothing() {
    let a: Vec<u32> = (0..256).collect();
    let text = ".reg .b64 pol, g; createpolicy.fractional.L2::evict_first.b64 pol, 1.0; \
                ld.param.u64 g, [p0]; prefetch.global.L2 [g]; ld.global.L1::no_allocate.L2::128B.u32 %o, [g]; \
                ld.global.nc.L2::cache_hint.u32 %o, [g], pol; add.u32 %o, %o, %a;";
    assert_eq!(map1::<u32, u32>(text, &a), a);
}

#[test]
fn fences_and_barriers_let_values_through() {
    // Named barriers with part of the threads, and reductions over a barrier.
    let body = addresses(4, 4)
        + ".shared .b32 s; .reg .b32 x, n; .reg .pred p, q1; ld.global.u32 x, [q]; setp.gt.u32 p, x, 100;
           bar.red.popc.u32 n, 0, p; barrier.sync 1, 128; bar.red.and.pred q1, 0, p; selp.u32 x, 1000, 0, q1; add.u32 n, n, x;
           bar.red.or.pred q1, 0, p; selp.u32 x, 2000, 0, q1; add.u32 n, n, x; membar.gl; fence.acq_rel.gpu;
           st.global.u32 [w], n;";
    let a: Vec<u32> = (0..128).map(|i| i * 2).collect();
    let out = run_clean(&kernel(2, &body), Config::new(1, 128), &[bytes_of(&a), vec![0; 512]]);
    let above = a.iter().filter(|&&x| x > 100).count() as u32;
    assert_eq!(values_of::<u32>(&out.buffers[1]), vec![above + 2000; 128]);
}
