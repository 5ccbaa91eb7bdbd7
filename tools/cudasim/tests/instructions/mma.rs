//! `mma`: the fragments of every shape and type by enumeration, and products of integers that every format holds
//! exactly.

use crate::harness::{Config, bytes_of, kernel, run_clean, values_of};
use crate::random::Random;
use crate::soft::{self, BF16, F16, F32, F64, Format, Round, TF32};

/// Multiplicand type of a test.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Float(Format),
    Int { bits: u32, signed: bool },
    Bit,
    Double,
}

/// Where a fragment's elements lie: (row, column) of element `i` of lane `l`.
type Layout = fn(i: usize, l: usize) -> (usize, usize);

struct Shape {
    m: usize,
    n: usize,
    k: usize,
    a: Layout,
    b: Layout,
    /// Elements of a lane's fragments of A and B.
    a_elements: usize,
    b_elements: usize,
}

/// C and D have one layout for all shapes with 16 rows, and the first half of it for 8 rows.
fn c_layout(i: usize, l: usize) -> (usize, usize) {
    (l / 4 + i / 2 * 8, l % 4 * 2 + i % 2)
}

/// Place of element `i` of lane `l` in A: `p` elements per register, with 16 rows those of rows l / 4 and l / 4 + 8 in
/// alternating registers.
fn a_layout(m: usize, p: usize, i: usize, l: usize) -> (usize, usize) {
    let (register, j) = (i / p, i % p);
    match m {
        8 => (l / 4, l % 4 * p + j + register * 4 * p),
        _ => (l / 4 + register % 2 * 8, l % 4 * p + j + register / 2 * 4 * p),
    }
}

/// The same in B.
fn b_layout(p: usize, i: usize, l: usize) -> (usize, usize) {
    (l % 4 * p + i % p + i / p * 4 * p, l / 4)
}

macro_rules! shape {
    ($m:literal, $n:literal, $k:literal, per $p:literal) => {
        Shape {
            m: $m,
            n: $n,
            k: $k,
            a: |i, l| a_layout($m, $p, i, l),
            b: |i, l| b_layout($p, i, l),
            a_elements: $m * $k / 32,
            b_elements: $n * $k / 32,
        }
    };
}

/// Bits of a small integer in a multiplicand type.
fn encode(kind: Kind, x: i64) -> u64 {
    match kind {
        Kind::Float(f) => {
            let bits = f.round(soft::integer(x.into()), Round::Rn);
            if f == TF32 { bits << 13 } else { bits }
        }
        Kind::Double => F64.round(soft::integer(x.into()), Round::Rn),
        Kind::Int { bits, .. } => x as u64 & ((1 << bits) - 1),
        Kind::Bit => x as u64 & 1,
    }
}

fn element_bits(kind: Kind) -> usize {
    match kind {
        Kind::Float(f) if f == TF32 => 32,
        Kind::Float(_) => 16,
        Kind::Int { bits, .. } => bits as usize,
        Kind::Bit => 1,
        Kind::Double => 64,
    }
}

/// Packs the elements of one lane, first element lowest.
fn pack(elements: impl Iterator<Item = u64>, bits: usize, out: &mut Vec<u8>) {
    let (mut word, mut used) = (0u64, 0);
    let width = bits.max(32);
    for e in elements {
        word |= e << used;
        used += bits;
        if used == width {
            out.extend_from_slice(&word.to_le_bytes()[..width / 8]);
            (word, used) = (0, 0);
        }
    }
    assert_eq!(used, 0);
}

/// Accumulator type: bits and how to read one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Accumulator {
    F16,
    F32,
    S32,
    F64,
}

fn list(name: &str, n: usize) -> String {
    (0..n).map(|i| format!("{name}{i}")).collect::<Vec<_>>().join(", ")
}

