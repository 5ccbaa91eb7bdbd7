// sample: the next token of each sequence from its logits
// math    argmax: scores = logits, those of ids that occurred divided (if negative multiplied) by the repetition
//         penalty, all divided by the temperature; the lowest id of the largest score, which is the token if the
//         temperature is 0. sample: of the top_k largest scores with what ties with the last, those whose more
//         probable ones sum to less than top_p; one of them by the first word of Philox under (seed, position)
// layout  logits, scores f32 [rows, vocab]; history: a bit for each id
// order   scores as in engine/sampler.rs, rounded alike. Probabilities are e^(score − largest) in units of 2^-40, so
//         that all sums are of integers: exact in any order, and the same however threads run
// launch  argmax: grid = (vocab / 1024, rows), block = 256; the last block of a row joins the slices. sample: grid =
//         rows, block = 1024; ends at once where the temperature is 0
// needs   argmax before sample, on one stream
// bytes   argmax 4 per logit (8 if sampled); sample up to 11 passes of 4 per logit, from L2
// target  argmax ≤ 3 us for one row of 151,936; sample ≤ 100 us a row
// source  order of steps of transformers 4.57.6, generation/logits_process.py; Philox: Salmon et al., SC 2011
#include "common.cuh"

constexpr u32 SLICE = QWENVL_SAMPLE_SLICE;
constexpr u32 SAMPLE_THREADS = 1024, WARPS = SAMPLE_THREADS / 32;
constexpr u32 COARSE = 1024; // bins of 1/32 of the distance from the largest score
constexpr u32 DIGITS = 2048; // values of 11 bits of a key

// Orders as the scores do; NaN above all.
constexpr u32 MINUS_INFINITY = 0x007fffffu, PLUS_INFINITY = 0xff800000u, NOT_A_NUMBER = 0xffffffffu;
__device__ __forceinline__ u32 key_of(float score) {
    u32 bits = __float_as_uint(__fadd_rn(score, 0.0f)); // −0 becomes 0
    return score != score ? NOT_A_NUMBER : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float score_of(u32 key) { return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key); }

__device__ __forceinline__ u64 warp_max(u64 x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        x = max(x, __shfl_xor_sync(0xffffffffu, x, lanes));
    }
    return x;
}
__device__ __forceinline__ u64 warp_total(u64 x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, lanes);
    }
    return x;
}
// The sum of this lane's and all lower lanes' values.
__device__ __forceinline__ u64 warp_scan(u64 x) {
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        u64 below = __shfl_up_sync(0xffffffffu, x, lanes);
        x += threadIdx.x % 32 >= lanes ? below : 0;
    }
    return x;
}

// `token` is one of the vocabulary.
__device__ __forceinline__ void answer(const QwenvlSample &p, u32 row, u32 token) {
    p.tokens[row] = token;
    p.history[row * p.history_words + token / 32] |= 1u << token % 32;
}

