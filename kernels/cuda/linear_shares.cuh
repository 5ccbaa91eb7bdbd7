// What a worker of linear.cuh, a block of threads, has of a layer: which inputs of which tiles, and how sums go from worker
// to worker. Runs of few rows are joined by whoever comes last; tiles of prompts that two workers share are handed on.
#pragma once

#include "linear_config.cuh"

// Where a worker is: in a segment, some inputs of a tile of OUTPUTS and ROWS.
struct LinearCursor {
    u32 tile, stage, end; // the next stage, of KB blocks of inputs, and that after the segment's last
    u32 segment;          // its number
};

// The equal runs of units, which are (strip, group), strips outermost, that the plan cuts a layer into.
template <class C> struct LinearRuns {
    u32 strips, groups, n_runs;

    __device__ __forceinline__ LinearRuns(u32 n, u32 k, u32 n_runs)
        : strips((n + C::OUTPUTS - 1) / C::OUTPUTS), groups((k + 127) / 128), n_runs(n_runs) {}

    // First unit of a run.
    __device__ __forceinline__ u32 run_start(u32 run) const { return run * (strips * groups) / n_runs; }
    // The run that holds a unit.
    __device__ __forceinline__ u32 run_of(u32 unit) const { return ((unit + 1) * n_runs - 1) / (strips * groups); }

    // Whether a slice, or a strip, ends before a unit.
    __device__ __forceinline__ bool ends_slice(u32 unit) const { return run_of(unit - 1) != run_of(unit); }

    // Small m: what a run has of a strip; it goes from strip to strip, which number its segments.
    __device__ __forceinline__ LinearCursor segment_of(u32 run, u32 strip) const {
        u32 first = max(run_start(run), strip * groups) - strip * groups;
        u32 last = min(max(run_start(run + 1), strip * groups) - strip * groups, groups);
        return {strip, first * (4 / C::KB), last * (4 / C::KB), strip};
    }
};