/// Runs one mma on integers; fails where D is not A B + C.
fn check(opcode: &str, shape: &Shape, a_kind: Kind, b_kind: Kind, accumulator: Accumulator, satfinite: bool) {
    let mut random = Random::new(opcode.len() as u64);
    let mut number = |kind: Kind| -> i64 {
        match kind {
            Kind::Float(_) | Kind::Double => i64::from(random.below(17)) - 8,
            Kind::Int { bits, signed: true } => i64::from(random.below(1 << bits)) - (1 << (bits - 1)),
            Kind::Int { bits, .. } => random.below(1 << bits).into(),
            Kind::Bit => random.below(2).into(),
        }
    };
    let (m, n, k) = (shape.m, shape.n, shape.k);
    let a: Vec<i64> = (0..m * k).map(|_| number(a_kind)).collect();
    let b: Vec<i64> = (0..k * n).map(|_| number(b_kind)).collect();
    let c: Vec<i64> = (0..m * n).map(|_| number(Kind::Int { bits: 6, signed: true })).collect();
    let c_elements = m * n / 32;
    let (mut a_bytes, mut b_bytes, mut c_bytes) = (Vec::new(), Vec::new(), Vec::new());
    for lane in 0..32 {
        let at = |(row, column): (usize, usize), width: usize| row * width + column;
        pack(
            (0..shape.a_elements).map(|i| encode(a_kind, a[at((shape.a)(i, lane), k)])),
            element_bits(a_kind),
            &mut a_bytes,
        );
        pack(
            (0..shape.b_elements).map(|i| encode(b_kind, b[at((shape.b)(i, lane), n)])),
            element_bits(b_kind),
            &mut b_bytes,
        );
        let c_of = |i| c[at(c_layout(i, lane), n)];
        let (kind, bits) = match accumulator {
            Accumulator::F16 => (Kind::Float(F16), 16),
            Accumulator::F32 => (Kind::Float(F32), 32),
            Accumulator::S32 => (Kind::Int { bits: 32, signed: true }, 32),
            Accumulator::F64 => (Kind::Double, 64),
        };
        pack((0..c_elements).map(|i| encode(kind, c_of(i))), bits, &mut c_bytes);
    }
    let (wide, size) = if accumulator == Accumulator::F64 { ("b64", 8) } else { ("b32", 4) };
    let registers = [a_bytes.len() / 32 / size, b_bytes.len() / 32 / size, c_bytes.len() / 32 / size];
    let mut body = String::from(".reg .b32 t; .reg .b64 q, o; mov.u32 t, %tid.x;\n");
    for (p, (name, count)) in ["a", "b", "c"].into_iter().zip(registers).enumerate() {
        body += &format!(
            ".reg .{wide} {}; ld.param.u64 q, [p{p}]; mul.wide.u32 o, t, {}; add.s64 q, q, o;\n",
            list(name, count),
            count * size
        );
        for i in 0..count {
            body += &format!("ld.global.{wide} {name}{i}, [q+{}];\n", i * size);
        }
    }
    let [ra, rb, rc] = registers;
    body += &format!(
        ".reg .{wide} {d}; {opcode} {{{d}}}, {{{}}}, {{{}}}, {{{}}};\n",
        list("a", ra),
        list("b", rb),
        list("c", rc),
        d = list("d", rc)
    );
    for i in 0..rc {
        body += &format!("st.global.{wide} [q+{}], d{i};\n", i * size);
    }
    let out = run_clean(&kernel(3, &body), Config::new(1, 32), &[a_bytes, b_bytes, c_bytes]);
    let d = &out.buffers[2];
    for lane in 0..32 {
        for i in 0..c_elements {
            let (row, column) = c_layout(i, lane);
            let product = |j: usize| match (a_kind, opcode.contains(".and.")) {
                (Kind::Bit, true) => a[row * k + j] & b[j * n + column],
                (Kind::Bit, false) => a[row * k + j] ^ b[j * n + column],
                _ => a[row * k + j] * b[j * n + column],
            };
            let sum: i64 = (0..k).map(product).sum::<i64>() + c[row * n + column];
            let at = lane * c_elements + i;
            let found = match accumulator {
                Accumulator::F16 => half::f16::from_bits(values_of::<u16>(d)[at]).to_f64() as i64,
                Accumulator::F32 => values_of::<f32>(d)[at] as i64,
                Accumulator::S32 => values_of::<i32>(d)[at].into(),
                Accumulator::F64 => values_of::<f64>(d)[at] as i64,
            };
            let wanted = if satfinite { sum.clamp(i32::MIN.into(), i32::MAX.into()) } else { sum };
            // Sums above 2048 are rounded in f16.
            let near = if accumulator == Accumulator::F16 && sum.abs() > 2048 { sum.abs() / 1024 } else { 0 };
            assert!((found - wanted).abs() <= near, "{opcode} D[{row}][{column}] is {found}, not {wanted}");
        }
    }
}

