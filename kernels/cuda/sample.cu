// sample: the next token of each row from its logits
// math    the steps of engine/sampler.rs in its order: repetition penalty, temperature, top-k (with ties of the last),
//         softmax, top-p (ties by id), one draw with Philox4x32-10 under (seed, position)
// order   scores in f32 with the same operations, so bit for bit those of the host; e^x is computed in f64 and rounded
//         once; sums in f64: lane, warp, block, in a fixed order. The draw compares such sums, so that it is the
//         host's unless the target falls within 1e-15 of a boundary.
// launch  a block of 1024 threads per row
// needs   vocab >= 1
// bytes   the row 2 (greedy: 1) times, and once more per pass of a selection: 4 for top-k, 32 for top-p
// target  under 10 µs per row for greedy, under 100 µs without top-k
// source  this project's; Philox: Salmon et al., SC 2011
#include "common.cuh"

constexpr u32 SAMPLE_THREADS = 1024, WARPS = SAMPLE_THREADS / 32;
constexpr u32 NO_TOKEN = 0xffffffffu;

struct Sampler {
    const QwenvlSample &p;
    u32 row, lane, warp;
    const float *logits;
    float *scores;
    u32 *shared_u32; // [256 + 64]
    double *shared_f64; // [WARPS]

    // An unsigned number in the order of f32::total_cmp.
    static __device__ __forceinline__ u32 key(float x) {
        u32 bits = __float_as_uint(x);
        return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    }
    static __device__ __forceinline__ float unkey(u32 key) {
        return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
    }

    // e^x rounded to f32, for x <= 0: 2^n · p(r), |r| <= ln 2 / 2, in f64.
    static __device__ __forceinline__ float exp_rounded(float x32) {
        if (x32 < -104.0f) {
            return 0.0f;
        }
        double x = x32;
        int n = __double2int_rn(x * 1.4426950408889634);
        double r = fma(static_cast<double>(n), -0.69314718055994529, x);
        r = fma(static_cast<double>(n), -2.3190468138462996e-17, r);
        double y = 1.0 / 479001600;
        y = fma(y, r, 1.0 / 39916800);
        y = fma(y, r, 1.0 / 3628800);
        y = fma(y, r, 1.0 / 362880);
        y = fma(y, r, 1.0 / 40320);
        y = fma(y, r, 1.0 / 5040);
        y = fma(y, r, 1.0 / 720);
        y = fma(y, r, 1.0 / 120);
        y = fma(y, r, 1.0 / 24);
        y = fma(y, r, 1.0 / 6);
        y = fma(y, r, 0.5);
        y = fma(y, r, 1.0);
        y = fma(y, r, 1.0);
        return static_cast<float>(y * __longlong_as_double(static_cast<long long>(n + 1023) << 52));
    }

    __device__ __forceinline__ u32 block_sum_u32(u32 x) {
        x = __reduce_add_sync(0xffffffffu, x);
        __syncthreads();
        if (lane == 0) {
            shared_u32[warp] = x;
        }
        __syncthreads();
        u32 sum = 0;
        for (u32 i = 0; i < WARPS; i++) {
            sum += shared_u32[i];
        }
        return sum;
    }

    static __device__ __forceinline__ double warp_sum_f64(double x) {
        for (int lanes = 16; lanes > 0; lanes /= 2) {
            x += __shfl_xor_sync(0xffffffffu, x, lanes);
        }
        return x;
    }

    // The sum over the block; `before` is that of the warps before this one.
    __device__ __forceinline__ double block_sum_f64(double x, double &before) {
        x = warp_sum_f64(x);
        __syncthreads();
        if (lane == 0) {
            shared_f64[warp] = x;
        }
        __syncthreads();
        double sum = 0.0;
        for (u32 i = 0; i < WARPS; i++) {
            before = i == warp ? sum : before;
            sum += shared_f64[i];
        }
        return sum;
    }

    // The lowest id of the largest of `from`; NO_TOKEN if one is NaN, if it is infinite or if all are minus infinity.
    __device__ __forceinline__ u32 argmax(const float *from) {
        u32 best = 0, id = NO_TOKEN, unusable = 0;
        for (u32 i = threadIdx.x; i < p.vocab; i += SAMPLE_THREADS) {
            float x = from[i];
            u32 k = key(x == 0.0f ? 0.0f : x); // −0 equals 0
            unusable |= x != x || x == INFINITY;
            if (x > -INFINITY && k > best) {
                best = k;
                id = i;
            }
        }
        unusable = block_sum_u32(unusable);
        u32 largest = __reduce_max_sync(0xffffffffu, best);
        __syncthreads();
        if (lane == 0) {
            shared_u32[warp] = largest;
        }
        __syncthreads();
        for (u32 i = 0; i < WARPS; i++) {
            largest = max(largest, shared_u32[i]);
        }
        id = __reduce_min_sync(0xffffffffu, best == largest ? id : NO_TOKEN);
        __syncthreads();
        if (lane == 0) {
            shared_u32[warp] = id;
        }
        __syncthreads();
        for (u32 i = 0; i < WARPS; i++) {
            id = min(id, shared_u32[i]);
        }
        return unusable ? NO_TOKEN : id;
    }

