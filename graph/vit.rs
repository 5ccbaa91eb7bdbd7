//! The vision tower, beside `Qwen2VisionTransformerPretrainedModel` of transformers 4.57.6.

use crate::builder::{Graph, ValueId};
use crate::config::ModelConfig;
use crate::dtype::DType;
use crate::error::Result;
use crate::op::{Activation, Op, VisionRope};
use crate::shape::{Rows, Shape};
use crate::weights::{Linear, WeightFormat, vision_linears};

/// Epsilon of every LayerNorm in the tower; hard-coded in the reference.
pub(crate) const LAYER_NORM_EPS: f64 = 1e-6;

/// Adds the tower and returns its output `[patches, embed_dim]`, the residual stream after the
/// last block.
pub(crate) fn build(g: &mut Graph, config: &ModelConfig, activation: DType) -> Result<ValueId> {
    let v = &config.vision;
    let patches = Shape { rows: Rows::Patches, cols: v.patch_dim() };
    let patches = g.source("patches", Op::Patchify, patches, activation);
    let embed = Linear {
        name: "visual.patch_embed.proj".into(),
        n: v.embed_dim,
        k: v.patch_dim(),
        bias: false,
        format: WeightFormat::Dense(config.dtype),
    };
    let mut x = g.linear(&embed, config.dtype, patches, DType::F32)?;
    for block in 0..v.depth {
        x = build_block(g, config, block, x, activation)?;
    }
    Ok(x)
}

fn build_block(g: &mut Graph, config: &ModelConfig, block: usize, x: ValueId, act: DType) -> Result<ValueId> {
    let v = &config.vision;
    let (n_heads, head_dim) = (v.num_heads, v.head_dim());
    let name = format!("visual.blocks.{block}");
    let [qkv, proj, fc1, fc2] = vision_linears(config, block);

    let y = layer_norm(g, config, &format!("{name}.norm1"), x, act)?;
    let y = g.linear(&qkv, config.dtype, y, act)?;
    let y =
        g.apply(&format!("{name}.rope"), Op::RotateVision(VisionRope { n_heads, head_dim }), &[y], act)?;
    let y = g.apply(&format!("{name}.attention"), Op::VisionAttention { n_heads, head_dim }, &[y], act)?;
    let y = g.linear(&proj, config.dtype, y, act)?;
    let x = g.apply(&format!("{name}.x1"), Op::Add, &[y, x], DType::F32)?;

    let y = layer_norm(g, config, &format!("{name}.norm2"), x, act)?;
    let y = g.linear(&fc1, config.dtype, y, act)?;
    let y = g.apply(&format!("{name}.gelu"), Op::Activate(Activation::QuickGelu), &[y], act)?;
    let y = g.linear(&fc2, config.dtype, y, act)?;
    g.apply(&format!("{name}.x2"), Op::Add, &[y, x], DType::F32)
}

/// A LayerNorm whose weight and bias are `{name}.weight` and `{name}.bias`.
pub(crate) fn layer_norm(
    g: &mut Graph,
    config: &ModelConfig,
    name: &str,
    x: ValueId,
    act: DType,
) -> Result<ValueId> {
    let len = g.value(x).shape.cols;
    let weight = g.vector(&format!("{name}.weight"), len, config.dtype);
    let bias = g.vector(&format!("{name}.bias"), len, config.dtype);
    g.apply(name, Op::LayerNorm { weight, bias, eps: LAYER_NORM_EPS }, &[x], act)
}
