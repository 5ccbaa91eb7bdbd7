//! `wmma`: fragments are opaque, so that loading, multiplying and storing is tested as a whole.

use crate::harness::{Config, kernel, run_clean, values_of};
use crate::random::Random;

/// Multiplicand type, registers of A and B, and what a small integer is in it.
struct Kind {
    name: &'static str,
    registers: fn(elements: usize) -> usize,
    put: fn(i64, &mut Vec<u8>),
}

fn list(name: &str, n: usize) -> String {
    (0..n).map(|i| format!("{name}{i}")).collect::<Vec<_>>().join(", ")
}

/// C and D type: `f32`, `f16` or `s32`.
fn check(
    (m, n, k): (usize, usize, usize),
    a_layout: &str,
    b_layout: &str,
    kind: &Kind,
    c_type: &str,
    d_type: &str,
) {
    let mut random = Random::new((m * 3 + n * 5) as u64);
    let mut small =
        |count: usize| -> Vec<i64> { (0..count).map(|_| i64::from(random.below(9)) - 4).collect() };
    let unsigned = kind.name == "u8";
    let fix = |v: Vec<i64>| -> Vec<i64> { if unsigned { v.iter().map(|x| x.abs()).collect() } else { v } };
    let (a, b, c) = (fix(small(m * k)), fix(small(k * n)), small(m * n));
    let order =
        |v: &[i64], rows: usize, columns: usize, layout: &str, put: fn(i64, &mut Vec<u8>)| -> Vec<u8> {
            let mut out = Vec::new();
            for i in 0..rows * columns {
                let (r, c) = if layout == "row" { (i / columns, i % columns) } else { (i % rows, i / rows) };
                put(v[r * columns + c], &mut out);
            }
            out
        };
    let put_c: fn(i64, &mut Vec<u8>) = match c_type {
        "f32" => |x, out| out.extend((x as f32).to_le_bytes()),
        "f16" => |x, out| out.extend(half::f16::from_f64(x as f64).to_le_bytes()),
        _ => |x, out| out.extend((x as i32).to_le_bytes()),
    };
    let stride = |rows: usize, columns: usize, layout: &str| if layout == "row" { columns } else { rows };
    let shape = format!("m{m}n{n}k{k}");
    let (ra, rb) = ((kind.registers)(m * k), (kind.registers)(k * n));
    let rc = |t: &str| if t == "f16" { 4 } else { 8 };
    let mma_types = if kind.name == "f16" {
        format!("{d_type}.{c_type}")
    } else {
        format!("{d_type}.{t}.{t}.{c_type}", t = kind.name)
    };
    let body = format!(
        ".reg .b32 {}, {}, {}, {}; .reg .b64 q;
         ld.param.u64 q, [p0]; wmma.load.a.sync.aligned.{a_layout}.{shape}.global.{t} {{{}}}, [q], {};
         ld.param.u64 q, [p1]; wmma.load.b.sync.aligned.{b_layout}.{shape}.global.{t} {{{}}}, [q], {};
         ld.param.u64 q, [p2]; wmma.load.c.sync.aligned.row.{shape}.global.{c_type} {{{}}}, [q], {n};
         wmma.mma.sync.aligned.{a_layout}.{b_layout}.{shape}.{mma_types} {{{d}}}, {{{}}}, {{{}}}, {{{}}};
         ld.param.u64 q, [p3]; wmma.store.d.sync.aligned.col.{shape}.global.{d_type} [q], {{{d}}}, {m};",
        list("a", ra),
        list("b", rb),
        list("c", rc(c_type)),
        list("d", rc(d_type)),
        list("a", ra),
        stride(m, k, a_layout),
        list("b", rb),
        stride(k, n, b_layout),
        list("c", rc(c_type)),
        list("a", ra),
        list("b", rb),
        list("c", rc(c_type)),
        t = kind.name,
        d = list("d", rc(d_type)),
    );
    let buffers = [
        order(&a, m, k, a_layout, kind.put),
        order(&b, k, n, b_layout, kind.put),
        order(&c, m, n, "row", put_c),
        vec![0; m * n * if d_type == "f16" { 2 } else { 4 }],
    ];
    let out = run_clean(&kernel(4, &body), Config::new(1, 32), &buffers);
    for row in 0..m {
        for column in 0..n {
            let wanted: i64 =
                (0..k).map(|i| a[row * k + i] * b[i * n + column]).sum::<i64>() + c[row * n + column];
            let at = column * m + row;
            let found = match d_type {
                "f32" => values_of::<f32>(&out.buffers[3])[at] as i64,
                "f16" => half::f16::from_bits(values_of::<u16>(&out.buffers[3])[at]).to_f64() as i64,
                _ => values_of::<i32>(&out.buffers[3])[at].into(),
            };
            assert_eq!(found, wanted, "{shape} {a_layout} {b_layout} {mma_types} D[{row}][{column}]");
        }
    }
}

const SHAPES: [(usize, usize, usize); 3] = [(16, 16, 16), (32, 8, 16), (8, 32, 16)];

#[test]
fn f16_matrices_multiply() {
    // Each lane holds 16 elements of A and of B in every shape, some of them twice.
    let kind = Kind {
        name: "f16",
        registers: |_| 8,
        put: |x, out| out.extend(half::f16::from_f64(x as f64).to_le_bytes()),
    };
    for shape in SHAPES {
        for a in ["row", "col"] {
            for b in ["row", "col"] {
                for (c, d) in [("f32", "f32"), ("f16", "f16"), ("f16", "f32"), ("f32", "f16")] {
                    check(shape, a, b, &kind, c, d);
                }
            }
        }
    }
}

#[test]
fn bf16_matrices_multiply() {
    let kind = Kind {
        name: "bf16",
        registers: |n| n / 64,
        put: |x, out| out.extend(half::bf16::from_f64(x as f64).to_le_bytes()),
    };
    for shape in SHAPES {
        for (a, b) in [("row", "col"), ("col", "row")] {
            check(shape, a, b, &kind, "f32", "f32");
        }
    }
}

#[test]
fn byte_matrices_multiply() {
    for name in ["s8", "u8"] {
        let kind = Kind { name, registers: |n| n / 128, put: |x, out| out.push(x as u8) };
        for shape in SHAPES {
            for (a, b) in [("row", "col"), ("col", "row")] {
                check(shape, a, b, &kind, "s32", "s32");
            }
        }
    }
}
