//! The language model, beside `Qwen2VLTextModel` of transformers 4.57.6.

use crate::builder::{Graph, ValueId};
use crate::config::ModelConfig;
use crate::dtype::DType;
use crate::error::Result;
use crate::op::{Heads, MRope, Op};
use crate::shape::{Rows, Shape};
use crate::weights::{Linear, WeightFormat, decoder_linears};

/// Adds the decoder and returns the logits `[logit_rows, vocab_size]`.
pub(crate) fn build(g: &mut Graph, config: &ModelConfig, act: DType) -> Result<ValueId> {
    let t = &config.text;
    let dense = WeightFormat::Dense(config.dtype);
    let table = g.matrix("model.embed_tokens", t.vocab_size, t.hidden_size, dense);
    let tokens = Shape { rows: Rows::Tokens, cols: t.hidden_size };
    let mut x = g.source("embeddings", Op::Embed { table }, tokens, DType::F32);
    for layer in 0..t.num_hidden_layers {
        x = build_layer(g, config, layer, x, act)?;
    }
    let x = g.apply("last_rows", Op::SelectRows, &[x], DType::F32)?;
    let y = rms_norm(g, config, "model.norm.weight", x, act)?;
    let name = if t.tie_word_embeddings { "model.embed_tokens" } else { "lm_head" };
    let head = Linear { name: name.into(), n: t.vocab_size, k: t.hidden_size, bias: false, format: dense };
    g.linear(&head, config.dtype, y, DType::F32)
}

fn build_layer(g: &mut Graph, config: &ModelConfig, layer: usize, x: ValueId, act: DType) -> Result<ValueId> {
    let t = &config.text;
    let heads =
        Heads { n_heads: t.num_attention_heads, n_kv_heads: t.num_key_value_heads, head_dim: t.head_dim() };
    let rope = MRope { head_dim: t.head_dim(), sections: t.mrope_section, theta: t.rope_theta };
    let name = format!("model.layers.{layer}");
    let [q, k, v, o, gate, up, down] = decoder_linears(config, layer)?;

    let y = rms_norm(g, config, &format!("{name}.input_layernorm.weight"), x, act)?;
    let (q, k, v) = (
        g.linear(&q, config.dtype, y, act)?,
        g.linear(&k, config.dtype, y, act)?,
        g.linear(&v, config.dtype, y, act)?,
    );
    let q = g.apply(&format!("{name}.q_rope"), Op::Rotate(rope), &[q], act)?;
    let k = g.apply(&format!("{name}.k_rope"), Op::Rotate(rope), &[k], act)?;
    g.effect(Op::WriteKv { layer, heads }, &[k, v])?;
    let y = g.apply(&format!("{name}.attention"), Op::PagedAttention { layer, heads }, &[q], act)?;
    let y = g.linear(&o, config.dtype, y, act)?;
    let x = g.apply(&format!("{name}.x1"), Op::Add, &[y, x], DType::F32)?;

    let y = rms_norm(g, config, &format!("{name}.post_attention_layernorm.weight"), x, act)?;
    let gate = g.linear(&gate, config.dtype, y, act)?;
    let up = g.linear(&up, config.dtype, y, act)?;
    let y = g.apply(&format!("{name}.swiglu"), Op::SwiGlu, &[gate, up], act)?;
    let y = g.linear(&down, config.dtype, y, act)?;
    g.apply(&format!("{name}.x2"), Op::Add, &[y, x], DType::F32)
}

fn rms_norm(g: &mut Graph, config: &ModelConfig, name: &str, x: ValueId, act: DType) -> Result<ValueId> {
    let weight = g.vector(name, g.value(x).shape.cols, config.dtype);
    g.apply(name, Op::RmsNorm { weight, eps: config.text.rms_norm_eps }, &[x], act)
}
