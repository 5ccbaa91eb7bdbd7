//! linear: y = x Wᵀ + b with what follows it, tile by tile, so that only the final result is stored.
//!
//! A tile is `block_m` rows by `block_n` outputs of one matrix (of each of the two, for SwiGLU). It is
//! summed in scratch that stays in cache, over all of k in the order of the matrix's kernel
//! (`dense.rs`, `grouped.rs`), then the epilogue writes it out. Tiles run on any thread in any order.

use qwenvl_graph::Activation;
use qwenvl_graph::op::Heads;

use super::attention::KvWriter;
use super::dense::{self, DenseMatrix};
use super::grouped;
use super::int4::Int4Matrix;
use super::int8::Int8Matrix;
use super::order::InputOrder;
use super::pointwise::{activate_slice, swiglu_slice};
use super::rope::RopeTable;
use super::rounded::QuantizedRows;
use super::shared::SharedMut;
use super::{Aligned, Isa, Pool};

/// A weight matrix `[n, k]` in the layout of its kernel.
#[derive(Clone, Copy)]
pub enum Matrix<'a> {
    /// f32, f16 or bf16.
    Dense(DenseMatrix<'a>),
    /// 4-bit codes.
    Int4(&'a Int4Matrix),
    /// 8-bit codes.
    Int8(&'a Int8Matrix),
}

/// Blocks of rows are multiples of what the kernels take at a time.
const ROWS_ALIGN: usize = 12;

/// Most matrices stacked in one linear layer.
pub const MAX_PARTS: usize = 3;

impl Matrix<'_> {
    /// Outputs.
    pub fn n(&self) -> usize {
        match self {
            Matrix::Dense(m) => m.n(),
            Matrix::Int4(m) => m.n(),
            Matrix::Int8(m) => m.n(),
        }
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        match self {
            Matrix::Dense(m) => m.k(),
            Matrix::Int4(m) => m.k(),
            Matrix::Int8(m) => m.k(),
        }
    }

    /// Inputs per group and their order, if inputs are rounded for it.
    fn rounding(&self) -> Option<(usize, Option<&InputOrder>)> {
        match self {
            Matrix::Dense(_) => None,
            Matrix::Int4(m) => Some((m.group(), m.order().map(|o| &**o))),
            Matrix::Int8(m) => Some((m.group(), m.order().map(|o| &**o))),
        }
    }

    /// Whether inputs rounded for `other` serve this one. Orders are compared by identity.
    fn shares_rounding(&self, other: &Matrix) -> bool {
        match (self.rounding(), other.rounding()) {
            (Some((a, x)), Some((b, y))) => a == b && x.map(std::ptr::from_ref) == y.map(std::ptr::from_ref),
            (a, b) => a.is_none() && b.is_none(),
        }
    }
}

/// One of the matrices stacked along the outputs.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// The weights.
    pub matrix: Matrix<'a>,
    /// `[n]`.
    pub bias: Option<&'a [f32]>,
}

/// What follows the product. `out` is `[m, outputs]`.
pub enum Finish<'a> {
    /// Stores.
    Store,
    /// Applies a pointwise function.
    Activate(Activation),
    /// Adds to `residual`, or to what `out` holds.
    AddResidual(Option<&'a [f32]>),
    /// Two parts, gate and up.
    SwiGlu,
    /// Rotates the heads in the first two thirds of the outputs by the row's angles.
    VisionRope {
        /// Angles.
        table: &'a RopeTable,
        /// The row of the table for the first row of x.
        first_row: usize,
        /// Channels of a head.
        head_dim: usize,
    },
    /// Three parts, q, k and v: rotates q and k, stores q, writes k and v to their pages.
    RopeWriteKv {
        /// A row of angles for each row of x.
        table: &'a RopeTable,
        /// The cache.
        kv: KvWriter<'a>,
        /// The cache's layer.
        layer: usize,
        /// Heads.
        heads: Heads,
        /// Where each row's key and value go: page · 64 + offset.
        slots: &'a [u32],
    },
}

