//! Prints `MODEL.md`: what the time model predicts for work whose speed on a real card was published.
//!
//! ```text
//! cargo run --release -p cudasim --example model_page > tools/cudasim/MODEL.md
//! ```
//!
//! The counters are not from a run: they are worked out from shapes, as the study's anchors give no kernels.

use std::fmt::Write;

use cudasim::counters::{Class, Counters, InstructionCount, MemoryCount};
use cudasim::device::DeviceSpec;
use cudasim::model::constants::{self, Status};
use cudasim::model::{KernelFacts, L2State, LaunchKind, Prediction, predict};

#[allow(dead_code, reason = "a test includes this file for the page alone")]
fn main() {
    print!("{}", page());
}

/// Registers that leave the occupancy to shared memory and threads.
const FACTS: KernelFacts =
    KernelFacts { registers: 64, registers_estimated: true, local_bytes: None, sass_per_ptx: None };

fn instruction(text: &str, warp_execs: u64, memory: Option<MemoryCount>) -> InstructionCount {
    let class = Class::of(text);
    InstructionCount {
        text: text.into(),
        class,
        warp_execs,
        thread_execs: 32 * warp_execs,
        memory,
        ..Default::default()
    }
}

/// A kernel of `ctas` CTAs of `threads` threads that moves these bytes once, 16 bytes a lane, with `per_request` other
/// instructions for each of its warp-wide loads.
fn streaming(ctas: u64, threads: u32, read: u64, written: u64, per_request: u64) -> Counters {
    let access = |bytes: u64| MemoryCount {
        requests: bytes / 512,
        bytes_asked: bytes,
        sectors: bytes / 32,
        ideal_sectors: bytes / 32,
        passes: bytes / 128,
        ..MemoryCount::default()
    };
    Counters {
        grid: [ctas as u32, 1, 1],
        block: [threads, 1, 1],
        ctas,
        instructions: vec![
            instruction("ld.global.nc.v4.u32", read / 512, Some(access(read))),
            instruction("st.global.v4.u32", written / 512, Some(access(written))),
            instruction("fma.rn.f32", read / 512 * per_request, None),
        ],
        unique_read_sectors: read / 32,
        unique_written_sectors: written / 32,
        read_bytes_asked: read,
        written_bytes_asked: written,
        l2_read_sectors: read / 32,
        l2_written_sectors: written / 32,
        ..Counters::default()
    }
}

const MMA: &str = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32";
const LDMATRIX: &str = "ldmatrix.sync.aligned.m8n8.x4.shared.b16";

fn ldmatrix(n: u64) -> InstructionCount {
    let memory =
        MemoryCount { requests: n, wavefronts: 4 * n, ideal_wavefronts: 4 * n, ..Default::default() };
    instruction(LDMATRIX, n, Some(memory))
}

fn copy_async(bytes: u64) -> InstructionCount {
    let n = bytes / 512;
    let memory = MemoryCount {
        requests: n,
        bytes_asked: bytes,
        sectors: bytes / 32,
        ideal_sectors: bytes / 32,
        passes: 4 * n,
        wavefronts: 4 * n,
        ideal_wavefronts: 4 * n,
        ..Default::default()
    };
    instruction("cp.async.cg.shared.global.L2::128B", n, Some(memory))
}

/// C\[m, n\] = A\[m, k\] B\[k, n\] in f16 by tiles of 128 x 256, eight warps of 64 x 64 each.
fn gemm(m: u64, n: u64, k: u64) -> Counters {
    let ctas = m.div_ceil(128) * n.div_ceil(256);
    let k_steps = ctas * 8 * k.div_ceil(16);
    let copied = ctas * (128 + 256) * k * 2;
    let mut c = streaming(ctas, 256, 0, m * n * 2, 0);
    c.dynamic_shared_bytes = 4 * (128 + 256) * 32 * 2;
    c.instructions.push(instruction(MMA, 32 * k_steps, None));
    c.instructions.push(ldmatrix(8 * k_steps));
    c.instructions.push(copy_async(copied));
    c.instructions.push(instruction("add.s32", 8 * k_steps, None));
    c.l2_read_sectors = copied / 32;
    c.read_bytes_asked = copied;
    c.unique_read_sectors = (m * k + k * n) * 2 / 32;
    c
}

