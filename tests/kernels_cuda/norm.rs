//! norm: RMSNorm and LayerNorm.

use half::f16;
use qwenvl::kernels::cuda::Half;
use qwenvl::kernels::cuda::norm::{MAX_LAYER_COLS, Norm, NormKind};

use crate::common::reference as r;
use crate::common::rng::Rng;
use crate::common::tolerance::F32_EPS as F32;
use crate::gpu::*;

#[test]
fn norms_round_where_the_reference_does() {
    let mut rng = Rng(1);
    for half in HALVES {
        let u = roundoff(half);
        for (rows, cols) in
            [(1, 8), (3, 128), (2, 1536), (1, 3584), (1, 8192), (9, 160), (17, 1280), (2, 3588)]
        {
            let x: Vec<f32> = rng.normals(rows * cols).iter().map(|v| 3.0 * v + 0.5).collect();
            let weight: Vec<f32> = rng.normals(cols).iter().map(|w| f16::from_f32(*w).to_f32()).collect();
            let bias = rng.normals(cols);
            let order: Vec<u32> = (0..rows as u32).rev().collect();
            let (x_at, weight_at, bias_at, order_at) =
                (Buffer::of(&x), Buffer::of(&weight), Buffer::of(&bias), Buffer::of(&order));
            for (layer, by_index) in [(false, false), (false, true), (true, false), (true, true)] {
                if layer && cols > MAX_LAYER_COLS {
                    continue;
                }
                let out = Buffer::<u16>::poisoned(rows * cols + 8);
                let call = Norm {
                    kind: if layer { NormKind::Layer(bias_at.at) } else { NormKind::Rms },
                    half,
                    x: x_at.at,
                    row_index: by_index.then_some(order_at.at),
                    weight: weight_at.at,
                    out: out.at,
                    rows,
                    cols,
                    eps: 1e-6,
                };
                // SAFETY: the buffers live until `read` has waited for the stream; shapes as above.
                unsafe { gpu().kernels.norm(&stream(), &call) }.unwrap();
                let bits = out.read();
                assert!(bits[rows * cols..].iter().all(|&b| b == POISON), "beyond the rows");
                let found = values(half, &bits);
                let weights = r::f64s(&weight);
                for row in 0..rows {
                    let from = if by_index { order[row] as usize } else { row };
                    let x = r::f64s(&x[from * cols..][..cols]);
                    let size = x.iter().fold(0f64, |m, v| m.max(v.abs()));
                    let expected = if layer {
                        r::layer_norm(&x, &weights, &r::f64s(&bias), 1e-6)
                    } else {
                        r::rms_norm(&x, &weights, 1e-6)
                    };
                    let scale = expected.iter().zip(&weights).fold(0f64, |m, (y, w)| m.max((y / w).abs()));
                    for c in 0..cols {
                        let what = || format!("{half:?} layer {layer} {rows}x{cols} at {row},{c}");
                        // One rounding of the result; RMSNorm also rounds before the weight. Sums of `cols` terms.
                        let rounded = if layer { 0.0 } else { u };
                        let sum_error = (cols as f64 / 128.0 + 40.0) * F32 * (1.0 + size * scale);
                        let product = (expected[c] - if layer { f64::from(bias[c]) } else { 0.0 }).abs();
                        let bound = u * expected[c].abs()
                            + (rounded + sum_error) * (product + weights[c].abs()) * 1.01
                            + 1e-7;
                        assert_within(&what, found[row * cols + c], expected[c], bound);
                    }
                }
            }
        }
    }
}

#[test]
fn rms_norm_gives_a_row_the_same_bits_alone() {
    let mut rng = Rng(2);
    let (rows, cols) = (5, 3584);
    let mut x = rng.normals(rows * cols);
    x[2 * cols] = f32::NAN; // a neighbour's
    let weight = Buffer::of(&rng.normals(cols));
    let run = |x: &[f32]| {
        let (x_at, out) = (Buffer::of(x), Buffer::<u16>::poisoned(x.len()));
        let call = Norm {
            kind: NormKind::Rms,
            half: Half::BF16,
            x: x_at.at,
            row_index: None,
            weight: weight.at,
            out: out.at,
            rows: x.len() / cols,
            cols,
            eps: 1e-6,
        };
        // SAFETY: the buffers live until `read` has waited for the stream; shapes as above.
        unsafe { gpu().kernels.norm(&stream(), &call) }.unwrap();
        out.read()
    };
    let together = run(&x);
    for row in [0, 1, 3, 4] {
        let range = row * cols..(row + 1) * cols;
        assert_eq!(run(&x[range.clone()]), together[range]);
    }
}
