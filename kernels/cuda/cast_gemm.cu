// cast_gemm: dense_gemm for weights of the other 16-bit type: an LM head that is also the embedding table, kept as the
// checkpoint has it
// math    Σ_k X[m, k] · round(W[n, k]), then the epilogue: the bits of dense_gemm with weights rounded before
// launch  as dense_gemm, few rows only
// needs   m at most that of the kernel's name
// bytes   2 per weight, once
// target  m8: ≤ 4 instructions per weight of a budget of 21
// source  this project's
#include "linear.cuh"

LINEAR_KERNEL(cast_gemm_bf16_m8, BF16, Cast<F16>, 8, 1, LARGE_SMALL(2, 1), LARGE_SMALL(4, 5), false)
LINEAR_KERNEL(cast_gemm_bf16_m16, BF16, Cast<F16>, 8, 2, LARGE_SMALL(2, 1), LARGE_SMALL(4, 5), false)
LINEAR_KERNEL(cast_gemm_bf16_m32, BF16, Cast<F16>, 8, 4, LARGE_SMALL(2, 1), 4, false)
LINEAR_KERNEL(cast_gemm_bf16_m64, BF16, Cast<F16>, 8, 8, LARGE_SMALL(2, 1), LARGE_SMALL(3, 4), false)
LINEAR_KERNEL(cast_gemm_bf16_norm, BF16, Cast<F16>, 8, 1, LARGE_SMALL(2, 1), LARGE_SMALL(3, 4), false, LARGE_SMALL(2, 1))
LINEAR_KERNEL(cast_gemm_f16_m8, F16, Cast<BF16>, 8, 1, LARGE_SMALL(2, 1), LARGE_SMALL(4, 5), false)
LINEAR_KERNEL(cast_gemm_f16_m16, F16, Cast<BF16>, 8, 2, LARGE_SMALL(2, 1), LARGE_SMALL(4, 5), false)
LINEAR_KERNEL(cast_gemm_f16_m32, F16, Cast<BF16>, 8, 4, LARGE_SMALL(2, 1), 4, false)
LINEAR_KERNEL(cast_gemm_f16_m64, F16, Cast<BF16>, 8, 8, LARGE_SMALL(2, 1), LARGE_SMALL(3, 4), false)
LINEAR_KERNEL(cast_gemm_f16_norm, F16, Cast<BF16>, 8, 1, LARGE_SMALL(2, 1), LARGE_SMALL(3, 4), false, LARGE_SMALL(2, 1))