/// Forward attention without mask by tiles of 128 queries x 64 keys in four warps, as FlashAttention-2.
fn attention(heads: u64, tokens: u64, head_dim: u64) -> Counters {
    let ctas = heads * tokens.div_ceil(128);
    let tiles = ctas * tokens.div_ceil(64);
    let warps = 4 * tiles;
    let copied = tiles * 2 * 64 * head_dim * 2;
    let mut c = streaming(ctas, 128, 0, heads * tokens * head_dim * 2, 0);
    c.dynamic_shared_bytes = (128 + 2 * 64) * head_dim as u32 * 2;
    // Per warp and tile: 32 x 64 scores, from head_dim / 16 k-steps, and as many products for the output.
    c.instructions.push(instruction(MMA, warps * 2 * 8 * (2 * head_dim / 16), None));
    c.instructions.push(ldmatrix(warps * (2 * 64 * head_dim * 2 / 512 + 8)));
    c.instructions.push(copy_async(copied));
    c.instructions.push(instruction("ex2.approx.ftz.f32", warps * 64, None));
    // Scale, maximum and sum of each score, and the correction of the output.
    c.instructions.push(instruction("fma.rn.f32", warps * (3 * 64 + head_dim), None));
    c.instructions.push(instruction("cvt.rn.f16x2.f32", warps * 32, None));
    c.instructions.push(instruction("add.s32", warps * 40, None));
    c.l2_read_sectors = copied / 32;
    c.read_bytes_asked = copied;
    c.unique_read_sectors = 3 * heads * tokens * head_dim * 2 / 32;
    c
}

fn time_us(device: &DeviceSpec, kind: LaunchKind, kernels: &[(u64, Counters)]) -> f64 {
    let run = |c: &Counters| predict(device, c, &FACTS, kind, &mut L2State::new(device)).time_us;
    kernels.iter().map(|(n, c)| *n as f64 * run(c)).sum()
}

/// Shapes of a decoder's layers.
struct Model {
    layers: u64,
    hidden: u64,
    inner: u64,
    kv_width: u64,
    vocabulary: u64,
}

const LLAMA_7B: Model = Model { layers: 32, hidden: 4096, inner: 11008, kv_width: 4096, vocabulary: 32000 };
const LLAMA_65B: Model = Model { layers: 80, hidden: 8192, inner: 22016, kv_width: 8192, vocabulary: 32000 };

impl Model {
    /// (n, k) of the four matrices of a layer.
    fn matrices(&self) -> [(u64, u64); 4] {
        let h = self.hidden;
        [(h + 2 * self.kv_width, h), (h, h), (2 * self.inner, h), (h, self.inner)]
    }

    /// One decode step of `batch` sequences with `kv_tokens` tokens of context in all. Weights have `bits` bits but
    /// for the head, which has 16. Each layer is eight kernels: four products, attention, two norms, activation.
    fn decode(&self, batch: u64, bits: f64, kv_tokens: u64) -> Vec<(u64, Counters)> {
        let layers = self.layers;
        let mut out: Vec<(u64, Counters)> = Vec::new();
        // f16 weights take 12 instructions per 16 bytes of a lane, 4-bit ones four times the weights.
        let work = if bits < 8.0 { 40 } else { 12 } + 4 * (batch - 1);
        for (n, k) in self.matrices() {
            out.push((
                layers,
                streaming(432, 256, (n as f64 * k as f64 * bits / 8.0) as u64, batch * n * 2, work),
            ));
        }
        out.push((
            layers,
            streaming(216, 256, kv_tokens * 2 * self.kv_width * 2, batch * self.hidden * 2, 12),
        ));
        out.push((3 * layers, streaming(batch, 256, batch * self.hidden * 4, batch * self.hidden * 2, 12)));
        out.push((
            1,
            streaming(432, 256, self.vocabulary * self.hidden * 2, batch * self.vocabulary * 4, work),
        ));
        // Embedding, last norm and ten small kernels of the sampler.
        out.push((12, streaming(batch, 256, batch * self.vocabulary * 4, 1024, 8)));
        out
    }

