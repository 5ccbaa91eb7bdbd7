// paged_attn: attention of one new token per sequence over its KV pages
// math    out = softmax(q kᵀ / sqrt(128)) v; f32 scores, maxima and sums, weights rounded to the activation type
//         before the second product
// layout  q [n_seqs, ldq], out [n_seqs, ldo]: heads of 128 side by side; pages [2 (k, v), kv_heads, 64 tokens, 128].
//         Keys are the A operand of mma (16 tokens), the up to 8 query heads of a key head the B operand: no padding
//         at 8 heads. For the second product values are A, channels by tokens, and the weights B
// order   a sequence has splits of 64·n tokens, n the least with at most `max_splits` of them, 256 tokens or more; a
//         split has units of 32 tokens, of which warp w takes w, w + 8, ...: online softmax over units, k16 steps
//         ascending within. Then two joins, each by the largest maximum: warps of a split, splits. All is set by the
//         sequence's own length and `max_splits`, which is the plan's
// launch  grid = (n_seqs · kv_heads, any number): a block takes every gridDim.y-th split, so that the grid need not
//         know the lengths; block = 256, 2 blocks per SM. Lengths and pages come from device memory
// needs   head_dim 128, pages of 64 tokens, up to 8 query heads per key head; the new token's key and value are in
//         their page; slots beyond the length are never read
// bytes   2·128·2 per token and key head; bound by bandwidth
// target  ≥ 85 % of 1.80 TB/s from 6,144 tokens of 8 key heads on; about 2.5 us are start, end and join
// source  flash decoding (Dao et al. 2023) for splitting the keys; all else our own
//
// Keys and values go from memory to the registers that mma reads, past shared memory: the order of channels within a
// product is free, so that a lane's eight neighbours serve two mma, and values need one permutation of bytes for each
// register. A warp has keys or values of 32 tokens under way all the time, 8 KiB: 128 KiB per SM. That takes 128 registers,
// so that what a warp needs once a unit lies in shared memory or is worked out again.
#include "attention.cuh"

constexpr u32 HEAD = 128;
constexpr u32 MAX_GROUP = 8;
constexpr u32 WARPS = THREADS / 32;
constexpr u32 UNIT = 32;              // tokens, two steps of mma
constexpr u32 HEAD_STRIDE = HEAD + 4; // floats of a head in shared memory; the 4 spread the banks
constexpr u32 MOST_SPLITS = QWENVL_DECODE_SPLITS;
static_assert(MAX_GROUP == WARPS && MOST_SPLITS == 64 && KEYS % UNIT == 0);

// What a block works on. In shared memory: it would take registers from the main loop.
struct Split {
    u32 pair, kv_head, pages;
    u32 index, count;    // of the splits of the sequence
    u32 first, end;      // tokens
};

struct Shared {
    uint4 q[4][32]; // as a lane wants it of each 32 channels
    float parts[WARPS][MAX_GROUP][HEAD_STRIDE];
    float2 max_sum[2][THREADS]; // of the heads 2t and 2t + 1 so far, of the sum a lane's part
    Split split;
    u32 flag;
};

// Σ over some keys, of one query head; channels 4·lane.. of `out` in each lane.
struct Part {
    float max, sum; // as in RowPair
    float4 out;
};

__device__ __forceinline__ void add(float4 &to, const float4 &out, float factor) {
    to.x = __fmaf_rn(out.x, factor, to.x);
    to.y = __fmaf_rn(out.y, factor, to.y);
    to.z = __fmaf_rn(out.z, factor, to.z);
    to.w = __fmaf_rn(out.w, factor, to.w);
}

// Parts in the workspace: the sums of all, 128 floats a head, then maxima and sums of weights in pairs.
struct Slot {
    float4 *out;
    float2 *max_sum;
};
__device__ __forceinline__ Slot slot(const QwenvlDecodeAttention &p, u32 pair, u32 split, u32 head) {
    u64 at = (static_cast<u64>(pair) * p.slots + split) * p.group + head;
    u64 all = static_cast<u64>(p.n_seqs) * p.kv.kv_heads * p.slots * p.group;
    return {reinterpret_cast<float4 *>(p.partials + at * HEAD), reinterpret_cast<float2 *>(p.partials + all * HEAD) + at};
}