extern "C" __global__ __launch_bounds__(THREADS) void argmax(const __grid_constant__ QwenvlSample p) {
    constexpr u32 EACH = SLICE / THREADS, MOST_PARTS = 8; // of a lane
    __shared__ u64 found[THREADS / 32];
    const u32 row = blockIdx.y, slices = gridDim.x, first = blockIdx.x * SLICE + threadIdx.x, lane = threadIdx.x % 32;
    const float *logits = p.logits + static_cast<u64>(row) * p.vocab;
    float scores[EACH];
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        scores[i] = logits[min(first + i * THREADS, p.vocab - 1)];
    }
    const QwenvlSampleRow params = p.params[row];
    const u32 *history = p.history + row * p.history_words;
    const bool penalised = params.repetition_penalty != 1.0f, sampled = params.temperature > 0.0f;
    // Key and id in one number: the largest has the largest score and of those the lowest id.
    u64 best = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        u32 id = first + i * THREADS;
        if (id < p.vocab) {
            float score = scores[i];
            if (penalised && history[id / 32] >> id % 32 & 1) {
                score = score < 0.0f ? __fmul_rn(score, params.repetition_penalty)
                                     : __fdiv_rn(score, params.repetition_penalty);
            }
            if (sampled) {
                score = params.temperature == 1.0f ? score : __fdiv_rn(score, params.temperature);
                p.scores[static_cast<u64>(row) * p.vocab + id] = score;
            }
            best = max(best, static_cast<u64>(key_of(score)) << 32 | (0xffffffffu - id));
        }
    }
    best = warp_max(best);
    if (lane == 0) {
        found[threadIdx.x / 32] = best;
    }
    __syncthreads();
    if (threadIdx.x >= 32) {
        return;
    }
    best = warp_max(found[lane % (THREADS / 32)]);
    u64 *parts = p.best + static_cast<u64>(row) * (slices + 1);
    u32 is_last = 0;
    if (lane == 0) {
        __stcg(parts + blockIdx.x, best);
        __threadfence();
        is_last = atomicInc(p.arrivals + row, slices - 1) == slices - 1; // zero again after the last
        __threadfence();
    }
    if (__shfl_sync(0xffffffffu, is_last, 0) == 0) {
        return;
    }
    for (u32 start = lane; start < slices; start += 32 * MOST_PARTS) {
        u64 of[MOST_PARTS];
#pragma unroll
        for (u32 i = 0; i < MOST_PARTS; i++) {
            of[i] = __ldcg(parts + min(start + i * 32, slices - 1));
        }
#pragma unroll
        for (u32 i = 0; i < MOST_PARTS; i++) {
            best = max(best, of[i]);
        }
    }
    best = warp_max(best);
    if (lane == 0) {
        u32 key = static_cast<u32>(best >> 32);
        bool usable = key > MINUS_INFINITY && key < PLUS_INFINITY;
        if (!usable) {
            p.tokens[row] = QWENVL_NO_TOKEN;
        } else if (!sampled) {
            answer(p, row, 0xffffffffu - static_cast<u32>(best));
        }
        parts[slices] = usable && sampled ? best : 0;
    }
}

// The first word of Philox4x32 with ten rounds, as engine/sampler/philox.rs has it.
__device__ __forceinline__ u32 philox(const u32 (&position)[2], const u32 (&seed)[2]) {
    u32 c[4] = {position[0], position[1], 0, 0}, k[2] = {seed[0], seed[1]};
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u32 a = __umulhi(c[0], 0xd2511f53u), b = __umulhi(c[2], 0xcd9e8d57u);
        u32 low_a = c[0] * 0xd2511f53u, low_b = c[2] * 0xcd9e8d57u;
        c[0] = b ^ c[1] ^ k[0];
        c[1] = low_b;
        c[2] = a ^ c[3] ^ k[1];
        c[3] = low_a;
        k[0] += 0x9e3779b9u;
        k[1] += 0xbb67ae85u;
    }
    return c[0];
}

// Where a running total over ranked bins reaches a limit.
struct Cut {
    u32 bin;
    u64 above[2]; // ids and their mass in the bins before
    u64 inside[2];
};

struct Shared {
    u32 coarse_count[COARSE], digit_count[DIGITS];
    u64 coarse_mass[COARSE], digit_mass[DIGITS];
    u64 totals[WARPS][2];
    Cut cut;
    u32 choice;
    u64 rest[2];
};

// One row of scores, and how its ids rank.
struct Row {
    const float *scores;
    u32 vocab;
    float largest;

    __device__ __forceinline__ u64 mass(float score) const { return static_cast<u64>(expf(score - largest) * 1099511627776.0f); }
    __device__ __forceinline__ u32 coarse(float score) const {
        return min(static_cast<u32>((largest - score) * 32.0f), COARSE - 1);
    }
};

