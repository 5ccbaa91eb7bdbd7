//! What fits a device, what would, and how fast physics allows it to be.

use crate::config::{ModelConfig, Quantization};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::{MAX_KV_POOL_TOKENS, Plan, PlanOptions};
use crate::shape::Sizes;

/// Prompt lengths of the model card's speed table, in tokens.
pub const CARD_INPUT_TOKENS: [usize; 4] = [1, 6144, 14336, 30720];
/// Tokens that the model card's table generates after each prompt.
pub const CARD_OUTPUT_TOKENS: usize = 2048;

/// Tokens/s of the speed table in the model card of Qwen2-VL-72B-Instruct-AWQ (Hugging Face hub, 2024): batch 1,
/// transformers 4.38.2 with FlashAttention 2.6.1 and the kernels of AutoGPTQ 0.6.0 and AutoAWQ 0.2.5 on A100s of
/// 80 GB. As many of them as the model needs: two to four for BF16, two for Int8, one for four bits but for two at
/// the longest input.
const CARD_72B: [(&str, [f64; 4]); 4] = [
    ("BF16", [8.90, 6.53, 4.39, 2.93]),
    ("GPTQ-Int8", [9.53, 6.97, 5.04, 3.16]),
    ("GPTQ-Int4", [11.04, 7.62, 5.39, 3.27]),
    ("AWQ", [12.00, 8.33, 5.72, 3.39]),
];

/// What the model card measured at [`CARD_INPUT_TOKENS`], tokens/s, for the models whose card is known.
pub fn card_measured(config: &ModelConfig) -> Option<[f64; 4]> {
    let is_72b = config.text.hidden_size == 8192 && config.text.num_hidden_layers == 80;
    CARD_72B.iter().find(|(format, _)| is_72b && *format == config.format_name()).map(|(_, row)| *row)
}

/// One row of the model card's speed table, on the plan's device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CardRow {
    /// Prompt tokens.
    pub input_tokens: usize,
    /// Decoding alone, tokens/s.
    pub decode_tokens_per_s: f64,
    /// Generated tokens over the time of prefill and decoding, as the card measures, tokens/s.
    pub tokens_per_s: f64,
    /// Time of the prefill, seconds.
    pub prefill_s: f64,
}

/// A change that would make a plan fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Remedy {
    /// What to change, in words.
    pub change: String,
    /// Total bytes then.
    pub total_bytes: u64,
}

impl Plan {
    /// The physical bound on each row of the card's table; `None` if the device's limits are not known.
    pub fn card_rows(&self) -> Option<Vec<CardRow>> {
        CARD_INPUT_TOKENS.iter().map(|&input| self.card_row(input)).collect()
    }

    fn card_row(&self, input_tokens: usize) -> Option<CardRow> {
        let prefill = self.prefill.cost(&Sizes::prefill(input_tokens, 0));
        let prefill_s = if input_tokens == 1 {
            0.0
        } else {
            self.device.bound_seconds(prefill.weight_bytes, prefill.flops)?
        };
        // Bytes are linear in the context, so the mean context gives the mean time.
        let context = input_tokens + CARD_OUTPUT_TOKENS / 2;
        let decode = self.decode_bytes(context);
        let token_s = self.device.bound_seconds(decode, 0)?;
        let total_s = prefill_s + token_s * CARD_OUTPUT_TOKENS as f64;
        Some(CardRow {
            input_tokens,
            decode_tokens_per_s: 1.0 / token_s,
            tokens_per_s: CARD_OUTPUT_TOKENS as f64 / total_s,
            prefill_s,
        })
    }

    /// Bytes that decoding one token of one sequence cannot avoid: every decoder weight once, and
    /// the KV entries of `context` tokens.
    pub fn decode_bytes(&self, context: usize) -> u64 {
        let weights = self.decode.cost(&Sizes::decode(1, 1)).weight_bytes;
        weights + context as u64 * self.memory.kv_bytes_per_token
    }

    /// The largest context that fits with everything else as planned, or `None` if not even one
    /// token does.
    ///
    /// # Errors
    /// Those of [`Plan::new`].
    pub fn largest_context(&self) -> Result<Option<usize>> {
        let max = self.options.context_tokens.max(self.config.text.max_position_embeddings);
        largest(max, |context| {
            let options = self.options_with_context(context);
            // A pool beyond what can be planned does not fit either.
            Ok(options.kv_pool_tokens <= MAX_KV_POOL_TOKENS
                && Plan::new(&self.config, &self.device, &options)?.fits())
        })
    }

