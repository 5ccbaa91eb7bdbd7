//! repack: the weights of a checkpoint in the order in which the linears read them.

use qwenvl::kernels::cuda::Half;
use qwenvl::kernels::cuda::linear::{RowOrder, WeightKind, matrix_weight};
use qwenvl::kernels::cuda::repack::{Format, Source};
use qwenvl_graph::DType;

use crate::common::rng::Rng;
use crate::gpu::*;

/// A matrix as a checkpoint stores it, and its weights `[n, k]`.
pub struct Stored {
    pub format: Format,
    codes: Vec<u32>,
    zeros: Vec<u32>,
    scales: Vec<u16>,
    pub n: usize,
    pub k: usize,
    pub weights: Vec<f64>,
}

impl Stored {
    pub fn random(rng: &mut Rng, format: Format, half: Half, n: usize, k: usize) -> Stored {
        let groups = k / 128;
        let mut words = |count: usize| (0..count).map(|_| rng.next() as u32).collect::<Vec<u32>>();
        let awq = |words: &[u32], row: usize, column: usize| {
            words[row * n / 8 + column / 8] >> (4 * [0, 4, 1, 5, 2, 6, 3, 7][column % 8]) & 15
        };
        let (codes, zeros) = match format {
            Format::Awq4 => (words(k * n / 8), words(groups * n / 8)),
            Format::Gptq4 { .. } => (words(k / 8 * n), words(groups * n / 8)),
            Format::Gptq8 => (words(k / 4 * n), Vec::new()),
            Format::Dense(_) => {
                let bits = normals(rng, half, n * k);
                let weights = values(half, &bits);
                let codes = bytemuck::pod_collect_to_vec(&bits);
                return Stored { format, codes, zeros: Vec::new(), scales: Vec::new(), n, k, weights };
            }
        };
        let scales: Vec<u16> =
            (0..groups * n).map(|_| half::f16::from_f32(0.02 + 0.01 * rng.unit()).to_bits()).collect();
        let mut weights = vec![0.0; n * k];
        for j in 0..n {
            for l in 0..k {
                let g = l / 128;
                let (code, zero) = match format {
                    Format::Awq4 => (awq(&codes, l, j), awq(&zeros, g, j)),
                    Format::Gptq4 { zero_offset } => {
                        let zero = zeros[g * n / 8 + j / 8] >> (4 * (j % 8)) & 15;
                        (codes[l / 8 * n + j] >> (4 * (l % 8)) & 15, (zero + zero_offset) & 15)
                    }
                    _ => (codes[l / 4 * n + j] >> (8 * (l % 4)) & 255, 128),
                };
                let scale = half::f16::from_bits(scales[g * n + j]).to_f64();
                weights[j * k + l] = (f64::from(code) - f64::from(zero)) * scale;
            }
        }
        Stored { format, codes, zeros, scales, n, k, weights }
    }
}

/// Matrices stacked and repacked on the device.
pub struct Packed {
    pub records: Buffer<u8>,
    pub kind: WeightKind,
    pub order: RowOrder,
    pub n: usize,
    pub k: usize,
    pub weights: Vec<f64>,
}

pub fn pack(half: Half, parts: &[Stored], order: RowOrder) -> Packed {
    let (format, k) = (parts[0].format, parts[0].k);
    let n = parts.iter().map(|p| p.n).sum();
    let kind = format.kind();
    let records = Buffer::<u8>::poisoned(kind.matrix_bytes(n, k));
    type Parts = (Buffer<u32>, Option<Buffer<u32>>, Option<Buffer<u16>>);
    let buffers: Vec<Parts> = parts
        .iter()
        .map(|p| {
            let zeros = (!p.zeros.is_empty()).then(|| Buffer::of(&p.zeros));
            let scales = (!p.scales.is_empty()).then(|| Buffer::of(&p.scales));
            (Buffer::of(&p.codes), zeros, scales)
        })
        .collect();
    let sources: Vec<Source> = parts
        .iter()
        .zip(&buffers)
        .map(|(p, b)| Source {
            codes: b.0.at,
            zeros: b.1.as_ref().map_or(0, |b| b.at),
            scales: b.2.as_ref().map_or(0, |b| b.at),
            n: p.n,
        })
        .collect();
    // SAFETY: buffers are as long as the shapes say and live until the stream is done.
    unsafe { gpu().kernels.repack(&stream(), format, half, &sources, k, order, None, records.at) }.unwrap();
    stream().synchronize().unwrap();
    let weights = parts.iter().flat_map(|p| p.weights.iter().copied()).collect();
    Packed { records, kind, order, n, k, weights }
}

pub const FORMATS: [Format; 3] = [Format::Awq4, Format::Gptq4 { zero_offset: 1 }, Format::Gptq8];

pub fn dense(half: Half) -> Format {
    Format::Dense(match half {
        Half::BF16 => DType::BF16,
        Half::F16 => DType::F16,
    })
}

#[test]
fn repacking_keeps_every_weight_in_every_format_and_row_order() {
    let mut rng = Rng(1);
    for half in HALVES {
        for format in FORMATS.into_iter().chain([dense(half)]) {
            for (ns, k, order) in [
                (vec![128], 128, RowOrder::Plain),
                (vec![72], 256, RowOrder::Plain),
                (vec![264, 136], 128, RowOrder::Plain),
                (vec![256, 128, 128], 256, RowOrder::Paired { half: 64 }),
                (vec![160, 160, 160], 128, RowOrder::Paired { half: 40 }),
                (vec![136, 136], 128, RowOrder::Paired { half: 136 }),
                (vec![72, 64], 152, RowOrder::Plain),
            ] {
                if k % 128 != 0 && !matches!(format, Format::Dense(_)) {
                    continue; // groups are whole
                }
                let parts: Vec<Stored> =
                    ns.iter().map(|&n| Stored::random(&mut rng, format, half, n, k)).collect();
                let packed = pack(half, &parts, order);
                let bytes = packed.records.read();
                for n in 0..packed.n {
                    for l in k..k.next_multiple_of(128) {
                        assert_eq!(matrix_weight(&bytes, packed.kind, half, order, k, n, l), 0.0, "padding");
                    }
                    for l in 0..k {
                        let found = matrix_weight(&bytes, packed.kind, half, order, k, n, l);
                        assert_eq!(
                            found,
                            packed.weights[n * k + l],
                            "{format:?} {order:?} [{n}, {l}] of {ns:?}x{k}"
                        );
                    }
                }
            }
        }
    }
}
