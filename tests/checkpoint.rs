//! Opening and checking checkpoints: the formats and layouts that exist, and everything that can be
//! wrong with a download.

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

#[test]
fn the_embedded_awq_model_opens_and_validates() {
    let checkpoint = Checkpoint::tiny().unwrap();
    checkpoint.validate().unwrap();
    assert_eq!(checkpoint.name(), "tiny");
    assert_eq!(checkpoint.config.quantization, Quantization::Awq { group_size: Some(128) });
    assert_eq!(checkpoint.mapped_bytes(), 0);
    assert_eq!(checkpoint.dense_dtype("model.norm.weight"), DType::F16);
    assert!(checkpoint.tokenizer_bytes().unwrap().starts_with(b"{"));
    for name in
        ["generation_config.json", "preprocessor_config.json", "tokenizer_config.json", "chat_template.json"]
    {
        assert!(checkpoint.text_file(name).unwrap().is_some(), "{name}");
    }
    assert_eq!(checkpoint.text_file("chat_template.jinja").unwrap(), None);
    let norm = checkpoint.tensor("model.norm.weight").unwrap();
    checkpoint.prefetch(&norm);
    checkpoint.release(&norm);
    assert_eq!(norm.shape, [256]);
}

#[test]
fn the_embedded_model_is_the_one_in_the_directory() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/tiny_model");
    let (mapped, embedded) = (Checkpoint::open(&directory).unwrap(), Checkpoint::tiny().unwrap());
    mapped.validate().unwrap();
    assert_eq!(mapped.name(), "tiny_model");
    assert_eq!(mapped.config, embedded.config);
    assert_eq!(mapped.tensor_bytes(), embedded.tensor_bytes());
    assert_eq!(mapped.mapped_bytes(), 6_561_392);
    for name in embedded.tensor_names() {
        let (a, b) = (mapped.tensor(name).unwrap(), embedded.tensor(name).unwrap());
        assert_eq!((a.dtype, a.shape, a.bytes), (b.dtype, b.shape, b.bytes), "{name}");
        mapped.release(&a);
        assert_eq!(a.bytes, b.bytes, "{name} after its pages were released");
    }
}

#[test]
fn the_bf16_model_opens_and_validates() {
    let checkpoint = Checkpoint::open(&tiny_bf16()).unwrap();
    checkpoint.validate().unwrap();
    assert_eq!(checkpoint.config.quantization, Quantization::None);
    assert_eq!(checkpoint.dense_dtype("model.embed_tokens.weight"), DType::BF16);
    assert_eq!(checkpoint.dense_dtype("no such tensor"), DType::BF16);
    let norm = to_f32_vec(&checkpoint.tensor("model.norm.weight").unwrap()).unwrap();
    assert!(norm.len() == 256 && norm.iter().all(|x| x.is_finite() && x.abs() < 100.0));
}

#[test]
fn awq_dequantises_close_to_the_bf16_weights() {
    // AWQ moves scales between layers and their neighbours, except here: v_proj is smaller than o_proj.
    let (awq, bf16) = (Checkpoint::tiny().unwrap(), Checkpoint::open(&tiny_bf16()).unwrap());
    let linear = &decoder_linears(&awq.config, 2).unwrap()[3];
    let q = awq.awq_linear(linear).unwrap();
    let dense = to_f32_vec(&bf16.tensor(&format!("{}.weight", linear.name)).unwrap()).unwrap();
    assert_eq!((q.n, q.k, q.group), (256, 256, 128));
    let (mut dot, mut qq, mut dd) = (0.0, 0.0, 0.0);
    for n in 0..q.n {
        for k in 0..q.k {
            let (a, b) = (f64::from(q.weight(k, n)), f64::from(dense[n * q.k + k]));
            (dot, qq, dd) = (dot + a * b, qq + a * a, dd + b * b);
        }
    }
    let cosine = dot / (qq * dd).sqrt();
    assert!(cosine > 0.95, "{cosine}");
}

