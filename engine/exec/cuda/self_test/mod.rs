//! Whether the kernels compute on a device what the CPU computes.

mod layers;

use std::collections::BTreeMap;

use cudarc::driver::result;
use half::{bf16, f16};
use qwenvl_graph::DType;
use qwenvl_graph::kernel::KV_PAGE_TOKENS;
use qwenvl_graph::op::Heads;

use super::gpu::{Block, Gpu};
use super::words_of_tile;
use crate::checkpoint::Checkpoint;
use crate::engine::{Engine, EngineOptions, Target};
use crate::error::Result;
use crate::exec::compare::{compare, unit_roundoff, worst};
use crate::kernels::cuda::attention::{FlashAttention, Keys, PREFILL_TILE_ROWS, Sequence, TileList};
use crate::kernels::cuda::linear::{self, Finish, Kv, Linear, Regime, RowOrder, WeightKind, Workspace};
use crate::kernels::cuda::repack::{Format, Repack, Source};
use crate::kernels::cuda::sample::{BINS_BYTES, NO_TOKEN, Sample, best_len};
use crate::kernels::cuda::{Half, Kernels};
use crate::prompt::{ImageInput, Message, Part};
use crate::request::Request;
use crate::sampler::{Sampler, SamplingParams, TokenSet};

/// What became of one kernel in one use.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTest {
    /// The kernel, as plans name it, or `repack`.
    pub kernel: &'static str,
    /// What it did.
    pub job: String,
    /// Type of activations.
    pub activation: DType,
    /// The largest difference from the CPU's result in parts of what is allowed.
    pub worst: f64,
}

impl KernelTest {
    /// Whether all results were near enough.
    pub fn passed(&self) -> bool {
        self.worst <= 1.0
    }
}

/// Runs every kernel on small, ragged inputs on GPU `ordinal` and compares the results with the CPU's: the
/// embedded model step by step, fused and plain, in both types, with pictures and text; then what it does not
/// use.
///
/// # Errors
/// Those of loading and of the driver.
pub fn self_test(ordinal: usize) -> Result<Vec<KernelTest>> {
    let mut tests = Vec::new();
    for activation in [DType::BF16, DType::F16] {
        for fuse in [true, false] {
            model(ordinal, activation, fuse, &mut tests)?;
        }
    }
    let gpu = Gpu::open(ordinal)?;
    let kernels = Kernels::load(&gpu.context).map_err(|e| gpu.kernel_error("loading kernels", e))?;
    for activation in [DType::BF16, DType::F16] {
        let (gptq4, gptq8) = (Format::Gptq4 { zero_offset: 1 }, Format::Gptq8 { zero_offset: 1 });
        for (format, kind, stored) in [
            (gptq4, WeightKind::Int4, "gptq, 4 bits"),
            (gptq4, WeightKind::Int4G64, "gptq, 4 bits, groups of 64"),
            (gptq4, WeightKind::Int4G32, "gptq, 4 bits, groups of 32"),
            (gptq8, WeightKind::Int8, "gptq, 8 bits"),
            (gptq8, WeightKind::Int8G32, "gptq, 8 bits, groups of 32, zero points"),
        ] {
            for (regime, m) in [(Regime::SmallM, 5), (Regime::Prefill, 37)] {
                let kernel = if kind.bits() == 4 { "int4_gemm" } else { "int8_gemm" };
                let job = format!(
                    "{stored}, {m} rows, {}",
                    match regime {
                        Regime::SmallM => "decode",
                        Regime::Prefill => "prefill",
                    }
                );
                let worst = quantised(&gpu, &kernels, activation, (format, kind), regime, m)?;
                tests.push(KernelTest { kernel, job, activation, worst });
            }
        }
    }
    for activation in [DType::BF16, DType::F16] {
        for tile_rows in PREFILL_TILE_ROWS {
            let job = format!("two prompts in pages, tiles of {tile_rows} rows");
            let worst = prefill_attention(&gpu, &kernels, activation, tile_rows)?;
            tests.push(KernelTest { kernel: "paged_prefill", job, activation, worst });
        }
    }
    for activation in [DType::BF16, DType::F16] {
        for kind in [WeightKind::Int4, WeightKind::Int8, WeightKind::Dense] {
            let Some(worst) = layers::layers_in_one_launch(&gpu, &kernels, activation, kind)? else {
                continue;
            };
            let job = format!("weights of {} bits, as one by one", kind.bits());
            tests.push(KernelTest { kernel: "decode_layers", job, activation, worst });
        }
    }
    let worst = sample(&gpu, &kernels)?;
    tests.push(KernelTest {
        kernel: "sample",
        job: "penalty, top-k, top-p, draw".into(),
        activation: DType::F32,
        worst,
    });
    Ok(tests)
}

