// paged_prefill: causal attention of a chunk of prompts over KV pages
// math    out = softmax(q kᵀ / sqrt(128)) v over the keys up to the query's own; f32 scores, maxima and sums, weights
//         rounded to the activation type before the second product
// layout  q, out: [tokens, ldq], heads of 128 side by side; pages [2 (k, v), kv_heads, 64 tokens, 128]; rows of a
//         tile are (token, query head of the key head) with the head inner, so that a key head's pages are read once
//         for all its query heads and short chunks fill a tile
// order   a page is a tile of keys, ascending from position 0; k16 steps ascending within. A tile that a row does not
//         see changes nothing in it, so that the bits do not depend on how the prompt was cut into calls
// launch  grid = tiles of the list (sequence, key head, 128 rows), longest first; block = 128: 4 warps of 32 rows; 64
//         KiB dynamic shared memory: 2 blocks per SM. Keys and values have one buffer each: values come in during the
//         first product and the softmax, the next keys during the second product
// needs   head_dim 128, pages of 64 tokens; any number of query heads per key head. The call's own keys and values
//         are in the pages already; what lies beyond the sequence is never used
// bytes   2·128·2 per row, and a page per 128 rows that see it, mostly from L2; 4·128 FLOP per query-key pair: bound
//         by tensor cores
// target  ≥ 65 % of 312 TFLOP/s from 4,096 tokens on
// source  FlashAttention-2 (arXiv 2307.08691) for the online softmax and the single buffers; the tiling is our own
//
// A row in shared memory is 256 bytes: chunk c (16 bytes) of row r lies at c ^ (r & 7).
#include "attention.cuh"

constexpr u32 HEAD = 128;
constexpr u32 ROW_BYTES = 2 * HEAD;
constexpr u32 ROWS = 128;
constexpr u32 K_AT = ROWS * ROW_BYTES;
constexpr u32 V_AT = K_AT + KEYS * ROW_BYTES;
constexpr u32 SHARED_BYTES = V_AT + KEYS * ROW_BYTES;
static_assert(KEYS == QWENVL_PAGE_TOKENS);

// The thread's share of a page's keys (or values): chunk threadIdx.x % 16 of every eighth row from threadIdx.x / 16 on.
// Rows become zero from the thread's `valid`-th on.
__device__ __forceinline__ void copy_page(u32 to, const u16 *from, int valid) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(KEYS) / 8; i++) {
        ptx::copy16(to + i * 8 * ROW_BYTES, from + i * 8 * HEAD, i * 8 < valid ? 16 : 0);
    }
    ptx::copy_commit();
}

// Writes the warp's 32 rows, which lie in shared memory. Reads what it needs of the tile again: nothing but the sums is
// held in registers over the loops.
__device__ __forceinline__ void store(const QwenvlAttention &p, u32 tile, const char *memory) {
    const QwenvlAttentionTile work = p.tiles[tile];
    const QwenvlSequence sequence = p.sequences[work.sequence];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = p.group;
#pragma unroll 4
    for (u32 i = 0; i < 16; i++) {
        u32 in_tile = warp * 32 + i * 2 + lane / 16, row = work.first_row + in_tile;
        u32 token = row / group, head = work.head * group + row % group;
        if (row < sequence.rows * group) {
            u64 at = (static_cast<u64>(sequence.first) + token) * p.ldo + head * HEAD + lane % 16 * 8;
            *reinterpret_cast<uint4 *>(static_cast<u16 *>(p.out) + at) =
                *reinterpret_cast<const uint4 *>(memory + in_tile * ROW_BYTES + (lane % 16 ^ in_tile % 8) * 16);
        }
    }
}

template <class T> __device__ __forceinline__ void paged_prefill(const QwenvlAttention &p, u32 tile, char *memory) {
    const QwenvlAttentionTile work = p.tiles[tile];
    const QwenvlSequence sequence = p.sequences[work.sequence];
    const u32 shared = ptx::shared_address(memory);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 group = p.group;
    const u32 end = min(work.first_row + ROWS, sequence.rows * group);
    // Keys from the thread's first row of the page at hand on.
    int left = static_cast<int>(sequence.past + sequence.rows) - static_cast<int>(threadIdx.x / 16);
    // Pages that the tile's first row sees whole, and those that its last row sees a part of.
    const u32 whole = (sequence.past + work.first_row / group + 1) / KEYS;
    const u32 n_tiles = (sequence.past + (end - 1) / group) / KEYS + 1;

    const u32 *page_table = p.page_table + sequence.pages;
    const u32 place = threadIdx.x / 16 * ROW_BYTES + (threadIdx.x % 16 ^ (threadIdx.x / 16)) * 16;
    const u16 *k_pages = static_cast<const u16 *>(p.kv.pages) + work.head * (KEYS * HEAD) + threadIdx.x * 8;

    // The queries, with the first keys.
#pragma unroll 4
    for (u32 i = 0; i < ROWS / 8; i++) {
        u32 row = work.first_row + i * 8 + threadIdx.x / 16;
        u32 token = row / group, head = work.head * group + row % group;
        bool there = row < end;
        u64 at = (static_cast<u64>(sequence.first) + (there ? token : 0)) * p.ldq + head * HEAD + threadIdx.x % 16 * 8;
        ptx::copy16(shared + place + i * 8 * ROW_BYTES, static_cast<const u16 *>(p.q) + at, there ? 16 : 0);
    }
    u32 page = page_table[0];
    copy_page(shared + K_AT + place, k_pages + page * p.kv.page_stride, left);

    // Where a lane reads its row of the four 8x8 matrices of a 16x16 block, in the order in which mma wants them side by
    // side: of keys the two chunks of a row first, of queries and values the two rows of a chunk. The next 16 channels
    // are at the address XOR 32.
    const u32 wide = shared + (lane / 16 * 8 + lane % 8) * ROW_BYTES + ((lane / 8 & 1) ^ lane % 8) * 16;
    const u32 tall = shared + lane % 16 * ROW_BYTES + (lane / 16 ^ lane % 8) * 16;
    const u32 q_at = tall + warp * 32 * ROW_BYTES;
    float out[2][16][4];
    RowPair rows[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        start(rows[i]);
#pragma unroll
        for (int j = 0; j < 16; j++) {
            out[i][j][0] = out[i][j][1] = out[i][j][2] = out[i][j][3] = 0.0f;
        }
    }

    auto attend = [&](u32 t, auto masked) {
        ptx::copy_wait<0>();
        __syncthreads(); // the keys are here, and all warps are done with the last values
        copy_page(shared + V_AT + place, k_pages + (page * p.kv.page_stride + p.kv.kv_heads * (KEYS * HEAD)),
                  masked ? left : KEYS);
        left -= KEYS;
        page = page_table[min(t + 1, n_tiles - 1)];

        float s[2][8][4];
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                s[0][j][c] = s[1][j][c] = 0.0f;
            }
        }
