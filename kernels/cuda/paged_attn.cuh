// paged_attn: attention of one new token per sequence over its KV pages. The body of paged_attn.cu, and a part of
// decode_layers.cu.
// math    out = softmax(q kᵀ / sqrt(128)) v; f32 scores, maxima and sums, weights rounded to the activation type
//         before the second product
// layout  q [n_seqs, ldq], out [n_seqs, ldo]: heads of 128 side by side; pages [2 (k, v), kv_heads, 64 tokens, 128].
//         For the first product the up to 8 query heads of a key head are the first 8 rows of A, and keys of 8 tokens
//         B; the other 8 rows are zeros. For the second values are A, channels by tokens, and the weights B
// order   a sequence of t tokens has ⌈t / 256⌉ splits, but at most `max_splits`: runs of units of 16 tokens, as equal as
//         can be. Warp w of a split takes its units w, w + 8, ...: online softmax over units. Then two joins, each by
//         the largest maximum: warps of a split, splits. All is set by the sequence's own length and `max_splits`,
//         which is the plan's
// launch  256 threads; lengths and pages come from device memory
// needs   head_dim 128, pages of 64 tokens, up to 8 query heads per key head; the new token's key and value are in
//         their page; slots beyond the length are never read
// bytes   2·128·2 per token and key head; bound by bandwidth
// target  ≥ 85 % of 1.80 TB/s from 6,144 tokens of 8 key heads on; about 2.2 us are start, end and join
// source  flash decoding (Dao et al. 2023) for splitting the keys; all else our own
//
// Keys and values go from memory to the registers that mma reads, past shared memory: the order of channels within a
// product is free, so that a lane's eight neighbours of a key serve two mma as they are, and values need one permutation
// of bytes for each register. As B, keys need no other order of registers, and the scores come out as the second product
// wants them, with one head to a lane; that is worth the empty half of A. A warp has the keys and the values of a unit
// under way all the time, 8 KiB: 64 KiB per block. One sequence has a split for each SM or less: more would only leave
// more sums to the last block.
#pragma once

#include "attention.cuh"

constexpr u32 HEAD = 128;
constexpr u32 MAX_GROUP = 8;
constexpr u32 WARPS = THREADS / 32;
constexpr u32 UNIT = 16;              // tokens
constexpr u32 STEP = WARPS * UNIT;    // from a warp's unit to its next
constexpr u32 HEAD_STRIDE = HEAD + 4; // floats of a head in shared memory; the 4 spread the banks
constexpr u32 MOST_SPLITS = QWENVL_DECODE_SPLITS;
static_assert(MAX_GROUP == WARPS && HEAD == 16 * WARPS && MOST_SPLITS == 64 && KEYS % UNIT == 0 && QWENVL_DECODE_TOKENS % STEP == 0);

// What a block works on. In shared memory: it would take registers from the main loop.
struct Split {
    u32 sequence, kv_head, pair; // pair: of sequence and key head
    u32 pages;
    u32 index, count; // of the splits of the sequence
    u32 first, end;   // tokens
};

struct PagedShared {
    uint4 q[WARPS][32]; // as the A operand of each product of 16 channels
    float parts[WARPS][MAX_GROUP][HEAD_STRIDE];
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
    constexpr u32 BATCH = 14;
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

template <class T>
__device__ __forceinline__ void finish(const QwenvlDecodeAttention &p, const Split &split, u32 head, const Part &all) {
    const u32 query_head = split.kv_head * p.group + head, lane = threadIdx.x % 32;
    float inverse = ptx::reciprocal(all.sum);
    u32 low = T::pack(__fmul_rn(all.out.x, inverse), __fmul_rn(all.out.y, inverse));
    u32 high = T::pack(__fmul_rn(all.out.z, inverse), __fmul_rn(all.out.w, inverse));
    u16 *out = static_cast<u16 *>(p.out) + static_cast<u64>(split.sequence) * p.ldo + query_head * HEAD;
    reinterpret_cast<uint2 *>(out)[lane] = make_uint2(low, high);
}

// Leaves a warp's sums in shared memory: of each head's channels, and its largest score and sum of weights. Channels 4c..
// of a head lie at c ^ (c / 2 & 1): so that lanes write to different banks.
__device__ __forceinline__ void store_part(PagedShared &shared, const float (&out)[8][4], float max, float sum) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 1));
    sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 2));
    if (t == 0) {
        *reinterpret_cast<float2 *>(shared.parts[warp][g] + HEAD) = make_float2(max, sum);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float4 *part = reinterpret_cast<float4 *>(shared.parts[warp][t * 2 + h]);
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            const u32 half = c / 2, odd = c % 2;
            const int i = odd * 4;
            part[half * 16 + g * 2 + (odd ^ (g & 1))] = make_float4(out[i][half * 2 + h], out[i + 1][half * 2 + h],
                                                                    out[i + 2][half * 2 + h], out[i + 3][half * 2 + h]);
        }
    }
}

