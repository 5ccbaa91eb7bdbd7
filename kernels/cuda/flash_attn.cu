// flash_attn: softmax(Q Kᵀ / sqrt(d)) V over many query rows: the vision tower and prefill
// math    online softmax over tiles of 64 keys, f32 statistics; p = 2^(s·c − max·c), c = log2(e)/sqrt(d); p is
//         rounded to T for P·V, its sum is not
// order   key tiles at absolute positions, ascending; a row's bits depend on its own keys only. A tile that is
//         fully masked for a row changes nothing: factor 1, sum + 0.
// layout  vision: q, k, v [rows, ld], heads of 80 channels; every row of a sequence sees all its rows.
//         prefill: q [rows, ldq], heads of 128; keys and values in pages of 64 tokens, one page per tile. The query
//         heads of a key head are rows of one tile: row = token · group + head, so that short chunks fill tiles.
//         Shared memory without padding: 16-byte chunk c of row r lies at c ^ (r/4 & 1) (rows of 160 bytes) or
//         c ^ (r & 7) (256 bytes): ldmatrix and copies without bank conflicts.
// launch  a tile of 128 query rows per block of 128 threads, 32 rows per warp: with 16 rows K and V would be read
//         from shared memory as long as the tensor cores work. Tiles from a list, longest first; grid = tiles.
//         60 KiB (80, K and V double) or 64 KiB (128, K and V single, in turn): 2 blocks per SM.
// needs   pages of 64 tokens; rows of q and k 16-byte aligned
// bytes   K and V once per 128 query rows, from L2
// target  80: ≤ 840 instructions per 160 mma, 62 % of tensor peak; 128: ≤ 1067 per 256, 65 % at 4k keys
// source  Dao et al., arXiv 2205.14135 and 2307.08691 for the method; the tiling is this project's
#include "common.cuh"

constexpr u32 KEYS = 64, ROWS = 128, ATTENTION_THREADS = 128;
static_assert(KEYS == QWENVL_PAGE_TOKENS, "a tile is a page");

