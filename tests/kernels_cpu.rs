//! Every CPU kernel against plain float64, on every instruction set of this machine, with ragged
//! sizes and poisoned outputs; and the promise that bits depend on nothing but the request.

mod common;

use std::sync::Arc;

use common::reference::{self as r, f64s};
use common::rng::Rng;
use common::tolerance as tol;
use qwenvl::kernels::SeqRows;
use qwenvl::kernels::cpu::attention::{self, KvPages};
use qwenvl::kernels::cpu::dense::DenseMatrix;
use qwenvl::kernels::cpu::grouped::{GroupedMatrix, Packing, Source};
use qwenvl::kernels::cpu::int4::Int4Matrix;
use qwenvl::kernels::cpu::int8::Int8Matrix;
use qwenvl::kernels::cpu::linear::{Blocking, Finish, MAX_PARTS, Matrix, Part, linear};
use qwenvl::kernels::cpu::order::InputOrder;
use qwenvl::kernels::cpu::resample::{self, Columns, PRECISION_BITS, STRIP_PADDING, STRIP_ROWS, Weights4};
use qwenvl::kernels::cpu::rope::RopeTable;
use qwenvl::kernels::cpu::rounded::QuantizedRows;
use qwenvl::kernels::cpu::{Aligned, Isa, Pool, embed, norm, pointwise, rope};
use qwenvl_graph::op::{Heads, MRope};
use qwenvl_graph::weights::WeightFormat;
use qwenvl_graph::{Activation, DType};

const POISON: f32 = f32::NAN;

fn encode(values: &[f32], dtype: DType) -> (Vec<u8>, Vec<f64>) {
    let (mut bytes, mut exact) = (Vec::new(), Vec::new());
    for &v in values {
        match dtype {
            DType::BF16 => {
                let h = half::bf16::from_f32(v);
                bytes.extend(h.to_le_bytes());
                exact.push(h.to_f64());
            }
            DType::F16 => {
                let h = half::f16::from_f32(v);
                bytes.extend(h.to_le_bytes());
                exact.push(h.to_f64());
            }
            _ => {
                bytes.extend(v.to_le_bytes());
                exact.push(f64::from(v));
            }
        }
    }
    (bytes, exact)
}

struct Rig {
    isa: Isa,
    pool: Pool,
    scratch: Vec<Aligned<f32>>,
    rounded: [QuantizedRows; MAX_PARTS],
}

impl Rig {
    fn new(isa: Isa, threads: usize) -> Rig {
        let mut scratch = vec![Aligned::zeroed(96 * 160 * 2 + 256 * 256); threads];
        scratch.iter_mut().for_each(|s| s.fill(POISON));
        Rig { isa, pool: Pool::new(threads).unwrap(), scratch, rounded: Default::default() }
    }

    fn linear(&mut self, x: &[f32], m: usize, parts: &[Part], finish: Finish, out: &mut [f32]) {
        self.linear_blocked(x, m, parts, finish, out, 96, 64);
    }

    #[allow(clippy::too_many_arguments)]
    fn linear_blocked(
        &mut self,
        x: &[f32],
        m: usize,
        parts: &[Part],
        finish: Finish,
        out: &mut [f32],
        block_m: usize,
        block_n: usize,
    ) {
        let blocking = Blocking { block_m, block_n, scratch: &mut self.scratch, rounded: &mut self.rounded };
        linear(self.isa, &mut self.pool, x, m, parts, finish, out, blocking);
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn dense_linear_is_within_the_bound_of_its_chains_for_every_ragged_size() {
    let mut rng = Rng(1);
    for isa in Isa::available() {
        let mut rig = Rig::new(isa, 2);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (m, n, k) in
                [(1, 1, 1), (1, 7, 8), (2, 65, 250), (3, 16, 257), (4, 3, 512), (5, 130, 1176), (97, 67, 519)]
            {
                let x = rng.normals(m * k);
                let (bytes, w) = encode(&rng.normals(n * k), dtype);
                let bias = rng.normals(n);
                let matrix = Matrix::Dense(DenseMatrix::new(&bytes, dtype, n, k));
                let mut y = vec![POISON; m * n];
                rig.linear(&x, m, &[Part { matrix, bias: Some(&bias) }], Finish::Store, &mut y);
                for (at, (sum, size)) in r::matmul(&f64s(&x), &w, m, n, k).into_iter().enumerate() {
                    let bias = f64::from(bias[at % n]);
                    let error = (f64::from(y[at]) - sum - bias).abs();
                    let bound = tol::dense_dot(k) * (size + bias.abs());
                    assert!(
                        error <= bound,
                        "{} {dtype} {m}x{n}x{k} at {at}: {error:e} > {bound:e}",
                        isa.name()
                    );
                }
            }
        }
    }
}

/// A matrix with integer codes: the tensors of its file, and its weights [n, k].
struct Quantised {
    packing: Packing,
    bits: usize,
    n: usize,
    k: usize,
    group: usize,
    /// The group of each input.
    g_idx: Vec<u32>,
    qweight: Vec<u8>,
    qzeros: Vec<u8>,
    scales: Vec<u8>,
    w: Vec<f64>,
}

impl Quantised {
    /// Random codes and zero points, all values of them.
    fn random(rng: &mut Rng, packing: Packing, bits: usize, (n, k, group): (usize, usize, usize)) -> Self {
        let g_idx = (0..k).map(|l| (l / group) as u32).collect();
        let groups = k.div_ceil(group);
        let mut random = |bytes: usize| (0..bytes).map(|_| rng.next() as u8).collect::<Vec<u8>>();
        let (qweight, qzeros) = (random(k * n * bits / 8), random(groups * n * bits / 8));
        let scales: Vec<f32> = (0..groups * n).map(|_| 0.02 + 0.01 * rng.unit()).collect();
        let scales = encode(&scales, DType::F16).0;
        Quantised { packing, bits, n, k, group, g_idx, qweight, qzeros, scales, w: Vec::new() }.unpacked()
    }