    // The key of the k-th largest score: 8 bits at a time, counts in shared memory.
    __device__ __forceinline__ u32 kth_key(u32 k) {
        u32 prefix = 0;
        for (int shift = 24; shift >= 0; shift -= 8) {
            __syncthreads();
            for (u32 i = threadIdx.x; i < 256; i += SAMPLE_THREADS) {
                shared_u32[i] = 0;
            }
            __syncthreads();
            u32 above = shift == 24 ? 0 : 0xffffffffu << (shift + 8);
            for (u32 i = threadIdx.x; i < p.vocab; i += SAMPLE_THREADS) {
                float x = scores[i];
                if (x > -INFINITY && (key(x) & above) == prefix) {
                    atomicAdd(shared_u32 + (key(x) >> shift & 255), 1);
                }
            }
            __syncthreads();
            if (threadIdx.x == 0) {
                u32 digit = 255;
                while (digit > 0 && shared_u32[digit] < k) {
                    k -= shared_u32[digit--];
                }
                shared_u32[256] = digit;
                shared_u32[257] = k;
            }
            __syncthreads();
            prefix |= shared_u32[256] << shift;
            k = shared_u32[257];
        }
        return prefix;
    }

    // Σ e^(score − largest) over scores whose key is above `bound`.
    __device__ __forceinline__ double mass_above(u32 bound, float largest) {
        double sum = 0.0, before;
        for (u32 i = threadIdx.x; i < p.vocab; i += SAMPLE_THREADS) {
            float x = scores[i];
            if (x > -INFINITY && key(x) > bound) {
                sum += static_cast<double>(exp_rounded(x - largest));
            }
        }
        return block_sum_f64(sum, before);
    }

    static __device__ __forceinline__ u32 philox_first(const u32 (&seed)[2], const u32 (&position)[2]) {
        u32 c0 = position[0], c1 = position[1], c2 = 0, c3 = 0, k0 = seed[0], k1 = seed[1];
        for (int round = 0; round < 10; round++) {
            u64 a = static_cast<u64>(c0) * 0xd2511f53u, b = static_cast<u64>(c2) * 0xcd9e8d57u;
            c0 = static_cast<u32>(b >> 32) ^ c1 ^ k0;
            c1 = static_cast<u32>(b);
            c2 = static_cast<u32>(a >> 32) ^ c3 ^ k1;
            c3 = static_cast<u32>(a);
            k0 += 0x9e3779b9u;
            k1 += 0xbb67ae85u;
        }
        return c0;
    }

    // Each warp has a stretch of ids, a multiple of 32, so that sums and searches go by id.
    __device__ __forceinline__ u32 stretch() const { return (p.vocab + SAMPLE_THREADS - 1) / SAMPLE_THREADS * 32; }

    // Drops scores for which `dropped(id, score)`.
    template <class F> __device__ __forceinline__ void drop(F dropped) {
        for (u32 i = threadIdx.x; i < p.vocab; i += SAMPLE_THREADS) {
            if (dropped(i, scores[i])) {
                scores[i] = -INFINITY;
            }
        }
        __syncthreads();
    }