// Joins the splits of a head, in order; past L1, as other blocks have written them. Loads go out several at a time and
// without a branch: a chain of one after the other would cost more than the attention itself.
__device__ __forceinline__ Part join_slots(const QwenvlDecodeAttention &p, u32 pair, u32 count, u32 head) {
    constexpr u32 BATCH = 7; // eight would not fit beside the rest
    const Slot from = slot(p, pair, 0, head);
    const u32 lane = threadIdx.x % 32;
    float2 of[2]; // of split `lane`, and of that 32 later
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        of[i] = __ldcg(from.max_sum + min(i * 32 + lane, count - 1) * p.group);
    }
    Part all = {LOWEST, 0.0f, {0.0f, 0.0f, 0.0f, 0.0f}};
    float factor[2];
    for (u32 start = 0; start < count; start += BATCH) {
        float4 out[BATCH];
#pragma unroll
        for (u32 i = 0; i < BATCH; i++) {
            out[i] = __ldcg(from.out + lane + min(start + i, count - 1) * p.group * (HEAD / 4));
        }
        if (start == 0) {
            all.max = fmaxf(of[0].x, of[1].x);
#pragma unroll
            for (int lanes = 16; lanes > 0; lanes /= 2) {
                all.max = fmaxf(all.max, __shfl_xor_sync(0xffffffffu, all.max, lanes));
            }
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                // What is beyond the last weighs nothing.
                factor[i] = i * 32 + lane < count ? ptx::exp2(__fsub_rn(of[i].x, all.max)) : 0.0f;
            }
            all.sum = warp_sum(__fmaf_rn(of[1].y, factor[1], __fmul_rn(of[0].y, factor[0])));
        }
#pragma unroll
        for (u32 i = 0; i < BATCH; i++) {
            add(all.out, out[i], __shfl_sync(0xffffffffu, start + i < 32 ? factor[0] : factor[1], (start + i) % 32));
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
__device__ __forceinline__ void finish(const QwenvlDecodeAttention &p, u32 pair, u32 head, const Part &all) {
    const u32 sequence = pair / p.kv.kv_heads, query_head = pair % p.kv.kv_heads * p.group + head;
    const u32 lane = threadIdx.x % 32;
    float inverse = ptx::reciprocal(all.sum);
    u32 low = T::pack(__fmul_rn(all.out.x, inverse), __fmul_rn(all.out.y, inverse));
    u32 high = T::pack(__fmul_rn(all.out.z, inverse), __fmul_rn(all.out.w, inverse));
    u16 *out = static_cast<u16 *>(p.out) + static_cast<u64>(sequence) * p.ldo + query_head * HEAD;
    reinterpret_cast<uint2 *>(out)[lane] = make_uint2(low, high);
}

// Leaves a warp's sums in shared memory. Channels 4c.. of a head lie at c ^ (c / 2 & 1): so that lanes write to different
// banks.
__device__ __forceinline__ void store_part(Shared &shared, const float (&out)[8][4]) {
    const u32 thread = ptx::opaque(threadIdx.x), warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float2 all = shared.max_sum[h][thread];
        all.y = __fadd_rn(all.y, __shfl_xor_sync(0xffffffffu, all.y, 4));
        all.y = __fadd_rn(all.y, __shfl_xor_sync(0xffffffffu, all.y, 8));
        all.y = __fadd_rn(all.y, __shfl_xor_sync(0xffffffffu, all.y, 16));
        float *part = shared.parts[warp][t * 2 + h];
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            const u32 half = c / 2, odd = c % 2;
            const u32 at = half * 16 + g * 2 + (odd ^ (g & 1));
            const int i = odd * 4;
            reinterpret_cast<float4 *>(part)[at] = make_float4(out[i][half * 2 + h], out[i + 1][half * 2 + h],
                                                               out[i + 2][half * 2 + h], out[i + 3][half * 2 + h]);
        }
        if (g == 0) {
            *reinterpret_cast<float2 *>(part + HEAD) = all;
        }
    }
}