#[test]
fn awq_unpacks_as_the_reference_library_does() {
    let vectors: Value = serde_json::from_str(include_str!("data/vectors/awq_gemm.json")).unwrap();
    let numbers = |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
    let words = |v: &Value| numbers(v).iter().flat_map(|x| (*x as i32).to_le_bytes()).collect::<Vec<u8>>();
    let cases = vectors["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let desc = case["desc"].as_str().unwrap();
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let (k_size, n_size, group) = (size("in_features"), size("out_features"), size("group_size"));
        let (qweight, qzeros) = (words(&case["qweight_i32"]), words(&case["qzeros_i32"]));
        let scales: Vec<u8> =
            numbers(&case["scales_f16"]).iter().flat_map(|s| half::f16::from_f64(*s).to_le_bytes()).collect();
        let awq = AwqLinear::new(&qweight, &qzeros, &scales, (n_size, k_size, group)).expect(desc);
        let codes = numbers(&case["codes_in_out"]);
        let zeros = numbers(&case["zeros_group_out"]);
        let dequantised = numbers(&case["dequant_in_out_f16"]);
        assert_eq!(dequantised.len(), k_size * n_size);
        let mut row = vec![0; n_size];
        for k in 0..k_size {
            awq.codes_row(k, &mut row);
            for (n, in_row) in row.iter().enumerate() {
                let at = k * n_size + n;
                assert_eq!(f64::from(awq.code(k, n)), codes[at], "{desc}: code {k},{n}");
                assert_eq!(*in_row, awq.code(k, n), "{desc}: row {k}, {n}");
                // The vectors write negative zero as -0.0, which equals 0.
                assert_eq!(awq.weight(k, n).to_f64(), dequantised[at], "{desc}: weight {k},{n}");
            }
        }
        for g in 0..k_size / group {
            awq.zeros_row(g, &mut row);
            for n in 0..n_size {
                assert_eq!(f64::from(awq.zero(g, n)), zeros[g * n_size + n], "{desc}: zero {g},{n}");
                assert_eq!(row[n], awq.zero(g, n));
            }
            assert!(awq.scales_row(g).eq((0..n_size).map(|n| awq.scale_bits(g, n))));
        }
    }
}

#[test]
fn every_format_validates_when_generated() {
    for format in [Format::Bf16, Format::Awq, Format::GptqInt4, Format::GptqInt8] {
        let files = Files::small(format);
        files.check().unwrap();
        let checkpoint = files.open().unwrap();
        for name in checkpoint.tensor_names() {
            check_finite(&checkpoint.tensor(name).unwrap()).unwrap();
        }
        let tensors = random_checkpoint::tensors(&checkpoint.config).unwrap();
        assert_eq!(checkpoint.tensor_bytes(), tensors.iter().map(|t| t.bytes()).sum::<u64>());
    }
}

#[test]
fn gptq_extents_are_those_the_configuration_asks_for() {
    for format in [Format::GptqInt4, Format::GptqInt8] {
        let checkpoint = Files::small(format).open().unwrap();
        for spec in checkpoint_tensors(&checkpoint.config).unwrap() {
            assert_eq!(checkpoint.tensor(&spec.name).unwrap().shape, spec.shape, "{}", spec.name);
        }
    }
}

#[test]
fn every_spelling_of_the_names_is_accepted() {
    type Rename = fn(&str) -> String;
    let spellings: [Rename; 2] = [
        |name| match name.split_once('.') {
            Some(("visual", _)) => format!("model.{name}"),
            Some(("model", rest)) => format!("model.language_model.{rest}"),
            _ => name.to_string(),
        },
        |name| if name.starts_with("visual.") { name.to_string() } else { format!("language_model.{name}") },
    ];
    for rename in spellings {
        let files = Files::small(Format::Awq);
        files.rename_tensors(rename);
        files.check().unwrap();
    }
}

#[test]
fn two_spellings_of_one_tensor_are_refused() {
    let files = Files::small(Format::Bf16);
    files.edit_tensors(|tensors| {
        let norm = tensors["model.norm.weight"].clone();
        tensors.insert("model.language_model.norm.weight".into(), norm);
    });
    refused(files.open(), &["model.norm.weight", "model.language_model.norm.weight"]);
}