template <class C> struct LinearShare : LinearRuns<C> {
    static constexpr int NT = C::NT, PAIRS = C::PAIRS, THREADS = C::THREADS;
    using Accumulators = float[PAIRS][2][NT][4];
    using LinearRuns<C>::strips, LinearRuns<C>::groups, LinearRuns<C>::run_start, LinearRuns<C>::run_of;
    using LinearRuns<C>::segment_of;

    const QwenvlLinear &p;
    u32 worker, n_workers;
    u8 *smem;
    u32 stages, m_tiles;
    u32 warp, lane, g, t, warp_n, warp_m;

    __device__ __forceinline__ LinearShare(const QwenvlLinear &p, u32 worker, u32 n_workers, u8 *smem)
        : LinearRuns<C>(p.n, p.k, p.n_runs), p(p), worker(worker), n_workers(n_workers), smem(smem) {
        stages = groups * 4 / C::KB;
        m_tiles = (p.m + C::ROWS - 1) / C::ROWS;
        warp = threadIdx.x / 32;
        lane = threadIdx.x % 32;
        g = lane / 4;
        t = lane % 4;
        warp_n = warp % C::WARPS_N;
        warp_m = warp / C::WARPS_N;
    }

    // Tiles are those of a strip, one after the other. One in small m.
    __device__ __forceinline__ u32 strip_of(u32 tile) const { return C::PREFILL ? tile / m_tiles : tile; }
    __device__ __forceinline__ u32 first_row_of(u32 tile) const { return C::PREFILL ? tile % m_tiles * C::ROWS : 0; }

    __device__ __forceinline__ LinearCursor first_segment() const {
        return C::PREFILL ? tile_from(0) : segment_of(worker, run_start(worker) / groups);
    }
    // Has no stages after the last.
    __device__ __forceinline__ LinearCursor next_segment(const LinearCursor &at) const {
        return C::PREFILL ? tile_from(at.segment + 1) : segment_of(worker, at.segment + 1);
    }

    // Prefill: the first segment from this number on that has stages, or one without any after the last.
    // Workers take the tiles of whole rounds in turn. Those that are left, more than there are workers and less
    // than twice as many, are one row of stages and cut into equal shares, longer than a tile each. So the tile at a cut
    // has a head in one share and a tail in the next. A worker does its head first and leaves the sums to the next
    // worker, which goes on with them when it comes to its tail, at the very end: the sums are those of a tile in one
    // piece, and are there when they are needed.
    __device__ __forceinline__ LinearCursor tile_from(u32 segment) const {
        u32 tiles = strips * m_tiles, rounds = tiles / n_workers - (tiles % n_workers > 0 ? 1 : 0);
        u32 row = tiles % n_workers > 0 ? (tiles - rounds * n_workers) * stages : 0;
        u32 first = worker * row / n_workers, last = (worker + 1) * row / n_workers; // of the share
        u32 head = last / stages, tail = first / stages, whole = (first + stages - 1) / stages; // the first whole tile
        u32 n_whole = max(head, whole) - whole;
        u32 tile, from = 0, end;
        for (;; segment++) {
            if (segment == 0) {
                tile = rounds * n_workers + head;
                end = last % stages;
            } else if (segment <= rounds) {
                tile = (segment - 1) * n_workers + worker;
                end = stages;
            } else if (segment <= rounds + n_whole) {
                tile = rounds * n_workers + whole + segment - 1 - rounds;
                end = stages;
            } else {
                tile = rounds * n_workers + tail;
                from = first % stages;
                end = segment == rounds + n_whole + 1 && from > 0 ? stages : from;
            }
            if (from < end || segment > rounds + n_whole) {
                return {tile, from, end, segment};
            }
        }
    }

    // The tile of 8 rows of X that are a warp's accumulators `i`.
    __device__ __forceinline__ u32 tile_of(u32 i) const { return C::OWN ? i ^ warp : i; }

    // Joins the runs that share a strip: all store, the last to arrive adds them in order. Nobody waits. Lanes whose rows
    // are none of X leave their part of the memory alone; those of the same two rows lie side by side in it, so that few
    // rows take few sectors. Loads of several runs go out before the first is added: one after the other they would take
    // longer than the weights of a small layer.
    __device__ __forceinline__ bool join(Accumulators &sums, u32 strip) const {
        u32 first = run_of(strip * groups), last = run_of((strip + 1) * groups - 1);
        if (first == last) {
            return true;
        }
        constexpr int VECTORS = PAIRS * 2 * NT, AT_ONCE = VECTORS < C::JOIN_VECTORS ? C::JOIN_VECTORS / VECTORS : 1;
        auto place = [&](u32 run) {
            u32 at = 2 * run + (run_start(run) < strip * groups ? 1 : 0);
            return reinterpret_cast<float4 *>(p.partials) + static_cast<u64>(at) * VECTORS * THREADS + warp * 32 + t * 8 + g;
        };
        auto used = [&](int i) { return (warp_m * NT + tile_of(i % NT)) * 8 + 2 * t < p.m; };
        float4 *mine = place(worker);
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            const float(&v)[4] = sums[i / (2 * NT)][i / NT % 2][i % NT];
            if (used(i)) {
                mine[i * THREADS] = make_float4(v[0], v[1], v[2], v[3]);
            }
        }
        u32 *arrived = reinterpret_cast<u32 *>(smem + C::ARRIVED_AT);
        __syncthreads(); // all of the block has written
        if (threadIdx.x == 0) {
            *arrived = ptx::add_acq_rel(p.arrivals + strip, 1);
        }
        __syncthreads();
        if (*arrived != last - first) {
            return false;
        }
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
                    x[r][i] = __ldcg(used(i) ? from + i * THREADS : from + (i / NT * NT + tile_of(0)) * THREADS - t * 8);
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

    // Where the worker of a head leaves its sums: those of the slice and, of grouped weights, of the slices before.
    __device__ __forceinline__ float4 *left_by(u32 worker) const {
        constexpr u32 VECTORS = PAIRS * 2 * NT * (C::TOTAL_BYTES > 0 ? 2 : 1);
        return reinterpret_cast<float4 *>(p.partials) + static_cast<u64>(worker) * VECTORS * THREADS + threadIdx.x;
    }

    // Prefill: leaves the sums of a head to the next worker.
    __device__ __forceinline__ void leave(const Accumulators &sums, bool first_slice) const {
        constexpr int VECTORS = PAIRS * 2 * NT;
        const float *total = reinterpret_cast<const float *>(smem + C::RING_BYTES) + threadIdx.x;
        float4 *to = left_by(worker);
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            const float(&v)[4] = sums[i / (2 * NT)][i / NT % 2][i % NT];
            to[i * THREADS] = make_float4(v[0], v[1], v[2], v[3]);
        }
#pragma unroll
        for (int i = 0; C::TOTAL_BYTES > 0 && i < VECTORS; i++) {
            if (!first_slice) {
                auto at = [&](int e) { return total[(i * 4 + e) * THREADS]; };
                to[(VECTORS + i) * THREADS] = make_float4(at(0), at(1), at(2), at(3));
            }
        }
        __syncthreads(); // all of the block has written
        if (threadIdx.x == 0) {
            ptx::store_release(p.arrivals + worker, 1);
        }
    }

    // Goes on with the sums that the worker before has left. All blocks of a launch are on the device at once, and that one
    // left them before it did anything else: this one waits only if that was held up for as long as everything else took
    // here.
    __device__ __forceinline__ void take_up(Accumulators &sums, bool first_slice) const {
        constexpr int VECTORS = PAIRS * 2 * NT;
        if (threadIdx.x == 0) {
            while (ptx::load_acquire(p.arrivals + worker - 1) == 0) {
            }
            p.arrivals[worker - 1] = 0; // for the next launch: nobody else looks
        }
        __syncthreads(); // the sums are there, and results of the tile before no longer lie where those of slices go
        float *total = reinterpret_cast<float *>(smem + C::RING_BYTES) + threadIdx.x;
        const float4 *from = left_by(worker - 1);
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            float(&v)[4] = sums[i / (2 * NT)][i / NT % 2][i % NT];
            float4 x = __ldcg(from + i * THREADS);
            v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
        }
#pragma unroll
        for (int i = 0; C::TOTAL_BYTES > 0 && i < VECTORS; i++) {
            if (!first_slice) {
                float4 x = __ldcg(from + (VECTORS + i) * THREADS);
                total[i * 4 * THREADS] = x.x;
                total[(i * 4 + 1) * THREADS] = x.y;
                total[(i * 4 + 2) * THREADS] = x.z;
                total[(i * 4 + 3) * THREADS] = x.w;
            }
        }
    }
};
