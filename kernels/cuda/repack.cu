// repack: weights as the checkpoint holds them into the records of linear.cuh
// math    moves bits; 16- and 32-bit weights are rounded to T
// layout  in: AWQ codes [k, n/8], output 8c + j in nibble R[j], R = 0 4 1 5 2 6 3 7; GPTQ codes [k/8, n] (4-bit) or
//         [k/4, n] (8-bit), input low bits first, zeros [groups, n/8] or [groups, n/4], output low bits first;
//         16- and 32-bit [n, k].
//         Up to three matrices stacked along n. out: see linear.cuh. Inputs of codes may come in any order, places
//         between them may be empty: these weigh nothing. So groups of any size start where a scale does.
// launch  grid = (places/128, n/128), a record per block of 256 threads
// needs   n of every part % 8 == 0 for 4 and 8 bits; `half` % 8 == 0
// bytes   reads each source byte once and writes each record byte once; runs once per load
// target  faster than the copy to the device that precedes it
// source  this project's; formats after AutoAWQ 0.2.9 packing_utils.py and AutoGPTQ 0.7.1 qlinear
#include "common.cuh"

// The part that holds output n, and n within it.
__device__ __forceinline__ const QwenvlSource *find(const QwenvlRepack &p, u32 &n) {
    if (n >= p.n) {
        return nullptr;
    }
    u32 part = 0;
    if (n >= p.sources[0].n) {
        n -= p.sources[0].n;
        part = 1;
        if (n >= p.sources[1].n) {
            n -= p.sources[1].n;
            part = 2;
        }
    }
    return &p.sources[part];
}

// Output (row of the stacked matrix) at row `row` of all records.
__device__ __forceinline__ u32 output_of(const QwenvlRepack &p, u32 row) {
    if (p.half == 0) {
        return row;
    }
    u32 tile = row / 16, tiles = p.half / 8;
    return tile / tiles * 2 * p.half + tile % tiles * 8 + row % 8 + (row % 16 / 8) * p.half;
}

__device__ __forceinline__ u32 nibble_shift_awq(u32 n) { return 4 * (n % 8 / 2 + n % 2 * 4); }

// The zero point of output n of `source` at a place.
template <u32 KIND> __device__ __forceinline__ u32 zero(const QwenvlRepack &p, const QwenvlSource *source, u32 n, u32 place) {
    // Groups that start behind the last place are none.
    if (source == nullptr || place / p.group * p.group >= p.k || (KIND == QWENVL_GPTQ8 && !p.zeros)) {
        return KIND == QWENVL_GPTQ8 ? 128 : 0;
    }
    const u32 *words = static_cast<const u32 *>(source->zeros);
    const u64 group = source->groups[place / p.group];
    if (KIND == QWENVL_AWQ4) {
        return words[group * (source->n / 8) + n / 8] >> nibble_shift_awq(n) & 15;
    }
    if (KIND == QWENVL_GPTQ4) {
        return (words[group * (source->n / 8) + n / 8] >> 4 * (n % 8)) + p.zero_offset & 15;
    }
    return (words[group * (source->n / 4) + n / 4] >> 8 * (n % 4)) + p.zero_offset & 255;
}

template <u32 KIND> __device__ __forceinline__ u32 code(const QwenvlRepack &p, u32 n, u32 place) {
    const QwenvlSource *source = find(p, n);
    u32 k = place;
    if (place < p.k && p.inputs) {
        k = p.inputs[place];
    }
    if (source == nullptr || place >= p.k || k == QWENVL_NO_INPUT) {
        return zero<KIND>(p, source, n, place);
    }
    const u32 *words = static_cast<const u32 *>(source->codes);
    if (KIND == QWENVL_AWQ4) {
        return words[static_cast<u64>(k) * (source->n / 8) + n / 8] >> nibble_shift_awq(n) & 15;
    }
    if (KIND == QWENVL_GPTQ4) {
        return words[static_cast<u64>(k / 8) * source->n + n] >> 4 * (k % 8) & 15;
    }
    return words[static_cast<u64>(k / 4) * source->n + n] >> 8 * (k % 4) & 255;
}

// Scales and zero points of the group from `place` on.
template <u32 KIND> __device__ __forceinline__ void repack_tail(const QwenvlRepack &p, u8 *tail, u32 strip, u32 place) {
    u32 i = threadIdx.x;
    if (i >= 128) {
        return;
    }
    // Order (u, g, j, h): two bits, three bits, one, one.
    u32 row = i / 32 * 32 + i / 2 % 2 * 16 + i % 2 * 8 + i / 4 % 8;
    u32 n = output_of(p, strip * 128 + row);
    const QwenvlSource *source = find(p, n);
    u16 scale = 0;
    if (source != nullptr && place < p.k) {
        scale = static_cast<const u16 *>(source->scales)[static_cast<u64>(source->groups[place / p.group]) * source->n + n];
    }
    reinterpret_cast<u16 *>(tail)[i] = scale;
    if (KIND == QWENVL_GPTQ8) {
        if (p.zeros) {
            tail[256 + i] = static_cast<u8>(zero<KIND>(p, source, n, place));
        }
        return;
    }
    u32 word = zero<KIND>(p, source, n, place) << 4 * (i % 4);
    word |= __shfl_xor_sync(0xffffffffu, word, 1);
    word |= __shfl_xor_sync(0xffffffffu, word, 2);
    if (i % 4 == 0) {
        reinterpret_cast<u16 *>(tail + 256)[i / 4] = static_cast<u16>(word);
    }
}

