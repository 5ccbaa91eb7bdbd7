//! The JSON files of the published checkpoints.

use serde_json::{Value, json};

use crate::{Format, Size};

/// The chat template of the published checkpoints.
const CHAT_TEMPLATE: &str = include_str!("chat_template.jinja");

/// The added tokens, in the order of their ids. The first follows the base vocabulary.
const ADDED_TOKENS: [&str; 14] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
];

/// The sizes of one model.
struct Sizes {
    hidden: u32,
    intermediate: u32,
    layers: u32,
    heads: u32,
    kv_heads: u32,
    vocab: u32,
    tied: bool,
    vision_depth: u32,
    vision_width: u32,
    vision_heads: u32,
    /// Id of `<|endoftext|>`, the first added token.
    first_added: u32,
}

impl Sizes {
    fn of(size: Size, format: Format) -> Self {
        let hub = Sizes {
            hidden: 1536,
            intermediate: 8960,
            layers: 28,
            heads: 12,
            kv_heads: 2,
            vocab: 151_936,
            tied: true,
            vision_depth: 32,
            vision_width: 1280,
            vision_heads: 16,
            first_added: 151_643,
        };
        match size {
            Size::B2 => hub,
            Size::B7 => Sizes {
                hidden: 3584,
                intermediate: 18944,
                heads: 28,
                kv_heads: 4,
                vocab: 152_064,
                tied: false,
                ..hub
            },
            Size::B72 => Sizes {
                hidden: 8192,
                // The quantised models were padded to whole groups on every device.
                intermediate: if format == Format::Bf16 { 29568 } else { 29696 },
                layers: 80,
                heads: 64,
                kv_heads: 8,
                vocab: 152_064,
                tied: false,
                ..hub
            },
            Size::Tiny => Sizes {
                hidden: 256,
                intermediate: 512,
                layers: 4,
                heads: 2,
                kv_heads: 1,
                vocab: 1280,
                tied: false,
                vision_depth: 4,
                vision_width: 160,
                vision_heads: 2,
                first_added: 1200,
            },
        }
    }
}

/// The `config.json` of a model in a format, with the fields of the published file.
pub fn config_json(size: Size, format: Format) -> Value {
    let s = Sizes::of(size, format);
    let token = |i: u32| s.first_added + i;
    let mut config = json!({
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": token(0),
        "eos_token_id": token(2),
        "vision_start_token_id": token(9),
        "vision_end_token_id": token(10),
        "vision_token_id": token(11),
        "image_token_id": token(12),
        "video_token_id": token(13),
        "hidden_act": "silu",
        "hidden_size": s.hidden,
        "initializer_range": 0.02,
        "intermediate_size": s.intermediate,
        "max_position_embeddings": 32768,
        "max_window_layers": s.layers,
        "model_type": "qwen2_vl",
        "num_attention_heads": s.heads,
        "num_hidden_layers": s.layers,
        "num_key_value_heads": s.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": s.tied,
        "torch_dtype": if format == Format::Bf16 { "bfloat16" } else { "float16" },
        "transformers_version": "4.41.2",
        "use_cache": true,
        "use_sliding_window": false,
        "vision_config": {
            "depth": s.vision_depth,
            "embed_dim": s.vision_width,
            "mlp_ratio": 4,
            "num_heads": s.vision_heads,
            "in_chans": 3,
            "hidden_size": s.hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": s.vocab,
    });
    let gptq = |bits: u32| {
        json!({
            "bits": bits,
            "damp_percent": 0.1,
            "desc_act": false,
            "group_size": 128,
            "quant_method": "gptq",
            "static_groups": false,
            "sym": true,
            "true_sequential": true,
        })
    };
    let quantization = match format {
        Format::Bf16 => return config,
        Format::Awq => json!({
            "bits": 4,
            "group_size": 128,
            "modules_to_not_convert": ["visual"],
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": true,
        }),
        Format::GptqInt4 => gptq(4),
        Format::GptqInt8 => gptq(8),
    };
    config["quantization_config"] = quantization;
    config
}

/// The small files beside `config.json`, by name. Token ids are those of `config`.
pub fn side_files(config: &Value) -> Vec<(&'static str, Value)> {
    let first = config["bos_token_id"].as_u64().unwrap_or(151_643);
    let added: serde_json::Map<String, Value> = (first..)
        .zip(ADDED_TOKENS)
        .map(|(id, content)| {
            let token = json!({
                "content": content,
                "lstrip": false,
                "normalized": false,
                "rstrip": false,
                "single_word": false,
                "special": true,
            });
            (id.to_string(), token)
        })
        .collect();
    vec![
        (
            "generation_config.json",
            json!({
                "bos_token_id": first,
                "pad_token_id": first,
                "do_sample": true,
                "eos_token_id": [first + 2, first],
                "repetition_penalty": 1.0,
                "temperature": 0.01,
                "top_p": 0.001,
                "top_k": 1,
                "transformers_version": "4.37.0",
            }),
        ),
        (
            "preprocessor_config.json",
            json!({
                "min_pixels": 3136,
                "max_pixels": 12_845_056,
                "patch_size": 14,
                "temporal_patch_size": 2,
                "merge_size": 2,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2VLProcessor",
            }),
        ),
        (
            "tokenizer_config.json",
            json!({
                "add_prefix_space": false,
                "added_tokens_decoder": added,
                "additional_special_tokens": ADDED_TOKENS[1..],
                "bos_token": null,
                "chat_template": CHAT_TEMPLATE,
                "clean_up_tokenization_spaces": false,
                "eos_token": "<|im_end|>",
                "padding_side": "left",
                "errors": "replace",
                "model_max_length": 32768,
                "pad_token": "<|endoftext|>",
                "split_special_tokens": false,
                "tokenizer_class": "Qwen2Tokenizer",
                "unk_token": null,
            }),
        ),
        ("chat_template.json", json!({"chat_template": CHAT_TEMPLATE})),
    ]
}