    /// The same with inputs assigned to groups otherwise.
    fn with_groups(mut self, g_idx: Vec<u32>) -> Self {
        self.g_idx = g_idx;
        self.unpacked()
    }

    /// Fills in the weights, by the formulas of the formats.
    fn unpacked(mut self) -> Self {
        let (n, k, bits, per_word) = (self.n, self.k, self.bits, 32 / self.bits);
        let field = |bytes: &[u8], word: usize, place: usize| {
            let word = u32::from_le_bytes(bytes[4 * word..4 * word + 4].try_into().unwrap());
            word >> (bits * place) & ((1 << bits) - 1)
        };
        // Column 8c+j of a row of AWQ sits in nibble R[j] of word c.
        let awq = |bytes: &[u8], row: usize, column: usize| {
            field(bytes, row * n / 8 + column / 8, [0, 4, 1, 5, 2, 6, 3, 7][column % 8])
        };
        self.w = vec![0.0; n * k];
        for j in 0..n {
            for l in 0..k {
                let g = self.g_idx[l] as usize;
                let (code, zero) = match self.packing {
                    Packing::Awq => (awq(&self.qweight, l, j), awq(&self.qzeros, g, j)),
                    Packing::Gptq { v2 } => {
                        let stored = field(&self.qzeros, g * n / per_word + j / per_word, j % per_word);
                        let zero = if v2 { stored } else { (stored + 1) % (1 << bits) };
                        (field(&self.qweight, l / per_word * n + j, l % per_word), zero)
                    }
                };
                let at = 2 * (g * n + j);
                let scale = half::f16::from_le_bytes([self.scales[at], self.scales[at + 1]]).to_f64();
                self.w[j * k + l] = (f64::from(code) - f64::from(zero)) * scale;
            }
        }
        self
    }

    /// Repacked with `group` inputs per group.
    fn pack(&self, pool: &mut Pool, group: usize) -> Packed {
        let in_order = self.g_idx.iter().enumerate().all(|(l, &g)| g as usize == l / self.group);
        let groups = self.k.div_ceil(self.group);
        let order = (!in_order || !self.k.is_multiple_of(group))
            .then(|| Arc::new(InputOrder::new(&self.g_idx, groups, group)));
        let source = Source {
            packing: self.packing,
            qweight: &self.qweight,
            qzeros: &self.qzeros,
            scales: &self.scales,
            n: self.n,
            k: self.k,
            group: self.group,
            order,
        };
        match self.bits {
            4 => Packed::Int4(GroupedMatrix::pack(pool, &source, group)),
            _ => Packed::Int8(GroupedMatrix::pack(pool, &source, group)),
        }
    }
}

enum Packed {
    Int4(Int4Matrix),
    Int8(Int8Matrix),
}

impl Packed {
    fn matrix(&self) -> Matrix<'_> {
        match self {
            Packed::Int4(m) => Matrix::Int4(m),
            Packed::Int8(m) => Matrix::Int8(m),
        }
    }

    fn weight(&self, n: usize, k: usize) -> f64 {
        let (code, zero, scale) = match self {
            Packed::Int4(m) => m.weight(n, k),
            Packed::Int8(m) => m.weight(n, k),
        };
        (f64::from(code) - f64::from(zero)) * half::f16::from_bits(scale).to_f64()
    }

    fn bytes(&self) -> u64 {
        match self {
            Packed::Int4(m) => m.bytes(),
            Packed::Int8(m) => m.bytes(),
        }
    }
}

const V1: Packing = Packing::Gptq { v2: false };
const V2: Packing = Packing::Gptq { v2: true };

/// Groups assigned at random; some may be empty.
fn scattered(rng: &mut Rng, k: usize, groups: usize) -> Vec<u32> {
    (0..k).map(|_| rng.below(groups) as u32).collect()
}

