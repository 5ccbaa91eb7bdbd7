//! What several test files share.
#![allow(dead_code)]

pub mod harness;
pub mod reference;
pub mod rng;
pub mod samples;
pub mod tolerance;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use qwenvl::Target;
use qwenvl::graph::{Grid, ModelConfig};
use qwenvl::prompt::{ChatTemplate, Tokenizer, find_template};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A file under the repository's root.
pub fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// What tests that run on several devices run on: with `QWENVL_TEST_DEVICE=cuda` the first GPU, or the simulated one
/// of `cudasim env`.
pub fn target() -> Target {
    match std::env::var("QWENVL_TEST_DEVICE").as_deref() {
        Err(_) | Ok("cpu") => Target::Cpu,
        Ok("cuda") => Target::Cuda(0),
        Ok(other) => panic!("QWENVL_TEST_DEVICE is {other}, expected cpu or cuda"),
    }
}

/// The text of a file under the repository's root.
pub fn text(relative: &str) -> String {
    std::fs::read_to_string(path(relative)).unwrap_or_else(|e| panic!("{relative}: {e}"))
}

/// The JSON of a file under the repository's root.
pub fn json(relative: &str) -> Value {
    serde_json::from_str(&text(relative)).unwrap_or_else(|e| panic!("{relative}: {e}"))
}

/// The file `name` of `tests/data/vectors`, made by the reference libraries.
pub fn vectors(name: &str) -> Value {
    json(&format!("tests/data/vectors/{name}"))
}

/// The contents of a file packed by zstd.
pub fn unpacked(name: &str) -> Vec<u8> {
    let packed = std::fs::File::open(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut plain = Vec::new();
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(packed).expect(name);
    decoder.read_to_end(&mut plain).expect(name);
    plain
}

/// The cases of such a file, each with its description.
pub fn cases(name: &str) -> Vec<(String, Value)> {
    let mut file = vectors(name);
    let Value::Array(cases) = file["cases"].take() else { panic!("{name} has no cases") };
    assert!(!cases.is_empty(), "{name} has no cases");
    cases.into_iter().map(|case| (case["desc"].as_str().unwrap_or("?").to_string(), case)).collect()
}

/// The tokenizer of the published models.
pub static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    Tokenizer::from_bytes(&unpacked("tests/data/qwen2_vl_tokenizer.json.zst")).expect("a tokenizer")
});

/// The tokenizer of the tiny model.
pub static TINY_TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    Tokenizer::from_bytes(text("engine/tiny_model/tokenizer.json").as_bytes()).expect("a tokenizer")
});

/// The chat template of the published models; the tiny one has the same.
pub fn chat_template() -> ChatTemplate {
    find_template(None, Some(&text("engine/tiny_model/chat_template.json")), None).expect("a template")
}

/// A configuration with the token ids of the published models.
pub fn published_config() -> ModelConfig {
    let text = r#"{"model_type": "qwen2_vl", "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
                   "vision_config": {"hidden_size": 8192}}"#;
    ModelConfig::from_json(text).expect("a minimal configuration")
}

/// The configuration of the tiny model.
pub fn tiny_config() -> ModelConfig {
    ModelConfig::from_json(&text("engine/tiny_model/config.json")).expect("the tiny configuration")
}

/// The tiny model as GPTQ checkpoint of 4 or 8 bits: everything but the decoder layers is that of the
/// embedded model, in a second file.
pub fn tiny_gptq(bits: u32) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let own = path(&format!("tests/data/tiny-gptq-int{bits}"));
    let shared = path("engine/tiny_model");
    for (from, name) in [
        (own.join("config.json"), "config.json"),
        (own.join("decoder.safetensors"), "decoder.safetensors"),
        (shared.join("model.safetensors"), "rest.safetensors"),
        (shared.join("tokenizer.json"), "tokenizer.json"),
        (shared.join("tokenizer_config.json"), "tokenizer_config.json"),
        (shared.join("chat_template.json"), "chat_template.json"),
        (shared.join("generation_config.json"), "generation_config.json"),
        (shared.join("preprocessor_config.json"), "preprocessor_config.json"),
    ] {
        std::fs::copy(&from, dir.path().join(name)).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    }
    write_index(dir.path(), &["decoder.safetensors", "rest.safetensors"]);
    dir
}

/// Writes the index of weight files, of which the first that has a tensor counts.
pub fn write_index(dir: &Path, files: &[&str]) {
    let mut map = serde_json::Map::new();
    for file in files {
        let bytes = std::fs::read(dir.join(file)).expect("weights");
        for name in SafeTensors::deserialize(&bytes).expect("weights").names() {
            map.entry(name.to_string()).or_insert_with(|| json!(file));
        }
    }
    let index = json!({"weight_map": map});
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).expect("an index");
}

/// A JSON array of integers; none for `null`.
pub fn ints<T: TryFrom<i64>>(value: &Value) -> Vec<T> {
    let items = value.as_array().map_or(&[][..], Vec::as_slice);
    let int = |v: &Value| v.as_i64().and_then(|n| T::try_from(n).ok());
    items.iter().map(|v| int(v).unwrap_or_else(|| panic!("{v} is no such integer"))).collect()
}

/// A JSON array of numbers; `null` entries are minus infinity.
pub fn floats(value: &Value) -> Vec<f32> {
    let items = value.as_array().map_or(&[][..], Vec::as_slice);
    items.iter().map(|v| v.as_f64().map_or(f32::NEG_INFINITY, |n| n as f32)).collect()
}

/// A JSON array of `[t, h, w]`; none for `null`.
pub fn grids(value: &Value) -> Vec<Grid> {
    let items = value.as_array().map_or(&[][..], Vec::as_slice);
    items
        .iter()
        .map(|thw| match ints::<usize>(thw)[..] {
            [t, h, w] => Grid { t, h, w },
            _ => panic!("{thw} is no grid"),
        })
        .collect()
}

/// The CRC-32 of zlib, bit by bit.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |mut crc: u32, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 };
        }
        crc
    })
}
