// flash_attn: attention of the vision tower, each temporal slice to itself
// math    out = softmax(q kᵀ / sqrt(80)) v for every head of every sequence; f32 scores, maxima and sums,
//         weights rounded to the activation type before the second product
// layout  q, k, v: [rows, ldq], rotated already, side by side in one matrix; out [rows, ldo]; 16-bit activations
// order   keys in tiles of 64 from the start of the sequence, ascending; k16 steps ascending within; the queries of a
//         tile do not matter
// launch  grid = tiles of the list (sequence, head, 128 or 64 queries), longest sequences first and the tiles of a head
//         together, so that its keys and values stay in L2; block = 128: 4 warps of 32 or 16 queries; 60 or 50 KiB
//         dynamic shared memory: 2 or 3 blocks per SM, 1 where it has 100 KiB
// needs   head_dim 80; rows of 16-byte aligned heads; any sequence lengths
// bytes   2·80·4 per row and head at least; 4·80 FLOP per query-key pair: bound by tensor cores
// target  ≥ 65 % of 312 TFLOP/s from 4,096 patches a slice on
// source  FlashAttention-2 (arXiv 2307.08691) for the online softmax; the tiling is our own: heads of 80 are not
//         padded, and 32 queries per warp halve the reads of keys and values from shared memory; 16 per warp are
//         for calls that have too few tiles otherwise
//
// A row of a tile in shared memory is 160 bytes: chunk c (16 bytes) of row r lies at c ^ (r / 4 & 1), which makes
// every 8 rows of one ldmatrix phase hit 8 different bank groups without padding.
#include "attention.cuh"

constexpr u32 HEAD = 80;
constexpr u32 ROW_BYTES = 2 * HEAD;
constexpr u32 TILE_BYTES = KEYS * ROW_BYTES;

// Blocks whose warps have M m16 tiles of queries.
template <int M> struct Block {
    static constexpr u32 QUERIES = M * 64;
    static constexpr u32 K_AT = QUERIES * ROW_BYTES;   // two tiles of keys
    static constexpr u32 V_AT = K_AT + 2 * TILE_BYTES; // two tiles of values
    static constexpr u32 SHARED_BYTES = V_AT + 2 * TILE_BYTES;
    // k16 steps whose queries stay in registers; those of the others are read again for every tile, as all five of two
    // m16 tiles would spill.
    static constexpr int HELD = M == 1 ? 5 : 2;
};

// Copies the head's channels of ROWS rows; rows at or above `valid` become zero.
template <u32 ROWS> __device__ __forceinline__ void copy_rows(u32 to, const u16 *from, u32 ld, u32 valid) {
#pragma unroll
    for (u32 i = 0; i < ROWS * 10 / 128; i++) {
        u32 chunk = i * 128 + threadIdx.x;
        u32 row = chunk / 10, column = chunk % 10;
        // 10 chunks a row: chunk · 16 is the place, but for the swizzle.
        u32 at = to + ((chunk ^ (row / 4 & 1)) * 16);
        bool there = row < valid;
        ptx::copy16(at, from + (there ? row : 0) * static_cast<u64>(ld) + column * 8, there ? 16 : 0);
    }
}

// One tile of 64 keys and values into the warp's queries.
template <class T, bool TAIL, int M, int HELD>
__device__ __forceinline__ void attend(const u32 (&held)[M][HELD][4], u32 q_at, float (&out)[M][10][4], RowPair (&rows)[M],
                                       u32 k_at, u32 v_at, float scale, u32 visible) {
    float s[M][8][4];
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            s[i][j][0] = s[i][j][1] = s[i][j][2] = s[i][j][3] = 0.0f;
        }
    }
