// Sizes of a kernel of linear.cuh.
#pragma once

#include "norm.cuh"
#include "weights.cuh"

// T elements, W weights, WARPS_N warps along the outputs of a strip (the rest along m), NT tiles of 8 rows per warp, KB
// blocks of 32 inputs per stage, STAGES of the ring, PREFILL: tiles of many rows and all inputs, NORM: rows of f32 that are
// normalised, at most so many, OUTPUTS of a strip, WARPS of a CTA.
template <class T_, class W_, int WARPS_N_, int NT_, int KB_, int STAGES_, bool PREFILL_, int NORM_ = 0, int OUTPUTS_ = 256,
          int WARPS_ = 8>
struct LinearConfig {
    using T = T_;
    using W = W_;
    static constexpr int WARPS_N = WARPS_N_, NT = NT_, KB = KB_, STAGES = STAGES_;
    static constexpr bool PREFILL = PREFILL_;
    static constexpr int NORM = NORM_, OUTPUTS = OUTPUTS_, WARPS = WARPS_, THREADS = WARPS * 32;
    static constexpr int STRIP_PAIRS = OUTPUTS / 32, PAIRS = STRIP_PAIRS / WARPS_N; // of tiles: of a strip, of a warp
    static constexpr int ROWS = NORM > 0 ? NORM : WARPS / WARPS_N * NT * 8; // rows of X per CTA
    static constexpr u32 WEIGHT_BYTES = STRIP_PAIRS * KB * W::VECTORS * 512;
    static constexpr u32 TAIL_BYTES = 2 * W::TAIL;
    static constexpr u32 X_BYTES = NORM > 0 ? 0 : ROWS * KB * 64; // of a stage
    static constexpr u32 STAGE_BYTES = WEIGHT_BYTES + TAIL_BYTES + X_BYTES, RING_BYTES = STAGES * STAGE_BYTES;
    // Few rows are read as they are, the last of them in the place of those beyond; more are filled up with zeros.
    static constexpr bool FILLED = NT > 1;
    // Prefill of grouped weights keeps the sum of the slices before in shared memory.
    static constexpr u32 TOTAL_BYTES = PREFILL && W::GROUPED ? PAIRS * 2 * NT * 4 * THREADS * 4 : 0;
    // The epilogue: tiles of 8 rows in a round; 16 floats for a tile and row, padded against bank conflicts. It may lie
    // where the sums of slices were.
    static constexpr u32 ROOM = OUTPUTS < 256 ? HALF_SHARED_BYTES : MOST_SHARED_BYTES; // for one CTA: of small tiles two fit
    static constexpr int STEP = PAIRS == 1 && NT > 1 && RING_BYTES + (22 << 10) <= ROOM ? 2 : 1;
    static constexpr u32 FINISH_AT = RING_BYTES, FINISH_STRIDE = 20;
    static constexpr u32 FINISH_BYTES = WARPS * PAIRS * 2 * 8 * STEP * FINISH_STRIDE * 4;
    static constexpr u32 ARRIVED_AT = FINISH_AT + (FINISH_BYTES > TOTAL_BYTES ? FINISH_BYTES : TOTAL_BYTES);
    // Of LIFTED weights the sums over inputs of each row of X and group: of two stages in turn, or of all normalised rows.
    static constexpr u32 SUMS_AT = ARRIVED_AT + 16;
    static constexpr u32 SUMS_BYTES = !W::LIFTED ? 0 : NORM > 0 ? NORM_VECTORS * 8 * 8 : 2 * ROWS * 4;
    static constexpr bool DELAYED = W::LIFTED && NORM == 0; // groups are added a stage later, when the sums are there
    static constexpr bool OWN = DELAYED && NT == 8; // a warp sums the rows of its first tile, which is tile `warp` of X
    static_assert(!OWN || WARPS_N == 8);
    // Normalised rows of all inputs: two of them lie in different halves of the banks.
    static constexpr u32 ROWS_AT = SUMS_AT + SUMS_BYTES, ROW_BYTES = NORM_VECTORS * THREADS * 4 * 2 + 64;
    static constexpr u32 SMEM_BYTES = ROWS_AT + NORM * ROW_BYTES;
    // float4 of other runs' sums that a lane has under way when it joins them.
    static constexpr int JOIN_VECTORS = 16;
    // Kernels for few rows and for small tiles keep to half of the registers.
    static constexpr int BLOCKS = NT <= 2 || WARPS < 8 ? 2 : 1;
    static_assert(!W::GROUPED || KB == 4, "a stage is a record");
    static_assert(!PREFILL || WARPS_N == 8 || !W::GROUPED);
    static_assert(NORM == 0 || (NORM <= 8 && NT == 1 && WARPS_N == 8 && !PREFILL));
    static_assert((OUTPUTS == 256 && WARPS == 8) || (PREFILL && !W::GROUPED));
    static_assert(NT % STEP == 0 && SMEM_BYTES <= ROOM);
};
