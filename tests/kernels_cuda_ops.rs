//! The small CUDA kernels against plain float64 or the host's own code: norms, embedding, pointwise functions,
//! rotation, KV writes, patches and the choice of the next token.
#![cfg(feature = "cuda")]

mod common;
#[path = "common/cuda.rs"]
mod cuda;

use common::reference as r;
use common::rng::Rng;
use cuda::{HALVES, POISON, Rig, decode, encode, roundoff};
use half::f16;
use qwenvl::kernels::cuda::Half;
use qwenvl::kernels::cuda::linear::{Kv, Rope, RopePairs};
use qwenvl::kernels::cuda::norm::{Embed, Frames, MAX_LAYER_COLS, Norm, NormKind, Patchify, Table};
use qwenvl::kernels::cuda::pointwise::{Pointwise, PointwiseOp};
use qwenvl::kernels::cuda::sample::{NO_TOKEN, Sample, SampleRow, best_len};
use qwenvl::sampler::{Sampler, SamplingParams, TokenSet};
use qwenvl::vision::{Normalize, Rgb8, Visual, VisualKind, patchify::write_patch};
use qwenvl_graph::op::{Heads, MRope, VisionRope};
use qwenvl_graph::{Activation, DType, Grid};

const F32: f64 = 1.0 / (1u64 << 24) as f64;

fn assert_close(what: &str, found: f64, value: f64, bound: f64) {
    let error = (found - value).abs();
    assert!(error <= bound, "{what}: {found} is {error:e} from {value}, bound {bound:e}");
}

#[test]
fn norms_round_where_the_reference_does() {
    let rig = Rig::new();
    let mut rng = Rng(1);
    for half in HALVES {
        let u = roundoff(half);
        for (rows, cols) in [(1, 8), (3, 128), (2, 1536), (1, 3584), (1, 8192), (9, 160), (17, 1280)] {
            let x: Vec<f32> = rng.normals(rows * cols).iter().map(|v| 3.0 * v + 0.5).collect();
            let weight: Vec<f32> = rng.normals(cols).iter().map(|w| f16::from_f32(*w).to_f32()).collect();
            let bias = rng.normals(cols);
            let order: Vec<u32> = (0..rows as u32).rev().collect();
            let (x_at, weight_at, bias_at, order_at) =
                (rig.upload(&x), rig.upload(&weight), rig.upload(&bias), rig.upload(&order));
            for (layer, by_index) in [(false, false), (false, true), (true, false), (true, true)] {
                if layer && cols > MAX_LAYER_COLS {
                    continue;
                }
                let out = rig.filled(POISON, rows * cols + 8);
                let call = Norm {
                    kind: if layer { NormKind::Layer(bias_at.address()) } else { NormKind::Rms },
                    half,
                    x: x_at.address(),
                    row_index: by_index.then(|| order_at.address()),
                    weight: weight_at.address(),
                    out: out.address(),
                    rows,
                    cols,
                    eps: 1e-6,
                };
                // SAFETY: the buffers live until `read` has waited for the stream; shapes as above.
                unsafe { rig.kernels.norm(&rig.stream, &call) }.unwrap();
                let bits = out.read();
                assert!(bits[rows * cols..].iter().all(|&b| b == POISON), "beyond the rows");
                let found = decode(half, &bits);
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
                        let what = format!("{half:?} layer {layer} {rows}x{cols} at {row},{c}");
                        // One rounding of the result; RMSNorm also rounds before the weight. Sums of `cols` terms.
                        let rounded = if layer { 0.0 } else { u };
                        let sum_error = (cols as f64 / 128.0 + 40.0) * F32 * (1.0 + size * scale);
                        let product = (expected[c] - if layer { f64::from(bias[c]) } else { 0.0 }).abs();
                        let bound = u * expected[c].abs()
                            + (rounded + sum_error) * (product + weights[c].abs()) * 1.01
                            + 1e-7;
                        assert_close(&what, found[row * cols + c], expected[c], bound);
                    }
                }
            }
        }
    }
}

