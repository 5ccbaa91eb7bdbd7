//! Which files a checkpoint consists of, and getting at their contents.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use qwenvl_graph::ModelConfig;
use serde::Deserialize;

use super::mapping::Mapping;
use super::safetensors::{Entry, read_header};
use crate::error::{Error, Result};

/// Longest file that is read as a whole; a `tokenizer.json` has 7 to 11 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Where the files are.
#[derive(Debug)]
pub enum Source {
    /// In a directory.
    Directory(PathBuf),
    /// In the program.
    Embedded {
        /// The model's name.
        name: String,
        /// File names and contents.
        files: &'static [(&'static str, &'static [u8])],
    },
}

/// A file of weights.
#[derive(Debug)]
pub struct WeightFile {
    /// Its path, for messages.
    pub path: PathBuf,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Mapped(Mapping),
    Embedded(&'static [u8]),
}

impl WeightFile {
    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Mapped(mapping) => mapping.bytes(),
            Data::Embedded(bytes) => bytes,
        }
    }

    /// The mapping, if it is one.
    pub fn mapping(&self) -> Option<&Mapping> {
        match &self.data {
            Data::Mapped(mapping) => Some(mapping),
            Data::Embedded(_) => None,
        }
    }
}

impl Source {
    /// A directory, after checking that it is one and has a `config.json`; what users give instead
    /// is recognised and answered with what to do.
    pub fn directory(dir: &Path) -> Result<Self> {
        if dir.join("config.json").is_file() {
            return Ok(Source::Directory(dir.to_path_buf()));
        }
        if dir.is_file() {
            return Err(problem(dir, "this is a file", "pass the directory that holds it"));
        }
        if !dir.exists() {
            let shown = dir.display();
            let help = if looks_like_hub_id(dir) {
                format!(
                    "if {shown} is a repository of the hub, download it with the hub's client \
                     (`hf download {shown} --local-dir DIR`) and pass that directory"
                )
            } else {
                "pass the directory of a downloaded checkpoint".into()
            };
            return Err(problem(dir, "no such directory", help));
        }
        if let Some(snapshot) = hub_cache_snapshot(dir) {
            let help = format!("pass the snapshot in it, {}", snapshot.display());
            return Err(problem(dir, "this is a directory of the hub client's cache", help));
        }
        let help =
            "pass the directory of a downloaded checkpoint, with its config.json, tokenizer and weight files";
        Err(problem(dir, "there is no config.json", help))
    }

    /// Reads a `config.json` given by its own path.
    pub fn config_file(path: &Path) -> Result<ModelConfig> {
        let bytes = read_bounded(path)?
            .ok_or_else(|| problem(path, "no such file", "pass a config.json, or a directory with one"))?;
        Ok(ModelConfig::from_json(&utf8(bytes, path)?)?)
    }

    /// The directory; for an embedded model a name that cannot be mistaken for one.
    pub fn path(&self) -> &Path {
        match self {
            Source::Directory(dir) => dir,
            Source::Embedded { name, .. } => Path::new(name),
        }
    }

