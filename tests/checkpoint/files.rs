//! Names of tensors, indices, shards, and the small files.

use super::*;

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