// Finds the first of N bins, in rank order, with which the total reaches `limit`; the total is of ids (WHAT = 0) or of
// their mass (1). Bins rank by their index, with REVERSED from the last to the first.
template <u32 N, bool REVERSED>
__device__ void find_cut(Shared &s, const u32 *count, const u64 *mass, u32 what, u64 limit) {
    constexpr u32 EACH = N / SAMPLE_THREADS;
    u64 own[2] = {0, 0};
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        u32 rank = threadIdx.x * EACH + i, bin = REVERSED ? N - 1 - rank : rank;
        own[0] += count[bin];
        own[1] += mass[bin];
    }
    u64 to[2] = {warp_scan(own[0]), warp_scan(own[1])};
    if (threadIdx.x % 32 == 31) {
        s.totals[threadIdx.x / 32][0] = to[0];
        s.totals[threadIdx.x / 32][1] = to[1];
    }
    __syncthreads();
    u64 above[2] = {to[0] - own[0], to[1] - own[1]};
    for (u32 warp = 0; warp < threadIdx.x / 32; warp++) {
        above[0] += s.totals[warp][0];
        above[1] += s.totals[warp][1];
    }
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        u32 rank = threadIdx.x * EACH + i, bin = REVERSED ? N - 1 - rank : rank;
        u64 inside[2] = {count[bin], mass[bin]};
        if (above[what] < limit && above[what] + inside[what] >= limit) {
            s.cut.bin = bin;
            s.cut.above[0] = above[0], s.cut.above[1] = above[1];
            s.cut.inside[0] = inside[0], s.cut.inside[1] = inside[1];
        }
        above[0] += inside[0];
        above[1] += inside[1];
    }
    __syncthreads();
}

// A key, and what ranks above it and equals it.
struct Threshold {
    u32 key;
    u64 above[2], equal[2];
};

// The key with which the total of ids (0) or mass (1), from the largest score down, reaches `limit`.
__device__ Threshold find_threshold(Shared &s, const Row &row, u32 what, u64 limit) {
    find_cut<COARSE, false>(s, s.coarse_count, s.coarse_mass, what, limit);
    Threshold at = {0, {s.cut.above[0], s.cut.above[1]}, {0, 0}};
    const u32 bin = s.cut.bin;
    u32 known = 0; // bits of the key that are decided
#pragma unroll 1
    for (int shift = 21; shift >= -1; shift -= 11) {
        const u32 low = max(shift, 0), width = shift < 0 ? 10 : 11;
        for (u32 i = threadIdx.x; i < DIGITS; i += SAMPLE_THREADS) {
            s.digit_count[i] = 0;
            s.digit_mass[i] = 0;
        }
        __syncthreads();
        for (u32 id = threadIdx.x; id < row.vocab; id += SAMPLE_THREADS) {
            float score = row.scores[id];
            u32 key = key_of(score);
            if (row.coarse(score) == bin && (key & known) == at.key) {
                u32 digit = key >> low & ((1u << width) - 1);
                atomicAdd(s.digit_count + digit, 1u);
                atomicAdd(s.digit_mass + digit, row.mass(score));
            }
        }
        __syncthreads();
        find_cut<DIGITS, true>(s, s.digit_count, s.digit_mass, what, limit - at.above[what]);
        at.key |= s.cut.bin << low;
        known |= ((1u << width) - 1) << low;
        for (int i = 0; i < 2; i++) {
            at.above[i] += s.cut.above[i];
            at.equal[i] = s.cut.inside[i];
        }
    }
    return at;
}

