// norm: RMSNorm and LayerNorm over rows of the f32 residual stream
// math    rms_norm: y = x / sqrt(mean(x²) + eps) · weight, x / sqrt(…) rounded to T before the weight as in the
//         reference; layer_norm: y = (x − mean) / sqrt(mean((x − mean)²) + eps) · weight + bias
// order   256 threads, each every 256th group of four columns in turn; a butterfly over lanes; warps in order
// layout  x f32 [·, cols], rows taken by index or in order; y T [rows, cols]
// launch  grid = rows (at most 65535 blocks, then strided), 256 threads
// needs   cols % 4 == 0
// bytes   6 per element, and a second and third read of x from L1 or L2
// target  bandwidth-bound
// source  this project's
#include "common.cuh"

template <class T, bool LAYER> __device__ __forceinline__ void norm(const QwenvlNorm &p) {
    __shared__ float scratch[8];
    for (u32 row = blockIdx.x; row < p.rows; row += gridDim.x) {
        u32 from = p.row_index ? p.row_index[row] : row;
        const float4 *x = reinterpret_cast<const float4 *>(p.x + static_cast<u64>(from) * p.cols);
        float mean = 0.0f;
        if (LAYER) {
            float sum = 0.0f;
            for (u32 i = threadIdx.x; i < p.cols / 4; i += THREADS) {
                float4 v = x[i];
                sum += (v.x + v.y) + (v.z + v.w);
            }
            mean = block_sum(sum, scratch) / static_cast<float>(p.cols);
        }
        float squares = 0.0f;
        for (u32 i = threadIdx.x; i < p.cols / 4; i += THREADS) {
            float4 v = x[i];
            float a = v.x - mean, b = v.y - mean, c = v.z - mean, d = v.w - mean;
            squares += (a * a + b * b) + (c * c + d * d);
        }
        float scale = 1.0f / sqrtf(block_sum(squares, scratch) / static_cast<float>(p.cols) + p.eps);
        u32 *out = static_cast<u32 *>(p.out) + static_cast<u64>(row) * (p.cols / 2);
        for (u32 i = threadIdx.x; i < p.cols / 4; i += THREADS) {
            float4 v = x[i];
            float4 w = reinterpret_cast<const float4 *>(p.weight)[i];
            float y[4] = {(v.x - mean) * scale, (v.y - mean) * scale, (v.z - mean) * scale, (v.w - mean) * scale};
            float weight[4] = {w.x, w.y, w.z, w.w}, bias[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (LAYER) {
                float4 b = reinterpret_cast<const float4 *>(p.bias)[i];
                bias[0] = b.x, bias[1] = b.y, bias[2] = b.z, bias[3] = b.w;
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                y[e] = LAYER ? __fmaf_rn(y[e], weight[e], bias[e]) : to_float<T>(to_16bit<T>(y[e])) * weight[e];
            }
            reinterpret_cast<uint2 *>(out)[i] = make_uint2(T::pack(y[0], y[1]), T::pack(y[2], y[3]));
        }
    }
}

#define NORM_KERNEL(name, T, LAYER)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ QwenvlNorm p) {                 \
        norm<T, LAYER>(p);                                                                                             \
    }
NORM_KERNEL(rms_norm_bf16, BF16, false)
NORM_KERNEL(rms_norm_f16, F16, false)
NORM_KERNEL(layer_norm_bf16, BF16, true)
NORM_KERNEL(layer_norm_f16, F16, true)
