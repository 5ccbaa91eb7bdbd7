//! A checkpoint: the directory a model is published as, opened, checked and mapped.
//!
//! Opening reads `config.json` and the headers of the weight files; the weights themselves are
//! mapped and read when used. The loader calls [`Checkpoint::validate`] first, so that a wrong or
//! incomplete download is reported at once and completely.

pub mod awq;
mod embedded;
mod files;
pub mod gptq;
mod mapping;
pub mod names;
pub mod safetensors;
mod tensor;
mod validate;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use ::safetensors::Dtype;
use qwenvl_graph::{DType, ModelConfig};

pub use awq::AwqLinear;
use files::{Source, WeightFile};
pub use gptq::GptqLinear;
pub(crate) use mapping::Mapping;
pub use tensor::{TensorHandle, TensorRef, check_finite, to_f32_vec};

use crate::error::{Error, Result};

/// An opened checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// What `config.json` says.
    pub config: ModelConfig,
    name: String,
    source: Source,
    files: Vec<WeightFile>,
    /// By name in the published spelling.
    tensors: HashMap<String, Location>,
}

/// Where a tensor is.
#[derive(Debug)]
struct Location {
    file: usize,
    stored_name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl Checkpoint {
    /// Opens the checkpoint in a directory: reads `config.json`, maps the weight files and checks
    /// their headers. Does not look at shapes or values; that is [`validate`](Self::validate).
    ///
    /// # Errors
    /// [`Error::Checkpoint`] or [`Error::Io`] naming the file, [`Error::Graph`] for a `config.json`
    /// that this engine cannot use.
    pub fn open(dir: &Path) -> Result<Self> {
        let source = Source::directory(dir)?;
        let name = dir
            .canonicalize()
            .ok()
            .as_deref()
            .unwrap_or(dir)
            .file_name()
            .map_or_else(|| dir.display().to_string(), |name| name.to_string_lossy().into_owned());
        Self::from_source(source, name)
    }

    /// Opens a checkpoint that is part of the program: `files` are names and contents as they would
    /// be in a directory.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn embedded(files: &'static [(&'static str, &'static [u8])], name: &str) -> Result<Self> {
        Self::from_source(Source::Embedded { name: name.to_string(), files }, name.to_string())
    }

