// paged_prefill: causal attention of a chunk of prompts over KV pages
// math    out = softmax(q kᵀ / sqrt(128)) v over the keys up to the query's own; f32 scores, maxima and sums, weights
//         rounded to the activation type before the second product
// layout  q, out: [tokens, ldq], heads of 128 side by side; pages [2 (k, v), kv_heads, 64 tokens, 128]; rows of a
//         tile are (token, query head of the key head) with the head inner, so that a key head's pages are read once
//         for all its query heads and short chunks fill a tile
// order   a page is a tile of keys, ascending from position 0, its first 32 keys for one warp, the others for another:
//         an online softmax for each; k16 steps ascending within. In the end the second half joins the first. What a
//         row does not see changes nothing in it, so that the bits do not depend on how the prompt was cut into calls
// launch  the list of tiles (sequence, key head, 128 rows) is longest first; grid = one block for each multiprocessor
//         at most: block b takes the tiles b, then 2·grid − 1 − b, 2·grid + b, ... so that all have about as much to
//         do; block = 256: 4 x 32 rows, 2 halves of each page; 96 KiB dynamic shared memory. The next page comes in
//         while one is worked on
// needs   head_dim 128, pages of 64 tokens; any number of query heads per key head. The call's own keys and values
//         are in the pages already; what lies beyond the sequence is never used
// bytes   2·128·2 per row, and a page per 128 rows that see it, mostly from L2; 4·128 FLOP per query-key pair: bound
//         by tensor cores
// target  ≥ 65 % of 312 TFLOP/s from 4,096 tokens on
// source  FlashAttention-2 (arXiv 2307.08691) for the online softmax; the tiling is our own
//
// A row in shared memory is 256 bytes: chunk c (16 bytes) of row r lies at c ^ (r & 7).
#include "attention.cuh"

constexpr u32 HEAD = 128;
constexpr u32 ROW_BYTES = 2 * HEAD;
constexpr u32 ROWS = 128;
constexpr u32 HALF = KEYS / 2;
constexpr u32 PAGE_BYTES = KEYS * ROW_BYTES;
constexpr u32 PAGES_AT = ROWS * ROW_BYTES; // keys and values of a page, and of the next
constexpr u32 SHARED_BYTES = PAGES_AT + 4 * PAGE_BYTES;
constexpr u32 PART_BYTES = 34 * 32 * 16; // what a warp leaves for the other half: 34 x 16 bytes a lane
static_assert(KEYS == QWENVL_PAGE_TOKENS && 4 * PART_BYTES <= SHARED_BYTES);

// The thread's share of a page's keys (or values): chunk threadIdx.x % 16 of every 16th row from threadIdx.x / 16 on.
// Rows become zero from the thread's `valid`-th on.
__device__ __forceinline__ void copy_page(u32 to, const u16 *from, int valid) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(KEYS) / 16; i++) {
        ptx::copy16(to + i * 16 * ROW_BYTES, from + i * 16 * HEAD, i * 16 < valid ? 16 : 0);
    }
    ptx::copy_commit();
}

// Writes 32 rows from `in_tile` on, which lie in shared memory. Reads what it needs of the tile again: nothing but the
// sums is held in registers over the loops.
__device__ __forceinline__ void store(const QwenvlAttention &p, u32 tile, u32 in_tile, const char *rows) {
    const QwenvlAttentionTile work = p.tiles[tile];
    const QwenvlSequence sequence = p.sequences[work.sequence];
    const u32 lane = threadIdx.x % 32, group = p.group;
#pragma unroll 4
    for (u32 i = 0; i < 16; i++) {
        u32 at = i * 2 + lane / 16, row = work.first_row + in_tile + at;
        u32 token = row / group, head = work.head * group + row % group;
        if (row < sequence.rows * group) {
            u64 to = (static_cast<u64>(sequence.first) + token) * p.ldo + head * HEAD + lane % 16 * 8;
            *reinterpret_cast<uint4 *>(static_cast<u16 *>(p.out) + to) =
                *reinterpret_cast<const uint4 *>(rows + at * ROW_BYTES + (lane % 16 ^ at % 8) * 16);
        }
    }
}

