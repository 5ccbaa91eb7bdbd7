// sample: the next token of each sequence from its logits
// math    argmax: scores = logits, those of ids that occurred divided (if negative multiplied) by the repetition
//         penalty, all divided by the temperature; the lowest id of the largest score, which is the token if the
//         temperature is 0. sample: of the top_k largest scores with what ties with the last, those whose more
//         probable ones sum to less than top_p; one of them by the first word of Philox under (seed, position)
// layout  logits, scores f32 [rows, vocab]; history: a bit for each id
// order   scores as in engine/sampler.rs, rounded alike. Probabilities are e^(score − largest) in units of 2^-40, so
//         that all sums are of integers: exact in any order, and the same however threads run
// launch  argmax: grid = (vocab / 1024, rows), block = 256; the last block of a row joins the slices. sample: grid =
//         (vocab / 2048, rows), block = 1024; ends at once where the temperature is 0. Its blocks count the ids in bins by
//         how far they are from the largest score; the last of a row looks for thresholds and draws, and reads only
//         slices that have an id that may be kept: few, unless temperature and top_p are high
// needs   argmax before sample, on one stream; vocab < 2^18
// bytes   argmax 4 per logit (8 if sampled); sample 4 per logit, from L2, and 4 for each id of slices that it reads again,
//         up to 8 times
// target  argmax ≤ 3 us for one row of 151,936; sample ≤ 15 us a row with the published generation_config.json
// source  order of steps of transformers 4.57.6, generation/logits_process.py; Philox: Salmon et al., SC 2011
#include "common.cuh"

constexpr u32 SLICE = QWENVL_SAMPLE_SLICE, MOST_SLICES = 256;
constexpr u32 SAMPLE_THREADS = 1024, WARPS = SAMPLE_THREADS / 32;
constexpr u32 COARSE = QWENVL_SAMPLE_BINS; // bins of 1/32 of the distance from the largest score
constexpr u32 DIGITS = 2048;               // values of 11 bits of a key
constexpr u32 FEW = 128;                   // keys that are ranked one by one
static_assert(SLICE == SAMPLE_THREADS && COARSE == SAMPLE_THREADS);

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
        is_last = ptx::increment_acq_rel(p.arrivals + row, slices - 1) == slices - 1; // zero again after the last
    }
    if (__shfl_sync(0xffffffffu, is_last, 0) == 0) {
        return;
    }
    __syncwarp(); // what the first lane may see, all may
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
    u32 n_few, few[FEW];                  // keys of a bin
    u32 n_slices, slice_bin[MOST_SLICES]; // all, with the coarse bin of their largest score
    u32 n_listed, listed[MOST_SLICES];    // some of them, in order
    u32 part_equal[MOST_SLICES];          // of parts of the vocabulary: ids that equal the threshold,
    u64 part_mass[MOST_SLICES];           // and the mass above it
    u32 choice, ties;                     // a part, and what is left there of the ties and the drawn number
    u64 target;
};

// Another id of a bin. At low temperatures nearly all are in the last one, with no mass: additions of 64 bits to one address
// go one after the other.
__device__ __forceinline__ void add(u32 *counts, u64 *masses, u32 bin, u64 mass) {
    atomicAdd(counts + bin, 1u);
    if (mass > 0) {
        atomicAdd(masses + bin, mass);
    }
}

// One row of scores, and how its ids rank.
struct Row {
    const float *scores;
    u32 vocab;
    float largest;

    __device__ __forceinline__ u64 mass(float score) const { return static_cast<u64>(expf(score - largest) * 1099511627776.0f); }
    __device__ __forceinline__ u32 coarse(float score) const {
        return min(static_cast<u32>((largest - score) * 32.0f), COARSE - 1);
    }
    // f(score) for the ids of the listed slices, one a thread. Loads go out several at a time.
    template <class F> __device__ __forceinline__ void each(const Shared &s, const F &f) const {
        constexpr u32 BATCH = 8;
        for (u32 start = 0; start < s.n_listed; start += BATCH) {
            float score[BATCH];
            auto id = [&](u32 i) { return s.listed[start + i] * SLICE + threadIdx.x; };
#pragma unroll
            for (u32 i = 0; i < BATCH; i++) {
                score[i] = start + i < s.n_listed ? scores[min(id(i), vocab - 1)] : 0.0f;
            }
#pragma unroll
            for (u32 i = 0; i < BATCH; i++) {
                if (start + i < s.n_listed && id(i) < vocab) {
                    f(score[i]);
                }
            }
        }
    }
};

// Lists the slices that have an id in `bin` or one of higher rank. The list is there after the next barrier.
__device__ void list_slices(Shared &s, u32 bin) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool is_listed = threadIdx.x < s.n_slices && s.slice_bin[threadIdx.x] <= bin;
    const u32 listed = __ballot_sync(0xffffffffu, is_listed);
    if (lane == 0) {
        s.totals[warp][0] = __popc(listed);
    }
    __syncthreads();
    u32 before = 0, all = 0;
