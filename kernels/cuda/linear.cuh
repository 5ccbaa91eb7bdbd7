// linear: Y = X Wᵀ + b with what follows it, for weights of 4, 8 and 16 bits. The body of int4_gemm, int8_gemm,
// dense_gemm and their kin for other groups and types, small m and prefill alike.
//
// math    Y[m, n] = Σ_slice Σ_group s[group, n] · Σ_{k in group} (c[k, n] − z[group, n]) · X[m, k]
//         c − z is formed exactly in 16 bits, products are summed in f32 by mma (k16 steps in order), groups by a
//         left fold with the scale, slices by a left fold. 16-bit weights: one chain of mma for a slice.
//         Differences of 8-bit numbers are below 256, so bf16 holds them exactly too.
// order   slices are cut where the plan's `n_runs` equal runs of (strip, group) units end: a function of n, k and
//         n_runs. The small-m kernel (a run per CTA) and the prefill kernel (whole strips per CTA) of 4- and 8-bit
//         weights give the same bits; no row's bits depend on m.
// layout  the transposed problem: weights are the A operand (16 outputs x 16 inputs), rows of X the B operand.
//         Weights lie in records of 128 outputs x 128 inputs, strips of outputs outermost, in the order in which
//         lanes of a warp load them, 16 bytes at a time. Output n, input k of a record, lane = 4·(n%8) + (k%32)/8:
//           u = n/32  j = n%32/16  h = n%16/8  b = k/32  s = k%8/4  y = k%4
//           4-bit   vector (u·4 + b)·32 + lane, byte (2s + j)·4, nibble h + 2·(y/2) + 4·(y%2)
//           8-bit   vector ((u·4 + b)·2 + j)·32 + lane, byte (2s + y/2)·4 + h + 2·(y%2)
//           16-bit  vector (((u·4 + b)·2 + s)·2 + j)·32 + lane, byte (h + 2·(y/2))·4 + 2·(y%2)
//         Then for each group of inputs (128 of them, or as the name of a kernel says) 128 f16 scales in the order
//         (u, n%8, j, h), and in the same order 128 zero points: nibbles for 4 bits; bytes for 8 bits in groups of
//         32, otherwise none, all are 128. 8512 (groups of 64: 8832, of 32: 9472), 16640 (17920) and 32768 bytes.
//         Each 4-bit word masked by 0x000f000f at shift 4e is register e of the A fragment. A lane's inputs are 8 neighbours, so that its B fragments of two k16 steps are 16
//         contiguous bytes of a plain row of X.
//         With `half`, rows r and r + half of a head of 2·half (gate and up: of the whole) share the accumulators of
//         a lane, so that rotations and SwiGLU need no exchange.
// norm    the small-m kernels of a NORM take rows of f32 and their RMSNorm is a prologue, the same function as in norm.cu:
//         while the first weights come in, each CTA normalises the rows and keeps them in shared memory for all stages.
// launch  256 threads, one CTA per SM; a ring of stages filled by cp.async, weights marked to leave L2 first. A lane
//         of the small-m kernel copies the very weights it reads; the barrier of a stage is for X and the scales.
// needs   k % 8 == 0; a place along k that stands for no input weighs nothing (repack.cu) or has zeros in X; rows of X beyond m and inputs beyond k are read as zeros; n beyond the last row not stored.
// bytes   weights once per 64 rows (16-bit prefill: 128) through L2, X once per 256 outputs through L2.
#pragma once

#include "norm.cuh"

// A weight format: GROUP inputs have a scale, SCALES bytes in the tail; VECTORS for 32 outputs x 32 inputs of a lane.
template <int GROUP_> struct Int4Of {
    static constexpr u32 GROUP = GROUP_, SCALES = 320, TAIL = 128 / GROUP * SCALES, RECORD = 8192 + TAIL, VECTORS = 1;
    static constexpr bool GROUPED = true;
    template <class T> struct Zero {
        u32 z[2][2]; // [tile][row half]
    };
    template <class T>
    static __device__ __forceinline__ void load_zero(Zero<T> &zero, const u8 *tail, u32 u, u32 g) {
        u32 nibbles = *reinterpret_cast<const u16 *>(tail + 256 + (u * 8 + g) * 2);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            zero.z[i / 2][i % 2] = (nibbles >> 4 * i & 15) * 0x10001 | T::NEGATIVE;
        }
    }
    template <class T>
    static __device__ __forceinline__ void decode(u32 (&a)[2][2][4], const uint4 *from, const Zero<T> &zero) {
        uint4 v = from[0];
        u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int s = 0; s < 2; s++) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    u32 code = ptx::and_or(words[2 * s + j] >> 4 * e, 0x000f000fu, T::MAGIC);
                    a[s][j][e] = T::add(code, zero.z[j][e & 1]);
                }
            }
        }
    }
};

