// dense_gemm: Y[m, n] = X[m, k] · W[n, k]ᵀ for weights of the type of X: vision tower, merger, LM head, BF16 models
// math    Σ_k X[m, k] · W[n, k] in one chain of mma (small m: one per slice), then the epilogue; linear.cuh
// launch  norm, m8 … m64: grid = n_runs of the plan, ring of 64 or 32 inputs x 256 outputs;
//         prefill: persistent, one CTA per SM, 128 rows x 256 outputs, warps of 64 x 64;
//         square, narrow: persistent, two CTAs per SM, 128 rows x 128 outputs and 64 x 64, where there are too few
//         wide tiles. 256 threads, square 128.
// needs   m at most that of the kernel's name
// bytes   2 per weight, once (prefill, square: once per 128 rows, narrow: per 64, through L2)
// target  m8: ≤ 1.7 instructions per weight of a budget of 21; prefill: ≤ 3 instructions per mma, 75 % of peak
// source  this project's
#include "linear.cuh"

LINEAR_KERNEL(dense_gemm_bf16_m8, BF16, Dense, 8, 1, LARGE_SMALL(2, 1), LARGE_SMALL(4, 5), false)
LINEAR_KERNEL(dense_gemm_bf16_m16, BF16, Dense, 8, 2, LARGE_SMALL(2, 1), LARGE_SMALL(4, 5), false)
LINEAR_KERNEL(dense_gemm_bf16_m32, BF16, Dense, 8, 4, LARGE_SMALL(2, 1), 4, false)
LINEAR_KERNEL(dense_gemm_bf16_m64, BF16, Dense, 8, 8, LARGE_SMALL(2, 1), LARGE_SMALL(3, 4), false)
LINEAR_KERNEL(dense_gemm_bf16_norm, BF16, Dense, 8, 1, LARGE_SMALL(2, 1), LARGE_SMALL(3, 4), false, LARGE_SMALL(2, 1))
LINEAR_KERNEL(dense_gemm_bf16_prefill, BF16, Dense, 4, 8, 1, LARGE_SMALL(5, 3), true)
LINEAR_KERNEL(dense_gemm_bf16_square, BF16, Dense, 2, 8, 1, LARGE_SMALL(4, 2), true, 0, 128, 4)
LINEAR_KERNEL(dense_gemm_bf16_narrow, BF16, Dense, 2, 2, 2, LARGE_SMALL(3, 2), true, 0, 64)
LINEAR_KERNEL(dense_gemm_f16_m8, F16, Dense, 8, 1, LARGE_SMALL(2, 1), LARGE_SMALL(4, 5), false)
LINEAR_KERNEL(dense_gemm_f16_m16, F16, Dense, 8, 2, LARGE_SMALL(2, 1), LARGE_SMALL(4, 5), false)
LINEAR_KERNEL(dense_gemm_f16_m32, F16, Dense, 8, 4, LARGE_SMALL(2, 1), 4, false)
LINEAR_KERNEL(dense_gemm_f16_m64, F16, Dense, 8, 8, LARGE_SMALL(2, 1), LARGE_SMALL(3, 4), false)
LINEAR_KERNEL(dense_gemm_f16_norm, F16, Dense, 8, 1, LARGE_SMALL(2, 1), LARGE_SMALL(3, 4), false, LARGE_SMALL(2, 1))
LINEAR_KERNEL(dense_gemm_f16_prefill, F16, Dense, 4, 8, 1, LARGE_SMALL(5, 3), true)
LINEAR_KERNEL(dense_gemm_f16_square, F16, Dense, 2, 8, 1, LARGE_SMALL(4, 2), true, 0, 128, 4)
LINEAR_KERNEL(dense_gemm_f16_narrow, F16, Dense, 2, 2, 2, LARGE_SMALL(3, 2), true, 0, 64)
