//! AutoAWQ's "gemm" packing of 4-bit weights, unpacked.
//!
//! A linear layer of `n` outputs and `k` inputs is stored as codes `[k, n]`, and per group of
//! `group` consecutive inputs a zero point and a scale for each output:
//! `W[k, n] = (code[k, n] - zero[k / group, n]) * scale[k / group, n]`, used as `y = x W`.
//!
//! Codes and zero points are packed alike: a 32-bit word holds eight neighbouring outputs of one
//! row, output `8c + j` in bits `4 R[j] ..` with `R = [0, 4, 1, 5, 2, 6, 3, 7]`: the even outputs in
//! the low half, the odd ones in the high half. Source: AutoAWQ 0.2.9,
//! `awq/modules/linear/gemm.py` and `awq/utils/packing_utils.py`.

use half::f16;
use qwenvl_graph::DType;
use qwenvl_graph::weights::{Linear, WeightFormat};

use super::Checkpoint;
use crate::error::{Error, Result};

/// The nibble of a word that holds output `8c + j`, by `j`.
const NIBBLE: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// A quantised linear layer as it is stored. Indices are `k` for inputs, `n` for outputs and `g`
/// for groups of inputs; all must be in range.
#[derive(Clone, Copy, Debug)]
pub struct AwqLinear<'a> {
    /// Packed codes, `[k, n / 8]` words.
    pub qweight: &'a [u8],
    /// Packed zero points, `[k / group, n / 8]` words.
    pub qzeros: &'a [u8],
    /// Scales, `[k / group, n]` of f16.
    pub scales: &'a [u8],
    /// Outputs, a multiple of 8.
    pub n: usize,
    /// Inputs, a multiple of `group`.
    pub k: usize,
    /// Inputs per group.
    pub group: usize,
}

impl<'a> AwqLinear<'a> {
    /// Puts the three parts together; `None` if their lengths do not fit the sizes.
    pub fn new(
        qweight: &'a [u8],
        qzeros: &'a [u8],
        scales: &'a [u8],
        (n, k, group): (usize, usize, usize),
    ) -> Option<Self> {
        let sizes_fit = group > 0 && n.is_multiple_of(8) && k.is_multiple_of(group);
        let fits = sizes_fit
            && qweight.len() == k.checked_mul(n)? / 2
            && qzeros.len() == (k / group) * n / 2
            && scales.len() == (k / group) * n * 2;
        fits.then_some(AwqLinear { qweight, qzeros, scales, n, k, group })
    }

    /// The 4-bit code of a weight.
    pub fn code(&self, k: usize, n: usize) -> u8 {
        nibble(self.qweight, k, n, self.n)
    }

    /// The zero point of output `n` in group `g`, 0..=15.
    pub fn zero(&self, g: usize, n: usize) -> u8 {
        nibble(self.qzeros, g, n, self.n)
    }

    /// The scale of output `n` in group `g`, as the bits of an f16.
    pub fn scale_bits(&self, g: usize, n: usize) -> u16 {
        let at = 2 * (g * self.n + n);
        u16::from_le_bytes([self.scales[at], self.scales[at + 1]])
    }

    /// The weight itself: the integer difference times the scale, rounded once to f16, bit for bit
    /// what AutoAWQ's dequantisation gives.
    pub fn weight(&self, k: usize, n: usize) -> f16 {
        let g = k / self.group;
        let difference = i32::from(self.code(k, n)) - i32::from(self.zero(g, n));
        // The product of an f16 and a 5-bit integer is exact in f32.
        f16::from_f32(difference as f32 * f16::from_bits(self.scale_bits(g, n)).to_f32())
    }

    /// The codes of input `k` for all outputs in order, one byte each.
    ///
    /// # Panics
    /// If `out` has not `n` elements.
    pub fn codes_row(&self, k: usize, out: &mut [u8]) {
        unpack_row(&self.qweight[k * self.n / 2..(k + 1) * self.n / 2], out);
    }

