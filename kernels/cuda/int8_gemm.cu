// int8_gemm: Y[m, n] = X[m, k] · W[n, k]ᵀ for 8-bit weights with zero point 128
// math    Σ_k X[m, k] · (c[k, n] − 128) · s[k/128, n], then the epilogue; order and layout: linear.cuh
// launch  as int4_gemm, rings of 2 to 4 stages; prefill of small cards: 16 rows
// needs   m at most that of the kernel's name; on small cards at most 32
// bytes   1.0156 per weight, once (prefill: once per tile, through L2)
// target  m8: ≤ 3 instructions per weight of a budget of 11; prefill: 75 % of peak
// source  this project's
#include "linear.cuh"

LINEAR_KERNEL(int8_gemm_bf16_m8, BF16, Int8, 8, 1, 4, LARGE_SMALL(4, 2), false)
LINEAR_KERNEL(int8_gemm_bf16_m16, BF16, Int8, 8, 2, 4, LARGE_SMALL(3, 2), false)
LINEAR_KERNEL(int8_gemm_bf16_m32, BF16, Int8, 8, 4, 4, LARGE_SMALL(3, 2), false)
LINEAR_KERNEL(int8_gemm_bf16_m64, BF16, Int8, 8, LARGE_SMALL(8, 4), 4, LARGE_SMALL(3, 2), false)
LINEAR_KERNEL(int8_gemm_bf16_norm, BF16, Int8, 8, 1, 4, LARGE_SMALL(3, 2), false, LARGE_SMALL(2, 1))
LINEAR_KERNEL(int8_gemm_bf16_prefill, BF16, Int8, 8, LARGE_SMALL(8, 2), 4, 2, true)
LINEAR_KERNEL(int8_gemm_f16_m8, F16, Int8, 8, 1, 4, LARGE_SMALL(4, 2), false)
LINEAR_KERNEL(int8_gemm_f16_m16, F16, Int8, 8, 2, 4, LARGE_SMALL(3, 2), false)
LINEAR_KERNEL(int8_gemm_f16_m32, F16, Int8, 8, 4, 4, LARGE_SMALL(3, 2), false)
LINEAR_KERNEL(int8_gemm_f16_m64, F16, Int8, 8, LARGE_SMALL(8, 4), 4, LARGE_SMALL(3, 2), false)
LINEAR_KERNEL(int8_gemm_f16_norm, F16, Int8, 8, 1, 4, LARGE_SMALL(3, 2), false, LARGE_SMALL(2, 1))
LINEAR_KERNEL(int8_gemm_f16_prefill, F16, Int8, 8, LARGE_SMALL(8, 2), 4, 2, true)
