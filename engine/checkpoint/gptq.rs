//! AutoGPTQ's packing of 4- and 8-bit weights, unpacked.
//!
//! A linear layer of `n` outputs and `k` inputs is stored as codes `[k, n]`, a group for each input,
//! and per group a zero point and a scale for each output:
//! `W[k, n] = (code[k, n] - zero[g_idx[k], n]) * scale[g_idx[k], n]`, used as `y = x W`.
//!
//! A 32-bit word holds 8 or 4 values, lowest bits first: of neighbouring inputs for codes, of
//! neighbouring outputs for zero points. Version 1 stores zero points less one. AutoGPTQ adds the one
//! within the bits of a code, so a stored 15 (255 with 8 bits) means 0; that is followed here because
//! its packer wrote the files, though several GPU kernels read 16 (256). Symmetric files hold 7 (127)
//! everywhere and cannot tell. Version 2 stores zero points as they are.
//! Source: AutoGPTQ 0.7.1, `auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py`.

use half::f16;
use qwenvl_graph::DType;
use qwenvl_graph::config::Quantization;
use qwenvl_graph::weights::Linear;

use super::{Checkpoint, TensorRef, check_finite, to_f32_vec};
use crate::error::{Error, Result};

/// A quantised linear layer as it is stored. Indices are `k` for inputs, `n` for outputs and `g`
/// for groups of inputs; all must be in range.
#[derive(Clone, Debug)]
pub struct GptqLinear<'a> {
    /// Packed codes, `[k · bits / 32, n]` words.
    pub qweight: &'a [u8],
    /// Packed zero points, `[groups, n · bits / 32]` words.
    pub qzeros: &'a [u8],
    /// Scales, `[groups, n]` of f16.
    pub scales: &'a [u8],
    /// The group of each input.
    pub g_idx: Vec<u32>,
    /// Outputs.
    pub n: usize,
    /// 4 or 8.
    pub bits: u32,
    /// Whether zero points are stored as they are, not less one.
    pub v2: bool,
}

impl<'a> GptqLinear<'a> {
    /// Puts the parts together; `None` if their lengths do not fit, a group is out of range, or `bits`
    /// is neither 4 nor 8.
    pub fn new(
        [qweight, qzeros, scales]: [&'a [u8]; 3],
        g_idx: Vec<u32>,
        n: usize,
        bits: u32,
        v2: bool,
    ) -> Option<Self> {
        let per_word = match bits {
            4 | 8 => 32 / bits as usize,
            _ => return None,
        };
        let k = g_idx.len();
        let groups = scales.len().checked_div(n.checked_mul(2)?)?;
        let fits = n.is_multiple_of(per_word)
            && k.is_multiple_of(per_word)
            && qweight.len() == (k / per_word).checked_mul(n)?.checked_mul(4)?
            && qzeros.len() == groups * (n / per_word) * 4
            && scales.len() == groups * n * 2
            && g_idx.iter().all(|&g| (g as usize) < groups);
        fits.then_some(GptqLinear { qweight, qzeros, scales, g_idx, n, bits, v2 })
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.g_idx.len()
    }

    /// The code of a weight.
    pub fn code(&self, k: usize, n: usize) -> u8 {
        let per_word = 32 / self.bits as usize;
        self.value(self.qweight, k / per_word * self.n + n, k % per_word) as u8
    }

    /// The zero point of output `n` in group `g`.
    pub fn zero(&self, g: usize, n: usize) -> u8 {
        let per_word = 32 / self.bits as usize;
        let stored = self.value(self.qzeros, g * (self.n / per_word) + n / per_word, n % per_word);
        ((stored + u32::from(!self.v2)) & ((1 << self.bits) - 1)) as u8
    }

    /// The scale of output `n` in group `g`, as the bits of an f16.
    pub fn scale_bits(&self, g: usize, n: usize) -> u16 {
        let at = 2 * (g * self.n + n);
        u16::from_le_bytes([self.scales[at], self.scales[at + 1]])
    }

    /// The weight itself: the integer difference times the scale, rounded once to f16.
    pub fn weight(&self, k: usize, n: usize) -> f16 {
        let g = self.g_idx[k] as usize;
        let difference = i32::from(self.code(k, n)) - i32::from(self.zero(g, n));
        // The product of an f16 and a 9-bit integer is exact in f32.
        f16::from_f32(difference as f32 * f16::from_bits(self.scale_bits(g, n)).to_f32())
    }

    fn value(&self, words: &[u8], word: usize, place: usize) -> u32 {
        let b = &words[4 * word..4 * word + 4];
        let word = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        word >> (self.bits as usize * place) & ((1 << self.bits) - 1)
    }
}

impl Checkpoint {
    /// The stored parts of a quantised layer of a GPTQ checkpoint, its groups checked.
    ///
    /// # Errors
    /// [`Error::Tensor`] if a part is missing or has another shape or type than `linear` asks for, or
    /// if `g_idx` names a group that is not there, or assigns inputs out of order although the
    /// configuration says `desc_act` false; [`Error::Unsupported`] if the checkpoint is not GPTQ.
    pub fn gptq_linear(&self, linear: &Linear) -> Result<GptqLinear<'_>> {
        let Quantization::Gptq { bits, desc_act, v2, .. } = self.config.quantization else {
            return Err(Error::Unsupported {
                what: format!("reading {} as GPTQ", linear.name),
                help: format!("the checkpoint is {}", self.config.format_name()),
            });
        };
        let (n, k, per_word) = (linear.n, linear.k, 32 / bits as usize);
        let group = self.config.quantization.group(k);
        let groups = k.div_ceil(group);
        let part = |suffix: &str, shape: &[usize], dtype| self.part(&linear.name, suffix, shape, dtype);
        let qweight = part("qweight", &[k / per_word, n], DType::I32)?;
        let qzeros = part("qzeros", &[groups, n / per_word], DType::I32)?;
        let scales = part("scales", &[groups, n], DType::F16)?;
        let g_idx = part("g_idx", &[k], DType::I32)?;
        let assigned: Vec<u32> =
            g_idx.bytes.as_chunks::<4>().0.iter().map(|c| u32::from_le_bytes(*c)).collect();
        if let Some(at) = assigned.iter().position(|&g| g as usize >= groups) {
            let found = format!("group {} for input {at}", assigned[at] as i32);
            return Err(g_idx.error(found, format!("a group in 0..{groups}")));
        }
        if !desc_act && let Some(at) = assigned.iter().enumerate().position(|(k, &g)| g as usize != k / group)
        {
            let expected = format!(
                "{}, as desc_act is false in quantization_config (set it to true if the groups are meant)",
                at / group
            );
            return Err(g_idx.error(format!("group {} for input {at}", assigned[at]), expected));
        }
        GptqLinear::new([qweight.bytes, qzeros.bytes, scales.bytes], assigned, n, bits, v2).ok_or_else(|| {
            qweight.error(
                format!("{k} inputs and {n} outputs"),
                format!("inputs and outputs divisible by {per_word}"),
            )
        })
    }

