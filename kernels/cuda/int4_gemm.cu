// int4_gemm: Y[m, n] = X[m, k] · W[n, k]ᵀ for 4-bit weights
// math    Σ_k X[m, k] · (c[k, n] − z[k/128, n]) · s[k/128, n], then the epilogue; order and layout: linear.cuh
// launch  norm, m8 … m64: grid = n_runs of the plan (one per SM), rings of 3 to 6 stages of 128 inputs x 256 outputs;
//         prefill: persistent, one CTA per SM, 64 rows (small cards: 32) x 256 outputs. 256 threads.
// needs   k % 128 == 0 in the file's groups (records are padded), m at most that of the kernel's name
// bytes   0.51953 per weight, once (prefill: once per tile, through L2)
// target  m8: ≤ 1.6 instructions per weight, 95 % of 1.80 TB/s; prefill: ≤ 600 instructions per 128 mma, 75 % of peak
// source  the order of weights and the sums of rows are this project's; bit tricks after Kim et al., "Who says
//         elephants can't run", arXiv 2211.10017
#include "linear.cuh"

LINEAR_KERNEL(int4_gemm_bf16_m8, BF16, Int4, 8, 1, 4, LARGE_SMALL(6, 4), false)
LINEAR_KERNEL(int4_gemm_bf16_m16, BF16, Int4, 8, 2, 4, LARGE_SMALL(6, 4), false)
LINEAR_KERNEL(int4_gemm_bf16_m32, BF16, Int4, 8, 4, 4, LARGE_SMALL(5, 3), false)
LINEAR_KERNEL(int4_gemm_bf16_m64, BF16, Int4, 8, 8, 4, LARGE_SMALL(4, 2), false)
LINEAR_KERNEL(int4_gemm_bf16_norm, BF16, Int4, 8, 1, 4, LARGE_SMALL(6, 3), false, LARGE_SMALL(2, 1))
LINEAR_KERNEL(int4_gemm_bf16_prefill, BF16, Int4, 8, LARGE_SMALL(8, 4), 4, LARGE_SMALL(3, 2), true)
LINEAR_KERNEL(int4_gemm_f16_m8, F16, Int4, 8, 1, 4, LARGE_SMALL(6, 4), false)
LINEAR_KERNEL(int4_gemm_f16_m16, F16, Int4, 8, 2, 4, LARGE_SMALL(6, 4), false)
LINEAR_KERNEL(int4_gemm_f16_m32, F16, Int4, 8, 4, 4, LARGE_SMALL(5, 3), false)
LINEAR_KERNEL(int4_gemm_f16_m64, F16, Int4, 8, 8, 4, LARGE_SMALL(4, 2), false)
LINEAR_KERNEL(int4_gemm_f16_norm, F16, Int4, 8, 1, 4, LARGE_SMALL(6, 3), false, LARGE_SMALL(2, 1))
LINEAR_KERNEL(int4_gemm_f16_prefill, F16, Int4, 8, LARGE_SMALL(8, 4), 4, LARGE_SMALL(3, 2), true)
