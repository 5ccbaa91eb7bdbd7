//! The tensors a checkpoint of a given configuration holds: names, shapes and storage.
//!
//! Names are those of the published files (`visual.*`, `model.layers.*`, `lm_head.weight`).
//! Shapes are `[out, in]` as PyTorch's `Linear` stores them, unless said otherwise.

use crate::config::{ModelConfig, Quantization};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// How the rows of a weight matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// One number per weight.
    Dense(DType),
    /// 4-bit codes; per group of input channels and output an f16 scale and a 4-bit zero point.
    Int4 {
        /// Input channels per group, once loaded: those of the file, or a part of them.
        group: usize,
    },
    /// 8-bit codes; per group of input channels and output an f16 scale and an 8-bit zero point.
    Int8 {
        /// Input channels per group, once loaded: those of the file, or a part of them.
        group: usize,
    },
}

impl WeightFormat {
    /// Bytes of a matrix with `n` outputs and `k` inputs, once loaded.
    pub fn matrix_bytes(self, n: usize, k: usize) -> u64 {
        // Integer formats fill up the last group.
        let (n, k) = (n as u64, k.next_multiple_of(self.group().unwrap_or(1)) as u64);
        match self {
            WeightFormat::Dense(dtype) => n * k * dtype.size_bytes(),
            WeightFormat::Int4 { group } => n * k / 2 + k.div_ceil(group as u64) * (2 * n + n.div_ceil(2)),
            WeightFormat::Int8 { group } => n * k + k.div_ceil(group as u64) * 3 * n,
        }
    }

    /// Input channels per group, where there are groups.
    pub fn group(self) -> Option<usize> {
        match self {
            WeightFormat::Dense(_) => None,
            WeightFormat::Int4 { group } | WeightFormat::Int8 { group } => Some(group),
        }
    }

    /// Short name for tables: `bf16`, `int4 g128`, ...
    pub fn name(self) -> String {
        match self {
            WeightFormat::Dense(dtype) => dtype.name().to_string(),
            WeightFormat::Int4 { group } => format!("int4 g{group}"),
            WeightFormat::Int8 { group } => format!("int8 g{group}"),
        }
    }
}

/// A linear layer: `y = x Wᵀ + b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Name of the module; its tensors are `{name}.weight`, `{name}.bias`, ...
    pub name: String,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    /// Whether the layer adds a bias.
    pub bias: bool,
    /// How the matrix is stored.
    pub format: WeightFormat,
}

/// The type of the elements of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// F32, F16 or BF16; the header of the file decides.
    Float,
    /// Packed integer codes, I32.
    Packed,
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the published files.
    pub name: String,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Type of the elements.
    pub stored: StoredType,
}

/// The linear layers of one decoder layer, in the order q, k, v, o, gate, up, down.
///
/// # Errors
/// [`Error::Config`] if the sizes do not admit the quantisation the file declares.
pub fn decoder_linears(config: &ModelConfig, layer: usize) -> Result<[Linear; 7]> {
    let t = &config.text;
    let (h, kv, f) = (t.hidden_size, t.kv_dim(), t.intermediate_size);
    let make = |name: &str, n: usize, k: usize, bias: bool| -> Result<Linear> {
        let format = quantised_format(config, n, k)?;
        Ok(Linear { name: format!("model.layers.{layer}.{name}"), n, k, bias, format })
    };
    Ok([
        make("self_attn.q_proj", h, h, true)?,
        make("self_attn.k_proj", kv, h, true)?,
        make("self_attn.v_proj", kv, h, true)?,
        make("self_attn.o_proj", h, h, false)?,
        make("mlp.gate_proj", f, h, false)?,
        make("mlp.up_proj", f, h, false)?,
        make("mlp.down_proj", h, f, false)?,
    ])
}

/// The linear layers of one block of the vision tower: qkv, proj, fc1, fc2.
pub fn vision_linears(config: &ModelConfig, block: usize) -> [Linear; 4] {
    let v = &config.vision;
    let (e, f) = (v.embed_dim, v.embed_dim * v.mlp_ratio);
    let make = |name: &str, n: usize, k: usize| Linear {
        name: format!("visual.blocks.{block}.{name}"),
        n,
        k,
        bias: true,
        format: WeightFormat::Dense(config.dtype),
    };
    [make("attn.qkv", 3 * e, e), make("attn.proj", e, e), make("mlp.fc1", f, e), make("mlp.fc2", e, f)]
}

/// The two linear layers of the merger.
pub fn merger_linears(config: &ModelConfig) -> [Linear; 2] {
    let v = &config.vision;
    let wide = v.embed_dim * v.patches_per_token();
    let make = |name: &str, n: usize, k: usize| Linear {
        name: format!("visual.merger.{name}"),
        n,
        k,
        bias: true,
        format: WeightFormat::Dense(config.dtype),
    };
    [make("mlp.0", wide, wide), make("mlp.2", v.hidden_size, wide)]
}