using Int4 = Int4Of<128>;

template <int GROUP_, bool ZEROS> struct Int8Of {
    static constexpr u32 GROUP = GROUP_, SCALES = ZEROS ? 384 : 256, TAIL = 128 / GROUP * SCALES, RECORD = 16384 + TAIL;
    static constexpr u32 VECTORS = 2;
    static constexpr bool GROUPED = true;
    template <class T> struct Zero {
        u32 z[2][2]; // [tile][row half]: twice 128 less the zero point; unused where that is 128
    };
    template <class T>
    static __device__ __forceinline__ void load_zero(Zero<T> &zero, const u8 *tail, u32 u, u32 g) {
        if (ZEROS) {
            u32 bytes = *reinterpret_cast<const u32 *>(tail + 256 + (u * 8 + g) * 4);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                zero.z[i / 2][i % 2] = T::byte_minus_128((bytes >> 8 * i & 255) * 0x10001) ^ 0x80008000u;
            }
        }
    }
    template <class T>
    static __device__ __forceinline__ void decode(u32 (&a)[2][2][4], const uint4 *from, const Zero<T> &zero) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            uint4 v = from[j * 32];
            u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int w = 0; w < 4; w++) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    u32 code = T::byte_minus_128(words[w] >> 8 * h);
                    a[w / 2][j][w % 2 * 2 + h] = ZEROS ? T::add(code, zero.z[j][h]) : code;
                }
            }
        }
    }
};
using Int8 = Int8Of<128, false>;

struct Dense {
    static constexpr u32 GROUP = 128, SCALES = 0, TAIL = 0, RECORD = 32768, VECTORS = 4;
    static constexpr bool GROUPED = false;
    template <class T> struct Zero {};
    template <class T> static __device__ __forceinline__ void load_zero(Zero<T> &, const u8 *, u32, u32) {}
    template <class T>
    static __device__ __forceinline__ void decode(u32 (&a)[2][2][4], const uint4 *from, const Zero<T> &) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint4 v = from[i * 32];
            a[i / 2][i % 2][0] = v.x;
            a[i / 2][i % 2][1] = v.y;
            a[i / 2][i % 2][2] = v.z;
            a[i / 2][i % 2][3] = v.w;
        }
    }
};

// 16-bit weights of the type U, rounded to that of X as they are used.
template <class U> struct Cast : Dense {
    template <class T>
    static __device__ __forceinline__ void decode(u32 (&a)[2][2][4], const uint4 *from, const Zero<T> &zero) {
        Dense::decode<T>(a, from, zero);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            u32 &w = a[i / 8][i / 4 % 2][i % 4];
            w = T::pack(U::low(w), U::high(w));
        }
    }
};

// T elements, W weights, WARPS_N warps along the 256 outputs of a strip (the rest along m), NT tiles of 8 rows per
// warp, KB blocks of 32 inputs per stage, STAGES of the ring, PREFILL: whole strips of many rows per CTA, NORM: rows of
// f32 that are normalised, at most so many.
template <class T_, class W_, int WARPS_N_, int NT_, int KB_, int STAGES_, bool PREFILL_, int NORM_ = 0>
struct LinearConfig {
    using T = T_;
    using W = W_;
    static constexpr int WARPS_N = WARPS_N_, NT = NT_, KB = KB_, STAGES = STAGES_;
    static constexpr bool PREFILL = PREFILL_;
    static constexpr int NORM = NORM_;
    static constexpr int PAIRS = 8 / WARPS_N;       // 32-output pairs of tiles per warp
    static constexpr int ROWS = NORM > 0 ? NORM : 8 / WARPS_N * NT * 8; // rows of X per CTA
    static constexpr u32 WEIGHT_BYTES = 2 * 4 * KB * W::VECTORS * 512;
    static constexpr u32 TAIL_BYTES = 2 * W::TAIL;
    static constexpr u32 X_BYTES = NORM > 0 ? 0 : ROWS * KB * 64; // of a stage
    static constexpr u32 STAGE_BYTES = WEIGHT_BYTES + TAIL_BYTES + X_BYTES;
    // Prefill of grouped weights keeps the sum of the slices before in shared memory.
    static constexpr u32 TOTAL_BYTES = PREFILL && W::GROUPED ? PAIRS * 2 * NT * 4 * THREADS * 4 : 0;
    // The epilogue: tiles of 8 rows in a round; 16 floats for a tile and row, padded against bank conflicts. It may lie
    // where the sums of slices were.
    static constexpr int STEP = PREFILL && PAIRS == 1 ? 2 : 1;
    static constexpr u32 FINISH_AT = STAGES * STAGE_BYTES, FINISH_STRIDE = 20;
    static constexpr u32 FINISH_BYTES = 8 * PAIRS * 2 * 8 * STEP * FINISH_STRIDE * 4;
    static constexpr u32 ARRIVED_AT = FINISH_AT + (FINISH_BYTES > TOTAL_BYTES ? FINISH_BYTES : TOTAL_BYTES);
    // Normalised rows of all inputs.
    static constexpr u32 ROWS_AT = ARRIVED_AT + 16, ROW_BYTES = NORM_VECTORS * THREADS * 4 * 2;
    static constexpr u32 SMEM_BYTES = ROWS_AT + NORM * ROW_BYTES;
    static_assert(!W::GROUPED || KB == 4, "a stage is a record");
    static_assert(!PREFILL || WARPS_N == 8 || !W::GROUPED);
    static_assert(NORM == 0 || (NORM <= 8 && NT == 1 && WARPS_N == 8 && !PREFILL));
    static_assert(NT % STEP == 0 && SMEM_BYTES <= MOST_SHARED_BYTES);
};

