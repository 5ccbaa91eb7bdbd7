// pointwise: activations, SwiGLU and residual sums, where a plan has not fused them; columns in another order
// math    swiglu: silu(x) · y; quick_gelu: x · sigmoid(1.702 x); gelu: x · Φ(x); add: x + y; all in f32;
//         select_columns: x[:, y], or 0 for no input
// layout  x, out, y of swiglu: 16-bit [rows, cols]; y and out of add: f32, may be the same
// launch  grid = elements / 2048 (1024 for add), block = 256, eight (four) elements a thread
// needs   cols a multiple of 8
// bytes   4 per element, 6 for swiglu, 10 for add
// target  bandwidth-bound; 90 % of 1.80 TB/s from 4 million elements on
// source  our own
#include "common.cuh"

// out = f(x, y), two elements at a time.
template <class T, bool TWO, class F> __device__ __forceinline__ void each(const QwenvlPointwise &p, F f) {
    u64 at = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x;
    if (at * 8 >= static_cast<u64>(p.rows) * p.cols) {
        return;
    }
    uint4 x = static_cast<const uint4 *>(p.x)[at], y = x;
    if (TWO) {
        y = static_cast<const uint4 *>(p.y)[at];
    }
    auto pair = [&](u32 x, u32 y) { return T::pack(f(T::low(x), T::low(y)), f(T::high(x), T::high(y))); };
    static_cast<uint4 *>(p.out)[at] = make_uint4(pair(x.x, y.x), pair(x.y, y.y), pair(x.z, y.z), pair(x.w, y.w));
}

template <class T> __device__ __forceinline__ void add(const QwenvlPointwise &p) {
    u64 at = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x;
    if (at * 4 >= static_cast<u64>(p.rows) * p.cols) {
        return;
    }
    uint2 x = static_cast<const uint2 *>(p.x)[at];
    float4 y = static_cast<const float4 *>(p.y)[at];
    y.x += T::low(x.x), y.y += T::high(x.x), y.z += T::low(x.y), y.w += T::high(x.y);
    static_cast<float4 *>(p.out)[at] = y;
}

#define POINTWISE(name, T, TWO, expression)                                                                            \
    extern "C" __global__ __launch_bounds__(THREADS) void name(const __grid_constant__ QwenvlPointwise p) {            \
        each<T, TWO>(p, [](float x, float y) { return expression; });                                                  \
    }
POINTWISE(swiglu_bf16, BF16, true, gated(x, 1.0f) * y)
POINTWISE(swiglu_f16, F16, true, gated(x, 1.0f) * y)
POINTWISE(quick_gelu_bf16, BF16, false, gated(x, 1.702f))
POINTWISE(quick_gelu_f16, F16, false, gated(x, 1.702f))
POINTWISE(gelu_bf16, BF16, false, gelu(x))
POINTWISE(gelu_f16, F16, false, gelu(x))

extern "C" __global__ __launch_bounds__(THREADS) void select_columns(const __grid_constant__ QwenvlPointwise p) {
    const u32 *index = static_cast<const u32 *>(p.y);
    const u16 *from = static_cast<const u16 *>(p.x) + static_cast<u64>(blockIdx.x) * p.ldx;
    u16 *out = static_cast<u16 *>(p.out) + static_cast<u64>(blockIdx.x) * p.cols;
    for (u32 i = threadIdx.x; i < p.cols; i += THREADS) {
        out[i] = index[i] == QWENVL_NO_INPUT ? 0 : from[index[i]];
    }
}
extern "C" __global__ __launch_bounds__(THREADS) void add_bf16(const __grid_constant__ QwenvlPointwise p) { add<BF16>(p); }
extern "C" __global__ __launch_bounds__(THREADS) void add_f16(const __grid_constant__ QwenvlPointwise p) { add<F16>(p); }
