//! All layers of the decoder in one launch.

use cudarc::driver::result;
use qwenvl::kernels::cuda::attention::{PagedAttention, Sequence, partials_bytes};
use qwenvl::kernels::cuda::decode_layers::{DecodeLayers, DecodeStep};
use qwenvl::kernels::cuda::linear::{
    self, Finish, Linear, Normalised, Regime, RowOrder, WeightKind, Workspace,
};
use qwenvl::kernels::cuda::{Address, Kernels};
use qwenvl_graph::cuda::decode_splits;

use super::attention::sequences;
use super::{BF16, Case, Model, Shapes, decoder_rope, memory, of, pages, partials, zeroed};

impl Shapes<'_> {
    /// Some layers of a decoder in one launch, for one token after others.
    pub(super) fn layers(&mut self, model: &Model, kind: WeightKind, n_layers: usize, keys: usize) {
        let (h, f, heads) = (model.hidden, model.intermediate, model.heads);
        let (width, kv_width) = (heads.n_heads * 128, heads.n_kv_heads * 128);
        let sizes = [(width + 2 * kv_width, h), (h, width), (2 * f, h), (h, f)];
        let bits = if kind == WeightKind::Int4 { "int4" } else { "bf16" };
        let times = |bytes: usize| (n_layers * bytes) as f64;
        let weight_bytes = times(sizes.iter().map(|&(n, k)| kind.matrix_bytes(n, k)).sum());
        let weights = times(sizes.iter().map(|(n, k)| n * k).sum());
        let kv_bytes = times(keys * heads.n_kv_heads * 512);
        // Rows and vectors of all layers, and the lists.
        let other_bytes = times(2 * h * 4 + sizes[0].0 * 4 + 4 * 288) + kv_bytes + (4 * h) as f64;
        let case = Case {
            name: format!("layers {} {bits} m=1, {n_layers} after {keys} keys", model.name),
            bytes: weight_bytes + other_bytes,
            flops: 2.0 * weights + 4.0 * times(keys * width),
            weights,
            weight_bytes,
            other_bytes,
            ..Case::default()
        };
        self.case(case, |kernels| {
            let sm_count = kernels.sm_count() as usize;
            let max_splits = decode_splits(heads.n_kv_heads, sm_count);
            let list = [Sequence { first: 0, rows: 1, past: keys as u32 - 1, pages: 0 }];
            let (q, attended, activated) = (memory(width * 2), memory(width * 2), memory(f * 2));
            let (x, between) = (zeroed(h * 4), memory(h * 4));
            let (rope, sequences) = (decoder_rope(1), sequences(&list));
            let slots = of(&[keys as u32 - 1]);
            let arrivals = zeroed(linear::arrivals(2 * f, sm_count) * 4);
            let attention_partials = memory(partials_bytes(1, heads.n_heads, keys, max_splits));
            let layers = (0..n_layers).flat_map(|_| {
                let (kv, page_table) = pages(heads, keys);
                let attention = PagedAttention {
                    half: BF16,
                    q,
                    out: attended,
                    kv,
                    sequences,
                    n_seqs: 1,
                    page_table,
                    max_keys: keys,
                    max_splits,
                    partials: attention_partials,
                    arrivals,
                };
                let linear = |i: usize, x, out, order, finish| Linear {
                    kind,
                    half: BF16,
                    regime: Regime::SmallM,
                    x,
                    ldx: sizes[i].1,
                    w: memory(kind.matrix_bytes(sizes[i].0, sizes[i].1)),
                    order,
                    bias: (i == 0).then(|| zeroed(sizes[0].0 * 4)),
                    out,
                    m: 1,
                    n: sizes[i].0,
                    k: sizes[i].1,
                    n_runs: linear::runs(sizes[i].0, sizes[i].1, sm_count),
                    finish,
                    workspace: Workspace { partials: partials(sm_count), arrivals },
                };
                let norm = || Some(Normalised { weight: memory(h * 4), eps: 1e-6 });
                let halves = RowOrder::Paired { half: 64 };
                let qkv = linear(0, x, q, halves, Finish::RopeWriteKv { rope, kv, slots });
                let o = linear(1, attended, between, RowOrder::Plain, Finish::AddResidual(x));
                let gate_up = linear(2, between, activated, RowOrder::Paired { half: f }, Finish::SwiGlu);
                let down = linear(3, activated, x, RowOrder::Plain, Finish::AddResidual(between));
                [
                    DecodeStep { attention: None, norm: norm(), linear: qkv },
                    DecodeStep { attention: Some(attention), norm: None, linear: o },
                    DecodeStep { attention: None, norm: norm(), linear: gate_up },
                    DecodeStep { attention: None, norm: None, linear: down },
                ]
            });
            let steps: Vec<DecodeStep> = layers.collect();
            let layers = layers_of(kernels, &steps);
            // SAFETY: memory is as long as the shapes say.
            Box::new(move |stream| unsafe { kernels.decode_layers(stream, &layers) }.expect("launch"))
        });
    }
}

pub(super) fn bytes_of(bytes: &[u8]) -> Address {
    let at = memory(bytes.len());
    // SAFETY: just allocated.
    unsafe { result::memcpy_htod_sync(at, bytes) }.expect("copy");
    at
}

/// A launch of steps of layers.
pub(super) fn layers_of(kernels: &Kernels, steps: &[DecodeStep]) -> DecodeLayers {
    let list = kernels.decode_steps(steps).expect("steps of the models");
    DecodeLayers {
        kind: steps[0].linear.kind,
        half: BF16,
        steps: bytes_of(&list.bytes),
        n_steps: list.n_steps,
        blocks: list.blocks,
        arrived: zeroed(4),
    }
}
