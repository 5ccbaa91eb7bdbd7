// linear: Y = X Wᵀ + b with what follows it, for weights of 4, 8 and 16 bits. The body of int4_gemm, int8_gemm,
// dense_gemm and their kin for other groups and types, small m and prefill alike.
//
// math    Y[m, n] = Σ_slice Σ_group s[group, n] · Σ_{k in group} (c[k, n] − z[group, n]) · X[m, k]
//         Products are summed in f32 by mma (k16 steps in order), groups by a left fold with the scale, slices by a left
//         fold. 16 bits: one chain of mma for a slice. 8 bits, and 4 bits in groups below 128: c − z is formed exactly
//         in 16 bits (below 256, so that bf16 holds it).
//         4 bits in groups of 128: Σ (c − z) X = Σ (c + o) X − (o + z) Σ X. c + o is exact: o = 128 in bf16; in f16
//         o = 0, codes are taken as multiples of 2⁻²⁴. Σ X of a row and group is a tree (`row_sum`), the same in every
//         kernel. What is lost where the two terms cancel: o + 15 times Σ |X| at the precision of one group's sum; 2⁻¹⁷
//         of a typical output.
// order   slices are cut where the plan's `n_runs` equal runs of (strip, group) units end: a function of n, k and
//         n_runs. The small-m kernel (a run per CTA) and the prefill kernel (tiles of all inputs) of 4- and 8-bit
//         weights give the same bits, and so do the three prefill kernels of 16-bit weights; no row's bits depend on m,
//         nor on where a tile of a prompt is cut in two (linear_shares.cuh).
// layout  the transposed problem: weights are the A operand (16 outputs x 16 inputs), rows of X the B operand.
//         Weights lie in records of 128 outputs x 128 inputs, those of the first outputs first, in the order in which
//         lanes of a warp load them, 16 bytes at a time. Output n, input k of a record, lane = 4·(n%8) + (k%32)/8:
//           u = n/32  j = n%32/16  h = n%16/8  b = k/32  s = k%8/4  y = k%4
//           4-bit   vector (u·4 + b)·32 + lane, byte (2s + j)·4, nibble h + 2·(y/2) + 4·(y%2)
//           8-bit   vector ((u·4 + b)·2 + j)·32 + lane, byte (2s + y/2)·4 + h + 2·(y%2)
//           16-bit  vector (((u·4 + b)·2 + s)·2 + j)·32 + lane, byte (h + 2·(y/2))·4 + 2·(y%2)
//         Then for each group of inputs (128 of them, or as the name of a kernel says) 128 f16 scales in the order
//         (u, n%8, j, h), and in the same order 128 zero points: nibbles for 4 bits; bytes for 8 bits in groups of
//         32, otherwise none, all are 128. 8512 (groups of 64: 8832, of 32: 9472), 16640 (17920) and 32768 bytes.
//         Nibbles e and e + 4 of a 4-bit word are register e of the A fragment (weights.cuh). A lane's inputs are 8
//         neighbours, so that its B fragments of two k16 steps are 16 contiguous bytes of a plain row of X.
//         With `half`, rows r and r + half of a head of 2·half (gate and up: of the whole) share the accumulators of
//         a lane, so that rotations and SwiGLU need no exchange.
// norm    the small-m kernels of a NORM take rows of f32 and their RMSNorm is a prologue, the same function as in norm.cu:
//         while the first weights come in, each CTA normalises the rows and keeps them in shared memory for all stages.
// launch  256 threads, one CTA per SM (small tiles of prompts: two, of 128 or 256 threads); a ring of stages filled by cp.async, weights marked to leave L2 first. A lane
//         of the small-m kernel copies the very weights it reads; the barrier of a stage is for X, the scales, and the
//         sums of rows that other warps found in the stage before, whose groups are added after it. Prefill CTAs have
//         equal shares of the inputs of all tiles, cut in the middle of tiles; the sums of such a tile are handed on
//         from one CTA to the next (after Osama et al., "Stream-K", arXiv 2301.03598, which adds them up instead).
// needs   k % 8 == 0; a place along k that stands for no input weighs nothing (repack.cu) or has zeros in X; rows of X
//         beyond m add nothing to others; inputs beyond k are read as zeros; n beyond the last row not stored.
// bytes   weights once per 64 rows (wide tiles of 16-bit weights: 128) through L2, X once per strip through L2. Which
//         rows go to which kernel: tiles.rs.
#pragma once