extern "C" __global__ __launch_bounds__(SAMPLE_THREADS, 1) void sample(const __grid_constant__ QwenvlSample p) {
    __shared__ Shared s;
    const u32 row_index = blockIdx.x, slices = (p.vocab + SLICE - 1) / SLICE;
    const u64 best = p.best[static_cast<u64>(row_index) * (slices + 1) + slices];
    if (best == 0) {
        return; // answered by argmax
    }
    const QwenvlSampleRow params = p.params[row_index];
    const Row row = {p.scores + static_cast<u64>(row_index) * p.vocab, p.vocab, score_of(static_cast<u32>(best >> 32))};

    for (u32 i = threadIdx.x; i < COARSE; i += SAMPLE_THREADS) {
        s.coarse_count[i] = 0;
        s.coarse_mass[i] = 0;
    }
    __syncthreads();
    for (u32 id = threadIdx.x; id < row.vocab; id += SAMPLE_THREADS) {
        float score = row.scores[id];
        u32 bin = row.coarse(score);
        atomicAdd(s.coarse_count + bin, 1u);
        atomicAdd(s.coarse_mass + bin, row.mass(score));
    }
    __syncthreads();

    // Kept are the keys above `last`, and the first `ties` of those that equal it.
    u32 last = 0, ties = 0xffffffffu;
    u64 total = 0; // mass of what is kept
    if (params.top_k != 0 && params.top_k < row.vocab) {
        Threshold at = find_threshold(s, row, 0, params.top_k);
        last = at.key;
        total = at.above[1] + at.equal[1];
    } else {
        total = warp_total(s.coarse_mass[threadIdx.x]); // COARSE is the number of threads
        if (threadIdx.x % 32 == 0) {
            s.totals[threadIdx.x / 32][1] = total;
        }
        __syncthreads();
        total = 0;
        for (u32 warp = 0; warp < WARPS; warp++) {
            total += s.totals[warp][1];
        }
        __syncthreads();
    }
    if (params.top_p < 1.0f) {
        // In units of 2^-32. At least one unit of mass: the most probable id is always kept.
        u64 share = static_cast<u64>(params.top_p * 4294967296.0f);
        u64 limit = max(__umul64hi(total, share << 32), 1ull);
        Threshold at = find_threshold(s, row, 1, limit);
        last = at.key;
        u64 each = row.mass(score_of(last));
        ties = static_cast<u32>((limit - at.above[1] + each - 1) / each);
        total = at.above[1] + ties * each;
    }

    // The id with which the running total in the order of ids exceeds the drawn number. Twice each warp sums a 32nd of
    // the range, and the range becomes that of the warp where it happens; the rest is walked.
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u64 target = __umul64hi(total, static_cast<u64>(philox(params.position, params.seed)) << 32);
    u32 first = 0, end = row.vocab;
#pragma unroll 1
    for (int round = 0; round < 2; round++) {
        const u32 width = (end - first + WARPS - 1) / WARPS;
        const u32 from = min(first + warp * width, end), to = min(from + width, end);
        u64 equal = 0, mass = 0;
        for (u32 id = from + lane; id < to; id += 32) {
            float score = row.scores[id];
            u32 key = key_of(score);
            equal += key == last;
            mass += key > last ? row.mass(score) : 0;
        }
        equal = warp_total(equal), mass = warp_total(mass);
        if (lane == 0) {
            s.totals[warp][0] = equal;
            s.totals[warp][1] = mass;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u64 each = row.mass(score_of(last));
            u32 at = 0;
            for (; at < WARPS - 1; at++) {
                u64 kept = min(s.totals[at][0], static_cast<u64>(ties));
                u64 sum = s.totals[at][1] + kept * each;
                if (sum > target) {
                    break;
                }
                target -= sum;
                ties -= static_cast<u32>(kept);
            }
            s.choice = at;
            s.rest[0] = ties;
            s.rest[1] = target;
        }
        __syncthreads();
        ties = static_cast<u32>(s.rest[0]);
        target = s.rest[1];
        first = min(first + s.choice * width, end);
        end = min(first + width, end);
    }
    if (warp != 0) {
        return;
    }
    for (u32 start = first; start < end; start += 32) {
        const u32 id = start + lane;
        float score = id < end ? row.scores[id] : -INFINITY;
        u32 key = key_of(score);
        u32 equal = __ballot_sync(0xffffffffu, id < end && key == last);
        bool kept = id < end && (key > last || (key == last && __popc(equal & ((1u << lane) - 1)) < ties));
        u64 sum = warp_scan(kept ? row.mass(score) : 0);
        u32 over = __ballot_sync(0xffffffffu, sum > target);
        if (over != 0) {
            if (lane == 0) {
                answer(p, row_index, start + __ffs(over) - 1);
            }
            return;
        }
        target -= __shfl_sync(0xffffffffu, sum, 31);
        ties -= min(static_cast<u32>(__popc(equal)), ties);
    }
}
