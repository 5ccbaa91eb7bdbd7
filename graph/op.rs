//! The closed set of operations. Every executor matches on [`Op`] exhaustively.
//!
//! `x`, `y` are row-major matrices; a linear layer has `m` rows, `n` outputs and `k` inputs.

use crate::builder::WeightId;

/// A pointwise function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `z · sigmoid(1.702 z)`, in the blocks of the vision tower.
    QuickGelu,
    /// `z · Φ(z)` with the exact error function, in the merger.
    Gelu,
}

/// Attention heads of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heads {
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; query head `i` reads key/value head `i / (n_heads / n_kv_heads)`.
    pub n_kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

/// Multimodal rotary embedding: channel pair `j` of a head turns by
/// `position[axis(j)] · theta^(-2j/head_dim)`; pairs are `(j, j + head_dim/2)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MRope {
    /// Channels of a head.
    pub head_dim: usize,
    /// Channel pairs that follow the temporal, height and width position, in this order.
    pub sections: [usize; 3],
    /// Base of the frequencies.
    pub theta: f64,
}

/// Rotary embedding of the vision tower: the first quarter of the channels turns by the row, the
/// second by the column of the patch; pairs are `(i, i + head_dim/2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VisionRope {
    /// Heads; queries and keys are rotated, values are not.
    pub n_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

/// A weight matrix with its bias. Several stacked along `n` form one linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinearPart {
    /// `[n, k]`.
    pub weight: WeightId,
    /// `[n]`.
    pub bias: Option<WeightId>,
    /// Outputs of this part.
    pub n: usize,
}

/// What a linear layer does with its result before it is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Epilogue {
    /// Nothing.
    Store,
    /// A pointwise function.
    Activate(Activation),
    /// Adds the second input, the residual stream; the output takes its place.
    AddResidual,
    /// Two parts, gate and up: stores `silu(gate) · up`.
    SwiGlu,
    /// Rotates the query and key thirds of a vision qkv projection.
    VisionRope(VisionRope),
    /// Three parts, q, k and v: rotates q and k, stores q, writes k and v to the layer's KV pages.
    RopeWriteKv {
        /// Which layer's cache.
        layer: usize,
        /// Its heads.
        heads: Heads,
        /// Its rotation.
        rope: MRope,
    },
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Normalised patches `[patches, patch_dim]` from the 8-bit frames of the call, in merged order:
    /// `(t, h/2, w/2, 2, 2)`; columns `(channel, frame of the pair, y, x)`.
    Patchify,
    /// `y = x Wᵀ + b`, then the epilogue. If `k` is a multiple of the input's columns, that many
    /// consecutive rows are read as one.
    Linear {
        /// Matrices stacked along the outputs.
        parts: Vec<LinearPart>,
        /// Inputs.
        k: usize,
        /// What follows.
        epilogue: Epilogue,
    },
    /// `(x - mean) / sqrt(var + eps) · weight + bias` over the columns.
    LayerNorm {
        /// `[cols]`.
        weight: WeightId,
        /// `[cols]`.
        bias: WeightId,
        /// Added to the variance.
        eps: f64,
    },
    /// `x / sqrt(mean(x²) + eps) · weight` over the columns.
    RmsNorm {
        /// `[cols]`.
        weight: WeightId,
        /// Added to the mean square.
        eps: f64,
    },
    /// A pointwise function.
    Activate(Activation),
    /// `silu(gate) · up`, inputs in this order.
    SwiGlu,
    /// `x + residual`, inputs in this order.
    Add,
    /// Rotates the query and key thirds of `[patches, 3·n_heads·head_dim]`.
    RotateVision(VisionRope),
    /// Rotates every head of `[tokens, heads·head_dim]`.
    Rotate(MRope),
    /// Writes keys and values (inputs in this order) of the call's tokens to the layer's pages.
    WriteKv {
        /// Which layer's cache.
        layer: usize,
        /// Its heads.
        heads: Heads,
    },
    /// Bidirectional attention within each temporal slice; input `[patches, 3·n_heads·head_dim]`
    /// holds q, k and v side by side, each head-major.
    VisionAttention {
        /// Heads.
        n_heads: usize,
        /// Channels of a head.
        head_dim: usize,
    },
    /// Causal attention of `[tokens, n_heads·head_dim]` queries over the sequence's KV pages.
    PagedAttention {
        /// Which layer's cache.
        layer: usize,
        /// Its heads.
        heads: Heads,
    },
    /// Reads groups of consecutive rows as one row: `[patches, c]` to `[patches/per, per·c]`.
    MergeRows {
        /// Rows per group.
        per: usize,
    },
    /// Rows of the embedding table by token id; placeholder tokens take the next visual row instead.
    Embed {
        /// `[vocab, hidden]`.
        table: WeightId,
    },
    /// The rows whose logits are wanted.
    SelectRows,
}

impl Op {
    /// The name used in tables and messages.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Patchify => "patchify",
            Op::Linear { epilogue, .. } => match epilogue {
                Epilogue::Store => "linear",
                Epilogue::Activate(Activation::QuickGelu) => "linear+quick_gelu",
                Epilogue::Activate(Activation::Gelu) => "linear+gelu",
                Epilogue::AddResidual => "linear+residual",
                Epilogue::SwiGlu => "linear+swiglu",
                Epilogue::VisionRope(_) => "linear+rope",
                Epilogue::RopeWriteKv { .. } => "linear+mrope+kv",
            },
            Op::LayerNorm { .. } => "layer_norm",
            Op::RmsNorm { .. } => "rms_norm",
            Op::Activate(Activation::QuickGelu) => "quick_gelu",
            Op::Activate(Activation::Gelu) => "gelu",
            Op::SwiGlu => "swiglu",
            Op::Add => "add",
            Op::RotateVision(_) => "rope",
            Op::Rotate(_) => "mrope",
            Op::WriteKv { .. } => "kv_write",
            Op::VisionAttention { .. } => "vision_attention",
            Op::PagedAttention { .. } => "paged_attention",
            Op::MergeRows { .. } => "merge_rows",
            Op::Embed { .. } => "embed",
            Op::SelectRows => "select_rows",
        }
    }
}