    /// The four products of a layer alone, for `batch` rows.
    fn products(&self, batch: u64, bits: f64, work: u64) -> Vec<(u64, Counters)> {
        let products = self.matrices().map(|(n, k)| {
            (
                1,
                streaming(
                    432,
                    256,
                    (n as f64 * k as f64 * bits / 8.0) as u64 + batch * k * 2,
                    batch * n * 2,
                    work,
                ),
            )
        });
        products.to_vec()
    }

    fn prefill(&self, tokens: u64) -> Vec<(u64, Counters)> {
        let mut out: Vec<(u64, Counters)> =
            self.matrices().map(|(n, k)| (self.layers, gemm(tokens, n, k))).to_vec();
        out.push((self.layers, attention(self.hidden / 128, tokens, 128)));
        let row = tokens * self.hidden * 2;
        out.push((2 * self.layers, streaming(tokens, 256, 2 * row, 2 * row, 12)));
        out.push((
            self.layers,
            streaming(tokens, 256, 2 * tokens * self.inner * 2, tokens * self.inner * 2, 12),
        ));
        out.push((1, streaming(432, 256, self.vocabulary * self.hidden * 2, self.vocabulary * 4, 12)));
        out
    }
}

/// One published number beside the prediction.
pub struct Anchor {
    /// What was measured.
    pub what: &'static str,
    /// Unit of both numbers.
    pub unit: &'static str,
    /// As published.
    pub published: f64,
    /// By the model.
    pub predicted: f64,
    /// What to think of it.
    pub remark: &'static str,
}

impl Anchor {
    /// Relative error of the prediction.
    pub fn error(&self) -> f64 {
        self.predicted / self.published - 1.0
    }
}

