// pointwise: the steps of a plan that was not fused: activations, SwiGLU, sums, rotations, KV writes, gathers
// math    as the epilogues of linear.cuh, on stored values
// layout  rows of `cols` elements, T unless f32 is said; `x`, `y`, `out` as each kernel names them
// launch  grid-stride over pairs of columns (rotations: pairs of channels), 256 threads
// needs   cols % 2 == 0
// bytes   reads and writes each element once
// target  bandwidth-bound; none of them runs in a fused plan but gather
// source  this project's
#include "common.cuh"

template <class F> __device__ __forceinline__ void each(u64 count, F f) {
    for (u64 i = blockIdx.x * static_cast<u64>(THREADS) + threadIdx.x; i < count; i += gridDim.x * static_cast<u64>(THREADS)) {
        f(i);
    }
}

// out = activation(x); x T, out T
template <class T> __device__ __forceinline__ void activate(const QwenvlPointwise &p) {
    each(static_cast<u64>(p.rows) * (p.cols / 2), [&](u64 i) {
        u32 x = static_cast<const u32 *>(p.x)[i];
        float a = T::low(x), b = T::high(x);
        bool quick = p.op == QWENVL_QUICK_GELU;
        static_cast<u32 *>(p.out)[i] = T::pack(quick ? gated(a, 1.702f) : gelu(a), quick ? gated(b, 1.702f) : gelu(b));
    });
}

// out = silu(x) · y, all T
template <class T> __device__ __forceinline__ void swiglu(const QwenvlPointwise &p) {
    each(static_cast<u64>(p.rows) * (p.cols / 2), [&](u64 i) {
        u32 x = static_cast<const u32 *>(p.x)[i], y = static_cast<const u32 *>(p.y)[i];
        static_cast<u32 *>(p.out)[i] =
            T::pack(gated(T::low(x), 1.0f) * T::low(y), gated(T::high(x), 1.0f) * T::high(y));
    });
}

// out = y + x; x T, y and out f32, out may be y
template <class T> __device__ __forceinline__ void add(const QwenvlPointwise &p) {
    each(static_cast<u64>(p.rows) * (p.cols / 2), [&](u64 i) {
        u32 x = static_cast<const u32 *>(p.x)[i];
        float2 y = static_cast<const float2 *>(p.y)[i];
        static_cast<float2 *>(p.out)[i] = make_float2(y.x + T::low(x), y.y + T::high(x));
    });
}

// out = x with the heads of the first n_rotated columns turned, all T
template <class T> __device__ __forceinline__ void rotate(const QwenvlPointwise &p) {
    u32 half = p.head_dim / 2, pairs = p.cols / 2;
    each(static_cast<u64>(p.rows) * pairs, [&](u64 i) {
        u32 row = static_cast<u32>(i / pairs), at = static_cast<u32>(i % pairs);
        u32 pair = at % half, column = at / half * p.head_dim + pair;
        const u16 *x = static_cast<const u16 *>(p.x) + static_cast<u64>(row) * p.cols + column;
        float a = to_float<T>(x[0]), b = to_float<T>(x[half]);
        if (column < p.n_rotated) {
            Turn by = turn(p.rope, row, pair);
            float turned = a * by.cos - b * by.sin;
            b = b * by.cos + a * by.sin;
            a = turned;
        }
        u16 *out = static_cast<u16 *>(p.out) + static_cast<u64>(row) * p.cols + column;
        out[0] = to_16bit<T>(a);
        out[half] = to_16bit<T>(b);
    });
}

// keys x and values y, T [rows, kv_heads · head_dim], to the slots `index`
__device__ __forceinline__ void write_kv(const QwenvlPointwise &p) {
    u32 pairs = p.cols / 2;
    each(static_cast<u64>(p.rows) * pairs, [&](u64 i) {
        u32 row = static_cast<u32>(i / pairs), column = static_cast<u32>(i % pairs) * 2;
        u32 slot = p.index[row], head = column / p.kv.head_dim, channel = column % p.kv.head_dim;
        if (slot == QWENVL_NO_SLOT) {
            return;
        }
        for (u32 value = 0; value < 2; value++) {
            u64 to = kv_at(p.kv, slot / QWENVL_PAGE_TOKENS, value, head, slot % QWENVL_PAGE_TOKENS) + channel;
            static_cast<u32 *>(p.kv.pages)[to / 2] = static_cast<const u32 *>(value ? p.y : p.x)[i];
        }
    });
}

// out[i] = x[index[i]], f32
__device__ __forceinline__ void gather(const QwenvlPointwise &p) {
    u32 pairs = p.cols / 2;
    each(static_cast<u64>(p.rows) * pairs, [&](u64 i) {
        u32 row = static_cast<u32>(i / pairs), at = static_cast<u32>(i % pairs);
        static_cast<float2 *>(p.out)[i] =
            static_cast<const float2 *>(p.x)[static_cast<u64>(p.index[row]) * pairs + at];
    });
}

#define POINTWISE_KERNEL(name, body)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ QwenvlPointwise p) { body(p); }
POINTWISE_KERNEL(activate_bf16, activate<BF16>)
POINTWISE_KERNEL(activate_f16, activate<F16>)
POINTWISE_KERNEL(swiglu_bf16, swiglu<BF16>)
POINTWISE_KERNEL(swiglu_f16, swiglu<F16>)
POINTWISE_KERNEL(add_bf16, add<BF16>)
POINTWISE_KERNEL(add_f16, add<F16>)
POINTWISE_KERNEL(rotate_bf16, rotate<BF16>)
POINTWISE_KERNEL(rotate_f16, rotate<F16>)
POINTWISE_KERNEL(write_kv_16, write_kv)
POINTWISE_KERNEL(gather_f32, gather)
