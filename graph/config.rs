//! `config.json` of a checkpoint, in both layouts that exist on the hub.
//!
//! Field names are those of the file. Defaults for absent keys are the class defaults of
//! transformers 4.57.6 (`configuration_qwen2_vl.py`).

use serde_json::{Map, Value};

use crate::dtype::DType;
use crate::error::{Error, Result};

/// Largest value accepted for any size field. Bounds every later product well below `u64::MAX`.
const MAX_SIZE: u64 = 1 << 24;
/// Largest number of layers accepted.
const MAX_LAYERS: u64 = 4096;

/// Everything the engine reads from `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The decoder.
    pub text: TextConfig,
    /// The vision tower and merger.
    pub vision: VisionConfig,
    /// How the decoder's linear layers are stored.
    pub quantization: Quantization,
    /// `torch_dtype` or `dtype`: the type of everything that is not quantised, as the file states it.
    /// The headers of the weight files decide; this is what a plan without weights goes by.
    pub dtype: DType,
    /// Placeholder token of images in prompts.
    pub image_token_id: u32,
    /// Placeholder token of videos in prompts.
    pub video_token_id: u32,
    /// Token before the placeholders of an image or video.
    pub vision_start_token_id: u32,
    /// Token after the placeholders of an image or video.
    pub vision_end_token_id: u32,
}

/// The language model.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key/value heads.
    pub num_key_value_heads: usize,
    /// Rows of the embedding table and of the output head.
    pub vocab_size: usize,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Channel pairs of a head that rotate by the temporal, height and width position.
    pub mrope_section: [usize; 3],
    /// Longest context the model was trained for.
    pub max_position_embeddings: usize,
}

impl TextConfig {
    /// Channels of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Width of all key (or value) heads together.
    pub fn kv_dim(&self) -> usize {
        self.num_key_value_heads * self.head_dim()
    }
}

/// The vision tower and merger.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Number of blocks.
    pub depth: usize,
    /// Width of the tower.
    pub embed_dim: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// MLP width as a multiple of `embed_dim`.
    pub mlp_ratio: usize,
    /// Side of a square patch in pixels.
    pub patch_size: usize,
    /// Side of the square of patches that becomes one token.
    pub spatial_merge_size: usize,
    /// Frames per patch.
    pub temporal_patch_size: usize,
    /// Colour channels.
    pub in_channels: usize,
    /// Output width of the merger; equals the decoder's `hidden_size`.
    pub hidden_size: usize,
}

impl VisionConfig {
    /// Channels of one attention head.
    pub fn head_dim(&self) -> usize {
        self.embed_dim / self.num_heads
    }

    /// Values in one flattened patch, 1176 for the published models.
    pub fn patch_dim(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Pictures are resized to multiples of this many pixels, 28 for the published models.
    pub fn pixel_factor(&self) -> usize {
        self.patch_size * self.spatial_merge_size
    }

    /// Patches that become one token, 4 for the published models.
    pub fn patches_per_token(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }
}

/// How the linear layers of the decoder are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// Not quantised.
    None,
    /// AutoAWQ "gemm": 4 bit, a scale and a zero point for each group of input channels.
    Awq {
        /// Input channels that share a scale; `None` for one group in all.
        group_size: Option<usize>,
    },
    /// AutoGPTQ.
    Gptq {
        /// 4 or 8.
        bits: u32,
        /// Input channels that share a scale; `None` for one group in all.
        group_size: Option<usize>,
        /// Whether groups are assigned by activation order.
        desc_act: bool,
        /// Whether all zero points are in the middle of the codes.
        sym: bool,
        /// Whether stored zero points lack the minus one (`checkpoint_format: gptq_v2`).
        v2: bool,
    },
}

impl Quantization {
    /// Inputs that share a scale in the files of a layer with `k`; the last group may have fewer.
    pub fn group(self, k: usize) -> usize {
        match self {
            Quantization::Awq { group_size } | Quantization::Gptq { group_size, .. } => {
                group_size.unwrap_or(k).min(k).max(1)
            }
            Quantization::None => k,
        }
    }

