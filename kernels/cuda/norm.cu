// norm: RMSNorm and LayerNorm over rows of the f32 residual stream
// math    rms_norm: y = x / sqrt(mean(x²) + eps) · weight, x / sqrt(…) rounded to the activation type before the
//         weight, as the reference does; layer_norm: y = (x − mean) / sqrt(mean((x − mean)²) + eps) · weight + bias
// layout  x f32 [·, cols], rows by index or in order; weight and bias f32; out [rows, cols], 16-bit
// order   rms_norm: 256 threads, thread i has the columns 4i..4i+3 of each 1024 in turn; a butterfly over lanes; warps
//         in order. layer_norm: the same within one warp and each 128 columns
// launch  rms_norm: grid = rows, block = 256. layer_norm: grid = rows / 8, block = 256, a warp per row
// needs   cols a multiple of 4, at most 8192 and 1280
// bytes   6 per element: a row stays in registers between its passes
// target  bandwidth-bound; 90 % of 1.80 TB/s from 1,000 rows on
// source  modeling_qwen2_vl.py of transformers 4.57.6 for where it rounds
#include "norm.cuh"

// As load_row, without a branch: all loads are under way before the first is waited for, which is most of the time of one
// row.
__device__ __forceinline__ void load_all(float4 (&x)[NORM_VECTORS], const float *row, u32 cols) {
#pragma unroll
    for (u32 i = 0; i < NORM_VECTORS; i++) {
        x[i] = reinterpret_cast<const float4 *>(row)[min(i * THREADS + threadIdx.x, cols / 4 - 1)];
    }
}

template <class T> __device__ __forceinline__ void rms_norm(const QwenvlNorm &p, u32 row) {
    __shared__ float scratch[8];
    float4 x[NORM_VECTORS];
    u32 from = p.row_index ? p.row_index[row] : row;
    load_all(x, p.x + static_cast<u64>(from) * p.cols, p.cols);
    float4 weight[NORM_VECTORS]; // asked for before the sum, which needs all of the row
    load_all(weight, p.weight, p.cols);
#pragma unroll
    for (u32 i = 0; i < NORM_VECTORS; i++) {
        bool there = (i * THREADS + threadIdx.x) * 4 < p.cols;
        x[i] = there ? x[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    float scale = rms_scale(x, p.cols, p.eps, scratch);
    uint2 *out = reinterpret_cast<uint2 *>(static_cast<u16 *>(p.out) + static_cast<u64>(row) * p.cols);
#pragma unroll
    for (u32 i = 0; i < NORM_VECTORS; i++) {
        u32 at = i * THREADS + threadIdx.x;
        if (at * 4 < p.cols) {
            out[at] = rms_apply<T>(x[i], scale, weight[i]);
        }
    }
}

template <class T> __device__ __forceinline__ void layer_norm(const QwenvlNorm &p, u32 row) {
    constexpr u32 VECTORS = 10;
    const u32 lane = threadIdx.x % 32;
    u32 from = p.row_index ? p.row_index[row] : row;
    const float4 *source = reinterpret_cast<const float4 *>(p.x + static_cast<u64>(from) * p.cols);
    float4 x[VECTORS];
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < VECTORS; i++) {
        bool there = (i * 32 + lane) * 4 < p.cols;
        x[i] = there ? source[i * 32 + lane] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        sum += (x[i].x + x[i].y) + (x[i].z + x[i].w);
    }
    const float columns = static_cast<float>(p.cols);
    float mean = __fdiv_rn(warp_sum(sum), columns), squares = 0.0f;
#pragma unroll
    for (u32 i = 0; i < VECTORS; i++) {
        if ((i * 32 + lane) * 4 < p.cols) {
            x[i].x -= mean, x[i].y -= mean, x[i].z -= mean, x[i].w -= mean;
            squares += (x[i].x * x[i].x + x[i].y * x[i].y) + (x[i].z * x[i].z + x[i].w * x[i].w);
        }
    }
    float scale = __frcp_rn(__fsqrt_rn(__fdiv_rn(warp_sum(squares), columns) + p.eps));
    uint2 *out = reinterpret_cast<uint2 *>(static_cast<u16 *>(p.out) + static_cast<u64>(row) * p.cols);
#pragma unroll
    for (u32 i = 0; i < VECTORS; i++) {
        u32 at = i * 32 + lane;
        if (at * 4 < p.cols) {
            float4 w = reinterpret_cast<const float4 *>(p.weight)[at], b = reinterpret_cast<const float4 *>(p.bias)[at];
            out[at] = make_uint2(T::pack(__fmaf_rn(x[i].x * scale, w.x, b.x), __fmaf_rn(x[i].y * scale, w.y, b.y)),
                                 T::pack(__fmaf_rn(x[i].z * scale, w.z, b.z), __fmaf_rn(x[i].w * scale, w.w, b.w)));
        }
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void rms_norm_bf16(const __grid_constant__ QwenvlNorm p) {
    rms_norm<BF16>(p, blockIdx.x);
}
extern "C" __global__ __launch_bounds__(THREADS) void rms_norm_f16(const __grid_constant__ QwenvlNorm p) {
    rms_norm<F16>(p, blockIdx.x);
}
extern "C" __global__ __launch_bounds__(THREADS) void layer_norm_bf16(const __grid_constant__ QwenvlNorm p) {
    u32 row = blockIdx.x * 8 + threadIdx.x / 32;
    if (row < p.rows) {
        layer_norm<BF16>(p, row);
    }
}
extern "C" __global__ __launch_bounds__(THREADS) void layer_norm_f16(const __grid_constant__ QwenvlNorm p) {
    u32 row = blockIdx.x * 8 + threadIdx.x / 32;
    if (row < p.rows) {
        layer_norm<F16>(p, row);
    }
}
