// paged_attn: attention of one new token per sequence over its KV pages
// math    out = softmax(q kᵀ / sqrt(128)) v; f32 scores, maxima and sums, weights rounded to the activation type
//         before the second product
// layout  q [n_seqs, ldq], out [n_seqs, ldo]: heads of 128 side by side; pages [2 (k, v), kv_heads, 64 tokens, 128].
//         Keys are the A operand of mma (16 tokens), the up to 8 query heads of a key head the B operand: no padding
//         at 8 heads. For the second product values are A, read transposed, and the weights B
// order   chunks of 256 (or 128) tokens at absolute positions, a quarter to each warp: one maximum and one sum per
//         warp, k16 steps ascending; then three joins of up to 16 parts, each by the largest maximum and sums in
//         order: warps of a chunk, chunks, groups of 16 chunks. Set by the sequence's own length alone
// launch  grid = (n_seqs · kv_heads, any number): a block takes every gridDim.y-th chunk, so that the grid need not
//         know the lengths; block = 128. Lengths and pages come from device memory. 66 (34) KiB dynamic shared
//         memory: 2 (4) blocks per SM, and as many fill the grid
// needs   head_dim 128, pages of 64 tokens, up to 8 query heads per key head; the new token's key and value are in
//         their page; slots beyond the length are never read
// bytes   2·128·2 per token and key head; bound by bandwidth
// target  ≥ 85 % of 1.80 TB/s from 4,096 tokens on
// source  flash decoding (Dao et al. 2023) for splitting the keys; split at fixed places, all else our own
//
// A warp copies, waits for and reads its own quarter only: no barrier until the join. Keys of all its steps are asked for
// at once; the values of a step take the place of its keys as soon as those are used, so that 64 KiB a block stay under
// way. Rows in shared memory are 256 bytes: chunk c (16 bytes) of row r lies at c ^ (r & 7).
#include "attention.cuh"

constexpr u32 HEAD = 128;
constexpr u32 ROW_BYTES = 2 * HEAD;
constexpr u32 STEP_BYTES = 16 * ROW_BYTES; // of the keys, or values, of 16 tokens
constexpr u32 MAX_GROUP = 8;
constexpr u32 HEAD_STRIDE = HEAD + 4; // floats of a head in shared memory; the 4 spread the banks
constexpr u32 FOLD = QWENVL_DECODE_FOLD;

// Σ over the keys so far, of one query head; channels 4·lane.. of `out` in each lane.
struct Part {
    float max, sum; // as in RowPair
    float4 out;
};

__device__ __forceinline__ void add(Part &to, const Part &part) {
    float factor = ptx::exp2(__fsub_rn(part.max, to.max));
    to.sum = __fmaf_rn(part.sum, factor, to.sum);
    to.out.x = __fmaf_rn(part.out.x, factor, to.out.x);
    to.out.y = __fmaf_rn(part.out.y, factor, to.out.y);
    to.out.z = __fmaf_rn(part.out.z, factor, to.out.z);
    to.out.w = __fmaf_rn(part.out.w, factor, to.out.w);
}