/// Tile sizes and scratch, as the plan chose them.
pub struct Blocking<'a> {
    /// Rows per tile.
    pub block_m: usize,
    /// Outputs per tile.
    pub block_n: usize,
    /// For each thread, as many f32 as the plan states.
    pub scratch: &'a mut [Aligned<f32>],
    /// Rounded inputs of matrices with integer codes; a part whose inputs are in another order than
    /// those of the parts before it has its own.
    pub rounded: &'a mut [QuantizedRows; MAX_PARTS],
}

/// `out = finish(x · partsᵀ + bias)` for `x` of `m` rows.
///
/// # Panics
/// If the shapes do not match, the parts are of different kinds, or scratch is too small.
pub fn linear(
    isa: Isa,
    pool: &mut Pool,
    x: &[f32],
    m: usize,
    parts: &[Part],
    finish: Finish,
    out: &mut [f32],
    blocking: Blocking,
) {
    let k = parts[0].matrix.k();
    assert!(x.len() == m * k && parts.iter().all(|p| p.matrix.k() == k));
    assert!(parts.iter().all(|p| p.bias.is_none_or(|b| b.len() == p.matrix.n())));
    let Blocking { block_m, block_n, scratch, rounded } = blocking;
    assert!(scratch.len() >= pool.threads() && block_n % grouped::STRIP == 0 && parts.len() <= MAX_PARTS);
    let reads = roundings(parts);
    for (i, part) in parts.iter().enumerate() {
        if let Some((group, order)) = part.matrix.rounding()
            && reads[i] == i
        {
            rounded[i].quantize(isa, pool, x, m, k, group, order);
        }
    }
    let rounded = &*rounded;

    let swiglu = matches!(finish, Finish::SwiGlu);
    assert!(!swiglu || (parts.len() == 2 && parts[0].matrix.n() == parts[1].matrix.n()));
    let n_out: usize = match &finish {
        Finish::SwiGlu | Finish::RopeWriteKv { .. } => parts[0].matrix.n(),
        _ => parts.iter().map(|p| p.matrix.n()).sum(),
    };
    assert_eq!(out.len(), m * n_out);
    // Blocks of outputs do not cross parts. With SwiGLU a block covers the same outputs of both.
    let walked = if swiglu { &parts[..1] } else { parts };
    let n_blocks: usize = walked.iter().map(|p| p.matrix.n().div_ceil(block_n)).sum();
    // Rows are cut evenly, since each block of them converts its weights again.
    let m_blocks = m.div_ceil(block_m);
    let rows_each =
        if m_blocks > 1 { m.div_ceil(m_blocks).next_multiple_of(ROWS_ALIGN).min(block_m) } else { block_m };
    let m_blocks = m.div_ceil(rows_each);
    let shared = SharedMut::new(out);
    let scratch = SharedMut::new(scratch);
    // Neighbouring tasks share weights.
    pool.run(n_blocks * m_blocks, |task, thread| {
        let (mut n_block, m_block) = (task / m_blocks, task % m_blocks);
        let (mut part, mut before) = (0, 0);
        while n_block >= parts[part].matrix.n().div_ceil(block_n) {
            n_block -= parts[part].matrix.n().div_ceil(block_n);
            before += parts[part].matrix.n();
            part += 1;
        }
        let n0 = n_block * block_n;
        let n = block_n.min(parts[part].matrix.n() - n0);
        let rows = m_block * rows_each..((m_block + 1) * rows_each).min(m);
        // SAFETY: a thread runs one task at a time and has its own scratch.
        let buffer = unsafe { &mut scratch.part(thread..thread + 1)[0] };
        let tiles = if swiglu { 2 } else { 1 };
        let (c, rest) = buffer.split_at_mut(tiles * block_m * block_n);
        let (tile, second) = c.split_at_mut(block_m * block_n);
        let mut sum = |index: usize, c: &mut [f32]| {
            let (part, rounded) = (&parts[index], &rounded[reads[index]]);
            let c = &mut c[..rows.len() * block_n];
            c.fill(0.0);
            match &part.matrix {
                Matrix::Dense(w) => {
                    let x = &x[rows.start * k..rows.end * k];
                    dense::accumulate(isa, w, n0, n, x, rows.len(), c, block_n, rest);
                }
                Matrix::Int4(w) => {
                    grouped::accumulate(isa, w, n0, n, rounded, rows.start, rows.len(), c, block_n, rest);
                }
                Matrix::Int8(w) => {
                    grouped::accumulate(isa, w, n0, n, rounded, rows.start, rows.len(), c, block_n, rest);
                }
            }
            if let Some(bias) = part.bias {
                for row in c.chunks_exact_mut(block_n) {
                    row.iter_mut().zip(&bias[n0..n0 + n]).for_each(|(x, b)| *x += b);
                }
            }
        };
        sum(part, tile);
        if swiglu {
            sum(1, second);
        }
        for (i, row) in rows.clone().enumerate() {
            let y = &mut tile[i * block_n..][..n];
            let to = row * n_out + before + n0;
            // SAFETY: tasks own disjoint rows and outputs.
            let store = |y: &[f32]| unsafe { shared.part(to..to + n) }.copy_from_slice(y);
            match &finish {
                Finish::Store => store(y),
                Finish::Activate(activation) => {
                    activate_slice(isa, *activation, y);
                    store(y);
                }
                Finish::AddResidual(residual) => {
                    // SAFETY: tasks own disjoint rows and outputs.
                    let out = unsafe { shared.part(to..to + n) };
                    if let Some(residual) = residual {
                        out.copy_from_slice(&residual[to..to + n]);
                    }
                    out.iter_mut().zip(&*y).for_each(|(o, y)| *o += y);
                }
                Finish::SwiGlu => {
                    swiglu_slice(isa, y, &second[i * block_n..][..n]);
                    store(y);
                }
                Finish::VisionRope { table, first_row, head_dim } => {
                    let turned = (n_out / 3 * 2).saturating_sub(n0).min(n);
                    y[..turned]
                        .chunks_exact_mut(*head_dim)
                        .for_each(|head| table.rotate(first_row + row, head));
                    store(y);
                }
                Finish::RopeWriteKv { table, kv, layer, heads, slots } => {
                    if part < 2 {
                        y.chunks_exact_mut(heads.head_dim).for_each(|head| table.rotate(row, head));
                    }
                    match part {
                        0 => store(y),
                        // SAFETY: tasks own disjoint rows, hence slots, and disjoint heads.
                        _ => unsafe { write_kv(kv, part == 1, *layer, slots[row], n0, heads.head_dim, y) },
                    }
                }
            }
        }
    });
}

