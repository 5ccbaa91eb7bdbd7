//! Plans of the published models from their configuration alone.

use qwenvl_graph::config::Quantization;
use qwenvl_graph::fit::{CARD_OUTPUT_TOKENS, card_measured};
use qwenvl_graph::model::{DESIGN, SIMULATED};
use qwenvl_graph::{DType, Device, ModelConfig, Plan, PlanOptions};

fn published(size: &str) -> ModelConfig {
    let (hidden, inter, layers, heads, kv, vocab, tied) = match size {
        "2b" => (1536, 8960, 28, 12, 2, 151_936, true),
        "7b" => (3584, 18944, 28, 28, 4, 152_064, false),
        "72b" => (8192, 29568, 80, 64, 8, 152_064, false),
        other => panic!("{other}"),
    };
    let json = format!(
        r#"{{"model_type":"qwen2_vl","hidden_size":{hidden},"intermediate_size":{inter},"num_hidden_layers":{layers},
        "num_attention_heads":{heads},"num_key_value_heads":{kv},"vocab_size":{vocab},"tie_word_embeddings":{tied},
        "rms_norm_eps":1e-6,"torch_dtype":"bfloat16","rope_scaling":{{"type":"mrope","mrope_section":[16,24,24]}},
        "vision_config":{{"hidden_size":{hidden},"in_chans":3,"spatial_patch_size":14}}}}"#
    );
    ModelConfig::from_json(&json).unwrap()
}

fn quantised(size: &str, quantization: Quantization) -> ModelConfig {
    let mut config = ModelConfig { quantization, dtype: DType::F16, ..published(size) };
    if size == "72b" {
        config.text.intermediate_size = 29696;
    }
    config
}

fn plan(config: &ModelConfig, context: usize) -> Plan {
    let device = Device::gpu("a100-80g").unwrap();
    Plan::new(config, &device, &PlanOptions::new(config, context, 12_845_056)).unwrap()
}

const AWQ: Quantization = Quantization::Awq { group_size: Some(128) };

#[test]
fn awq_72b_fits_one_a100_at_the_longest_input_of_the_card() {
    let plan = plan(&quantised("72b", AWQ), 30720 + 2048);
    assert_eq!(plan.memory.weights_bytes, 42_994_232_320);
    assert_eq!(plan.memory.kv_bytes_per_token, 327_680);
    assert_eq!(plan.memory.kv_bytes, 32768 * 327_680);
    assert!(plan.fits(), "{}", plan.to_table());
    let json = plan.to_json();
    assert_eq!(json["total_bytes"], plan.memory.total_bytes());
    assert_eq!(json["fits"], true);
}

#[test]
fn bf16_72b_does_not_fit_one_a100_and_the_remedies_say_what_would() {
    let plan = plan(&published("72b"), 30720 + 2048);
    assert_eq!(plan.memory.weights_bytes, 146_811_120_640);
    assert!(!plan.fits());
    let remedies = plan.remedies().unwrap();
    let awq = remedies.iter().find(|r| r.change.contains("AWQ")).expect("AWQ fits");
    assert!(awq.total_bytes < plan.device.memory_bytes);
    assert!(remedies.iter().any(|r| r.change.contains("GPTQ-Int4")));
    assert!(!remedies.iter().any(|r| r.change.contains("--context")), "no context fits: {remedies:?}");
}

#[test]
fn weights_of_every_published_model_match_the_sizes_of_their_files() {
    let cases = [
        ("2b", Quantization::None, 4_417_971_200),
        ("7b", Quantization::None, 16_582_751_232),
        ("2b", AWQ, 2_478_267_392),
        ("7b", AWQ, 6_922_265_600),
    ];
    for (size, quantization, bytes) in cases {
        let config = ModelConfig { quantization, ..published(size) };
        assert_eq!(plan(&config, 1024).memory.weights_bytes, bytes, "{size} {quantization:?}");
    }
}

#[test]
fn bounds_on_the_speed_table_are_those_of_the_hardware() {
    let rows = plan(&quantised("72b", AWQ), 32768).card_rows().unwrap();
    let expected = [45.6, 39.6, 33.2, 24.3];
    for (row, expected) in rows.iter().zip(expected) {
        assert!((row.tokens_per_s - expected).abs() < 0.06, "{row:?}, expected {expected}");
    }
}

