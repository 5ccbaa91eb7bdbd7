// int8_g32_gemm: int8_gemm for weights with a scale and a zero point for every 32 inputs: all that int8_gemm does not take
// math    Σ_k X[m, k] · (c[k, n] − z[k/32, n]) · s[k/32, n], then the epilogue; order and layout: linear.cuh
// launch  as int8_gemm; prefill: 48 rows (f16: 32, small cards: 16) x 256 outputs
// needs   m at most that of the kernel's name and 32
// bytes   1.09375 per weight, once (prefill: once per tile, through L2)
// target  as int8_gemm: bandwidth-bound, 4 instructions per weight of a budget of 11.8
// source  this project's
#include "linear.cuh"

LINEAR_KERNEL(int8_g32_gemm_bf16_m8, BF16, Int8Of<32, true>, 8, 1, 4, LARGE_SMALL(4, 2), false)
LINEAR_KERNEL(int8_g32_gemm_bf16_m16, BF16, Int8Of<32, true>, 8, 2, 4, LARGE_SMALL(3, 2), false)
LINEAR_KERNEL(int8_g32_gemm_bf16_m32, BF16, Int8Of<32, true>, 8, 4, 4, LARGE_SMALL(3, 2), false)
LINEAR_KERNEL(int8_g32_gemm_bf16_m64, BF16, Int8Of<32, true>, 8, 4, 4, LARGE_SMALL(3, 2), false)
LINEAR_KERNEL(int8_g32_gemm_bf16_norm, BF16, Int8Of<32, true>, 8, 1, 4, LARGE_SMALL(3, 2), false, LARGE_SMALL(2, 1))
LINEAR_KERNEL(int8_g32_gemm_bf16_prefill, BF16, Int8Of<32, true>, 8, LARGE_SMALL(6, 2), 4, 2, true)
LINEAR_KERNEL(int8_g32_gemm_f16_m8, F16, Int8Of<32, true>, 8, 1, 4, LARGE_SMALL(4, 2), false)
LINEAR_KERNEL(int8_g32_gemm_f16_m16, F16, Int8Of<32, true>, 8, 2, 4, LARGE_SMALL(3, 2), false)
LINEAR_KERNEL(int8_g32_gemm_f16_m32, F16, Int8Of<32, true>, 8, 4, 4, LARGE_SMALL(3, 2), false)
LINEAR_KERNEL(int8_g32_gemm_f16_m64, F16, Int8Of<32, true>, 8, 4, 4, LARGE_SMALL(3, 2), false)
LINEAR_KERNEL(int8_g32_gemm_f16_norm, F16, Int8Of<32, true>, 8, 1, 4, LARGE_SMALL(3, 2), false, LARGE_SMALL(2, 1))
LINEAR_KERNEL(int8_g32_gemm_f16_prefill, F16, Int8Of<32, true>, 8, LARGE_SMALL(4, 2), 4, 2, true)
