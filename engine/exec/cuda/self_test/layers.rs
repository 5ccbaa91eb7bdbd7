//! Whether all layers in one launch give what they give one by one: the same bits.

use qwenvl_graph::DType;
use qwenvl_graph::kernel::KV_PAGE_TOKENS;
use qwenvl_graph::op::{Heads, MRope};

use super::{Numbers, encode, half_of, upload};
use crate::error::Result;
use crate::exec::cuda::gpu::{Block, Gpu};
use crate::kernels::cuda::attention::{PagedAttention, partials_bytes};
use crate::kernels::cuda::decode_layers::{DecodeLayers, DecodeStep};
use crate::kernels::cuda::linear::{
    self, Finish, Kv, Linear, Normalised, Regime, Rope, RopePairs, RowOrder, WeightKind, Workspace,
};
use crate::kernels::cuda::{Half, Kernels};

const STEP: &str = "testing layers in one launch";
const D: usize = 128;
const HEADS: Heads = Heads { n_heads: 6, n_kv_heads: 2, head_dim: D };
const HIDDEN: usize = 512;
const INTERMEDIATE: usize = 1160;
const N_LAYERS: usize = 3;
const EPS: f64 = 1e-6;

/// Zero if the bits are the same, else infinity; none if the device has no such kernel.
pub(super) fn layers_in_one_launch(
    gpu: &Gpu,
    kernels: &Kernels,
    activation: DType,
    kind: WeightKind,
) -> Result<Option<f64>> {
    let half = half_of(activation);
    let rows = kernels.decode_layers_rows(kind, half);
    if rows == 0 {
        return Ok(None);
    }
    let model = Model::new(gpu, kernels, half, kind, rows)?;
    let failed = |e| gpu.kernel_error(STEP, e);
    let one_by_one = State::new(gpu, half, rows)?;
    for step in model.steps(&one_by_one) {
        // SAFETY: the blocks are as large as the shapes say and live until the results are read.
        unsafe {
            if let Some(attention) = &step.attention {
                kernels.paged_attention(&gpu.stream, attention).map_err(failed)?;
            }
            match &step.norm {
                Some(norm) => kernels.linear_of_norm(&gpu.stream, &step.linear, norm),
                None => kernels.linear(&gpu.stream, &step.linear),
            }
            .map_err(failed)?;
        }
    }
    let in_one = State::new(gpu, half, rows)?;
    let list = kernels.decode_steps(&model.steps(&in_one)).map_err(failed)?;
    let (steps, arrived) = (upload(gpu, STEP, &list.bytes)?, upload(gpu, STEP, &[0u32])?);
    let launch = DecodeLayers {
        kind,
        half,
        steps: steps.address(),
        n_steps: list.n_steps,
        blocks: list.blocks,
        arrived: arrived.address(),
    };
    // SAFETY: as above.
    unsafe { kernels.decode_layers(&gpu.stream, &launch) }.map_err(failed)?;
    let (expected, found) = (one_by_one.bits(gpu, rows)?, in_one.bits(gpu, rows)?);
    let are_numbers = expected.0.iter().all(|bits| f32::from_bits(*bits).is_finite());
    Ok(Some(if are_numbers && expected == found { 0.0 } else { f64::INFINITY }))
}

/// Weights of layers, and what does not change while a token runs through them.
struct Model<'a> {
    kernels: &'a Kernels,
    half: Half,
    kind: WeightKind,
    rows: usize,
    weights: Vec<[Block; 4]>,
    norm: Block,
    angles: Block,
    positions: Block,
    slots: Block,
    sequences: Block,
    page_table: Block,
    attention: Block,
    partials: Block,
    arrivals: Block,
}

/// What the layers work on.
struct State {
    x: Block,
    between: Block,
    q: Block,
    attended: Block,
    activated: Block,
    pages: Vec<Block>,
}

