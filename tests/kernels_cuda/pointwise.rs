//! pointwise: activations, SwiGLU and residual sums of plans that are not fused.

use qwenvl::kernels::cuda::Half;
use qwenvl::kernels::cuda::pointwise::{Pointwise, PointwiseOp};
use qwenvl::kernels::cuda::repack::NO_INPUT;
use qwenvl_graph::Activation;

use crate::common::reference as r;
use crate::common::rng::Rng;
use crate::common::tolerance::F32_EPS as F32;
use crate::gpu::*;

pub fn pointwise(half: Half, op: PointwiseOp, x: u64, out: u64, rows: usize, cols: usize) {
    // SAFETY: the buffers of the tests live until they are read, which waits for the stream; shapes as they are made.
    unsafe { gpu().kernels.pointwise(&stream(), &Pointwise { op, half, x, out, rows, cols }) }.unwrap();
}

#[test]
fn pointwise_functions_are_within_a_rounding_of_their_formulas() {
    let mut rng = Rng(4);
    for half in HALVES {
        let u = roundoff(half);
        for (rows, cols) in [(1, 8), (3, 520), (2, 2048)] {
            let n = rows * cols;
            let wide: Vec<f32> = rng.normals(n).iter().map(|x| 6.0 * x).collect();
            let (x, y) = (encode(half, &wide), encode(half, &rng.normals(n)));
            let residual = rng.normals(n);
            let (x_at, y_at, residual_at) = (Buffer::of(&x), Buffer::of(&y), Buffer::of(&residual));
            let out = Buffer::<u16>::poisoned(n + 8);
            let run = |op, x: &Buffer<u16>, out| pointwise(half, op, x.at, out, rows, cols);
            let (x, y) = (values(half, &x), values(half, &y));
            let check = |what: &str, f: &dyn Fn(usize) -> (f64, f64)| {
                let bits = out.read();
                assert!(bits[n..].iter().all(|&b| b == POISON));
                for (i, found) in values(half, &bits[..n]).iter().enumerate() {
                    let (value, size) = f(i);
                    // Exponentials and the error function are good to a few units of their f32 arguments.
                    let bound = u * value.abs() + 64.0 * F32 * (size + x[i].abs() * value.abs()) + 1e-7;
                    assert_within(&|| format!("{what} {half:?} at {}", x[i]), *found, value, bound);
                }
            };
            run(PointwiseOp::SwiGlu { up: y_at.at }, &x_at, out.at);
            check("swiglu", &|i| (r::silu(x[i]) * y[i], (x[i] * y[i]).abs()));
            run(PointwiseOp::Activate(Activation::QuickGelu), &x_at, out.at);
            check("quick_gelu", &|i| (r::quick_gelu(x[i]), 0.0));
            run(PointwiseOp::Activate(Activation::Gelu), &x_at, out.at);
            check("gelu", &|i| (r::gelu(x[i]), x[i].abs()));
            // In place, as plans do it.
            run(PointwiseOp::Add { residual: residual_at.at }, &x_at, residual_at.at);
            for (i, sum) in residual_at.read().iter().enumerate() {
                assert_eq!(*sum, x[i] as f32 + residual[i], "add {half:?}");
            }
        }
    }
}

#[test]
fn columns_come_in_any_order_and_where_there_is_none_are_zeros() {
    let (rows, ldx) = (3, 40);
    let x: Vec<u16> = (0..rows * ldx).map(|i| i as u16 + 1).collect();
    let index: Vec<u32> =
        (0..520).map(|i| if i % 5 == 3 { NO_INPUT } else { (i * 7 % ldx) as u32 }).collect();
    let (x_at, index_at) = (Buffer::of(&x), Buffer::of(&index));
    let out = Buffer::<u16>::poisoned(rows * index.len());
    let op = PointwiseOp::Columns { index: index_at.at, ldx };
    pointwise(Half::BF16, op, x_at.at, out.at, rows, index.len());
    for (at, found) in out.read().into_iter().enumerate() {
        let (row, input) = (at / index.len(), index[at % index.len()]);
        let expected = if input == NO_INPUT { 0 } else { x[row * ldx + input as usize] };
        assert_eq!(found, expected, "{at}");
    }
}
