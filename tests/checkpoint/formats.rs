//! The formats that exist, and the sizes of the published files.

use super::*;

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
    let vectors: Value = serde_json::from_str(include_str!("../data/vectors/awq_gemm.json")).unwrap();
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
