// int4_g32_gemm: int4_gemm for weights with a scale and a zero point for every 32 inputs
// math    Σ_k X[m, k] · (c[k, n] − z[k/32, n]) · s[k/32, n], then the epilogue; order and layout: linear.cuh
// launch  as int4_gemm; prefill: 48 rows (small cards: 32) x 256 outputs
// needs   m at most that of the kernel's name and 48; on small cards 32
// bytes   0.57813 per weight, once (prefill: once per tile, through L2)
// target  as int4_gemm: bandwidth-bound, 3 instructions per weight of a budget of 6.2
// source  this project's
#include "linear.cuh"

LINEAR_KERNEL(int4_g32_gemm_bf16_m8, BF16, Int4Of<32>, 8, 1, 4, LARGE_SMALL(6, 4), false)
LINEAR_KERNEL(int4_g32_gemm_bf16_m16, BF16, Int4Of<32>, 8, 2, 4, LARGE_SMALL(5, 3), false)
LINEAR_KERNEL(int4_g32_gemm_bf16_m32, BF16, Int4Of<32>, 8, 4, 4, LARGE_SMALL(5, 3), false)
LINEAR_KERNEL(int4_g32_gemm_bf16_m64, BF16, Int4Of<32>, 8, LARGE_SMALL(6, 4), 4, LARGE_SMALL(4, 3), false)
LINEAR_KERNEL(int4_g32_gemm_bf16_norm, BF16, Int4Of<32>, 8, 1, 4, LARGE_SMALL(6, 3), false, LARGE_SMALL(2, 1))
LINEAR_KERNEL(int4_g32_gemm_bf16_prefill, BF16, Int4Of<32>, 8, LARGE_SMALL(6, 4), 4, LARGE_SMALL(3, 2), true)
LINEAR_KERNEL(int4_g32_gemm_f16_m8, F16, Int4Of<32>, 8, 1, 4, LARGE_SMALL(6, 4), false)
LINEAR_KERNEL(int4_g32_gemm_f16_m16, F16, Int4Of<32>, 8, 2, 4, LARGE_SMALL(5, 3), false)
LINEAR_KERNEL(int4_g32_gemm_f16_m32, F16, Int4Of<32>, 8, 4, 4, LARGE_SMALL(5, 3), false)
LINEAR_KERNEL(int4_g32_gemm_f16_m64, F16, Int4Of<32>, 8, LARGE_SMALL(6, 4), 4, LARGE_SMALL(4, 3), false)
LINEAR_KERNEL(int4_g32_gemm_f16_norm, F16, Int4Of<32>, 8, 1, 4, LARGE_SMALL(6, 3), false, LARGE_SMALL(2, 1))
LINEAR_KERNEL(int4_g32_gemm_f16_prefill, F16, Int4Of<32>, 8, LARGE_SMALL(6, 4), 4, LARGE_SMALL(3, 2), true)
