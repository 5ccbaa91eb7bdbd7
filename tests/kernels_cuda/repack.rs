//! repack: the weights of a checkpoint in the order in which the linears read them.

use qwenvl::kernels::cuda::Half;
use qwenvl::kernels::cuda::linear::{RowOrder, WeightKind, kernel, matrix_weight};
use qwenvl::kernels::cuda::repack::{Format, NO_INPUT, Repack, Source};
use qwenvl_graph::DType;

use crate::common::rng::Rng;
use crate::gpu::*;

/// Weights of a checkpoint and the records they become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    pub format: Format,
    pub kind: WeightKind,
    /// Inputs that share a scale in the checkpoint.
    pub group: usize,
}

pub const AWQ4: Weights = Weights { format: Format::Awq4, kind: WeightKind::Int4, group: 128 };
pub const GPTQ4: Weights =
    Weights { format: Format::Gptq4 { zero_offset: 1 }, kind: WeightKind::Int4, group: 128 };
pub const GPTQ8: Weights =
    Weights { format: Format::Gptq8 { zero_offset: 1 }, kind: WeightKind::Int8, group: 128 };
pub const GPTQ4_G64: Weights =
    Weights { format: Format::Gptq4 { zero_offset: 0 }, kind: WeightKind::Int4G64, group: 64 };
pub const AWQ4_G32: Weights = Weights { format: Format::Awq4, kind: WeightKind::Int4G32, group: 32 };
/// With zero points, unlike the other.
pub const GPTQ8_G32: Weights =
    Weights { format: Format::Gptq8 { zero_offset: 1 }, kind: WeightKind::Int8G32, group: 32 };
pub const FORMATS: [Weights; 6] = [AWQ4, GPTQ4, GPTQ8, GPTQ4_G64, AWQ4_G32, GPTQ8_G32];

pub fn dense(half: Half) -> Weights {
    let dtype = match half {
        Half::BF16 => DType::BF16,
        Half::F16 => DType::F16,
    };
    Weights { format: Format::Dense(dtype), kind: WeightKind::Dense, group: 128 }
}

/// Those whose linears are tested.
pub fn tested(formats: impl IntoIterator<Item = Weights>) -> impl Iterator<Item = Weights> {
    formats.into_iter().filter(|format| is_tested(kernel(format.kind)))
}

impl Weights {
    pub fn is_dense(self) -> bool {
        matches!(self.format, Format::Dense(_))
    }
}

/// A matrix as a checkpoint stores it, and its weights `[n, k]`.
pub struct Stored {
    pub format: Weights,
    codes: Vec<u32>,
    zeros: Vec<u32>,
    scales: Vec<u16>,
    pub n: usize,
    pub k: usize,
    pub weights: Vec<f64>,
}

impl Stored {
    pub fn random(rng: &mut Rng, format: Weights, half: Half, n: usize, k: usize) -> Stored {
        let groups = k.div_ceil(format.group);
        let mut words = |count: usize| (0..count).map(|_| rng.next() as u32).collect::<Vec<u32>>();
        let awq = |words: &[u32], row: usize, column: usize| {
            words[row * n / 8 + column / 8] >> (4 * [0, 4, 1, 5, 2, 6, 3, 7][column % 8]) & 15
        };
        let (codes, zeros) = match format.format {
            Format::Awq4 => (words(k * n / 8), words(groups * n / 8)),
            Format::Gptq4 { .. } => (words(k / 8 * n), words(groups * n / 8)),
            Format::Gptq8 { .. } if format.kind == WeightKind::Int8 => (words(k / 4 * n), Vec::new()),
            Format::Gptq8 { .. } => (words(k / 4 * n), words(groups * n / 4)),
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
                let g = l / format.group;
                let (code, zero) = match format.format {
                    Format::Awq4 => (awq(&codes, l, j), awq(&zeros, g, j)),
                    Format::Gptq4 { zero_offset } => {
                        let zero = zeros[g * n / 8 + j / 8] >> (4 * (j % 8)) & 15;
                        (codes[l / 8 * n + j] >> (4 * (l % 8)) & 15, (zero + zero_offset) & 15)
                    }
                    Format::Gptq8 { zero_offset } => {
                        let code = codes[l / 4 * n + j] >> (8 * (l % 4)) & 255;
                        let zero = zeros.get(g * n / 4 + j / 4).map(|word| word >> (8 * (j % 4)) & 255);
                        (code, zero.map_or(128, |zero| (zero + zero_offset) & 255))
                    }
                    Format::Dense(_) => unreachable!("above"),
                };
                let scale = half::f16::from_bits(scales[g * n + j]).to_f64();
                weights[j * k + l] = (f64::from(code) - f64::from(zero)) * scale;
            }
        }
        Stored { format, codes, zeros, scales, n, k, weights }
    }
}