#[test]
fn stored_rotary_frequencies_are_ignored() {
    let files = Files::small(Format::Bf16);
    files.edit_tensors(|tensors| {
        for layer in 0..2 {
            let name = format!("model.layers.{layer}.self_attn.rotary_emb.inv_freq");
            tensors.insert(name, (Dtype::F64, vec![2], vec![0; 16]));
        }
    });
    files.check().unwrap();
    assert!(files.open().unwrap().tensor_names().all(|name| !name.contains("inv_freq")));
}

#[test]
fn a_nested_text_config_is_read() {
    let files = Files::small(Format::Bf16);
    files.edit_config(|config| {
        let fields = config.as_object_mut().unwrap();
        let moved = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"];
        let more = ["num_key_value_heads", "vocab_size", "rope_scaling", "rms_norm_eps"];
        let text: serde_json::Map<_, _> =
            moved.into_iter().chain(more).map(|key| (key.to_string(), fields.remove(key).unwrap())).collect();
        fields.insert("text_config".into(), text.into());
        let dtype = fields.remove("torch_dtype").unwrap();
        fields.insert("dtype".into(), dtype);
    });
    files.check().unwrap();
}

#[test]
fn shards_are_found_through_the_index() {
    let files = Files::with_shards(Format::Awq, 300_000);
    assert!(!files.weights().exists());
    let shards = std::fs::read_dir(files.dir.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().ends_with(".safetensors"));
    assert!(shards.count() > 3);
    files.check().unwrap();
    // The same tensors as in a single file, byte for byte.
    let (sharded, single) = (files.open().unwrap(), Files::small(Format::Awq).open().unwrap());
    assert_eq!(sharded.tensor_bytes(), single.tensor_bytes());
    for name in single.tensor_names() {
        assert_eq!(sharded.tensor(name).unwrap().bytes, single.tensor(name).unwrap().bytes, "{name}");
    }
}

#[test]
fn the_index_wins_over_a_single_file_and_its_total_size_is_not_trusted() {
    let files = Files::with_shards(Format::Bf16, 1_000_000);
    std::fs::write(files.weights(), b"not weights").unwrap();
    files.edit_json("model.safetensors.index.json", |index| index["metadata"]["total_size"] = json!(1));
    files.check().unwrap();
    files.edit_json("model.safetensors.index.json", |index| {
        index.as_object_mut().unwrap().remove("metadata");
    });
    files.check().unwrap();
}

#[test]
fn a_missing_shard_is_named() {
    let files = Files::with_shards(Format::Bf16, 1_000_000);
    let index: Value =
        serde_json::from_slice(&std::fs::read(files.path("model.safetensors.index.json")).unwrap()).unwrap();
    let shard = index["weight_map"]["model.norm.weight"].as_str().unwrap();
    std::fs::remove_file(files.path(shard)).unwrap();
    refused(files.open(), &[shard, "no such file", "(1 of", "resume"]);
}

#[test]
fn a_tensor_that_the_index_lists_but_the_shard_lacks_is_named() {
    let files = Files::with_shards(Format::Bf16, 1_000_000);
    files.edit_json("model.safetensors.index.json", |index| {
        index["weight_map"]["model.layers.7.surprise"] = index["weight_map"]["model.norm.weight"].clone();
    });
    refused(files.open(), &["model.layers.7.surprise", "is not in this file"]);
}

#[test]
fn an_index_that_points_outside_the_directory_is_refused() {
    for name in ["../model.safetensors", "/etc/passwd", "a/b", "a\\b", "..", ".", "", "C:x", "a\0b"] {
        let files = Files::with_shards(Format::Bf16, 1_000_000);
        files.edit_json("model.safetensors.index.json", |index| {
            index["weight_map"]["model.norm.weight"] = json!(name);
        });
        refused(files.open(), &["model.norm.weight", "not a plain file name"]);
    }
}

