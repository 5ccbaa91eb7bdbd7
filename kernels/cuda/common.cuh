// What kernels share: element types, reductions in a fixed order, pointwise functions.
#pragma once

#include "abi.h"
#include "ptx.cuh"

constexpr u32 THREADS = 256; // of a block, unless a kernel says otherwise
// Shared memory of a block: 163 KiB on sm_80, more on sm_90 and sm_100, 99 KiB on the small ones: sm_86, sm_89, sm_12x.
#if __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || (__CUDA_ARCH__ >= 1200 && __CUDA_ARCH__ < 1300)
#define LARGE_SMALL(large, small) small
#else
#define LARGE_SMALL(large, small) large
#endif
constexpr u32 MOST_SHARED_BYTES = LARGE_SMALL(163, 99) * 1024;
constexpr u32 HALF_SHARED_BYTES = LARGE_SMALL(81, 49) * 1024; // of each of two blocks of a multiprocessor

constexpr float LOG2_E = 1.4426950408889634f;

// The 16-bit element types. `MAGIC | q` is a number whose last bits are q, `NEGATIVE | z` is what takes it to q − z.
// LIFTED four-bit codes: `code` makes two numbers of nibbles e and e + 4 of a word, in units of `code_unit(e % 2)`; bf16 holds
// 128 more. `minus_zero` is less the zero point in bits 16 to 19, and less those 128, in the same units.
struct BF16 {
    static constexpr u32 MAGIC = 0x43004300u;    // 128
    static constexpr u32 NEGATIVE = 0xC300C300u; // −128
    static constexpr u32 ONE = 0x3F803F80u;
    static __device__ __forceinline__ u32 pack(float low, float high) { return ptx::pack_bf16(low, high); }
    static __device__ __forceinline__ float low(u32 x) { return __uint_as_float(x << 16); }
    static __device__ __forceinline__ float high(u32 x) { return __uint_as_float(x & 0xffff0000u); }
    // Exact where the sum is: no bf16 addition before sm_90.
    static __device__ __forceinline__ u32 add(u32 x, u32 y) { return ptx::fma_bf16x2(x, ONE, y); }
    static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        ptx::mma_bf16(d, a, b0, b1);
    }
    static __device__ __forceinline__ void mma_from_zero(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        ptx::mma_bf16_from_zero(d, a, b0, b1);
    }
    static __device__ __forceinline__ u32 code(u32 word, u32 e) {
        return ptx::and_or(word >> 4 * e, 0x000f000fu, MAGIC);
    }
    static __device__ __forceinline__ float code_unit(u32) { return 1.0f; }
    static __device__ __forceinline__ float minus_zero(u32 x, u32) {
        return __uint_as_float(ptx::and_or(x, 0x000f0000u, 0xC3000000u));
    }
    // Two 8-bit codes q, in the even bytes, to q − 128; odd bytes are ignored. Seven bits of mantissa hold the low bits only.
    static __device__ __forceinline__ u32 byte_minus_128(u32 x) {
        return add(ptx::and_or(x, 0x007f007fu, MAGIC), ptx::and_xor(x, 0x00800080u, 0xC380C380u));
    }
};

struct F16 {
    static constexpr u32 MAGIC = 0x64006400u;    // 1024
    static constexpr u32 NEGATIVE = 0xE400E400u; // −1024
    static __device__ __forceinline__ u32 pack(float low, float high) { return ptx::pack_f16(low, high); }
    static __device__ __forceinline__ float low(u32 x) { return ptx::f16_to_f32(static_cast<u16>(x)); }
    static __device__ __forceinline__ float high(u32 x) { return ptx::f16_to_f32(static_cast<u16>(x >> 16)); }
    static __device__ __forceinline__ u32 add(u32 x, u32 y) { return ptx::add_f16x2(x, y); }
    static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        ptx::mma_f16(d, a, b0, b1);
    }
    static __device__ __forceinline__ void mma_from_zero(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        ptx::mma_f16_from_zero(d, a, b0, b1);
    }
    // The nibbles themselves, below the normal numbers: so two of them need no shift.
    static __device__ __forceinline__ u32 code(u32 word, u32 e) {
        return word >> e / 2 * 8 & (e % 2 == 0 ? 0x000f000fu : 0x00f000f0u);
    }
    static __device__ __forceinline__ float code_unit(u32 half) { return half == 0 ? 0x1p-24f : 0x1p-20f; }
    static __device__ __forceinline__ float minus_zero(u32 x, u32 half) {
        float lifted = __uint_as_float(ptx::and_or(x, 0x000f0000u, 0xC3000000u)); // 128 too many
        return __fmaf_rn(lifted, code_unit(half), 128.0f * code_unit(half));
    }
    static __device__ __forceinline__ u32 byte_minus_128(u32 x) {
        return add(ptx::and_or(x, 0x00ff00ffu, MAGIC), 0xE480E480u);
    }
};

template <class T> __device__ __forceinline__ u16 to_16bit(float x) { return static_cast<u16>(T::pack(x, 0.0f)); }
template <class T> __device__ __forceinline__ float to_float(u16 x) { return T::low(x); }

