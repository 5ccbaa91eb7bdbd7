// What the attention kernels share: the online softmax of a warp's tile of scores.
//
// order   the scores of a row come in tiles of K · 8 keys; a tile's largest score, then the factor e^(old − new) that
//         takes what came before to the new maximum, then the tile's weights in the order of the lane's registers.
//         All of it is of the row alone: neighbours in the tile change nothing. Keys that a row does not see have
//         the score −inf and the weight 0; a tile without any visible key has the factor 1.
#pragma once

#include "common.cuh"

constexpr u32 KEYS = 64;                // of a tile
constexpr float HIDDEN = -INFINITY;     // the score of a key that a row does not see
constexpr float LOWEST = -1e30f;        // the maximum before any key: finite, so that LOWEST − LOWEST is 0

// What the loader reads beside a kernel: bytes of dynamic shared memory, rows of a tile.
#define CONFIG(name, shared_bytes, rows)                                                                               \
    static_assert((shared_bytes) <= MOST_SHARED_BYTES);                                                                \
    extern "C" __device__ u32 name##_config[2] = {shared_bytes, rows}

// Arguments that choose an instance of a generic lambda.
struct True {
    __device__ constexpr operator bool() const { return true; }
};
struct False {
    __device__ constexpr operator bool() const { return false; }
};

// Rows g and g + 8 of an m16 tile, as the accumulators of mma lay them out.
struct RowPair {
    float max[2]; // of score · scale, the exponent in base 2
    float sum[2]; // this lane's part of Σ 2^(score · scale − max)
};

__device__ __forceinline__ void start(RowPair &rows) {
    rows.max[0] = rows.max[1] = LOWEST;
    rows.sum[0] = rows.sum[1] = 0.0f;
}

// Scores to weights in place; `out` and the sum are taken to the new maximum. Explicit roundings, so that every
// instance of the function computes the same bits.
template <int K, int N>
__device__ __forceinline__ void softmax(float (&s)[K][4], RowPair &rows, float (&out)[N][4], float scale) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float most = fmaxf(s[0][2 * h], s[0][2 * h + 1]);
#pragma unroll
        for (int j = 1; j < K; j++) {
            most = fmaxf(most, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
        }
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        float max = fmaxf(rows.max[h], __fmul_rn(most, scale));
        float factor = ptx::exp2(__fsub_rn(rows.max[h], max));
        rows.max[h] = max;
        float sum = __fmul_rn(rows.sum[h], factor);
#pragma unroll
        for (int j = 0; j < K; j++) {
#pragma unroll
            for (int c = 2 * h; c < 2 * h + 2; c++) {
                s[j][c] = ptx::exp2(__fmaf_rn(s[j][c], scale, -max));
                sum = __fadd_rn(sum, s[j][c]);
            }
        }
        rows.sum[h] = sum;
#pragma unroll
        for (int j = 0; j < N; j++) {
            out[j][2 * h] = __fmul_rn(out[j][2 * h], factor);
            out[j][2 * h + 1] = __fmul_rn(out[j][2 * h + 1], factor);
        }
    }
}

// The weights of keys 16·step.. as the A operand of the product with the values.
template <class T, int K>
__device__ __forceinline__ void weights(u32 (&a)[4], const float (&s)[K][4], int step) {
    a[0] = T::pack(s[2 * step][0], s[2 * step][1]);
    a[1] = T::pack(s[2 * step][2], s[2 * step][3]);
    a[2] = T::pack(s[2 * step + 1][0], s[2 * step + 1][1]);
    a[3] = T::pack(s[2 * step + 1][2], s[2 * step + 1][3]);
}

// 1 / Σ of a row, from the parts of its four lanes.
__device__ __forceinline__ float inverse_sum(float sum) {
    sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 1));
    sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 2));
    return ptx::reciprocal(sum);
}