/// The embedded model.
fn model(ordinal: usize, activation: DType, fuse: bool, tests: &mut Vec<KernelTest>) -> Result<()> {
    let load = |target| {
        let options = EngineOptions {
            target,
            activation,
            fuse,
            threads: Some(crate::host::threads().min(4)),
            context_tokens: Some(192),
            max_seqs: 2,
            prefill_chunk_tokens: 61,
            ..EngineOptions::default()
        };
        Engine::load(Checkpoint::tiny()?, &options)
    };
    let (mut cpu, mut device) = (load(Target::Cpu)?, load(Target::Cuda(ordinal))?);
    let differences = compare(&mut cpu, &mut device, &mut |engine| {
        for request in requests() {
            let mut prepared = engine.frontend().prepare(&request)?;
            prepared.max_tokens = Some(3);
            engine.submit(prepared)?;
        }
        let mut events = Vec::new();
        while !engine.is_idle() {
            engine.step(&mut events)?;
        }
        Ok(())
    })?;
    let mut most = BTreeMap::<(&'static str, String), f64>::new();
    for d in differences {
        let most = most.entry((d.kernel, format!("{} {}", d.program, d.op))).or_default();
        *most = most.max(d.worst);
    }
    tests.extend(most.into_iter().map(|((kernel, job), worst)| {
        let job = if fuse { job } else { format!("{job}, plain") };
        KernelTest { kernel, job, activation, worst }
    }));
    Ok(())
}

/// Pictures with odd grids, and text.
fn requests() -> [Request; 2] {
    let picture = |width: u32, height: u32| {
        let rgb: Vec<u8> = (0..width * height * 3).map(|i| (i * 37 + i / 251 * 11) as u8).collect();
        Part::image(ImageInput::Pixels { width, height, rgb: rgb.into() })
    };
    let both = vec![picture(84, 140), picture(196, 56), Part::text("What is red in these pictures?")];
    [Request::new(vec![Message::user(both)]), Request::new(vec![Message::user("Count to ten, please.")])]
}

/// Device memory with something in it.
fn upload<T: bytemuck::NoUninit>(gpu: &Gpu, what: &str, data: &[T]) -> Result<Block> {
    let bytes: &[u8] = bytemuck::cast_slice(data);
    let block = gpu.block(what, bytes.len() as u64)?;
    // SAFETY: the block has as many bytes, and they are there until the wait.
    unsafe { result::memcpy_htod_async(block.address(), bytes, gpu.stream.cu_stream()) }
        .map_err(gpu.failed(what))?;
    gpu.wait(what)?;
    Ok(block)
}

/// Numbers that look random.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }
}

/// A layer with integer weights as GPTQ packs them, repacked and multiplied.
fn quantised(
    gpu: &Gpu,
    kernels: &Kernels,
    activation: DType,
    (format, kind): (Format, WeightKind),
    regime: Regime,
    m: usize,
) -> Result<f64> {
    let half = half_of(activation);
    let (n, k) = (136, 384);
    let (bits, group) = (kind.bits() as usize, kind.group());
    let (per_word, mask) = (32 / bits, (1u32 << bits) - 1);
    let mut numbers = Numbers(7);
    let codes: Vec<u32> = (0..k / per_word * n).map(|_| numbers.next() << 1 ^ numbers.next()).collect();
    // Symmetric: 127, stored less one.
    let is_symmetric = kind == WeightKind::Int8;
    let zeros: Vec<u32> = (0..k / group * n / per_word)
        .map(|_| if is_symmetric { 0x7f7f_7f7f } else { numbers.next() << 1 ^ numbers.next() })
        .collect();
    let scales: Vec<u16> = (0..k / group * n)
        .map(|_| f16::from_f32((numbers.next() % 64 + 1) as f32 / 4096.0).to_bits())
        .collect();
    // Multiples of 1/16 below 8 are exact in both types.
    let x: Vec<f32> = (0..m * k).map(|_| (numbers.next() % 256) as f32 / 16.0 - 8.0).collect();
    let weight = |row: usize, at: usize| {
        let code = codes[at / per_word * n + row] >> (at % per_word * bits) & mask;
        let zero =
            (zeros[at / group * (n / per_word) + row / per_word] >> (row % per_word * bits) & mask) + 1;
        (f64::from(code) - f64::from(zero & mask)) * f64::from(f16::from_bits(scales[at / group * n + row]))
    };
    let expected: Vec<f32> = (0..m * n)
        .map(|at| (0..k).map(|i| f64::from(x[at / n * k + i]) * weight(at % n, i)).sum::<f64>() as f32)
        .collect();

    let step = "testing linear layers";
    let send = |words: &[u32]| upload(gpu, step, words);
    let (codes, zeros, scales) = (send(&codes)?, send(&zeros)?, upload(gpu, step, &scales)?);
    let x = upload(gpu, step, &encode(half, &x))?;
    let groups = send(&(0..(k / group) as u32).collect::<Vec<_>>())?;
    let records = gpu.block(step, kind.matrix_bytes(n, k) as u64)?;
    let out = gpu.block(step, (2 * m * n) as u64)?;
    let sm_count = kernels.sm_count() as usize;
    let n_runs = linear::runs(n, k, sm_count);
    let partials = gpu.block(step, linear::workspace_bytes(sm_count) as u64)?;
    let arrivals = send(&vec![0; linear::arrivals(n, sm_count)])?;
    let source = Source {
        codes: codes.address(),
        zeros: zeros.address(),
        scales: scales.address(),
        groups: groups.address(),
        n,
    };
    let repack = Repack {
        format,
        kind,
        half,
        sources: &[source],
        k,
        order: RowOrder::Plain,
        inputs: None,
        out: records.address(),
    };
    let layer = Linear {
        kind,
        half,
        regime,
        x: x.address(),
        ldx: k,
        w: records.address(),
        order: RowOrder::Plain,
        bias: None,
        out: out.address(),
        m,
        n,
        k,
        n_runs,
        finish: Finish::Store,
        workspace: Workspace { partials: partials.address(), arrivals: arrivals.address() },
    };
    // SAFETY: the blocks are as large as the shapes say and live until the results are read.
    unsafe { kernels.repack(&gpu.stream, &repack).and_then(|()| kernels.linear(&gpu.stream, &layer)) }
        .map_err(|e| gpu.kernel_error(step, e))?;
    let found = read(gpu, step, half, &out, m * n)?;
    Ok(worst(&found, &expected, n, unit_roundoff(activation) / 3f64.sqrt()))
}

