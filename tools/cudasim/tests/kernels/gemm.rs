use half::{bf16, f16};

use crate::device::{Arg, Device, Random, VARIANTS, assert_close};

#[test]
fn gemm_matches_in_f16_and_bf16_with_ragged_edges() {
    for variant in VARIANTS {
        let device = Device::new(&format!("gemm.{variant}"));
        for kernel in ["gemm_f16", "gemm_bf16"] {
            let bits = |x: f32| {
                if kernel == "gemm_f16" { f16::from_f32(x).to_bits() } else { bf16::from_f32(x).to_bits() }
            };
            let wide = |b: u16| {
                if kernel == "gemm_f16" { f16::from_bits(b).to_f64() } else { bf16::from_bits(b).to_f64() }
            };
            for (m, n, k) in [(64, 64, 32), (70, 130, 96), (1, 3, 64)] {
                let mut random = Random((m * n * k) as u64);
                let a: Vec<u16> = (0..m * k).map(|_| bits(random.float())).collect();
                let b: Vec<u16> = (0..n * k).map(|_| bits(random.float())).collect();
                let c = device.buffer::<f32>(m * n);
                let args = [
                    device.upload(&a),
                    device.upload(&b),
                    c,
                    Arg::I32(m as i32),
                    Arg::I32(n as i32),
                    Arg::I32(k as i32),
                ];
                let grid = [n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1];
                device.run(kernel, grid, 128, 4 * 4096, &args);
                let want: Vec<f64> = (0..m * n)
                    .map(|i| {
                        let (row, col) = (i / n, i % n);
                        (0..k).map(|j| wide(a[row * k + j]) * wide(b[col * k + j])).sum()
                    })
                    .collect();
                let what = format!("{variant} {kernel} {m} x {n} x {k}");
                assert_close(&what, &device.download(c, m * n), &want, 1e-5, 1e-4);
            }
        }
    }
}

#[test]
fn the_swizzle_is_free_of_bank_conflicts() {
    let device = Device::new("gemm.nvcc13.O3");
    let (m, n, k) = (64usize, 64usize, 64usize);
    let half = vec![f16::ONE.to_bits(); m * k];
    let c = device.buffer::<f32>(m * n);
    let args = [device.upload(&half), device.upload(&half), c, Arg::I32(64), Arg::I32(64), Arg::I32(64)];
    let counters = device.run("gemm_f16", [1, 1, 1], 128, 4 * 4096, &args).counters;
    let ldmatrix: Vec<_> = counters.instructions.iter().filter(|i| i.text.starts_with("ldmatrix")).collect();
    assert!(!ldmatrix.is_empty());
    let memory = ldmatrix.iter().filter_map(|i| i.memory);
    let (requests, wavefronts, ideal) = memory
        .fold((0, 0, 0), |sum, m| (sum.0 + m.requests, sum.1 + m.wavefronts, sum.2 + m.ideal_wavefronts));
    // 4 warps x 2 steps of k x 2 halves x 4 loads of four matrices, one wavefront each.
    assert_eq!((requests, wavefronts, ideal), (64, 256, 256));
    let mma: u64 =
        counters.instructions.iter().filter(|i| i.text.starts_with("mma")).map(|i| i.warp_execs).sum();
    assert_eq!(mma as usize, (m / 16) * (n / 8) * (k / 16));
}
