// embed: rows of the embedding table by token id, visual rows where they are named, into the f32 residual stream
// math    copies
// layout  table [vocab, cols] bf16, f16 or f32; visual T [·, cols]; out f32 [rows, cols]
// launch  grid = rows, 256 threads
// needs   cols % 2 == 0; ids below vocab, else the row is NaN (a caller's defect shows)
// bytes   6 per element
// target  bandwidth-bound
// source  this project's
#include "common.cuh"

template <class T> __device__ __forceinline__ void embed(const QwenvlEmbed &p) {
    u32 row = blockIdx.x;
    u32 token = p.tokens[row], visual = p.visual_index[row];
    float2 *out = reinterpret_cast<float2 *>(p.out + static_cast<u64>(row) * p.cols);
    const u32 *seen = static_cast<const u32 *>(p.visual) + static_cast<u64>(visual) * (p.cols / 2);
    u64 at = static_cast<u64>(token) * (p.cols / 2);
    for (u32 i = threadIdx.x; i < p.cols / 2; i += THREADS) {
        float2 v;
        if (visual != QWENVL_NO_VISUAL) {
            u32 x = seen[i];
            v = make_float2(T::low(x), T::high(x));
        } else if (token >= p.vocab) {
            v = make_float2(__uint_as_float(0x7fc00000u), __uint_as_float(0x7fc00000u));
        } else if (p.table_kind == QWENVL_F32) {
            v = static_cast<const float2 *>(p.table)[at + i];
        } else {
            u32 x = static_cast<const u32 *>(p.table)[at + i];
            v = p.table_kind == QWENVL_BF16 ? make_float2(BF16::low(x), BF16::high(x))
                                            : make_float2(F16::low(x), F16::high(x));
        }
        out[i] = v;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) embed_bf16(const __grid_constant__ QwenvlEmbed p) {
    embed<BF16>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) embed_f16(const __grid_constant__ QwenvlEmbed p) {
    embed<F16>(p);
}
