//! One step of a plan: its op, its launch.

use std::ops::Range;

use qwenvl_graph::op::{Heads, MRope, VisionRope};
use qwenvl_graph::{DType, Epilogue, Node, Op, Plan, Program, Rows, ValueId, cuda};

use super::Addresses;
use super::bind::Weights;
use super::gpu::Gpu;
use super::layers::Layers;
use crate::error::Result;
use crate::exec::Phase;
use crate::kernels::cuda::attention::{FlashAttention, Keys, PagedAttention};
use crate::kernels::cuda::linear::{Finish, Kv, Linear, Normalised, Regime, Rope, RopePairs, Workspace};
use crate::kernels::cuda::norm::{Embed, MAX_RMS_COLS, Norm, NormKind, Patchify};
use crate::kernels::cuda::pointwise::{Pointwise, PointwiseOp};
use crate::kernels::cuda::{Half, Kernels};

/// Rows of the running call and where its inputs lie on the device.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Call {
    /// Patches, or tokens.
    pub(super) rows: usize,
    pub(super) logit_rows: usize,
    /// Of a decoder call.
    pub(super) phase: Option<Phase>,
    /// Where the first visual row goes.
    pub(super) first_visual_row: usize,
    /// `[rows][2]` or `[rows][3]`.
    pub(super) positions: u64,
    pub(super) tokens: u64,
    pub(super) visual_index: u64,
    pub(super) slots: u64,
    pub(super) sequences: u64,
    pub(super) n_sequences: usize,
    pub(super) tiles: u64,
    pub(super) n_tiles: usize,
    pub(super) tile_rows: usize,
    pub(super) page_table: u64,
    pub(super) logit_index: u64,
    /// Slices with their frames, of a vision call.
    pub(super) slices: u64,
    pub(super) n_slices: usize,
}

/// What all steps share.
pub(super) struct Steps<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) kernels: &'a Kernels,
    pub(super) plan: &'a Plan,
    pub(super) half: Half,
    pub(super) addresses: &'a Addresses,
    pub(super) multiprocessors: usize,
    /// Whether norms leave an output also where the linear layer after them has them as its prologue.
    pub(super) shows_norms: bool,
    /// Whether to wait for each step, so that an error is its own.
    pub(super) waits: bool,
    /// Steps that run in one launch.
    pub(super) layers: Option<&'a Layers>,
}

/// A round of a segment: the patches, or all tokens.
pub(super) struct Round<'a> {
    pub(super) program: &'a Program,
    pub(super) rows: Range<usize>,
    pub(super) call: &'a Call,
}

