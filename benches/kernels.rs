//! The CPU kernels at the shapes of the published models, beside what this machine can do.
//!
//! `cargo bench --bench kernels [-- FILTER]`. Criterion times each kernel; the table at the end sets the
//! fastest sample of each against read bandwidth and fused multiply-adds measured right before it, so
//! that a noisy machine disturbs both sides alike.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use qwenvl::kernels::SeqRows;
use qwenvl::kernels::cpu::attention::{self, KvPages};
use qwenvl::kernels::cpu::dense::DenseMatrix;
use qwenvl::kernels::cpu::grouped::{Packing, Source};
use qwenvl::kernels::cpu::int4::Int4Matrix;
use qwenvl::kernels::cpu::int8::Int8Matrix;
use qwenvl::kernels::cpu::linear::{Blocking, Finish, MAX_PARTS, Matrix, Part, linear};
use qwenvl::kernels::cpu::rounded::QuantizedRows;
use qwenvl::kernels::cpu::{Aligned, Isa, Pool, norm, peak, pointwise};
use qwenvl_graph::DType;
use qwenvl_graph::kernel::KV_PAGE_TOKENS;
use qwenvl_graph::op::Heads;

/// Rows and outputs of a tile, as the plan chooses them.
const BLOCK: (usize, usize) = (192, 128);
/// f32 of scratch that suffices every kernel here.
const SCRATCH: usize = 512 * 1024;

struct Rig {
    isa: Isa,
    pool: Pool,
    scratch: Vec<Aligned<f32>>,
    rounded: [QuantizedRows; MAX_PARTS],
    /// What bandwidth is measured on: larger than the caches.
    memory: Aligned<u32>,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    seconds: f64,
    bytes: f64,
    flops: f64,
    read: f64,
    fma: f64,
}

impl Rig {
    fn new() -> Rig {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let mut memory = Aligned::zeroed(64 << 20);
        memory.fill(1);
        Rig {
            isa: Isa::detect(),
            pool: Pool::new(threads).expect("threads start"),
            scratch: vec![Aligned::zeroed(SCRATCH); threads],
            rounded: Default::default(),
            memory,
            rows: Vec::new(),
        }
    }

    /// Times `run`, which must move `bytes` and do `flops` at least.
    fn bench(
        &mut self,
        group: &mut BenchmarkGroup<WallTime>,
        name: &str,
        bytes: usize,
        flops: usize,
        mut run: impl FnMut(&mut Rig),
    ) {
        group.throughput(Throughput::Bytes(bytes as u64));
        let mut best = f64::INFINITY;
        let (mut read, mut fma) = (0.0, 0.0);
        group.bench_function(name, |b| {
            if read == 0.0 {
                let budget = Duration::from_millis(150);
                read = peak::read_bandwidth(
                    self.isa,
                    &mut self.pool,
                    bytemuck::cast_slice(&self.memory),
                    budget,
                );
                fma = peak::fma_flops(self.isa, &mut self.pool, budget);
            }
            b.iter_custom(|iterations| {
                let start = Instant::now();
                for _ in 0..iterations {
                    run(self);
                }
                let elapsed = start.elapsed();
                best = best.min(elapsed.as_secs_f64() / iterations as f64);
                elapsed
            });
        });
        if best.is_finite() {
            let (bytes, flops) = (bytes as f64, flops as f64);
            self.rows.push(Row { name: name.into(), seconds: best, bytes, flops, read, fma });
        }
    }

    fn linear(&mut self, x: &[f32], m: usize, parts: &[Part], finish: Finish, out: &mut [f32]) {
        let blocking = Blocking {
            block_m: BLOCK.0,
            block_n: BLOCK.1,
            scratch: &mut self.scratch,
            rounded: &mut self.rounded,
        };
        linear(self.isa, &mut self.pool, x, m, parts, finish, out, blocking);
        black_box(out);
    }

    fn report(&self) {
        println!(
            "\n{:<44} {:>10} {:>8} {:>8} {:>9} {:>8}",
            "kernel", "time", "GB/s", "of read", "GFLOP/s", "of FMA"
        );
        for row in &self.rows {
            let (bandwidth, rate) = (row.bytes / row.seconds, row.flops / row.seconds);
            println!(
                "{:<44} {:>7.3} ms {:>8.2} {:>7.0}% {:>9.1} {:>7.0}%",
                row.name,
                row.seconds * 1e3,
                bandwidth / 1e9,
                100.0 * bandwidth / row.read,
                rate / 1e9,
                100.0 * rate / row.fma
            );
        }
    }
}

/// Bytes without a pattern.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

/// Numbers in -1..1.
fn floats(len: usize) -> Aligned<f32> {
    let mut floats = Aligned::zeroed(len);
    floats.iter_mut().zip(noise(len)).for_each(|(x, b)| *x = f32::from(b) / 128.0 - 1.0);
    floats
}

fn half_bytes(len: usize) -> Vec<u8> {
    floats(len).iter().flat_map(|x| half::f16::from_f32(x / 16.0).to_le_bytes()).collect()
}