#pragma unroll
    for (u32 i = 0; i < MOST_SLICES / 32; i++) {
        u32 n = static_cast<u32>(s.totals[i][0]);
        before += i < warp ? n : 0;
        all += n;
    }
    if (is_listed) {
        s.listed[before + __popc(listed & ((1u << lane) - 1))] = threadIdx.x;
    }
    if (threadIdx.x == 0) {
        s.n_listed = all;
    }
}

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

// Ranks the keys of a bin that has few, each by all others, and finds the cut as find_cut does: its bin is a key.
__device__ void rank_few(Shared &s, const Row &row, u32 bin, u32 what, u64 limit) {
    if (threadIdx.x == 0) {
        s.n_few = 0;
    }
    __syncthreads();
    row.each(s, [&](float score) {
        if (row.coarse(score) == bin) {
            s.few[atomicAdd(&s.n_few, 1u)] = key_of(score);
        }
    });
    __syncthreads();
    const u32 n = s.n_few;
    if (threadIdx.x < n) {
        const u32 own = s.few[threadIdx.x];
        const u64 mass = row.mass(score_of(own));
        u64 above[2] = {0, 0}, inside[2] = {0, 0};
        for (u32 i = 0; i < n; i++) {
            const u32 key = s.few[i];
            above[0] += key > own;
            above[1] += key > own ? row.mass(score_of(key)) : 0;
            inside[0] += key == own;
            inside[1] += key == own ? mass : 0;
        }
        if (above[what] < limit && above[what] + inside[what] >= limit) {
            s.cut = {own, {above[0], above[1]}, {inside[0], inside[1]}}; // those that equal it write the same
        }
    }
    __syncthreads();
}

// The key with which the total of ids (0) or mass (1), from the largest score down, reaches `limit`.
__device__ Threshold find_threshold(Shared &s, const Row &row, u32 what, u64 limit) {
    find_cut<COARSE, false>(s, s.coarse_count, s.coarse_mass, what, limit);
    Threshold at = {0, {s.cut.above[0], s.cut.above[1]}, {0, 0}};
    auto descend = [&]() {
        for (int i = 0; i < 2; i++) {
            at.above[i] += s.cut.above[i];
            at.equal[i] = s.cut.inside[i];
        }
    };
    const u32 bin = s.cut.bin;
    const bool has_few = s.cut.inside[0] <= FEW;
    list_slices(s, bin);
    if (has_few) {
        rank_few(s, row, bin, what, limit - at.above[what]);
        at.key = s.cut.bin;
        descend();
        return at;
    }
    u32 known = 0; // bits of the key that are decided
#pragma unroll 1
    for (int shift = 21; shift >= -1; shift -= 11) {
        const u32 low = max(shift, 0); // the last digit has a bit of the one before
#pragma unroll
        for (u32 i = 0; i < DIGITS; i += SAMPLE_THREADS) {
            s.digit_count[i + threadIdx.x] = 0;
            s.digit_mass[i + threadIdx.x] = 0;
        }
        __syncthreads();
        row.each(s, [&](float score) {
            u32 key = key_of(score);
            if (row.coarse(score) == bin && (key & known) == at.key) {
                add(s.digit_count, s.digit_mass, key >> low & (DIGITS - 1), row.mass(score));
            }
        });
        __syncthreads();
        find_cut<DIGITS, true>(s, s.digit_count, s.digit_mass, what, limit - at.above[what]);
        at.key |= s.cut.bin << low;
        known |= (DIGITS - 1) << low;
        descend();
    }
    return at;
}

// One warp: the first of `n` parts with which the running total of what is kept exceeds the target. Of the ids that equal
// the threshold, with a mass of `each`, the first `ties` are kept.
__device__ __forceinline__ void pick(Shared &s, u32 n, u32 ties, u64 each, u64 target) {
    constexpr u32 EACH = MOST_SLICES / 32; // of a lane
    const u32 first = threadIdx.x % 32 * EACH;
    u64 equal[EACH], before = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        equal[i] = first + i < n ? s.part_equal[first + i] : 0;
        before += equal[i];
    }
    before = warp_scan(before) - before;
    u64 left[EACH], sum[EACH], own = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        left[i] = ties - min(before, static_cast<u64>(ties));
        sum[i] = first + i < n ? s.part_mass[first + i] + min(equal[i], left[i]) * each : 0;
        before += equal[i];
        own += sum[i];
    }
    u64 below = warp_scan(own) - own;
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        if (below <= target && target < below + sum[i]) {
            s.choice = first + i;
            s.ties = static_cast<u32>(left[i]);
            s.target = target - below;
        }
        below += sum[i];
    }
}

