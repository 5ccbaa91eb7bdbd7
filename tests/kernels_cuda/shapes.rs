//! Every kernel at the sizes of the published models: for `report.rs`, and for `benches/kernels_cuda.rs`.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::OnceLock;

use cudarc::driver::{CudaStream, result};
use qwenvl::kernels::cuda::attention::{
    self, FlashAttention, Keys, PagedAttention, Sequence, TileList, partials_bytes,
};
use qwenvl::kernels::cuda::decode_layers::{DecodeLayers, DecodeStep};
use qwenvl::kernels::cuda::linear::{
    self, Finish, Kv, Linear, Normalised, Regime, Rope, RopePairs, RowOrder, Tile, WeightKind, Workspace,
};
use qwenvl::kernels::cuda::norm::{Embed, Frames, Norm, NormKind, Patchify, Table};
use qwenvl::kernels::cuda::pointwise::{Pointwise, PointwiseOp};
use qwenvl::kernels::cuda::sample::{BINS_BYTES, Sample, best_len};
use qwenvl::kernels::cuda::{Address, Half, Kernels};
use qwenvl_graph::cuda::decode_splits;
use qwenvl_graph::op::{Heads, MRope, VisionRope};
use qwenvl_graph::{Activation, DType};

/// A launch, and the least that it has to move and compute.
#[derive(Clone, Debug, Default)]
pub struct Case {
    pub name: String,
    /// Bytes read from memory and written to it.
    pub bytes: f64,
    pub flops: f64,
    /// Weights, and their bytes, of a linear layer.
    pub weights: f64,
    pub weight_bytes: f64,
    /// What a linear layer reads beside them: rows, angles and residuals.
    pub other_bytes: f64,
    /// Which of the blocks a simulator had better run, as CUDASIM_SAMPLE has it; none: all.
    pub sample: Option<&'static str>,
    /// The work of the busiest block over the mean, where blocks differ: a part of them does not show it.
    pub imbalance: Option<f64>,
    /// Its launches, where there are several.
    pub parts: Vec<Case>,
}

/// Takes a case and its launch.
pub type Run<'a> = &'a mut dyn FnMut(&Case, &dyn Fn(&CudaStream));

/// Runs a case that is wanted: allocates, calls `run` with its launch.
pub struct Shapes<'a> {
    pub kernels: &'a Kernels,
    pub wanted: &'a dyn Fn(&Case) -> bool,
    pub run: Run<'a>,
    /// Whether cases leave their memory to nobody else, so that none finds in L2 what another left there.
    pub keeps_memory: bool,
}

/// Device memory of any content, the case's.
fn memory(bytes: usize) -> Address {
    // SAFETY: freed by `case`, or never.
    let at = unsafe { result::malloc_sync(bytes) }.expect("device memory");
    OF_CASE.with_borrow_mut(|of_case| of_case.push(at));
    at
}

thread_local! {
    /// What [`memory`] gave to the case that is running.
    static OF_CASE: RefCell<Vec<Address>> = const { RefCell::new(Vec::new()) };
}

fn zeroed(bytes: usize) -> Address {
    let at = memory(bytes);
    // SAFETY: just allocated.
    unsafe { result::memset_d8_sync(at, 0, bytes) }.expect("memset");
    at
}

/// Room for sums of linear layers: the same for all of them, as in an engine.
fn partials(sm_count: usize) -> Address {
    static AT: OnceLock<Address> = OnceLock::new();
    *AT.get_or_init(|| {
        let bytes = linear::workspace_bytes(sm_count);
        // SAFETY: never freed.
        unsafe { result::malloc_sync(bytes) }.expect("device memory")
    })
}

fn of(words: &[u32]) -> Address {
    let at = memory(words.len() * 4);
    // SAFETY: just allocated.
    unsafe { result::memcpy_htod_sync(at, words) }.expect("copy");
    at
}

