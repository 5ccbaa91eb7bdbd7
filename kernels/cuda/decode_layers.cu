// decode_layers: all layers of the decoder for one or two new tokens in one launch
// math    a list of steps, each a linear layer (linear.cuh, norm.cuh for its prologue) with or without attention before it
//         (paged_attn.cuh): the same functions, and so the same bits, as launched one by one
// order   that of the list. Between an op and one that reads its results all blocks meet at a barrier in global memory
// launch  cooperative, at most one CTA of 256 threads per SM: they wait for each other. A ring of stages of weights, as in
//         linear.cuh, that runs through all layers: while blocks wait at a barrier, normalise rows or attend, the
//         weights of what comes next are on their way, of as many layers as the ring holds
// needs   what linear.cuh and paged_attn.cuh need; as few rows as in the kernels of a norm; at most QWENVL_DECODE_GROUPS
//         groups of inputs in a run; one format of weights for all layers
// bytes   weights and keys once; rows of X once per block, from L2
// target  ≥ 90 % of the bytes at 1.80 TB/s where a layer has several times what fits the rings of all SMs (7B, 72B)
// source  one kernel for a whole model: Spector et al., "Look Ma, No Bubbles!" (Hazy Research, 2025); the ring that goes on
//         through barriers is this project's
#include "linear.cuh"
#include "paged_attn.cuh"

// As the kernels of a norm, with rows also of layers that have none.
template <class T, class W, int KB, int STAGES>
struct DecodeConfig : LinearConfig<T, W, 8, 1, KB, STAGES, false, LARGE_SMALL(2, 1)> {
    using Base = LinearConfig<T, W, 8, 1, KB, STAGES, false, LARGE_SMALL(2, 1)>;
    static constexpr int JOIN_VECTORS = 24; // there are registers enough
    static constexpr u32 SUMS_BYTES = W::LIFTED ? QWENVL_DECODE_GROUPS * 8 : 0;
    static constexpr u32 ROWS_AT = Base::SUMS_AT + SUMS_BYTES, ROW_BYTES = QWENVL_DECODE_GROUPS * 256 + 64;
    // Attention lies where results and rows of linear layers do.
    static constexpr u32 ATTENTION_AT = Base::FINISH_AT, ROWS_END = ROWS_AT + Base::NORM * ROW_BYTES;
    static constexpr u32 ATTENTION_END = ATTENTION_AT + sizeof(PagedShared);
    static constexpr u32 STEPS_AT = ROWS_END > ATTENTION_END ? ROWS_END : ATTENTION_END;
    static constexpr u32 SMEM_BYTES = STEPS_AT + 2 * sizeof(QwenvlDecodeStep);
    static constexpr bool FITS = SMEM_BYTES <= MOST_SHARED_BYTES; // not 8-bit weights on cards with little of it
    static_assert(ATTENTION_AT % 16 == 0 && STEPS_AT % 16 == 0);
};

constexpr u32 STEP_VECTORS = sizeof(QwenvlDecodeStep) / 16;
static_assert(sizeof(QwenvlDecodeStep) % 16 == 0);

// Where all blocks of a launch meet. What a block wrote before it arrived, the others see after they have waited.
struct GridBarrier {
    u32 *arrived;
    u32 expected; // arrivals of all blocks so far

    __device__ __forceinline__ void arrive(bool is_last) {
        expected += gridDim.x;
        __syncthreads(); // all of the block has written
        if (threadIdx.x == 0 && ptx::add_release(arrived, 1) + 1 == expected && is_last) {
            *arrived = 0; // for the next launch: nobody else comes
        }
    }
    __device__ __forceinline__ void wait() const {
        if (threadIdx.x == 0) {
            while (ptx::load_acquire(arrived) < expected) {
            }
        }
        __syncthreads();
    }
};

