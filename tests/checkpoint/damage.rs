//! Headers and tensors that are not as they should be.

use super::*;

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
