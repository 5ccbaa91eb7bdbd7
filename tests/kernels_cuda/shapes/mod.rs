//! Every kernel at the sizes of the published models: for `report.rs`, and for `benches/kernels_cuda.rs`.

mod attention;
mod layers;
mod linear;
mod rest;

use std::cell::RefCell;
use std::sync::OnceLock;

use cudarc::driver::{CudaStream, result};
use qwenvl::kernels::cuda::linear::{Kv, Regime, Rope, RopePairs, WeightKind, workspace_bytes};
use qwenvl::kernels::cuda::{Address, Half, Kernels};
use qwenvl_graph::op::{Heads, MRope};

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
        let bytes = workspace_bytes(sm_count);
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
}

fn decoder_rope(rows: usize) -> Rope {
    let pairs = RopePairs::MRope(MRope { head_dim: 128, sections: [16, 24, 24], theta: 1e6 });
    let positions: Vec<u32> = (0..rows as u32).flat_map(|i| [i, i, i]).collect();
    Rope { angles: zeroed(rows * 64 * 8), positions: of(&positions), pairs }
}

/// Pages for so many tokens, and their numbers.
fn pages(heads: Heads, tokens: usize) -> (Kv, Address) {
    let stride = 2 * heads.n_kv_heads * 64 * 128;
    let count = tokens.div_ceil(64);
    let kv = Kv { pages: memory(count * stride * 2), page_stride: stride as u64, heads };
    (kv, of(&(0..count as u32).collect::<Vec<u32>>()))
}