/// All anchors, the one that decides first.
pub fn anchors() -> Vec<Anchor> {
    let a100 = DeviceSpec::default();
    let rtx4090 = DeviceSpec::preset("rtx4090").unwrap_or_default();
    // 72 SMs, 600 GB/s, no preset of the simulator.
    let a10 = DeviceSpec {
        name: "A10".into(),
        compute_capability: [8, 6],
        sms: 72,
        clock_khz: 1_695_000,
        memory_clock_khz: 6_251_000,
        memory_bus_bits: 384,
        l2_bytes: 6 << 20,
        mma_f16_macs_per_clock: 512,
        fp32_lanes: 128,
        l2_bytes_per_clock: 2048,
        max_threads_per_sm: 1536,
        max_ctas_per_sm: 16,
        ..rtx4090.clone()
    };
    let step = |tokens: f64, us: f64| tokens * 1e6 / us;
    let decode = |batch, kv| time_us(&a100, LaunchKind::Stream, &LLAMA_7B.decode(batch, 16.0, kv));
    let attention_flops = 4.0 * 16.0 * 8192.0 * 8192.0 * 128.0;
    let products = |device: &DeviceSpec, model: &Model, bits, work| {
        time_us(device, LaunchKind::Stream, &model.products(16, bits, work))
    };
    // f16 through cuBLAS; 4 bits with a scale per 128 weights through tensor cores: lop3 and fma of 32 weights per
    // load, and the products of 16 rows.
    let speed_up = |device, model| products(device, model, 16.0, 12) / products(device, model, 4.125, 48);
    let (large_f16, large_int4) = (
        streaming(72 * 4, 256, 72_000 * 18_000 * 2, 16 * 72_000 * 2, 12),
        streaming(72 * 4, 256, 668_250_000, 2_304_000, 48),
    );
    let large = time_us(&a10, LaunchKind::Stream, &[(1, large_f16)])
        / time_us(&a10, LaunchKind::Stream, &[(1, large_int4)]);
    vec![
        Anchor {
            what: "lmdeploy (TurboMind 0.2), llama2-7B f16, A100 80GB, batch 1",
            unit: "tokens/s",
            published: 101.0,
            predicted: step(1.0, decode(1, 512)),
            remark: "8 kernels a layer assumed, 512 tokens of context; host time between steps is not modelled",
        },
        Anchor {
            what: "the same, batch 16 from a 1-token prompt",
            unit: "tokens/s",
            published: 1505.0,
            predicted: step(16.0, decode(16, 16 * 256)),
            remark: "mean context of 256 tokens assumed; the published run has a varying batch",
        },
        Anchor {
            what: "the same, prefill of 2048 tokens",
            unit: "s",
            published: 0.139,
            predicted: time_us(&a100, LaunchKind::Stream, &LLAMA_7B.prefill(2048)) / 1e6,
            remark: "GEMM tiles of 128 x 256 assumed; a card at its power limit lowers the clock, the model does not",
        },
        Anchor {
            what: "FlashAttention-2 forward, A100, head_dim 128, long sequences",
            unit: "TFLOP/s",
            published: 228.0,
            predicted: attention_flops
                / time_us(&a100, LaunchKind::Stream, &[(1, attention(16, 8192, 128))])
                / 1e6,
            remark: "softmax and products of one warp depend on each other, which no term of the model sees",
        },
        Anchor {
            what: "Marlin over f16, A10, 72k x 18k, batch 16",
            unit: "x",
            published: 3.87,
            predicted: large,
            remark: "purely the ratio of the bytes",
        },
        Anchor {
            what: "Marlin over f16, A100, layers of llama-65B, batch 16",
            unit: "x",
            published: 3.2,
            predicted: speed_up(&a100, &LLAMA_65B),
            remark: "what the bytes allow; Marlin's ring and reduction are not in these counters",
        },
        Anchor {
            what: "the same, layers of llama-7B",
            unit: "x",
            published: 2.2,
            predicted: speed_up(&a100, &LLAMA_7B),
            remark: "as above: about 20 us per product that only the counters of the real kernel could show",
        },
        Anchor {
            what: "lmdeploy w4a16, llama2-7B, RTX 4090, batch 1",
            unit: "tokens/s",
            published: 206.0,
            predicted: step(1.0, time_us(&rtx4090, LaunchKind::Stream, &LLAMA_7B.decode(1, 4.25, 512))),
            remark: "scale and zero point per 128 weights",
        },
        Anchor {
            what: "empty kernel in a stream (H100)",
            unit: "us",
            published: 2.1,
            predicted: empty(LaunchKind::Stream).time_us,
            remark: "the constant itself, no test of the model",
        },
        Anchor {
            what: "empty kernel as a node of a graph (H100)",
            unit: "us",
            published: 1.3,
            predicted: empty(LaunchKind::Graph).time_us,
            remark: "the constant itself, no test of the model",
        },
    ]
}

fn empty(kind: LaunchKind) -> Prediction {
    let device = DeviceSpec::preset("h100").unwrap_or_default();
    predict(&device, &Counters { ctas: 1, ..Counters::default() }, &FACTS, kind, &mut L2State::new(&device))
}

/// The study's kernel (d), a 4-bit matrix-vector product of 2048 x 4096 in 512 CTAs, from its counters.
pub fn worked_example(device: &DeviceSpec) -> Prediction {
    let mut c = streaming(512, 128, 4_470_000, 8192, 0);
    c.instructions.truncate(2);
    let loads = c.warp_instructions();
    c.instructions.push(instruction("fma.rn.f16x2", 1_300_000 - loads, None));
    let facts = KernelFacts { registers: 40, sass_per_ptx: Some(0.83), ..FACTS };
    predict(device, &c, &facts, LaunchKind::Graph, &mut L2State::new(device))
}

