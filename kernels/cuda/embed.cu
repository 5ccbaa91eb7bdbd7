// embed: rows of the embedding table by token id, visual rows where they are named; rows by index
// math    copies
// layout  embed: table [vocab, cols] bf16, f16 or f32, or the records of linear.cuh in bf16 or f16 with rows in order,
//         which a tied head has: words of two columns, 16 bytes apart; visual [·, cols] 16-bit, out f32 [rows, cols];
//         select_rows: f32
// launch  grid = rows, block = 256, four columns a thread
// needs   cols a multiple of 4; an id beyond the vocabulary gives a row of NaN, so that a caller's defect shows
// bytes   6 per element, 8 for select_rows
// target  bandwidth-bound; 90 % of 1.80 TB/s from 1,000 rows on
// source  our own
#include "common.cuh"

template <class T> __device__ __forceinline__ float4 widen(const void *row, u32 at) {
    uint2 x = static_cast<const uint2 *>(row)[at];
    return make_float4(T::low(x.x), T::high(x.x), T::low(x.y), T::high(x.y));
}

// Columns 4i..4i+3 of row n of a matrix in dense records.
template <class T> __device__ __forceinline__ float4 widen_record(const void *table, u32 cols, u32 n, u32 i) {
    const u32 k = 4 * i, lane = n % 8 * 4 + k % 32 / 8;
    const u32 vector = ((n % 128 / 32 * 4 + k % 128 / 32) * 2 + k % 8 / 4) * 2 + n % 32 / 16;
    const u64 record = static_cast<u64>(n / 128) * ((cols + 127) / 128) + k / 128;
    const u32 *words = static_cast<const u32 *>(table) + record * 8192 + (vector * 32 + lane) * 4 + n % 16 / 8;
    return make_float4(T::low(words[0]), T::high(words[0]), T::low(words[2]), T::high(words[2]));
}

template <class T> __device__ __forceinline__ void embed(const QwenvlEmbed &p, u32 row) {
    const u32 token = p.tokens[row], visual = p.visual_index[row];
    const bool is_visual = visual != QWENVL_NO_VISUAL;
    const u32 kind = p.table_kind;
    const u64 start = static_cast<u64>(is_visual ? visual : token) * p.cols;
    const void *from = is_visual             ? static_cast<const void *>(static_cast<const u16 *>(p.visual) + start)
                       : kind == QWENVL_F32 ? static_cast<const void *>(static_cast<const float *>(p.table) + start)
                                            : static_cast<const void *>(static_cast<const u16 *>(p.table) + start);
    float4 *out = reinterpret_cast<float4 *>(p.out + static_cast<u64>(row) * p.cols);
    for (u32 i = threadIdx.x; i < p.cols / 4; i += THREADS) {
        float4 x;
        if (is_visual) {
            x = widen<T>(from, i);
        } else if (token >= p.vocab) {
            x.x = x.y = x.z = x.w = __uint_as_float(0x7fc00000u);
        } else if (kind == QWENVL_RECORDS_BF16) {
            x = widen_record<BF16>(p.table, p.cols, token, i);
        } else if (kind == QWENVL_RECORDS_F16) {
            x = widen_record<F16>(p.table, p.cols, token, i);
        } else if (kind == QWENVL_F32) {
            x = static_cast<const float4 *>(from)[i];
        } else {
            x = kind == QWENVL_BF16 ? widen<BF16>(from, i) : widen<F16>(from, i);
        }
        out[i] = x;
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void embed_bf16(const __grid_constant__ QwenvlEmbed p) {
    embed<BF16>(p, blockIdx.x);
}
extern "C" __global__ __launch_bounds__(THREADS) void embed_f16(const __grid_constant__ QwenvlEmbed p) {
    embed<F16>(p, blockIdx.x);
}
extern "C" __global__ __launch_bounds__(THREADS) void select_rows(const __grid_constant__ QwenvlPointwise p) {
    const u32 row = blockIdx.x, index = static_cast<const u32 *>(p.y)[row];
    const float4 *from = reinterpret_cast<const float4 *>(static_cast<const float *>(p.x) + static_cast<u64>(index) * p.cols);
    float4 *out = reinterpret_cast<float4 *>(static_cast<float *>(p.out) + static_cast<u64>(row) * p.cols);
    for (u32 i = threadIdx.x; i < p.cols / 4; i += THREADS) {
        out[i] = from[i];
    }
}
