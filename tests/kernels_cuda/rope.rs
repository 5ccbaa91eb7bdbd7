//! rope: rotation and KV writes of plans that are not fused.

use qwenvl::kernels::cuda::Half;
use qwenvl::kernels::cuda::linear::{Kv, Rope, RopePairs};
use qwenvl::kernels::cuda::pointwise::PointwiseOp;
use qwenvl_graph::op::{Heads, MRope, VisionRope};

use crate::common::reference as r;
use crate::common::rng::Rng;
use crate::gpu::*;
use crate::pointwise::pointwise;

#[test]
fn rotation_turns_pairs_by_their_axis_and_copies_the_rest() {
    let mut rng = Rng(5);
    // The decoder: one table for all axes; the vision tower: it starts anew for the column.
    let decoder = RopePairs::MRope(MRope { head_dim: 128, sections: [16, 24, 24], theta: 1e6 });
    let vision = RopePairs::Vision(VisionRope { n_heads: 2, head_dim: 80 });
    for (pairs, head_dim, heads, rotated, axis_end, columns, restart) in
        [(decoder, 128, 3, 2, &[16, 40, 64][..], 64, false), (vision, 80, 36, 32, &[20, 40][..], 20, true)]
    {
        let axes = axis_end.len();
        for half in HALVES {
            let (rows, positions, cols) = (5, 50, heads * head_dim);
            let angles: Vec<f64> = (0..positions * columns).map(|_| f64::from(rng.unit()) * 4.0).collect();
            let table: Vec<f32> = angles.iter().flat_map(|a| [a.cos() as f32, a.sin() as f32]).collect();
            let place: Vec<u32> = (0..rows * axes).map(|_| rng.below(positions) as u32).collect();
            let x = encode(half, &rng.normals(rows * cols));
            let (x_at, table_at, place_at) = (Buffer::of(&x), Buffer::of(&table), Buffer::of(&place));
            let apart = Buffer::<u16>::poisoned(rows * cols);
            for in_place in [false, true] {
                let out = if in_place { &x_at } else { &apart };
                let rope = Rope { angles: table_at.at, positions: place_at.at, pairs };
                let op = PointwiseOp::Rotate { rope, n_rotated: rotated * head_dim };
                pointwise(half, op, x_at.at, out.at, rows, cols);
                let bits = out.read();
                let (exact, found) = (values(half, &x), values(half, &bits));
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
                            assert_within(
                                &|| format!("{half:?} {head_dim}"),
                                found[at + c],
                                expected[c],
                                bound,
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn kv_write_puts_rows_into_their_slots_and_nowhere_else() {
    let mut rng = Rng(6);
    let (kv_heads, d, pages, rows) = (2, 128, 3, 5);
    let stride = 2 * kv_heads * 64 * d + 64;
    let slots = [3u32, 130, u32::MAX, 64, 191];
    let mut random = |n: usize| (0..n).map(|_| rng.next() as u16).collect::<Vec<u16>>();
    let (k, v) = (random(rows * kv_heads * d), random(rows * kv_heads * d));
    let (k_at, v_at, slots_at) = (Buffer::of(&k), Buffer::of(&v), Buffer::of(&slots));
    let data = Buffer::<u16>::poisoned(pages * stride);
    let heads = Heads { n_heads: kv_heads, n_kv_heads: kv_heads, head_dim: d };
    let kv = Kv { pages: data.at, page_stride: stride as u64, heads };
    let op = PointwiseOp::WriteKv { values: v_at.at, kv, slots: slots_at.at };
    pointwise(Half::BF16, op, k_at.at, 0, rows, kv_heads * d);
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
