//! Linear layers: those of decoder, vision tower and merger.

use std::ops::Range;

use qwenvl::kernels::cuda::decode_layers::DecodeStep;
use qwenvl::kernels::cuda::linear::{
    self, Finish, Linear, Normalised, Regime, Rope, RopePairs, RowOrder, Tile, WeightKind, Workspace,
};
use qwenvl_graph::Activation;
use qwenvl_graph::op::VisionRope;

use super::layers::layers_of;
use super::{BF16, Case, Model, Shapes, What, decoder_rope, memory, of, pages, partials, zeroed};

impl Shapes<'_> {
    /// The four linear layers of a decoder layer, one by one.
    pub(super) fn layer(&mut self, model: &Model, kind: WeightKind, regime: Regime, m: usize) {
        let name = match regime {
            Regime::SmallM => format!("decode {}", model.name),
            Regime::Prefill => format!("prefill {}", model.name),
        };
        self.linears(&name, model, kind, regime, m);
    }

    /// The same as steps of the kernel for all layers, each in a launch of its own.
    pub(super) fn steps(&mut self, model: &Model, kind: WeightKind) {
        self.linears(&format!("step {}", model.name), model, kind, Regime::SmallM, 1);
    }

    pub(super) fn linears(&mut self, name: &str, model: &Model, kind: WeightKind, regime: Regime, m: usize) {
        let (h, f) = (model.hidden, model.intermediate);
        let qkv = (model.heads.n_heads + 2 * model.heads.n_kv_heads) * 128;
        // Of one row the norm is a prologue.
        let norm = if m == 1 { "norm+" } else { "" };
        self.linear(&format!("{name} {norm}qkv"), kind, regime, m, qkv, h, What::Qkv(model.heads));
        self.linear(&format!("{name} o"), kind, regime, m, h, h, What::Residual);
        self.linear(&format!("{name} {norm}gate_up"), kind, regime, m, 2 * f, h, What::SwiGlu);
        self.linear(&format!("{name} down"), kind, regime, m, h, f, What::Residual);
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn linear(
        &mut self,
        name: &str,
        kind: WeightKind,
        regime: Regime,
        m: usize,
        n: usize,
        k: usize,
        what: What,
    ) {
        let bits = match kind {
            WeightKind::Int4 => "int4",
            WeightKind::Int4G64 => "int4 g64",
            WeightKind::Int4G32 => "int4 g32",
            WeightKind::Int8 => "int8",
            WeightKind::Int8G32 => "int8 g32",
            WeightKind::Dense => "bf16",
            WeightKind::Cast => "f16",
        };
        let (normalised, is_step) = (name.contains("norm+"), name.starts_with("step"));
        // Bytes of an output with what else is read for it.
        let per_output = match what {
            What::Qkv(_) | What::QuickGelu | What::Gelu | What::VisionQkv | What::Store => 2.0,
            What::Residual => 8.0,
            What::SwiGlu => 1.0,
            What::Logits => 4.0,
        };
        // Of the decoder only q, k and v have one.
        let has_bias =
            matches!(what, What::Qkv(_)) || name.starts_with("vision") || name.starts_with("merger");
        let weight_bytes = kind.matrix_bytes(n, k) as f64;
        let read_per_output = if matches!(what, What::Residual) { 4.0 } else { 0.0 };
        let sm_count = self.kernels.sm_count() as usize;
        let n_runs = linear::runs(n, k, sm_count);
        let of_rows = |name: String, tile: Tile, m: usize| {
            let x_bytes = if normalised { (m * k * 4 + k * 4) as f64 } else { (m * k * 2) as f64 };
            let angle_bytes = if matches!(what, What::Qkv(_)) { (m * 64 * 8) as f64 } else { 0.0 };
            Case {
                name,
                bytes: weight_bytes + x_bytes + (m * n) as f64 * per_output,
                flops: 2.0 * (m * n) as f64 * k as f64,
                weights: n as f64 * k as f64,
                weight_bytes,
                other_bytes: x_bytes + angle_bytes + (m * n) as f64 * read_per_output,
                sample: (m > 16 && (m * n) as f64 * k as f64 > 4e9).then_some("first:2"),
                // Others are alike.
                imbalance: (tile == Tile::Run).then(|| imbalance_of_runs(n, k, n_runs)),
                parts: Vec::new(),
            }
        };
        let name = format!("{name} {bits} m={m}");
        let layer = Linear {
            kind,
            half: BF16,
            regime,
            x: 0,
            ldx: k,
            w: 0,
            order: RowOrder::Plain,
            bias: None,
            out: 0,
            m,
            n,
            k,
            n_runs,
            finish: Finish::Store,
            workspace: Workspace { partials: 0, arrivals: 0 },
        };
        let tiles: Vec<_> = self.kernels.tiles(&layer).collect();
        let part =
            |(tile, rows): &(Tile, Range<usize>)| of_rows(format!("{name} rows {rows:?}"), *tile, rows.len());
        let parts = if tiles.len() > 1 { tiles.iter().map(part).collect() } else { Vec::new() };
        let case = Case { parts, ..of_rows(name.clone(), tiles[0].0, m) };
        self.case(case, |kernels| {
            let out = memory(m * n * 4);
            let (order, finish) = match what {
                What::Residual => (RowOrder::Plain, Finish::AddResidual(out)),
                What::Logits => (RowOrder::Plain, Finish::StoreF32),
                What::Store => (RowOrder::Plain, Finish::Store),
                What::QuickGelu => (RowOrder::Plain, Finish::Activate(Activation::QuickGelu)),
                What::Gelu => (RowOrder::Plain, Finish::Activate(Activation::Gelu)),
                What::SwiGlu => (RowOrder::Paired { half: n / 2 }, Finish::SwiGlu),
                What::VisionQkv => {
                    let pairs = RopePairs::Vision(VisionRope { n_heads: 16, head_dim: 80 });
                    let rope = Rope { angles: zeroed(20 * 8), positions: zeroed(m * 8), pairs };
                    (RowOrder::Paired { half: 40 }, Finish::VisionRope(rope))
                }
                What::Qkv(heads) => {
                    let kv = pages(heads, m).0;
                    let slots = of(&(0..m as u32).collect::<Vec<u32>>());
                    let finish = Finish::RopeWriteKv { rope: decoder_rope(m), kv, slots };
                    (RowOrder::Paired { half: 64 }, finish)
                }
            };
            let l = Linear {
                x: memory(m * k * 4),
                w: memory(kind.matrix_bytes(n, k)),
                order,
                bias: has_bias.then(|| zeroed(n * 4)),
                out,
                finish,
                workspace: Workspace {
                    partials: partials(sm_count),
                    arrivals: zeroed(linear::arrivals(n, sm_count) * 4),
                },
                ..layer
            };
            let norm = Normalised { weight: memory(k * 4), eps: 1e-6 };
            let in_layers = is_step.then(|| {
                let step = DecodeStep { attention: None, norm: normalised.then_some(norm), linear: l };
                layers_of(kernels, &[step])
            });
            // SAFETY: memory is as long as the shapes say.
            Box::new(move |stream| unsafe {
                if let Some(layers) = &in_layers {
                    kernels.decode_layers(stream, layers)
                } else if normalised {
                    kernels.linear_of_norm(stream, &l, &norm)
                } else {
                    kernels.linear(stream, &l)
                }
                .expect("launch")
            })
        });
    }
}

/// Work of the busiest block of runs over the mean: the last of a strip adds up the others and has the epilogue. In units
/// of 256 outputs and 128 inputs that takes 2, and 0.2 for each run: so that cases that are not sampled have the imbalance
/// that was counted.
pub(super) fn imbalance_of_runs(n: usize, k: usize, n_runs: usize) -> f64 {
    let (strips, groups) = (n.div_ceil(256), k.div_ceil(128));
    let units = strips * groups;
    let start = |run: usize| run * units / n_runs;
    let work = |run: usize| {
        let ends = (1..=strips)
            .map(|strip| strip * groups)
            .filter(|end| (start(run)..start(run + 1)).contains(&(end - 1)));
        let joins = ends.map(|end| {
            let first = ((end - groups + 1) * n_runs - 1) / units;
            2.0 + 0.2 * (run - first + 1) as f64
        });
        (start(run + 1) - start(run)) as f64 + joins.sum::<f64>()
    };
    let work: Vec<f64> = (0..n_runs).map(work).collect();
    work.iter().copied().fold(0.0, f64::max) * n_runs as f64 / work.iter().sum::<f64>()
}