// Parts in the workspace: the sums of all, 128 floats a head, then maxima and sums of weights in pairs.
struct Slot {
    float4 *out;
    float2 *max_sum;
};
__device__ __forceinline__ Slot slot(const QwenvlDecodeAttention &p, u32 pair, u32 index, u32 head) {
    u64 at = (static_cast<u64>(pair) * p.max_chunks + index) * p.group + head;
    u64 all = static_cast<u64>(p.n_seqs) * p.kv.kv_heads * p.max_chunks * p.group;
    return {reinterpret_cast<float4 *>(p.partials + at * HEAD), reinterpret_cast<float2 *>(p.partials + all * HEAD) + at};
}
__device__ __forceinline__ void store(const Slot &to, const Part &part) {
    u32 lane = threadIdx.x % 32;
    to.out[lane] = part.out;
    if (lane == 0) {
        *to.max_sum = make_float2(part.max, part.sum);
    }
}
// Joins every `step`-th slot from `first` on, in order. Past L1: other blocks have written them. Loads go out eight at
// a time and without a branch: a chain of one after the other would cost more than the attention itself.
__device__ __forceinline__ Part join_slots(const QwenvlDecodeAttention &p, u32 pair, u32 first, u32 step, u32 count,
                                           u32 head) {
    constexpr u32 BATCH = 8;
    const Slot from = slot(p, pair, first, head);
    const u32 stride = step * p.group, lane = threadIdx.x % 32;
    Part all = {LOWEST, 0.0f, {0.0f, 0.0f, 0.0f, 0.0f}};
    for (u32 i = 0; i < count; i += 32) {
        all.max = fmaxf(all.max, __ldcg(from.max_sum + min(i + lane, count - 1) * stride).x);
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        all.max = fmaxf(all.max, __shfl_xor_sync(0xffffffffu, all.max, lanes));
    }
    for (u32 start = 0; start < count; start += BATCH) {
        const float4 *out_at = from.out + lane;
        float2 max_sum = __ldcg(from.max_sum + min(start + lane, count - 1) * stride);
        float4 out[BATCH];
#pragma unroll
        for (u32 i = 0; i < BATCH; i++) {
            out[i] = __ldcg(out_at + min(start + i, count - 1) * stride * (HEAD / 4));
        }
        // What is beyond the last weighs nothing.
        if (start + lane >= count) {
            max_sum = make_float2(LOWEST, 0.0f);
        }
#pragma unroll
        for (u32 i = 0; i < BATCH; i++) {
            float max = __shfl_sync(0xffffffffu, max_sum.x, i), sum = __shfl_sync(0xffffffffu, max_sum.y, i);
            add(all, {max, sum, out[i]});
        }
    }
    return all;
}

// Whether this block is the last of `count` to come here; then all that the others have written before is seen. The
// counter is zero again afterwards: nothing has to reset it, however many blocks come the next time.
__device__ __forceinline__ bool is_last(u32 *arrivals, u32 count, u32 *flag) {
    __threadfence();
    __syncthreads(); // all of the block has written, and nobody reads what the flag overwrites
    if (threadIdx.x == 0) {
        *flag = atomicInc(arrivals, count - 1) == count - 1;
    }
    __syncthreads();
    bool last = *flag != 0;
    __threadfence();
    return last;
}

template <class T>
__device__ __forceinline__ void finish(const QwenvlDecodeAttention &p, u32 sequence, u32 kv_head, u32 head, const Part &all) {
    const u32 lane = threadIdx.x % 32, query_head = kv_head * p.group + head;
    float inverse = ptx::reciprocal(all.sum);
    u32 low = T::pack(__fmul_rn(all.out.x, inverse), __fmul_rn(all.out.y, inverse));
    u32 high = T::pack(__fmul_rn(all.out.z, inverse), __fmul_rn(all.out.w, inverse));
    u16 *out = static_cast<u16 *>(p.out) + static_cast<u64>(sequence) * p.ldo + query_head * HEAD;
    reinterpret_cast<uint2 *>(out)[lane] = make_uint2(low, high);
}