template <class T, int D, bool PAGED> struct FlashAttention {
    static constexpr u32 ROW_BYTES = D * 2, CHUNKS = D / 8;
    static constexpr u32 BUFFERS = D == 80 ? 2 : 1;
    static constexpr u32 TILE_BYTES = KEYS * ROW_BYTES;
    static constexpr u32 WORK_AT = ROWS * ROW_BYTES + 2 * BUFFERS * TILE_BYTES;
    static constexpr u32 SUMS_AT = WORK_AT + 64 + ROWS * 4; // [4, threads]
    static constexpr u32 SMEM_BYTES = SUMS_AT + 4 * ATTENTION_THREADS * 4;

    // What the block works on. In shared memory: no register is left for it.
    struct Work {
        QwenvlSequence sequence;
        QwenvlAttentionTile tile;
        u32 n_keys, n_tiles;
    };
    static_assert(sizeof(Work) <= 64);

    const QwenvlAttention &p;
    u32 q_at, k_at, v_at; // shared addresses
    u8 *smem;
    const Work &work;
    u32 warp, lane, g, t;

    static __device__ __forceinline__ u32 place(u32 row, u32 chunk) {
        u32 swizzled = D == 80 ? chunk ^ (row >> 2 & 1) : chunk ^ (row & 7);
        return row * ROW_BYTES + swizzled * 16;
    }

    // A lane's address in 16-row matrices, its row and which of two chunks; then on by pairs of chunks and by rows. The
    // swizzle of a row repeats every 8 rows, so that all but the first are immediate offsets or one XOR.
    static __device__ __forceinline__ u32 first_pair(u32 at, u32 row, u32 chunk) { return at + place(row, chunk); }
    static __device__ __forceinline__ u32 on(u32 at, u32 pairs, u32 rows) {
        return (D == 80 ? at + pairs * 32 : at ^ pairs * 32) + rows * ROW_BYTES;
    }

    __device__ __forceinline__ FlashAttention(const QwenvlAttention &p, u8 *smem)
        : p(p), smem(smem), work(*reinterpret_cast<const Work *>(smem + WORK_AT)) {
        q_at = ptx::shared_address(smem);
        k_at = q_at + ROWS * ROW_BYTES;
        v_at = k_at + BUFFERS * TILE_BYTES;
        warp = threadIdx.x / 32;
        lane = threadIdx.x % 32;
        g = lane / 4;
        t = lane % 4;
    }

    // Prefill: the keys that each row of the tile sees. Written before the first barrier of the first tile of keys.
    __device__ __forceinline__ u32 *seen() const { return reinterpret_cast<u32 *>(smem + WORK_AT + 64); }

    // First tile of keys that some row does not see all of.
    __device__ __forceinline__ u32 start(u32 index) {
        if (threadIdx.x == 0) {
            Work &to = *reinterpret_cast<Work *>(smem + WORK_AT);
            QwenvlAttentionTile tile = p.tiles[index];
            QwenvlSequence sequence = p.sequences[tile.sequence];
            u32 last_row = min(tile.first_row + ROWS, sequence.rows * (PAGED ? p.group : 1)) - 1;
            to.tile = tile;
            to.sequence = sequence;
            to.n_keys = PAGED ? sequence.past + sequence.rows : sequence.rows;
            to.n_tiles = PAGED ? (sequence.past + last_row / p.group) / KEYS + 1 : (sequence.rows + KEYS - 1) / KEYS;
        }
        __syncthreads();
        if (PAGED) {
            u32 row = work.tile.first_row + threadIdx.x;
            seen()[threadIdx.x] = min(work.n_keys, work.sequence.past + row / p.group + 1);
        }
        return PAGED ? (work.sequence.past + work.tile.first_row / p.group + 1) / KEYS : work.n_keys / KEYS;
    }

    // Elements from the start of q (or out, with its ld) to a row of the tile.
    __device__ __forceinline__ u64 row_at(u32 row, u32 ld) const {
        if (PAGED) {
            u32 token = row / p.group, head = work.tile.head * p.group + row % p.group;
            return static_cast<u64>(work.sequence.first + token) * ld + head * D;
        }
        return static_cast<u64>(work.sequence.first + row) * ld + work.tile.head * D;
    }
    __device__ __forceinline__ bool exists(u32 row) const {
        return row < work.sequence.rows * (PAGED ? p.group : 1);
    }

    __device__ __forceinline__ void fetch_q() const {
#pragma unroll 2
        for (u32 i = threadIdx.x; i < ROWS * CHUNKS; i += ATTENTION_THREADS) {
            u32 row = i / CHUNKS, chunk = i % CHUNKS;
            bool there = exists(work.tile.first_row + row);
            u64 at = there ? row_at(work.tile.first_row + row, p.ldq) + chunk * 8 : 0;
            ptx::copy16(q_at + place(row, chunk), static_cast<const u16 *>(p.q) + at, there ? 16 : 0);
        }
    }

    // Keys or values of tile `index`; rows beyond the last key are zero.
    template <bool VALUE> __device__ __forceinline__ void fetch(u32 index) const {
        u32 to = (VALUE ? v_at : k_at) + (BUFFERS == 2 ? index % 2 * TILE_BYTES : 0);
        u32 left = work.n_keys - index * KEYS;
        const u16 *from;
        if (PAGED) {
            u32 page = p.page_table[work.sequence.pages + index];
            from = static_cast<const u16 *>(p.kv.pages) + kv_at(p.kv, page, VALUE, work.tile.head, 0);
        } else {
            from = static_cast<const u16 *>(VALUE ? p.v : p.k) +
                   static_cast<u64>(work.sequence.first + index * KEYS) * p.ldq + work.tile.head * D;
        }
        if constexpr (PAGED) {
            // A page is contiguous, and eight rows on the swizzle is the same.
            from += threadIdx.x * 8;
            to += place(threadIdx.x / CHUNKS, threadIdx.x % CHUNKS);
            u32 row = threadIdx.x / CHUNKS;
#pragma unroll
            for (u32 pass = 0; pass < 8; pass++) {
                ptx::copy16(to + pass * 8 * ROW_BYTES, from + pass * 8 * D, row + pass * 8 < left ? 16 : 0);
            }
        } else {
#pragma unroll
            for (u32 pass = 0; pass < KEYS * CHUNKS / ATTENTION_THREADS; pass++) {
                u32 i = pass * ATTENTION_THREADS + threadIdx.x;
                u32 row = i / CHUNKS, chunk = i % CHUNKS;
                bool there = row < left;
                ptx::copy16(to + place(row, chunk), there ? from + row * p.ldq + chunk * 8 : from, there ? 16 : 0);
            }
        }
    }

    float o[2][D / 8][4];
    float row_max[2][2];

    // This thread's share of the sum of a row. In shared memory: 255 registers do not hold it.
    __device__ __forceinline__ float &row_sum(u32 i, u32 h) const {
        return reinterpret_cast<float *>(smem + SUMS_AT)[(i * 2 + h) * ATTENTION_THREADS + threadIdx.x];
    }

    // One tile of keys. MASKED: some row does not see all of it.
    template <bool MASKED> __device__ __forceinline__ void attend(u32 index) {
        if (BUFFERS == 2) {
            if (index + 1 < work.n_tiles) {
                fetch<false>(index + 1);
            }
            ptx::copy_commit();
            ptx::copy_wait<2>();
            __syncthreads();
        } else {
            ptx::copy_wait<0>();
            __syncthreads();
            fetch<true>(index);
            ptx::copy_commit();
        }
        u32 buffer = BUFFERS == 2 ? index % 2 * TILE_BYTES : 0;
        float s[2][8][4];
#pragma unroll
        for (int i = 0; i < 64; i++) {
            s[i / 32][i / 4 % 8][i % 4] = 0.0f;
        }
        u32 q_lane = first_pair(q_at, warp * 32 + lane % 16, lane / 16);
        u32 k_lane = first_pair(k_at + buffer, lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
        for (int step = 0; step < D / 16; step++) {
            u32 q[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                ptx::load_matrix4(q[i], on(q_lane, step, i * 16));
            }
#pragma unroll
            for (int pair = 0; pair < 4; pair++) {
                u32 k[4];
                ptx::load_matrix4(k, on(k_lane, step, pair * 16));
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    T::mma(s[i][pair * 2], q[i], k[0], k[1]);
                    T::mma(s[i][pair * 2 + 1], q[i], k[2], k[3]);
                }
            }
        }
        if (BUFFERS == 2) {
            if (index + 1 < work.n_tiles) {
                fetch<true>(index + 1);
            }
            ptx::copy_commit();
        }
        if (MASKED) {
#pragma unroll
            for (int row = 0; row < 4; row++) {
                u32 left = (PAGED ? seen()[warp * 32 + row * 8 + g] : work.n_keys) - index * KEYS;
                // Negative where the row sees nothing of this tile.
                int below = static_cast<int>(left) - 2 * static_cast<int>(t);
#pragma unroll
                for (int j = 0; j < 16; j++) {
                    float &x = s[row / 2][j / 2][row % 2 * 2 + j % 2];
                    x = j / 2 * 8 + j % 2 < below ? x : -INFINITY;
                }
                ptx::compiler_fence(); // a row at a time: all at once take more registers than there are
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float largest = fmaxf(s[i][0][2 * h], s[i][0][2 * h + 1]);
#pragma unroll
                for (int j = 1; j < 8; j++) {
                    largest = fmaxf(largest, fmaxf(s[i][j][2 * h], s[i][j][2 * h + 1]));
                }
                largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
                largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
                // The first tile holds a key that the row sees: from then on the maximum is finite.
                largest = fmaxf(largest, row_max[i][h]);
                float factor = ptx::exp2((row_max[i][h] - largest) * p.scale_log2);
                row_max[i][h] = largest;
                float offset = largest * p.scale_log2, sum = 0.0f;
#pragma unroll
                for (int j = 0; j < 8; j++) {
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        float &x = s[i][j][2 * h + c];
                        x = ptx::exp2(__fmaf_rn(x, p.scale_log2, -offset));
                        sum += x;
                    }
                }
                row_sum(i, h) = __fmaf_rn(row_sum(i, h), factor, sum);
#pragma unroll
                for (int j = 0; j < D / 8; j++) {
                    o[i][j][2 * h] *= factor;
                    o[i][j][2 * h + 1] *= factor;
                }
            }
        }
        if (BUFFERS == 2) {
            ptx::copy_wait<2>();
            __syncthreads();
        } else {
            ptx::copy_wait<0>();
            __syncthreads();
            if (index + 1 < work.n_tiles) {
                fetch<false>(index + 1);
            }
            ptx::copy_commit();
        }
        u32 v_lane = first_pair(v_at + buffer, lane % 16, lane / 16);
#pragma unroll
        for (int step = 0; step < 4; step++) {
            u32 a[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const float(&x)[4] = s[i][step * 2 + e / 2];
                    a[i][e] = T::pack(x[e % 2 * 2], x[e % 2 * 2 + 1]);
                }
            }
#pragma unroll
            for (int pair = 0; pair < D / 16; pair++) {
                u32 v[4];
                ptx::load_matrix4_transposed(v, on(v_lane, pair, step * 16));
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    T::mma(o[i][pair * 2], a[i], v[0], v[1]);
                    T::mma(o[i][pair * 2 + 1], a[i], v[2], v[3]);
                }
            }
        }
    }

    __device__ __forceinline__ void run(u32 tile_index) {
        u32 full = start(tile_index);
        fetch_q();
        fetch<false>(0);
        ptx::copy_commit();
        if (BUFFERS == 2) {
            fetch<true>(0);
            ptx::copy_commit();
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int j = 0; j < D / 2; j++) {
                o[i][j / 4][j % 4] = 0.0f;
            }
            row_max[i][0] = row_max[i][1] = -INFINITY;
            row_sum(i, 0) = row_sum(i, 1) = 0.0f;
        }
        u32 index = 0;