template <u32 KIND> __device__ __forceinline__ void repack_codes(const QwenvlRepack &p) {
    u32 groups = gridDim.x, group = blockIdx.x, strip = blockIdx.y;
    constexpr bool BYTES = KIND == QWENVL_GPTQ8;
    const u32 codes = BYTES ? 16384 : 8192, scales = BYTES ? (p.zeros ? 384 : 256) : 320;
    u8 *record = static_cast<u8 *>(p.out) + (static_cast<u64>(strip) * groups + group) * (codes + 128 / p.group * scales);
    // A 32-bit word per step: consecutive threads write consecutive words.
    for (u32 word = threadIdx.x; word < (BYTES ? 4096 : 2048); word += THREADS) {
        u32 within = word % 4, lane = word / 4 % 32, vector = word / 128;
        u32 g = lane / 4, t = lane % 4, value = 0;
        if (BYTES) {
            u32 j = vector % 2, b = vector / 2 % 4, u = vector / 8;
            for (u32 i = 0; i < 4; i++) {
                u32 n = output_of(p, strip * 128 + u * 32 + j * 16 + i % 2 * 8 + g);
                value |= code<KIND>(p, n, group * 128 + b * 32 + t * 8 + within * 2 + i / 2) << 8 * i;
            }
        } else {
            u32 s = within / 2, j = within % 2, b = vector % 4, u = vector / 4;
            for (u32 i = 0; i < 8; i++) {
                u32 h = i % 2, y = i / 2 % 2 * 2 + i / 4;
                u32 n = output_of(p, strip * 128 + u * 32 + j * 16 + h * 8 + g);
                value |= code<KIND>(p, n, group * 128 + b * 32 + t * 8 + s * 4 + y) << 4 * i;
            }
        }
        reinterpret_cast<u32 *>(record)[word] = value;
    }
    for (u32 first = 0; first < 128; first += p.group) {
        repack_tail<KIND>(p, record + codes + first / p.group * scales, strip, group * 128 + first);
    }
}

template <class T> __device__ __forceinline__ u32 dense_pair(const QwenvlRepack &p, const QwenvlSource *source, u32 n, u32 k) {
    u64 at = static_cast<u64>(n) * p.k + k;
    const void *from = source->codes;
    float v[2];
    for (u32 i = 0; i < 2; i++) {
        v[i] = p.kind == QWENVL_F32    ? static_cast<const float *>(from)[at + i]
               : p.kind == QWENVL_BF16 ? BF16::low(static_cast<const u16 *>(from)[at + i])
                                       : F16::low(static_cast<const u16 *>(from)[at + i]);
    }
    return T::pack(v[0], v[1]);
}

template <class T> __device__ __forceinline__ void repack_dense(const QwenvlRepack &p) {
    u32 groups = gridDim.x, group = blockIdx.x, strip = blockIdx.y;
    u32 *record = static_cast<u32 *>(p.out) + (static_cast<u64>(strip) * groups + group) * (32768 / 4);
    for (u32 word = threadIdx.x; word < 8192; word += THREADS) {
        u32 e = word % 4, lane = word / 4 % 32, j = word / 128 % 2, s = word / 256 % 2, b = word / 512 % 4, u = word / 2048;
        u32 n = output_of(p, strip * 128 + u * 32 + j * 16 + e % 2 * 8 + lane / 4);
        u32 k = group * 128 + b * 32 + lane % 4 * 8 + s * 4 + e / 2 * 2;
        const QwenvlSource *source = find(p, n);
        record[word] = source != nullptr && k < p.k ? dense_pair<T>(p, source, n, k) : 0;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) repack_awq4(const __grid_constant__ QwenvlRepack p) {
    repack_codes<QWENVL_AWQ4>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) repack_gptq4(const __grid_constant__ QwenvlRepack p) {
    repack_codes<QWENVL_GPTQ4>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) repack_gptq8(const __grid_constant__ QwenvlRepack p) {
    repack_codes<QWENVL_GPTQ8>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) repack_dense_bf16(const __grid_constant__ QwenvlRepack p) {
    repack_dense<BF16>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) repack_dense_f16(const __grid_constant__ QwenvlRepack p) {
    repack_dense<F16>(p);
}