#pragma unroll 2 // all eight would hold too much at once and spill
        for (int step = 0; step < 8; step++) {
            u32 q[2][4];
            ptx::load_matrix4(q[0], (q_at ^ step % 4 * 32) + step / 4 * 128);
            ptx::load_matrix4(q[1], (q_at ^ step % 4 * 32) + step / 4 * 128 + 16 * ROW_BYTES);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                u32 k[4]; // keys 16j.. and 16j+8.., two chunks of 8 channels each
                ptx::load_matrix4(k, (wide ^ step % 4 * 32) + step / 4 * 128 + K_AT + j * 16 * ROW_BYTES);
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    T::mma(s[i][2 * j], q[i], k[0], k[1]);
                    T::mma(s[i][2 * j + 1], q[i], k[2], k[3]);
                }
            }
        }
        if (masked) {
            const u32 first_row = p.tiles[tile].first_row, past = p.sequences[p.tiles[tile].sequence].past;
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    u32 row = first_row + warp * 32 + i * 16 + h * 8 + lane / 4;
                    u32 last = past + row / p.group; // the row's own key
#pragma unroll
                    for (int j = 0; j < 8; j++) {
#pragma unroll
                        for (int c = 0; c < 2; c++) {
                            if (t * KEYS + j * 8 + lane % 4 * 2 + c > last) {
                                s[i][j][2 * h + c] = HIDDEN;
                            }
                        }
                    }
                }
            }
        }
        softmax(s[0], rows[0], out[0], p.scale_log2);
        softmax(s[1], rows[1], out[1], p.scale_log2);

        ptx::copy_wait<0>();
        __syncthreads(); // the values are here, and all warps are done with the keys
        if (t + 1 < n_tiles) {
            copy_page(shared + K_AT + place, k_pages + page * p.kv.page_stride, left);
        }
#pragma unroll
        for (int step = 0; step < 4; step++) {
            u32 a[2][4];
            weights<T>(a[0], s[0], step);
            weights<T>(a[1], s[1], step);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                u32 v[4]; // channels 16j.. and 16j+8.. of keys 16·step.. and 16·step+8..
                ptx::load_matrix4_transposed(v, (tall ^ j % 4 * 32) + j / 4 * 128 + V_AT + step * 16 * ROW_BYTES);
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    T::mma(out[i][2 * j], a[i], v[0], v[1]);
                    T::mma(out[i][2 * j + 1], a[i], v[2], v[3]);
                }
            }
        }
    };
    u32 t = 0;
    for (; t < min(whole, n_tiles); t++) {
        attend(t, False());
    }
    for (; t < n_tiles; t++) {
        attend(t, True());
    }

    // Through the warp's own rows of the queries' memory, so that rows leave in 16-byte pieces. Only this warp has
    // read them, before the last barrier.
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float inverse = inverse_sum(rows[i].sum[h]);
            u32 row = warp * 32 + i * 16 + h * 8 + lane / 4;
#pragma unroll
            for (int j = 0; j < 16; j++) {
                u32 at = row * ROW_BYTES + (j ^ lane / 4) * 16 + lane % 4 * 4;
                *reinterpret_cast<u32 *>(memory + at) =
                    T::pack(__fmul_rn(out[i][j][2 * h], inverse), __fmul_rn(out[i][j][2 * h + 1], inverse));
            }
        }
    }
    __syncwarp();
    store(p, tile, memory);
}

extern __shared__ __align__(128) char shared_memory[];

extern "C" __global__ __launch_bounds__(128, 2) void paged_prefill_bf16(const __grid_constant__ QwenvlAttention p) {
    paged_prefill<BF16>(p, blockIdx.x, shared_memory);
}
extern "C" __global__ __launch_bounds__(128, 2) void paged_prefill_f16(const __grid_constant__ QwenvlAttention p) {
    paged_prefill<F16>(p, blockIdx.x, shared_memory);
}
CONFIG(paged_prefill_bf16, SHARED_BYTES, ROWS);
CONFIG(paged_prefill_f16, SHARED_BYTES, ROWS);