// One chunk of `64 · STEPS` tokens of a sequence and key head.
template <class T, int STEPS>
__device__ __forceinline__ void attend(const QwenvlDecodeAttention &p, u32 sequence, u32 kv_head, u32 chunk, u32 pages,
                                       u32 length, char *memory) {
    constexpr u32 WARP_TOKENS = 16 * STEPS, CHUNK = 4 * WARP_TOKENS;
    const u32 chunks = (length + CHUNK - 1) / CHUNK;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = p.group;
    // Shared memory: the queries [8, 128], then a ring for each warp, in the end its part of the result.
    const u32 q_at = ptx::shared_address(memory);
    const u32 ring = q_at + MAX_GROUP * ROW_BYTES + warp * STEPS * STEP_BYTES;
    char *own = memory + MAX_GROUP * ROW_BYTES + warp * STEPS * STEP_BYTES;

    const u32 first = chunk * CHUNK + warp * WARP_TOKENS;
    const u32 page = p.page_table[pages + min(first, length - 1) / KEYS];
    const u16 *keys = static_cast<const u16 *>(p.kv.pages) +
                      (page * p.kv.page_stride + (kv_head * KEYS + first % KEYS) * HEAD + lane * 8);
    const u16 *values = keys + p.kv.kv_heads * (KEYS * HEAD);
    // A lane copies chunk lane % 16 of every second row.
    const int left = static_cast<int>(length) - static_cast<int>(first + lane / 16);
    const u32 place = lane / 16 * ROW_BYTES + (lane % 16 ^ lane / 16) * 16;
    auto copy = [&](int step, const u16 *from) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            ptx::copy16(ring + step * STEP_BYTES + i * 2 * ROW_BYTES + (place ^ i % 4 * 32),
                        from + (step * 16 + i * 2) * HEAD, step * 16 + i * 2 < left ? 16 : 0);
        }
        ptx::copy_commit();
    };
    {
        u32 head = threadIdx.x / 16;
        bool there = head < group;
        const u16 *q = static_cast<const u16 *>(p.q) + static_cast<u64>(sequence) * p.ldq +
                       (kv_head * group + (there ? head : 0)) * HEAD + threadIdx.x % 16 * 8;
        ptx::copy16(q_at + head * ROW_BYTES + (threadIdx.x % 16 ^ head) * 16, q, there ? 16 : 0);
    }
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        copy(step, keys);
    }

    // Where a lane reads its row of the four 8x8 matrices of 16 tokens and 16 channels, in the order of an A operand: of
    // keys the two rows of a chunk first; of values, read transposed, the two chunks of a row. The next 16 channels are
    // at the address XOR 32.
    const u32 tall = ring + lane % 16 * ROW_BYTES + (lane / 16 ^ lane % 8) * 16;
    const u32 wide = ring + (lane / 16 * 8 + lane % 8) * ROW_BYTES + ((lane / 8 & 1) ^ lane % 8) * 16;
    ptx::copy_wait<STEPS - 1>();
    __syncthreads(); // the queries are here, and the warp's first keys
    u32 q[4][4];     // two k16 steps each
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        ptx::load_matrix4(q[i], q_at + lane % 8 * ROW_BYTES + ((i * 4 + lane / 8) ^ lane % 8) * 16);
    }
    float score[STEPS][4]; // tokens g, g, g + 8, g + 8; heads 2t, 2t + 1
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        if (step > 0) {
            ptx::copy_wait<STEPS - 1>();
            __syncwarp();
        }
        score[step][0] = score[step][1] = score[step][2] = score[step][3] = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 k[4];
            ptx::load_matrix4(k, (tall ^ i % 4 * 32) + i / 4 * 128 + step * STEP_BYTES);
            T::mma(score[step], k, q[i / 2][i % 2 * 2], q[i / 2][i % 2 * 2 + 1]);
        }
        __syncwarp(); // all lanes have their keys
        copy(step, values);
    }

    float max[2], sum[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float most = HIDDEN;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
#pragma unroll
            for (int c = h; c < 4; c += 2) {
                if (first + step * 16 + c / 2 * 8 + lane / 4 >= length) {
                    score[step][c] = HIDDEN;
                }
                most = fmaxf(most, score[step][c]);
            }
        }
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 4));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 8));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 16));
        max[h] = fmaxf(__fmul_rn(most, p.scale_log2), LOWEST);
        sum[h] = 0.0f;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
#pragma unroll
            for (int c = h; c < 4; c += 2) {
                score[step][c] = ptx::exp2(__fmaf_rn(score[step][c], p.scale_log2, -max[h]));
                sum[h] = __fadd_rn(sum[h], score[step][c]);
            }
        }
        sum[h] = __fadd_rn(sum[h], __shfl_xor_sync(0xffffffffu, sum[h], 4));
        sum[h] = __fadd_rn(sum[h], __shfl_xor_sync(0xffffffffu, sum[h], 8));
        sum[h] = __fadd_rn(sum[h], __shfl_xor_sync(0xffffffffu, sum[h], 16));
    }

    float out[8][4]; // channels g, g, g + 8, g + 8 of each 16; heads 2t, 2t + 1