/// Every tensor that a checkpoint of this configuration must hold, in model order.
/// Tied models have no `lm_head.weight`.
///
/// # Errors
/// [`Error::Config`] if the sizes do not admit the quantisation the file declares.
pub fn checkpoint_tensors(config: &ModelConfig) -> Result<Vec<TensorSpec>> {
    let mut out = Vec::new();
    let mut float = |name: String, shape: &[usize]| {
        out.push(TensorSpec { name, shape: shape.to_vec(), stored: StoredType::Float });
    };
    let (t, v) = (&config.text, &config.vision);
    let e = v.embed_dim;
    float(
        "visual.patch_embed.proj.weight".into(),
        &[e, v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size],
    );
    for block in 0..v.depth {
        for norm in ["norm1", "norm2"] {
            float(format!("visual.blocks.{block}.{norm}.weight"), &[e]);
            float(format!("visual.blocks.{block}.{norm}.bias"), &[e]);
        }
        for linear in vision_linears(config, block) {
            float(format!("{}.weight", linear.name), &[linear.n, linear.k]);
            float(format!("{}.bias", linear.name), &[linear.n]);
        }
    }
    float("visual.merger.ln_q.weight".into(), &[e]);
    float("visual.merger.ln_q.bias".into(), &[e]);
    for linear in merger_linears(config) {
        float(format!("{}.weight", linear.name), &[linear.n, linear.k]);
        float(format!("{}.bias", linear.name), &[linear.n]);
    }
    float("model.embed_tokens.weight".into(), &[t.vocab_size, t.hidden_size]);
    for layer in 0..t.num_hidden_layers {
        out.push(norm(format!("model.layers.{layer}.input_layernorm.weight"), t.hidden_size));
        out.push(norm(format!("model.layers.{layer}.post_attention_layernorm.weight"), t.hidden_size));
        for linear in decoder_linears(config, layer)? {
            linear_tensors(&linear, config.quantization, &mut out);
        }
    }
    out.push(norm("model.norm.weight".into(), t.hidden_size));
    if !t.tie_word_embeddings {
        out.push(TensorSpec {
            name: "lm_head.weight".into(),
            shape: vec![t.vocab_size, t.hidden_size],
            stored: StoredType::Float,
        });
    }
    Ok(out)
}

fn norm(name: String, len: usize) -> TensorSpec {
    TensorSpec { name, shape: vec![len], stored: StoredType::Float }
}

fn linear_tensors(linear: &Linear, quantization: Quantization, out: &mut Vec<TensorSpec>) {
    let Linear { name, n, k, .. } = linear;
    let (n, k) = (*n, *k);
    let mut push = |suffix: &str, shape: Vec<usize>, stored| {
        out.push(TensorSpec { name: format!("{name}.{suffix}"), shape, stored });
    };
    match quantization {
        Quantization::None => push("weight", vec![n, k], StoredType::Float),
        Quantization::Awq { .. } => {
            push("qweight", vec![k, n / 8], StoredType::Packed);
            let groups = k / quantization.group(k);
            push("qzeros", vec![groups, n / 8], StoredType::Packed);
            push("scales", vec![groups, n], StoredType::Float);
        }
        Quantization::Gptq { bits, .. } => {
            let per_word = 32 / bits as usize;
            let groups = k.div_ceil(quantization.group(k));
            push("qweight", vec![k / per_word, n], StoredType::Packed);
            push("qzeros", vec![groups, n / per_word], StoredType::Packed);
            push("scales", vec![groups, n], StoredType::Float);
            push("g_idx", vec![k], StoredType::Packed);
        }
    }
    if linear.bias {
        push("bias", vec![n], StoredType::Float);
    }
}

fn quantised_format(config: &ModelConfig, n: usize, k: usize) -> Result<WeightFormat> {
    let fail = |expected: String| Error::Config {
        field: "quantization_config".into(),
        found: format!("{} on a linear layer with {k} inputs and {n} outputs", config.quantization.name()),
        expected,
    };
    match config.quantization {
        Quantization::None => Ok(WeightFormat::Dense(config.dtype)),
        Quantization::Awq { .. } => {
            let group = config.quantization.group(k);
            if !n.is_multiple_of(8) || !k.is_multiple_of(group) {
                return Err(fail(format!(
                    "outputs divisible by 8 and inputs divisible by group_size {group}"
                )));
            }
            Ok(WeightFormat::Int4 { group: loaded_group(group, k) })
        }
        Quantization::Gptq { bits, .. } => {
            let per_word = 32 / bits as usize;
            if !n.is_multiple_of(per_word) || !k.is_multiple_of(per_word) {
                return Err(fail(format!("inputs and outputs divisible by {per_word}")));
            }
            let group = loaded_group(config.quantization.group(k), k);
            Ok(if bits == 4 { WeightFormat::Int4 { group } } else { WeightFormat::Int8 { group } })
        }
    }
}

/// Input channels per group once loaded, for `group` in the file of a layer with `k` inputs. Sums over
/// a group are 32-bit integers and activations are rounded group by group, so large groups are cut
/// into equal parts with the same scales.
fn loaded_group(group: usize, k: usize) -> usize {
    const LARGEST: usize = 256;
    const PART: usize = 128;
    let group = group.min(k).next_multiple_of(8);
    if group <= LARGEST {
        return group;
    }
    (8..=PART).rev().step_by(8).find(|part| group.is_multiple_of(*part)).unwrap_or(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_cut_into_equal_parts_and_the_last_is_filled_up() {
        for (group, k, loaded) in [
            (128, 8960, 128),
            (32, 64, 32),
            (256, 1536, 256),
            (8960, 8960, 128),
            (29568, 29568, 128),
            (320, 640, 80),
            (128, 100, 104),
            (264, 264, 88),
        ] {
            assert_eq!(loaded_group(group, k), loaded, "{group} of {k}");
        }
        let bytes = WeightFormat::Int8 { group: 128 }.matrix_bytes(16, 200);
        assert_eq!(bytes, 16 * 256 + 2 * 16 * 3);
    }
}