#include "epilogue.cuh"
#include "linear_shares.cuh"

// Copies of weights to the ring: where this thread reads next, and where it writes in a stage. A warp of the small-m kernel
// copies its own 32 outputs.
template <class C> struct LinearCopies {
    using W = typename C::W;
    static constexpr int VECTORS = C::STRIP_PAIRS * C::KB * W::VECTORS / C::WARPS; // of a warp in a stage

    u64 policy;
    const u8 *from;
    u32 bytes; // of 16; none beyond the last record
    u32 to_weights, to_tail;

    __device__ __forceinline__ explicit LinearCopies(u32 smem_at) : policy(ptx::evict_first()) {
        u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        // Else the compiler works them out in every stage.
        to_weights = ptx::opaque(smem_at + (warp * VECTORS * 32 + lane) * 16);
        to_tail = ptx::opaque(smem_at + C::WEIGHT_BYTES + warp / 4 * W::TAIL + threadIdx.x % 128 * 16);
    }

    // Points them at a stage of a strip of the records `w`.
    __device__ __forceinline__ void aim(const void *w, u32 n, u32 groups, u32 strip, u32 stage) {
        constexpr u32 SHARE = C::WARPS / C::STRIP_PAIRS; // warps that copy a pair together
        u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        u32 pair = strip * C::STRIP_PAIRS + warp / SHARE, record = pair / 4;
        bool there = record < (n + 127) / 128;
        bytes = there ? 16 : 0;
        u32 block = stage * C::KB;
        from = static_cast<const u8 *>(w) +
               (static_cast<u64>(there ? record : 0) * groups + block / 4) * W::RECORD +
               ((pair % 4 * 4 + block % 4) * W::VECTORS * 32 + warp % SHARE * VECTORS * 32 + lane) * 16;
    }

    // Starts the copies of a stage, `at` bytes into the ring.
    __device__ __forceinline__ void copy(u32 at) const {
        unrolled<VECTORS>([&](auto v) { ptx::copy16_hint<v.value * 512>(to_weights + at, from, bytes, policy); });
        if (W::TAIL > 0 && threadIdx.x % 128 < W::TAIL / 16) {
            // `from` is at the warp's own weights: of the first warp, unless the tail is too long for one.
            u32 warp = threadIdx.x / 32;
            const u8 *tail = from + (W::RECORD - W::TAIL) - (W::TAIL > 512 ? warp % 4 * (VECTORS - 1) * 512 : 0);
            ptx::copy16_hint(to_tail + at, tail, bytes, policy);
        }
    }

    // To `stage`, the next of the segment.
    __device__ __forceinline__ void move_on(u32 stage) {
        constexpr u32 BYTES = C::KB * W::VECTORS * 512; // of a pair in a stage
        from += C::KB == 4 || stage % (4 / C::KB) == 0 ? W::RECORD - (4 / C::KB - 1) * BYTES : BYTES;
    }
};