// Where a worker is in its stages.
struct LinearCursor {
    u32 strip, stage, m0, left; // 256 outputs; KB blocks of inputs; first row; stages to go, this one included
};

template <class C> struct Linear {
    using T = typename C::T;
    using W = typename C::W;
    static constexpr int NT = C::NT, PAIRS = C::PAIRS;
    using Accumulators = float[PAIRS][2][NT][4];

    const QwenvlLinear &p;
    u32 worker, n_workers;
    u8 *smem;
    u32 smem_at;
    u32 strips, groups, stages, m_tiles;
    u32 warp, lane, g, t, warp_n, warp_m;
    u64 policy;
    // Of the copies: where this thread reads next.
    LinearCursor ahead;
    const u8 *ahead_w;
    const u16 *ahead_x;
    bool ahead_there;

    __device__ __forceinline__ Linear(const QwenvlLinear &p, u32 worker, u32 n_workers, u8 *smem)
        : p(p), worker(worker), n_workers(n_workers), smem(smem) {
        smem_at = ptx::shared_address(smem);
        strips = (p.n + 255) / 256;
        groups = (p.k + 127) / 128;
        stages = groups * 4 / C::KB;
        m_tiles = (p.m + C::ROWS - 1) / C::ROWS;
        warp = threadIdx.x / 32;
        lane = threadIdx.x % 32;
        g = lane / 4;
        t = lane % 4;
        warp_n = warp % C::WARPS_N;
        warp_m = warp / C::WARPS_N;
        policy = ptx::evict_first();
    }

    // First unit of a run; units are (strip, group), strips outermost.
    __device__ __forceinline__ u32 run_start(u32 run) const { return run * (strips * groups) / p.n_runs; }
    // The run that holds a unit.
    __device__ __forceinline__ u32 run_of(u32 unit) const { return ((unit + 1) * p.n_runs - 1) / (strips * groups); }

    __device__ __forceinline__ LinearCursor start() const {
        if (C::PREFILL) {
            u32 items = strips * m_tiles;
            u32 mine = worker < items ? (items - worker - 1) / n_workers + 1 : 0;
            return {worker / m_tiles, 0, worker % m_tiles * C::ROWS, mine * stages};
        }
        u32 first = run_start(worker), last = run_start(worker + 1);
        return {first / groups, first % groups * (4 / C::KB), 0, (last - first) * (4 / C::KB)};
    }

    // The start of the strip after that of `at`.
    __device__ __forceinline__ LinearCursor next_strip(const LinearCursor &at) const {
        if (C::PREFILL) {
            u32 item = at.strip * m_tiles + at.m0 / C::ROWS + n_workers;
            return {item / m_tiles, 0, item % m_tiles * C::ROWS, at.left};
        }
        return {at.strip + 1, 0, 0, at.left};
    }

    static constexpr u32 CHUNKS = C::KB * 4; // 16-byte pieces of a row of X in a stage
    static constexpr u32 PASS_ROWS = THREADS / CHUNKS;

    // Points the copies at the first stage that `ahead` names of its strip.
    __device__ __forceinline__ void aim() {
        u32 record = ahead.strip * 2 + warp / 4;
        ahead_there = record < (p.n + 127) / 128;
        u32 block = ahead.stage * C::KB;
        ahead_w = static_cast<const u8 *>(p.w) +
                  (static_cast<u64>(ahead_there ? record : 0) * groups + block / 4) * W::RECORD +
                  ((warp % 4 * 4 + block % 4) * W::VECTORS * 32 + lane) * 16;
        ahead_x = static_cast<const u16 *>(p.x) + static_cast<u64>(ahead.m0 + threadIdx.x / CHUNKS) * p.ldx +
                  block * 32 + threadIdx.x % CHUNKS * 8;
    }

    // Starts the copies of one stage and moves on. Each warp copies 32 outputs; in the small-m kernel its own.
    __device__ __forceinline__ void fetch(u32 slot) {
        u32 stage_at = smem_at + slot * C::STAGE_BYTES;
        constexpr int VECTORS = C::KB * W::VECTORS;
        u32 to = stage_at + (warp * VECTORS * 32 + lane) * 16;
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            ptx::copy16_hint(to + v * 512, ahead_w + v * 512, ahead_there ? 16 : 0, policy);
        }
        if constexpr (W::TAIL > 512) { // too long for one warp; `ahead_w` is at the warp's own weights
            if (threadIdx.x % 128 < W::TAIL / 16) {
                ptx::copy16_hint(stage_at + C::WEIGHT_BYTES + warp / 4 * W::TAIL + threadIdx.x % 128 * 16,
                                 ahead_w + (W::RECORD - W::TAIL) - warp % 4 * (VECTORS - 1) * 512, ahead_there ? 16 : 0,
                                 policy);
            }
        } else if (W::TAIL > 0 && warp % 4 == 0 && lane < W::TAIL / 16) {
            ptx::copy16_hint(stage_at + C::WEIGHT_BYTES + warp / 4 * W::TAIL + lane * 16,
                             ahead_w + (W::RECORD - W::TAIL), ahead_there ? 16 : 0, policy);
        }
        if (C::NORM == 0) {
            fetch_rows(stage_at);
        }
        ahead.left--;
        ahead.stage++;
        ahead_x += C::KB * 32;
        ahead_w += C::KB == 4 || ahead.stage % (4 / C::KB) == 0 ? W::RECORD - (4 / C::KB - 1) * VECTORS * 512
                                                               : VECTORS * 512;
        if (ahead.stage == stages) {
            ahead = next_strip(ahead);
            aim();
        }
    }

    __device__ __forceinline__ void fetch_rows(u32 stage_at) const {
        u32 row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        bool inside = (ahead.stage * CHUNKS + chunk) * 8 < p.k;
        u32 x_at = stage_at + C::WEIGHT_BYTES + C::TAIL_BYTES + row * CHUNKS * 16 + swizzle(row, chunk) * 16;
#pragma unroll
        for (u32 pass = 0; pass < C::ROWS; pass += PASS_ROWS) {
            if (C::ROWS % PASS_ROWS != 0 && row >= C::ROWS) {
                break;
            }
            bool there = inside && ahead.m0 + row + pass < p.m;
            const u16 *from = ahead_x + static_cast<u64>(pass) * p.ldx;
            ptx::copy16(x_at + pass * CHUNKS * 16, there ? from : p.x, there ? 16 : 0);
        }
    }

    // RMSNorm of the rows of X into shared memory.
    __device__ __forceinline__ void normalise() const {
        float *scratch = reinterpret_cast<float *>(smem + C::FINISH_AT);
        float4 weight[NORM_VECTORS];
        load_row(weight, p.norm_weight, p.k);
        for (u32 row = 0; row < p.m; row++) {
            float4 x[NORM_VECTORS];
            load_row(x, static_cast<const float *>(p.x) + static_cast<u64>(row) * p.ldx, p.k);
            float scale = rms_scale(x, p.k, p.eps, scratch);
            u8 *to = smem + C::ROWS_AT + row * C::ROW_BYTES;
#pragma unroll
            for (u32 i = 0; i < NORM_VECTORS; i++) {
                u32 at = i * THREADS + threadIdx.x; // 8 bytes
                if (at * 4 < (p.k + 127) / 128 * 128) { // zeros beyond the inputs: weights there are zero, not these
                    *reinterpret_cast<uint2 *>(to + (at ^ (row & 1) << 3) * 8) = rms_apply<T>(x[i], scale, weight[i]);
                }
            }
        }
    }

    // Rows of 128 bytes or more: the two rows that eight lanes read together lie in different halves of the banks.
    static __device__ __forceinline__ u32 swizzle(u32 row, u32 chunk) {
        return C::KB > 1 ? chunk ^ (row & 1) << 2 : chunk;
    }

    // The zero points and scales of a group lie at `tail`, in each record of the stage.
    __device__ __forceinline__ void start_group(Accumulators &group, typename W::template Zero<T> (&zero)[PAIRS],
                                                const u8 *tail) const {
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            u32 at = warp_n * PAIRS + pair; // of 8 in the strip
            W::template load_zero<T>(zero[pair], tail + at / 4 * W::TAIL, at % 4, g);
#pragma unroll
            for (int i = 0; i < 2 * NT * 4; i++) {
                group[pair][i / (NT * 4)][i / 4 % NT][i % 4] = 0.0f;
            }
        }
    }
    __device__ __forceinline__ void fold_group(Accumulators &sums, Accumulators &group, const u8 *tail) const {
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            u32 at = warp_n * PAIRS + pair;
            uint2 s = *reinterpret_cast<const uint2 *>(tail + at / 4 * W::TAIL + (at % 4 * 8 + g) * 8);
            float scale[2][2] = {{F16::low(s.x), F16::high(s.x)}, {F16::low(s.y), F16::high(s.y)}};
#pragma unroll
            for (int i = 0; i < 2 * NT * 4; i++) {
                int j = i / (NT * 4), tile = i / 4 % NT, e = i % 4;
                sums[pair][j][tile][e] = __fmaf_rn(scale[j][e / 2], group[pair][j][tile][e], sums[pair][j][tile][e]);
            }
        }
    }

    // Adds one stage, `block` blocks of 32 inputs into its strip, to `sums`.
    __device__ __forceinline__ void multiply(u32 slot, u32 block, Accumulators &sums) const {
        const u8 *stage = smem + slot * C::STAGE_BYTES;
        u32 x = smem_at + slot * C::STAGE_BYTES + C::WEIGHT_BYTES + C::TAIL_BYTES + warp_m * NT * 8 * C::KB * 64;
        float group[PAIRS][2][NT][4];
        typename W::template Zero<T> zero[PAIRS];
        const u8 *tail = stage + C::WEIGHT_BYTES;
        if (W::GROUPED && W::GROUP == 128) {
            start_group(group, zero, tail);
        }
        float(&into)[PAIRS][2][NT][4] = W::GROUPED ? group : sums;
#pragma unroll
        for (int b = 0; b < C::KB; b++) {
            if (W::GROUP < 128 && b * 32 % W::GROUP == 0) {
                start_group(group, zero, tail + b * 32 / W::GROUP * W::SCALES);
            }
            u32 a[PAIRS][2][2][4];
#pragma unroll
            for (int pair = 0; pair < PAIRS; pair++) {
                u32 at = warp_n * PAIRS + pair;
                const uint4 *from = reinterpret_cast<const uint4 *>(stage) + (at * C::KB + b) * W::VECTORS * 32 + lane;
                W::template decode<T>(a[pair], from, zero[pair]);
            }
#pragma unroll
            for (int i = 0; i < NT; i++) {
                u32 row = i * 8 + g;
                uint4 v = make_uint4(0, 0, 0, 0);
                if (C::NORM == 0) {
                    v = ptx::load16(x + row * C::KB * 64 + swizzle(row, b * 4 + t) * 16);
                } else if (g < p.m) {
                    v = *reinterpret_cast<const uint4 *>(smem + C::ROWS_AT + g * C::ROW_BYTES +
                                                         ((block + b) * 4 + t ^ (g & 1) << 2) * 16);
                }
#pragma unroll
                for (int pair = 0; pair < PAIRS; pair++) {
                    T::mma(into[pair][0][i], a[pair][0][0], v.x, v.y);
                    T::mma(into[pair][1][i], a[pair][0][1], v.x, v.y);
                }
#pragma unroll
                for (int pair = 0; pair < PAIRS; pair++) {
                    T::mma(into[pair][0][i], a[pair][1][0], v.z, v.w);
                    T::mma(into[pair][1][i], a[pair][1][1], v.z, v.w);
                }
            }
            if (W::GROUP < 128 && (b + 1) * 32 % W::GROUP == 0) {
                fold_group(sums, group, tail + b * 32 / W::GROUP * W::SCALES);
            }
        }
        if (W::GROUPED && W::GROUP == 128) {
            fold_group(sums, group, tail);
        }
    }

    // The first outputs (rows of W) of the two halves of tile `tile` of all tiles.
    __device__ __forceinline__ void outputs(u32 tile, u32 &low, u32 &high) const {
        if (p.half == 0) {
            low = tile * 16;
            high = low + 8;
        } else {
            u32 tiles = p.half / 8; // of a head
            low = tile / tiles * 2 * p.half + tile % tiles * 8;
            high = low + p.half;
        }
    }

    // The epilogue of 8 outputs `low` and their 8 partners `high` (the next 8, or those half a head on) of one row.
    template <u32 EPILOGUE>
    __device__ __forceinline__ void finish_run(float (&low)[8], float (&high)[8], u32 m, u32 tile) const {
        u32 n[2];
        outputs(tile, n[0], n[1]);
        bool there[2] = {n[0] < p.n, n[1] < p.n};
        if (m >= p.m || !there[0]) {
            return;
        }
        if (p.bias != nullptr) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                low[i] += p.bias[n[0] + i];
                high[i] += there[1] ? p.bias[n[1] + i] : 0.0f;
            }
        }
        u64 row = static_cast<u64>(m) * p.ldo;
        if (EPILOGUE == QWENVL_SWIGLU) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                low[i] = gated(low[i], 1.0f) * high[i];
            }
            return store_run(static_cast<u16 *>(p.out) + row + n[0], low);
        }
        u16 *to[2] = {static_cast<u16 *>(p.out) + row + n[0], static_cast<u16 *>(p.out) + row + n[1]};
        if (EPILOGUE == QWENVL_ROPE || EPILOGUE == QWENVL_ROPE_KV) {
            u32 channel = n[0] % (2 * p.half); // within a head, below half
            if (n[0] < p.n_rotated) {
                Turn by[8];
                turns(by, p.rope, m, channel);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    float turned = low[i] * by[i].cos - high[i] * by[i].sin;
                    high[i] = high[i] * by[i].cos + low[i] * by[i].sin;
                    low[i] = turned;
                }
            }
            if (EPILOGUE == QWENVL_ROPE_KV && n[0] >= p.n_q) {
                u32 slot = p.slots[m];
                if (slot == QWENVL_NO_SLOT) {
                    return;
                }
                bool value = n[0] >= p.n_rotated;
                u32 head = (n[0] - (value ? p.n_rotated : p.n_q)) / p.kv.head_dim;
                to[0] = static_cast<u16 *>(p.kv.pages) + channel +
                        kv_at(p.kv, slot / QWENVL_PAGE_TOKENS, value, head, slot % QWENVL_PAGE_TOKENS);
                to[1] = to[0] + p.half;
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float(&y)[8] = h == 0 ? low : high;
            if (!there[h]) {
                continue;
            }
            if constexpr (EPILOGUE == QWENVL_STORE_F32 || EPILOGUE == QWENVL_RESIDUAL) {
                float4 *out = reinterpret_cast<float4 *>(static_cast<float *>(p.out) + row + n[h]);
                float4 a = make_float4(y[0], y[1], y[2], y[3]), b = make_float4(y[4], y[5], y[6], y[7]);
                if (EPILOGUE == QWENVL_RESIDUAL) {
                    const float4 *residual = reinterpret_cast<const float4 *>(p.residual + row + n[h]);
                    float4 ra = residual[0], rb = residual[1];
                    a = make_float4(ra.x + a.x, ra.y + a.y, ra.z + a.z, ra.w + a.w);
                    b = make_float4(rb.x + b.x, rb.y + b.y, rb.z + b.z, rb.w + b.w);
                }
                out[0] = a;
                out[1] = b;
            } else {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    if (EPILOGUE == QWENVL_QUICK_GELU) {
                        y[i] = gated(y[i], 1.702f);
                    } else if (EPILOGUE == QWENVL_GELU) {
                        y[i] = gelu(y[i]);
                    }
                }
                store_run(to[h], y);
            }
        }
    }

    static __device__ __forceinline__ void store_run(u16 *to, const float (&y)[8]) {
        *reinterpret_cast<uint4 *>(to) =
            make_uint4(T::pack(y[0], y[1]), T::pack(y[2], y[3]), T::pack(y[4], y[5]), T::pack(y[6], y[7]));
    }

    // A warp's sums go through its own piece of shared memory, so that a lane gets 8 neighbouring outputs of a row: rows
    // leave in pieces of 16 bytes. Rounds are a loop, for the sake of the size of the code: the sums move up instead.
    __device__ __forceinline__ void finish(Accumulators &sums, u32 strip, u32 m0) const {
        constexpr int STEP = C::STEP, SPAN = 8 * STEP; // tiles and rows of X in a round
        float *stage = reinterpret_cast<float *>(smem + C::FINISH_AT) + warp * (PAIRS * 2 * SPAN * C::FINISH_STRIDE);
        u32 tile = strip * 16 + warp_n * PAIRS * 2 + lane / SPAN, row = m0 + warp_m * NT * 8 + lane % SPAN;
#pragma unroll 1
        for (int round = 0; round < NT / STEP; round++) {
            if (round > 0) __syncwarp(); // all have read the round before
#pragma unroll
            for (int i = 0; i < PAIRS * 2 * NT * 4; i++) {
                int at = i / (4 * NT), step = i / 4 % NT, e = i % 4;
                float &x = sums[at / 2][at % 2][step][e];
                if (step < STEP) {
                    stage[(at * SPAN + step * 8 + 2 * t + e % 2) * C::FINISH_STRIDE + e / 2 * 8 + g] = x;
                } else {
                    sums[at / 2][at % 2][step - STEP][e] = x;
                }
            }
            __syncwarp();
            if (lane < PAIRS * 2 * SPAN) {
                const float4 *from = reinterpret_cast<const float4 *>(stage + lane * C::FINISH_STRIDE);
                float y[2][8];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float4 v = from[i];
                    y[i / 2][i % 2 * 4] = v.x;
                    y[i / 2][i % 2 * 4 + 1] = v.y;
                    y[i / 2][i % 2 * 4 + 2] = v.z;
                    y[i / 2][i % 2 * 4 + 3] = v.w;
                }
                u32 m = row + round * SPAN;
                switch (p.epilogue) {
                case QWENVL_STORE_F32: finish_run<QWENVL_STORE_F32>(y[0], y[1], m, tile); break;
                case QWENVL_STORE: finish_run<QWENVL_STORE>(y[0], y[1], m, tile); break;
                case QWENVL_QUICK_GELU: finish_run<QWENVL_QUICK_GELU>(y[0], y[1], m, tile); break;
                case QWENVL_GELU: finish_run<QWENVL_GELU>(y[0], y[1], m, tile); break;
                case QWENVL_RESIDUAL: finish_run<QWENVL_RESIDUAL>(y[0], y[1], m, tile); break;
                case QWENVL_SWIGLU: finish_run<QWENVL_SWIGLU>(y[0], y[1], m, tile); break;
                case QWENVL_ROPE: finish_run<QWENVL_ROPE>(y[0], y[1], m, tile); break;
                default: finish_run<QWENVL_ROPE_KV>(y[0], y[1], m, tile);
                }
            }
        }
    }

    // Joins the runs that share a strip: all store, the last to arrive adds them in order. Nobody waits. Lanes whose rows
    // are none of X leave their part of the memory alone; those of the same two rows lie side by side in it, so that few
    // rows take few sectors. Loads of several runs go out before the first is added: one after the other they would take
    // longer than the weights of a small layer.
    __device__ __forceinline__ bool join(Accumulators &sums, u32 strip) const {
        u32 first = run_of(strip * groups), last = run_of((strip + 1) * groups - 1);
        if (first == last) {
            return true;
        }
        constexpr int VECTORS = PAIRS * 2 * NT, AT_ONCE = VECTORS < 16 ? 16 / VECTORS : 1;
        auto place = [&](u32 run) {
            u32 at = 2 * run + (run_start(run) < strip * groups ? 1 : 0);
            return reinterpret_cast<float4 *>(p.partials) + static_cast<u64>(at) * VECTORS * THREADS + warp * 32 + t * 8 + g;
        };
        auto used = [&](int i) { return (warp_m * NT + i % NT) * 8 + 2 * t < p.m; };
        float4 *mine = place(worker);
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            const float(&v)[4] = sums[i / (2 * NT)][i / NT % 2][i % NT];
            if (used(i)) {
                mine[i * THREADS] = make_float4(v[0], v[1], v[2], v[3]);
            }
        }
        u32 *arrived = reinterpret_cast<u32 *>(smem + C::ARRIVED_AT);
        __threadfence();
        __syncthreads(); // all of the block has written
        if (threadIdx.x == 0) {
            *arrived = atomicAdd(p.arrivals + strip, 1);
        }
        __syncthreads();
        if (*arrived != last - first) {
            return false;
        }
        __threadfence();
        if (threadIdx.x == 0) {
            p.arrivals[strip] = 0; // for the next launch: nobody else comes
        }
        for (u32 run = first; run <= last; run += AT_ONCE) {
            float4 x[AT_ONCE][VECTORS];
#pragma unroll
            for (int r = 0; r < AT_ONCE; r++) {
                const float4 *from = place(min(run + r, last));
#pragma unroll
                for (int i = 0; i < VECTORS; i++) {
                    // Without a branch: lanes of no row take what those of the first two rows have.
                    x[r][i] = __ldcg(used(i) ? from + i * THREADS : from + i / NT * NT * THREADS - t * 8);
                }
            }
#pragma unroll
            for (int r = 0; r < AT_ONCE; r++) {
                if (run + r > last) {
                    break;
                }
#pragma unroll
                for (int i = 0; i < VECTORS; i++) {
                    float(&v)[4] = sums[i / (2 * NT)][i / NT % 2][i % NT];
                    bool start = r == 0 && run == first;
                    v[0] = start ? x[r][i].x : v[0] + x[r][i].x;
                    v[1] = start ? x[r][i].y : v[1] + x[r][i].y;
                    v[2] = start ? x[r][i].z : v[2] + x[r][i].z;
                    v[3] = start ? x[r][i].w : v[3] + x[r][i].w;
                }
            }
        }
        return true;
    }

    // Prefill: adds a finished slice to the sum of those before, kept in shared memory, and starts anew.
    __device__ __forceinline__ void fold_slice(Accumulators &sums, bool first, bool last) const {
        float *total = reinterpret_cast<float *>(smem + C::STAGES * C::STAGE_BYTES) + threadIdx.x;
#pragma unroll
        for (int i = 0; i < PAIRS * 2 * NT * 4; i++) {
            float &v = sums[i / (8 * NT)][i / (4 * NT) % 2][i / 4 % NT][i % 4];
            float sum = first ? v : total[i * THREADS] + v;
            if (last) {
                v = sum;
            } else {
                total[i * THREADS] = sum;
                v = 0.0f;
            }
        }
    }

    static __device__ __forceinline__ void clear(Accumulators &sums) {
#pragma unroll
        for (int i = 0; i < PAIRS * 2 * NT * 4; i++) {
            sums[i / (8 * NT)][i / (4 * NT) % 2][i / 4 % NT][i % 4] = 0.0f;
        }
    }

    __device__ __forceinline__ void run() {
        if (!C::PREFILL && worker >= p.n_runs) {
            return;
        }
        LinearCursor at = start();
        ahead = at;
        aim();
#pragma unroll
        for (int slot = 0; slot < C::STAGES - 1; slot++) {
            if (ahead.left > 0) {
                fetch(slot);
            }
            ptx::copy_commit();
        }
        if constexpr (C::NORM > 0) {
            normalise();
        }
        float sums[PAIRS][2][NT][4];
        clear(sums);
        u32 slot = 0, free = C::STAGES - 1;
        bool first_slice = true;
        while (at.left > 0) {
            // The stages up to the end of a strip, a run or a slice.
            u32 count = min(stages - at.stage, at.left);
            if (C::PREFILL && W::GROUPED) {
                u32 unit = at.strip * groups + at.stage;
                count = min(count, run_start(run_of(unit) + 1) - unit);
            }
            u32 block = at.stage * C::KB;
            at.left -= count;
            at.stage += count;
#pragma unroll 1
            for (; count > 0; count--) {
                ptx::copy_wait<C::STAGES - 2>();
                __syncthreads();
                if (ahead.left > 0) {
                    fetch(free);
                }
                ptx::copy_commit();
                multiply(slot, block, sums);
                block += C::KB;
                free = slot;
                slot = slot + 1 == C::STAGES ? 0 : slot + 1;
            }
            if (C::PREFILL && W::GROUPED) {
                bool last_slice = at.stage == stages;
                if (!(first_slice && last_slice)) {
                    fold_slice(sums, first_slice, last_slice);
                }
                first_slice = last_slice;
                if (!last_slice) {
                    continue;
                }
            }
            if (C::PREFILL || join(sums, at.strip)) {
                if (C::TOTAL_BYTES > 0) {
                    __syncthreads(); // other warps' sums of slices lie where this warp's results go
                }
                finish(sums, at.strip, at.m0);
            }
            clear(sums);
            at = next_strip(at);
        }
    }
};

// A kernel for each configuration. The launcher reads `name`_config: bytes of dynamic shared memory, rows of X per
// CTA; both depend on the architecture.
#define LINEAR_KERNEL(name, ...)                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) name(const __grid_constant__ QwenvlLinear p) {            \
        extern __shared__ __align__(128) u8 smem[];                                                                    \
        Linear<LinearConfig<__VA_ARGS__>>(p, blockIdx.x, gridDim.x, smem).run();                                       \
    }                                                                                                                  \
    extern "C" __device__ u32 name##_config[2] = {LinearConfig<__VA_ARGS__>::SMEM_BYTES,                               \
                                                  LinearConfig<__VA_ARGS__>::ROWS};