/// Causal attention of two chunks, one of them after other tokens, over pages that are out of order.
fn prefill_attention(gpu: &Gpu, kernels: &Kernels, activation: DType, tile_rows: usize) -> Result<f64> {
    const D: usize = 128;
    let half = half_of(activation);
    let heads = Heads { n_heads: 14, n_kv_heads: 2, head_dim: D };
    let group = heads.n_heads / heads.n_kv_heads;
    let table = [4u32, 0, 3, 2, 1, 5];
    let sequences = [
        Sequence { first: 0, rows: 37, past: 90, pages: 0 },
        Sequence { first: 37, rows: 65, past: 0, pages: 3 },
    ];
    let (width, rows) = (heads.n_heads * D, 37 + 65);
    let page_len = 2 * heads.n_kv_heads * KV_PAGE_TOKENS * D;
    // Multiples of 1/64 below 2 are exact in both types.
    let mut numbers = Numbers(13);
    let mut random = |n| (0..n).map(|_| (numbers.next() % 256) as f32 / 64.0 - 2.0).collect::<Vec<f32>>();
    let (q, pages) = (random(rows * width), random(table.len() * page_len));

    let mut expected = vec![0f32; rows * width];
    for (i, out) in expected.chunks_exact_mut(D).enumerate() {
        let (row, head) = (i / heads.n_heads, i % heads.n_heads);
        let s = sequences.iter().rfind(|s| s.first as usize <= row).expect("a sequence of each row");
        let seen = s.past as usize + row - s.first as usize + 1;
        // Of a key (`part` 0) or value (1).
        let stored = |part: usize, token: usize| {
            let page = table[s.pages as usize + token / KV_PAGE_TOKENS] as usize;
            let at = (part * heads.n_kv_heads + head / group) * KV_PAGE_TOKENS + token % KV_PAGE_TOKENS;
            &pages[page * page_len + at * D..][..D]
        };
        let score = |token: usize| {
            let products = q[i * D..][..D].iter().zip(stored(0, token));
            products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() / (D as f64).sqrt()
        };
        let scores: Vec<f64> = (0..seen).map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (channel, out) in out.iter_mut().enumerate() {
            let parts = weights.iter().enumerate().map(|(token, w)| w * f64::from(stored(1, token)[channel]));
            *out = (parts.sum::<f64>() / total) as f32;
        }
    }

    let step = "testing prefill attention";
    let mut list = TileList::default();
    list.list(&sequences, heads.n_kv_heads, group, tile_rows);
    list.link(group, kernels.sm_count() as usize);
    let words: Vec<u32> = list.tiles.iter().flat_map(words_of_tile).collect();
    let (tile_list, page_table) = (upload(gpu, step, &words)?, upload(gpu, step, &table)?);
    let (q, pages) = (upload(gpu, step, &encode(half, &q))?, upload(gpu, step, &encode(half, &pages))?);
    let out = gpu.block(step, (2 * rows * width) as u64)?;
    let call = FlashAttention {
        half,
        keys: Keys::Paged {
            q: q.address(),
            kv: Kv { pages: pages.address(), page_stride: page_len as u64, heads },
            page_table: page_table.address(),
        },
        tiles: tile_list.address(),
        n_tiles: list.tiles.len(),
        tile_rows,
        out: out.address(),
    };
    // SAFETY: the blocks are as large as the shapes say and live until the results are read.
    unsafe { kernels.flash_attention(&gpu.stream, &call) }.map_err(|e| gpu.kernel_error(step, e))?;
    let found = read(gpu, step, half, &out, rows * width)?;
    // Weights are rounded, and results.
    Ok(worst(&found, &expected, D, unit_roundoff(activation) * (2f64 / 3.0).sqrt()))
}