    /// The name by which users know the format: `BF16`-like formats are named by their dtype.
    pub fn name(&self) -> &'static str {
        match self {
            Quantization::None => "unquantised",
            Quantization::Awq { .. } => "AWQ",
            Quantization::Gptq { bits: 8, .. } => "GPTQ-Int8",
            Quantization::Gptq { .. } => "GPTQ-Int4",
        }
    }
}

impl ModelConfig {
    /// Reads a `config.json`. If the file has a `text_config` object, that one describes the
    /// language model and the flat copies beside it are ignored.
    ///
    /// # Errors
    /// [`Error::Json`] if the text is not JSON, [`Error::Config`] naming the first field that is
    /// malformed, out of range or not something this engine does.
    pub fn from_json(text: &str) -> Result<Self> {
        let root: Value = serde_json::from_str(text).map_err(|e| Error::Json { message: e.to_string() })?;
        let root = Section::new("", &root)?;
        match root.str("model_type")? {
            Some("qwen2_vl") => {}
            Some(other) => {
                return Err(root.error("model_type", other, "qwen2_vl (this engine runs Qwen2-VL only)"));
            }
            None => return Err(root.error("model_type", "missing", "qwen2_vl")),
        }
        let nested = root.object("text_config")?;
        let text = text_config(nested.as_ref().unwrap_or(&root), &root)?;
        let vision_section = root
            .object("vision_config")?
            .ok_or_else(|| root.error("vision_config", "missing", "an object"))?;
        let vision = vision_config(&vision_section)?;
        if vision.hidden_size != text.hidden_size {
            return Err(vision_section.error(
                "hidden_size",
                vision.hidden_size,
                format!("the decoder's hidden_size {}", text.hidden_size),
            ));
        }
        let ids = nested.as_ref().unwrap_or(&root);
        let token = |key: &str, default: u64| -> Result<u32> {
            let id = match root.u64(key)? {
                Some(id) => id,
                None => ids.u64(key)?.unwrap_or(default),
            };
            match u32::try_from(id) {
                Ok(id) if (id as usize) < text.vocab_size => Ok(id),
                _ => Err(root.error(key, id, format!("a token id below vocab_size {}", text.vocab_size))),
            }
        };
        Ok(ModelConfig {
            image_token_id: token("image_token_id", 151_655)?,
            video_token_id: token("video_token_id", 151_656)?,
            vision_start_token_id: token("vision_start_token_id", 151_652)?,
            vision_end_token_id: token("vision_end_token_id", 151_653)?,
            quantization: quantization(&root, nested.as_ref())?,
            dtype: dtype(&root)?,
            text,
            vision,
        })
    }

    /// The name of the storage format as the model card spells it: `BF16`, `AWQ`, `GPTQ-Int4`, ...
    pub fn format_name(&self) -> String {
        match self.quantization {
            Quantization::None => self.dtype.name().to_uppercase(),
            q => q.name().to_string(),
        }
    }
}

fn text_config(s: &Section, root: &Section) -> Result<TextConfig> {
    let config = TextConfig {
        hidden_size: s.size("hidden_size", 8192)?,
        intermediate_size: s.size("intermediate_size", 29568)?,
        num_hidden_layers: s.bounded("num_hidden_layers", 80, MAX_LAYERS)?,
        num_attention_heads: s.size("num_attention_heads", 64)?,
        num_key_value_heads: s.size("num_key_value_heads", 8)?,
        vocab_size: s.size("vocab_size", 152_064)?,
        tie_word_embeddings: match s.bool("tie_word_embeddings")? {
            Some(tied) => tied,
            None => root.bool("tie_word_embeddings")?.unwrap_or(false),
        },
        rms_norm_eps: s.positive("rms_norm_eps", 1e-5)?,
        rope_theta: s.positive("rope_theta", 1e6)?,
        mrope_section: mrope_section(s)?,
        max_position_embeddings: s.size("max_position_embeddings", 32_768)?,
    };
    if let Some(act) = s.str("hidden_act")?
        && act != "silu"
    {
        return Err(s.error("hidden_act", act, "silu"));
    }
    if s.bool("use_sliding_window")? == Some(true) {
        return Err(s.error(
            "use_sliding_window",
            true,
            "false (no published Qwen2-VL uses a sliding window)",
        ));
    }
    let (heads, kv) = (config.num_attention_heads, config.num_key_value_heads);
    if !config.hidden_size.is_multiple_of(heads) {
        return Err(s.error(
            "num_attention_heads",
            heads,
            format!("a divisor of hidden_size {}", config.hidden_size),
        ));
    }
    if heads % kv != 0 {
        return Err(s.error("num_key_value_heads", kv, format!("a divisor of num_attention_heads {heads}")));
    }
    let pairs: usize = config.mrope_section.iter().sum();
    if pairs * 2 != config.head_dim() {
        return Err(s.error(
            "rope_scaling.mrope_section",
            format!("{:?}", config.mrope_section),
            format!(
                "three numbers with sum {}, half of head_dim {}",
                config.head_dim() / 2,
                config.head_dim()
            ),
        ));
    }
    if !config.head_dim().is_multiple_of(8) {
        return Err(s.error(
            "hidden_size",
            config.hidden_size,
            "a head_dim (hidden_size / heads) that is a multiple of 8",
        ));
    }
    Ok(config)
}

