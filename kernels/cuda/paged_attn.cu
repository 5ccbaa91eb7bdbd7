// paged_attn: attention of one new token per sequence over its KV pages
// math    softmax(q Kᵀ / sqrt(128)) V for the query heads of a key head at once, f32 statistics; p is rounded to T
//         for P·V, its sum is not
// order   the context is cut into chunks of `chunk_tokens` at absolute positions (the plan's constant). In a chunk
//         warp w takes tokens 16w … 16w + 15 of each 64 in ascending order; four warps join in order; 16 chunks join
//         (outputs in order, sums by a fixed tree), then up to 16 of those. Nothing depends on the batch.
// layout  keys as the A operand (16 tokens x 16 channels), the group's queries as B: 8 columns for 6, 7 or 8 heads.
//         P is transposed in registers for Oᵀ = Vᵀ P. Shared memory: chunk c of row r at c ^ (r & 7).
// launch  grid = (max_chunks, kv_heads, n_seqs), surplus blocks leave; 128 threads, 64 KiB: two stages of 64 tokens,
//         2 blocks per SM. A warp copies what it reads: no barrier until the chunk ends.
//         The last block of 16 chunks to finish joins them, the last of those joins the rest: nobody waits.
// needs   heads of 128; at most 8 query heads per key head, at most 256 chunks; lengths and page tables are read from device memory
// bytes   512 per token and key head; partial sums 3 % of that
// target  ≥ 85 % of 1.80 TB/s at 4k tokens
// source  this project's
#include "common.cuh"

constexpr u32 D = 128, TILE = 64, DECODE_THREADS = 128, STAGES = 2, SUPER = 16, MAX_GROUP = 8;
constexpr u32 ROW_BYTES = D * 2, STAGE_BYTES = 2 * TILE * ROW_BYTES;
constexpr u32 DECODE_SMEM_BYTES = STAGES * STAGE_BYTES;
static_assert(MAX_GROUP * SUPER == DECODE_THREADS, "a thread for each head and result of a join");

