//! Every CPU kernel against plain float64, on every instruction set of this machine, with ragged
//! sizes and poisoned outputs; and the promise that bits depend on nothing but the request.

#[path = "../common/mod.rs"]
mod common;

mod attention;
mod linear;
mod rest;

use std::sync::Arc;

use common::reference::{self as r, f64s};
use common::rng::Rng;
use common::tolerance as tol;
use qwenvl::kernels::SeqRows;
use qwenvl::kernels::cpu::attention::KvPages;
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
