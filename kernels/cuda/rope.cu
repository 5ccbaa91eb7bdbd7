// rope: rotary embeddings and KV writes, where a plan has not fused them
// math    pair (j, j + head_dim/2) of a head, by the row's angle a: (x·cos a − y·sin a, y·cos a + x·sin a), in f32
// layout  rope: x, out [rows, cols] 16-bit; angles as QwenvlRope says. kv_write: k, v [rows, kv_heads · head_dim] to
//         pages [2 (k, v), kv_heads, 64 tokens, head_dim]
// launch  grid = rows, block = 256: four channels and their partners a thread, in several heads; eight channels for
//         kv_write
// needs   head_dim a multiple of 8; axes end at even pairs; rope may work in place
// bytes   4 per element
// target  bandwidth-bound; 80 % of 1.80 TB/s from 2,000 rows on
// source  our own
#include "common.cuh"

template <class T> __device__ __forceinline__ void rotate(const QwenvlRotate &p, u32 row) {
    const u32 half = p.head_dim / 8, heads = p.n_rotated / p.head_dim; // vectors of four channels
    const uint2 *x = static_cast<const uint2 *>(p.x) + static_cast<u64>(row) * (p.cols / 4);
    uint2 *out = static_cast<uint2 *>(p.out) + static_cast<u64>(row) * (p.cols / 4);
    // A thread has the same pairs of every so many heads, so that it takes its angles once.
    const u32 at_once = THREADS / half, first = threadIdx.x / half, pair = threadIdx.x % half;
    if (first < at_once) {
        Turn by[4];
        turns(by, p.rope, positions(p.rope, row), 4 * pair);
        for (u32 head = first; head < heads; head += at_once) {
            const u32 low = head * 2 * half + pair, high = low + half;
            const uint2 a = x[low], b = x[high];
            auto turned = [](u32 a, u32 b, Turn even, Turn odd) { // a·cos + b·sin
                return T::pack(T::low(a) * even.cos + T::low(b) * even.sin, T::high(a) * odd.cos + T::high(b) * odd.sin);
            };
            auto back = [](Turn by) { return Turn{by.cos, -by.sin}; };
            out[low] = make_uint2(turned(a.x, b.x, back(by[0]), back(by[1])), turned(a.y, b.y, back(by[2]), back(by[3])));
            out[high] = make_uint2(turned(b.x, a.x, by[0], by[1]), turned(b.y, a.y, by[2], by[3]));
        }
    }
    if (x != out) {
        for (u32 i = p.n_rotated / 4 + threadIdx.x; i < p.cols / 4; i += THREADS) {
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