    /// The bias of a quantised layer that has none in the model: AutoGPTQ writes one of zeros for
    /// every layer, which is dropped here. `None` if there is none or it is zero.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is not `[n]` floats, or holds NaN or infinity.
    pub fn extra_bias(&self, module: &str, n: usize) -> Result<Option<Vec<f32>>> {
        let name = format!("{module}.bias");
        if !self.contains(&name) {
            return Ok(None);
        }
        let tensor = self.tensor(&name)?;
        if tensor.shape != [n] {
            return Err(tensor.error(format!("{:?}", tensor.shape), format!("{:?}", [n])));
        }
        check_finite(&tensor)?;
        let values = to_f32_vec(&tensor)?;
        self.release(&tensor);
        Ok(values.iter().any(|v| *v != 0.0).then_some(values))
    }

    /// A tensor of a quantised layer, checked.
    pub(super) fn part(
        &self,
        module: &str,
        suffix: &str,
        shape: &[usize],
        dtype: DType,
    ) -> Result<TensorRef<'_>> {
        let tensor = self.tensor(&format!("{module}.{suffix}"))?;
        if tensor.shape != shape || tensor.dtype != dtype {
            return Err(
                tensor.error(format!("{} {:?}", tensor.dtype, tensor.shape), format!("{dtype} {shape:?}"))
            );
        }
        Ok(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_stored_zero_point_wraps_to_zero_in_version_1_only() {
        let (q, z, s) = ([0; 32], [0xff; 4], [0; 16]);
        for (bits, k, n, largest) in [(4, 8, 8, 15), (8, 8, 4, 255)] {
            let make = |v2| {
                GptqLinear::new(
                    [&q[..k * n * bits / 32 * 4], &z, &s[..2 * n]],
                    vec![0; k],
                    n,
                    bits as u32,
                    v2,
                )
            };
            assert_eq!(make(false).unwrap().zero(0, 1), 0);
            assert_eq!(make(true).unwrap().zero(0, 1), largest);
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let (q, z, s) = ([0; 64], [0; 8], [0; 32]);
        let make = |g_idx: Vec<u32>, n, bits| GptqLinear::new([&q, &z, &s], g_idx, n, bits, false);
        assert!(make([0; 8].repeat(2), 8, 4).is_some());
        for (g_idx, n, bits) in [
            (vec![2; 16], 8, 4),
            (vec![0; 16], 0, 4),
            (vec![0; 16], 8, 3),
            (vec![0; 15], 8, 4),
            (vec![], 8, 8),
        ] {
            assert!(make(g_idx, n, bits).is_none());
        }
    }
}