// The warp's part of a split, into shared memory. Lane 4g + t has the scores of head g, and of tokens 2t, 2t + 1, 2t + 8
// and 2t + 9.
template <class T> __device__ __forceinline__ void attend(const QwenvlDecodeAttention &p, PagedShared &shared) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    auto page_of = [&](u32 token) { return p.page_table[shared.split.pages + token / KEYS]; };
    auto unit_at = [&](u32 page, u32 token) {
        const u32 row = shared.split.kv_head * KEYS + token % KEYS;
        return static_cast<const u16 *>(p.kv.pages) + (page * p.kv.page_stride + row * HEAD);
    };

    // Rows row(i) after a lane's `first`, columns column(i); beyond the last of the sequence that one again.
    auto load = [&](uint4 (&to)[8], const u16 *from, u32 first, u32 tokens, auto row, auto column) {
        from += first * HEAD;
        if (tokens >= UNIT) {
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                to[i] = ptx::load16_global(from + (row(i) * HEAD + column(i)));
            }
        } else {
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                const int on = static_cast<int>(min(first + row(i), tokens - 1) - first) * static_cast<int>(HEAD);
                to[i] = ptx::load16_global(from + on + column(i));
            }
        }
    };
    // Tokens g and g + 8, channels 8t.. of each 32.
    auto load_keys = [&](uint4 (&to)[8], const u16 *unit, u32 tokens) {
        auto row = [](u32 i) { return i / 4 * 8; };
        auto column = [](u32 i) { return i % 4 * 32; };
        load(to, unit + t * 8, g, tokens, row, column);
    };
    // Tokens 2t, 2t + 1, 2t + 8, 2t + 9, channels 8g.. of each 64.
    auto load_values = [&](uint4 (&to)[8], const u16 *unit, u32 tokens) {
        auto row = [](u32 i) { return i / 4 * 8 + i / 2 % 2; };
        auto column = [](u32 i) { return i % 2 * 64; };
        load(to, unit + p.kv.kv_heads * (KEYS * HEAD) + g * 8, t * 2, tokens, row, column);
    };

    const u32 end = shared.split.end;
    u32 first = shared.split.first + warp * UNIT, page = 0;
    uint4 keys[8], values[8];
    if (first < end) {
        const u16 *unit = unit_at(page_of(first), first);
        load_keys(keys, unit, end - first);
        load_values(values, unit, end - first);
        page = page_of(min(first + STEP, end - 1));
    } else {
        // Nobody reads them, but without a value here they would take registers all through the joins.
#pragma unroll
        for (int i = 0; i < 8; i++) {
            keys[i] = values[i] = make_uint4(0, 0, 0, 0);
        }
    }
    const u32 head = shared.split.kv_head * p.group + min(g, p.group - 1); // beyond the group any: nobody reads its result
    const u16 *q = static_cast<const u16 *>(p.q) + static_cast<u64>(shared.split.sequence) * p.ldq + head * HEAD;
    const uint2 x = *reinterpret_cast<const uint2 *>(q + warp / 2 * 32 + t * 8 + warp % 2 * 4);
    shared.q[warp][lane] = make_uint4(x.x, 0, x.y, 0);
    __syncthreads();

    float max = LOWEST, sum = 0.0f; // of the scores so far; a lane has its part of the sum
    float out[8][4]; // channels 8g + i, 8g + i, 64 + 8g + i, 64 + 8g + i; heads 2t, 2t + 1