// The warp's part of a split, into shared memory.
template <class T> __device__ __forceinline__ void attend(const QwenvlDecodeAttention &p, Shared &shared) {
    const u32 thread = ptx::opaque(threadIdx.x);
    auto page_of = [&](u32 token) { return p.page_table[shared.split.pages + token / KEYS]; };
    auto unit_at = [&](u32 page, u32 token) {
        const u32 row = shared.split.kv_head * KEYS + token % KEYS;
        return static_cast<const u16 *>(p.kv.pages) + (page * p.kv.page_stride + row * HEAD);
    };

    // Tokens of a unit from the 16·step-th on; beyond the last of the sequence that one again. Keys: tokens g and g + 8,
    // channels 8t.. of each 32. Values: tokens 2t, 2t + 1, 2t + 8, 2t + 9, channels 8g.. of each 64.
    auto load_keys = [&](uint4 (&to)[8], const u16 *unit, u32 step, u32 last) {
        const u32 lane = ptx::lane();
        const u16 *from = unit + lane % 4 * 8;
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u16 *row = from + ptx::opaque(min(step * 16 + i * 8 + lane / 4, last)) * HEAD;
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                to[i * 4 + j] = ptx::load16_global(row + j * 32);
            }
        }
    };
    auto load_values = [&](uint4 (&to)[8], const u16 *unit, u32 step, u32 last) {
        const u32 lane = ptx::lane();
        const u16 *from = unit + p.kv.kv_heads * (KEYS * HEAD) + lane / 4 * 8;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u16 *row = from + ptx::opaque(min(step * 16 + i / 2 * 8 + lane % 4 * 2 + i % 2, last)) * HEAD;
            to[2 * i] = ptx::load16_global(row);
            to[2 * i + 1] = ptx::load16_global(row + 64);
        }
    };

    u32 first = shared.split.first + thread / 32 * UNIT, end = shared.split.end;
    const u16 *unit = nullptr;
    uint4 x[8], y[8]; // keys, then values, of the steps of a unit
    if (first < end) {
        unit = unit_at(page_of(first), first);
        load_keys(x, unit, 0, end - 1 - first);
        load_keys(y, unit, 1, end - 1 - first);
    }
    if (thread < 128) {
        const u32 warp = thread / 32, lane = thread % 32, head = lane / 4;
        const u16 *q = static_cast<const u16 *>(p.q) + static_cast<u64>(shared.split.pair / p.kv.kv_heads) * p.ldq +
                       (shared.split.kv_head * p.group + min(head, p.group - 1)) * HEAD + warp * 32 + lane % 4 * 8;
        shared.q[warp][lane] = *reinterpret_cast<const uint4 *>(q); // beyond the group any head: nobody reads its result
    }
    __syncthreads();

    shared.max_sum[0][thread] = shared.max_sum[1][thread] = make_float2(LOWEST, 0.0f);
    float out[8][4]; // channels 8g + i, 8g + i, 64 + 8g + i, 64 + 8g + i; heads 2t, 2t + 1
#pragma unroll
    for (int i = 0; i < 8; i++) {
        out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0.0f;
    }
    while (first < (end = shared.split.end)) {
        const u32 last = end - 1 - first, next = first + WARPS * UNIT;
        float score[2][4]; // tokens g, g, g + 8, g + 8 of a step; heads 2t, 2t + 1
        auto multiply_keys = [&](float (&s)[4], const uint4 (&k)[8]) {
            s[0] = s[1] = s[2] = s[3] = 0.0f;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint4 q = ptx::load16(ptx::shared_address(&shared.q[i][thread % 32]));
                const u32 low[4] = {k[i].x, k[4 + i].x, k[i].y, k[4 + i].y};
                const u32 high[4] = {k[i].z, k[4 + i].z, k[i].w, k[4 + i].w};
                T::mma(s, low, q.x, q.y);
                T::mma(s, high, q.z, q.w);
            }
        };
        multiply_keys(score[0], x);
        load_values(x, unit, 0, last);
        multiply_keys(score[1], y);
        load_values(y, unit, 1, last);
        const u32 next_page = next < end ? page_of(next) : 0;

#pragma unroll
        for (int h = 0; h < 2; h++) {
            float most = HIDDEN;
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                float &s = score[c / 2][c % 2 * 2 + h];
                if (c * 8 + thread % 32 / 4 > last) {
                    s = HIDDEN;
                }
                most = fmaxf(most, s);
            }
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 4));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 8));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 16));
            const float2 old = shared.max_sum[h][thread];
            const float max = fmaxf(old.x, __fmul_rn(most, p.scale_log2)), factor = ptx::exp2(__fsub_rn(old.x, max));
            float sum = __fmul_rn(old.y, factor);
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                float &s = score[c / 2][c % 2 * 2 + h];
                s = ptx::exp2(__fmaf_rn(s, p.scale_log2, -max));
                sum = __fadd_rn(sum, s);
            }
            shared.max_sum[h][thread] = make_float2(max, sum);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                out[i][h] = __fmul_rn(out[i][h], factor);
                out[i][2 + h] = __fmul_rn(out[i][2 + h], factor);
            }
        }
        // Tokens x heads, as the first product leaves them, to heads x tokens, as B wants them.
        u32 weights[4];