template <class T> __device__ __forceinline__ void paged_prefill(const QwenvlAttention &p, u32 tile, char *memory) {
    const QwenvlAttentionTile work = p.tiles[tile];
    const QwenvlSequence sequence = p.sequences[work.sequence];
    const u32 shared = ptx::shared_address(memory);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, half = threadIdx.x / 128;
    const u32 group = p.group;
    const u32 end = min(work.first_row + ROWS, sequence.rows * group);
    // Keys from the thread's first row of the page at hand on.
    int left = static_cast<int>(sequence.past + sequence.rows) - static_cast<int>(threadIdx.x / 16);
    // Pages that the tile's first row sees whole, and those that its last row sees a part of.
    const u32 whole = (sequence.past + work.first_row / group + 1) / KEYS;
    const u32 n_tiles = (sequence.past + (end - 1) / group) / KEYS + 1;

    const u32 *page_table = p.page_table + sequence.pages;
    const u32 place = threadIdx.x / 16 * ROW_BYTES + (threadIdx.x % 16 ^ (threadIdx.x / 16 % 8)) * 16;
    const u16 *k_pages = static_cast<const u16 *>(p.kv.pages) + work.head * (KEYS * HEAD) + threadIdx.x * 8;
    auto copy = [&](u32 buffer, u32 page, int valid) {
        const u16 *from = k_pages + page * p.kv.page_stride;
        copy_page(shared + PAGES_AT + buffer + place, from, valid);
        copy_page(shared + PAGES_AT + buffer + PAGE_BYTES + place, from + p.kv.kv_heads * (KEYS * HEAD), valid);
    };

    // The queries, with the first keys.
#pragma unroll 4
    for (u32 i = 0; i < ROWS / 16; i++) {
        u32 row = work.first_row + i * 16 + threadIdx.x / 16;
        u32 token = row / group, head = work.head * group + row % group;
        bool there = row < end;
        u64 at = (static_cast<u64>(sequence.first) + (there ? token : 0)) * p.ldq + head * HEAD + threadIdx.x % 16 * 8;
        ptx::copy16(shared + place + i * 16 * ROW_BYTES, static_cast<const u16 *>(p.q) + at, there ? 16 : 0);
    }
    copy(0, page_table[0], left);
    u32 page = page_table[min(1u, n_tiles - 1)];

    // Where a lane reads its row of the four 8x8 matrices of a 16x16 block, in the order in which mma wants them side by
    // side: of keys the two chunks of a row first, of queries and values the two rows of a chunk. The next 16 channels
    // are at the address XOR 32.
    const u32 in_half = PAGES_AT + half * HALF * ROW_BYTES;
    const u32 wide = shared + in_half + (lane / 16 * 8 + lane % 8) * ROW_BYTES + ((lane / 8 & 1) ^ lane % 8) * 16;
    const u32 tall = shared + lane % 16 * ROW_BYTES + (lane / 16 ^ lane % 8) * 16;
    const u32 q_at = tall + warp * 32 * ROW_BYTES, v_at = tall + in_half + PAGE_BYTES;
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

    u32 buffer = 0;
    auto attend = [&](u32 t, auto masked) {
        ptx::copy_wait<0>();
        __syncthreads(); // the page is here, and all warps are done with the one before
        left -= KEYS;
        if (t + 1 < n_tiles) {
            copy(2 * PAGE_BYTES - buffer, page, left);
            page = page_table[min(t + 2, n_tiles - 1)];
        }
        const u32 k = wide + buffer, v = v_at + buffer;
        buffer = 2 * PAGE_BYTES - buffer;
        u32 first_key = t * KEYS + half * HALF;
        if (masked) {
            // The last row of the warp sees none of these keys.
            const QwenvlAttentionTile here = p.tiles[tile];
            if (first_key > p.sequences[here.sequence].past + (here.first_row + warp * 32 + 31) / p.group) {
                return;
            }
        }

        float s[2][4][4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                s[0][j][c] = s[1][j][c] = 0.0f;
            }
        }
#pragma unroll
        for (int step = 0; step < 8; step++) {
            u32 q[2][4];
            ptx::load_matrix4(q[0], (q_at ^ step % 4 * 32) + step / 4 * 128);
            ptx::load_matrix4(q[1], (q_at ^ step % 4 * 32) + step / 4 * 128 + 16 * ROW_BYTES);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                u32 key[4]; // keys 16j.. and 16j+8.., two chunks of 8 channels each
                ptx::load_matrix4(key, (k ^ step % 4 * 32) + step / 4 * 128 + j * 16 * ROW_BYTES);
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    T::mma(s[i][2 * j], q[i], key[0], key[1]);
                    T::mma(s[i][2 * j + 1], q[i], key[2], key[3]);
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
                    for (int j = 0; j < 4; j++) {
#pragma unroll
                        for (int c = 0; c < 2; c++) {
                            if (first_key + j * 8 + lane % 4 * 2 + c > last) {
                                s[i][j][2 * h + c] = HIDDEN;
                            }
                        }
                    }
                }
            }
        }
        softmax(s[0], rows[0], out[0], p.scale_log2);
        softmax(s[1], rows[1], out[1], p.scale_log2);
