// paged_prefill: causal attention of a chunk of prompts over KV pages
// math    out = softmax(q kᵀ / sqrt(128)) v over the keys up to the query's own; f32 scores, maxima and sums, weights
//         rounded to the activation type before the second product
// layout  q, out: [tokens, ldq], heads of 128 side by side; pages [2 (k, v), kv_heads, 64 tokens, 128]; rows of a
//         tile are (token, query head of the key head) with the head inner, so that a key head's pages are read once
//         for all its query heads and short chunks fill a tile
// order   a page is a tile of keys, ascending from position 0, its first 32 keys for one warp, the others for another:
//         an online softmax for each; k16 steps ascending within. In the end the second half joins the first. What a
//         row does not see changes nothing in it, so that the bits do not depend on how the prompt was cut into calls
//         nor on the rows of a tile
// launch  the list of tiles (sequence, key head, rows) is longest first; block b takes tile b and those linked to it, so
//         that all have about as much to do. Tiles of 128 rows: block = 256, one per SM at most, 96 KiB
//         dynamic shared memory; of 64 or 32 rows, for calls that have too few: block = 128, two per SM (one where it has
//         100 KiB), 80 or 72 KiB.
//         A pair of warps for 32 rows, for 16 in tiles of 32. The next page comes in while one is worked on
// needs   head_dim 128, pages of 64 tokens; any number of query heads per key head. The call's own keys and values
//         are in the pages already; what lies beyond the sequence is never used
// bytes   2·128·2 per row, and a page per tile that sees it, mostly from L2; 4·128 FLOP per query-key pair: bound
//         by tensor cores
// target  ≥ 65 % of 312 TFLOP/s from 2,048 tokens on
// source  FlashAttention-2 (arXiv 2307.08691) for the online softmax; the tiling is our own
//
// A row in shared memory is 256 bytes: chunk c (16 bytes) of row r lies at c ^ (r & 7).
#include "attention.cuh"

constexpr u32 HEAD = 128;
constexpr u32 ROW_BYTES = 2 * HEAD;
constexpr u32 PAGE_BYTES = KEYS * ROW_BYTES;
constexpr u32 HALF = KEYS / 2;
constexpr u32 PART_BYTES = 17 * 32 * 16; // what a warp leaves for its partner: 17 x 16 bytes a lane
static_assert(KEYS == QWENVL_PAGE_TOKENS);

// Shared memory of a block: queries; keys and values of a page, and of the next; two tiles' entries of the list.
template <u32 ROWS> struct Block {
    static constexpr int M = ROWS == 32 ? 1 : 2; // m16 tiles of a warp
    static constexpr u32 THREADS = 4 * ROWS / M;
    static constexpr u32 COPIED = THREADS / 16; // rows that the block copies at a time
    static constexpr u32 PAGES_AT = ROWS * ROW_BYTES;
    static constexpr u32 TILES_AT = PAGES_AT + 4 * PAGE_BYTES;
    static constexpr u32 SHARED_BYTES = TILES_AT + 2 * sizeof(QwenvlAttentionTile);
    static_assert(THREADS / 32 * PART_BYTES <= TILES_AT && sizeof(QwenvlAttentionTile) == 32);
};

// The thread's share of a page's keys (or values): chunk threadIdx.x % 16 of every `COPIED`-th row from threadIdx.x / 16
// on. Rows become zero from the thread's `valid`-th on.
template <u32 COPIED> __device__ __forceinline__ void copy_page(u32 to, const u16 *from, int valid) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(KEYS); i += COPIED) {
        ptx::copy16(to + i * ROW_BYTES, from + i * HEAD, i < valid ? 16 : 0);
    }
}

// Copies an entry of the list, if it is one.
__device__ __forceinline__ void copy_tile(u32 to, const QwenvlAttention &p, u32 tile) {
    if (threadIdx.x < 2 && tile != QWENVL_NO_TILE) {
        ptx::copy16(to + threadIdx.x * 16, reinterpret_cast<const char *>(p.tiles + tile) + threadIdx.x * 16, 16);
    }
}

