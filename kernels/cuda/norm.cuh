// The RMSNorm of a row by 256 threads, wherever it is computed: one order of sums, one place of rounding.
#pragma once

#include "common.cuh"

constexpr u32 NORM_VECTORS = 8; // of four columns per thread: rows of up to 8192

// Thread i takes the columns 4i..4i+3 of each 1024; zeros beyond the row.
__device__ __forceinline__ void load_row(float4 (&x)[NORM_VECTORS], const float *row, u32 cols) {
#pragma unroll
    for (u32 i = 0; i < NORM_VECTORS; i++) {
        u32 at = i * THREADS + threadIdx.x;
        x[i] = at * 4 < cols ? reinterpret_cast<const float4 *>(row)[at] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
}

// 1 / sqrt(mean(x²) + eps). `scratch` has 8 floats that nothing else uses.
__device__ __forceinline__ float rms_scale(const float4 (&x)[NORM_VECTORS], u32 cols, float eps, float *scratch) {
    float squares = 0.0f;
#pragma unroll
    for (u32 i = 0; i < NORM_VECTORS; i++) {
        squares = __fmaf_rn(x[i].x, x[i].x, squares);
        squares = __fmaf_rn(x[i].y, x[i].y, squares);
        squares = __fmaf_rn(x[i].z, x[i].z, squares);
        squares = __fmaf_rn(x[i].w, x[i].w, squares);
    }
    float mean = __fdiv_rn(block_sum(squares, scratch), static_cast<float>(cols));
    return __frcp_rn(__fsqrt_rn(__fadd_rn(mean, eps)));
}

// Four outputs: x · scale is rounded to the activation type, then its product with the weight.
template <class T> __device__ __forceinline__ uint2 rms_apply(float4 x, float scale, float4 weight) {
    u32 low = T::pack(__fmul_rn(x.x, scale), __fmul_rn(x.y, scale));
    u32 high = T::pack(__fmul_rn(x.z, scale), __fmul_rn(x.w, scale));
    return make_uint2(T::pack(__fmul_rn(T::low(low), weight.x), __fmul_rn(T::high(low), weight.y)),
                      T::pack(__fmul_rn(T::low(high), weight.z), __fmul_rn(T::high(high), weight.w)));
}