    /// The zero points of group `g` for all outputs in order, one byte each.
    ///
    /// # Panics
    /// If `out` has not `n` elements.
    pub fn zeros_row(&self, g: usize, out: &mut [u8]) {
        unpack_row(&self.qzeros[g * self.n / 2..(g + 1) * self.n / 2], out);
    }

    /// The scales of group `g` for all outputs in order, as the bits of f16.
    pub fn scales_row(&self, g: usize) -> impl ExactSizeIterator<Item = u16> + 'a {
        let row = &self.scales[2 * g * self.n..2 * (g + 1) * self.n];
        row.as_chunks::<2>().0.iter().map(|c| u16::from_le_bytes(*c))
    }
}

impl Checkpoint {
    /// The stored parts of a quantised layer of an AWQ checkpoint.
    ///
    /// # Errors
    /// [`Error::Tensor`] if a part is missing or has another shape or type than `linear` asks for,
    /// [`Error::Unsupported`] if `linear` is not a 4-bit layer.
    pub fn awq_linear(&self, linear: &Linear) -> Result<AwqLinear<'_>> {
        let WeightFormat::Int4 { .. } = linear.format else {
            return Err(Error::Unsupported {
                what: format!("reading {} as AWQ", linear.name),
                help: format!("it is stored as {}", linear.format.name()),
            });
        };
        let (n, k) = (linear.n, linear.k);
        let group = self.config.quantization.group(k);
        let part = |suffix: &str, shape: &[usize], dtype| self.part(&linear.name, suffix, shape, dtype);
        let qweight = part("qweight", &[k, n / 8], DType::I32)?;
        let qzeros = part("qzeros", &[k / group, n / 8], DType::I32)?;
        let scales = part("scales", &[k / group, n], DType::F16)?;
        AwqLinear::new(qweight.bytes, qzeros.bytes, scales.bytes, (n, k, group)).ok_or_else(|| {
            qweight.error(
                format!("{k} inputs and {n} outputs"),
                format!("inputs divisible by {group}, outputs divisible by 8"),
            )
        })
    }
}

/// The value at `row`, `column` of a packed matrix with `columns` columns.
fn nibble(words: &[u8], row: usize, column: usize, columns: usize) -> u8 {
    let at = 4 * (row * (columns / 8) + column / 8);
    let word = u32::from_le_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]);
    ((word >> (4 * NIBBLE[column % 8])) & 15) as u8
}

/// Unpacks words into one byte per value, eight values at a time.
fn unpack_row(words: &[u8], out: &mut [u8]) {
    assert_eq!(out.len(), 2 * words.len(), "one byte per value");
    for (word, out) in words.as_chunks::<4>().0.iter().zip(out.as_chunks_mut::<8>().0) {
        let word = u64::from(u32::from_le_bytes(*word));
        // The low half holds outputs 0, 2, 4, 6, the high half outputs 1, 3, 5, 7.
        *out = (spread(word & 0xffff) | spread(word >> 16) << 8).to_le_bytes();
    }
}

/// Moves the four nibbles of a 16-bit number to bits 0, 16, 32 and 48.
fn spread(x: u64) -> u64 {
    let x = (x | x << 24) & 0x0000_00ff_0000_00ff;
    (x | x << 12) & 0x000f_000f_000f_000f
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_example_of_the_format_unpacks_in_order() {
        // Codes 0..=7 in outputs 0..=7.
        let word = 0x7531_6420_u32.to_le_bytes();
        let mut row = [0; 8];
        unpack_row(&word, &mut row);
        assert_eq!(row, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(std::array::from_fn(|n| nibble(&word, 0, n, 8)), row);
    }

    #[test]
    fn parts_of_the_wrong_length_are_refused() {
        let (q, z, s) = ([0; 64], [0; 8], [0; 32]);
        assert!(AwqLinear::new(&q, &z, &s, (8, 16, 8)).is_some());
        for sizes in [(8, 16, 0), (8, 16, 16), (8, 16, 3), (4, 32, 8), (8, usize::MAX, 1)] {
            assert!(AwqLinear::new(&q, &z, &s, sizes).is_none(), "{sizes:?}");
        }
    }
}
