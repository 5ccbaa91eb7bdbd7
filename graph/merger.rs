//! The merger: four neighbouring patches become one token, beside `PatchMerger` of the reference.

use crate::builder::{Graph, ValueId};
use crate::config::ModelConfig;
use crate::dtype::DType;
use crate::error::Result;
use crate::op::{Activation, Op};
use crate::vit::layer_norm;
use crate::weights::merger_linears;

/// Adds the merger and returns the visual rows `[patches/4, hidden_size]`.
pub(crate) fn build(g: &mut Graph, config: &ModelConfig, x: ValueId, act: DType) -> Result<ValueId> {
    let [mlp0, mlp2] = merger_linears(config);
    let per = config.vision.patches_per_token();
    let y = layer_norm(g, config, "visual.merger.ln_q", x, act)?;
    let y = g.apply("visual.merger.merged", Op::MergeRows { per }, &[y], act)?;
    let y = g.linear(&mlp0, config.dtype, y, act)?;
    let y = g.apply("visual.merger.gelu", Op::Activate(Activation::Gelu), &[y], act)?;
    g.linear(&mlp2, config.dtype, y, act)
}