extern "C" __global__ __launch_bounds__(SAMPLE_THREADS, 1) void sample(const __grid_constant__ QwenvlSample p) {
    __shared__ Shared s;
    const u32 row_index = blockIdx.y, slices = (p.vocab + SLICE - 1) / SLICE, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u64 *parts = p.best + static_cast<u64>(row_index) * (slices + 1), best = parts[slices];
    if (best == 0) {
        return; // answered by argmax
    }
    const Row row = {p.scores + static_cast<u64>(row_index) * p.vocab, p.vocab, score_of(static_cast<u32>(best >> 32))};

    // Counts in bins: of some slices, then of all.
    s.coarse_count[threadIdx.x] = 0;
    s.coarse_mass[threadIdx.x] = 0;
    __syncthreads();
    for (u32 id = blockIdx.x * SLICE + threadIdx.x; id < row.vocab; id += gridDim.x * SLICE) {
        float score = row.scores[id];
        add(s.coarse_count, s.coarse_mass, row.coarse(score), row.mass(score));
    }
    __syncthreads();
    u64 *counts = p.bins + static_cast<u64>(row_index) * (2 * COARSE) + threadIdx.x, *masses = counts + COARSE;
    if (s.coarse_count[threadIdx.x] > 0) {
        atomicAdd(counts, static_cast<u64>(s.coarse_count[threadIdx.x]));
        atomicAdd(masses, s.coarse_mass[threadIdx.x]);
    }
    if (!is_last(p.arrivals + row_index, gridDim.x, &s.choice)) {
        return;
    }
    s.coarse_count[threadIdx.x] = static_cast<u32>(__ldcg(counts));
    s.coarse_mass[threadIdx.x] = __ldcg(masses);
    *counts = *masses = 0; // for the next launch
    if (threadIdx.x < slices) {
        s.slice_bin[threadIdx.x] = row.coarse(score_of(static_cast<u32>(parts[threadIdx.x] >> 32)));
    }
    if (threadIdx.x == 0) {
        s.n_slices = slices;
    }

    // Kept are the keys above `last`, and the first `ties` of those that equal it.
    const QwenvlSampleRow params = p.params[row_index];
    u32 last = 0, ties = 0xffffffffu;
    u64 total = 0; // mass of what is kept
    if (params.top_k != 0 && params.top_k < row.vocab) {
        Threshold at = find_threshold(s, row, 0, params.top_k);
        last = at.key;
        total = at.above[1] + at.equal[1];
    } else {
        total = warp_total(s.coarse_mass[threadIdx.x]);
        if (lane == 0) {
            s.totals[warp][1] = total;
        }
        __syncthreads();
        total = warp_total(s.totals[lane][1]); // as many warps as lanes
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

    // The id with which the running total in the order of ids exceeds the drawn number: first its slice, then the 32 of the
    // slice, then itself.
    const u64 each = row.mass(score_of(last)); // none of a threshold that is no key
    const u64 drawn = __umul64hi(total, static_cast<u64>(philox(params.position, params.seed)) << 32);
    auto mass_above = [&](float score) { return key_of(score) > last ? row.mass(score) : 0ull; };
    list_slices(s, last == 0 ? COARSE - 1 : row.coarse(score_of(last)));
    __syncthreads();
    for (u32 at = warp; at < s.n_listed; at += WARPS) {
        const u32 first = s.listed[at] * SLICE + lane;
        u32 equal = 0;
        u64 mass = 0;
#pragma unroll 8
        for (u32 i = 0; i < SLICE; i += 32) {
            if (first + i < row.vocab) {
                float score = row.scores[first + i];
                equal += key_of(score) == last;
                mass += mass_above(score);
            }
        }
        equal = __reduce_add_sync(0xffffffffu, equal);
        mass = warp_total(mass);
        if (lane == 0) {
            s.part_equal[at] = equal;
            s.part_mass[at] = mass;
        }
    }
    __syncthreads();
    if (warp == 0) {
        pick(s, s.n_listed, ties, each, drawn);
    }
    __syncthreads();
    const u32 slice = s.listed[s.choice] * SLICE;
    {
        const u32 id = slice + threadIdx.x;
        const float score = id < row.vocab ? row.scores[id] : -INFINITY;
        const u32 equal = __ballot_sync(0xffffffffu, id < row.vocab && key_of(score) == last);
        const u64 mass = warp_total(id < row.vocab ? mass_above(score) : 0ull);
        if (lane == 0) {
            s.part_equal[warp] = __popc(equal);
            s.part_mass[warp] = mass;
        }
    }
    const u64 target = s.target;
    ties = s.ties;
    __syncthreads();
    if (warp != 0) {
        return;
    }
    pick(s, WARPS, ties, each, target);
    __syncwarp();
    const u32 id = slice + s.choice * 32 + lane;
    const float score = id < row.vocab ? row.scores[id] : -INFINITY;
    const u32 key = key_of(score);
    const u32 equal = __ballot_sync(0xffffffffu, id < row.vocab && key == last);
    const bool kept = id < row.vocab && (key > last || (key == last && __popc(equal & ((1u << lane) - 1)) < s.ties));
    const u64 sum = warp_scan(kept ? row.mass(score) : 0);
    const u32 over = __ballot_sync(0xffffffffu, sum > s.target);
    if (lane == 0) {
        answer(p, row_index, id + __ffs(over) - 1);
    }
}