template <class T> struct PagedAttention {
    const QwenvlDecodeAttention &p;
    u8 *smem;
    u32 smem_at, warp, lane, g, t;
    u32 chunk, kv_head, seq;
    QwenvlSequence sequence;
    u32 n_keys, n_chunks;

    static __device__ __forceinline__ u32 place(u32 row, u32 c) { return row * ROW_BYTES + (c ^ (row & 7)) * 16; }

    __device__ __forceinline__ PagedAttention(const QwenvlDecodeAttention &p, u8 *smem, u32 chunk, u32 kv_head, u32 seq)
        : p(p), smem(smem), chunk(chunk), kv_head(kv_head), seq(seq) {
        smem_at = ptx::shared_address(smem);
        warp = threadIdx.x / 32;
        lane = threadIdx.x % 32;
        g = lane / 4;
        t = lane % 4;
        sequence = p.sequences[seq];
        n_keys = sequence.rows == 0 ? 0 : sequence.past + 1;
        n_chunks = (n_keys + p.chunk_tokens - 1) / p.chunk_tokens;
    }

    // This warp's 16 keys and values of a tile; those beyond the last are zero.
    __device__ __forceinline__ void fetch(u32 tile, u32 stage) const {
        u32 page = p.page_table[sequence.pages + tile];
        u32 first = warp * 16;
#pragma unroll
        for (int value = 0; value < 2; value++) {
            const u16 *from = static_cast<const u16 *>(p.kv.pages) + kv_at(p.kv, page, value, kv_head, first) + lane * 8;
            u32 to = smem_at + stage * STAGE_BYTES + value * TILE * ROW_BYTES + first * ROW_BYTES;
            u32 row = tile * TILE + first + lane / 16;
#pragma unroll
            for (u32 pass = 0; pass < 8; pass++) {
                // Unused slots are inside the page: named, not read.
                ptx::copy16(to + place(pass * 2 + lane / 16, lane % 16), from + pass * 2 * D,
                            row + pass * 2 < n_keys ? 16 : 0);
            }
        }
    }

    // One group of partial results: of each head its largest score, its sum, its output.
    __device__ __forceinline__ float *slot(u32 index) const {
        u64 at = static_cast<u64>(seq * p.kv.kv_heads + kv_head) * p.max_chunks + index;
        return p.partials + at * p.group * (D + 2);
    }

    // Joins up to 16 results, `stride` slots apart; thread d has channel d. Factors and sums first, a thread for each
    // head and result (sums by a fixed tree), so that the loads of the outputs wait for nothing.
    __device__ __forceinline__ void fold(u32 first, u32 count, u32 stride, float (&m)[MAX_GROUP], float (&l)[MAX_GROUP],
                                         float (&o)[MAX_GROUP]) const {
        float *factor_of = reinterpret_cast<float *>(smem) + 32; // [8 heads, 16]
        float *m_of = factor_of + MAX_GROUP * SUPER, *l_of = m_of + MAX_GROUP;
        u32 mine = threadIdx.x / SUPER, result = threadIdx.x % SUPER;
        bool there = mine < p.group && result < count;
        const float *from = slot(first + (there ? result : 0) * stride) + (there ? mine : 0) * (D + 2);
        float score = there ? __ldcg(from) : -INFINITY, sum = there ? __ldcg(from + 1) : 0.0f;
        float largest = score;
#pragma unroll
        for (int lanes = 1; lanes < static_cast<int>(SUPER); lanes *= 2) {
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
        }
        float factor = there ? ptx::exp2((score - largest) * p.scale_log2) : 0.0f;
        sum *= factor;
#pragma unroll
        for (int lanes = 1; lanes < static_cast<int>(SUPER); lanes *= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
        }
        __syncthreads();
        factor_of[threadIdx.x] = factor;
        if (result == 0) {
            m_of[mine] = largest;
            l_of[mine] = sum;
        }
        __syncthreads();
#pragma unroll
        for (u32 head = 0; head < MAX_GROUP; head++) {
            m[head] = m_of[head];
            l[head] = l_of[head];
            o[head] = 0.0f;
        }
        // Four results at a time, all loads before the first use. Those beyond the last have the factor zero.
#pragma unroll 1
        for (u32 i = 0; i < count; i += 4) {
            float x[4][MAX_GROUP];
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const float *output = slot(first + min(i + j, count - 1) * stride) + 2 + threadIdx.x;
#pragma unroll
                for (u32 head = 0; head < MAX_GROUP; head++) {
                    x[j][head] = __ldcg(output + min(head, p.group - 1) * (D + 2));
                }
            }
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
#pragma unroll
                for (u32 head = 0; head < MAX_GROUP; head++) {
                    o[head] = __fmaf_rn(factor_of[head * SUPER + i + j], x[j][head], o[head]);
                }
            }
        }
    }

    __device__ __forceinline__ void keep(u32 index, const float (&m)[MAX_GROUP], const float (&l)[MAX_GROUP],
                                         const float (&o)[MAX_GROUP]) const {
        float *to = slot(index);
#pragma unroll
        for (u32 head = 0; head < MAX_GROUP; head++) {
            if (head < p.group) {
                if (threadIdx.x == 0) {
                    to[head * (D + 2)] = m[head];
                    to[head * (D + 2) + 1] = l[head];
                }
                to[head * (D + 2) + 2 + threadIdx.x] = o[head];
            }
        }
    }

    __device__ __forceinline__ void store(const float (&l)[MAX_GROUP], const float (&o)[MAX_GROUP]) const {
        u16 *out = static_cast<u16 *>(p.out) + static_cast<u64>(sequence.first) * p.ldq + kv_head * p.group * D;
#pragma unroll
        for (u32 head = 0; head < MAX_GROUP; head++) {
            if (head < p.group) {
                out[head * D + threadIdx.x] = to_16bit<T>(o[head] / l[head]);
            }
        }
    }

    // Whether this block is the last of `count` to come to `counter`.
    __device__ __forceinline__ bool last_of(u32 *counter, u32 count) const {
        u32 *arrived = reinterpret_cast<u32 *>(smem);
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            *arrived = atomicAdd(counter, 1);
        }
        __syncthreads();
        bool last = *arrived == count - 1;
        __syncthreads();
        if (last) {
            __threadfence();
            if (threadIdx.x == 0) {
                *counter = 0; // for the next launch: nobody else comes
            }
        }
        return last;
    }

    __device__ __forceinline__ void run() {
        if (chunk >= n_chunks) {
            return;
        }
        u32 tile = chunk * p.chunk_tokens / TILE;
        u32 end = min((chunk + 1) * p.chunk_tokens, n_keys);
        u32 last_tile = (end + TILE - 1) / TILE;
        fetch(tile, 0);
        ptx::copy_commit();

        u32 q[D / 16][2];
        const u16 *from = static_cast<const u16 *>(p.q) + static_cast<u64>(sequence.first) * p.ldq +
                          (kv_head * p.group + g) * D + 2 * t;
#pragma unroll
        for (u32 step = 0; step < D / 16; step++) {
            bool there = g < p.group;
            q[step][0] = there ? *reinterpret_cast<const u32 *>(from + step * 16) : 0;
            q[step][1] = there ? *reinterpret_cast<const u32 *>(from + step * 16 + 8) : 0;
        }
        float o[D / 16][4];
#pragma unroll
        for (int i = 0; i < D / 4; i++) {
            o[i / 4][i % 4] = 0.0f;
        }
        float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f}; // of heads 2t and 2t + 1
        u32 stage = 0;