/// Groups of equal size whose members are spread, as activation order leaves them.
fn shuffled(rng: &mut Rng, k: usize, group: usize) -> Vec<u32> {
    let mut out: Vec<u32> = (0..k).map(|l| (l / group) as u32).collect();
    (1..k).rev().for_each(|l| out.swap(l, rng.below(l + 1)));
    out
}

/// Matrices of every format, with the group to pack them in.
fn every_format(rng: &mut Rng) -> Vec<(String, Quantised, usize)> {
    let mut out = Vec::new();
    let mut add = |name: &str, q: Quantised, group: usize| {
        out.push((format!("{name}: int{} {}x{} g{group}", q.bits, q.n, q.k), q, group));
    };
    for (n, k, group) in [(8, 128, 128), (72, 256, 64), (136, 512, 128), (24, 96, 32)] {
        add("awq", Quantised::random(rng, Packing::Awq, 4, (n, k, group)), group);
        for bits in [4, 8] {
            for packing in [V1, V2] {
                let name = if packing == V1 { "gptq" } else { "gptq v2" };
                add(name, Quantised::random(rng, packing, bits, (n, k, group)), group);
            }
            let sizes = (n, k, group);
            let g_idx = shuffled(rng, k, group);
            add("desc_act", Quantised::random(rng, V1, bits, sizes).with_groups(g_idx), group);
            let g_idx = scattered(rng, k, k.div_ceil(group));
            add("any g_idx", Quantised::random(rng, V1, bits, sizes).with_groups(g_idx), group);
        }
    }
    for bits in [4, 8] {
        add("one group", Quantised::random(rng, V1, bits, (40, 640, 640)), 128);
        add("large groups in parts", Quantised::random(rng, V1, bits, (16, 1024, 512)), 128);
        add("short last group", Quantised::random(rng, V1, bits, (32, 200, 128)), 128);
        add("a group of all there is room for", Quantised::random(rng, V1, bits, (16, 512, 256)), 256);
    }
    add("outputs in fours", Quantised::random(rng, V1, 8, (20, 128, 64)), 64);
    out
}

#[test]
fn repacking_keeps_every_weight_of_every_format_and_not_a_byte_more() {
    let mut rng = Rng(2);
    let mut pool = Pool::new(2).unwrap();
    for (name, q, group) in every_format(&mut rng) {
        let packed = q.pack(&mut pool, group);
        for j in 0..q.n {
            for l in 0..q.k {
                assert_eq!(packed.weight(j, l), q.w[j * q.k + l], "{name}: weight [{j}, {l}]");
            }
        }
        // Groups of odd sizes are filled up.
        if q.n % 16 == 0 && !name.starts_with("any") {
            let format = match q.bits {
                4 => WeightFormat::Int4 { group },
                _ => WeightFormat::Int8 { group },
            };
            assert_eq!(packed.bytes(), format.matrix_bytes(q.n, q.k), "{name}");
        }
    }
}

#[test]
fn integer_linear_is_within_the_bound_of_its_rounded_inputs() {
    let mut rng = Rng(3);
    for isa in Isa::available() {
        let mut rig = Rig::new(isa, 2);
        for (name, q, group) in every_format(&mut rng) {
            let (n, k) = (q.n, q.k);
            let packed = q.pack(&mut rig.pool, group);
            for m in [1, 2, 3, 5, 8, 15, 16, 17, 33] {
                let mut x = rng.normals(m * k);
                x[0] *= 200.0;
                let mut y = vec![POISON; m * n];
                let part = Part { matrix: packed.matrix(), bias: None };
                rig.linear(&x, m, &[part], Finish::Store, &mut y);
                let x64 = f64s(&x);
                // The largest input of each group of the file; groups here are these or parts of them.
                let mut largest = vec![0f64; m * k.div_ceil(q.group)];
                let groups = largest.len() / m;
                for (at, v) in x64.iter().enumerate() {
                    let largest = &mut largest[at / k * groups + q.g_idx[at % k] as usize];
                    *largest = largest.max(v.abs());
                }
                for (at, (sum, size)) in r::matmul(&x64, &q.w, m, n, k).into_iter().enumerate() {
                    let (i, j) = (at / n, at % n);
                    let of = |l: usize| q.w[j * k + l].abs() * largest[i * groups + q.g_idx[l] as usize];
                    let rounding: f64 = (0..k).map(of).sum();
                    // Groups of any sizes may be one more each.
                    let folds = (k.div_ceil(group) + groups + 4) as f64;
                    let bound = tol::rounded_input() * rounding + folds * tol::F32_EPS * (size + rounding);
                    let error = (f64::from(y[at]) - sum).abs();
                    assert!(error <= bound, "{name} {} m={m} at {at}: {error:e} > {bound:e}", isa.name());
                }
            }
        }
    }
}