#[test]
fn f16_and_bf16_products() {
    let (k8, k16) = (shape!(16, 8, 8, per 2), shape!(16, 8, 16, per 2));
    for (name, shape) in [("m16n8k8", &k8), ("m16n8k16", &k16)] {
        let op = |types: &str| format!("mma.sync.aligned.{name}.row.col.{types}");
        let half = Kind::Float(F16);
        check(&op("f32.f16.f16.f32"), shape, half, half, Accumulator::F32, false);
        check(&op("f16.f16.f16.f16"), shape, half, half, Accumulator::F16, false);
        let bf16 = Kind::Float(BF16);
        check(&op("f32.bf16.bf16.f32"), shape, bf16, bf16, Accumulator::F32, false);
    }
}

#[test]
fn tf32_products() {
    let tf32 = Kind::Float(TF32);
    check(
        "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32",
        &shape!(16, 8, 4, per 1),
        tf32,
        tf32,
        Accumulator::F32,
        false,
    );
    check(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        &shape!(16, 8, 8, per 1),
        tf32,
        tf32,
        Accumulator::F32,
        false,
    );
}

#[test]
fn integer_products_of_every_signedness() {
    let shapes8 = [
        ("m8n8k16", shape!(8, 8, 16, per 4)),
        ("m16n8k16", shape!(16, 8, 16, per 4)),
        ("m16n8k32", shape!(16, 8, 32, per 4)),
    ];
    let shapes4 = [
        ("m8n8k32", shape!(8, 8, 32, per 8)),
        ("m16n8k32", shape!(16, 8, 32, per 8)),
        ("m16n8k64", shape!(16, 8, 64, per 8)),
    ];
    for (bits, shapes) in [(8, &shapes8), (4, &shapes4)] {
        for (name, shape) in shapes {
            for (sa, ta) in [(true, "s"), (false, "u")] {
                for (sb, tb) in [(true, "s"), (false, "u")] {
                    for sat in ["", ".satfinite"] {
                        let op =
                            format!("mma.sync.aligned.{name}.row.col{sat}.s32.{ta}{bits}.{tb}{bits}.s32");
                        let kind = |signed| Kind::Int { bits, signed };
                        check(&op, shape, kind(sa), kind(sb), Accumulator::S32, true);
                    }
                }
            }
        }
    }
}

#[test]
fn single_bit_products() {
    let shapes = [
        ("m8n8k128", shape!(8, 8, 128, per 32)),
        ("m16n8k128", shape!(16, 8, 128, per 32)),
        ("m16n8k256", shape!(16, 8, 256, per 32)),
    ];
    for (name, shape) in &shapes {
        for op in ["xor", "and"] {
            let text = format!("mma.sync.aligned.{name}.row.col.s32.b1.b1.s32.{op}.popc");
            check(&text, shape, Kind::Bit, Kind::Bit, Accumulator::S32, false);
        }
    }
}

#[test]
fn f64_products() {
    let op = "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64";
    check(op, &shape!(8, 8, 4, per 1), Kind::Double, Kind::Double, Accumulator::F64, false);
}

/// D of one m16n8k16 with A and B of the given halves in every place and C zero.
fn uniform(types: &str, a: u16, b: u16, c: f32) -> f32 {
    let body = format!(
        ".reg .b32 t, a, b; .reg .f32 c, d0, d1, d2, d3; .reg .b64 q, o; mov.u32 t, %tid.x; ld.param.u64 q, [p0];
         mul.wide.u32 o, t, 4; add.s64 q, q, o; mov.b32 a, {}; mov.b32 b, {}; mov.f32 c, 0f{:08X};
         mma.sync.aligned.m16n8k16.row.col.{types} {{d0, d1, d2, d3}}, {{a, a, a, a}}, {{b, b}}, {{c, c, c, c}};
         st.global.f32 [q], d3;",
        u32::from(a) << 16 | u32::from(a),
        u32::from(b) << 16 | u32::from(b),
        c.to_bits()
    );
    let out = run_clean(&kernel(1, &body), Config::new(1, 32), &[vec![0; 128]]);
    let values: Vec<f32> = values_of(&out.buffers[0]);
    assert!(values.iter().all(|v| v.to_bits() == values[0].to_bits()));
    values[0]
}