    __device__ __forceinline__ void top_p(float top_p, u32 best) {
        float largest = scores[best];
        double wanted = static_cast<double>(top_p) * mass_above(0, largest);
        // The lowest key such that what ranks above it weighs less than wanted.
        u32 low = 0, high = key(largest == 0.0f ? 0.0f : largest); // 0 ranks above −0
        while (low < high) {
            u32 middle = low + (high - low) / 2;
            if (mass_above(middle, largest) < wanted) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        // Of those that tie there, the first by id.
        double above = mass_above(high, largest), weight = static_cast<double>(exp_rounded(unkey(high) - largest));
        u32 ties = 0;
        for (u32 i = threadIdx.x; i < p.vocab; i += SAMPLE_THREADS) {
            ties += key(scores[i]) == high;
        }
        ties = block_sum_u32(ties);
        u32 kept = 0;
        while (kept < ties && above < wanted) {
            above += weight;
            kept++;
        }
        u32 end = p.vocab; // ties with ids below stay
        if (kept < ties) {
            u32 lowest = 0, highest = p.vocab;
            while (lowest < highest) {
                u32 middle = lowest + (highest - lowest) / 2, count = 0;
                for (u32 i = threadIdx.x; i < middle; i += SAMPLE_THREADS) {
                    count += key(scores[i]) == high;
                }
                if (block_sum_u32(count) >= kept) {
                    highest = middle;
                } else {
                    lowest = middle + 1;
                }
            }
            end = highest;
        }
        drop([&](u32 id, float x) { return id != best && (key(x) < high || (key(x) == high && id >= end)); });
    }

    __device__ __forceinline__ u32 draw(const QwenvlSampleRow &params, u32 best) {
        float largest = scores[best];
        u32 first = warp * stretch(), last = min(first + stretch(), p.vocab);
        double sum = 0.0, before = 0.0;
        for (u32 i = first + lane; i < last; i += 32) {
            sum += static_cast<double>(exp_rounded(scores[i] - largest));
        }
        double total = block_sum_f64(sum, before), mine = warp_sum_f64(sum);
        double target = static_cast<double>(philox_first(params.seed, params.position)) / 4294967296.0 * total;
        double end = before + mine;
        // Walk this warp's stretch, unless it ends below: the first id at which the sum up to and with it is above the target.
        u32 found = NO_TOKEN;
        for (u32 i = first; i < last && found == NO_TOKEN && end > target; i += 32) {
            double x = i + lane < last ? static_cast<double>(exp_rounded(scores[i + lane] - largest)) : 0.0;
            double upto = x;
            for (u32 lanes = 1; lanes < 32; lanes *= 2) {
                double other = __shfl_up_sync(0xffffffffu, upto, lanes);
                upto += lane >= lanes ? other : 0.0;
            }
            u32 here = x > 0.0 && before + upto > target ? i + lane : NO_TOKEN;
            found = __reduce_min_sync(0xffffffffu, here);
            before += __shfl_sync(0xffffffffu, upto, 31);
        }
        __syncthreads();
        if (lane == 0) {
            shared_u32[warp] = found;
        }
        __syncthreads();
        u32 id = NO_TOKEN;
        for (u32 i = 0; i < WARPS; i++) {
            id = min(id, shared_u32[i]);
        }
        // Rounding may leave the target just above the last sum: then the last candidate.
        if (id == NO_TOKEN) {
            u32 last_id = 0;
            for (u32 i = threadIdx.x; i < p.vocab; i += SAMPLE_THREADS) {
                last_id = exp_rounded(scores[i] - largest) > 0.0f ? i : last_id;
            }
            last_id = __reduce_max_sync(0xffffffffu, last_id);
            __syncthreads();
            if (lane == 0) {
                shared_u32[warp] = last_id;
            }
            __syncthreads();
            id = 0;
            for (u32 i = 0; i < WARPS; i++) {
                id = max(id, shared_u32[i]);
            }
        }
        return id;
    }

    __device__ __forceinline__ u32 run() {
        QwenvlSampleRow params = p.params[row];
        u32 best = argmax(logits);
        bool greedy = params.temperature == 0.0f;
        if (best == NO_TOKEN || (greedy && params.repetition_penalty == 1.0f)) {
            return best;
        }
        const u32 *history = p.history + static_cast<u64>(row) * p.history_words;
        for (u32 i = threadIdx.x; i < p.vocab; i += SAMPLE_THREADS) {
            float x = logits[i];
            if (params.repetition_penalty != 1.0f && history[i / 32] >> i % 32 & 1) {
                x = x < 0.0f ? x * params.repetition_penalty : x / params.repetition_penalty;
            }
            if (!greedy && params.temperature != 1.0f) {
                x = x / params.temperature;
            }
            scores[i] = x;
        }
        __syncthreads();
        best = argmax(scores);
        if (best == NO_TOKEN || greedy) {
            return best;
        }
        u32 count = 0;
        for (u32 i = threadIdx.x; i < p.vocab; i += SAMPLE_THREADS) {
            count += scores[i] > -INFINITY;
        }
        count = block_sum_u32(count);
        if (params.top_k > 0 && params.top_k < count) {
            float threshold = unkey(kth_key(params.top_k));
            drop([&](u32, float x) { return !(x >= threshold); });
        }
        if (params.top_p < 1.0f) {
            top_p(params.top_p, best);
        }
        return draw(params, best);
    }
};

extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS, 1) sample(const __grid_constant__ QwenvlSample p) {
    __shared__ u32 shared_u32[256 + 64];
    __shared__ double shared_f64[WARPS];
    u64 at = static_cast<u64>(blockIdx.x) * p.vocab;
    Sampler sampler{p, blockIdx.x, threadIdx.x % 32, threadIdx.x / 32, p.logits + at, p.scores + at, shared_u32, shared_f64};
    u32 token = sampler.run();
    if (threadIdx.x == 0) {
        p.tokens[blockIdx.x] = token;
    }
}