#[test]
fn rms_norm_gives_a_row_the_same_bits_alone() {
    let rig = Rig::new();
    let mut rng = Rng(2);
    let (rows, cols) = (5, 3584);
    let mut x = rng.normals(rows * cols);
    x[2 * cols] = f32::NAN; // a neighbour's
    let weight = rig.upload(&rng.normals(cols));
    let run = |x: &[f32]| {
        let (x_at, out) = (rig.upload(x), rig.filled(POISON, x.len()));
        let call = Norm {
            kind: NormKind::Rms,
            half: Half::BF16,
            x: x_at.address(),
            row_index: None,
            weight: weight.address(),
            out: out.address(),
            rows: x.len() / cols,
            cols,
            eps: 1e-6,
        };
        // SAFETY: the buffers live until `read` has waited for the stream; shapes as above.
        unsafe { rig.kernels.norm(&rig.stream, &call) }.unwrap();
        out.read()
    };
    let together = run(&x);
    for row in [0, 1, 3, 4] {
        let range = row * cols..(row + 1) * cols;
        assert_eq!(run(&x[range.clone()]), together[range]);
    }
}

#[test]
fn embed_takes_rows_of_every_type_and_visual_rows_where_they_are_named() {
    let rig = Rig::new();
    let mut rng = Rng(3);
    let (vocab, cols, none) = (11, 1536, u32::MAX);
    let tokens = [3u32, 0, 10, 7, 7, 11];
    let visual_index = [none, none, 2, none, 0, none];
    let (tokens_at, index_at) = (rig.upload(&tokens), rig.upload(&visual_index));
    let numbers = rng.normals(vocab * cols);
    for half in HALVES {
        let visual = encode(half, &rng.normals(3 * cols));
        let visual_at = rig.upload(&visual);
        let tables = [
            (
                DType::F32,
                numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>(),
                r::f64s(&numbers),
            ),
            (DType::BF16, words(Half::BF16, &numbers), decode(Half::BF16, &encode(Half::BF16, &numbers))),
            (DType::F16, words(Half::F16, &numbers), decode(Half::F16, &encode(Half::F16, &numbers))),
        ];
        for (kind, bytes, exact) in tables {
            let (table, out) = (rig.upload(&bytes), rig.filled(0f32, tokens.len() * cols));
            let call = Embed {
                table: table.address(),
                stored: Table::Rows(kind),
                vocab,
                tokens: tokens_at.address(),
                visual: visual_at.address(),
                visual_index: index_at.address(),
                half,
                out: out.address(),
                rows: tokens.len(),
                cols,
            };
            // SAFETY: the buffers live until `read` has waited for the stream; shapes as above.
            unsafe { rig.kernels.embed(&rig.stream, &call) }.unwrap();
            for (i, row) in out.read().chunks_exact(cols).enumerate() {
                let (token, seen) = (tokens[i] as usize, visual_index[i]);
                if token == vocab {
                    assert!(row.iter().all(|x| x.is_nan()), "an id beyond the vocabulary");
                    continue;
                }
                let expected = if seen == none {
                    exact[token * cols..][..cols].to_vec()
                } else {
                    decode(half, &visual[seen as usize * cols..][..cols])
                };
                assert_eq!(r::f64s(row), expected, "{half:?}, table {kind}, row {i}");
            }
        }
    }
    let (x, indices, out) = (rig.upload(&numbers), rig.upload(&[4u32, 0, 4]), rig.filled(0f32, 3 * cols));
    let op = PointwiseOp::Gather { index: indices.address() };
    pointwise(&rig, Half::BF16, op, x.address(), out.address(), 3, cols);
    for (row, index) in out.read().chunks_exact(cols).zip([4, 0, 4]) {
        assert_eq!(row, &numbers[index * cols..][..cols]);
    }
}

fn pointwise(rig: &Rig, half: Half, op: PointwiseOp, x: u64, out: u64, rows: usize, cols: usize) {
    // SAFETY: the buffers of the tests live until they are read, which waits for the stream; shapes as they are made.
    unsafe { rig.kernels.pointwise(&rig.stream, &Pointwise { op, half, x, out, rows, cols }) }.unwrap();
}