// A row's token: row / size, for rows below 2³¹ / size.
struct Group {
    u32 size, inverse;
    __device__ __forceinline__ explicit Group(u32 group) : size(group), inverse(0x7fffffffu / group + 1) {}
    __device__ __forceinline__ u32 token(u32 row) const { return static_cast<u32>(static_cast<u64>(row) * inverse >> 31); }
};

// A warp's sums of 16 rows, for its partner.
__device__ __forceinline__ void leave(float4 *part, const RowPair &rows, const float (&out)[16][4]) {
    part[0] = make_float4(rows.max[0], rows.max[1], rows.sum[0], rows.sum[1]);
#pragma unroll
    for (int j = 0; j < 16; j++) {
        part[(1 + j) * 32] = make_float4(out[j][0], out[j][1], out[j][2], out[j][3]);
    }
}

// The result of 16 rows: `out` has the sums over the half of the keys that MINE names, the partner left those over the
// other.
template <int MINE>
__device__ __forceinline__ void join_halves(const float4 *part, const RowPair &rows, float (&out)[16][4]) {
    const float4 its = part[0];
    const float its_max[2] = {its.x, its.y}, its_sum[2] = {its.z, its.w};
    float factor[2][2]; // of the halves, for each row
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float max = fmaxf(rows.max[h], its_max[h]);
        factor[MINE][h] = ptx::exp2(__fsub_rn(rows.max[h], max));
        factor[1 - MINE][h] = ptx::exp2(__fsub_rn(its_max[h], max));
        const float first = MINE == 0 ? rows.sum[h] : its_sum[h], second = MINE == 0 ? its_sum[h] : rows.sum[h];
        const float inverse = inverse_sum(__fmaf_rn(second, factor[1][h], __fmul_rn(first, factor[0][h])));
        factor[0][h] = __fmul_rn(factor[0][h], inverse), factor[1][h] = __fmul_rn(factor[1][h], inverse);
    }
#pragma unroll
    for (int j = 0; j < 16; j++) {
        const float4 sums = part[(1 + j) * 32];
        const float other[4] = {sums.x, sums.y, sums.z, sums.w};
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const float first = MINE == 0 ? out[j][c] : other[c], second = MINE == 0 ? other[c] : out[j][c];
            out[j][c] = __fmaf_rn(second, factor[1][c / 2], __fmul_rn(first, factor[0][c / 2]));
        }
    }
}

// Ends 16 rows from `in_tile` on: joins both halves of the keys, then writes through the memory of the part, so that rows
// leave in 16-byte pieces.
template <class T, int MINE>
__device__ __forceinline__ void finish(const QwenvlAttention &p, const Group &group, const QwenvlAttentionTile &work, u32 in_tile,
                                       char *part, const RowPair &rows, float (&out)[16][4]) {
    const u32 lane = threadIdx.x % 32;
    join_halves<MINE>(reinterpret_cast<const float4 *>(part) + lane, rows, out);
    __syncwarp(); // all lanes have read what the partner left
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int j = 0; j < 16; j++) {
            u32 at = (h * 8 + lane / 4) * ROW_BYTES + (j ^ lane / 4) * 16 + lane % 4 * 4;
            *reinterpret_cast<u32 *>(part + at) = T::pack(out[j][2 * h], out[j][2 * h + 1]);
        }
    }
    __syncwarp();
#pragma unroll 4
    for (u32 i = 0; i < 8; i++) {
        u32 at = i * 2 + lane / 16, row = work.first_row + in_tile + at;
        u32 token = group.token(row), head = work.head * group.size + row - token * group.size;
        if (row < work.sequence.rows * group.size) {
            u64 to = (static_cast<u64>(work.sequence.first) + token) * p.ldo + head * HEAD + lane % 16 * 8;
            *reinterpret_cast<uint4 *>(static_cast<u16 *>(p.out) + to) =
                *reinterpret_cast<const uint4 *>(part + at * ROW_BYTES + (lane % 16 ^ at % 8) * 16);
        }
    }
}