fn mrope_section(s: &Section) -> Result<[usize; 3]> {
    let Some(scaling) = s.object("rope_scaling")? else {
        return Err(s.error("rope_scaling", "missing", "an object with type mrope and mrope_section"));
    };
    for key in ["type", "rope_type"] {
        if let Some(kind) = scaling.str(key)?
            && kind != "mrope"
            && kind != "default"
        {
            return Err(scaling.error(key, kind, "mrope or default"));
        }
    }
    let found = scaling.map.get("mrope_section");
    let sections = found.and_then(Value::as_array).filter(|a| a.len() == 3).and_then(|a| {
        let mut out = [0; 3];
        for (slot, value) in out.iter_mut().zip(a) {
            *slot = usize::try_from(value.as_u64().filter(|v| *v <= MAX_SIZE)?).ok()?;
        }
        Some(out)
    });
    sections.ok_or_else(|| {
        let found = found.map_or("missing".to_string(), Value::to_string);
        scaling.error("mrope_section", found, "an array of three channel counts")
    })
}

fn vision_config(s: &Section) -> Result<VisionConfig> {
    let config = VisionConfig {
        depth: s.bounded("depth", 32, MAX_LAYERS)?,
        embed_dim: s.size("embed_dim", 1280)?,
        num_heads: s.size("num_heads", 16)?,
        mlp_ratio: s.bounded("mlp_ratio", 4, 64)?,
        patch_size: s.bounded("patch_size", 14, 256)?,
        spatial_merge_size: s.bounded("spatial_merge_size", 2, 16)?,
        temporal_patch_size: s.bounded("temporal_patch_size", 2, 16)?,
        in_channels: s.bounded("in_channels", 3, 64)?,
        hidden_size: s.size("hidden_size", 3584)?,
    };
    if let Some(act) = s.str("hidden_act")?
        && act != "quick_gelu"
    {
        return Err(s.error("hidden_act", act, "quick_gelu"));
    }
    if !config.embed_dim.is_multiple_of(config.num_heads) {
        return Err(s.error(
            "num_heads",
            config.num_heads,
            format!("a divisor of embed_dim {}", config.embed_dim),
        ));
    }
    if !config.head_dim().is_multiple_of(8) {
        return Err(s.error(
            "embed_dim",
            config.embed_dim,
            "a head_dim (embed_dim / num_heads) that is a multiple of 8",
        ));
    }
    if config.in_channels != 3 {
        return Err(s.error("in_channels", config.in_channels, "3 (red, green, blue)"));
    }
    Ok(config)
}

