//! norm, embed, patchify, pointwise.

use qwenvl::kernels::cuda::linear::{Kv, Rope, RopePairs};
use qwenvl::kernels::cuda::norm::{Embed, MAX_LAYER_COLS, Norm, NormKind, Patchify, Table};
use qwenvl::kernels::cuda::pointwise::{Pointwise, PointwiseOp};
use qwenvl_graph::op::{Heads, MRope};
use qwenvl_graph::{Activation, DType};

use crate::common::reference as r;
use crate::common::rng::Rng;
use crate::common::tolerance::F32_EPS;
use crate::gpu::*;
use crate::linear::{angle_table, check_rounded};

#[test]
fn norms_match_their_formulas() {
    let mut rng = Rng(31);
    for half in HALVES {
        for cols in [4, 160, 256, 1280, 3588] {
            let (rows, stored) = (5, 7);
            let x: Vec<f32> = rng.normals(stored * cols).iter().map(|v| v * 3.0 + 1.0).collect();
            let (weight, bias) = (rng.normals(cols), rng.normals(cols));
            let index = [6u32, 0, 3, 3, 1];
            let (x_at, w_at, b_at, i_at) =
                (Buffer::of(&x), Buffer::of(&weight), Buffer::of(&bias), Buffer::of(&index));
            for (kind, index) in
                [(NormKind::Rms, None), (NormKind::Rms, Some(&index)), (NormKind::Layer(b_at.at), None)]
            {
                if matches!(kind, NormKind::Layer(_)) && cols > MAX_LAYER_COLS {
                    continue;
                }
                let out = Buffer::poisoned(rows * cols * 2);
                let stream = gpu().stream();
                let n = Norm {
                    kind,
                    half,
                    x: x_at.at,
                    row_index: index.map(|_| i_at.at),
                    weight: w_at.at,
                    out: out.at,
                    rows,
                    cols,
                    eps: 1e-6,
                };
                // SAFETY: buffers are as long as the shapes say and live until the stream is done.
                unsafe { gpu().kernels.norm(&stream, &n) }.unwrap();
                let out: Vec<u16> = out.read(&stream);
                for i in 0..rows {
                    let from = index.map_or(i, |index| index[i] as usize);
                    let row = r::f64s(&x[from * cols..(from + 1) * cols]);
                    let sum_error = (cols as f64 / 256.0 + 20.0) * F32_EPS;
                    match kind {
                        NormKind::Rms => {
                            let expected = r::rms_norm(&row, &r::f64s(&weight), 1e-6);
                            for (c, e) in expected.iter().enumerate() {
                                // Two roundings to T: before and after the weight.
                                let error = (rounding(half).0 + sum_error) * e.abs() + rounding(half).1 * 4.0;
                                check_rounded(
                                    half,
                                    out[i * cols + c],
                                    *e,
                                    error,
                                    &format!("rms {cols} {i} {c}"),
                                );
                            }
                        }
                        NormKind::Layer(_) => {
                            let expected = r::layer_norm(&row, &r::f64s(&weight), &r::f64s(&bias), 1e-6);
                            let largest = row.iter().fold(0f64, |m, v| m.max(v.abs()));
                            let mean = row.iter().sum::<f64>() / cols as f64;
                            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / cols as f64;
                            for (c, e) in expected.iter().enumerate() {
                                let size = largest / variance.sqrt() * f64::from(weight[c]).abs();
                                let error = 3.0 * sum_error * (size + f64::from(bias[c]).abs());
                                check_rounded(
                                    half,
                                    out[i * cols + c],
                                    *e,
                                    error,
                                    &format!("layer {cols} {i} {c}"),
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_of_a_norm_has_the_same_bits_in_any_batch() {
    let mut rng = Rng(32);
    let (rows, cols) = (9, 1536);
    let x = rng.normals(rows * cols);
    let weight = Buffer::of(&rng.normals(cols));
    let run = |x: &[f32]| {
        let out = Buffer::poisoned(x.len() * 2);
        let at = Buffer::of(x);
        let stream = gpu().stream();
        let n = Norm {
            kind: NormKind::Rms,
            half: qwenvl::kernels::cuda::Half::BF16,
            x: at.at,
            row_index: None,
            weight: weight.at,
            out: out.at,
            rows: x.len() / cols,
            cols,
            eps: 1e-6,
        };
        // SAFETY: buffers are as long as the shapes say and live until the stream is done.
        unsafe { gpu().kernels.norm(&stream, &n) }.unwrap();
        out.read::<u16>(&stream)
    };
    let all = run(&x);
    for i in 0..rows {
        assert_eq!(run(&x[i * cols..(i + 1) * cols]), all[i * cols..(i + 1) * cols]);
    }
}

#[test]
fn embedding_takes_visual_rows_where_they_are_named() {
    let mut rng = Rng(33);
    let (vocab, cols) = (10, 24);
    for half in HALVES {
        let visual = normals(&mut rng, half, 3 * cols);
        let floats = rng.normals(vocab * cols);
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let bits16 = |h| floats.iter().map(|x| round_to(h, *x)).collect::<Vec<u16>>();
            let [b, f] = HALVES.map(bits16);
            let (table, exact) = match dtype {
                DType::BF16 => (Buffer::of(&b), values(HALVES[0], &b)),
                DType::F16 => (Buffer::of(&f), values(HALVES[1], &f)),
                _ => (Buffer::of(&floats), r::f64s(&floats)),
            };
            let no = u32::MAX;
            let (tokens, index) = (Buffer::of(&[9u32, 0, 3, 3]), Buffer::of(&[no, 2, no, 0]));
            let (seen, out) = (Buffer::of(&visual), Buffer::poisoned(4 * cols * 4));
            let stream = gpu().stream();
            let e = Embed {
                table: table.at,
                stored: Table::Rows(dtype),
                vocab,
                tokens: tokens.at,
                visual: seen.at,
                visual_index: index.at,
                half,
                out: out.at,
                rows: 4,
                cols,
            };
            // SAFETY: buffers are as long as the shapes say and live until the stream is done.
            unsafe { gpu().kernels.embed(&stream, &e) }.unwrap();
            let out = r::f64s(&out.read::<f32>(&stream));
            let visual = values(half, &visual);
            assert_eq!(out[..cols], exact[9 * cols..]);
            assert_eq!(out[cols..2 * cols], visual[2 * cols..]);
            assert_eq!(out[2 * cols..3 * cols], exact[3 * cols..4 * cols]);
            assert_eq!(out[3 * cols..], visual[..cols]);
        }
    }
}

#[test]
fn patches_come_in_merged_order_from_both_frames() {
    let mut rng = Rng(34);
    let (patch, merge) = (14usize, 2usize);
    let grids = [(2usize, 4usize), (4, 2), (6, 2)];
    let table: Vec<f32> = rng.normals(768);
    let frames: Vec<[Vec<u8>; 2]> = grids
        .iter()
        .map(|(h, w)| {
            std::array::from_fn(|_| (0..h * w * patch * patch * 3).map(|_| rng.next() as u8).collect())
        })
        .collect();
    let buffers: Vec<[Buffer; 2]> = frames.iter().map(|f| [Buffer::of(&f[0]), Buffer::of(&f[1])]).collect();
    let mut slices = Vec::new();
    let mut first = 0u32;
    for ((h, w), b) in grids.iter().zip(&buffers) {
        for at in [b[0].at, b[1].at] {
            slices.extend([at as u32, (at >> 32) as u32]);
        }
        slices.extend([first, *h as u32, *w as u32, 0]);
        first += (h * w) as u32;
    }
    assert_eq!(size_of::<qwenvl::kernels::cuda::norm::Frames>(), 32);
    let total = first as usize;
    let dim = 3 * 2 * patch * patch;
    let (slices, table_at) = (Buffer::of(&slices), Buffer::of(&table));
    for half in HALVES {
        for (first_row, rows) in [(0, total), (4, 8)] {
            let out = Buffer::poisoned(rows * dim * 2);
            let stream = gpu().stream();
            let c = Patchify {
                slices: slices.at,
                n_slices: grids.len(),
                table: table_at.at,
                half,
                out: out.at,
                first_row,
                rows,
                patch,
                merge,
            };
            // SAFETY: buffers are as long as the shapes say and live until the stream is done.
            unsafe { gpu().kernels.patchify(&stream, &c) }.unwrap();
            let out: Vec<u16> = out.read(&stream);
            let mut row = 0;
            for ((h, w), frames) in grids.iter().zip(&frames) {
                for index in 0..h * w {
                    let (block, inside) = (index / 4, index % 4);
                    let blocks = w / merge;
                    let top = (block / blocks * merge + inside / merge) * patch;
                    let left = (block % blocks * merge + inside % merge) * patch;
                    if (first_row..first_row + rows).contains(&row) {
                        let mut at = (row - first_row) * dim;
                        for c in 0..3 {
                            for frame in frames {
                                for y in 0..patch {
                                    for x in 0..patch {
                                        let pixel = frame[((top + y) * w * patch + left + x) * 3 + c];
                                        let expected = table[c * 256 + usize::from(pixel)];
                                        assert_eq!(out[at], round_to(half, expected), "row {row}");
                                        at += 1;
                                    }
                                }
                            }
                        }
                    }
                    row += 1;
                }
            }
        }
    }
}

#[test]
fn unfused_steps_match_float64() {
    let mut rng = Rng(35);
    let (rows, cols, d) = (7, 256, 128);
    for half in HALVES {
        let x = normals(&mut rng, half, rows * cols);
        let y = normals(&mut rng, half, rows * cols);
        let residual = rng.normals(rows * cols);
        let (xs, ys) = (values(half, &x), values(half, &y));
        let (x_at, y_at, r_at) = (Buffer::of(&x), Buffer::of(&y), Buffer::of(&residual));
        let stream = gpu().stream();
        let run = |op: PointwiseOp, from: &Buffer, rows: usize, out: &Buffer| {
            let c = Pointwise { op, half, x: from.at, out: out.at, rows, cols };
            // SAFETY: buffers are as long as the shapes say and live until the stream is done.
            unsafe { gpu().kernels.pointwise(&stream, &c) }.unwrap();
        };
        let out = Buffer::poisoned(rows * cols * 2);
        type Formula = fn(f64) -> f64;
        for (activation, formula) in
            [(Activation::QuickGelu, r::quick_gelu as Formula), (Activation::Gelu, r::gelu as Formula)]
        {
            run(PointwiseOp::Activate(activation), &x_at, rows, &out);
            for (found, x) in out.read::<u16>(&stream).into_iter().zip(&xs) {
                let error = 16.0 * F32_EPS * (1.0 + x.abs()) * x.abs() + 1e-7 * x.abs();
                check_rounded(half, found, formula(*x), error, &format!("{activation:?} {x}"));
            }
        }
        run(PointwiseOp::SwiGlu { up: y_at.at }, &x_at, rows, &out);
        for (i, found) in out.read::<u16>(&stream).into_iter().enumerate() {
            let error = (16.0 * F32_EPS * (1.0 + xs[i].abs()) + 1e-7) * (xs[i] * ys[i]).abs();
            check_rounded(half, found, r::silu(xs[i]) * ys[i], error, "swiglu");
        }
        let sum = Buffer::poisoned(rows * cols * 4);
        run(PointwiseOp::Add { residual: r_at.at }, &x_at, rows, &sum);
        for (i, found) in sum.read::<f32>(&stream).into_iter().enumerate() {
            assert_eq!(found, residual[i] + xs[i] as f32);
        }
        let index = Buffer::of(&[4u32, 4, 0]);
        let some = Buffer::poisoned(3 * cols * 4);
        run(PointwiseOp::Gather { index: index.at }, &r_at, 3, &some);
        let some: Vec<f32> = some.read(&stream);
        assert_eq!(some[..cols], residual[4 * cols..5 * cols]);
        assert_eq!(some[2 * cols..], residual[..cols]);

        let (table, angles) = angle_table(&mut rng, 20, d / 2);
        let positions: Vec<u32> = (0..3 * rows).map(|_| rng.below(20) as u32).collect();
        let (table, at) = (Buffer::of(&table), Buffer::of(&positions));
        let pairs = RopePairs::MRope(MRope { head_dim: d, sections: [16, 24, 24], theta: 1e6 });
        let rope = Rope { angles: table.at, positions: at.at, pairs };
        run(PointwiseOp::Rotate { rope, n_rotated: d }, &x_at, rows, &out);
        let found: Vec<u16> = out.read(&stream);
        for i in 0..rows {
            let axis = |j: usize| {
                if j < 16 {
                    0
                } else if j < 40 {
                    1
                } else {
                    2
                }
            };
            let turns: Vec<f64> =
                (0..64).map(|j| angles[positions[3 * i + axis(j)] as usize * 64 + j]).collect();
            let expected = r::rotate(&xs[i * cols..][..d], &turns);
            for c in 0..d {
                check_rounded(half, found[i * cols + c], expected[c], 1e-5, "rotate");
            }
            assert_eq!(found[i * cols + d..(i + 1) * cols], x[i * cols + d..(i + 1) * cols]);
        }

        let heads = Heads { n_heads: 2, n_kv_heads: 2, head_dim: d };
        let slots: Vec<u32> = (0..rows as u32).map(|i| if i == 3 { u32::MAX } else { 127 - 9 * i }).collect();
        let (slots_at, pages) = (Buffer::of(&slots), Buffer::poisoned(2 * 2 * 2 * 64 * d * 2));
        let kv = Kv { pages: pages.at, page_stride: (2 * 2 * 64 * d) as u64, heads };
        run(PointwiseOp::WriteKv { values: y_at.at, kv, slots: slots_at.at }, &x_at, rows, &out);
        let pages: Vec<u16> = pages.read(&stream);
        for (i, slot) in slots.iter().enumerate().filter(|(_, s)| **s != u32::MAX) {
            for head in 0..2 {
                for (which, from) in [&x, &y].into_iter().enumerate() {
                    let row = ((*slot as usize / 64 * 2 + which) * 2 + head) * 64 + *slot as usize % 64;
                    assert_eq!(pages[row * d..(row + 1) * d], from[i * cols + head * d..][..d]);
                }
            }
        }
        let written = pages.iter().filter(|v| **v != 0xffff).count();
        assert!(written <= 6 * 4 * d, "only the slots are written");
    }
}