impl Steps<'_> {
    /// Launches every step of `program`, tiled segments tile by tile, and calls `after` after each.
    pub(super) fn run(
        &self,
        program: &Program,
        weights: &Weights,
        call: &Call,
        after: &mut dyn FnMut(&Round, usize) -> Result<()>,
    ) -> Result<()> {
        for segment in &program.segments {
            let tile = segment.tile_rows.unwrap_or(call.rows).max(1);
            for first in (0..call.rows).step_by(tile) {
                let round = Round { program, rows: first..(first + tile).min(call.rows), call };
                for at in segment.steps.clone() {
                    match self.layers {
                        Some(layers) if layers.steps.contains(&at) => {
                            if at == layers.steps.start {
                                self.launch_layers(program, layers)?;
                            }
                        }
                        _ => self.step(&round, at, weights)?,
                    }
                    self.gpu.launched(program.name, Some(at));
                    if self.waits {
                        self.gpu.wait(&self.describe(program, at))?;
                    }
                    after(&round, at)?;
                }
            }
        }
        Ok(())
    }

    fn step(&self, round: &Round, at: usize, weights: &Weights) -> Result<()> {
        let Round { program, rows, call } = round;
        let node = &program.graph.nodes[at];
        let (stream, kernels, half) = (&self.gpu.stream, self.kernels, self.half);
        let input = |i: usize| self.locate(round, node.inputs[i]);
        let out = node.output.map_or(0, |v| self.locate(round, v));
        let (out_rows, cols) = match node.output {
            Some(v) => {
                let shape = program.graph.value(v).shape;
                (self.rows(round, shape.rows).len(), shape.cols)
            }
            None => (rows.len(), program.graph.value(node.inputs[0]).shape.cols),
        };
        if out_rows == 0 {
            return Ok(());
        }
        let pointwise = |op: PointwiseOp| Pointwise { op, half, x: input(0), out, rows: out_rows, cols };
        // SAFETY (all launches): addresses and extents are those of the plan, which keeps live values apart
        // and within their blocks; what a step reads, a step before it on the same stream has written.
        #[allow(clippy::undocumented_unsafe_blocks)]
        let launched = unsafe {
            match &node.op {
                Op::Patchify => {
                    let v = &self.plan.config.vision;
                    let patchify = Patchify {
                        slices: call.slices,
                        n_slices: call.n_slices,
                        table: self.addresses.of(|w| &w.normalize),
                        half,
                        out,
                        first_row: rows.start,
                        rows: rows.len(),
                        patch: v.patch_size,
                        merge: v.spatial_merge_size,
                    };
                    kernels.patchify(stream, &patchify)
                }
                Op::Embed { .. } => {
                    let (table, stored) = weights.table();
                    let embed = Embed {
                        table,
                        stored,
                        vocab: self.plan.config.text.vocab_size,
                        tokens: call.tokens,
                        visual: self.addresses.visual,
                        visual_index: call.visual_index,
                        half,
                        out,
                        rows: out_rows,
                        cols,
                    };
                    kernels.embed(stream, &embed)
                }
                Op::Linear { .. } => {
                    let (linear, norm) = self.linear(round, at, weights)?;
                    match norm {
                        Some(norm) => kernels.linear_of_norm(stream, &linear, &norm),
                        None => kernels.linear(stream, &linear),
                    }
                }
                Op::LayerNorm { weight, bias, eps } => {
                    let kind = NormKind::Layer(weights.vector(*bias));
                    let weight = weights.vector(*weight);
                    let norm = Norm {
                        kind,
                        half,
                        x: input(0),
                        row_index: None,
                        weight,
                        out,
                        rows: out_rows,
                        cols,
                        eps: *eps,
                    };
                    kernels.norm(stream, &norm)
                }
                Op::RmsNorm { .. } if !self.shows_norms && self.is_prologue(round, at, weights) => Ok(()),
                Op::RmsNorm { weight, eps } => {
                    let (kind, weight) = (NormKind::Rms, weights.vector(*weight));
                    let norm = Norm {
                        kind,
                        half,
                        x: input(0),
                        row_index: None,
                        weight,
                        out,
                        rows: out_rows,
                        cols,
                        eps: *eps,
                    };
                    kernels.norm(stream, &norm)
                }
                Op::VisionAttention { n_heads, .. } => {
                    let attention = FlashAttention {
                        half,
                        keys: Keys::Vision { qkv: input(0), n_heads: *n_heads },
                        tiles: call.tiles,
                        n_tiles: call.n_tiles,
                        tile_rows: call.tile_rows,
                        out,
                    };
                    kernels.flash_attention(stream, &attention)
                }
                Op::PagedAttention { layer, heads } if call.phase == Some(Phase::Decode) => {
                    kernels.paged_attention(stream, &self.paged_attention(round, at, *layer, *heads))
                }
                Op::PagedAttention { layer, heads } => {
                    let kv = self.kv(*layer, *heads);
                    let attention = FlashAttention {
                        half,
                        keys: Keys::Paged { q: input(0), kv, page_table: call.page_table },
                        tiles: call.tiles,
                        n_tiles: call.n_tiles,
                        tile_rows: call.tile_rows,
                        out,
                    };
                    kernels.flash_attention(stream, &attention)
                }
                Op::SelectRows => {
                    kernels.pointwise(stream, &pointwise(PointwiseOp::Gather { index: call.logit_index }))
                }
                // What fusion removes: a plan without it runs too.
                Op::Activate(activation) => {
                    kernels.pointwise(stream, &pointwise(PointwiseOp::Activate(*activation)))
                }
                Op::SwiGlu => kernels.pointwise(stream, &pointwise(PointwiseOp::SwiGlu { up: input(1) })),
                Op::Add => kernels.pointwise(stream, &pointwise(PointwiseOp::Add { residual: input(1) })),
                Op::RotateVision(rope) => {
                    let op = PointwiseOp::Rotate {
                        rope: self.vision_rope(round, *rope),
                        n_rotated: 2 * rope.n_heads * rope.head_dim,
                    };
                    kernels.pointwise(stream, &pointwise(op))
                }
                Op::Rotate(rope) => {
                    let op = PointwiseOp::Rotate { rope: self.mrope(call, *rope), n_rotated: cols };
                    kernels.pointwise(stream, &pointwise(op))
                }
                Op::WriteKv { layer, heads } => {
                    let kv = self.kv(*layer, *heads);
                    let op = PointwiseOp::WriteKv { values: input(1), kv, slots: call.slots };
                    kernels.pointwise(stream, &pointwise(op))
                }
                // Rows of a group already lie side by side.
                Op::MergeRows { .. } => {
                    let bytes = out_rows * cols * 2;
                    return self.gpu.copy(&self.describe(program, at), out, input(0), bytes);
                }
            }
        };
        launched.map_err(|error| self.gpu.kernel_error(&self.describe(program, at), error))
    }

    /// The linear layer `at`, and the norm before it if that is its prologue. Inputs that it takes in an order of its own
    /// are put in it here.
    pub(super) fn linear(
        &self,
        round: &Round,
        at: usize,
        weights: &Weights,
    ) -> Result<(Linear, Option<Normalised>)> {
        let Round { program, call, .. } = round;
        let node = &program.graph.nodes[at];
        let Op::Linear { parts, k, epilogue } = &node.op else { unreachable!("a linear layer") };
        let input = |i: usize| self.locate(round, node.inputs[i]);
        let rows = match node.output {
            Some(v) => self.rows(round, program.graph.value(v).shape.rows).len(),
            None => round.rows.len(),
        };
        let w = weights.matrix(parts);
        let stores_f32 = node.output.is_some_and(|v| program.graph.value(v).dtype == DType::F32);
        let finish = match epilogue {
            Epilogue::Store if stores_f32 => Finish::StoreF32,
            Epilogue::Store => Finish::Store,
            Epilogue::Activate(activation) => Finish::Activate(*activation),
            Epilogue::AddResidual => Finish::AddResidual(input(1)),
            Epilogue::SwiGlu => Finish::SwiGlu,
            Epilogue::VisionRope(rope) => Finish::VisionRope(self.vision_rope(round, *rope)),
            Epilogue::RopeWriteKv { layer, heads, rope } => Finish::RopeWriteKv {
                rope: self.mrope(call, *rope),
                kv: self.kv(*layer, *heads),
                slots: call.slots,
            },
        };
        // Prompts and answers differ in their kernel, batches do not. The head has few rows in both.
        let is_head = node.output == program.graph.result && call.phase.is_some();
        let regime = match call.phase {
            Some(Phase::Decode) => Regime::SmallM,
            _ if is_head => Regime::SmallM,
            _ => Regime::Prefill,
        };
        let norm = match at.checked_sub(1).map(|before| &program.graph.nodes[before]) {
            Some(Node { op: Op::RmsNorm { weight, eps }, inputs, .. })
                if self.is_prologue(round, at - 1, weights) =>
            {
                Some((Normalised { weight: weights.vector(*weight), eps: *eps }, inputs[0]))
            }
            _ => None,
        };
        let x = match (&norm, w.inputs) {
            (Some((_, x)), _) => self.locate(round, *x),
            (None, None) => input(0),
            (None, Some(index)) => {
                let out = self.addresses.of(|w| &w.sorted);
                let op = PointwiseOp::Columns { index, ldx: *k };
                let sorted = Pointwise { op, half: self.half, x: input(0), out, rows, cols: w.k };
                // SAFETY: as in `step`.
                let launched = unsafe { self.kernels.pointwise(&self.gpu.stream, &sorted) };
                launched.map_err(|e| self.gpu.kernel_error(&self.describe(program, at), e))?;
                out
            }
        };
        let linear = Linear {
            kind: w.kind,
            half: self.half,
            regime,
            x,
            ldx: w.k,
            w: w.records,
            order: w.order,
            bias: w.bias,
            out: node.output.map_or(0, |v| self.locate(round, v)),
            m: rows,
            n: w.n,
            k: w.k,
            n_runs: cuda::n_runs(w.n, w.k, self.multiprocessors),
            finish,
            workspace: Workspace {
                partials: self.addresses.of(|w| &w.partials),
                arrivals: self.addresses.of(|w| &w.arrivals),
            },
        };
        Ok((linear, norm.map(|(norm, _)| norm)))
    }

    /// Decode attention of step `at`.
    pub(super) fn paged_attention(
        &self,
        round: &Round,
        at: usize,
        layer: usize,
        heads: Heads,
    ) -> PagedAttention {
        let Round { program, call, .. } = round;
        let node = &program.graph.nodes[at];
        PagedAttention {
            half: self.half,
            q: self.locate(round, node.inputs[0]),
            out: node.output.map_or(0, |v| self.locate(round, v)),
            kv: self.kv(layer, heads),
            sequences: call.sequences,
            n_seqs: call.n_sequences,
            page_table: call.page_table,
            max_keys: self.plan.options.context_tokens,
            max_splits: cuda::decode_splits(heads.n_kv_heads, self.multiprocessors),
            partials: self.addresses.of(|w| &w.attention),
            arrivals: self.addresses.of(|w| &w.arrivals),
        }
    }

    /// Whether the norm `at` is computed by the linear layer after it: the same bits, a launch less. So it is when
    /// few rows are decoded.
    pub(super) fn is_prologue(&self, round: &Round, at: usize, weights: &Weights) -> bool {
        let Some(Op::Linear { parts, k, .. }) = round.program.graph.nodes.get(at + 1).map(|n| &n.op) else {
            return false;
        };
        round.call.phase == Some(Phase::Decode)
            && weights.matrix(parts).inputs.is_none()
            && round.call.rows <= self.kernels.norm_rows(weights.matrix(parts).kind, self.half)
            && *k <= MAX_RMS_COLS
            && cuda::is_prologue(&round.program.graph, at)
    }

    /// Waits for step `at` and reads what it wrote in this round, if it has an output.
    pub(super) fn read_output(&self, round: &Round, at: usize) -> Result<Option<Vec<f32>>> {
        let Some(output) = round.program.graph.nodes[at].output else { return Ok(None) };
        let value = round.program.graph.value(output);
        let n = self.rows(round, value.shape.rows).len() * value.shape.cols;
        let (step, from) = (self.describe(round.program, at), self.locate(round, output));
        if value.dtype == DType::F32 {
            let mut values = vec![0f32; n];
            self.gpu.read(&step, from, &mut values)?;
            return Ok(Some(values));
        }
        let mut bits = vec![0u16; n];
        self.gpu.read(&step, from, &mut bits)?;
        let number = |bits: u16| match self.half {
            Half::BF16 => half::bf16::from_bits(bits).to_f32(),
            Half::F16 => half::f16::from_bits(bits).to_f32(),
        };
        Ok(Some(bits.into_iter().map(number).collect()))
    }

    pub(super) fn describe(&self, program: &Program, at: usize) -> String {
        let node = &program.graph.nodes[at];
        let name = node.output.map_or("", |v| program.graph.value(v).name.as_str());
        format!("{} step {at}, {} {name}", program.name, node.op.name())
    }

    /// Rows of a value in this round.
    fn rows(&self, round: &Round, rows: Rows) -> Range<usize> {
        match rows {
            Rows::Patches => round.rows.clone(),
            Rows::MergedPatches(per) => round.rows.start / per..round.rows.end / per,
            Rows::Tokens => 0..round.call.rows,
            Rows::LogitRows => 0..round.call.logit_rows,
        }
    }

    /// Address of a value's rows in this round; attention, the one op that reads other rows too, is never in
    /// rounds with others.
    fn locate(&self, round: &Round, id: ValueId) -> u64 {
        let value = round.program.graph.value(id);
        let row_bytes = value.shape.cols as u64 * value.dtype.size_bytes();
        let first = self.rows(round, value.shape.rows).start as u64;
        match round.program.placements[id.0] {
            Some(place) => {
                let skipped = if place.tiled { 0 } else { first * row_bytes };
                self.addresses.arena + place.offset_bytes + skipped
            }
            // The visual rows: outside the arena.
            None => self.addresses.visual + (round.call.first_visual_row as u64 + first) * row_bytes,
        }
    }

    fn mrope(&self, call: &Call, rope: MRope) -> Rope {
        Rope {
            angles: self.addresses.of(|w| &w.mrope),
            positions: call.positions,
            pairs: RopePairs::MRope(rope),
        }
    }

    fn vision_rope(&self, round: &Round, rope: VisionRope) -> Rope {
        Rope {
            angles: self.addresses.of(|w| &w.vision_rope),
            positions: round.call.positions + 8 * round.rows.start as u64,
            pairs: RopePairs::Vision(rope),
        }
    }

    fn kv(&self, layer: usize, heads: Heads) -> Kv {
        let page = 2 * heads.n_kv_heads * qwenvl_graph::kernel::KV_PAGE_TOKENS * heads.head_dim;
        let layer_bytes = (self.plan.kv_pages() * page) as u64 * self.plan.kv_dtype.size_bytes();
        Kv { pages: self.addresses.kv + layer as u64 * layer_bytes, page_stride: page as u64, heads }
    }
}