impl Stored {
    /// 8 bits: codes of 255 around 0 for even outputs, of 0 around 255 for odd ones.
    pub fn extreme(format: Weights, n: usize, k: usize) -> Stored {
        let (codes, scales) = (
            (0..k / 4 * n).map(|at| if (at % n).is_multiple_of(2) { u32::MAX } else { 0 }).collect(),
            vec![half::f16::ONE.to_bits(); k.div_ceil(format.group) * n],
        );
        // Stored less one.
        let zeros = vec![0xfeff_feff; k.div_ceil(format.group) * n / 4];
        let weights = (0..n * k).map(|at| if (at / k).is_multiple_of(2) { 255.0 } else { -255.0 }).collect();
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
    let k = parts[0].k;
    let inputs: Vec<u32> = (0..k as u32).collect();
    pack_in_order(half, parts, order, &inputs, false)
}

/// With the inputs in an order that keeps a group to each scale, sent or, if it is theirs, not.
fn pack_in_order(half: Half, parts: &[Stored], order: RowOrder, inputs: &[u32], sent: bool) -> Packed {
    let Weights { format, kind, group } = parts[0].format;
    let k = inputs.len();
    let n = parts.iter().map(|p| p.n).sum();
    let records = Buffer::<u8>::poisoned(kind.matrix_bytes(n, k));
    let group_of = |places: &[u32]| {
        let input = places.iter().find(|input| **input != NO_INPUT).expect("a group has inputs");
        *input / group as u32
    };
    let groups = Buffer::of(&inputs.chunks(kind.group()).map(group_of).collect::<Vec<_>>());
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
            groups: groups.at,
            n: p.n,
        })
        .collect();
    let inputs = sent.then(|| Buffer::of(inputs));
    let inputs_at = inputs.as_ref().map(|b| b.at);
    let sources = &sources[..];
    let repack = Repack { format, kind, half, sources, k, order, inputs: inputs_at, out: records.at };
    // SAFETY: buffers are as long as the shapes say and live until the stream is done.
    unsafe { gpu().kernels.repack(&stream(), &repack) }.unwrap();
    stream().synchronize().unwrap();
    let weights = parts.iter().flat_map(|p| p.weights.iter().copied()).collect();
    Packed { records, kind, order, n, k, weights }
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

#[test]
fn inputs_come_in_any_order_and_empty_places_weigh_nothing() {
    let mut rng = Rng(2);
    let k = 200;
    for format in FORMATS {
        for group in [format.group, 40, 200] {
            let format = Weights { group, ..format };
            let parts = [72, 64, 40].map(|n| Stored::random(&mut rng, format, Half::BF16, n, k));
            // Groups from the last to the first, each from a scale on, its inputs shuffled.
            let mut inputs = Vec::<u32>::new();
            for g in (0..k.div_ceil(group)).rev() {
                inputs.resize(inputs.len().next_multiple_of(format.kind.group()), NO_INPUT);
                let mut inside: Vec<u32> = (g * group..k.min((g + 1) * group)).map(|i| i as u32).collect();
                inside.sort_by_key(|i| (i * 77 + 5) % 128);
                inputs.extend(inside);
            }
            let packed = pack_in_order(Half::BF16, &parts, RowOrder::Plain, &inputs, true);
            let bytes = packed.records.read();
            for n in 0..packed.n {
                for place in 0..packed.k.next_multiple_of(128) {
                    let found =
                        matrix_weight(&bytes, packed.kind, Half::BF16, packed.order, packed.k, n, place);
                    let expected = match inputs.get(place) {
                        Some(input) if *input != NO_INPUT => packed.weights[n * k + *input as usize],
                        _ => 0.0,
                    };
                    assert_eq!(found, expected, "{format:?} [{n}, {place}]");
                }
            }
        }
    }
}