fn words(half: Half, numbers: &[f32]) -> Vec<u8> {
    encode(half, numbers).iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[test]
fn pointwise_functions_are_within_a_rounding_of_their_formulas() {
    let rig = Rig::new();
    let mut rng = Rng(4);
    for half in HALVES {
        let u = roundoff(half);
        for (rows, cols) in [(1, 8), (3, 520), (2, 2048)] {
            let n = rows * cols;
            let wide: Vec<f32> = rng.normals(n).iter().map(|x| 6.0 * x).collect();
            let (x, y) = (encode(half, &wide), encode(half, &rng.normals(n)));
            let residual = rng.normals(n);
            let (x_at, y_at, residual_at) = (rig.upload(&x), rig.upload(&y), rig.upload(&residual));
            let out = rig.filled(POISON, n + 8);
            let run =
                |op, x: &cuda::Buffer<u16>, out| pointwise(&rig, half, op, x.address(), out, rows, cols);
            let (x, y) = (decode(half, &x), decode(half, &y));
            let check = |what: &str, f: &dyn Fn(usize) -> (f64, f64)| {
                let bits = out.read();
                assert!(bits[n..].iter().all(|&b| b == POISON));
                for (i, found) in decode(half, &bits[..n]).iter().enumerate() {
                    let (value, size) = f(i);
                    // Exponentials and the error function are good to a few units of their f32 arguments.
                    let bound = u * value.abs() + 64.0 * F32 * (size + x[i].abs() * value.abs()) + 1e-7;
                    assert_close(&format!("{what} {half:?} at {}", x[i]), *found, value, bound);
                }
            };
            run(PointwiseOp::SwiGlu { up: y_at.address() }, &x_at, out.address());
            check("swiglu", &|i| (r::silu(x[i]) * y[i], (x[i] * y[i]).abs()));
            run(PointwiseOp::Activate(Activation::QuickGelu), &x_at, out.address());
            check("quick_gelu", &|i| (r::quick_gelu(x[i]), 0.0));
            run(PointwiseOp::Activate(Activation::Gelu), &x_at, out.address());
            check("gelu", &|i| (r::gelu(x[i]), x[i].abs()));
            // In place, as plans do it.
            run(PointwiseOp::Add { residual: residual_at.address() }, &x_at, residual_at.address());
            for (i, sum) in residual_at.read().iter().enumerate() {
                assert_eq!(*sum, x[i] as f32 + residual[i], "add {half:?}");
            }
        }
    }
}

#[test]
fn rotation_turns_pairs_by_their_axis_and_copies_the_rest() {
    let rig = Rig::new();
    let mut rng = Rng(5);
    // The decoder: one table for all axes; the vision tower: it starts anew for the column.
    let decoder = RopePairs::MRope(MRope { head_dim: 128, sections: [16, 24, 24], theta: 1e6 });
    let vision = RopePairs::Vision(VisionRope { n_heads: 2, head_dim: 80 });
    for (pairs, head_dim, heads, rotated, axis_end, columns, restart) in
        [(decoder, 128, 3, 2, &[16, 40, 64][..], 64, false), (vision, 80, 6, 4, &[20, 40][..], 20, true)]
    {
        let axes = axis_end.len();
        for half in HALVES {
            let (rows, positions, cols) = (5, 50, heads * head_dim);
            let angles: Vec<f64> = (0..positions * columns).map(|_| f64::from(rng.unit()) * 4.0).collect();
            let table: Vec<f32> = angles.iter().flat_map(|a| [a.cos() as f32, a.sin() as f32]).collect();
            let place: Vec<u32> = (0..rows * axes).map(|_| rng.below(positions) as u32).collect();
            let x = encode(half, &rng.normals(rows * cols));
            let (x_at, table_at, place_at) = (rig.upload(&x), rig.upload(&table), rig.upload(&place));
            let apart = rig.filled(POISON, rows * cols);
            for in_place in [false, true] {
                let out = if in_place { &x_at } else { &apart };
                let rope = Rope { angles: table_at.address(), positions: place_at.address(), pairs };
                let op = PointwiseOp::Rotate { rope, n_rotated: rotated * head_dim };
                pointwise(&rig, half, op, x_at.address(), out.address(), rows, cols);
                let bits = out.read();
                let (exact, found) = (decode(half, &x), decode(half, &bits));
                for row in 0..rows {
                    let turn: Vec<f64> = (0..head_dim / 2)
                        .map(|pair| {
                            let axis = axis_end.iter().position(|&end| pair < end).unwrap();
                            let start = if restart && axis > 0 { axis_end[axis - 1] } else { 0 };
                            angles[place[row * axes + axis] as usize * columns + pair - start]
                        })
                        .collect();
                    for head in 0..heads {
                        let at = row * cols + head * head_dim;
                        if head >= rotated {
                            assert_eq!(bits[at..at + head_dim], x[at..at + head_dim], "copied");
                            continue;
                        }
                        let expected = r::rotate(&exact[at..at + head_dim], &turn);
                        for c in 0..head_dim {
                            let bound = roundoff(half) * expected[c].abs() + 1e-6;
                            assert_close(&format!("{half:?} {head_dim}"), found[at + c], expected[c], bound);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn kv_write_puts_rows_into_their_slots_and_nowhere_else() {
    let rig = Rig::new();
    let mut rng = Rng(6);
    let (kv_heads, d, pages, rows) = (2, 128, 3, 5);
    let stride = 2 * kv_heads * 64 * d + 64;
    let slots = [3u32, 130, u32::MAX, 64, 191];
    let mut random = |n: usize| (0..n).map(|_| rng.next() as u16).collect::<Vec<u16>>();
    let (k, v) = (random(rows * kv_heads * d), random(rows * kv_heads * d));
    let (k_at, v_at, slots_at) = (rig.upload(&k), rig.upload(&v), rig.upload(&slots));
    let data = rig.filled(POISON, pages * stride);
    let heads = Heads { n_heads: kv_heads, n_kv_heads: kv_heads, head_dim: d };
    let kv = Kv { pages: data.address(), page_stride: stride as u64, heads };
    let op = PointwiseOp::WriteKv { values: v_at.address(), kv, slots: slots_at.address() };
    pointwise(&rig, Half::BF16, op, k_at.address(), 0, rows, kv_heads * d);
    let mut expected = vec![POISON; pages * stride];
    for (row, &slot) in slots.iter().enumerate().filter(|(_, slot)| **slot != u32::MAX) {
        for (part, from) in [&k, &v].into_iter().enumerate() {
            for head in 0..kv_heads {
                let at =
                    slot as usize / 64 * stride + ((part * kv_heads + head) * 64 + slot as usize % 64) * d;
                expected[at..at + d].copy_from_slice(&from[(row * kv_heads + head) * d..][..d]);
            }
        }
    }
    assert!(data.read() == expected);
}

#[test]
fn patchify_gives_the_rows_of_the_host() {
    let rig = Rig::new();
    let mut rng = Rng(7);
    let config = common::published_config().vision;
    let table = Normalize::CLIP.table();
    let mut picture = |kind, t: usize, h: usize, w: usize, frames: usize| {
        let frames = (0..frames)
            .map(|_| {
                let bytes = (0..h * w * 14 * 14 * 3).map(|_| rng.next() as u8).collect();
                Rgb8::new((w * 14) as u32, (h * 14) as u32, bytes).unwrap()
            })
            .collect();
        Visual {
            kind,
            grid: Grid { t, h, w },
            frames,
            original: (1, 1),
            sampling: None,
            timings: Default::default(),
        }
    };
    let visuals = [
        picture(VisualKind::Image, 1, 2, 2, 1),
        picture(VisualKind::Image, 1, 4, 6, 1),
        picture(VisualKind::Video, 2, 2, 4, 3),
    ];
    let mut expected = Vec::new();
    let (mut frames, mut slices) = (Vec::new(), Vec::new());
    for visual in &visuals {
        let on_device: Vec<_> = visual.frames.iter().map(|f| rig.upload(f.data())).collect();
        for t in 0..visual.grid.t {
            let frame = |i: usize| on_device[(2 * t + i).min(on_device.len() - 1)].address() as *const u8;
            slices.push(Frames {
                frames: [frame(0), frame(1)],
                first_patch: (expected.len() / 1176) as u32,
                grid_h: visual.grid.h as u32,
                grid_w: visual.grid.w as u32,
            });
            for index in 0..visual.grid.patches_per_slice() {
                let mut row = vec![0f32; 1176];
                write_patch(visual, t, index, &table, &config, &mut row);
                expected.extend(row);
            }
        }
        frames.extend(on_device);
    }
    // As the device reads it: two addresses, three words, padding.
    let bytes = slices.iter().flat_map(|s| {
        let [a, b] = s.frames.map(|f| (f as u64).to_le_bytes());
        let words = [s.first_patch, s.grid_h, s.grid_w, 0].map(u32::to_le_bytes);
        [a.to_vec(), b.to_vec(), words.concat()].concat()
    });
    let slices_at = rig.upload(&bytes.collect::<Vec<u8>>());
    let table_at = rig.upload(&table.concat());
    let rows = expected.len() / 1176;
    for half in HALVES {
        for (first, count) in [(0, rows), (4, 12), (rows - 4, 4)] {
            let out = rig.filled(POISON, count * 1176 + 8);
            let call = Patchify {
                slices: slices_at.address(),
                n_slices: slices.len(),
                table: table_at.address(),
                half,
                out: out.address(),
                first_row: first,
                rows: count,
                patch: 14,
                merge: 2,
            };
            // SAFETY: the buffers live until `read` has waited for the stream; shapes as above.
            unsafe { rig.kernels.patchify(&rig.stream, &call) }.unwrap();
            let mut wanted = encode(half, &expected[first * 1176..(first + count) * 1176]);
            wanted.extend([POISON; 8]);
            assert!(out.read() == wanted, "{half:?}, rows {first} to {}", first + count);
        }
    }
}

/// Tokens of a batch from the device, `None` for unusable logits.
fn pick(
    rig: &Rig,
    logits: &[Vec<f32>],
    seen: &[Vec<u32>],
    params: &[(SamplingParams, u64)],
) -> Vec<Option<u32>> {
    let (rows, vocab) = (logits.len(), logits[0].len());
    let words = vocab.div_ceil(32) + 1;
    let mut history = vec![0u32; rows * words];
    for (row, ids) in seen.iter().enumerate() {
        for id in ids {
            history[row * words + *id as usize / 32] |= 1 << (id % 32);
        }
    }
    let row_params: Vec<u32> = params
        .iter()
        .flat_map(|(p, position)| {
            let row = SampleRow {
                seed: [p.seed as u32, (p.seed >> 32) as u32],
                position: [*position as u32, (*position >> 32) as u32],
                temperature: if p.is_greedy() { 0.0 } else { p.temperature },
                top_p: p.top_p,
                repetition_penalty: p.repetition_penalty,
                top_k: p.top_k,
            };
            let floats = [row.temperature, row.top_p, row.repetition_penalty].map(f32::to_bits);
            [&row.seed[..], &row.position, &floats, &[row.top_k]].concat()
        })
        .collect();
    let (logits_at, scores) = (rig.upload(&logits.concat()), rig.filled(f32::NAN, rows * vocab));
    let (history_at, params_at) = (rig.upload(&history), rig.upload(&row_params));
    let (tokens, best, arrivals) =
        (rig.filled(77u32, rows), rig.filled(u64::MAX, best_len(rows, vocab)), rig.filled(0u32, rows));
    let call = Sample {
        logits: logits_at.address(),
        scores: scores.address(),
        history: history_at.address(),
        history_words: words,
        params: params_at.address(),
        tokens: tokens.address(),
        best: best.address(),
        arrivals: arrivals.address(),
        drawn: params.iter().any(|(p, _)| !p.is_greedy()),
        rows,
        vocab,
    };
    // SAFETY: the buffers live until `read` has waited for the stream; shapes as above.
    unsafe { rig.kernels.sample(&rig.stream, &call) }.unwrap();
    let tokens: Vec<Option<u32>> = tokens.read().into_iter().map(|t| (t != NO_TOKEN).then_some(t)).collect();
    assert!(arrivals.read().iter().all(|&n| n == 0));
    for (row, token) in tokens.iter().enumerate() {
        if let Some(token) = token {
            history[row * words + *token as usize / 32] |= 1 << (token % 32);
        }
    }
    assert_eq!(history_at.read(), history, "the tokens are in the histories");
    tokens
}

#[test]
fn the_device_picks_the_tokens_of_the_host() {
    let rig = Rig::new();
    let mut rng = Rng(8);
    for (vocab, spread) in [(1, 1.0), (33, 3.0), (1280, 2.5), (9000, 2.0), (4096, 0.0), (5000, 60.0)] {
        let (mut logits, mut seen, mut params) = (Vec::new(), Vec::new(), Vec::new());
        for (i, (top_k, top_p, temperature, penalty)) in [
            (0, 1.0, 0.0, 1.0),
            (0, 1.0, 1.0, 1.0),
            (1, 0.001, 0.01, 1.0),
            (50, 1.0, 0.7, 1.05),
            (0, 0.9, 1.0, 1.0),
            (0, 0.5, 1.3, 1.3),
            (20, 0.8, 0.7, 0.9),
            (3, 0.0, 1.0, 1.0),
            (vocab / 2, 0.999, 2.0, 1.0),
            (0, 1.0, 0.0, 1.2),
        ]
        .into_iter()
        .enumerate()
        {
            // Rounded to bf16, as the head leaves them: many are equal.
            let row = rng.normals(vocab as usize);
            logits.push(
                row.iter().map(|x| half::bf16::from_f32(x * spread + 1.0).to_f32()).collect::<Vec<f32>>(),
            );
            seen.push((0..vocab / 7).map(|_| rng.below(vocab as usize) as u32).collect::<Vec<u32>>());
            let sampling = SamplingParams {
                do_sample: temperature > 0.0,
                temperature,
                top_k,
                top_p,
                repetition_penalty: penalty,
                seed: rng.next(),
            };
            params.push((sampling, (i as u64) << 31 | 5));
        }
        if vocab > 100 {
            logits[1][7] = f32::NEG_INFINITY;
            logits[4].iter_mut().skip(3).for_each(|x| *x = f32::NEG_INFINITY);
        }
        let found = pick(&rig, &logits, &seen, &params);
        let mut host = Sampler::new(vocab as usize);
        for (row, token) in found.iter().enumerate() {
            let mut history = TokenSet::new(vocab as usize);
            history.extend(&seen[row]);
            let (p, position) = &params[row];
            let expected = host.sample(&logits[row], &history, p, *position).ok();
            assert_eq!(*token, expected, "{vocab} logits, row {row}: {p:?}");
        }
    }
}

#[test]
fn unusable_logits_give_no_token() {
    let rig = Rig::new();
    let mut rng = Rng(9);
    let greedy = SamplingParams { do_sample: false, ..Default::default() };
    let drawn = SamplingParams { do_sample: true, ..Default::default() };
    let mut logits: Vec<Vec<f32>> = (0..8).map(|_| rng.normals(5000)).collect();
    for row in [0, 4] {
        logits[row][4999] = f32::NAN;
        logits[row + 1][17] = f32::INFINITY;
        logits[row + 2].fill(f32::NEG_INFINITY);
    }
    let params: Vec<_> = (0..8).map(|row| (if row < 4 { greedy } else { drawn }, 0)).collect();
    let tokens = pick(&rig, &logits, &vec![Vec::new(); 8], &params);
    let usable: Vec<bool> = tokens.iter().map(Option::is_some).collect();
    assert_eq!(usable, [false, false, false, true, false, false, false, true]);
}