// One tile, and the entry of the block's next one into shared memory.
template <class T, u32 ROWS>
__device__ __forceinline__ void paged_prefill(const QwenvlAttention &p, const Group &group, const QwenvlAttentionTile &work,
                                              u32 next_to, char *memory) {
    using B = Block<ROWS>;
    constexpr int M = B::M;
    constexpr u32 PAIRS = ROWS / 16 / M;
    const u32 shared = ptx::shared_address(memory);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % PAIRS, half = threadIdx.x / 32 / PAIRS;
    const u32 end = min(work.first_row + ROWS, work.sequence.rows * group.size);
    // Keys from the thread's first row of the page at hand on.
    int left = static_cast<int>(work.sequence.past + work.sequence.rows) - static_cast<int>(threadIdx.x / 16);
    // Pages that the tile's first row sees whole, and those that its last row sees a part of.
    const u32 whole = (work.sequence.past + group.token(work.first_row) + 1) / KEYS;
    const u32 n_tiles = (work.sequence.past + group.token(end - 1)) / KEYS + 1;

    const u32 *page_table = p.page_table + work.sequence.pages;
    const u32 place = threadIdx.x / 16 * ROW_BYTES + (threadIdx.x % 16 ^ (threadIdx.x / 16 % 8)) * 16;
    const u16 *k_pages = static_cast<const u16 *>(p.kv.pages) + work.head * (KEYS * HEAD) + threadIdx.x * 8;
    auto copy = [&](u32 buffer, u32 page, int valid) {
        const u16 *from = k_pages + page * p.kv.page_stride;
        const u32 to = shared + B::PAGES_AT + buffer + place;
        copy_page<B::COPIED>(to, from, valid);
        copy_page<B::COPIED>(to + PAGE_BYTES, from + p.kv.kv_heads * (KEYS * HEAD), valid);
        ptx::copy_commit();
    };

    // The queries, with the first keys.
    u32 page = page_table[0];
    copy_tile(next_to, p, work.next);
#pragma unroll 4
    for (u32 i = 0; i < ROWS; i += B::COPIED) {
        u32 row = work.first_row + i + threadIdx.x / 16;
        u32 token = group.token(row), head = work.head * group.size + row - token * group.size;
        bool there = row < end;
        u64 at = (static_cast<u64>(work.sequence.first) + (there ? token : 0)) * p.ldq + head * HEAD + threadIdx.x % 16 * 8;
        ptx::copy16(shared + place + i * ROW_BYTES, static_cast<const u16 *>(p.q) + at, there ? 16 : 0);
    }
    copy(0, page, left);
    page = page_table[min(1u, n_tiles - 1)];

    // Where a lane reads its row of the four 8x8 matrices of a 16x16 block, in the order in which mma wants them side by
    // side: of keys the two chunks of a row first, of queries and values the two rows of a chunk. The next 16 channels
    // are at the address XOR 32.
    const u32 in_half = B::PAGES_AT + half * HALF * ROW_BYTES;
    const u32 wide = shared + in_half + (lane / 16 * 8 + lane % 8) * ROW_BYTES + ((lane / 8 & 1) ^ lane % 8) * 16;
    const u32 tall = shared + lane % 16 * ROW_BYTES + (lane / 16 ^ lane % 8) * 16;
    const u32 q_at = tall + warp * (M * 16) * ROW_BYTES, v_at = tall + in_half + PAGE_BYTES;
    float out[M][16][4];
    RowPair rows[M];
#pragma unroll
    for (int i = 0; i < M; i++) {
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
            if (first_key > work.sequence.past + group.token(work.first_row + warp * (M * 16) + M * 16 - 1)) {
                return;
            }
        }

        float s[M][4][4];
#pragma unroll
        for (int i = 0; i < M; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                s[i][j][0] = s[i][j][1] = s[i][j][2] = s[i][j][3] = 0.0f;
            }
        }