#pragma unroll
    for (int step = 0; step < 5; step++) {
        u32 q[M][4];
#pragma unroll
        for (int i = 0; i < M; i++) {
            if (step < HELD) {
                q[i][0] = held[i][step][0], q[i][1] = held[i][step][1], q[i][2] = held[i][step][2], q[i][3] = held[i][step][3];
            } else {
                ptx::load_matrix4(q[i], q_at + i * 16 * ROW_BYTES + step * 32);
            }
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 k[4]; // keys 16j.. and 16j+8.., two chunks of 8 channels each
            ptx::load_matrix4(k, k_at + j * 16 * ROW_BYTES + step * 32);
#pragma unroll
            for (int i = 0; i < M; i++) {
                T::mma(s[i][2 * j], q[i], k[0], k[1]);
                T::mma(s[i][2 * j + 1], q[i], k[2], k[3]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < M; i++) {
        if (TAIL) {
            u32 key = threadIdx.x % 4 * 2;
#pragma unroll
            for (int j = 0; j < 8; j++) {
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    s[i][j][c] = key + j * 8 + c % 2 >= visible ? HIDDEN : s[i][j][c];
                }
            }
        }
        softmax(s[i], rows[i], out[i], scale);
    }
#pragma unroll
    for (int step = 0; step < 4; step++) {
        u32 p[M][4];
#pragma unroll
        for (int i = 0; i < M; i++) {
            weights<T>(p[i], s[i], step);
        }
#pragma unroll
        for (int j = 0; j < 5; j++) {
            u32 v[4]; // channels 16j.. and 16j+8.. of keys 16·step.. and 16·step+8..
            ptx::load_matrix4_transposed(v, v_at + step * 16 * ROW_BYTES + j * 32);
#pragma unroll
            for (int i = 0; i < M; i++) {
                T::mma(out[i][2 * j], p[i], v[0], v[1]);
                T::mma(out[i][2 * j + 1], p[i], v[2], v[3]);
            }
        }
    }
}

template <class T, int M> __device__ __forceinline__ void flash_attn(const QwenvlAttention &p, char *memory) {
    constexpr u32 QUERIES = Block<M>::QUERIES, K_AT = Block<M>::K_AT, V_AT = Block<M>::V_AT;
    constexpr int HELD = Block<M>::HELD;
    const QwenvlAttentionTile work = p.tiles[blockIdx.x];
    const QwenvlSequence sequence = work.sequence;
    const u32 shared = ptx::shared_address(memory);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u64 head = static_cast<u64>(sequence.first) * p.ldq + work.head * HEAD;
    const u16 *k = static_cast<const u16 *>(p.k) + head, *v = static_cast<const u16 *>(p.v) + head;
    const u32 n_tiles = (sequence.rows + KEYS - 1) / KEYS;

    copy_rows<QUERIES>(shared, static_cast<const u16 *>(p.q) + head + static_cast<u64>(work.first_row) * p.ldq, p.ldq,
                       sequence.rows - work.first_row);
    copy_rows<KEYS>(shared + K_AT, k, p.ldq, sequence.rows);
    copy_rows<KEYS>(shared + V_AT, v, p.ldq, sequence.rows);
    ptx::copy_commit();
    ptx::copy_wait<0>();
    __syncthreads();

    // Where a lane reads its row of the four 8x8 matrices of a 16x16 block, in the order in which mma wants them side by
    // side: of keys the two chunks of a row first, of queries and values the two rows of a chunk. The swizzle depends
    // on the lane only, so that blocks are constant offsets.
    const u32 wide = (lane / 16 * 8 + lane % 8) * ROW_BYTES + ((lane / 8 & 1) ^ (lane / 4 & 1)) * 16;
    const u32 tall = lane % 16 * ROW_BYTES + (lane / 16 ^ (lane / 4 & 1)) * 16;
    const u32 q_at = shared + tall + warp * (M * 16) * ROW_BYTES;
    u32 q[M][HELD][4];
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int step = 0; step < HELD; step++) {
            ptx::load_matrix4(q[i][step], q_at + i * 16 * ROW_BYTES + step * 32);
        }
    }
    float out[M][10][4];
    RowPair rows[M];
#pragma unroll
    for (int i = 0; i < M; i++) {
        start(rows[i]);
#pragma unroll
        for (int j = 0; j < 10; j++) {
            out[i][j][0] = out[i][j][1] = out[i][j][2] = out[i][j][3] = 0.0f;
        }
    }

    // While a tile is worked on, the next one comes in.
    const u32 whole = sequence.rows / KEYS;
    u32 buffer = 0;
    for (u32 t = 0; t < whole; t++) {
        if (t + 1 < n_tiles) {
            u32 first = (t + 1) * KEYS;
            copy_rows<KEYS>(shared + K_AT + (TILE_BYTES - buffer), k + static_cast<u64>(first) * p.ldq, p.ldq,
                            sequence.rows - first);
            copy_rows<KEYS>(shared + V_AT + (TILE_BYTES - buffer), v + static_cast<u64>(first) * p.ldq, p.ldq,
                            sequence.rows - first);
        }
        ptx::copy_commit();
        attend<T, false>(q, q_at, out, rows, shared + K_AT + buffer + wide, shared + V_AT + buffer + tall, p.scale_log2, KEYS);
        ptx::copy_wait<0>();
        __syncthreads();
        buffer = TILE_BYTES - buffer;
    }
    if (whole < n_tiles) {
        attend<T, true>(q, q_at, out, rows, shared + K_AT + buffer + wide, shared + V_AT + buffer + tall, p.scale_log2,
                        sequence.rows % KEYS);
    }

    // Through the warp's own rows of the queries' memory, so that rows leave in 16-byte pieces. Only this warp has
    // read them.
    __syncwarp();
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float inverse = inverse_sum(rows[i].sum[h]);
            u32 row = (warp * M + i) * 16 + h * 8 + lane / 4;
#pragma unroll
            for (int j = 0; j < 10; j++) {
                u32 at = row * ROW_BYTES + (j ^ (row / 4 & 1)) * 16 + lane % 4 * 4;
                *reinterpret_cast<u32 *>(memory + at) =
                    T::pack(__fmul_rn(out[i][j][2 * h], inverse), __fmul_rn(out[i][j][2 * h + 1], inverse));
            }
        }
    }
    __syncwarp();
    u16 *to = static_cast<u16 *>(p.out) + (static_cast<u64>(sequence.first) + work.first_row) * p.ldo + work.head * HEAD;
#pragma unroll
    for (u32 i = 0; i < M * 5; i++) {
        u32 chunk = (warp * M * 5 + i) * 32 + lane;
        u32 row = chunk / 10, column = chunk % 10;
        if (work.first_row + row < sequence.rows) {
            *reinterpret_cast<uint4 *>(to + static_cast<u64>(row) * p.ldo + column * 8) =
                *reinterpret_cast<const uint4 *>(memory + (chunk ^ (row / 4 & 1)) * 16);
        }
    }
}

extern __shared__ __align__(128) char shared_memory[];

#define KERNEL(T, type, rows, blocks)                                                                                  \
    extern "C" __global__ __launch_bounds__(128, blocks) void flash_attn_##type##_##rows(                              \
        const __grid_constant__ QwenvlAttention p) {                                                                   \
        flash_attn<T, rows / 64>(p, shared_memory);                                                                    \
    }                                                                                                                  \
    CONFIG(flash_attn_##type##_##rows, Block<rows / 64>::SHARED_BYTES, rows)

KERNEL(BF16, bf16, 128, 2);
KERNEL(F16, f16, 128, 2);
KERNEL(BF16, bf16, 64, 3);
KERNEL(F16, f16, 64, 3);