// f(Number<0>), f(Number<1>), … f(Number<N − 1>): for numbers that become part of an instruction.
template <int N> struct Number {
    static constexpr int value = N;
};
template <int N, int FROM = 0, class F> __device__ __forceinline__ void unrolled(const F &f) {
    if constexpr (FROM < N) {
        f(Number<FROM>());
        unrolled<N, FROM + 1>(f);
    }
}

// z · sigmoid(scale · z)
__device__ __forceinline__ float gated(float z, float scale) {
    return z * ptx::reciprocal(1.0f + ptx::exp2(z * (-scale * LOG2_E)));
}
// z · Φ(z). 1 − Φ(a) = e^(−a²/2) · P(t) with t = 1 / (1 + 0.2925 a): for a from 0 to 5.5 a P of six terms, fitted here, is
// within 6e-7 of it as a share, which erff is not for negative z.
__device__ __forceinline__ float gelu(float z) {
    const float a = fabsf(z), t = ptx::reciprocal(fmaf(0.2925f, a, 1.0f));
    float p = -0.090549846f;
    p = fmaf(p, t, 0.28321691f);
    p = fmaf(p, t, -0.095082769f);
    p = fmaf(p, t, 0.18486237f);
    p = fmaf(p, t, 0.099273994f);
    p = fmaf(p, t, 0.11827907f);
    const float tail = p * t * ptx::exp2(z * z * (-0.5f * LOG2_E));
    return z * (z < 0.0f ? tail : 1.0f - tail);
}

// The sum over a warp, in every lane: a butterfly, so that each lane adds in the same order.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, lanes);
    }
    return x;
}
// The sum over 256 threads, in every thread. `scratch` has 8 floats that nothing else uses.
__device__ __forceinline__ float block_sum(float x, float *scratch) {
    x = warp_sum(x);
    __syncthreads(); // all have read the sums of a call before
    if (threadIdx.x % 32 == 0) {
        scratch[threadIdx.x / 32] = x;
    }
    __syncthreads();
    float sum = scratch[0];
#pragma unroll
    for (int warp = 1; warp < 8; warp++) {
        sum += scratch[warp];
    }
    return sum;
}

// Whether this block is the last of `count` to come here; then all that the others have written before is seen. The
// counter is zero again afterwards: nothing has to reset it, however many blocks come the next time.
__device__ __forceinline__ bool is_last(u32 *arrivals, u32 count, u32 *flag) {
    __syncthreads(); // all of the block has written, and nobody reads what the flag overwrites
    if (threadIdx.x == 0) {
        *flag = ptx::increment_acq_rel(arrivals, count - 1) == count - 1;
    }
    __syncthreads();
    return *flag != 0;
}

template <class T> __device__ __forceinline__ float sum4(u32 a, u32 b) {
    return (T::low(a) + T::high(a)) + (T::low(b) + T::high(b));
}

// The sum of 16 numbers, in every lane: a tree, those far apart first. LANES neighbouring lanes have N of them each, those
// LANES apart.
template <int LANES, int N> __device__ __forceinline__ float row_sum(float (&sums)[N]) {
    static_assert(LANES * N == 16);
#pragma unroll
    for (int apart = N / 2; apart > 0; apart /= 2) {
#pragma unroll
        for (int i = 0; i < apart; i++) {
            sums[i] += sums[i + apart];
        }
    }
#pragma unroll
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2) {
        sums[0] += __shfl_xor_sync(0xffffffffu, sums[0], lanes);
    }
    return sums[0];
}

struct Turn {
    float cos, sin;
};
// The position of a row along each axis.
struct Positions {
    u32 of[3];
};
__device__ __forceinline__ Positions positions(const QwenvlRope &rope, u32 row) {
    Positions position;
#pragma unroll
    for (u32 axis = 0; axis < 3; axis++) {
        position.of[axis] = rope.positions[row * rope.axes + min(axis, rope.axes - 1)];
    }
    return position;
}
// The angles of N neighbouring pairs from `pair` on, two to a load: N, `pair` and the ends of axes are even.
template <int N>
__device__ __forceinline__ void turns(Turn (&by)[N], const QwenvlRope &rope, const Positions &position, u32 pair) {
#pragma unroll
    for (u32 i = 0; i < N; i += 2) {
        u32 at = pair + i;
        u32 axis = at < rope.axis_end[0] ? 0 : at < rope.axis_end[1] ? 1 : 2;
        u32 start = axis == 0 || !rope.restart ? 0 : axis == 1 ? rope.axis_end[0] : rope.axis_end[1];
        u32 place = axis == 0 ? position.of[0] : axis == 1 ? position.of[1] : position.of[2];
        float4 two = reinterpret_cast<const float4 *>(rope.angles)[(place * rope.columns + (at - start)) / 2];
        by[i].cos = two.x, by[i].sin = two.y;
        by[i + 1].cos = two.z, by[i + 1].sin = two.w;
    }
}

// Where channel 0 of a token's key (or value) lies.
__device__ __forceinline__ u64 kv_at(const QwenvlKv &kv, u32 page, bool value, u32 head, u32 offset) {
    u32 row = ((value ? kv.kv_heads : 0) + head) * QWENVL_PAGE_TOKENS + offset;
    return page * kv.page_stride + static_cast<u64>(row) * kv.head_dim;
}