#pragma unroll
    for (int i = 0; i < 8; i++) {
        out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        if (step == 0) {
            ptx::copy_wait<STEPS - 1>();
        } else if (step == 1) {
            ptx::copy_wait<STEPS - 2>();
        } else if (step == 2) {
            ptx::copy_wait<1>();
        } else {
            ptx::copy_wait<0>();
        }
        __syncwarp();
        // Tokens x heads, as the first product leaves them, to heads x tokens, as B wants them.
        u32 low = ptx::transpose(T::pack(score[step][0], score[step][1]));
        u32 high = ptx::transpose(T::pack(score[step][2], score[step][3]));
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 v[4];
            ptx::load_matrix4_transposed(v, (wide ^ i % 4 * 32) + i / 4 * 128 + step * STEP_BYTES);
            T::mma(out[i], v, low, high);
        }
    }

    __syncwarp(); // all lanes have their values
    float *part = reinterpret_cast<float *>(own);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        u32 head = lane % 4 * 2 + h;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            part[head * HEAD_STRIDE + i * 16 + lane / 4] = out[i][h];
            part[head * HEAD_STRIDE + i * 16 + 8 + lane / 4] = out[i][h + 2];
        }
        if (lane < 4) {
            reinterpret_cast<float2 *>(part + head * HEAD_STRIDE + HEAD)[0] = make_float2(max[h], sum[h]);
        }
    }
    __syncthreads();

    // From here on a warp has the heads warp and warp + 4, four channels a lane.
    const u32 pair = sequence * p.kv.kv_heads + kv_head;
    const u32 supers = (chunks + FOLD - 1) / FOLD, max_supers = (p.max_chunks + FOLD - 1) / FOLD;
    for (u32 head = warp; head < group; head += 4) {
        auto from = [&](u32 i) {
            return reinterpret_cast<const float *>(memory + MAX_GROUP * ROW_BYTES + i * STEPS * STEP_BYTES) +
                   head * HEAD_STRIDE;
        };
        Part all = {LOWEST, 0.0f, {0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            all.max = fmaxf(all.max, from(i)[HEAD]);
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            add(all, {from(i)[HEAD], from(i)[HEAD + 1], reinterpret_cast<const float4 *>(from(i))[lane]});
        }
        if (chunks == 1) {
            finish<T>(p, sequence, kv_head, head, all);
        } else {
            store(slot(p, pair, chunk, head), all);
        }
    }
    if (chunks == 1) {
        return;
    }
    u32 *arrivals = p.arrivals + pair * (max_supers + 1), *flag = reinterpret_cast<u32 *>(memory);
    const u32 super = chunk / FOLD, in_super = min(FOLD, chunks - super * FOLD);
    if (!is_last(arrivals + super, in_super, flag)) {
        return;
    }
    for (u32 head = warp; head < group; head += 4) {
        Part all = join_slots(p, pair, super * FOLD, 1, in_super, head);
        if (supers == 1) {
            finish<T>(p, sequence, kv_head, head, all);
        } else {
            // In place of the first of them: nobody else reads this head of it.
            store(slot(p, pair, super * FOLD, head), all);
        }
    }
    if (supers == 1 || !is_last(arrivals + max_supers, supers, flag)) {
        return;
    }
    for (u32 head = warp; head < group; head += 4) {
        finish<T>(p, sequence, kv_head, head, join_slots(p, pair, 0, FOLD, supers, head));
    }
}

template <class T, int STEPS>
__device__ __forceinline__ void paged_attn(const QwenvlDecodeAttention &p, u32 pair, u32 first, u32 stride, char *memory) {
    constexpr u32 CHUNK = 64 * STEPS;
    const u32 sequence = pair / p.kv.kv_heads, kv_head = pair % p.kv.kv_heads;
    const QwenvlSequence s = p.sequences[sequence];
    const u32 length = s.past + s.rows;
    if (length == 0 && first == 0) { // no sequence: zeros, so that what reads whole batches reads numbers
        for (u32 head = threadIdx.x / 32; head < p.group; head += 4) {
            finish<T>(p, sequence, kv_head, head, {0.0f, 1.0f, {0.0f, 0.0f, 0.0f, 0.0f}});
        }
    }
    for (u32 chunk = first; chunk * CHUNK < length; chunk += stride) {
        attend<T, STEPS>(p, sequence, kv_head, chunk, s.pages, length, memory);
        __syncthreads(); // shared memory is free again
    }
}

extern __shared__ __align__(128) char shared_memory[];

#define PAGED_ATTN(name, T, STEPS)                                                                                     \
    extern "C" __global__ __launch_bounds__(128, 4) void name(const __grid_constant__ QwenvlDecodeAttention p) {       \
        paged_attn<T, STEPS>(p, blockIdx.x, blockIdx.y, gridDim.y, shared_memory);                                     \
    }                                                                                                                  \
    CONFIG(name, MAX_GROUP * ROW_BYTES + 4 * STEPS * STEP_BYTES, 64 * STEPS)
PAGED_ATTN(paged_attn_256_bf16, BF16, 4);
PAGED_ATTN(paged_attn_256_f16, F16, 4);
PAGED_ATTN(paged_attn_128_bf16, BF16, 2);
PAGED_ATTN(paged_attn_128_f16, F16, 2);