const WIDTH: usize = HEADS.n_heads * D;
/// Outputs and inputs of the four linear layers.
const SIZES: [(usize, usize); 4] = [
    (WIDTH + 2 * HEADS.n_kv_heads * D, HIDDEN),
    (HIDDEN, WIDTH),
    (2 * INTERMEDIATE, HIDDEN),
    (HIDDEN, INTERMEDIATE),
];
const PAGE_LEN: usize = 2 * HEADS.n_kv_heads * KV_PAGE_TOKENS * D;
/// Keys before the new token of each row.
const PAST: [u32; 2] = [40, 5];

impl<'a> Model<'a> {
    fn new(gpu: &Gpu, kernels: &'a Kernels, half: Half, kind: WeightKind, rows: usize) -> Result<Model<'a>> {
        let mut numbers = Numbers(17);
        let mut weights = Vec::new();
        for _ in 0..N_LAYERS {
            let mut layer = Vec::new();
            for (n, k) in SIZES {
                layer.push(upload(gpu, STEP, &records(&mut numbers, half, kind, n, k))?);
            }
            weights.push(<[Block; 4]>::try_from(layer).ok().expect("four linear layers"));
        }
        let mut random =
            |n: usize| (0..n).map(|_| (numbers.next() % 512) as f32 / 256.0 - 1.0).collect::<Vec<_>>();
        let (norm, angles) = (random(HIDDEN), random(64 * D));
        let rows_of = |of: &dyn Fn(u32) -> [u32; 4]| (0..rows as u32).flat_map(of).collect::<Vec<u32>>();
        let sm_count = kernels.sm_count() as usize;
        let blank = |bytes: usize| gpu.block(STEP, bytes as u64);
        Ok(Model {
            kernels,
            half,
            kind,
            rows,
            weights,
            norm: upload(gpu, STEP, &norm)?,
            angles: upload(gpu, STEP, &angles)?,
            positions: upload(gpu, STEP, &(0..3 * rows as u32).map(|i| 7 * i % 64).collect::<Vec<u32>>())?,
            // Page i is that of row i.
            slots: upload(gpu, STEP, &(0..rows).map(|i| 64 * i as u32 + PAST[i % 2]).collect::<Vec<u32>>())?,
            sequences: upload(gpu, STEP, &rows_of(&|i| [0, 1, PAST[i as usize % 2], i]))?,
            page_table: upload(gpu, STEP, &(0..rows as u32).collect::<Vec<u32>>())?,
            attention: blank(partials_bytes(rows, HEADS.n_heads, KV_PAGE_TOKENS, 2))?,
            partials: blank(linear::workspace_bytes(sm_count))?,
            arrivals: upload(gpu, STEP, &vec![0u32; linear::arrivals(2 * INTERMEDIATE, sm_count)])?,
        })
    }

    fn steps(&self, state: &State) -> Vec<DecodeStep> {
        let (x, between) = (state.x.address(), state.between.address());
        let layers = self.weights.iter().zip(&state.pages).flat_map(|(weights, pages)| {
            let kv = Kv { pages: pages.address(), page_stride: PAGE_LEN as u64, heads: HEADS };
            let pairs = RopePairs::MRope(MRope { head_dim: D, sections: [16, 24, 24], theta: 1e6 });
            let rope = Rope { angles: self.angles.address(), positions: self.positions.address(), pairs };
            let attention = PagedAttention {
                half: self.half,
                q: state.q.address(),
                out: state.attended.address(),
                kv,
                sequences: self.sequences.address(),
                n_seqs: self.rows,
                page_table: self.page_table.address(),
                max_keys: KV_PAGE_TOKENS,
                max_splits: 2,
                partials: self.attention.address(),
                arrivals: self.arrivals.address(),
            };
            let linear = |i: usize, x, out, order, finish| Linear {
                kind: self.kind,
                half: self.half,
                regime: Regime::SmallM,
                x,
                ldx: SIZES[i].1,
                w: weights[i].address(),
                order,
                bias: None,
                out,
                m: self.rows,
                n: SIZES[i].0,
                k: SIZES[i].1,
                n_runs: linear::runs(SIZES[i].0, SIZES[i].1, self.kernels.sm_count() as usize),
                finish,
                workspace: Workspace { partials: self.partials.address(), arrivals: self.arrivals.address() },
            };
            let norm = Some(Normalised { weight: self.norm.address(), eps: EPS });
            let (q, attended, activated) =
                (state.q.address(), state.attended.address(), state.activated.address());
            let keep = Finish::RopeWriteKv { rope, kv, slots: self.slots.address() };
            let gated = RowOrder::Paired { half: INTERMEDIATE };
            let plain = RowOrder::Plain;
            let qkv = linear(0, x, q, RowOrder::Paired { half: D / 2 }, keep);
            let o = linear(1, attended, between, plain, Finish::AddResidual(x));
            let gate_up = linear(2, between, activated, gated, Finish::SwiGlu);
            let down = linear(3, activated, x, plain, Finish::AddResidual(between));
            [
                DecodeStep { attention: None, norm, linear: qkv },
                DecodeStep { attention: Some(attention), norm: None, linear: o },
                DecodeStep { attention: None, norm, linear: gate_up },
                DecodeStep { attention: None, norm: None, linear: down },
            ]
        });
        layers.collect()
    }
}

impl State {
    fn new(gpu: &Gpu, half: Half, rows: usize) -> Result<State> {
        let mut numbers = Numbers(19);
        let x: Vec<f32> = (0..rows * HIDDEN).map(|_| (numbers.next() % 512) as f32 / 128.0 - 2.0).collect();
        let blank = |bytes: usize| gpu.block(STEP, bytes as u64);
        let page: Vec<f32> =
            (0..rows * PAGE_LEN).map(|_| (numbers.next() % 512) as f32 / 256.0 - 1.0).collect();
        let page = encode(half, &page);
        let pages = (0..N_LAYERS).map(|_| upload(gpu, STEP, &page)).collect::<Result<Vec<Block>>>()?;
        Ok(State {
            x: upload(gpu, STEP, &x)?,
            between: blank(4 * rows * HIDDEN)?,
            q: blank(2 * rows * WIDTH)?,
            attended: blank(2 * rows * WIDTH)?,
            activated: blank(2 * rows * INTERMEDIATE)?,
            pages,
        })
    }