fn half_of(activation: DType) -> Half {
    if activation == DType::F16 { Half::F16 } else { Half::BF16 }
}

fn encode(half: Half, numbers: &[f32]) -> Vec<u16> {
    let bits = |x: &f32| match half {
        Half::BF16 => bf16::from_f32(*x).to_bits(),
        Half::F16 => f16::from_f32(*x).to_bits(),
    };
    numbers.iter().map(bits).collect()
}

/// The first `len` numbers of a block.
fn read(gpu: &Gpu, step: &str, half: Half, block: &Block, len: usize) -> Result<Vec<f32>> {
    let mut found = vec![0u16; len];
    gpu.read(step, block.address(), &mut found)?;
    let number = |bits: &u16| match half {
        Half::BF16 => bf16::from_bits(*bits).to_f32(),
        Half::F16 => f16::from_bits(*bits).to_f32(),
    };
    Ok(found.iter().map(number).collect())
}

/// Rows in every setting: zero if all tokens are those of the host, else infinity.
fn sample(gpu: &Gpu, kernels: &Kernels) -> Result<f64> {
    let (vocab, step) = (4999usize, "testing the sampler");
    let words = vocab.div_ceil(32);
    let default = SamplingParams::default();
    let drawn = SamplingParams { do_sample: true, top_k: 0, ..default };
    let settings = [
        default,
        SamplingParams { repetition_penalty: 1.3, ..default },
        drawn,
        SamplingParams { top_k: 20, ..drawn },
        SamplingParams { top_p: 0.9, temperature: 0.7, ..drawn },
        SamplingParams { top_k: 50, top_p: 0.8, repetition_penalty: 1.1, ..drawn },
    ];
    let mut numbers = Numbers(11);
    let n = settings.len();
    let logits: Vec<f32> = (0..n * vocab).map(|_| (numbers.next() % 4096) as f32 / 300.0).collect();
    let mut history = vec![0u32; n * words];
    let mut set = TokenSet::new(vocab);
    for _ in 0..9 {
        let id = numbers.next() as usize % vocab;
        set.insert(id as u32);
        (0..n).for_each(|row| history[row * words + id / 32] |= 1 << (id % 32));
    }
    let mut params = Vec::new();
    for (row, p) in settings.iter().enumerate() {
        let temperature = if p.is_greedy() { 0.0 } else { p.temperature };
        params.extend([row as u32, 0, 100 + row as u32, 0, temperature.to_bits()]);
        params.extend([p.top_p.to_bits(), p.repetition_penalty.to_bits(), p.top_k]);
    }
    let (sent, history, params) =
        (upload(gpu, step, &logits)?, upload(gpu, step, &history)?, upload(gpu, step, &params)?);
    let scores = gpu.block(step, 4 * logits.len() as u64)?;
    let (tokens, arrivals) = (upload(gpu, step, &vec![0u32; n])?, upload(gpu, step, &vec![0u32; n])?);
    let best = gpu.block(step, 8 * best_len(n, vocab) as u64)?;
    let bins = upload(gpu, step, &vec![0u8; n * BINS_BYTES])?;
    let call = Sample {
        logits: sent.address(),
        scores: scores.address(),
        history: history.address(),
        history_words: words,
        params: params.address(),
        tokens: tokens.address(),
        best: best.address(),
        bins: bins.address(),
        arrivals: arrivals.address(),
        drawn: true,
        rows: n,
        vocab,
    };
    // SAFETY: the blocks are as large as the shapes say and live until the tokens are read.
    unsafe { kernels.sample(&gpu.stream, &call) }.map_err(|e| gpu.kernel_error(step, e))?;
    let mut found = vec![0u32; n];
    gpu.read(step, tokens.address(), &mut found)?;
    let mut host = Sampler::new(vocab);
    for (row, p) in settings.iter().enumerate() {
        let p = SamplingParams { seed: row as u64, ..*p };
        let expected = host.sample(&logits[row * vocab..][..vocab], &set, &p, 100 + row as u64);
        if found[row] != expected.unwrap_or(NO_TOKEN) {
            return Ok(f64::INFINITY);
        }
    }
    Ok(0.0)
}