fn bytes_of(bytes: &[u8]) -> Address {
    let at = memory(bytes.len());
    // SAFETY: just allocated.
    unsafe { result::memcpy_htod_sync(at, bytes) }.expect("copy");
    at
}

/// A launch of steps of layers.
fn layers_of(kernels: &Kernels, steps: &[DecodeStep]) -> DecodeLayers {
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

const BF16: Half = Half::BF16;

struct Model {
    name: &'static str,
    hidden: usize,
    heads: Heads,
    intermediate: usize,
    vocab: usize,
}

const fn heads(n_heads: usize, n_kv_heads: usize) -> Heads {
    Heads { n_heads, n_kv_heads, head_dim: 128 }
}

#[rustfmt::skip]
const MODELS: [Model; 3] = [
    Model { name: "72b", hidden: 8192, heads: heads(64, 8), intermediate: 29696, vocab: 152064 },
    Model { name: "7b", hidden: 3584, heads: heads(28, 4), intermediate: 18944, vocab: 152064 },
    Model { name: "2b", hidden: 1536, heads: heads(12, 2), intermediate: 8960, vocab: 151936 },
];

#[derive(Clone, Copy)]
enum What {
    Qkv(Heads),
    Residual,
    SwiGlu,
    Logits,
    QuickGelu,
    Gelu,
    VisionQkv,
    Store,
}

impl Shapes<'_> {
    /// All cases: decode first, as its times would suffer from results of prefill that leave L2.
    pub fn all(&mut self) {
        use Regime::{Prefill, SmallM};
        use WeightKind::{Cast, Dense, Int4, Int4G32, Int4G64, Int8, Int8G32};
        for m in [1, 8, 16] {
            for model in &MODELS {
                self.layer(model, Int4, SmallM, m);
            }
        }
        for model in &MODELS {
            self.steps(model, Int4);
        }
        for kind in [Int8, Dense] {
            for model in &MODELS[1..] {
                self.steps(model, kind);
            }
        }
        for model in &MODELS {
            for (n_layers, keys) in [(1, 256), (2, 256), (2, 4096)] {
                self.layers(model, Int4, n_layers, keys);
            }
        }
        for m in [1, 16] {
            for model in &MODELS[1..] {
                self.layer(model, Int8, SmallM, m);
                self.layer(model, Dense, SmallM, m);
            }
            // The largest head of 16 rows would take as long to simulate as all else.
            for model in if m == 1 { &MODELS[..] } else { &MODELS[2..] } {
                self.linear(
                    &format!("decode {} head", model.name),
                    Dense,
                    SmallM,
                    m,
                    model.vocab,
                    model.hidden,
                    What::Logits,
                );
            }
        }
        for kind in [Int4G64, Int4G32, Int8G32] {
            self.layer(&MODELS[1], kind, SmallM, 1);
        }
        // A table of the other type, tied: 2B in AWQ.
        let (vocab, hidden) = (MODELS[2].vocab, MODELS[2].hidden);
        self.linear("decode 2b head", Cast, SmallM, 1, vocab, hidden, What::Logits);
        for model in &MODELS {
            for keys in [256, 4096, 6144, 14336, 30720] {
                self.decode_attention(model, 1, keys);
            }
            self.decode_attention(model, 8, 4096);
        }
        for model in &MODELS {
            self.rms_norm(model, 1);
            self.sample(model, false);
        }
        self.sample(&MODELS[2], true);
        for model in &MODELS {
            self.layer(model, Int4, Prefill, 2048);
        }
        for kind in [Int4G64, Int4G32, Int8G32] {
            self.layer(&MODELS[1], kind, Prefill, 2048);
        }
        for model in &MODELS[1..] {
            self.layer(model, Int8, Prefill, 2048);
            self.layer(model, Dense, Prefill, 2048);
        }
        for m in [48, 512] {
            self.layer(&MODELS[1], Int4, Prefill, m);
            self.layer(&MODELS[1], Dense, Prefill, m);
        }
        for model in &MODELS {
            self.layer(model, Int4, Prefill, 128);
            for (tokens, past) in [(512, 0), (1024, 0), (2048, 0), (6144, 0), (2048, 4096)] {
                self.prefill_attention(model, tokens, past);
            }
        }
        for (what, n, k, finish) in [
            ("patch embedding", 1280, 1176, What::Store),
            ("qkv", 3840, 1280, What::VisionQkv),
            ("proj", 1280, 1280, What::Residual),
            ("fc1", 5120, 1280, What::QuickGelu),
            ("fc2", 1280, 5120, What::Residual),
        ] {
            self.linear(&format!("vision {what}"), Dense, Prefill, 4096, n, k, finish);
        }
        self.linear("merger mlp.0", Dense, Prefill, 1024, 5120, 5120, What::Gelu);
        self.linear("merger mlp.2", Dense, Prefill, 1024, 3584, 5120, What::Store);
        for patches in [1024, 2048, 4096, 16384] {
            self.vision_attention(patches);
        }
        self.patchify(4096);
        self.layer_norm(4096);
        self.rms_norm(&MODELS[1], 2048);
        self.embed(&MODELS[1], 2048);
        self.unfused(&MODELS[1], 2048);
    }

    fn case(&mut self, case: Case, make: impl FnOnce(&Kernels) -> Box<dyn Fn(&CudaStream) + '_>) {
        if (self.wanted)(&case) {
            let launch = make(self.kernels);
            // SAFETY: the default stream, which fills memory behind the calls.
            unsafe { result::stream::synchronize(std::ptr::null_mut()) }.expect("memory that is filled");
            (self.run)(&case, &*launch);
            drop(launch);
            for at in OF_CASE.take() {
                if !self.keeps_memory {
                    // SAFETY: allocated by `memory` for this case, which has waited for its launches.
                    unsafe { result::free_sync(at) }.expect("memory of the case");
                }
            }
        }
    }

    /// The four linear layers of a decoder layer, one by one.
    fn layer(&mut self, model: &Model, kind: WeightKind, regime: Regime, m: usize) {
        let name = match regime {
            Regime::SmallM => format!("decode {}", model.name),
            Regime::Prefill => format!("prefill {}", model.name),
        };
        self.linears(&name, model, kind, regime, m);
    }

    /// The same as steps of the kernel for all layers, each in a launch of its own.
    fn steps(&mut self, model: &Model, kind: WeightKind) {
        self.linears(&format!("step {}", model.name), model, kind, Regime::SmallM, 1);
    }

    fn linears(&mut self, name: &str, model: &Model, kind: WeightKind, regime: Regime, m: usize) {
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
    fn linear(
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

    /// Some layers of a decoder in one launch, for one token after others.
    fn layers(&mut self, model: &Model, kind: WeightKind, n_layers: usize, keys: usize) {
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

    fn decode_attention(&mut self, model: &Model, n: usize, keys: usize) {
        let heads = model.heads;
        let width = heads.n_heads * 128;
        let bytes = (n * keys * heads.n_kv_heads * 512 + 2 * n * width * 2) as f64;
        let case = Case {
            name: format!("decode {} attention {n} x {keys} keys", model.name),
            bytes,
            flops: 4.0 * (n * keys * width) as f64,
            ..Case::default()
        };
        self.case(case, |kernels| {
            let max_splits = decode_splits(heads.n_kv_heads, kernels.sm_count() as usize);
            let (kv, page_table) = pages(heads, n * keys);
            let list: Vec<Sequence> = (0..n)
                .map(|i| Sequence {
                    first: i as u32,
                    rows: 1,
                    past: keys as u32 - 1,
                    pages: (i * keys / 64) as u32,
                })
                .collect();
            let a = PagedAttention {
                half: BF16,
                q: zeroed(n * width * 2),
                out: memory(n * width * 2),
                kv,
                sequences: sequences(&list),
                n_seqs: n,
                page_table,
                max_keys: keys,
                max_splits,
                partials: memory(partials_bytes(n, heads.n_heads, keys, max_splits)),
                arrivals: zeroed(4 * n * heads.n_kv_heads),
            };
            // SAFETY: memory is as long as the shapes say.
            Box::new(move |stream| unsafe { kernels.paged_attention(stream, &a) }.expect("launch"))
        });
    }

    fn prefill_attention(&mut self, model: &Model, tokens: usize, past: usize) {
        let heads = model.heads;
        let width = heads.n_heads * 128;
        let pairs = tokens as f64 * (past as f64 + (tokens as f64 + 1.0) / 2.0);
        let flops = 4.0 * width as f64 * pairs;
        let sequence = [Sequence { first: 0, rows: tokens as u32, past: past as u32, pages: 0 }];
        let (kv_heads, group) = (heads.n_kv_heads, heads.n_heads / heads.n_kv_heads);
        let multiprocessors = self.kernels.sm_count() as usize;
        let tile_rows = attention::prefill_tile_rows(&sequence, kv_heads, group, multiprocessors);
        let mut list = TileList::default();
        list.list(&sequence, kv_heads, group, tile_rows);
        list.link(group, multiprocessors);
        let case = Case {
            name: format!("prefill {} attention {tokens} after {past}", model.name),
            bytes: (tokens * width * 4 + (past + tokens) * heads.n_kv_heads * 512) as f64,
            flops,
            sample: sample_of_attention(flops),
            imbalance: Some(list.imbalance()),
            ..Case::default()
        };
        self.case(case, |kernels| {
            let (kv, page_table) = pages(heads, past + tokens);
            let a = FlashAttention {
                half: BF16,
                keys: Keys::Paged { q: memory(tokens * width * 2), kv, page_table },
                tiles: tiles(&list),
                n_tiles: list.tiles.len(),
                tile_rows,
                out: memory(tokens * width * 2),
            };
            // SAFETY: memory is as long as the shapes say.
            Box::new(move |stream| unsafe { kernels.flash_attention(stream, &a) }.expect("launch"))
        });
    }

    fn vision_attention(&mut self, patches: usize) {
        let flops = 4.0 * 1280.0 * (patches as f64).powi(2);
        let case = Case {
            name: format!("vision attention {patches}"),
            bytes: (patches * 5120 * 2) as f64,
            flops,
            sample: sample_of_attention(flops),
            ..Case::default()
        };
        self.case(case, |kernels| {
            let sequence = [Sequence { first: 0, rows: patches as u32, past: 0, pages: 0 }];
            let tile_rows = attention::vision_tile_rows(&sequence, 16, kernels.sm_count() as usize);
            let mut list = TileList::default();
            list.list(&sequence, 16, 1, tile_rows);
            let a = FlashAttention {
                half: BF16,
                keys: Keys::Vision { qkv: memory(patches * 3840 * 2), n_heads: 16 },
                tiles: tiles(&list),
                n_tiles: list.tiles.len(),
                tile_rows,
                out: memory(patches * 1280 * 2),
            };
            // SAFETY: memory is as long as the shapes say.
            Box::new(move |stream| unsafe { kernels.flash_attention(stream, &a) }.expect("launch"))
        });
    }

    fn rms_norm(&mut self, model: &Model, rows: usize) {
        let cols = model.hidden;
        let name = format!("rms_norm {} {rows}", model.name);
        self.norm(name, rows, cols, |_| NormKind::Rms);
    }

    fn layer_norm(&mut self, rows: usize) {
        self.norm(format!("layer_norm {rows}"), rows, 1280, |cols| NormKind::Layer(memory(cols * 4)));
    }

    fn norm(&mut self, name: String, rows: usize, cols: usize, kind: impl Fn(usize) -> NormKind) {
        self.case(streaming(name, rows * cols * 6 + cols * 4), |kernels| {
            let n = Norm {
                kind: kind(cols),
                half: BF16,
                x: memory(rows * cols * 4),
                row_index: None,
                weight: memory(cols * 4),
                out: memory(rows * cols * 2),
                rows,
                cols,
                eps: 1e-6,
            };
            // SAFETY: memory is as long as the shapes say.
            Box::new(move |stream| unsafe { kernels.norm(stream, &n) }.expect("launch"))
        });
    }

    fn embed(&mut self, model: &Model, rows: usize) {
        let (cols, vocab) = (model.hidden, model.vocab);
        self.case(streaming(format!("embed {} {rows}", model.name), rows * (cols * 6 + 8)), |kernels| {
            let e = Embed {
                table: memory(vocab * cols * 2),
                stored: Table::Rows(DType::BF16),
                vocab,
                tokens: of(&(0..rows as u32).map(|i| i * 61).collect::<Vec<u32>>()),
                visual: memory(cols * 2),
                visual_index: of(&vec![u32::MAX; rows]),
                half: BF16,
                out: memory(rows * cols * 4),
                rows,
                cols,
            };
            // SAFETY: memory is as long as the shapes say.
            Box::new(move |stream| unsafe { kernels.embed(stream, &e) }.expect("launch"))
        });
    }

    /// A square picture of so many patches.
    fn patchify(&mut self, patches: usize) {
        let side = patches.isqrt();
        let pixels = patches * 14 * 14;
        let bytes = pixels * 3 + patches * 1176 * 2;
        self.case(streaming(format!("patchify {patches}"), bytes), |kernels| {
            let frame = memory(pixels * 3);
            let words = [frame as u32, (frame >> 32) as u32].repeat(2);
            let slice = [&words[..], &[0, side as u32, side as u32, 0]].concat();
            assert_eq!(slice.len() * 4, size_of::<Frames>());
            let c = Patchify {
                slices: of(&slice),
                n_slices: 1,
                table: zeroed(768 * 4),
                half: BF16,
                out: memory(patches * 1176 * 2),
                first_row: 0,
                rows: patches,
                patch: 14,
                merge: 2,
            };
            // SAFETY: memory is as long as the shapes say.
            Box::new(move |stream| unsafe { kernels.patchify(stream, &c) }.expect("launch"))
        });
    }

    /// The steps of plans that are not fused.
    fn unfused(&mut self, model: &Model, rows: usize) {
        let heads = model.heads;
        let (q, kv_cols) = (heads.n_heads * 128, heads.n_kv_heads * 128);
        let (hidden, f) = (model.hidden, model.intermediate);
        let case = |what: &str, bytes| streaming(format!("{what} {} {rows}", model.name), bytes);
        type Op = Box<dyn Fn() -> PointwiseOp>;
        let cases: [(&str, usize, usize, Op); 7] = [
            ("swiglu", f, 6, Box::new(move || PointwiseOp::SwiGlu { up: memory(rows * f * 2) })),
            ("gelu", 5120, 4, Box::new(|| PointwiseOp::Activate(Activation::Gelu))),
            ("quick_gelu", 5120, 4, Box::new(|| PointwiseOp::Activate(Activation::QuickGelu))),
            ("add", hidden, 10, Box::new(move || PointwiseOp::Add { residual: memory(rows * hidden * 4) })),
            ("rope", q, 4, Box::new(move || PointwiseOp::Rotate { rope: decoder_rope(rows), n_rotated: q })),
            (
                "kv_write",
                kv_cols,
                8,
                Box::new(move || PointwiseOp::WriteKv {
                    values: memory(rows * kv_cols * 2),
                    kv: pages(heads, rows).0,
                    slots: of(&(0..rows as u32).collect::<Vec<u32>>()),
                }),
            ),
            (
                "select_rows",
                hidden,
                8,
                Box::new(move || PointwiseOp::Gather { index: of(&(0..rows as u32).collect::<Vec<u32>>()) }),
            ),
        ];
        for (what, cols, per_element, op) in cases {
            self.case(case(what, rows * cols * per_element), |kernels| {
                let c = Pointwise {
                    op: op(),
                    half: BF16,
                    x: memory(rows * cols * 4),
                    out: memory(rows * cols * 4),
                    rows,
                    cols,
                };
                // SAFETY: memory is as long as the shapes say.
                Box::new(move |stream| unsafe { kernels.pointwise(stream, &c) }.expect("launch"))
            });
        }
    }

    /// Greedy: one launch. Logits of zero.
    /// The largest score, or one drawn as the published generation_config.json says.
    fn sample(&mut self, model: &Model, drawn: bool) {
        let vocab = model.vocab;
        let of_model = |what: &str| streaming(format!("{what} {}", model.name), vocab * 4);
        let parts =
            if drawn { ["argmax, drawn", "sample, drawn"].map(of_model).to_vec() } else { Vec::new() };
        let case = Case { parts, ..of_model(if drawn { "token, drawn" } else { "argmax" }) };
        self.case(case, |kernels| {
            let words = vocab.div_ceil(32);
            let (temperature, top_k, top_p) = if drawn { (0.01f32, 1, 0.001f32) } else { (0.0, 0, 1.0) };
            // About as far apart as logits are.
            let logits: Vec<u32> =
                (0..vocab as u32).map(|i| (i.wrapping_mul(2_654_435_769) as f32 / 2e8).to_bits()).collect();
            // A `QwenvlSampleRow`.
            let params = [0, 0, 0, 0, temperature.to_bits(), top_p.to_bits(), 1f32.to_bits(), top_k];
            let s = Sample {
                logits: of(&logits),
                scores: memory(vocab * 4),
                history: zeroed(words * 4),
                history_words: words,
                params: of(&params),
                tokens: memory(4),
                best: memory(best_len(1, vocab) * 8),
                bins: zeroed(BINS_BYTES),
                arrivals: zeroed(4),
                drawn,
                rows: 1,
                vocab,
            };
            // SAFETY: memory is as long as the shapes say.
            Box::new(move |stream| unsafe { kernels.sample(stream, &s) }.expect("launch"))
        });
    }
}

/// Work of the busiest block of runs over the mean: the last of a strip adds up the others and has the epilogue. In units
/// of 256 outputs and 128 inputs that takes 2, and 0.2 for each run: so that cases that are not sampled have the imbalance
/// that was counted.
fn imbalance_of_runs(n: usize, k: usize, n_runs: usize) -> f64 {
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

/// Blocks of prefill attention differ, so that few of them say less than those of other kernels: as many as can be.
fn sample_of_attention(flops: f64) -> Option<&'static str> {
    if flops < 1.3e10 {
        None
    } else if flops < 2e11 {
        Some("8")
    } else {
        Some("2")
    }
}

fn streaming(name: String, bytes: usize) -> Case {
    Case { name, bytes: bytes as f64, ..Case::default() }
}

fn decoder_rope(rows: usize) -> Rope {
    let pairs = RopePairs::MRope(MRope { head_dim: 128, sections: [16, 24, 24], theta: 1e6 });
    let positions: Vec<u32> = (0..rows as u32).flat_map(|i| [i, i, i]).collect();
    Rope { angles: zeroed(rows * 64 * 8), positions: of(&positions), pairs }
}

fn sequences(s: &[Sequence]) -> Address {
    of(&s.iter().flat_map(|s| [s.first, s.rows, s.past, s.pages]).collect::<Vec<u32>>())
}

fn tiles(list: &TileList) -> Address {
    let words = list.tiles.iter().flat_map(|t| {
        let s = t.sequence;
        [s.first, s.rows, s.past, s.pages, t.head, t.first_row, t.next, 0]
    });
    of(&words.collect::<Vec<u32>>())
}

/// Pages for so many tokens, and their numbers.
fn pages(heads: Heads, tokens: usize) -> (Kv, Address) {
    let stride = 2 * heads.n_kv_heads * 64 * 128;
    let count = tokens.div_ceil(64);
    let kv = Kv { pages: memory(count * stride * 2), page_stride: stride as u64, heads };
    (kv, of(&(0..count as u32).collect::<Vec<u32>>()))
}