#[test]
fn a_malformed_index_is_refused() {
    let files = Files::small(Format::Bf16);
    for text in
        ["", "[]", "{}", "{\"weight_map\": 3}", "{\"weight_map\": {\"a\": 1}}", "{\"weight_map\": {}}"]
    {
        std::fs::write(files.path("model.safetensors.index.json"), text).unwrap();
        refused(files.open(), &["model.safetensors.index.json", "download"]);
    }
}

#[test]
fn what_is_not_a_checkpoint_directory_is_answered_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    refused(Checkpoint::open(dir.path()), &["there is no config.json"]);
    refused(Checkpoint::open(&dir.path().join("nothing")), &["no such directory"]);
    refused(
        Checkpoint::open(Path::new("Qwen/Qwen2-VL-2B-Instruct")),
        &["no such directory", "hf download Qwen/Qwen2-VL-2B-Instruct"],
    );
    let files = Files::small(Format::Bf16);
    refused(Checkpoint::open(&files.weights()), &["this is a file", "pass the directory"]);
    let cache = tempfile::tempdir().unwrap();
    let snapshot = cache.path().join("snapshots/0123abc");
    random_checkpoint::write_side_files(&snapshot, &config_json(Size::Tiny, Format::Awq)).unwrap();
    refused(Checkpoint::open(cache.path()), &["cache", "snapshots/0123abc"]);
}

#[test]
fn config_json_alone_is_enough_for_a_plan() {
    let dir = tempfile::tempdir().unwrap();
    random_checkpoint::write_side_files(dir.path(), &config_json(Size::B72, Format::GptqInt4)).unwrap();
    let config = Checkpoint::config_only(dir.path()).unwrap();
    assert_eq!(config.text.intermediate_size, 29696);
    assert_eq!(Checkpoint::config_only(&dir.path().join("config.json")).unwrap(), config);
    refused(Checkpoint::open(dir.path()), &["model.safetensors.index.json", "model.safetensors", "resume"]);
    refused(Checkpoint::config_only(&dir.path().join("other")), &["no such directory"]);
}

#[test]
fn weights_in_other_formats_are_named() {
    for (file, hint) in [
        ("pytorch_model-00001-of-00002.bin", "pickled weights"),
        ("model.pt", "pickled weights"),
        ("qwen2-vl-q4_k_m.gguf", "GGUF"),
        ("model-00001-of-00005.safetensors", "an index"),
    ] {
        let files = Files::small(Format::Bf16);
        std::fs::rename(files.weights(), files.path(file)).unwrap();
        refused(files.open(), &[file, hint, "neither model.safetensors.index.json nor model.safetensors"]);
    }
}

#[test]
fn a_missing_tokenizer_is_named_when_it_is_asked_for() {
    let checkpoint = Files::small(Format::Bf16).open().unwrap();
    refused(checkpoint.tokenizer_bytes(), &["tokenizer.json", "no such file"]);
}

#[test]
fn a_small_file_that_is_huge_or_not_text_is_refused() {
    let files = Files::small(Format::Bf16);
    let checkpoint = files.open().unwrap();
    std::fs::File::create(files.path("generation_config.json")).unwrap().set_len((64 << 20) + 1).unwrap();
    refused(checkpoint.text_file("generation_config.json"), &["generation_config.json", "64 MiB"]);
    std::fs::write(files.path("chat_template.jinja"), [0xff, 0xfe]).unwrap();
    refused(checkpoint.text_file("chat_template.jinja"), &["chat_template.jinja", "UTF-8"]);
    std::fs::create_dir(files.path("directory.json")).unwrap();
    refused(checkpoint.text_file("directory.json"), &["not a regular file"]);
}

#[test]
fn a_truncated_file_says_how_many_bytes_are_missing() {
    let files = Files::small(Format::Bf16);
    files.edit_bytes(|bytes| bytes.truncate(bytes.len() - 12_345));
    refused(files.open(), &["model.safetensors", "12345 bytes are missing", "resume"]);
}