#[test]
fn the_largest_codes_and_inputs_do_not_overflow_the_sum_of_a_group() {
    for (bits, group, largest) in [(4, 4368, 15.0), (8, 256, 255.0)] {
        for stored in [0u8, 0xff] {
            let (n, k) = (16, group);
            let mut q = Quantised::random(&mut Rng(0), V2, bits, (n, k, group));
            // Codes all ones with zero points 0, and the reverse.
            q.qweight.fill(!stored);
            q.qzeros.fill(stored);
            q.scales = encode(&vec![1.0; n], DType::F16).0;
            let q = q.unpacked();
            let expected = if stored == 0 { largest } else { -largest };
            assert!(q.w.iter().all(|w| *w == expected));
            for isa in Isa::available() {
                let mut rig = Rig::new(isa, 1);
                rig.scratch = vec![Aligned::zeroed(64 * 64 + 16 * group)];
                let packed = q.pack(&mut rig.pool, group);
                for m in [1, 3, 12] {
                    let mut y = vec![POISON; m * n];
                    let part = Part { matrix: packed.matrix(), bias: None };
                    rig.linear_blocked(&vec![1.0; m * k], m, &[part], Finish::Store, &mut y, 16, 16);
                    for v in y {
                        let error = (f64::from(v) - expected * k as f64).abs();
                        assert!(error <= 4.0 * tol::F32_EPS * largest * k as f64, "{v}");
                    }
                }
            }
        }
    }
}

#[test]
fn parts_with_inputs_in_different_orders_each_read_their_own() {
    let mut rng = Rng(12);
    let (m, n, k, group) = (5, 32, 256, 64);
    for isa in Isa::available() {
        let mut rig = Rig::new(isa, 2);
        let packed: Vec<Packed> = (0..3)
            .map(|i| {
                let q = Quantised::random(&mut rng, V1, 4, (n, k, group));
                let g_idx = if i == 1 { q.g_idx.clone() } else { shuffled(&mut rng, k, group) };
                q.with_groups(g_idx).pack(&mut rig.pool, group)
            })
            .collect();
        let parts: Vec<Part> = packed.iter().map(|p| Part { matrix: p.matrix(), bias: None }).collect();
        let x = rng.normals(m * k);
        let mut all = vec![POISON; m * 3 * n];
        rig.linear(&x, m, &parts, Finish::Store, &mut all);
        for (i, part) in parts.iter().enumerate() {
            let mut alone = vec![POISON; m * n];
            rig.linear(&x, m, &[*part], Finish::Store, &mut alone);
            for row in 0..m {
                let here = &all[row * 3 * n + i * n..][..n];
                assert_eq!(bits(here), bits(&alone[row * n..(row + 1) * n]), "part {i}, row {row}");
            }
        }
        let (mut gate, mut up, mut both) = (vec![POISON; m * n], vec![POISON; m * n], vec![POISON; m * n]);
        rig.linear(&x, m, &parts[..1], Finish::Store, &mut gate);
        rig.linear(&x, m, &parts[1..2], Finish::Store, &mut up);
        rig.linear(&x, m, &parts[..2], Finish::SwiGlu, &mut both);
        let mut expected = vec![POISON; m * n];
        pointwise::swiglu(isa, &mut rig.pool, &gate, &up, &mut expected);
        assert_eq!(bits(&both), bits(&expected));
    }
}