#[test]
fn modelled_decoding_is_slower_than_physics_and_reaches_40_tokens_per_s_for_72b_awq() {
    let plan = plan(&quantised("72b", AWQ), 32768);
    let (bounds, rows) = (plan.card_rows().unwrap(), plan.modelled_rows(&DESIGN).unwrap());
    for (bound, row) in bounds.iter().zip(&rows) {
        assert!(row.decode_tokens_per_s < bound.decode_tokens_per_s, "{row:?}");
        assert!(row.decode_tokens_per_s > 0.85 * bound.decode_tokens_per_s, "{row:?}");
    }
    assert!(rows[0].tokens_per_s >= 40.0, "{:?}", rows[0]);
    // The parts are the whole, and none is faster than its bytes.
    let parts = plan.token_parts(&DESIGN, 1 + CARD_OUTPUT_TOKENS / 2).unwrap();
    let total: f64 = parts.iter().map(|p| p.seconds).sum();
    assert!((total * rows[0].decode_tokens_per_s - 1.0).abs() < 1e-9, "{parts:?}");
    // But for norms that are part of the layers after them.
    assert!(parts.iter().all(|p| p.seconds > p.bound_s || p.name == "rms_norm"), "{parts:?}");
    assert_eq!(parts.iter().map(|p| p.steps).sum::<usize>(), plan.decode.graph.nodes.len());
    assert_eq!(card_measured(&plan.config), Some([12.00, 8.33, 5.72, 3.39]));
    // The kernels as they are, by the simulator's model.
    let simulated = plan.modelled_rows(&SIMULATED).unwrap();
    assert!(simulated[0].tokens_per_s >= 40.0 && simulated[0].tokens_per_s < rows[0].tokens_per_s);
    let cpu = Device::cpu(2, 1 << 40, 1e10, 1e11);
    let on_cpu = Plan::new(&plan.config, &cpu, &plan.options).unwrap();
    assert_eq!(on_cpu.modelled_rows(&DESIGN), None);
}

#[test]
fn the_largest_context_is_the_last_one_that_fits() {
    let plan = plan(&published("7b"), 32768);
    let mut small = plan.clone();
    small.device.memory_bytes = plan.memory.total_bytes() - (64 << 20);
    let context = small.largest_context().unwrap().unwrap();
    let at = |context_tokens| {
        let options = PlanOptions {
            context_tokens,
            kv_pool_tokens: context_tokens,
            max_visual_tokens: context_tokens,
            ..small.options.clone()
        };
        Plan::new(&small.config, &small.device, &options).unwrap().fits()
    };
    assert!(at(context) && !at(context + 64), "{context}");
}

#[test]
fn fused_plans_have_five_linear_kernels_less_than_ten_steps_a_layer() {
    let plan = plan(&quantised("72b", AWQ), 2048);
    // norm, qkv, attention, o, norm, gate·up, down for each layer; embed, select, norm, head.
    assert_eq!(plan.decode.graph.nodes.len(), 80 * 7 + 4);
    // norm, qkv, attention, proj, norm, fc1, fc2 for each block; patchify, embed; ln, mlp.0, mlp.2.
    assert_eq!(plan.vision.graph.nodes.len(), 32 * 7 + 2 + 3);
}

#[test]
fn remedies_of_many_sequences_hold_the_cache_of_all() {
    let config = quantised("2b", AWQ);
    let options = PlanOptions {
        max_seqs: 64,
        kv_pool_tokens: 64 * 32768,
        ..PlanOptions::new(&config, 32768, 1_003_520)
    };
    let plan = Plan::new(&config, &Device::cpu(2, 40 << 30, 0.0, 0.0), &options).unwrap();
    assert!(!plan.fits());
    let remedies = plan.remedies().unwrap();
    let context =
        remedies.iter().find(|r| r.change.starts_with("--context")).expect("a smaller context fits");
    // 57,344 bytes a token; the largest context leaves less than a page for each sequence.
    let spare = plan.device.memory_bytes - context.total_bytes;
    assert!(spare <= 64 * 64 * 57_344, "{context:?} leaves {spare} bytes");
}

#[test]
fn the_most_sequences_that_can_be_planned_have_a_largest_context() {
    let config = quantised("2b", AWQ);
    let options = PlanOptions {
        max_seqs: 1 << 16,
        kv_pool_tokens: 1 << 30,
        ..PlanOptions::new(&config, 1 << 14, 1_003_520)
    };
    let plan = Plan::new(&config, &Device::cpu(2, u64::MAX, 0.0, 0.0), &options).unwrap();
    assert_eq!(plan.largest_context().unwrap(), Some(1 << 14));
}

#[test]
fn gpus_are_known_by_what_drivers_call_them_and_no_others_for_them() {
    let name = |product| Device::gpu_by_product_name(product).map(|d| d.name);
    for (product, expected) in [
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100 80GB PCIe", "a100-80g-pcie"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ] {
        assert_eq!(name(product).as_deref(), Some(expected));
    }
    for other in [
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "NVIDIA L40",
        "NVIDIA A10G",
        "NVIDIA GH200 480GB",
        "NVIDIA H100 PCIe",
    ] {
        assert_eq!(name(other), None, "{other}");
    }
    assert!(Device::gpu_names().into_iter().all(|gpu| Device::gpu(gpu).is_some()));
}
