//! Opening and checking checkpoints: the formats and layouts that exist, and everything that can be
//! wrong with a download.

mod damage;
mod files;
mod formats;
mod fuzz;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use proptest::prelude::*;
use qwenvl::checkpoint::{AwqLinear, Checkpoint, check_finite, to_f32_vec};
use qwenvl::graph::config::Quantization;
use qwenvl::graph::weights::{checkpoint_tensors, decoder_linears};
use qwenvl::graph::{DType, ModelConfig};
use qwenvl::{Error, Result};
use random_checkpoint::{Format, Options, Size, config_json};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A checkpoint on disk that tests bend out of shape.
struct Files {
    dir: TempDir,
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

impl Files {
    /// One decoder layer, one vision block, the tiny model's widths and a small vocabulary: 0.5 MB.
    fn small(format: Format) -> Self {
        Self::with_shards(format, u64::MAX)
    }

    fn with_shards(format: Format, max_shard_bytes: u64) -> Self {
        let mut config = config_json(Size::Tiny, format);
        config["num_hidden_layers"] = json!(1);
        config["vision_config"]["depth"] = json!(1);
        Self::write(&config, max_shard_bytes)
    }

    fn write(config: &Value, max_shard_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { max_shard_bytes, ..Options::default() };
        random_checkpoint::write(dir.path(), config, &options, &mut |_| {}).unwrap();
        Files { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn weights(&self) -> PathBuf {
        self.path("model.safetensors")
    }

    fn open(&self) -> Result<Checkpoint> {
        Checkpoint::open(self.dir.path())
    }

    /// Opens and validates.
    fn check(&self) -> Result<()> {
        self.open()?.validate()
    }

    fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&std::fs::read(self.path(name)).unwrap()).unwrap();
        edit(&mut value);
        std::fs::write(self.path(name), value.to_string()).unwrap();
    }

    fn edit_config(&self, edit: impl FnOnce(&mut Value)) {
        self.edit_json("config.json", edit);
    }

    fn edit_bytes(&self, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(self.weights()).unwrap();
        edit(&mut bytes);
        std::fs::write(self.weights(), bytes).unwrap();
    }

    fn edit_header(&self, edit: impl FnOnce(&mut Value)) {
        self.edit_bytes(|bytes| {
            let end = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
            let mut header = serde_json::from_slice(&bytes[8..end]).unwrap();
            edit(&mut header);
            let text = header.to_string().into_bytes();
            let length = (text.len() as u64).to_le_bytes();
            bytes.splice(..end, length.into_iter().chain(text));
        });
    }

    fn edit_tensors(&self, edit: impl FnOnce(&mut Tensors)) {
        self.edit_bytes(|bytes| {
            let parsed = safetensors::SafeTensors::deserialize(bytes).unwrap();
            let copy =
                |(name, t): (String, TensorView)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec()));
            let mut tensors: Tensors = parsed.tensors().into_iter().map(copy).collect();
            edit(&mut tensors);
            let views = tensors.iter().map(|(name, (dtype, shape, data))| {
                (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
            });
            *bytes = safetensors::serialize(views, None).unwrap();
        });
    }

    fn rename_tensors(&self, rename: impl Fn(&str) -> String) {
        self.edit_tensors(|tensors| {
            *tensors = std::mem::take(tensors).into_iter().map(|(name, t)| (rename(&name), t)).collect();
        });
    }
}

/// Asserts that a result is an error whose message has all the parts.
#[track_caller]
fn refused<T>(result: Result<T>, parts: &[&str]) -> Error {
    let error = result.err().expect("this should be refused");
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    error
}

fn tiny_bf16() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-bf16")
}
