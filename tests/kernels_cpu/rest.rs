//! Norms, activations, rotations, embeddings, resampling.

use super::*;

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
