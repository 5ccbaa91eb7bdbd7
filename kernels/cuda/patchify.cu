// patchify: 8-bit frames to normalised rows of patches in merged order
// math    out = table[channel][byte], rounded to the activation type
// layout  out [patches, 1176], 16-bit, columns (channel, frame of the pair, y, x); patches in blocks of 2x2: (block
//         row, block column, row in block, column in block); frames RGB, rows of 3 · width bytes, 4-byte aligned
// launch  grid = patches / 4, block = 256: a block of 28x28 pixels of both frames passes through shared memory
// needs   patches of 14 pixels, merged 2x2
// bytes   6 per pixel pair read, 2 per value written
// target  bandwidth-bound; 85 % of 1.80 TB/s. The bus carries 38 MB of pixels for 12.8 MP, not 154 MB of patches
// source  order and arithmetic of transformers 4.57.6, image_processing_qwen2_vl.py
//
// Bank conflicts stay: 32 lanes read bytes of five rows of pixels, more words than banks, and the table is read by what
// the bytes happen to be. Lines of 84 bytes begin and end within sectors of 32, which are read for two blocks. The step
// runs once for a picture and is small beside its first linear layer.
#include "common.cuh"

constexpr u32 SIDE = QWENVL_PATCH * QWENVL_MERGE;
constexpr u32 LINE_WORDS = SIDE * 3 / 4;
constexpr u32 PATCHES = QWENVL_MERGE * QWENVL_MERGE;
constexpr u32 PAIRS = 3 * QWENVL_PATCH * QWENVL_PATCH; // of values, in a row of the output

template <class T> __device__ __forceinline__ void patchify(const QwenvlPatchify &p, u32 block) {
    __shared__ float table[3 * 256];
    __shared__ u32 pixels[2][SIDE][LINE_WORDS];
    for (u32 i = threadIdx.x; i < 3 * 256; i += THREADS) {
        table[i] = p.table[i];
    }
    // The last slice that starts at or before the block.
    const u32 patch = p.first_row + block * PATCHES;
    u32 low = 0, high = p.n_slices;
    while (high - low > 1) {
        u32 middle = (low + high) / 2;
        if (p.slices[middle].first_patch <= patch) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const QwenvlFrames slice = p.slices[low];
    const u32 index = (patch - slice.first_patch) / PATCHES, blocks = slice.grid_w / QWENVL_MERGE;
    const u32 width_words = blocks * LINE_WORDS;
    const u64 corner = static_cast<u64>(index / blocks) * SIDE * width_words + index % blocks * LINE_WORDS;
    for (u32 i = threadIdx.x; i < 2 * SIDE * LINE_WORDS; i += THREADS) {
        const u32 frame = i / (SIDE * LINE_WORDS), y = i / LINE_WORDS % SIDE, word = i % LINE_WORDS;
        const u8 *from = frame == 0 ? slice.frames[0] : slice.frames[1];
        pixels[frame][y][word] = reinterpret_cast<const u32 *>(from)[corner + static_cast<u64>(y) * width_words + word];
    }
    __syncthreads();
    u32 *out = static_cast<u32 *>(p.out) + static_cast<u64>(block) * PATCHES * PAIRS;
    for (u32 i = threadIdx.x; i < PATCHES * PAIRS; i += THREADS) {
        const u32 inside = i / PAIRS, line = i % PAIRS / (QWENVL_PATCH / 2), x = i % (QWENVL_PATCH / 2) * 2;
        const u32 channel = line / (2 * QWENVL_PATCH), frame = line / QWENVL_PATCH % 2, y = line % QWENVL_PATCH;
        const u8 *row = reinterpret_cast<const u8 *>(pixels[frame][inside / QWENVL_MERGE * QWENVL_PATCH + y]);
        const u32 at = (inside % QWENVL_MERGE * QWENVL_PATCH + x) * 3 + channel;
        out[i] = T::pack(table[channel * 256 + row[at]], table[channel * 256 + row[at + 3]]);
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void patchify_bf16(const __grid_constant__ QwenvlPatchify p) {
    patchify<BF16>(p, blockIdx.x);
}
extern "C" __global__ __launch_bounds__(THREADS) void patchify_f16(const __grid_constant__ QwenvlPatchify p) {
    patchify<F16>(p, blockIdx.x);
}
