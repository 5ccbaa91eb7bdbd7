//! What this machine reaches when nothing else limits it: the denominators of every fraction.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::simd::Simd;
use super::{Isa, Pool, dispatch};

/// Best read bandwidth of all threads together in bytes/s: the fastest of several passes over
/// `data`, which should be far larger than the caches.
pub fn read_bandwidth(isa: Isa, pool: &mut Pool, data: &[u8], budget: Duration) -> f64 {
    const CHUNK: usize = 1 << 20;
    let start = Instant::now();
    let mut best = 0f64;
    while best == 0.0 || start.elapsed() < budget {
        let pass = Instant::now();
        pool.run(data.len().div_ceil(CHUNK), |task, _| {
            let chunk = &data[task * CHUNK..((task + 1) * CHUNK).min(data.len())];
            // SAFETY: the kernel reads whole blocks within the slice.
            black_box(unsafe { read_all(isa, chunk) });
        });
        best = best.max(data.len() as f64 / pass.elapsed().as_secs_f64());
    }
    best
}

/// Fused multiply-adds of all threads together in FLOP/s, operands in registers.
pub fn fma_flops(isa: Isa, pool: &mut Pool, budget: Duration) -> f64 {
    const ROUNDS: usize = 1 << 15;
    let start = Instant::now();
    let mut best = 0f64;
    while best == 0.0 || start.elapsed() < budget {
        let pass = Instant::now();
        let tasks = pool.threads() * 4;
        pool.run(tasks, |_, _| {
            // SAFETY: arithmetic on values.
            black_box(unsafe { multiply_add(isa, ROUNDS) });
        });
        let flops = (tasks * ROUNDS * CHAINS * 32) as f64;
        best = best.max(flops / pass.elapsed().as_secs_f64());
    }
    best
}

/// Independent chains: enough to cover a latency of four or five cycles at two per cycle.
const CHAINS: usize = 12;

dispatch!(fn read_all => read_body(data: &[u8]) -> i32);
dispatch!(fn multiply_add => multiply_body(rounds: usize) -> f32);

#[inline(always)]
unsafe fn read_body<S: Simd>(data: &[u8]) -> i32 {
    // SAFETY: loads of 32 bytes within the slice.
    unsafe {
        let mut acc = [S::zero_i(); 4];
        for block in data.chunks_exact(128) {
            for (i, acc) in acc.iter_mut().enumerate() {
                *acc = S::add_i(*acc, S::load_i(block.as_ptr().add(32 * i)));
            }
        }
        let mut lanes = [0i32; 8];
        S::store_i(lanes.as_mut_ptr().cast(), S::add_i(S::add_i(acc[0], acc[1]), S::add_i(acc[2], acc[3])));
        lanes.iter().fold(0, |a, b| a ^ b)
    }
}

#[inline(always)]
unsafe fn multiply_body<S: Simd>(rounds: usize) -> f32 {
    // SAFETY: arithmetic on values.
    unsafe {
        let (a, b) = (S::wide_splat(black_box(0.999_99)), S::wide_splat(black_box(1e-6)));
        let mut acc = [S::wide_splat(1.0); CHAINS];
        // Where a wide vector is a pair of 16 registers, half as many chains twice as long.
        let (used, rounds) = if S::TALL { (CHAINS, rounds) } else { (CHAINS / 2, 2 * rounds) };
        for _ in 0..rounds {
            for acc in &mut acc[..used] {
                *acc = S::wide_fma(*acc, a, b);
            }
        }
        let mut lanes = [0.0; 16];
        acc.into_iter()
            .map(|v| {
                S::wide_store(lanes.as_mut_ptr(), v);
                lanes[0]
            })
            .sum()
    }
}