#[test]
fn integer_linear_with_nan_or_infinite_inputs_gives_nan_and_leaves_other_rows_alone() {
    let mut rng = Rng(4);
    let (n, k, group) = (16, 256, 128);
    for width in [4, 8] {
        let q = Quantised::random(&mut rng, V1, width, (n, k, group));
        for isa in Isa::available() {
            let mut rig = Rig::new(isa, 1);
            let packed = q.pack(&mut rig.pool, group);
            let parts = [Part { matrix: packed.matrix(), bias: None }];
            let x = rng.normals(2 * k);
            let mut clean = vec![POISON; 2 * n];
            rig.linear(&x, 2, &parts, Finish::Store, &mut clean);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = x.clone();
                x[k + 130] = bad;
                let mut y = vec![0.0; 2 * n];
                rig.linear(&x, 2, &parts, Finish::Store, &mut y);
                assert_eq!(bits(&y[..n]), bits(&clean[..n]));
                assert!(y[n..].iter().all(|v| v.is_nan()), "{bad}: {:?}", &y[n..]);
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch_on_any_machine() {
    let mut rng = Rng(5);
    let (n, k, most) = (80, 640, 33);
    let awq = Quantised::random(&mut rng, Packing::Awq, 4, (n, k, 128));
    let gptq = Quantised::random(&mut rng, V1, 8, (n, k, 128));
    let g_idx = scattered(&mut rng, k, 5);
    let sorted = Quantised::random(&mut rng, V1, 8, (n, k, 128)).with_groups(g_idx);
    let (bytes, _) = encode(&rng.normals(n * k), DType::BF16);
    let x = rng.normals(most * k);
    let mut first: Option<[Vec<u32>; 4]> = None;
    for isa in Isa::available() {
        for threads in [1, 3] {
            let mut rig = Rig::new(isa, threads);
            let packed = [&awq, &gptq, &sorted].map(|q| q.pack(&mut rig.pool, 128));
            let dense = Matrix::Dense(DenseMatrix::new(&bytes, DType::BF16, n, k));
            let matrices = [packed[0].matrix(), packed[1].matrix(), packed[2].matrix(), dense];
            let results = matrices.map(|matrix| {
                let parts = [Part { matrix, bias: None }];
                let mut alone = vec![POISON; most * n];
                for i in 0..most {
                    let out = &mut alone[i * n..(i + 1) * n];
                    rig.linear(&x[i * k..(i + 1) * k], 1, &parts, Finish::Store, out);
                }
                for m in [2, 3, 5, 7, 8, 9, 16, 17, 31, 32, 33] {
                    let mut y = vec![POISON; m * n];
                    rig.linear_blocked(&x[..m * k], m, &parts, Finish::Store, &mut y, 16, 16);
                    assert_eq!(bits(&y), bits(&alone[..m * n]), "{} m={m}", isa.name());
                }
                bits(&alone)
            });
            let first = first.get_or_insert_with(|| results.clone());
            assert_eq!(*first, results, "{} with {threads} threads", isa.name());
        }
    }
}

#[test]
fn epilogues_do_what_the_separate_kernels_do() {
    let mut rng = Rng(6);
    let (m, n, k) = (9, 96, 128);
    let x = rng.normals(m * k);
    let weights: Vec<Vec<u8>> = (0..2).map(|_| encode(&rng.normals(n * k), DType::F16).0).collect();
    let bias = rng.normals(n);
    for isa in Isa::available() {
        let mut rig = Rig::new(isa, 2);
        let part = |i: usize| Part {
            matrix: Matrix::Dense(DenseMatrix::new(&weights[i], DType::F16, n, k)),
            bias: Some(&bias),
        };
        let mut plain = [vec![POISON; m * n], vec![POISON; m * n]];
        for (i, out) in plain.iter_mut().enumerate() {
            rig.linear(&x, m, &[part(i)], Finish::Store, out);
        }
        for activation in [Activation::QuickGelu, Activation::Gelu] {
            let (mut expected, mut y) = (vec![POISON; m * n], vec![POISON; m * n]);
            pointwise::activate(isa, &mut rig.pool, activation, &plain[0], &mut expected);
            rig.linear(&x, m, &[part(0)], Finish::Activate(activation), &mut y);
            assert_eq!(bits(&y), bits(&expected));
        }
        let (mut expected, mut y) = (vec![POISON; m * n], vec![POISON; m * n]);
        pointwise::swiglu(isa, &mut rig.pool, &plain[0], &plain[1], &mut expected);
        rig.linear(&x, m, &[part(0), part(1)], Finish::SwiGlu, &mut y);
        assert_eq!(bits(&y), bits(&expected));

        let residual = rng.normals(m * n);
        pointwise::add(&mut rig.pool, &plain[0], Some(&residual), &mut expected);
        rig.linear(&x, m, &[part(0)], Finish::AddResidual(Some(&residual)), &mut y);
        assert_eq!(bits(&y), bits(&expected));
        let mut in_place = residual.clone();
        rig.linear(&x, m, &[part(0)], Finish::AddResidual(None), &mut in_place);
        assert_eq!(bits(&in_place), bits(&expected));

        // Heads of 16: q and k thirds turn, v does not.
        let mut table = RopeTable::default();
        table.fill_vision(16, (0..m as u32).map(|i| [i, 3 * i]));
        rope::rotate_rows(&mut rig.pool, &table, 0, &plain[0], n, 64, 16, &mut expected);
        rig.linear_blocked(
            &x,
            m,
            &[part(0)],
            Finish::VisionRope { table: &table, first_row: 0, head_dim: 16 },
            &mut y,
            96,
            48,
        );
        assert_eq!(bits(&y), bits(&expected));
    }
}

#[test]
fn norms_match_their_formulas() {
    let mut rng = Rng(7);
    for isa in Isa::available() {
        let mut pool = Pool::new(2).unwrap();
        for cols in [1, 7, 8, 160, 1281] {
            let rows = 5;
            let x: Vec<f32> = rng.normals(rows * cols).iter().map(|v| v * 3.0 + 1.0).collect();
            let (weight, bias) = (rng.normals(cols), rng.normals(cols));
            let (mut rms, mut layer) = (vec![POISON; rows * cols], vec![POISON; rows * cols]);
            norm::rms_norm(isa, &mut pool, &x, &weight, 1e-6, &mut rms);
            norm::layer_norm(isa, &mut pool, &x, &weight, &bias, 1e-6, &mut layer);
            for i in 0..rows {
                let row = f64s(&x[i * cols..(i + 1) * cols]);
                let expected = r::rms_norm(&row, &f64s(&weight), 1e-6);
                let bound = (cols as f64 / 8.0 + 12.0) * tol::F32_EPS;
                for (a, e) in rms[i * cols..].iter().zip(&expected) {
                    assert!((f64::from(*a) - e).abs() <= bound * e.abs(), "rms {cols}: {a} {e}");
                }
                if cols == 1 {
                    continue; // The variance is zero: the result is the bias by any route.
                }
                let expected = r::layer_norm(&row, &f64s(&weight), &f64s(&bias), 1e-6);
                let largest = row.iter().fold(0f64, |m, v| m.max(v.abs()));
                let mean = row.iter().sum::<f64>() / cols as f64;
                let deviation = (row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / cols as f64).sqrt();
                for (at, (a, e)) in layer[i * cols..].iter().zip(&expected).enumerate() {
                    let size = largest / deviation * f64::from(weight[at]).abs() + f64::from(bias[at]).abs();
                    assert!((f64::from(*a) - e).abs() <= 2.0 * bound * size, "layer {cols}: {a} {e}");
                }
            }
        }
    }
}

#[test]
fn activations_match_their_formulas_from_end_to_end() {
    let x: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.025).collect();
    for isa in Isa::available() {
        for (activation, formula) in
            [(Activation::QuickGelu, r::quick_gelu as fn(f64) -> f64), (Activation::Gelu, r::gelu)]
        {
            let mut y = x.clone();
            pointwise::activate_slice(isa, activation, &mut y);
            for (x, y) in x.iter().zip(&y) {
                let (x, e) = (f64::from(*x), formula(f64::from(*x)));
                // Far out the gate is of the order of the smallest normal number.
                let bound = 2.0 * tol::EXP * e.abs()
                    + (1.702 * x.abs() + 2.0) * tol::F32_EPS * e.abs()
                    + x.abs() * 1e-7;
                assert!((f64::from(*y) - e).abs() <= bound, "{activation:?}({x}) = {y}, expected {e}");
            }
        }
        let mut y = vec![1.0f32, f32::NAN, -1.0];
        pointwise::activate_slice(isa, Activation::QuickGelu, &mut y);
        assert!(y[1].is_nan() && !y[0].is_nan() && !y[2].is_nan());
    }
}

#[test]
fn vision_attention_matches_float64_and_never_crosses_slices() {
    let mut rng = Rng(8);
    let (heads, d) = (2, 80);
    let lengths = [1usize, 4, 63, 64, 65, 127, 130];
    let total: usize = lengths.iter().sum();
    let qkv = rng.normals(total * 3 * heads * d);
    let mut slices = Vec::new();
    let mut at = 0;
    for len in lengths {
        slices.push(at..at + len);
        at += len;
    }
    for isa in Isa::available() {
        let mut rig = Rig::new(isa, 2);
        let mut out = vec![POISON; total * heads * d];
        attention::vision(isa, &mut rig.pool, &qkv, &slices, 0..total, heads, d, &mut out, &mut rig.scratch);
        let part = |row: usize, third: usize, head: usize| {
            f64s(&qkv[row * 3 * heads * d + third * heads * d + head * d..][..d])
        };
        for slice in &slices {
            for head in 0..heads {
                let keys: Vec<_> = slice.clone().map(|row| part(row, 1, head)).collect();
                let values: Vec<_> = slice.clone().map(|row| part(row, 2, head)).collect();
                for row in slice.clone() {
                    let expected = r::attention(&part(row, 0, head), &keys, &values);
                    check_attention(&out[row * heads * d + head * d..][..d], &expected, d, keys.len());
                }
            }
        }
        // Rows asked for in pieces have the same bits.
        for piece in [0..70, 70..71, 71..total] {
            let mut part = vec![POISON; piece.len() * heads * d];
            attention::vision(
                isa,
                &mut rig.pool,
                &qkv,
                &slices,
                piece.clone(),
                heads,
                d,
                &mut part,
                &mut rig.scratch,
            );
            assert_eq!(bits(&part), bits(&out[piece.start * heads * d..piece.end * heads * d]));
        }
    }
}

/// Scores err by a chain of `d`, weights by e to that, sums by a chain of the keys.
fn check_attention(found: &[f32], expected: &[f64], d: usize, keys: usize) {
    let bound = (2.0 * d as f64 + 2.0 * keys as f64 + 64.0) * tol::F32_EPS * 4.0;
    for (a, e) in found.iter().zip(expected) {
        assert!((f64::from(*a) - e).abs() <= bound, "{a} {e}, bound {bound:e}");
    }
}

#[test]
fn paged_attention_matches_float64_for_every_ratio_and_chunking() {
    let mut rng = Rng(9);
    let d = 128;
    for (n_heads, n_kv_heads) in [(2, 1), (6, 1), (14, 2), (16, 2)] {
        let heads = Heads { n_heads, n_kv_heads, head_dim: d };
        let lengths = [1usize, 63, 64, 65, 150];
        let inputs: Vec<[Vec<f32>; 3]> = lengths
            .iter()
            .map(|&l| {
                [
                    rng.normals(l * n_heads * d),
                    rng.normals(l * n_kv_heads * d),
                    rng.normals(l * n_kv_heads * d),
                ]
            })
            .collect();
        let mut first: Option<Vec<Vec<u32>>> = None;
        for isa in Isa::available() {
            for chunk in [150, 64, 7, 1] {
                let mut rig = Rig::new(isa, 2);
                let results: Vec<Vec<u32>> = inputs
                    .iter()
                    .map(|input| bits(&paged_in_chunks(&mut rig, heads, input, chunk)))
                    .collect();
                let first = first.get_or_insert_with(|| results.clone());
                assert_eq!(*first, results, "{} chunk {chunk} heads {n_heads}/{n_kv_heads}", isa.name());
            }
        }
        for (bits, [q, k, v]) in first.unwrap().iter().zip(&inputs) {
            let row = |x: &[f32], width: usize, t: usize, h: usize| f64s(&x[t * width + h * d..][..d]);
            for t in [0, q.len() / (n_heads * d) / 2, q.len() / (n_heads * d) - 1] {
                for h in 0..n_heads {
                    let kv = h / (n_heads / n_kv_heads);
                    let keys: Vec<_> = (0..=t).map(|i| row(k, n_kv_heads * d, i, kv)).collect();
                    let values: Vec<_> = (0..=t).map(|i| row(v, n_kv_heads * d, i, kv)).collect();
                    let expected = r::attention(&row(q, n_heads * d, t, h), &keys, &values);
                    let found: Vec<f32> =
                        bits[t * n_heads * d + h * d..][..d].iter().map(|b| f32::from_bits(*b)).collect();
                    check_attention(&found, &expected, d, t + 1);
                }
            }
        }
    }
}

/// Runs one sequence beside a decoy, pages in shuffled order and poisoned, in chunks.
fn paged_in_chunks(rig: &mut Rig, heads: Heads, [q, k, v]: &[Vec<f32>; 3], chunk: usize) -> Vec<f32> {
    let (layer, layers) = (1, 2);
    let tokens = q.len() / (heads.n_heads * heads.head_dim);
    let (q_width, kv_width) = (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim);
    let mut kv = KvPages::new(6, layers, heads);
    kv.fill(POISON);
    let page_table = [4u32, 1, 3, 5];
    let decoy_page = page_table.len();
    let table: Vec<u32> = page_table.iter().copied().chain([2]).collect();
    kv.write(layer, &[2 * 64], &k[..kv_width], &v[..kv_width]);
    let mut out = Vec::new();
    let mut done = 0;
    while done < tokens {
        let n = chunk.min(tokens - done);
        let slots: Vec<u32> = (done..done + n).map(|t| page_table[t / 64] * 64 + (t % 64) as u32).collect();
        kv.write(
            layer,
            &slots,
            &k[done * kv_width..(done + n) * kv_width],
            &v[done * kv_width..(done + n) * kv_width],
        );
        let mut queries = q[..q_width].to_vec();
        queries.extend(&q[done * q_width..(done + n) * q_width]);
        let seqs = [
            SeqRows { tokens: 0..1, past: 0, pages: decoy_page..decoy_page + 1 },
            SeqRows { tokens: 1..n + 1, past: done, pages: 0..decoy_page },
        ];
        let mut y = vec![POISON; queries.len()];
        attention::paged(
            rig.isa,
            &mut rig.pool,
            &kv,
            layer,
            &queries,
            &seqs,
            &table,
            &mut y,
            &mut rig.scratch,
        );
        out.extend(&y[q_width..]);
        done += n;
    }
    out
}

#[test]
fn mrope_takes_each_pair_from_its_axis() {
    let rope = MRope { head_dim: 128, sections: [16, 24, 24], theta: 1e6 };
    let positions = [[7u32, 5, 11], [30_000, 2, 900]];
    let mut table = RopeTable::default();
    table.fill_mrope(&rope, &positions);
    let mut rng = Rng(10);
    for (row, position) in positions.iter().enumerate() {
        let head = rng.normals(128);
        let angles: Vec<f64> = (0..64)
            .map(|j| {
                let axis = if j < 16 {
                    0
                } else if j < 40 {
                    1
                } else {
                    2
                };
                // The reference forms frequency and angle in f32.
                let frequency = (1.0 / 1e6f64.powf(2.0 * f64::from(j) / 128.0)) as f32;
                f64::from(position[axis] as f32 * frequency)
            })
            .collect();
        let expected = r::rotate(&f64s(&head), &angles);
        let mut turned = head.clone();
        table.rotate(row, &mut turned);
        for (a, e) in turned.iter().zip(&expected) {
            // A frequency may differ in its last bit: 30000 · 2⁻²⁴.
            assert!((f64::from(*a) - e).abs() <= 30_000.0 * 2.0 * tol::F32_EPS + 1e-6, "{a} {e}");
        }
    }
}

#[test]
fn embedding_takes_visual_rows_where_they_are_named() {
    let mut rng = Rng(11);
    let (bytes, table) = encode(&rng.normals(10 * 24), DType::F16);
    let table64 = table;
    let visual = rng.normals(3 * 24);
    let matrix = DenseMatrix::new(&bytes, DType::F16, 10, 24);
    let mut out = vec![POISON; 4 * 24];
    let no = embed::NO_VISUAL_ROW;
    embed::embed(&mut Pool::new(2).unwrap(), &matrix, &[9, 0, 3, 3], &visual, &[no, 2, no, 0], &mut out);
    let text = |id: usize| table64[id * 24..(id + 1) * 24].iter().map(|v| *v as f32).collect::<Vec<_>>();
    assert_eq!(out[..24], text(9));
    assert_eq!(out[24..48], visual[48..]);
    assert_eq!(out[48..72], text(3));
    assert_eq!(out[72..], visual[..24]);
}

/// Weights of `taps` inputs, whose sizes add up to 1.69.
fn taps(rng: &mut Rng, taps: usize) -> Vec<i32> {
    let all: Vec<f32> = (0..taps).map(|_| rng.unit()).collect();
    let total: f32 = all.iter().map(|w| w.abs()).sum();
    let unit = 1.69 * (1u32 << PRECISION_BITS) as f32 / total;
    all.iter().map(|w| (w * unit) as i32).collect()
}

fn fours(weights: &[i32]) -> Vec<Weights4> {
    let four = |w: &[i32]| Weights4::new(std::array::from_fn(|k| w.get(k).copied().unwrap_or(0)));
    weights.chunks(4).map(four).collect()
}

fn weighted(weights: &[i32], inputs: impl Iterator<Item = u8>) -> u8 {
    let sum: i64 = weights.iter().zip(inputs).map(|(w, v)| i64::from(*w) * i64::from(v)).sum();
    ((sum + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS).clamp(0, 255) as u8
}

#[test]
fn resampling_is_exact_for_every_number_of_inputs() {
    let mut rng = Rng(12);
    for count in [1, 2, 3, 4, 5, 8, 9, 31] {
        for width in [1, 20, 21, 22, 43, 64, 100] {
            let apart = width * 3 + rng.below(40);
            let rows: Vec<u8> =
                (0..(count - 1) * apart + width * 3).map(|_| (rng.below(3) * 127) as u8).collect();
            let weights = taps(&mut rng, count);
            let expected: Vec<u8> = (0..width * 3)
                .map(|x| weighted(&weights, rows[x..].iter().step_by(apart).copied()))
                .collect();

            // Columns: output `i` is made of `count` inputs from `firsts[i]` on.
            let firsts: Vec<usize> = (0..width).map(|_| rng.below(50)).collect();
            let per_output: Vec<Vec<i32>> = firsts.iter().map(|_| taps(&mut rng, count)).collect();
            let reach = 50 + 4 * count.div_ceil(4);
            let stride = reach * 3 + rng.below(40);
            let strip: Vec<u8> = (0..STRIP_ROWS * stride + 4).map(|_| (rng.below(3) * 127) as u8).collect();
            for isa in Isa::available() {
                let mut out = vec![77; width * 3];
                resample::row(isa, &rows, apart, &fours(&weights), &mut out);
                assert_eq!(out, expected, "{}: {count} rows of {width}", isa.name());

                let to = width * 3 + STRIP_PADDING;
                let mut out = vec![77; STRIP_ROWS * to];
                let all: Vec<Weights4> = per_output.iter().flat_map(|w| fours(w)).collect();
                let columns = Columns::new(firsts.clone(), count.div_ceil(4), all);
                resample::columns(isa, &columns, &strip, stride, &mut out);
                for (r, (row, from)) in out.chunks(to).zip(strip.chunks(stride)).enumerate() {
                    for (i, (first, weights)) in firsts.iter().zip(&per_output).enumerate() {
                        for c in 0..3 {
                            let inputs = from[first * 3 + c..].iter().step_by(3).copied();
                            let place = format!("{}: {count} columns, row {r}, {i}", isa.name());
                            assert_eq!(row[i * 3 + c], weighted(weights, inputs), "{place}");
                        }
                    }
                }
            }
        }
    }
}