/// f16 weights: the vision tower, and the head of the language model.
fn dense(rig: &mut Rig, group: &mut BenchmarkGroup<WallTime>) {
    for (name, m, n, k) in [
        ("vit qkv", 1564, 3840, 1280),
        ("vit fc1", 1564, 5120, 1280),
        ("vit fc2", 1564, 1280, 5120),
        ("2B lm_head", 1, 151_936, 1536),
    ] {
        let (weights, x) = (half_bytes(n * k), floats(m * k));
        let mut out = vec![0.0; m * n];
        let name = format!("dense_gemm f16/{name} m={m} n={n} k={k}");
        rig.bench(group, &name, 2 * n * k, 2 * m * n * k, |rig| {
            let matrix = Matrix::Dense(DenseMatrix::new(&weights, DType::F16, n, k));
            rig.linear(&x, m, &[Part { matrix, bias: None }], Finish::Store, &mut out);
        });
    }
}

/// Quantised weights with groups of 128: the layout here is the same for AWQ and GPTQ.
fn integers(rig: &mut Rig, group: &mut BenchmarkGroup<WallTime>) {
    for (name, n, k) in
        [("2B up", 8960, 1536), ("2B down", 1536, 8960), ("7B up", 18_944, 3584), ("7B down", 3584, 18_944)]
    {
        let scales: Vec<u8> = half_bytes(k / 128 * n);
        for bits in [4, 8] {
            let (qweight, qzeros) = (noise(k * n * bits / 8), noise(k / 128 * n * bits / 8));
            let (packing, order) = (Packing::Gptq { v2: false }, None);
            let source = Source {
                packing,
                qweight: &qweight,
                qzeros: &qzeros,
                scales: &scales,
                n,
                k,
                group: 128,
                order,
            };
            let (int4, int8);
            let (matrix, bytes) = if bits == 4 {
                int4 = Int4Matrix::pack(&mut rig.pool, &source, 128);
                (Matrix::Int4(&int4), int4.bytes())
            } else {
                int8 = Int8Matrix::pack(&mut rig.pool, &source, 128);
                (Matrix::Int8(&int8), int8.bytes())
            };
            for m in [1, 8, 512] {
                let x = floats(m * k);
                let mut out = vec![0.0; m * n];
                let name = format!("int{bits}_gemm/{name} m={m} n={n} k={k}");
                rig.bench(group, &name, bytes as usize, 2 * m * n * k, |rig| {
                    rig.linear(&x, m, &[Part { matrix, bias: None }], Finish::Store, &mut out);
                });
            }
        }
    }
}

fn vision_attention(rig: &mut Rig, group: &mut BenchmarkGroup<WallTime>) {
    let (heads, d, rows) = (16, 80, 1564);
    let width = heads * d;
    let qkv = floats(rows * 3 * width);
    let mut out = vec![0.0; rows * width];
    let name = format!("flash_attn/vit {rows} patches, {heads} heads of {d}");
    rig.bench(group, &name, 4 * qkv.len(), 4 * rows * rows * width, |rig| {
        let all = 0..rows;
        attention::vision(
            rig.isa,
            &mut rig.pool,
            &qkv,
            std::slice::from_ref(&all),
            0..rows,
            heads,
            d,
            &mut out,
            &mut rig.scratch,
        );
        black_box(&mut out);
    });
}

fn paged_attention(rig: &mut Rig, group: &mut BenchmarkGroup<WallTime>) {
    for (model, n_heads, n_kv_heads) in [("2B", 12, 2), ("7B", 28, 4)] {
        for (tokens, past) in [(1usize, 2047), (1, 8191), (512, 1536)] {
            let heads = Heads { n_heads, n_kv_heads, head_dim: 128 };
            let seen = past + tokens;
            let pages = seen.div_ceil(KV_PAGE_TOKENS);
            let mut kv = KvPages::new(pages, 1, heads);
            kv.fill(0.1);
            let width = n_heads * 128;
            let q = floats(tokens * width);
            let mut out = vec![0.0; tokens * width];
            let table: Vec<u32> = (0..pages as u32).rev().collect();
            let seqs = [SeqRows { tokens: 0..tokens, past, pages: 0..pages }];
            let pairs: usize = (past + 1..=seen).sum();
            let name = format!("paged_attn/{model} {tokens} tokens after {past}");
            rig.bench(group, &name, 8 * seen * n_kv_heads * 128, 4 * pairs * width, |rig| {
                attention::paged(
                    rig.isa,
                    &mut rig.pool,
                    &kv,
                    0,
                    &q,
                    &seqs,
                    &table,
                    &mut out,
                    &mut rig.scratch,
                );
                black_box(&mut out);
            });
        }
    }
}

fn pointwise(rig: &mut Rig, group: &mut BenchmarkGroup<WallTime>) {
    let (rows, width) = (512, 3584);
    let (x, weight) = (floats(rows * width), floats(width));
    let mut out = vec![0.0; rows * width];
    rig.bench(group, &format!("norm/rms {rows} x {width}"), 8 * rows * width, 4 * rows * width, |rig| {
        norm::rms_norm(rig.isa, &mut rig.pool, &x, &weight, 1e-6, &mut out);
        black_box(&mut out);
    });
    rig.bench(group, &format!("pointwise/add {rows} x {width}"), 12 * rows * width, rows * width, |rig| {
        pointwise::add(&mut rig.pool, &x, None, &mut out);
        black_box(&mut out);
    });
}

fn main() {
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let mut rig = Rig::new();
    let mut group = criterion.benchmark_group("kernels");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    dense(&mut rig, &mut group);
    integers(&mut rig, &mut group);
    vision_attention(&mut rig, &mut group);
    paged_attention(&mut rig, &mut group);
    pointwise(&mut rig, &mut group);
    group.finish();
    rig.report();
    criterion.final_summary();
}