#[test]
fn bytes_after_the_last_tensor_are_refused() {
    let files = Files::small(Format::Bf16);
    files.edit_bytes(|bytes| bytes.extend([0; 7]));
    refused(files.open(), &["7 bytes follow the last tensor"]);
}

#[test]
fn a_file_without_a_whole_header_is_refused() {
    let files = Files::small(Format::Bf16);
    for (bytes, expected) in [
        (vec![], "the file has 0 bytes"),
        (vec![1, 2, 3], "the file has 3 bytes"),
        (200_u64.to_le_bytes().to_vec(), "the header needs 200 bytes but only 0 follow"),
        (100_000_001_u64.to_le_bytes().to_vec(), "claims 100000001 bytes"),
        (u64::MAX.to_le_bytes().to_vec(), "claims 18446744073709551615 bytes"),
        ([4_u64.to_le_bytes().as_slice(), b"{a:1"].concat(), "not the JSON"),
        ([4_u64.to_le_bytes().as_slice(), &[0xff; 4]].concat(), "not UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0".to_vec(), "git lfs pull"),
    ] {
        std::fs::write(files.weights(), bytes).unwrap();
        refused(files.open(), &["model.safetensors", expected]);
    }
}

#[test]
fn impossible_extents_are_named() {
    let name = "model.norm.weight";
    for (edit, expected) in [
        ((|t| t["data_offsets"][0] = json!(0)) as fn(&mut Value), "overlaps"),
        (|t| t["data_offsets"][1] = json!(0), "before its start"),
        (|t| t["shape"] = json!([255]), "is given 512 bytes"),
        (|t| t["shape"] = json!([u64::MAX, 3]), "is given 512 bytes"),
        (|t| t["dtype"] = json!("F32"), "is given 512 bytes"),
    ] {
        let files = Files::small(Format::Bf16);
        files.edit_header(|header| edit(&mut header[name]));
        refused(files.open(), &["model.safetensors", expected]);
    }
    let files = Files::small(Format::Bf16);
    files.edit_header(|header| {
        header.as_object_mut().unwrap().remove(name);
    });
    refused(files.open(), &["512 unused bytes"]);
}

#[test]
fn a_wrong_shape_names_the_tensor_with_both_shapes() {
    let files = Files::small(Format::Bf16);
    files.edit_tensors(|tensors| {
        tensors.get_mut("model.layers.0.self_attn.k_proj.weight").unwrap().1 = vec![256, 128]
    });
    let error = refused(files.check(), &["k_proj.weight", "bf16 [256, 128]", "[128, 256]"]);
    assert!(matches!(error, Error::Tensor { .. }));
}

#[test]
fn a_wrong_type_names_the_tensor_with_both_types() {
    let change = |format, name: &str, dtype| {
        let files = Files::small(format);
        files.edit_tensors(|tensors| tensors.get_mut(name).unwrap().0 = dtype);
        files.check()
    };
    refused(
        change(Format::Bf16, "model.norm.weight", Dtype::I16),
        &["model.norm.weight", "I16", "f32 or f16 or bf16"],
    );
    let qweight = "model.layers.0.mlp.up_proj.qweight";
    refused(change(Format::Awq, qweight, Dtype::F32), &[qweight, "found f32", "expected i32"]);
    let scales = "model.layers.0.mlp.up_proj.scales";
    refused(change(Format::Awq, scales, Dtype::BF16), &[scales, "found bf16", "expected f16"]);
    change(Format::Awq, "model.norm.weight", Dtype::BF16).unwrap();
}

#[test]
fn missing_tensors_are_listed_together() {
    let files = Files::small(Format::Bf16);
    files.edit_tensors(|tensors| {
        tensors.remove("model.norm.weight");
    });
    refused(files.check(), &["model.norm.weight", "nothing"]);
    files.edit_config(|config| config["num_hidden_layers"] = json!(2));
    refused(
        files.check(),
        &["13 tensors", "model.layers.1.input_layernorm.weight", "and 3 more", "incomplete"],
    );
}