    /// Reads only the configuration: enough for a plan. `path` is a directory with a `config.json`,
    /// or such a file.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn config_only(path: &Path) -> Result<ModelConfig> {
        if path.is_file() { Source::config_file(path) } else { Source::directory(path)?.config() }
    }

    fn from_source(source: Source, name: String) -> Result<Self> {
        let config = source.config()?;
        let weights = source.weights()?;
        let mut files = Vec::with_capacity(weights.len());
        let mut tensors: HashMap<String, Location> = HashMap::new();
        for (index, (file, entries)) in weights.into_iter().enumerate() {
            files.push(file);
            for entry in entries {
                let Some(name) = names::canonical(&entry.name) else { continue };
                // A tied model has no use for a head of its own, even if the file has one.
                if config.text.tie_word_embeddings && name == "lm_head.weight" {
                    continue;
                }
                let name = name.into_owned();
                if let Some(other) = tensors.get(&name) {
                    return Err(Error::Checkpoint {
                        path: files[index].path.clone(),
                        problem: format!(
                            "tensor {} is the same as {} in {}: both are {name}",
                            entry.name,
                            other.stored_name,
                            files[other.file].path.display(),
                        ),
                        help:
                            "files of two exports are mixed, download the checkpoint into an empty directory"
                                .into(),
                    });
                }
                let location = Location {
                    file: index,
                    stored_name: entry.name,
                    dtype: entry.dtype,
                    shape: entry.shape,
                    range: entry.range,
                };
                tensors.insert(name, location);
            }
        }
        Ok(Checkpoint { config, name, source, files, tensors })
    }

    /// The name to show: that of the directory, or of the embedded model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory, or a stand-in for it that says the model is embedded. For messages.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// The text of one of the small files beside the weights, such as `generation_config.json` or
    /// `chat_template.jinja`; `None` if there is no such file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Checkpoint`] if it is larger than 64 MiB or not
    /// UTF-8.
    pub fn text_file(&self, name: &str) -> Result<Option<String>> {
        self.source.text(name)
    }

    /// The contents of `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there is none, otherwise as [`text_file`](Self::text_file).
    pub fn tokenizer_bytes(&self) -> Result<Vec<u8>> {
        self.source.bytes("tokenizer.json")?.ok_or_else(|| Error::Checkpoint {
            path: self.path().join("tokenizer.json"),
            problem: "no such file".into(),
            help: "download it from the model's repository (vocab.json and merges.txt are not read)".into(),
        })
    }

    /// The tensor with a name in the published spelling.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is none, or its element type is not F32, F16, BF16 or I32.
    pub fn tensor(&self, name: &str) -> Result<TensorRef<'_>> {
        let Some((name, location)) = self.tensors.get_key_value(name) else {
            return Err(Error::Tensor {
                path: self.path().to_path_buf(),
                tensor: name.to_string(),
                found: "nothing".into(),
                expected: "such a tensor in one of the weight files".into(),
            });
        };
        let file = &self.files[location.file];
        let Some(dtype) = tensor::dtype(location.dtype) else {
            return Err(Error::Tensor {
                path: file.path.clone(),
                tensor: name.clone(),
                found: location.dtype.to_string(),
                expected: "F32, F16, BF16 or I32".into(),
            });
        };
        Ok(TensorRef {
            name,
            dtype,
            shape: &location.shape,
            bytes: &file.bytes()[location.range.clone()],
            file: &file.path,
            position: (location.file, location.range.start),
        })
    }

    /// The elements behind a handle.
    ///
    /// # Panics
    /// If the handle is that of another checkpoint.
    pub fn bytes(&self, handle: &TensorHandle) -> &[u8] {
        &self.files[handle.file].bytes()[handle.range.clone()]
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The names of all tensors in the published spelling, in no order.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The type in which a dense tensor is stored; what `config.json` says if there is no such
    /// tensor or it is not of floats.
    pub fn dense_dtype(&self, name: &str) -> DType {
        let stored = self.tensors.get(name).and_then(|location| tensor::dtype(location.dtype));
        stored.filter(|dtype| dtype.is_float()).unwrap_or(self.config.dtype)
    }

    /// Asks the system to read a tensor soon. No effect on embedded models.
    pub fn prefetch(&self, tensor: &TensorRef) {
        if let Some((mapping, range)) = self.mapped_range(tensor) {
            mapping.prefetch(range);
        }
    }

    /// Takes a tensor that has been copied elsewhere out of the resident set of the process. It may
    /// be read again. No effect on embedded models.
    pub fn release(&self, tensor: &TensorRef) {
        if let Some((mapping, range)) = self.mapped_range(tensor) {
            mapping.release(range);
        }
    }

    /// The weight files that are mapped, with their contents; none for embedded models.
    pub(crate) fn weight_files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.files.iter().filter(|f| f.mapping().is_some()).map(|f| (f.path.as_path(), f.bytes()))
    }

    /// Bytes of the weight files that are mapped, 0 for embedded models.
    pub fn mapped_bytes(&self) -> u64 {
        self.files.iter().filter_map(WeightFile::mapping).map(|m| m.bytes().len() as u64).sum()
    }

    /// Bytes of all tensors together, as stored.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.values().map(|location| location.range.len() as u64).sum()
    }

    fn mapped_range(&self, tensor: &TensorRef) -> Option<(&mapping::Mapping, Range<usize>)> {
        let (file, start) = tensor.position;
        let mapping = self.files.get(file)?.mapping()?;
        Some((mapping, start..start.checked_add(tensor.bytes.len())?))
    }
}