// The weights of this block in all steps, stage after stage.
template <class C> struct WeightStream {
    // Of a step, asked for a step ahead.
    struct Layer {
        const void *w;
        u32 n, k, n_runs;
    };
    const QwenvlDecodeStep *steps;
    u32 n_steps, step;
    Layer next; // of `step` before `start`, then of the one after it
    LinearRuns<C> runs;
    LinearCursor at;
    LinearCopies<C> weights;
    const void *w;
    u32 n;

    __device__ __forceinline__ WeightStream(const QwenvlDecodeLayers &p, u32 smem_at)
        : steps(p.steps), n_steps(p.n_steps), step(0), next(layer(0)), runs(1, 1, 1), at(), weights(smem_at) {
        start();
    }

    __device__ __forceinline__ Layer layer(u32 step) const {
        const QwenvlLinear &p = steps[min(step, n_steps - 1)].linear;
        auto w = reinterpret_cast<const u64 *>(&p.w);
        return {reinterpret_cast<const void *>(__ldg(w)), __ldg(&p.n), __ldg(&p.k), __ldg(&p.n_runs)};
    }

    // The first stage from `step` on.
    __device__ __forceinline__ void start() {
        for (; step < n_steps; step++) {
            runs = LinearRuns<C>(next.n, next.k, next.n_runs);
            w = next.w;
            n = next.n;
            next = layer(step + 1);
            if (blockIdx.x < runs.n_runs) {
                at = runs.segment_of(blockIdx.x, runs.run_start(blockIdx.x) / runs.groups);
                return weights.aim(w, n, runs.groups, at.tile, at.stage);
            }
        }
    }

    // Starts the copies of a stage, `to` bytes into the ring, and moves on.
    __device__ __forceinline__ void fetch(u32 to) {
        if (step < n_steps) {
            weights.copy(to);
            at.stage++;
            weights.move_on(at.stage);
            if (at.stage == at.end) {
                at = runs.segment_of(blockIdx.x, at.segment + 1);
                if (at.stage < at.end) {
                    weights.aim(w, n, runs.groups, at.tile, at.stage);
                } else {
                    step++;
                    start();
                }
            }
        }
        ptx::copy_commit();
    }
};

// Rows of X without a norm into shared memory: `count` groups of inputs from `first` on, and round from the last to the
// first of all; and their sums, as `normalise` makes them.
template <class C> __device__ __forceinline__ void load_rows(const Linear<C> &op, u32 first, u32 count) {
    using T = typename C::T;
    using W = typename C::W;
    constexpr u32 VECTORS = (QWENVL_DECODE_GROUPS * 16 + THREADS - 1) / THREADS; // of 16 bytes
    float *row_sums = reinterpret_cast<float *>(op.smem + C::SUMS_AT);
    if (W::LIFTED && threadIdx.x < C::SUMS_BYTES / 4 && threadIdx.x % 2 >= op.p.m) {
        row_sums[threadIdx.x] = 0.0f; // of the row that is none
    }
    for (u32 row = 0; row < op.p.m; row++) {
        const u16 *x = static_cast<const u16 *>(op.p.x) + static_cast<u64>(row) * op.p.ldx;
        uint4 v[VECTORS];
#pragma unroll
        for (u32 i = 0; i < VECTORS && i * THREADS < count * 16; i++) {
            u32 at = i * THREADS + threadIdx.x, group = first + at / 16;
            u32 column = (group < op.groups ? group : group - op.groups) * 128 + at % 16 * 8;
            v[i] = make_uint4(0, 0, 0, 0);
            if (at < count * 16 && column < op.p.k) {
                v[i] = ptx::load16_global(x + column);
            }
        }
#pragma unroll
        for (u32 i = 0; i < VECTORS && i * THREADS < count * 16; i++) {
            u32 at = i * THREADS + threadIdx.x;
            if (at < count * 16) {
                *reinterpret_cast<uint4 *>(op.smem + C::ROWS_AT + row * C::ROW_BYTES + at * 16) = v[i];
            }
            if (W::LIFTED) {
                float sums[1] = {sum4<T>(v[i].x, v[i].y) + sum4<T>(v[i].z, v[i].w)};
                float sum = row_sum<16>(sums);
                if (at % 16 == 0 && at < count * 16) {
                    row_sums[at / 16 * 2 + row] = sum;
                }
            }
        }
    }
}

// The place of a block in the ring.
struct RingPlace {
    u32 next, free; // bytes: the stage to come, and the one that was used last
};

// This block's run of a layer.
template <class C>
__device__ __forceinline__ void linear(const QwenvlLinear &p, WeightStream<C> &stream, RingPlace &ring, u8 *smem) {
    if (blockIdx.x >= p.n_runs) {
        return;
    }
    Linear<C> op(p, blockIdx.x, gridDim.x, smem);
    LinearCursor at = op.first_segment();
    u32 row_at = 0; // bytes into rows
    const u32 row_end = op.groups * 256;
    if (p.norm_weight != nullptr) {
        row_at = at.stage * C::KB * 64;
        op.normalise();
    } else {
        u32 units = op.run_start(blockIdx.x + 1) - op.run_start(blockIdx.x);
        load_rows(op, at.stage * C::KB / 4, min(units, op.groups));
    }
    typename Linear<C>::Accumulators sums;
    typename Linear<C>::Group group;
    op.clear(sums);
    while (at.stage < at.end) {
#pragma unroll 1
        for (; at.stage < at.end; at.stage++) {
            ptx::copy_wait<C::STAGES - 2>();
            __syncthreads();
            stream.fetch(ring.free);
            op.multiply(ring.next, row_at, 0, sums, group);
            if constexpr (C::W::LIFTED) {
                op.fold_group(sums, group, row_at / 32);
            }
            row_at = row_at + C::KB * 64 == row_end ? 0 : row_at + C::KB * 64;
            ring.free = ring.next;
            ring.next = ring.next + C::STAGE_BYTES == C::RING_BYTES ? 0 : ring.next + C::STAGE_BYTES;
        }
        if (op.join(sums, at.tile)) {
            op.finish(sums, at.tile, 0);
        }
        op.clear(sums);
        at = op.next_segment(at);
    }
}