#[test]
fn a_scale_that_is_not_finite_is_named_with_its_index() {
    for bits in [0x7e00_u16, 0xfc00, 0x7c00, 0xffff] {
        let files = Files::small(Format::Awq);
        let name = "model.layers.0.mlp.down_proj.scales";
        files.edit_tensors(|tensors| {
            let (_, shape, data) = tensors.get_mut(name).unwrap();
            assert_eq!(*shape, [4, 256]);
            let at = 2 * (3 * 256 + 17);
            data[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        });
        refused(files.check(), &[name, "NaN or infinity at index [3, 17]"]);
    }
}

#[test]
fn quantisation_that_is_not_supported_is_refused_by_name() {
    let files = Files::small(Format::Awq);
    files.edit_config(|config| config["quantization_config"]["version"] = json!("gemv"));
    refused(files.open(), &["quantization_config.version", "gemv", "gemm"]);
    files.edit_config(|config| config["quantization_config"] = json!({"quant_method": "bitsandbytes"}));
    refused(files.open(), &["quantization_config.quant_method", "bitsandbytes"]);
}

#[test]
fn a_config_that_does_not_match_the_quantisation_of_the_weights_is_recognised() {
    let files = Files::small(Format::Awq);
    files.edit_config(|config| {
        config.as_object_mut().unwrap().remove("quantization_config");
    });
    refused(files.check(), &["7 tensors", "config.json has no quantization_config"]);
    let awq = config_json(Size::Tiny, Format::Awq)["quantization_config"].clone();
    let files = Files::small(Format::Bf16);
    files.edit_config(|config| config["quantization_config"] = awq.clone());
    refused(files.check(), &["declares AWQ but the weights are not quantised"]);
    let files = Files::small(Format::GptqInt4);
    files.edit_config(|config| config["quantization_config"] = awq);
    refused(files.check(), &["packed as GPTQ"]);
}

#[test]
fn a_padded_mlp_is_recognised() {
    for (format, padded) in [(Format::Bf16, 640), (Format::Awq, 640)] {
        let files = Files::small(format);
        files.edit_config(|config| config["intermediate_size"] = json!(padded));
        refused(files.check(), &["intermediate_size 640 but the weights have 512", "29568 to 29696"]);
    }
}

#[test]
fn a_tied_model_ignores_a_stored_head_and_an_untied_one_needs_it() {
    let files = Files::small(Format::Bf16);
    files.edit_tensors(|tensors| {
        // Not even its shape matters.
        tensors.insert("lm_head.weight".into(), (Dtype::U8, vec![3], vec![0; 3]));
    });
    refused(files.check(), &["lm_head.weight", "U8"]);
    files.edit_config(|config| config["tie_word_embeddings"] = json!(true));
    files.check().unwrap();
    assert!(!files.open().unwrap().contains("lm_head.weight"));
    files.edit_tensors(|tensors| {
        tensors.remove("lm_head.weight");
    });
    files.check().unwrap();
    files.edit_config(|config| config["tie_word_embeddings"] = json!(false));
    refused(files.check(), &["lm_head.weight", "nothing"]);
}

#[test]
fn floats_of_every_type_convert_to_f32() {
    let files = Files::small(Format::Bf16);
    files.edit_tensors(|tensors| {
        let encode = |f: fn(f32) -> Vec<u8>| [1.0, -0.5, 3.0].into_iter().flat_map(f).collect();
        tensors.insert("a".into(), (Dtype::F32, vec![3], encode(|x| x.to_le_bytes().to_vec())));
        tensors.insert(
            "b".into(),
            (Dtype::F16, vec![3], encode(|x| half::f16::from_f32(x).to_le_bytes().to_vec())),
        );
        tensors.insert(
            "c".into(),
            (Dtype::BF16, vec![3], encode(|x| half::bf16::from_f32(x).to_le_bytes().to_vec())),
        );
        tensors.insert("d".into(), (Dtype::I32, vec![1], vec![0; 4]));
        tensors.insert("e".into(), (Dtype::F64, vec![1], vec![0; 8]));
    });
    let checkpoint = files.open().unwrap();
    for name in ["a", "b", "c"] {
        assert_eq!(to_f32_vec(&checkpoint.tensor(name).unwrap()).unwrap(), [1.0, -0.5, 3.0], "{name}");
    }
    refused(to_f32_vec(&checkpoint.tensor("d").unwrap()), &["tensor d", "I32"]);
    refused(checkpoint.tensor("e"), &["tensor e", "F64"]);
    refused(checkpoint.tensor("f"), &["tensor f", "nothing"]);
}

#[test]
fn published_sizes_are_met_to_the_byte() {
    use Format::{Awq, Bf16, GptqInt4, GptqInt8};
    for (size, sizes) in [
        (Size::B2, [4_417_971_200_u64, 2_478_267_392, 2_480_303_104, 3_140_518_912]),
        (Size::B7, [16_582_751_232, 6_922_265_600, 6_926_795_776, 10_214_929_408]),
        (Size::B72, [146_811_120_640, 42_994_232_320, 43_019_463_680, 78_526_868_480]),
    ] {
        for (format, expected) in [Bf16, Awq, GptqInt4, GptqInt8].into_iter().zip(sizes) {
            let config = ModelConfig::from_json(&config_json(size, format).to_string()).unwrap();
            let tensors = random_checkpoint::tensors(&config).unwrap();
            let bytes: u64 = tensors.iter().map(|t| t.bytes()).sum();
            assert_eq!(bytes, expected, "{size:?} {format:?}");
        }
    }
}

#[test]
fn published_parameter_counts_are_met() {
    for (size, total, visual) in [
        (Size::B2, 2_208_985_600_usize, 665_271_296_usize),
        (Size::B7, 8_291_375_616, 675_759_104),
        (Size::B72, 73_405_560_320, 699_356_672),
    ] {
        let config = ModelConfig::from_json(&config_json(size, Format::Bf16).to_string()).unwrap();
        let specs = checkpoint_tensors(&config).unwrap();
        let count = |prefix: &str| -> usize {
            specs
                .iter()
                .filter(|s| s.name.starts_with(prefix))
                .map(|s| s.shape.iter().product::<usize>())
                .sum()
        };
        assert_eq!((count(""), count("visual.")), (total, visual), "{size:?}");
    }
    // The quantised 72B models are those of a padded MLP.
    let mut config = config_json(Size::B72, Format::Bf16);
    config["intermediate_size"] = json!(29696);
    let specs = checkpoint_tensors(&ModelConfig::from_json(&config.to_string()).unwrap()).unwrap();
    assert_eq!(specs.iter().map(|s| s.shape.iter().product::<usize>()).sum::<usize>(), 73_657_218_560);
}

#[test]
fn published_shard_counts_are_met() {
    for (size, expected) in [(Size::B2, 2), (Size::B7, 5), (Size::B72, 38)] {
        let config = ModelConfig::from_json(&config_json(size, Format::Bf16).to_string()).unwrap();
        let tensors = random_checkpoint::tensors(&config).unwrap();
        let shards = random_checkpoint::plan_shards(tensors, Options::default().max_shard_bytes);
        assert_eq!(shards.len(), expected, "{size:?}");
    }
}

#[test]
fn a_sparse_checkpoint_validates_and_takes_hardly_any_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config_json(Size::B2, Format::Awq);
    config["num_hidden_layers"] = json!(2);
    config["vision_config"]["depth"] = json!(2);
    let options = Options { sparse: true, ..Options::default() };
    random_checkpoint::write(dir.path(), &config, &options, &mut |_| {}).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    checkpoint.validate().unwrap();
    assert!(checkpoint.mapped_bytes() > 500_000_000);
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let on_disk = dir.path().join("model.safetensors").metadata().unwrap().blocks() * 512;
        assert!(on_disk < 1_000_000, "{on_disk}");
    }
}