#[test]
fn products_are_not_rounded_before_they_are_summed() {
    let f16 = "f32.f16.f16.f32";
    // 1 + 2^-10, squared, has 21 bits; sixteen of them fit f32.
    assert_eq!(uniform(f16, 0x3c01, 0x3c01, 0.0), 16.0 * (1.0 + 2f32.powi(-9) + 2f32.powi(-20)));
    // The smallest denormals count.
    assert_eq!(uniform(f16, 0x0001, 0x0001, 0.0), 2f32.powi(-44));
    assert_eq!(uniform(f16, 0x0001, 0x3c00, 2f32.powi(-10)), 2f32.powi(-10) + 2f32.powi(-20));
    // Half of the last place of 1.0, sixteen times: how much of it is kept depends on the order of the sum.
    assert!((1.0..=1.0 + 2f32.powi(-20)).contains(&uniform(f16, 0x0001, 0x3c00, 1.0)));
    let bf16 = "f32.bf16.bf16.f32";
    assert_eq!(uniform(bf16, 0x3f81, 0x3f81, 0.0), 16.0 * (1.0 + 2f32.powi(-6) + 2f32.powi(-14)));
    assert!(uniform(f16, 0x7c00, 0x0000, 0.0).is_nan());
    assert_eq!(uniform(f16, 0x7c00, 0x3c00, 0.0), f32::INFINITY);
    assert!(uniform(f16, 0x3c00, 0x3c00, f32::NAN).is_nan());
}

#[test]
fn random_products_are_within_the_tolerance_of_f32_sums() {
    let mut random = Random::new(77);
    let shape = shape!(16, 8, 16, per 2);
    let half = |random: &mut Random| (random.u32() & 0x83ff) as u16 | (13 + random.below(4) as u16) << 10;
    let a: Vec<u16> = (0..256).map(|_| half(&mut random)).collect();
    let b: Vec<u16> = (0..128).map(|_| half(&mut random)).collect();
    let (mut a_bytes, mut b_bytes) = (Vec::new(), Vec::new());
    for lane in 0..32 {
        let at = |(r, c): (usize, usize), w: usize| r * w + c;
        a_bytes.extend(bytes_of(&(0..8).map(|i| a[at((shape.a)(i, lane), 16)]).collect::<Vec<u16>>()));
        b_bytes.extend(bytes_of(&(0..4).map(|i| b[at((shape.b)(i, lane), 8)]).collect::<Vec<u16>>()));
    }
    let body = ".reg .b32 t, a0, a1, a2, a3, b0, b1; .reg .f32 d0, d1, d2, d3; .reg .b64 q, o; mov.u32 t, %tid.x;
        ld.param.u64 q, [p0]; mul.wide.u32 o, t, 16; add.s64 q, q, o; ld.global.v4.u32 {a0, a1, a2, a3}, [q];
        ld.param.u64 q, [p1]; mul.wide.u32 o, t, 8; add.s64 q, q, o; ld.global.v2.u32 {b0, b1}, [q];
        mov.f32 d0, 0f00000000; mov.f32 d1, d0; mov.f32 d2, d0; mov.f32 d3, d0;
        mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {d0, d1, d2, d3}, {a0, a1, a2, a3}, {b0, b1}, {d0, d1, d2, d3};
        ld.param.u64 q, [p2]; mul.wide.u32 o, t, 16; add.s64 q, q, o; st.global.v4.f32 [q], {d0, d1, d2, d3};";
    let out = run_clean(&kernel(3, body), Config::new(1, 32), &[a_bytes, b_bytes, vec![0; 512]]);
    let d: Vec<f32> = values_of(&out.buffers[2]);
    let value = |x: u16| half::f16::from_bits(x).to_f64();
    for lane in 0..32 {
        for i in 0..4 {
            let (row, column) = c_layout(i, lane);
            let terms = (0..16).map(|j| value(a[row * 16 + j]) * value(b[j * 8 + column]));
            let (sum, magnitude) = terms.fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()));
            let found = f64::from(d[lane * 4 + i]);
            assert!((found - sum).abs() <= magnitude * 16.0 * 2f64.powi(-24), "{found} {sum}");
        }
    }
}