    /// The contents of a file; `None` if there is no such file.
    pub fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Source::Directory(dir) => read_bounded(&dir.join(name)),
            Source::Embedded { files, .. } => {
                Ok(files.iter().find(|(file, _)| *file == name).map(|(_, bytes)| bytes.to_vec()))
            }
        }
    }

    /// The contents of a file as text; `None` if there is no such file.
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        let bytes = self.bytes(name)?;
        bytes.map(|bytes| utf8(bytes, &self.path().join(name))).transpose()
    }

    /// What `config.json` says.
    pub fn config(&self) -> Result<ModelConfig> {
        let text = self
            .text("config.json")?
            .ok_or_else(|| problem(self.path(), "there is no config.json", "every checkpoint has one"))?;
        Ok(ModelConfig::from_json(&text)?)
    }

    /// The weight files with their tensors: those of the index if there is one, otherwise the
    /// single file.
    pub fn weights(&self) -> Result<Vec<(WeightFile, Vec<Entry>)>> {
        if let Some(text) = self.text(INDEX)? {
            return self.shards(&self.path().join(INDEX), &text);
        }
        match self.open(SINGLE)? {
            Some(file) => {
                let entries = read_header(file.bytes(), &file.path)?;
                Ok(vec![(file, entries)])
            }
            None => Err(self.no_weights()),
        }
    }

    fn shards(&self, index: &Path, text: &str) -> Result<Vec<(WeightFile, Vec<Entry>)>> {
        /// The part of the index that is used. `total_size` is wrong in some published files.
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        const AGAIN: &str = "download the file again";
        let Index { weight_map } = serde_json::from_str(text)
            .map_err(|e| problem(index, format!("this is not an index of weight files: {e}"), AGAIN))?;
        if weight_map.is_empty() {
            return Err(problem(index, "the weight_map is empty", AGAIN));
        }
        for (tensor, shard) in &weight_map {
            if !is_plain_file_name(shard) {
                let found =
                    format!("tensor {tensor} is said to be in {shard:?}, which is not a plain file name");
                return Err(problem(
                    index,
                    found,
                    "weight files must lie beside the index; download it again",
                ));
            }
        }
        let names: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
        let mut shards = Vec::with_capacity(names.len());
        for &name in &names {
            let Some(file) = self.open(name)? else {
                let missing = names.iter().filter(|n| !self.has(n)).count();
                return Err(problem(
                    &self.path().join(name),
                    format!(
                        "no such file, but the index names it ({missing} of {} weight files are missing)",
                        names.len()
                    ),
                    "the download is incomplete, resume it",
                ));
            };
            let mut entries = read_header(file.bytes(), &file.path)?;
            // The index decides where a tensor is, should two files hold one of the same name.
            entries.retain(|e| weight_map.get(&e.name).is_none_or(|shard| shard == name));
            let present: BTreeSet<&str> = entries.iter().map(|e| e.name.as_str()).collect();
            let listed = weight_map.iter().filter(|(_, shard)| *shard == name);
            if let Some((tensor, _)) =
                listed.into_iter().find(|(tensor, _)| !present.contains(tensor.as_str()))
            {
                return Err(problem(
                    &file.path,
                    format!("tensor {tensor} is not in this file although {INDEX} says so"),
                    "files of two versions are mixed, download the checkpoint into an empty directory",
                ));
            }
            shards.push((file, entries));
        }
        Ok(shards)
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Source::Directory(dir) => dir.join(name).exists(),
            Source::Embedded { files, .. } => files.iter().any(|(file, _)| *file == name),
        }
    }

    fn open(&self, name: &str) -> Result<Option<WeightFile>> {
        let path = self.path().join(name);
        let data = match self {
            Source::Directory(_) if !path.exists() => return Ok(None),
            Source::Directory(_) => Data::Mapped(Mapping::open(&path)?),
            Source::Embedded { files, .. } => match files.iter().find(|(file, _)| *file == name) {
                Some((_, bytes)) => Data::Embedded(bytes),
                None => return Ok(None),
            },
        };
        Ok(Some(WeightFile { path, data }))
    }

    /// The error for a checkpoint without weights: says what was looked for, and names weights in
    /// other formats if there are any.
    fn no_weights(&self) -> Error {
        let looked_for = format!("neither {INDEX} nor {SINGLE} is there");
        let Source::Directory(dir) = self else {
            return problem(self.path(), looked_for, "embed the weights");
        };
        let mut others: Vec<String> = std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| {
                let extension = Path::new(name).extension().and_then(|e| e.to_str());
                matches!(extension, Some("bin" | "pt" | "pth" | "gguf" | "safetensors" | "incomplete"))
            })
            .collect();
        others.sort();
        let Some(first) = others.first() else {
            return problem(dir, looked_for, "the download is incomplete, resume it");
        };
        let help = match Path::new(first).extension().and_then(|e| e.to_str()) {
            Some("gguf") => "GGUF files are not supported, download the repository with .safetensors files",
            Some("safetensors") => {
                "weight files need one of these two names, with an index if there are several; resume the download"
            }
            Some("incomplete") => "the download is incomplete, resume it",
            _ => {
                "pickled weights (.bin, .pt) are not supported, download the repository with .safetensors files"
            }
        };
        problem(dir, format!("{looked_for}, only {}", others.join(", ")), help)
    }
}

fn problem(path: &Path, problem: impl Into<String>, help: impl Into<String>) -> Error {
    Error::Checkpoint { path: path.to_path_buf(), problem: problem.into(), help: help.into() }
}

fn utf8(bytes: Vec<u8>, path: &Path) -> Result<String> {
    String::from_utf8(bytes)
        .map_err(|e| problem(path, format!("not UTF-8 text: {e}"), "download the file again"))
}

fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>> {
    let fail = |source| Error::Io { action: "read", path: path.to_path_buf(), source };
    match path.metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail(e)),
        // Opening a named pipe would block.
        Ok(metadata) if !metadata.is_file() => return Err(fail(std::io::Error::other("not a regular file"))),
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)).map_err(fail)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let limit = format!("larger than {} MiB", MAX_FILE_BYTES >> 20);
        return Err(problem(path, limit, "this cannot be the published file, download it again"));
    }
    Ok(Some(bytes))
}

/// Whether a name from the index stays within the directory, on any platform.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let single = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    single && !name.contains(['/', '\\', ':', '\0'])
}

/// Whether a path that does not exist has the form `owner/name`.
fn looks_like_hub_id(path: &Path) -> bool {
    let parts: Vec<_> = path.components().collect();
    parts.len() == 2 && parts.iter().all(|part| matches!(part, Component::Normal(_)))
}

/// The newest snapshot in a directory `models--owner--name` of the hub client's cache.
fn hub_cache_snapshot(dir: &Path) -> Option<PathBuf> {
    let snapshots = std::fs::read_dir(dir.join("snapshots")).ok()?;
    let with_config =
        snapshots.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.join("config.json").is_file());
    with_config.max_by_key(|p| p.metadata().and_then(|m| m.modified()).ok())
}
