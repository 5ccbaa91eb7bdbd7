// rope: rotary embeddings and KV writes, where a plan has not fused them
// math    pair (j, j + head_dim/2) of a head, by the row's angle a: (x·cos a − y·sin a, y·cos a + x·sin a), in f32
// layout  rope: x, out [rows, cols] 16-bit; angles as QwenvlRope says. kv_write: k, v [rows, kv_heads · head_dim] to
//         pages [2 (k, v), kv_heads, 64 tokens, head_dim]
// launch  grid = rows, block = 256: two channels and their partners a thread; eight channels for kv_write
// needs   head_dim a multiple of 8; axes end at even pairs; rope may work in place
// bytes   4 per element
// target  bandwidth-bound; 90 % of 1.80 TB/s from 1,000 rows on
// source  our own
#include "common.cuh"

template <class T> __device__ __forceinline__ void rotate(const QwenvlRotate &p, u32 row) {
    const u32 quarter = p.head_dim / 4; // words of half a head
    const u32 *x = static_cast<const u32 *>(p.x) + static_cast<u64>(row) * (p.cols / 2);
    u32 *out = static_cast<u32 *>(p.out) + static_cast<u64>(row) * (p.cols / 2);
    for (u32 i = threadIdx.x; i < p.n_rotated / 4; i += THREADS) {
        u32 pair = i % quarter, low = i / quarter * 2 * quarter + pair, high = low + quarter;
        Turn by[2];
        turns(by, p.rope, row, 2 * pair);
        u32 a = x[low], b = x[high];
        float a0 = T::low(a), a1 = T::high(a), b0 = T::low(b), b1 = T::high(b);
        out[low] = T::pack(a0 * by[0].cos - b0 * by[0].sin, a1 * by[1].cos - b1 * by[1].sin);
        out[high] = T::pack(b0 * by[0].cos + a0 * by[0].sin, b1 * by[1].cos + a1 * by[1].sin);
    }
    if (x != out) {
        for (u32 i = p.n_rotated / 2 + threadIdx.x; i < p.cols / 2; i += THREADS) {
            out[i] = x[i];
        }
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void rope_bf16(const __grid_constant__ QwenvlRotate p) {
    rotate<BF16>(p, blockIdx.x);
}
extern "C" __global__ __launch_bounds__(THREADS) void rope_f16(const __grid_constant__ QwenvlRotate p) {
    rotate<F16>(p, blockIdx.x);
}

// Both 16-bit types alike: it moves bits.
extern "C" __global__ __launch_bounds__(THREADS) void kv_write(const __grid_constant__ QwenvlKvWrite p) {
    const u32 row = blockIdx.x, slot = p.slots[row], per_head = p.kv.head_dim / 8, width = p.kv.kv_heads * per_head;
    if (slot == QWENVL_NO_SLOT) {
        return;
    }
    const u32 page = slot / QWENVL_PAGE_TOKENS, offset = slot % QWENVL_PAGE_TOKENS;
    for (u32 i = threadIdx.x; i < 2 * width; i += THREADS) {
        const bool value = i >= width;
        const u32 column = value ? i - width : i, head = column / per_head;
        u16 *to = static_cast<u16 *>(p.kv.pages) + kv_at(p.kv, page, value, head, offset);
        reinterpret_cast<uint4 *>(to)[column % per_head] =
            static_cast<const uint4 *>(value ? p.v : p.k)[static_cast<u64>(row) * width + column];
    }
}
