//! Every CPU kernel against plain float64, on every instruction set of this machine, with ragged
//! sizes and poisoned outputs; and the promise that bits depend on nothing but the request.

mod common;

use common::reference::{self as r, f64s};
use common::rng::Rng;
use common::tolerance as tol;
use qwenvl::kernels::SeqRows;
use qwenvl::kernels::cpu::attention::{self, KvPages};
use qwenvl::kernels::cpu::dense::DenseMatrix;
use qwenvl::kernels::cpu::int4::{AwqSource, Int4Matrix, QuantizedRows};
use qwenvl::kernels::cpu::linear::{Blocking, Finish, Matrix, Part, linear};
use qwenvl::kernels::cpu::rope::RopeTable;
use qwenvl::kernels::cpu::{Aligned, Isa, Pool, embed, norm, pointwise, rope};
use qwenvl_graph::op::{Heads, MRope};
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
    rounded: QuantizedRows,
}

impl Rig {
    fn new(isa: Isa, threads: usize) -> Rig {
        let mut scratch = vec![Aligned::zeroed(96 * 160 * 2 + 256 * 256); threads];
        scratch.iter_mut().for_each(|s| s.fill(POISON));
        Rig { isa, pool: Pool::new(threads).unwrap(), scratch, rounded: QuantizedRows::default() }
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

/// A random AWQ matrix: the three tensors of the file, and its weights [n, k].
fn awq(rng: &mut Rng, n: usize, k: usize, group: usize) -> ([Vec<u8>; 3], Vec<f64>) {
    let mut random = |bytes: usize| (0..bytes).map(|_| rng.next() as u8).collect::<Vec<u8>>();
    let (qweight, qzeros) = (random(k * n / 2), random(k / group * n / 2));
    let scales: Vec<f32> = (0..k / group * n).map(|_| 0.02 + 0.01 * rng.unit()).collect();
    let (scale_bytes, scales) = encode(&scales, DType::F16);
    // Column 8c+j of a row sits in nibble R[j] of word c.
    let nibble = |bytes: &[u8], row: usize, column: usize| {
        let at = (row * n / 8 + column / 8) * 4;
        let word = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        f64::from(word >> (4 * [0, 4, 1, 5, 2, 6, 3, 7][column % 8]) & 15)
    };
    let mut w = vec![0.0; n * k];
    for j in 0..n {
        for l in 0..k {
            let g = l / group;
            w[j * k + l] = (nibble(&qweight, l, j) - nibble(&qzeros, g, j)) * scales[g * n + j];
        }
    }
    ([qweight, qzeros, scale_bytes], w)
}

fn pack(
    pool: &mut Pool,
    [qweight, qzeros, scales]: &[Vec<u8>; 3],
    n: usize,
    k: usize,
    group: usize,
) -> Int4Matrix {
    Int4Matrix::from_awq(pool, &AwqSource { qweight, qzeros, scales }, n, k, group)
}

#[test]
fn int4_repacking_keeps_every_weight_and_not_a_byte_more() {
    let mut rng = Rng(2);
    for (n, k, group) in [(8, 128, 128), (32, 256, 64), (24, 512, 128), (200, 384, 32)] {
        let (tensors, w) = awq(&mut rng, n, k, group);
        let packed = pack(&mut Pool::new(2).unwrap(), &tensors, n, k, group);
        for j in 0..n {
            for l in 0..k {
                let (code, zero, scale) = packed.weight(j, l);
                let value = (f64::from(code) - f64::from(zero)) * half::f16::from_bits(scale).to_f64();
                assert_eq!(value, w[j * k + l], "weight [{j}, {l}] of {n}x{k} g{group}");
            }
        }
        if n % 16 == 0 {
            let format = qwenvl_graph::weights::WeightFormat::Int4 { group };
            assert_eq!(packed.bytes(), format.matrix_bytes(n, k));
        }
    }
}

#[test]
fn int4_linear_is_within_the_bound_of_its_rounded_inputs() {
    let mut rng = Rng(3);
    for isa in Isa::available() {
        let mut rig = Rig::new(isa, 2);
        for (n, k, group) in [(8, 128, 128), (72, 256, 64), (136, 512, 128)] {
            let (tensors, w) = awq(&mut rng, n, k, group);
            let packed = pack(&mut rig.pool, &tensors, n, k, group);
            for m in [1, 2, 3, 5, 8, 15, 16, 17, 33, 64, 100] {
                let mut x = rng.normals(m * k);
                x[0] *= 200.0;
                let mut y = vec![POISON; m * n];
                rig.linear(
                    &x,
                    m,
                    &[Part { matrix: Matrix::Int4(&packed), bias: None }],
                    Finish::Store,
                    &mut y,
                );
                let x64 = f64s(&x);
                for (at, (sum, size)) in r::matmul(&x64, &w, m, n, k).into_iter().enumerate() {
                    let (i, j) = (at / n, at % n);
                    let mut rounding = 0.0;
                    let mut codes = 0.0;
                    for g in 0..k / group {
                        let largest =
                            x64[i * k + g * group..][..group].iter().fold(0f64, |a, b| a.max(b.abs()));
                        let weights: f64 = w[j * k + g * group..][..group].iter().map(|w| w.abs()).sum();
                        rounding += largest * weights;
                        codes += weights * largest;
                    }
                    let bound = tol::rounded_input() * rounding
                        + (k / group + 4) as f64 * tol::F32_EPS * (size + codes);
                    let error = (f64::from(y[at]) - sum).abs();
                    assert!(error <= bound, "{} {m}x{n}x{k} at {at}: {error:e} > {bound:e}", isa.name());
                }
            }
        }
    }
}

#[test]
fn int4_with_nan_or_infinite_inputs_gives_nan_and_leaves_other_rows_alone() {
    let mut rng = Rng(4);
    let (n, k, group) = (16, 256, 128);
    let (tensors, _) = awq(&mut rng, n, k, group);
    for isa in Isa::available() {
        let mut rig = Rig::new(isa, 1);
        let packed = pack(&mut rig.pool, &tensors, n, k, group);
        let parts = [Part { matrix: Matrix::Int4(&packed), bias: None }];
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

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch_on_any_machine() {
    let mut rng = Rng(5);
    let (n, k, most) = (80, 640, 33);
    let (tensors, _) = awq(&mut rng, n, k, 128);
    let (bytes, _) = encode(&rng.normals(n * k), DType::BF16);
    let x = rng.normals(most * k);
    let mut first: Option<[Vec<u32>; 2]> = None;
    for isa in Isa::available() {
        for threads in [1, 3] {
            let mut rig = Rig::new(isa, threads);
            let packed = pack(&mut rig.pool, &tensors, n, k, 128);
            let matrices =
                [Matrix::Int4(&packed), Matrix::Dense(DenseMatrix::new(&bytes, DType::BF16, n, k))];
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