#pragma unroll 1
        for (; tile < last_tile; tile++) {
            if (tile + 1 < last_tile) {
                fetch(tile + 1, stage ^ 1);
            }
            ptx::copy_commit();
            ptx::copy_wait<1>();
            __syncwarp();
            u32 k_at = smem_at + stage * STAGE_BYTES, v_at = k_at + TILE * ROW_BYTES;
            float s[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (u32 step = 0; step < D / 16; step++) {
                u32 k[4];
                ptx::load_matrix4(k, k_at + place(warp * 16 + lane % 16, step * 2 + lane / 16));
                T::mma(s, k, q[step][0], q[step][1]);
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                u32 key = tile * TILE + warp * 16 + e / 2 * 8 + g;
                s[e] = key < n_keys ? s[e] : -INFINITY;
            }
            float factor[2];
#pragma unroll
            for (int c = 0; c < 2; c++) {
                float x = fmaxf(s[c], s[2 + c]);
                x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 4));
                x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 8));
                x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 16));
                x = fmaxf(x, largest[c]);
                // A warp may not have met a key yet.
                float at = x == -INFINITY ? 0.0f : x;
                factor[c] = ptx::exp2((largest[c] - at) * p.scale_log2);
                largest[c] = x;
                s[c] = ptx::exp2(__fmaf_rn(s[c], p.scale_log2, -at * p.scale_log2));
                s[2 + c] = ptx::exp2(__fmaf_rn(s[2 + c], p.scale_log2, -at * p.scale_log2));
                sum[c] = __fmaf_rn(sum[c], factor[c], s[c] + s[2 + c]);
            }
            u32 b0 = ptx::transpose(T::pack(s[0], s[1])), b1 = ptx::transpose(T::pack(s[2], s[3]));
#pragma unroll
            for (u32 i = 0; i < D / 16; i++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    o[i][e] *= factor[e % 2];
                }
                u32 v[4];
                ptx::load_matrix4_transposed(
                    v, v_at + place(warp * 16 + lane / 16 * 8 + lane % 8, i * 2 + lane / 8 % 2));
                T::mma(o[i], v, b0, b1);
            }
            __syncwarp(); // before the stage is filled anew
            stage ^= 1;
        }
        ptx::copy_wait<0>();
        join(o, largest, sum);
    }

    // The four warps in order, then the chunks.
    __device__ __forceinline__ void join(const float (&o)[D / 16][4], const float (&largest)[2], float (&sum)[2]) {
        __syncthreads();
        float *m_of = reinterpret_cast<float *>(smem); // [4 warps, 8 heads]
        float *l_of = m_of + 32;
        float *o_of = l_of + 32; // [4 warps, 8 heads, D + 4]
#pragma unroll
        for (int c = 0; c < 2; c++) {
            sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], 4);
            sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], 8);
            sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], 16);
            if (g == 0) {
                m_of[warp * 8 + 2 * t + c] = largest[c];
                l_of[warp * 8 + 2 * t + c] = sum[c];
            }
        }
#pragma unroll
        for (u32 i = 0; i < D / 16; i++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                o_of[(warp * 8 + 2 * t + e % 2) * (D + 4) + i * 16 + e / 2 * 8 + g] = o[i][e];
            }
        }
        __syncthreads();
        float m[MAX_GROUP], l[MAX_GROUP], out[MAX_GROUP];
#pragma unroll
        for (u32 head = 0; head < MAX_GROUP; head++) {
            m[head] = fmaxf(fmaxf(m_of[head], m_of[8 + head]), fmaxf(m_of[16 + head], m_of[24 + head]));
            l[head] = out[head] = 0.0f;
#pragma unroll
            for (int w = 0; w < 4; w++) {
                float factor = ptx::exp2((m_of[w * 8 + head] - m[head]) * p.scale_log2);
                l[head] = __fmaf_rn(factor, l_of[w * 8 + head], l[head]);
                out[head] = __fmaf_rn(factor, o_of[(w * 8 + head) * (D + 4) + threadIdx.x], out[head]);
            }
        }
        if (n_chunks == 1) {
            return store(l, out);
        }
        keep(chunk, m, l, out);
        u32 supers = (n_chunks + SUPER - 1) / SUPER, super = chunk / SUPER;
        u32 max_supers = (p.max_chunks + SUPER - 1) / SUPER;
        u32 *counters = p.arrivals + (seq * p.kv.kv_heads + kv_head) * (max_supers + 1);
        u32 count = min(n_chunks - super * SUPER, SUPER);
        if (!last_of(counters + super, count)) {
            return;
        }
        fold(super * SUPER, count, 1, m, l, out);
        if (supers > 1) {
            __syncthreads(); // all have read what is overwritten
            keep(super * SUPER, m, l, out);
            if (!last_of(counters + max_supers, supers)) {
                return;
            }
            fold(0, supers, SUPER, m, l, out);
        }
        store(l, out);
    }
};

#define PAGED_KERNEL(name, T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(DECODE_THREADS, 2)                                                    \
        name(const __grid_constant__ QwenvlDecodeAttention p) {                                                        \
        extern __shared__ __align__(128) u8 smem[];                                                                    \
        PagedAttention<T>(p, smem, blockIdx.x, blockIdx.y, blockIdx.z).run();                                          \
    }                                                                                                                  \
    extern "C" __device__ u32 name##_config[2] = {DECODE_SMEM_BYTES, TILE};
PAGED_KERNEL(paged_attn_bf16, BF16)
PAGED_KERNEL(paged_attn_f16, F16)