#pragma unroll
    for (int i = 0; i < 8; i++) {
        out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0.0f;
    }
    while (first < end) {
        const u32 tokens = end - first, next = first + STEP;
        float score[2][4]; // heads g, g, none, none; tokens 8j + 2t, 8j + 2t + 1
#pragma unroll
        for (int j = 0; j < 2; j++) {
            score[j][0] = score[j][1] = score[j][2] = score[j][3] = 0.0f;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const uint4 q = ptx::load16_anew(ptx::shared_address(&shared.q[2 * i + h][lane]));
                const u32 a[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const uint4 k = keys[j * 4 + i];
                    T::mma(score[j], a, h == 0 ? k.x : k.z, h == 0 ? k.y : k.w);
                }
            }
        }
        const u16 *unit = unit_at(page, next);
        if (next < end) {
            load_keys(keys, unit, end - next);
            page = page_of(min(next + STEP, end - 1));
        }

        if (tokens < UNIT) {
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                score[c / 2][c % 2] = c / 2 * 8 + t * 2 + c % 2 < tokens ? score[c / 2][c % 2] : HIDDEN;
            }
        }
        float most = fmaxf(fmaxf(score[0][0], score[0][1]), fmaxf(score[1][0], score[1][1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        const float old = max;
        max = fmaxf(old, __fmul_rn(most, p.scale_log2));
        const float factor = ptx::exp2(__fsub_rn(old, max));
        sum = __fmul_rn(sum, factor);
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            float &s = score[c / 2][c % 2];
            s = ptx::exp2(__fmaf_rn(s, p.scale_log2, -max));
            sum = __fadd_rn(sum, s);
        }
        const float factors[2] = {__shfl_sync(0xffffffffu, factor, t * 8), __shfl_sync(0xffffffffu, factor, t * 8 + 4)};
        // Heads x tokens, as the first product leaves them, are what B wants.
        const u32 weights[2] = {T::pack(score[0][0], score[0][1]), T::pack(score[1][0], score[1][1])};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            // Two tokens of a channel side by side.
            auto word = [&](const uint4 &w) { return i / 2 == 0 ? w.x : i / 2 == 1 ? w.y : i / 2 == 2 ? w.z : w.w; };
            auto pair_of = [&](int j) {
                return __byte_perm(word(values[j]), word(values[j + 2]), i % 2 ? 0x7632 : 0x5410);
            };
            const u32 a[4] = {pair_of(0), pair_of(1), pair_of(4), pair_of(5)};
#pragma unroll
            for (int c = 0; c < 4; c++) {
                out[i][c] = __fmul_rn(out[i][c], factors[c % 2]);
            }
            T::mma(out[i], a, weights[0], weights[1]);
        }
        if (next < end) {
            load_values(values, unit, end - next);
        }
        first = next;
    }
    store_part(shared, out, max, sum);
}

// Joins the warps of a split, and as the last block of a sequence all splits: a warp has a head, four channels a lane.
template <class T> __device__ __forceinline__ void join(const QwenvlDecodeAttention &p, PagedShared &shared) {
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
            finish<T>(p, shared.split, head, all);
        } else {
            const Slot to = slot(p, pair, shared.split.index, head);
            to.out[lane] = all.out;
            if (lane == 0) {
                *to.max_sum = make_float2(all.max, all.sum);
            }
        }
    }
    if (n_splits > 1 && is_last(p.arrivals + pair, n_splits, &shared.flag) && head < group) {
        finish<T>(p, shared.split, head, join_slots(p, pair, n_splits, head));
    }
}

// Split `index` of a sequence and key head, if there is one: equal runs of units, one more in the first of them.
__device__ __forceinline__ Split split_of(const QwenvlDecodeAttention &p, u32 kv_head, u32 sequence, u32 index) {
    const QwenvlSequence s = p.sequences[sequence];
    const u32 length = s.past + s.rows, units = (length + UNIT - 1) / UNIT;
    const u32 count = min((length + QWENVL_DECODE_TOKENS - 1) / QWENVL_DECODE_TOKENS, p.max_splits);
    const u32 each = units / max(count, 1), more = units - each * count;
    const u32 first = index * each + min(index, more), end = first + each + (index < more ? 1 : 0);
    return {sequence, kv_head, sequence * p.kv.kv_heads + kv_head, s.pages, index, count,
            first * UNIT, min(end * UNIT, length)};
}

// The splits `next`, `next` + `step`, ... of a sequence and key head.
template <class T>
__device__ __forceinline__ void paged_attn(const QwenvlDecodeAttention &p, PagedShared &shared, u32 kv_head, u32 sequence,
                                           u32 next, u32 step) {
    if (threadIdx.x == 0) {
        shared.split = split_of(p, kv_head, sequence, next);
    }
    __syncthreads();
    if (shared.split.count == 0) { // no sequence: zeros, so that what reads whole batches reads numbers
        if (next == 0 && threadIdx.x / 32 < p.group) {
            finish<T>(p, shared.split, threadIdx.x / 32, {0.0f, 1.0f, {0.0f, 0.0f, 0.0f, 0.0f}});
        }
        return;
    }
    if (next >= shared.split.count) {
        return;
    }
    while (true) {
        attend<T>(p, shared);
        __syncthreads();
        join<T>(p, shared);
        next = shared.split.index + step;
        if (next >= shared.split.count) {
            return;
        }
        __syncthreads(); // shared memory is free again
        if (threadIdx.x == 0) {
            shared.split = split_of(p, shared.split.kv_head, shared.split.sequence, next);
        }
        __syncthreads();
    }
}