fn quantization(root: &Section, nested: Option<&Section>) -> Result<Quantization> {
    let section = match root.object("quantization_config")? {
        Some(found) => Some(found),
        None => nested.map(|n| n.object("quantization_config")).transpose()?.flatten(),
    };
    let Some(q) = section else { return Ok(Quantization::None) };
    let method = q.str("quant_method")?.unwrap_or("missing");
    let bits = q.u64("bits")?.or(q.u64("w_bit")?);
    let group = match q.map.get("group_size").or_else(|| q.map.get("q_group_size")) {
        None => Some(128),
        Some(v) if v.as_i64() == Some(-1) => None,
        Some(v) => match v.as_u64() {
            Some(g) if (1..=MAX_SIZE).contains(&g) && g % 8 == 0 => Some(g as usize),
            _ => return Err(q.error("group_size", v, "-1 or a positive multiple of 8")),
        },
    };
    match method {
        "awq" => {
            if bits.unwrap_or(4) != 4 {
                return Err(q.error("bits", bits.unwrap_or(4), "4 for awq"));
            }
            let version = q.str("version")?.unwrap_or("gemm");
            if !version.eq_ignore_ascii_case("gemm") {
                return Err(q.error("version", version, "gemm (other AWQ packings have another layout)"));
            }
            if q.bool("zero_point")? == Some(false) {
                return Err(q.error("zero_point", false, "true"));
            }
            Ok(Quantization::Awq { group_size: group })
        }
        "gptq" => {
            let bits = match bits {
                Some(4) => 4,
                Some(8) => 8,
                other => return Err(q.error("bits", other.map_or("missing".into(), |b| b.to_string()), "4 or 8 for gptq")),
            };
            let v2 = match q.str("checkpoint_format")? {
                None | Some("gptq") => false,
                Some("gptq_v2") => true,
                Some(other) => return Err(q.error("checkpoint_format", other, "gptq or gptq_v2")),
            };
            let (desc_act, sym) = (q.bool("desc_act")?.unwrap_or(false), q.bool("sym")?.unwrap_or(true));
            Ok(Quantization::Gptq { bits, group_size: group, desc_act, sym, v2 })
        }
        other => Err(q.error(
            "quant_method",
            other,
            "awq or gptq; for other quantisations use the BF16 checkpoint or one of the published AWQ or GPTQ ones",
        )),
    }
}

fn dtype(root: &Section) -> Result<DType> {
    let name = match root.str("torch_dtype")? {
        Some(name) => Some(name),
        None => root.str("dtype")?,
    };
    match name {
        None | Some("bfloat16") => Ok(DType::BF16),
        Some("float16") => Ok(DType::F16),
        Some("float32") => Ok(DType::F32),
        Some(other) => Err(root.error("torch_dtype", other, "bfloat16, float16 or float32")),
    }
}

/// One JSON object of the file, with the path that leads to it, for messages.
struct Section<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    fn new(path: &str, value: &'a Value) -> Result<Self> {
        match value.as_object() {
            Some(map) => Ok(Section { path: path.to_string(), map }),
            None => Err(Error::Config {
                field: if path.is_empty() { "the file".into() } else { path.into() },
                found: kind(value).into(),
                expected: "an object".into(),
            }),
        }
    }

    fn error(&self, key: &str, found: impl ToString, expected: impl ToString) -> Error {
        let field = if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) };
        Error::Config { field, found: found.to_string(), expected: expected.to_string() }
    }

    /// The value of `key`; JSON `null` counts as absent.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn object(&self, key: &str) -> Result<Option<Section<'a>>> {
        let path = if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) };
        self.get(key).map(|v| Section::new(&path, v)).transpose()
    }

    fn str(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| self.error(key, v, "a string"))).transpose()
    }

    fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.get(key).map(|v| v.as_bool().ok_or_else(|| self.error(key, v, "true or false"))).transpose()
    }

    fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.get(key)
            .map(|v| v.as_u64().ok_or_else(|| self.error(key, v, "a non-negative integer")))
            .transpose()
    }

    fn bounded(&self, key: &str, default: u64, max: u64) -> Result<usize> {
        // Some exporters write whole numbers as floats (`mlp_ratio: 4.0`).
        let value = match self.get(key) {
            Some(v) => v.as_u64().or_else(|| {
                v.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0 && *f <= max as f64).map(|f| f as u64)
            }),
            None => Some(default),
        };
        match value {
            Some(v) if (1..=max).contains(&v) => Ok(v as usize),
            _ => Err(self.error(key, &self.map[key], format!("an integer in 1..={max}"))),
        }
    }

    fn size(&self, key: &str, default: u64) -> Result<usize> {
        self.bounded(key, default, MAX_SIZE)
    }

    fn positive(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => match v.as_f64() {
                Some(f) if f.is_finite() && f > 0.0 => Ok(f),
                _ => Err(self.error(key, v, "a positive number")),
            },
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
