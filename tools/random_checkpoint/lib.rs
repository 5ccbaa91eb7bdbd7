//! Qwen2-VL checkpoints with random weights: the names, shapes, types, configuration and shards of
//! the published ones, in every size and format, without a download.
//!
//! Names and shapes come from [`qwenvl_graph::weights::checkpoint_tensors`]. The weights are such
//! that activations stay finite and of order one: see [`values`].
#![forbid(unsafe_code)]

mod json;
mod shards;
pub mod values;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use qwenvl_graph::ModelConfig;
use qwenvl_graph::weights::checkpoint_tensors;
use serde_json::{Value, json};

pub use json::{config_json, side_files};
pub use shards::{Shard, Tensor, plan_shards};

/// Which model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Size {
    /// Qwen2-VL-2B.
    #[value(name = "2b")]
    B2,
    /// Qwen2-VL-7B.
    #[value(name = "7b")]
    B7,
    /// Qwen2-VL-72B.
    #[value(name = "72b")]
    B72,
    /// The shapes of the model embedded in the engine.
    Tiny,
}

/// How the weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Not quantised.
    Bf16,
    /// AutoAWQ, 4 bit.
    Awq,
    /// AutoGPTQ, 4 bit.
    GptqInt4,
    /// AutoGPTQ, 8 bit.
    GptqInt8,
}

/// How to write a checkpoint.
#[derive(Clone, Debug)]
pub struct Options {
    /// Every tensor depends on this and its name, and on nothing else.
    pub seed: u64,
    /// Leaves holes in the files instead of matrices, so that they take hardly any disk. All
    /// matrices are then zero.
    pub sparse: bool,
    /// Largest size of one weight file's tensors; a larger checkpoint is sharded.
    pub max_shard_bytes: u64,
}

impl Default for Options {
    /// Seed 0, all data, shards of at most 4 GB as on the hub.
    fn default() -> Self {
        Options { seed: 0, sparse: false, max_shard_bytes: 4_000_000_000 }
    }
}

/// Writes `config.json`, the weights and the small files beside them into a directory, which is
/// created. A `tokenizer.json` is not among them. `progress` is called with the bytes written
/// since the last call. Returns the names of the weight files.
///
/// Holds a few MiB in memory, whatever the size of the model.
///
/// # Errors
/// If `config` is not that of a Qwen2-VL model, or a file cannot be written.
pub fn write(
    dir: &Path,
    config: &Value,
    options: &Options,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<String>> {
    ensure!(options.max_shard_bytes > 0, "the largest size of a shard must be positive");
    let model = ModelConfig::from_json(&config.to_string())?;
    let shards = plan_shards(tensors(&model)?, options.max_shard_bytes);
    write_side_files(dir, config)?;
    let mut weight_map = serde_json::Map::new();
    let mut names = Vec::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_string(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        let path = dir.join(&name);
        shard
            .write(&path, &model, options, progress)
            .with_context(|| format!("cannot write {}", path.display()))?;
        weight_map.extend(shard.tensors.iter().map(|t| (t.spec.name.clone(), json!(name))));
        names.push(name);
    }
    let index_path = dir.join("model.safetensors.index.json");
    if shards.len() == 1 {
        // One left by an earlier run would take precedence over the single file.
        if index_path.exists() {
            std::fs::remove_file(&index_path)
                .with_context(|| format!("cannot remove {}", index_path.display()))?;
        }
    } else {
        let total_size: u64 = shards.iter().map(Shard::data_bytes).sum();
        let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
        write_json(&index_path, &index)?;
    }
    Ok(names)
}

/// Writes only `config.json` and the small files beside the weights: what a plan needs.
///
/// # Errors
/// If a file cannot be written.
pub fn write_side_files(dir: &Path, config: &Value) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    write_json(&dir.join("config.json"), config)?;
    for (name, value) in side_files(config) {
        write_json(&dir.join(name), &value)?;
    }
    Ok(())
}

/// The tensors of a checkpoint with the types in which they are stored, in model order. Floats have
/// the type `config.json` declares, scales of quantised layers are F16.
///
/// # Errors
/// If the sizes do not admit the quantisation.
pub fn tensors(config: &ModelConfig) -> Result<Vec<Tensor>> {
    Ok(checkpoint_tensors(config)?.into_iter().map(|spec| Tensor::new(spec, config.dtype)).collect())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