#pragma unroll
        for (int step = 0; step < 8; step++) {
            u32 q[M][4];
#pragma unroll
            for (int i = 0; i < M; i++) {
                ptx::load_matrix4(q[i], (q_at ^ step % 4 * 32) + step / 4 * 128 + i * 16 * ROW_BYTES);
            }
#pragma unroll
            for (int j = 0; j < 2; j++) {
                u32 key[4]; // keys 16j.. and 16j+8.., two chunks of 8 channels each
                ptx::load_matrix4(key, (k ^ step % 4 * 32) + step / 4 * 128 + j * 16 * ROW_BYTES);
#pragma unroll
                for (int i = 0; i < M; i++) {
                    T::mma(s[i][2 * j], q[i], key[0], key[1]);
                    T::mma(s[i][2 * j + 1], q[i], key[2], key[3]);
                }
            }
        }
        if (masked) {
#pragma unroll
            for (int i = 0; i < M; i++) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    u32 row = work.first_row + (warp * M + i) * 16 + h * 8 + lane / 4;
                    u32 last = work.sequence.past + group.token(row); // the row's own key
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
#pragma unroll
        for (int i = 0; i < M; i++) {
            softmax(s[i], rows[i], out[i], p.scale_log2);
        }
#pragma unroll
        for (int step = 0; step < 2; step++) {
            u32 a[M][4];
#pragma unroll
            for (int i = 0; i < M; i++) {
                weights<T>(a[i], s[i], step);
            }
#pragma unroll
            for (int j = 0; j < 8; j++) {
                u32 value[4]; // channels 16j.. and 16j+8.. of keys 16·step.. and 16·step+8..
                ptx::load_matrix4_transposed(value, (v ^ j % 4 * 32) + j / 4 * 128 + step * 16 * ROW_BYTES);
#pragma unroll
                for (int i = 0; i < M; i++) {
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

    // A pair of warps has the same rows: each ends 16 of them, or the first half all.
    __syncthreads(); // all warps are done with shared memory
    char *mine = memory + (half * PAIRS + warp) * PART_BYTES;
    float4 *its = reinterpret_cast<float4 *>(memory + ((1 - half) * PAIRS + warp) * PART_BYTES) + lane;
    if (half == 1) {
        leave(its, rows[0], out[0]);
    } else if (M == 2) {
        leave(its, rows[M - 1], out[M - 1]);
    }
    __syncthreads();
    if (half == 0) {
        finish<T, 0>(p, group, work, warp * (M * 16), mine, rows[0], out[0]);
    } else if (M == 2) {
        finish<T, 1>(p, group, work, warp * (M * 16) + 16, mine, rows[M - 1], out[M - 1]);
    }
}

template <class T, u32 ROWS> __device__ __forceinline__ void paged_prefill(const QwenvlAttention &p, char *memory) {
    const u32 tiles_at = ptx::shared_address(memory) + Block<ROWS>::TILES_AT;
    const Group group(p.group);
    copy_tile(tiles_at, p, blockIdx.x);
    ptx::copy_commit();
    ptx::copy_wait<0>();
    for (u32 slot = 0;; slot = sizeof(QwenvlAttentionTile) - slot) {
        __syncthreads(); // the entry is here, the rest of shared memory is free
        const auto &work = *reinterpret_cast<const QwenvlAttentionTile *>(memory + Block<ROWS>::TILES_AT + slot);
        paged_prefill<T, ROWS>(p, group, work, tiles_at + sizeof(QwenvlAttentionTile) - slot, memory);
        if (work.next == QWENVL_NO_TILE) {
            return;
        }
    }
}

extern __shared__ __align__(128) char shared_memory[];

#define KERNEL(T, type, rows, blocks)                                                                                  \
    extern "C" __global__ __launch_bounds__(Block<rows>::THREADS, blocks) void paged_prefill_##type##_##rows(          \
        const __grid_constant__ QwenvlAttention p) {                                                                   \
        paged_prefill<T, rows>(p, shared_memory);                                                                      \
    }                                                                                                                  \
    CONFIG(paged_prefill_##type##_##rows, Block<rows>::SHARED_BYTES, rows)

KERNEL(BF16, bf16, 128, 1);
KERNEL(F16, f16, 128, 1);
KERNEL(BF16, bf16, 64, 2);
KERNEL(F16, f16, 64, 2);
KERNEL(BF16, bf16, 32, 2);
KERNEL(F16, f16, 32, 2);
