//! What the tensors are filled with.
//!
//! Matrices have zero mean and variance 1/k for k inputs, so that a layer maps inputs of order one
//! to outputs of order one; quantised matrices get codes of all values, and scales that give the
//! same variance. Norms are 1, their biases and those of linear layers small.

use half::{bf16, f16};
use qwenvl_graph::config::Quantization;
use qwenvl_graph::{DType, ModelConfig};

use crate::Tensor;

/// Standard deviation of biases.
const BIAS_STD: f32 = 0.02;
/// Entries of the table of normal deviates; a power of two.
const TABLE: usize = 4096;

/// xoshiro256++ 1.0 by Blackman and Vigna, seeded by splitmix64.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

impl Rng {
    /// A generator for this seed and name; different names give unrelated sequences.
    pub fn new(seed: u64, name: &str) -> Self {
        // FNV-1a.
        let hash =
            name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let mut state: u64 = seed.rotate_left(32) ^ hash;
        Rng(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    /// 64 random bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in 0..1, never 0.
    fn uniform(&mut self) -> f32 {
        ((self.next_u64() >> 40) as f32 + 0.5) / (1 << 24) as f32
    }
}

/// How one tensor is filled.
enum Kind {
    /// A number from a table of `TABLE` for each element: 2 or 4 bytes of it are used.
    Table { table: Vec<[u8; 4]>, size: usize },
    /// All 32 bits random: codes of any width.
    Bits,
    /// Zero points: of 4 bits 7 or 8, of 8 bits 0x77, 0x78, 0x87 or 0x88.
    Zeros,
    /// The same bytes over and over.
    Repeat(Vec<u8>),
    /// `index / group` for each element.
    Groups { group: usize },
}

/// Produces the data of one tensor, front to back.
pub struct Fill {
    kind: Kind,
    rng: Rng,
    /// Bytes produced so far.
    at: usize,
}

impl Fill {
    /// For one tensor of a model.
    pub fn new(tensor: &Tensor, config: &ModelConfig, seed: u64) -> Self {
        let mut rng = Rng::new(seed, &tensor.spec.name);
        let kind = kind(tensor, config, &mut rng);
        Fill { kind, rng, at: 0 }
    }

    /// Whether the tensor is one that a sparse checkpoint leaves out: anything but norms and group
    /// indices.
    pub fn is_matrix(&self) -> bool {
        !matches!(self.kind, Kind::Repeat(_) | Kind::Groups { .. })
    }

    /// Fills the next bytes. The length must be a multiple of 8 except at the end.
    pub fn next(&mut self, out: &mut [u8]) {
        let rng = &mut self.rng;
        match &self.kind {
            Kind::Table { table, size: 2 } => {
                let pick = |r: u64, i: u32| {
                    let [a, b, ..] = table[(r >> (16 * i)) as usize % TABLE];
                    [a, b]
                };
                fill_words(out, || {
                    let r = rng.next_u64();
                    let ([a, b], [c, d], [e, f], [g, h]) = (pick(r, 0), pick(r, 1), pick(r, 2), pick(r, 3));
                    [a, b, c, d, e, f, g, h]
                });
            }
            Kind::Table { table, .. } => fill_words(out, || {
                let r = rng.next_u64();
                let ([a, b, c, d], [e, f, g, h]) =
                    (table[r as usize % TABLE], table[(r >> 32) as usize % TABLE]);
                [a, b, c, d, e, f, g, h]
            }),
            Kind::Bits => fill_words(out, || rng.next_u64().to_le_bytes()),
            // Nibbles of 7, plus a random bit each.
            Kind::Zeros => fill_words(out, || {
                (0x7777_7777_7777_7777 + (rng.next_u64() & 0x1111_1111_1111_1111)).to_le_bytes()
            }),
            Kind::Repeat(pattern) => {
                for (i, byte) in out.iter_mut().enumerate() {
                    *byte = pattern[(self.at + i) % pattern.len()];
                }
            }
            Kind::Groups { group } => {
                for (i, word) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    *word = (((self.at / 4 + i) / group) as u32).to_le_bytes();
                }
            }
        }
        self.at += out.len();
    }
}

fn fill_words(out: &mut [u8], mut next: impl FnMut() -> [u8; 8]) {
    let (words, rest) = out.as_chunks_mut::<8>();
    for word in words {
        *word = next();
    }
    if !rest.is_empty() {
        let last = next();
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

fn kind(tensor: &Tensor, config: &ModelConfig, rng: &mut Rng) -> Kind {
    let (name, shape) = (tensor.spec.name.as_str(), &tensor.spec.shape);
    let (module, suffix) = name.rsplit_once('.').unwrap_or(("", name));
    // Number of inputs and of code values of the quantised layer this tensor belongs to.
    let mut quantised = |levels: f32, k: usize| {
        // Codes are uniform over `levels` values.
        let code_std = ((levels * levels - 1.0) / 12.0).sqrt();
        let scale = 1.0 / ((k as f32).sqrt() * code_std);
        table(tensor.dtype, |rng| scale * (0.75 + 0.5 * rng.uniform()), rng)
    };
    match (suffix, config.quantization) {
        ("qweight", _) => Kind::Bits,
        ("qzeros", Quantization::Gptq { bits: 8, sym: true, v2, .. }) => {
            Kind::Repeat(vec![if v2 { 0x80 } else { 0x7f }])
        }
        ("qzeros", Quantization::Gptq { bits: 4, sym: true, v2, .. }) => {
            Kind::Repeat(vec![if v2 { 0x88 } else { 0x77 }])
        }
        ("qzeros", _) => Kind::Zeros,
        ("scales", Quantization::Gptq { bits, group_size, .. }) => {
            let k = group_size.map_or(config.text.hidden_size, |group| group * shape[0]);
            quantised((1u32 << bits) as f32, k)
        }
        ("scales", Quantization::Awq { group_size }) => {
            quantised(16.0, group_size.map_or(config.text.hidden_size, |group| group * shape[0]))
        }
        ("g_idx", Quantization::Gptq { group_size, .. }) => {
            Kind::Groups { group: group_size.unwrap_or(shape[0]) }
        }
        ("bias", _) => normal_table(tensor.dtype, BIAS_STD, rng),
        _ if is_norm(module) => {
            Kind::Repeat(encode(tensor.dtype, 1.0)[..tensor.dtype.size_bytes() as usize].to_vec())
        }
        _ => {
            let k: usize = shape[1..].iter().product();
            normal_table(tensor.dtype, 1.0 / (k.max(1) as f32).sqrt(), rng)
        }
    }
}

fn is_norm(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    last.contains("norm") || last == "ln_q"
}

/// Normal deviates, with mean zero and the given standard deviation up to rounding.
fn normal_table(dtype: DType, std: f32, rng: &mut Rng) -> Kind {
    let mut half: Vec<f32> = (0..TABLE / 2)
        .map(|_| (-2.0 * rng.uniform().ln()).sqrt() * (std::f32::consts::TAU * rng.uniform()).cos())
        .collect();
    let norm = (half.iter().map(|x| x * x).sum::<f32>() / half.len() as f32).sqrt();
    half.iter_mut().for_each(|x| *x *= std / norm);
    let mut values = half.iter().flat_map(|&x| [x, -x]);
    table(dtype, |_| values.next().unwrap_or(0.0), rng)
}

fn table(dtype: DType, mut value: impl FnMut(&mut Rng) -> f32, rng: &mut Rng) -> Kind {
    let table = (0..TABLE).map(|_| encode(dtype, value(rng))).collect();
    Kind::Table { table, size: dtype.size_bytes() as usize }
}

/// A number in a type, little-endian, in the first bytes.
fn encode(dtype: DType, x: f32) -> [u8; 4] {
    let two = |bits: u16| u32::from(bits).to_le_bytes();
    match dtype {
        DType::F32 => x.to_le_bytes(),
        DType::F16 => two(f16::from_f32(x).to_bits()),
        DType::BF16 => two(bf16::from_f32(x).to_bits()),
        DType::I32 => (x as i32).to_le_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, Size, config_json, tensors};

    fn data(name: &str, format: Format, chunk: usize) -> Vec<u8> {
        let config = ModelConfig::from_json(&config_json(Size::Tiny, format).to_string()).unwrap();
        let tensors = tensors(&config).unwrap();
        let tensor = tensors.iter().find(|t| t.spec.name == name).unwrap();
        let mut out = vec![0; tensor.bytes() as usize];
        let mut fill = Fill::new(tensor, &config, 1);
        out.chunks_mut(chunk).for_each(|chunk| fill.next(chunk));
        out
    }

    #[test]
    fn dense_matrices_have_zero_mean_and_variance_one_over_k() {
        let bytes = data("model.layers.1.mlp.down_proj.weight", Format::Bf16, 1 << 16);
        let values: Vec<f32> =
            bytes.as_chunks::<2>().0.iter().map(|c| bf16::from_le_bytes(*c).to_f32()).collect();
        assert_eq!(values.len(), 256 * 512);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 1e-3, "{mean}");
        assert!((variance * 512.0 - 1.0).abs() < 0.03, "{variance}");
    }

    #[test]
    fn the_data_do_not_depend_on_the_size_of_the_chunks() {
        for (name, format) in [
            ("model.layers.0.mlp.down_proj.weight", Format::Bf16),
            ("model.layers.0.mlp.down_proj.qweight", Format::Awq),
            ("model.layers.0.mlp.down_proj.g_idx", Format::GptqInt4),
            ("model.norm.weight", Format::Bf16),
        ] {
            assert!(data(name, format, 8) == data(name, format, 1 << 20), "{name}");
        }
        let first = |name| data(name, Format::Bf16, 64)[..64].to_vec();
        assert_ne!(first("model.layers.0.mlp.up_proj.weight"), first("model.layers.0.mlp.gate_proj.weight"));
    }

    #[test]
    fn norms_are_one_and_group_indices_count_groups() {
        assert!(data("model.norm.weight", Format::Bf16, 64).chunks(2).all(|c| c == [0x80, 0x3f]));
        let g_idx = data("model.layers.0.mlp.down_proj.g_idx", Format::GptqInt8, 64);
        let g_idx: Vec<u32> = g_idx.as_chunks::<4>().0.iter().map(|c| u32::from_le_bytes(*c)).collect();
        assert!(g_idx.iter().enumerate().all(|(k, g)| *g as usize == k / 128));
        assert!(data("model.layers.0.mlp.down_proj.qzeros", Format::GptqInt8, 64).iter().all(|b| *b == 0x7f));
    }
}