// This block's part of attention.
template <class T> __device__ __forceinline__ void attention(const QwenvlDecodeAttention &p, PagedShared &shared) {
    u32 kv_heads = p.kv.kv_heads, pairs = p.n_seqs * kv_heads, sharers = gridDim.x / pairs;
    if (blockIdx.x < pairs * sharers) {
        u32 pair = blockIdx.x % pairs;
        paged_attn<T>(p, shared, pair % kv_heads, pair / kv_heads, blockIdx.x / pairs, sharers);
    }
}

template <class C> __device__ __forceinline__ void decode_layers(const QwenvlDecodeLayers &p, u8 *smem) {
    WeightStream<C> stream(p, ptx::shared_address(smem));
    for (u32 slot = 0; slot < C::STAGES - 1; slot++) {
        stream.fetch(slot * C::STAGE_BYTES);
    }
    RingPlace ring = {0, C::RING_BYTES - C::STAGE_BYTES};
    QwenvlDecodeStep *steps = reinterpret_cast<QwenvlDecodeStep *>(smem + C::STEPS_AT); // this one and the next
    const bool has_vector = threadIdx.x < STEP_VECTORS; // of a step
    auto ask_step = [&](u32 step) {
        const uint4 *from = reinterpret_cast<const uint4 *>(p.steps + min(step, p.n_steps - 1)) + threadIdx.x;
        return has_vector ? __ldg(from) : make_uint4(0, 0, 0, 0);
    };
    auto keep_step = [&](u32 step, uint4 vector) {
        if (has_vector) {
            reinterpret_cast<uint4 *>(steps + step % 2)[threadIdx.x] = vector;
        }
    };
    keep_step(0, ask_step(0));
    GridBarrier barrier = {p.arrived, 0};
#pragma unroll 1
    for (u32 at = 0; at < p.n_steps; at++) {
        const QwenvlDecodeStep &step = steps[at % 2];
        uint4 next = ask_step(at + 1);
        barrier.wait();
        if (step.attention.n_seqs > 0) {
            attention<typename C::T>(step.attention, *reinterpret_cast<PagedShared *>(smem + C::ATTENTION_AT));
            barrier.arrive(false);
            barrier.wait();
        }
        linear<C>(step.linear, stream, ring, smem);
        keep_step(at + 1, next);
        barrier.arrive(at + 1 == p.n_steps);
    }
}

// The launcher reads bytes of dynamic shared memory and the most rows: none where the kernel does not fit.
#define DECODE_LAYERS(name, ...)                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) name(const __grid_constant__ QwenvlDecodeLayers p) {      \
        extern __shared__ __align__(128) u8 smem[];                                                                    \
        if constexpr (DecodeConfig<__VA_ARGS__>::FITS) {                                                               \
            decode_layers<DecodeConfig<__VA_ARGS__>>(p, smem);                                                         \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" __device__ u32 name##_config[2] = {                                                                     \
        DecodeConfig<__VA_ARGS__>::FITS ? DecodeConfig<__VA_ARGS__>::SMEM_BYTES : 0,                                   \
        DecodeConfig<__VA_ARGS__>::FITS ? DecodeConfig<__VA_ARGS__>::NORM : 0}
DECODE_LAYERS(decode_layers_int4_bf16, BF16, Int4, 4, LARGE_SMALL(6, 3));
DECODE_LAYERS(decode_layers_int8_bf16, BF16, Int8, 4, LARGE_SMALL(3, 2));
DECODE_LAYERS(decode_layers_dense_bf16, BF16, Dense, LARGE_SMALL(2, 1), 3);
DECODE_LAYERS(decode_layers_int4_f16, F16, Int4, 4, LARGE_SMALL(6, 3));
DECODE_LAYERS(decode_layers_int8_f16, F16, Int8, 4, LARGE_SMALL(3, 2));
DECODE_LAYERS(decode_layers_dense_f16, F16, Dense, LARGE_SMALL(2, 1), 3);
