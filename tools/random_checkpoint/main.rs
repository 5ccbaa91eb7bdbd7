//! `random_checkpoint`: see `--help`.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use qwenvl_graph::ModelConfig;
use random_checkpoint::{Format, Options, Size, Tensor};

/// Writes a Qwen2-VL checkpoint with random weights: names, shapes, types, config.json and shards
/// are those of the published model, so that loading, memory and speed can be tested without a
/// download. The answers of such a model are noise.
///
/// Example: random_checkpoint --size 7b --format awq --out /data/random-7b-awq
#[derive(Parser)]
#[command(version, verbatim_doc_comment)]
struct Args {
    /// Which model
    #[arg(long, value_enum)]
    size: Size,
    /// How the decoder's linear layers are stored
    #[arg(long, value_enum, default_value = "bf16")]
    format: Format,
    /// Directory to write; created if missing, files in it are overwritten
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number of decoder layers, instead of the model's
    #[arg(long, value_name = "N")]
    layers: Option<u32>,
    /// Number of vision blocks, instead of the model's
    #[arg(long, value_name = "N")]
    vision_layers: Option<u32>,
    /// Seed of the weights; each tensor depends on it and on its own name only
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Leave holes in the files instead of matrices: the 72B model then takes a few MB of disk. All
    /// matrices read as zero
    #[arg(long)]
    sparse: bool,
    /// Largest size of the tensors in one weight file, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = Options::default().max_shard_bytes,
          value_parser = clap::value_parser!(u64).range(1..))]
    max_shard_bytes: u64,
    /// Write config.json and the other small files, but no weights: enough for `qwenvl plan`
    #[arg(long)]
    config_only: bool,
    /// A tokenizer.json to copy beside the weights
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut config = random_checkpoint::config_json(args.size, args.format);
    if let Some(layers) = args.layers {
        config["num_hidden_layers"] = layers.into();
    }
    if let Some(layers) = args.vision_layers {
        config["vision_config"]["depth"] = layers.into();
    }
    let tensors = random_checkpoint::tensors(&ModelConfig::from_json(&config.to_string())?)?;
    let total: u64 = tensors.iter().map(Tensor::bytes).sum();
    if args.config_only {
        random_checkpoint::write_side_files(&args.out, &config)?;
        println!("wrote the configuration of a model of {total} bytes to {}", args.out.display());
    } else {
        let options = Options { seed: args.seed, sparse: args.sparse, max_shard_bytes: args.max_shard_bytes };
        let bar = ProgressBar::new(total).with_style(ProgressStyle::with_template(
            "{bar:40} {bytes}/{total_bytes}  {binary_bytes_per_sec}  {eta} left",
        )?);
        let start = Instant::now();
        let files = random_checkpoint::write(&args.out, &config, &options, &mut |bytes| bar.inc(bytes))?;
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "wrote {} tensors, {total} bytes, in {} weight file{} to {} in {seconds:.1} s ({:.0} MB/s)",
            tensors.len(),
            files.len(),
            if files.len() == 1 { "" } else { "s" },
            args.out.display(),
            total as f64 / 1e6 / seconds.max(1e-9),
        );
    }
    match args.tokenizer {
        Some(from) => {
            let to = args.out.join("tokenizer.json");
            std::fs::copy(&from, &to)
                .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        }
        None => println!(
            "there is no tokenizer.json: pass --tokenizer FILE, or copy one before running the model"
        ),
    }
    Ok(())
}