#pragma unroll 1
        for (; index < full; index++) {
            attend<false>(index);
        }
#pragma unroll 1
        for (; index < work.n_tiles; index++) {
            attend<true>(index);
        }
        store();
    }

    // Through the warp's own rows of Q in shared memory, so that rows leave in 16-byte pieces.
    __device__ __forceinline__ void store() {
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float sum = row_sum(i, h);
                sum += __shfl_xor_sync(0xffffffffu, sum, 1);
                sum += __shfl_xor_sync(0xffffffffu, sum, 2);
                float scale = 1.0f / sum;
                u32 row = warp * 32 + i * 16 + h * 8 + g;
#pragma unroll
                for (int j = 0; j < D / 8; j++) {
                    *reinterpret_cast<u32 *>(smem + place(row, j) + t * 4) =
                        T::pack(o[i][j][2 * h] * scale, o[i][j][2 * h + 1] * scale);
                }
            }
        }
        __syncwarp();
#pragma unroll 2
        for (u32 i = lane; i < 32 * CHUNKS; i += 32) {
            u32 row = warp * 32 + i / CHUNKS, chunk = i % CHUNKS;
            if (exists(work.tile.first_row + row)) {
                uint4 v = *reinterpret_cast<const uint4 *>(smem + place(row, chunk));
                *reinterpret_cast<uint4 *>(static_cast<u16 *>(p.out) + row_at(work.tile.first_row + row, p.ldo) +
                                           chunk * 8) = v;
            }
        }
    }
};

template <class A> __device__ __forceinline__ void flash_attention(const QwenvlAttention &p, u32 worker, u32 n_workers) {
    extern __shared__ __align__(1024) u8 smem[];
    for (u32 index = worker; index < p.n_tiles; index += n_workers) {
        A(p, smem).run(index);
        __syncthreads();
    }
}

#define FLASH_KERNEL(name, T, D, PAGED)                                                                                \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, 2)                                                 \
        name(const __grid_constant__ QwenvlAttention p) {                                                              \
        flash_attention<FlashAttention<T, D, PAGED>>(p, blockIdx.x, gridDim.x);                                        \
    }                                                                                                                  \
    extern "C" __device__ u32 name##_config[2] = {FlashAttention<T, D, PAGED>::SMEM_BYTES, ROWS};
FLASH_KERNEL(flash_attn_vision_bf16, BF16, 80, false)
FLASH_KERNEL(flash_attn_vision_f16, F16, 80, false)
FLASH_KERNEL(flash_attn_prefill_bf16, BF16, 128, true)
FLASH_KERNEL(flash_attn_prefill_f16, F16, 128, true)