    fn bits(&self, gpu: &Gpu, rows: usize) -> Result<(Vec<u32>, Vec<Vec<u16>>)> {
        let mut x = vec![0u32; rows * HIDDEN];
        gpu.read(STEP, self.x.address(), &mut x)?;
        let mut pages = vec![vec![0u16; rows * PAGE_LEN]; N_LAYERS];
        for (block, page) in self.pages.iter().zip(&mut pages) {
            gpu.read(STEP, block.address(), page)?;
        }
        Ok((x, pages))
    }
}

/// A matrix in records (`kernels/cuda/linear.cuh`): any codes around 8 or 128 with small scales; of 16 bits, numbers below
/// 2⁻⁴.
fn records(numbers: &mut Numbers, half: Half, kind: WeightKind, n: usize, k: usize) -> Vec<u8> {
    let count = n.div_ceil(128) * k.div_ceil(128);
    let mut bytes = Vec::with_capacity(count * kind.record_bytes());
    for _ in 0..count {
        let codes = 128 * 128 * kind.bits() as usize / 8;
        match kind.bits() {
            16 => {
                for _ in 0..codes / 2 {
                    let number = (numbers.next() % 256) as f32 / 2048.0 - 0.0625;
                    let bits = encode(half, &[number])[0];
                    bytes.extend(bits.to_le_bytes());
                }
            }
            bits => {
                bytes.extend((0..codes).map(|_| numbers.next() as u8));
                let scale = if bits == 4 { 0x2000u16 } else { 0x1000 };
                bytes.extend([scale; 128].iter().flat_map(|scale| scale.to_le_bytes()));
                bytes.extend(vec![0x88; if bits == 4 { 64 } else { 0 }]);
            }
        }
    }
    bytes
}