#pragma unroll
        for (int c = 0; c < 4; c++) {
            weights[c] = ptx::transpose(T::pack(score[c / 2][c % 2 * 2], score[c / 2][c % 2 * 2 + 1]));
        }
        auto multiply_values = [&](u32 low, u32 high, const uint4 (&v)[8]) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                // Two tokens of a channel side by side.
                auto word = [&](const uint4 &w) { return i / 2 == 0 ? w.x : i / 2 == 1 ? w.y : i / 2 == 2 ? w.z : w.w; };
                auto pair_of = [&](int j) { return __byte_perm(word(v[j]), word(v[j + 2]), i % 2 ? 0x7632 : 0x5410); };
                const u32 a[4] = {pair_of(0), pair_of(1), pair_of(4), pair_of(5)};
                T::mma(out[i], a, low, high);
            }
        };
        multiply_values(weights[0], weights[1], x);
        first = next;
        end = shared.split.end;
        unit = unit_at(next_page, next);
        if (next < end) {
            load_keys(x, unit, 0, end - 1 - next);
        }
        multiply_values(weights[2], weights[3], y);
        if (next < end) {
            load_keys(y, unit, 1, end - 1 - next);
        }
    }

    store_part(shared, out);
}

// Joins the warps of a split, and as the last block of a sequence all splits: a warp has a head, four channels a lane.
template <class T> __device__ __forceinline__ void join(const QwenvlDecodeAttention &p, Shared &shared) {
    const u32 pair = shared.split.pair, head = threadIdx.x / 32, lane = threadIdx.x % 32, group = p.group;
    const u32 n_splits = shared.split.count;
    if (head < group) {
        Part all = {LOWEST, 0.0f, {0.0f, 0.0f, 0.0f, 0.0f}};
        float2 of[WARPS];
#pragma unroll
        for (u32 i = 0; i < WARPS; i++) {
            of[i] = *reinterpret_cast<const float2 *>(shared.parts[i][head] + HEAD);
            all.max = fmaxf(all.max, of[i].x);
        }
#pragma unroll
        for (u32 i = 0; i < WARPS; i++) {
            float factor = ptx::exp2(__fsub_rn(of[i].x, all.max));
            all.sum = __fmaf_rn(of[i].y, factor, all.sum);
            add(all.out, reinterpret_cast<const float4 *>(shared.parts[i][head])[lane ^ (lane / 2 & 1)], factor);
        }
        if (n_splits == 1) {
            finish<T>(p, pair, head, all);
        } else {
            const Slot to = slot(p, pair, shared.split.index, head);
            to.out[lane] = all.out;
            if (lane == 0) {
                *to.max_sum = make_float2(all.max, all.sum);
            }
        }
    }
    if (n_splits > 1 && is_last(p.arrivals + pair, n_splits, &shared.flag) && head < group) {
        finish<T>(p, pair, head, join_slots(p, pair, n_splits, head));
    }
}

// Split `index` of the sequence and key head `pair`, if there is one.
__device__ __forceinline__ Split split_of(const QwenvlDecodeAttention &p, u32 pair, u32 index) {
    const QwenvlSequence s = p.sequences[pair / p.kv.kv_heads];
    const u32 length = s.past + s.rows, each = (length + p.max_splits - 1) / p.max_splits;
    const u32 tokens = max((each + KEYS - 1) / KEYS * KEYS, QWENVL_DECODE_TOKENS);
    return {pair, pair % p.kv.kv_heads, s.pages, index, (length + tokens - 1) / tokens, index * tokens,
            min((index + 1) * tokens, length)};
}

template <class T> __device__ __forceinline__ void paged_attn(const QwenvlDecodeAttention &p, Shared &shared) {
    if (threadIdx.x == 0) {
        shared.split = split_of(p, blockIdx.x, blockIdx.y);
    }
    __syncthreads();
    if (shared.split.count == 0) { // no sequence: zeros, so that what reads whole batches reads numbers
        if (blockIdx.y == 0 && threadIdx.x / 32 < p.group) {
            finish<T>(p, blockIdx.x, threadIdx.x / 32, {0.0f, 1.0f, {0.0f, 0.0f, 0.0f, 0.0f}});
        }
        return;
    }
    u32 next = blockIdx.y;
    if (next >= shared.split.count) {
        return;
    }
    while (true) {
        attend<T>(p, shared);
        __syncthreads();
        join<T>(p, shared);
        next = shared.split.index + gridDim.y;
        if (next >= shared.split.count) {
            return;
        }
        __syncthreads(); // shared memory is free again
        if (threadIdx.x == 0) {
            shared.split = split_of(p, blockIdx.x, next);
        }
        __syncthreads();
    }
}

#define PAGED_ATTN(name, T)                                                                                            \
    extern "C" __global__ __launch_bounds__(THREADS, 2) void name(const __grid_constant__ QwenvlDecodeAttention p) {   \
        __shared__ Shared shared;                                                                                      \
        paged_attn<T>(p, shared);                                                                                      \
    }
PAGED_ATTN(paged_attn_bf16, BF16)
PAGED_ATTN(paged_attn_f16, F16)