/// The rounded inputs that each part reads: its own, or those of a part before it.
fn roundings(parts: &[Part]) -> [usize; MAX_PARTS] {
    std::array::from_fn(|i| {
        let Some(part) = parts.get(i) else { return i };
        parts[..i].iter().position(|p| p.matrix.shares_rounding(&part.matrix)).unwrap_or(i)
    })
}

/// Makes room for the rounded inputs of `m` rows, so that [`linear`] allocates nothing.
pub fn reserve(rounded: &mut [QuantizedRows; MAX_PARTS], parts: &[Part], m: usize) {
    let reads = roundings(parts);
    for (i, part) in parts.iter().enumerate() {
        if let Some((group, order)) = part.matrix.rounding()
            && reads[i] == i
        {
            let k = order.map_or(part.matrix.k(), |o| o.inputs().len());
            rounded[i].reserve(m, k, group);
        }
    }
}

/// # Safety
/// No other thread writes or reads the slot and heads.
unsafe fn write_kv(kv: &KvWriter, key: bool, layer: usize, slot: u32, n0: usize, head_dim: usize, y: &[f32]) {
    for (i, head) in y.chunks_exact(head_dim).enumerate() {
        let index = n0 / head_dim + i;
        // SAFETY: the caller's promise.
        unsafe { if key { kv.key(layer, slot, index, head) } else { kv.value(layer, slot, index, head) } }
    }
}