#pragma unroll
        for (int step = 0; step < 2; step++) {
            u32 a[2][4];
            weights<T>(a[0], s[0], step);
            weights<T>(a[1], s[1], step);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                u32 value[4]; // channels 16j.. and 16j+8.. of keys 16·step.. and 16·step+8..
                ptx::load_matrix4_transposed(value, (v ^ j % 4 * 32) + j / 4 * 128 + step * 16 * ROW_BYTES);
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    T::mma(out[i][2 * j], a[i], value[0], value[1]);
                    T::mma(out[i][2 * j + 1], a[i], value[2], value[3]);
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

    // The second half leaves its sums, the first joins them.
    __syncthreads(); // all warps are done with shared memory
    float4 *part = reinterpret_cast<float4 *>(memory + warp * PART_BYTES) + lane;
    if (half == 1) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            part[(32 + i) * 32] = make_float4(rows[i].max[0], rows[i].max[1], rows[i].sum[0], rows[i].sum[1]);
#pragma unroll
            for (int j = 0; j < 16; j++) {
                part[(i * 16 + j) * 32] = make_float4(out[i][j][0], out[i][j][1], out[i][j][2], out[i][j][3]);
            }
        }
    }
    __syncthreads();
    if (half == 1) {
        return;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float4 other = part[(32 + i) * 32];
        float mine[2], its[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float its_max = h ? other.y : other.x, its_sum = h ? other.w : other.z;
            const float max = fmaxf(rows[i].max[h], its_max);
            mine[h] = ptx::exp2(__fsub_rn(rows[i].max[h], max)), its[h] = ptx::exp2(__fsub_rn(its_max, max));
            const float inverse = inverse_sum(__fmaf_rn(its_sum, its[h], __fmul_rn(rows[i].sum[h], mine[h])));
            mine[h] = __fmul_rn(mine[h], inverse), its[h] = __fmul_rn(its[h], inverse);
        }
#pragma unroll
        for (int j = 0; j < 16; j++) {
            const float4 sums = part[(i * 16 + j) * 32];
            out[i][j][0] = __fmaf_rn(sums.x, its[0], __fmul_rn(out[i][j][0], mine[0]));
            out[i][j][1] = __fmaf_rn(sums.y, its[0], __fmul_rn(out[i][j][1], mine[0]));
            out[i][j][2] = __fmaf_rn(sums.z, its[1], __fmul_rn(out[i][j][2], mine[1]));
            out[i][j][3] = __fmaf_rn(sums.w, its[1], __fmul_rn(out[i][j][3], mine[1]));
        }
    }
    __syncwarp(); // all lanes have read what the other half left

    // Through shared memory, so that rows leave in 16-byte pieces.
    char *own = memory + warp * PART_BYTES;
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 row = i * 16 + h * 8 + lane / 4;
#pragma unroll
            for (int j = 0; j < 16; j++) {
                u32 at = row * ROW_BYTES + (j ^ lane / 4) * 16 + lane % 4 * 4;
                *reinterpret_cast<u32 *>(own + at) = T::pack(out[i][j][2 * h], out[i][j][2 * h + 1]);
            }
        }
    }
    __syncwarp();
    store(p, tile, warp * 32, own);
}

template <class T> __device__ __forceinline__ void paged_prefill(const QwenvlAttention &p, char *memory) {
    for (u32 round = 0;; round++) {
        const u32 tile = round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
        if (tile >= p.n_tiles) {
            return; // in a later round only blocks that had no tile in this one either
        }
        paged_prefill<T>(p, tile, memory);
        __syncthreads(); // shared memory is free again
    }
}

extern __shared__ __align__(128) char shared_memory[];

extern "C" __global__ __launch_bounds__(256, 1) void paged_prefill_bf16(const __grid_constant__ QwenvlAttention p) {
    paged_prefill<BF16>(p, shared_memory);
}
extern "C" __global__ __launch_bounds__(256, 1) void paged_prefill_f16(const __grid_constant__ QwenvlAttention p) {
    paged_prefill<F16>(p, shared_memory);
}
CONFIG(paged_prefill_bf16, SHARED_BYTES, ROWS);
CONFIG(paged_prefill_f16, SHARED_BYTES, ROWS);