/// A directory with given contents of the files that are parsed.
fn directory(config: &[u8], weights: &[u8], index: Option<&[u8]>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), weights).unwrap();
    if let Some(index) = index {
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    }
    dir
}

/// Goes through everything that looks at the contents; only panics matter.
fn exercise(dir: &Path) {
    let Ok(checkpoint) = Checkpoint::open(dir) else { return };
    let _ = checkpoint.validate();
    for name in checkpoint.tensor_names() {
        if let Ok(tensor) = checkpoint.tensor(name) {
            let _ = check_finite(&tensor);
            checkpoint.release(&tensor);
        }
    }
    if let Ok(linears) = decoder_linears(&checkpoint.config, 0) {
        for linear in linears {
            if let Ok(awq) = checkpoint.awq_linear(&linear) {
                let _ = awq.weight(awq.k - 1, awq.n - 1);
            }
        }
    }
}

/// A checkpoint of 100 KB, as small as the shapes allow.
fn smallest() -> (Vec<u8>, Vec<u8>) {
    static SMALLEST: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    SMALLEST.get_or_init(write_smallest).clone()
}

fn write_smallest() -> (Vec<u8>, Vec<u8>) {
    let mut config = config_json(Size::Tiny, Format::Awq);
    for (key, value) in
        [("hidden_size", 32), ("intermediate_size", 64), ("num_hidden_layers", 1), ("vocab_size", 64)]
    {
        config[key] = json!(value);
    }
    for key in ["bos", "eos", "vision_start", "vision_end", "vision", "image", "video"] {
        config[format!("{key}_token_id")] = json!(1);
    }
    config["rope_scaling"]["mrope_section"] = json!([2, 3, 3]);
    config["quantization_config"]["group_size"] = json!(16);
    config["vision_config"]["depth"] = json!(1);
    config["vision_config"]["embed_dim"] = json!(16);
    config["vision_config"]["hidden_size"] = json!(32);
    let files = Files::write(&config, u64::MAX);
    files.check().unwrap();
    (std::fs::read(files.path("config.json")).unwrap(), std::fs::read(files.weights()).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn arbitrary_files_never_panic(
        config in prop::collection::vec(any::<u8>(), 0..200),
        weights in prop::collection::vec(any::<u8>(), 0..300),
        index in prop::option::of(prop::collection::vec(any::<u8>(), 0..200)),
    ) {
        let (valid, _) = smallest();
        exercise(directory(&config, &weights, None).path());
        exercise(directory(&valid, &weights, index.as_deref()).path());
    }

    #[test]
    fn arbitrary_headers_never_panic(header in "[\\[\\]{}:,\"a0-9_ -]{0,80}", length in 0_u64..100) {
        let (valid, _) = smallest();
        let weights = [length.to_le_bytes().as_slice(), header.as_bytes()].concat();
        exercise(directory(&valid, &weights, None).path());
        let weights = [(header.len() as u64).to_le_bytes().as_slice(), header.as_bytes()].concat();
        exercise(directory(&valid, &weights, Some(header.as_bytes())).path());
    }

    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3), 1..6)) {
        let (mut config, mut weights) = smallest();
        let header = 8 + u64::from_le_bytes(*weights.first_chunk().unwrap()) as usize;
        for (index, byte, place) in flips {
            let all = weights.len();
            let bytes = match place {
                0 => &mut config[..],
                1 => &mut weights[..header],
                _ => &mut weights[..all],
            };
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        exercise(directory(&config, &weights, None).path());
    }

    #[test]
    fn changed_digits_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), b'0'..=b'9', any::<bool>()), 1..6)) {
        // Stays JSON, so that sizes, shapes and offsets are what goes wrong.
        let (mut config, mut weights) = smallest();
        let header = 8 + u64::from_le_bytes(*weights.first_chunk().unwrap()) as usize;
        for (index, digit, in_config) in flips {
            let text = if in_config { &mut config[..] } else { &mut weights[8..header] };
            let digits: Vec<usize> = (0..text.len()).filter(|i| text[*i].is_ascii_digit()).collect();
            text[digits[index.index(digits.len())]] = digit;
        }
        exercise(directory(&config, &weights, None).path());
    }
}