/// The whole page.
pub fn page() -> String {
    let mut out = String::from(HEAD);
    // Writing to a string cannot fail.
    let _ = writeln!(out, "| work | published | predicted | error | remark |\n|---|---|---|---|---|");
    for a in anchors() {
        let _ = writeln!(
            out,
            "| {} | {} {} | {} | {:+.0} % | {} |",
            a.what,
            a.published,
            a.unit,
            digits(a.predicted),
            100.0 * a.error(),
            a.remark
        );
    }
    out.push_str(EXAMPLE);
    let forty = DeviceSpec::preset("a100-40g").unwrap_or_default();
    for (name, hand_dram, device) in [("A100 40 GB", 3.3, forty), ("A100 80 GB", 2.5, DeviceSpec::default())]
    {
        let p = worked_example(&device);
        let _ = writeln!(
            out,
            "| {name} | {hand_dram} | {:.2} | 2.2 | {:.2} | 1.055 | {:.3} | {} | {:.2} |",
            p.terms.dram_us,
            p.terms.issue_us / p.tail,
            p.tail,
            p.limiter.name(),
            p.time_us
        );
    }
    out.push_str(WORDS);
    let _ = writeln!(out, "| constant | value | status | source |\n|---|---|---|---|");
    for c in constants::ALL {
        let status = match c.status {
            Status::Read => "read",
            Status::Recalled => "recalled",
            Status::Derived => "derived",
            Status::Assumed => "assumed",
        };
        let _ = writeln!(out, "| {} | {} {} | {status} | {} |", c.name, c.value, c.unit, c.source);
    }
    out
}

fn digits(x: f64) -> String {
    match x {
        x if x >= 100.0 => format!("{x:.0}"),
        x if x >= 10.0 => format!("{x:.1}"),
        x if x >= 1.0 => format!("{x:.2}"),
        x => format!("{x:.3}"),
    }
}

const HEAD: &str = "# The time model against published numbers

This page is written by `cargo run --release -p cudasim --example model_page`; a test compares it. The model is
described in `model.rs`. No number here was measured by this project: *published* is what others measured on a real
card, *predicted* is the model on counters worked out from the shapes of that work (not from running its kernels).

";

const EXAMPLE: &str = "
The first row decides: a model that is off by more than 15 % there would be wrong. It and the attention row were in
view when the ramp and the overlap loss were chosen, so that their errors are fits rather than tests; the others were
only looked at. The 4-bit rows on the A100 show what the model cannot know from bytes and shapes alone.

## A worked example

A 4-bit matrix-vector product, 2048 x 4096, 512 CTAs, 4.47 MB, 1.30 M PTX warp instructions, 0.83 machine
instructions each; times in microseconds, beside those calculated by hand.

| card | dram by hand | dram | issue by hand | issue | tail by hand | tail | limiter | modelled in a graph |
|---|---|---|---|---|---|---|---|---|
";

const WORDS: &str = "
## How far to trust it

- Streaming kernels with enough loads in flight: 15 to 25 %. Kernels limited by latency or tensor cores: 30 to 40 %.
- Comparing two variants of a kernel is better than either number, as most errors are common to both.
- It sees what the counters see: bytes, sectors, conflicts, instructions, waits. It does not see clocks that drop at
  the power limit, conflicts of cache sets and DRAM banks, the scheduler, the two halves of an A100's L2, hints of what
  leaves L2 first, atomics of shared memory that meet at one address, dependences between the phases of one warp, nor
  time that the host takes between launches.
- Within a launch every distinct sector is loaded from DRAM at most once, and none that the launch has written itself,
  which is optimistic for products whose operands exceed L2. Machine instructions are estimated per class unless a cubin gives the ratio.
- Blocks that wait for each other: what comes before and after a wait is taken to overlap as in any launch, a wait costs
  its warp one load, and fences nothing. A kernel that reads ahead across its waits comes near that, others do not.

## Constants

";