    /// The options for another context, with a cache for as many sequences of it.
    fn options_with_context(&self, context: usize) -> PlanOptions {
        let o = &self.options;
        let pool = o.kv_pool_tokens as u128 * context as u128 / o.context_tokens as u128;
        PlanOptions {
            context_tokens: context,
            kv_pool_tokens: context.max(usize::try_from(pool).unwrap_or(usize::MAX)),
            max_visual_tokens: o.max_visual_tokens.min(context),
            ..o.clone()
        }
    }

    /// The largest image, in pixels, that fits with everything else as planned.
    ///
    /// # Errors
    /// Those of [`Plan::new`].
    pub fn largest_image(&self) -> Result<Option<u64>> {
        let per_token = self.config.vision.patches_per_token();
        let area = (self.config.vision.pixel_factor() as u64).pow(2);
        let tokens = largest(self.options.max_patches / per_token, |tokens| {
            let options = PlanOptions { max_patches: tokens * per_token, ..self.options.clone() };
            Ok(Plan::new(&self.config, &self.device, &options)?.fits())
        })?;
        Ok(tokens.map(|t| t as u64 * area))
    }

    /// Single changes that would make the plan fit, the smallest first.
    ///
    /// # Errors
    /// Those of [`Plan::new`].
    pub fn remedies(&self) -> Result<Vec<Remedy>> {
        let mut out = Vec::new();
        if let Some(context) = self.largest_context()? {
            let options = self.options_with_context(context);
            let total_bytes = Plan::new(&self.config, &self.device, &options)?.memory.total_bytes();
            out.push(Remedy { change: format!("--context {context}"), total_bytes });
        }
        if let Some(pixels) = self.largest_image()? {
            let patch = self.config.vision.patch_size as u64;
            let options =
                PlanOptions { max_patches: (pixels / (patch * patch)) as usize, ..self.options.clone() };
            let total_bytes = Plan::new(&self.config, &self.device, &options)?.memory.total_bytes();
            out.push(Remedy { change: format!("--max-pixels {pixels}"), total_bytes });
        }
        for (name, config) in other_formats(&self.config) {
            let plan = Plan::new(&config, &self.device, &self.options)?;
            if plan.fits() {
                out.push(Remedy {
                    change: format!("the {name} checkpoint"),
                    total_bytes: plan.memory.total_bytes(),
                });
            }
        }
        for name in Device::gpu_names() {
            let Some(device) = Device::gpu(name) else { continue };
            if device.kind == self.device.kind
                && device.memory_bytes > self.device.memory_bytes
                && device.memory_bytes >= self.memory.total_bytes()
            {
                out.push(Remedy {
                    change: format!("--device {name}"),
                    total_bytes: self.memory.total_bytes(),
                });
            }
        }
        Ok(out)
    }
}

/// The published formats of the same model other than its own.
fn other_formats(config: &ModelConfig) -> Vec<(&'static str, ModelConfig)> {
    // The published quantised 72B pads its MLP to a multiple of 256.
    let padded = config.text.intermediate_size.next_multiple_of(256);
    let gptq =
        |bits| Quantization::Gptq { bits, group_size: Some(128), desc_act: false, sym: true, v2: false };
    let formats = [
        ("AWQ", Quantization::Awq { group_size: Some(128) }),
        ("GPTQ-Int4", gptq(4)),
        ("GPTQ-Int8", gptq(8)),
        ("BF16", Quantization::None),
    ];
    formats
        .into_iter()
        .filter(|(_, q)| q.name() != config.quantization.name())
        .map(|(name, quantization)| {
            let mut other = ModelConfig { quantization, dtype: DType::BF16, ..config.clone() };
            if quantization != Quantization::None {
                other.text.intermediate_size = padded;
            }
            (name, other)
        })
        .collect()
}

/// The largest `n` in `1..=max` for which `fits` holds; `fits` must be monotone.
fn largest(max: usize, fits: impl Fn(usize) -> Result<bool>) -> Result<Option<usize>> {
    if max == 0 || !fits(1)? {
        return Ok(None);
    }
    let (mut good, mut bad) = (1, max + 1);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle)? { good = middle } else { bad = middle }
    }
    Ok(Some(good))
}