template <class C> struct Linear : LinearShare<C> {
    using T = typename C::T;
    using W = typename C::W;
    using Share = LinearShare<C>;
    using Accumulators = typename Share::Accumulators;
    using Share::NT, Share::PAIRS, Share::THREADS;
    using Share::p, Share::worker, Share::smem, Share::groups, Share::stages;
    using Share::warp, Share::lane, Share::g, Share::t, Share::warp_n, Share::warp_m;
    using Share::strip_of, Share::first_row_of, Share::tile_of, Share::next_segment;

    struct Group {
        Accumulators sums;
        float2 scale[PAIRS][2]; // [tile] of its two halves
        typename W::template Zero<T> zero[PAIRS];
    };

    u32 smem_at;
    // Of the copies: where this thread reads next.
    LinearCursor ahead;
    LinearCopies<C> weights;
    const u16 *ahead_x;
    u32 ahead_m0; // of its tile
    // Where this lane's rows of X lie in the ring, of even and of odd blocks (see `swizzle`), or among the normalised;
    // and the sums of its two columns.
    u32 x_at[2], column_at;

    __device__ __forceinline__ Linear(const QwenvlLinear &p, u32 worker, u32 n_workers, u8 *smem)
        : Share(p, worker, n_workers, smem), smem_at(ptx::shared_address(smem)), weights(smem_at) {
        u32 row = C::FILLED ? g : min(g, p.m - 1);
        if (C::NORM > 0) {
            x_at[0] = x_at[1] = smem_at + C::ROWS_AT + row * C::ROW_BYTES + t * 16;
            column_at = smem_at + C::SUMS_AT;
        } else {
            u32 rows = smem_at + C::WEIGHT_BYTES + C::TAIL_BYTES + (warp_m * NT * 8 + row) * C::KB * 64 + t * 16;
            u32 turned = C::KB > 1 ? row % 2 * 64 : 0;
            x_at[0] = rows + turned;
            x_at[1] = rows - turned;
            column_at = smem_at + C::SUMS_AT + (warp_m * NT * 8 + 2 * t) * 4;
        }
        if (W::GROUP == 128 && (C::PREFILL || NT < 8)) { // the others have no register to spare
            x_at[0] = ptx::opaque(x_at[0]);
            x_at[1] = ptx::opaque(x_at[1]);
            column_at = ptx::opaque(column_at);
        }
    }

    static constexpr u32 CHUNKS = C::KB * 4; // 16-byte pieces of a row of X in a stage
    static constexpr u32 PASS_ROWS = THREADS / CHUNKS;

    // Points the copies at the stage of `ahead`.
    __device__ __forceinline__ void aim() {
        weights.aim(p.w, p.n, groups, strip_of(ahead.tile), ahead.stage);
        ahead_m0 = first_row_of(ahead.tile);
        ahead_x = static_cast<const u16 *>(p.x) + static_cast<u64>(ahead_m0 + threadIdx.x / CHUNKS) * p.ldx +
                  ahead.stage * C::KB * 32 + threadIdx.x % CHUNKS * 8;
    }

    // Starts the copies of one stage, `at` bytes into the ring, and moves on.
    __device__ __forceinline__ void fetch(u32 at) {
        weights.copy(at);
        if (C::NORM == 0) {
            fetch_rows(smem_at + at);
        }
        ahead.stage++;
        ahead_x += C::KB * 32;
        weights.move_on(ahead.stage);
        if (ahead.stage == ahead.end) {
            ahead = next_segment(ahead);
            aim();
        }
    }

    __device__ __forceinline__ void fetch_rows(u32 stage_at) const {
        u32 row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        if (C::FILLED ? C::ROWS % PASS_ROWS != 0 && row >= C::ROWS : row >= p.m) {
            return;
        }
        bool inside = (ahead.stage * CHUNKS + chunk) * 8 < p.k;
        u32 x_at = stage_at + C::WEIGHT_BYTES + C::TAIL_BYTES + row * CHUNKS * 16 + swizzle(row, chunk) * 16;
#pragma unroll
        for (u32 pass = 0; pass < C::ROWS; pass += PASS_ROWS) {
            bool there = inside && (!C::FILLED || ahead_m0 + row + pass < p.m);
            const u16 *from = ahead_x + static_cast<u64>(pass) * p.ldx;
            ptx::copy16(x_at + pass * CHUNKS * 16, there ? from : p.x, there ? 16 : 0);
        }
    }

    // The sums of the rows of a stage over its inputs: of 8 neighbours, then `row_sum`. Where no warp has all of a tile.
    __device__ __forceinline__ void sum_rows(u32 at, u32 to) const {
        constexpr int N = C::ROWS <= 16 ? 1 : C::ROWS / 16, LANES = 16 / N;
        u32 row = threadIdx.x / LANES;
        if (!C::FILLED && warp * (32 / LANES) >= p.m) {
            return;
        }
        u32 from = smem_at + C::WEIGHT_BYTES + C::TAIL_BYTES + at + (C::FILLED ? row : min(row, p.m - 1)) * 256;
        float sums[N];
        // `swizzle` changes nothing: it exchanges what is added.
        unrolled<N>([&](auto i) {
            uint4 v = ptx::load16<i.value * LANES * 16>(from + threadIdx.x % LANES * 16);
            sums[i.value] = sum4<T>(v.x, v.y) + sum4<T>(v.z, v.w);
        });
        float sum = row_sum<LANES>(sums);
        if (threadIdx.x % LANES == 0 && (C::FILLED || row < p.m)) {
            *reinterpret_cast<float *>(smem + C::SUMS_AT + to + row * 4) = sum;
        }
    }

    // RMSNorm of the rows of X into shared memory.
    __device__ __forceinline__ void normalise() const {
        float *scratch = reinterpret_cast<float *>(smem + C::FINISH_AT);
        float *row_sums = reinterpret_cast<float *>(smem + C::SUMS_AT); // [group][two rows]
        if (W::LIFTED && threadIdx.x < C::SUMS_BYTES / 4) {
            row_sums[threadIdx.x] = 0.0f;
        }
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
                    uint2 four = rms_apply<T>(x[i], scale, weight[i]);
                    *reinterpret_cast<uint2 *>(to + at * 8) = four;
                    if (W::LIFTED) {
                        float sum = sum4<T>(four.x, four.y);
                        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
#pragma unroll
                        for (u32 lanes = 16; lanes > 1; lanes /= 2) {
                            sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
                        }
                        if (lane == 0) {
                            row_sums[at / 32 * 2 + row] = sum;
                        }
                    }
                }
            }
        }
    }

    // Rows of 128 bytes or more: the two rows that eight lanes read together lie in different halves of the banks.
    static __device__ __forceinline__ u32 swizzle(u32 row, u32 chunk) {
        return C::KB > 1 ? chunk ^ (row & 1) << 2 : chunk;
    }

    // The zero points and the scales of a group lie at `tail`, in each record of the stage.
    __device__ __forceinline__ void load_zeros(Group &group, const u8 *tail) const {
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            u32 at = warp_n * PAIRS + pair; // of 8 in the strip
            W::template load_zero<T>(group.zero[pair], tail + at / 4 * W::TAIL, at % 4, g);
        }
    }
    __device__ __forceinline__ void load_scales(Group &group, const u8 *tail) const {
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            u32 at = warp_n * PAIRS + pair;
            uint2 s = *reinterpret_cast<const uint2 *>(tail + at / 4 * W::TAIL + (at % 4 * 8 + g) * 8);
            group.scale[pair][0] = ptx::f16x2_to_f32(s.x);
            group.scale[pair][1] = ptx::f16x2_to_f32(s.y);
        }
    }

    // Adds one stage, `at` bytes into the ring and `row_at` bytes into normalised rows, to `sums`, or makes `group` of it
    // if weights are LIFTED. Sums of rows go `row_sums` bytes into theirs.
    __device__ __forceinline__ void multiply(u32 at, u32 row_at, u32 row_sums, Accumulators &sums, Group &group) const {
        const u8 *stage = smem + at;
        u32 x[2] = {x_at[0] + (C::NORM > 0 ? row_at : at), x_at[1] + (C::NORM > 0 ? row_at : at)};
        Accumulators &into = W::GROUPED ? group.sums : sums;
        float own[4]; // sums of 8 inputs
        unrolled<C::KB>([&](auto b) {
            constexpr bool FIRST = W::GROUPED && b.value * 32 % W::GROUP == 0; // of its group
            constexpr bool LAST = W::GROUPED && (b.value + 1) * 32 % W::GROUP == 0;
            const u8 *tail = stage + C::WEIGHT_BYTES + b.value * 32 / W::GROUP * W::SCALES;
            if constexpr (FIRST) {
                load_zeros(group, tail);
            }
            u32 a[PAIRS][2][2][4];
#pragma unroll
            for (int pair = 0; pair < PAIRS; pair++) {
                u32 at = warp_n * PAIRS + pair;
                const uint4 *from = reinterpret_cast<const uint4 *>(stage) + (at * C::KB + b.value) * W::VECTORS * 32 + lane;
                W::template decode<T>(a[pair], from, group.zero[pair]);
            }
            unrolled<NT>([&](auto i) {
                constexpr int APART = 8 * C::KB * 64, TILE = C::OWN ? 0 : i.value;
                u32 from = x[b.value % 2] + (C::OWN ? tile_of(i.value) * APART : 0);
                uint4 v = make_uint4(0, 0, 0, 0);
                if (C::NORM == 0 || W::GROUPED || g < p.m) { // 16-bit weights keep shared memory busy as it is
                    v = ptx::load16<TILE * APART + b.value * 64>(from);
                }
                if constexpr (C::OWN && i.value == 0) {
                    own[b.value] = sum4<T>(v.x, v.y) + sum4<T>(v.z, v.w);
                }
#pragma unroll
                for (int pair = 0; pair < PAIRS; pair++) {
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        if constexpr (FIRST) {
                            T::mma_from_zero(into[pair][j][i.value], a[pair][0][j], v.x, v.y);
                        } else {
                            T::mma(into[pair][j][i.value], a[pair][0][j], v.x, v.y);
                        }
                    }
                }
#pragma unroll
                for (int pair = 0; pair < PAIRS; pair++) {
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        T::mma(into[pair][j][i.value], a[pair][1][j], v.z, v.w);
                    }
                }
            });
            if constexpr (LAST) {
                load_scales(group, tail);
                if constexpr (!W::LIFTED) {
                    fold_group(sums, group, 0);
                }
            }
        });
        if constexpr (C::OWN) {
            float sum = row_sum<4>(own);
            if (t == 0) {
                *reinterpret_cast<float *>(smem + C::SUMS_AT + row_sums + (warp * 8 + g) * 4) = sum;
            }
        }
    }

    // Adds a group to `sums`. The sums of the rows that LIFTED weights need lie `row_sums` bytes into theirs.
    __device__ __forceinline__ void fold_group(Accumulators &sums, const Group &group, u32 row_sums) const {
        float2 rows[NT]; // of the two columns of a lane in each tile
#pragma unroll
        for (int tile = 0; W::LIFTED && tile < NT; tile++) {
            rows[tile] = ptx::load8(column_at + row_sums + (C::NORM > 0 ? 0 : tile_of(tile) * 32));
        }
#pragma unroll
        for (int i = 0; i < PAIRS * 2 * NT * 4; i++) {
            int pair = i / (8 * NT), j = i / (4 * NT) % 2, tile = i / 4 % NT, e = i % 4;
            float scale = e < 2 ? group.scale[pair][j].x : group.scale[pair][j].y;
            float sum = group.sums[pair][j][tile][e];
            if constexpr (W::LIFTED) {
                sum = __fmaf_rn(__uint_as_float(group.zero[pair].z[j][e / 2]), e % 2 == 0 ? rows[tile].x : rows[tile].y, sum);
                scale *= 1.0f / W::template unit<T>(e / 2);
            }
            float &to = sums[pair][j][tile][e];
            to = __fmaf_rn(scale, sum, to);
        }
    }

    // A warp's sums go through its own piece of shared memory, so that a lane gets 8 neighbouring outputs of a row: rows
    // leave in pieces of 16 bytes. Rounds are a loop, for the sake of the size of the code: the sums move up instead.
    __device__ __forceinline__ void finish(Accumulators &sums, u32 strip, u32 m0) const {
        constexpr int STEP = C::STEP, SPAN = 8 * STEP, LANES = PAIRS * 2 * SPAN; // tiles and rows of a round
        float *stage = reinterpret_cast<float *>(smem + C::FINISH_AT) + warp * (LANES * C::FINISH_STRIDE);
        const bool works = LANES >= 32 || lane < LANES;
        auto row = [&](int tile) { // of this lane
            return works ? m0 + warp_m * NT * 8 + tile_of(tile + lane % SPAN / 8) * 8 + lane % 8 : p.m;
        };
        const Outputs of = outputs(p, strip * (C::OUTPUTS / 16) + warp_n * PAIRS * 2 + lane / SPAN);
        Place place;
        load_place(place, p, row(0));
#pragma unroll 1
        for (int tile = 0; tile < NT; tile += STEP) {
            float y[2][8] = {};
            add_bias(y, p, of); // loaded while the sums go through shared memory
            if (tile > 0) __syncwarp(); // all have read the round before
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
            Place next = place;
            if (tile + STEP < NT) {
                load_place(next, p, row(tile + STEP));
            }
            __syncwarp();
            if (works) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    add_eight(y[h], stage + lane * C::FINISH_STRIDE + h * 8);
                }
            }
            u32 m = row(tile);
            switch (p.epilogue) {
            case QWENVL_STORE_F32: finish_run<T, QWENVL_STORE_F32>(p, y, m, of, place); break;
            case QWENVL_STORE: finish_run<T, QWENVL_STORE>(p, y, m, of, place); break;
            case QWENVL_QUICK_GELU: finish_run<T, QWENVL_QUICK_GELU>(p, y, m, of, place); break;
            case QWENVL_GELU: finish_run<T, QWENVL_GELU>(p, y, m, of, place); break;
            case QWENVL_RESIDUAL: finish_run<T, QWENVL_RESIDUAL>(p, y, m, of, place); break;
            case QWENVL_SWIGLU: finish_run<T, QWENVL_SWIGLU>(p, y, m, of, place); break;
            case QWENVL_ROPE: finish_run<T, QWENVL_ROPE>(p, y, m, of, place); break;
            default: finish_run<T, QWENVL_ROPE_KV>(p, y, m, of, place);
            }
            place = next;
        }
    }

    // Prefill: adds a finished slice to the sum of those before, kept in shared memory, and starts anew.
    __device__ __forceinline__ void fold_slice(Accumulators &sums, bool first, bool last) const {
        float *total = reinterpret_cast<float *>(smem + C::RING_BYTES) + threadIdx.x;
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
        LinearCursor at = Share::first_segment();
        ahead = at;
        aim();
#pragma unroll
        for (int slot = 0; slot < C::STAGES - 1; slot++) {
            if (ahead.stage < ahead.end) {
                fetch(slot * C::STAGE_BYTES);
            }
            ptx::copy_commit();
        }
        if constexpr (C::NORM > 0) {
            normalise();
        }
        if (C::DELAYED && !C::FILLED && threadIdx.x < C::SUMS_BYTES / 4) {
            reinterpret_cast<float *>(smem + C::SUMS_AT)[threadIdx.x] = 0.0f; // of the rows that are none
        }
        Accumulators sums;
        Group group;
        u32 row_sums = 0; // bytes into those of all
        clear(sums);
        u32 slot = 0, free = C::RING_BYTES - C::STAGE_BYTES; // bytes into the ring
        bool first_slice = true;
        while (at.stage < at.end) {
            // The stages up to the end of the segment or, of grouped weights, of a slice.
            u32 count = at.end - at.stage;
            if (C::PREFILL && W::GROUPED) {
                u32 unit = strip_of(at.tile) * groups + at.stage;
                count = min(count, Share::run_start(Share::run_of(unit) + 1) - unit);
            }
            u32 row_at = at.stage * C::KB * 64; // bytes
            at.stage += count;
            bool is_first = true;
#pragma unroll 1
            for (; count > 0; count--) {
                ptx::copy_wait<C::STAGES - 2>();
                __syncthreads();
                if (ahead.stage < ahead.end) {
                    fetch(free);
                }
                ptx::copy_commit();
                if constexpr (C::DELAYED) {
                    if (!is_first) {
                        fold_group(sums, group, row_sums);
                        row_sums ^= C::ROWS * 4; // the other ones
                    }
                    is_first = false;
                    if (!C::OWN) {
                        sum_rows(slot, row_sums);
                    }
                }
                multiply(slot, row_at, row_sums, sums, group);
                if constexpr (W::LIFTED && !C::DELAYED) {
                    fold_group(sums, group, row_at / 32);
                }
                row_at += C::KB * 64;
                free = slot;
                slot = slot + C::STAGE_BYTES == C::RING_BYTES ? 0 : slot + C::STAGE_BYTES;
            }
            if constexpr (C::DELAYED) {
                __syncthreads(); // the sums of the rows are there
                fold_group(sums, group, row_sums);
                row_sums ^= C::ROWS * 4; // the other ones
            }
            if (C::PREFILL) { // again, so that only two numbers take registers meanwhile
                u32 stage = at.stage;
                at = Share::tile_from(ptx::opaque(at.segment));
                at.stage = stage;
            }
            bool ends_tile = at.stage == stages;
            if (C::PREFILL && W::GROUPED && (ends_tile || Share::ends_slice(strip_of(at.tile) * groups + at.stage))) {
                if (!(first_slice && ends_tile)) {
                    fold_slice(sums, first_slice, ends_tile);
                }
                first_slice = ends_tile;
            }
            if (at.stage < at.end) {
                continue;
            }
            if (C::PREFILL && !ends_tile) {
                Share::leave(sums, first_slice);
            } else if (C::PREFILL || Share::join(sums, strip_of(at.tile))) {
                if (C::TOTAL_BYTES > 0) {
                    __syncthreads(); // other warps' sums of slices lie where this warp's results go
                }
                finish(sums, strip_of(at.tile), first_row_of(at.tile));
            }
            clear(sums);
            first_slice = true;
            at = next_segment(at);
            if (C::PREFILL && 0 < at.stage && at.stage < at.end) {
                u32 strip_start = strip_of(at.tile) * groups;
                first_slice = !W::GROUPED || Share::run_start(Share::run_of(strip_start + at.stage)) <= strip_start;
                Share::take_up(sums, first_slice);
            }
        }
    }
};

// A kernel for each configuration. The launcher reads `name`_config: bytes of dynamic shared memory, rows of X per
// CTA; both depend on the architecture.
#define LINEAR_KERNEL(name, ...)                                                                                       \
    extern "C" __global__ void __launch_bounds__(LinearConfig<__VA_ARGS__>::THREADS, LinearConfig<__VA_ARGS__>::BLOCKS) \
        name(const __grid_constant__ QwenvlLinear p) {                                                                 \
        extern __shared__ __align__(128) u8 smem[];                                                                    \
        Linear<LinearConfig<__VA_ARGS__>>(p, blockIdx.x, gridDim.x, smem).run();                                       \
    }                                                                                                                  \
    extern "C" __device__ u32 name##_config[2] = {LinearConfig<__VA_ARGS__>::SMEM_BYTES,                               \
                                                  LinearConfig<__VA_ARGS__>::ROWS};
