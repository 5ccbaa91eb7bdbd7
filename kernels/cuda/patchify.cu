// patchify: 8-bit frames to normalised rows of patches in merged order
// math    out = table[channel][byte], rounded to the activation type
// layout  out [patches, 1176], 16-bit, columns (channel, frame of the pair, y, x); patches in blocks of 2x2: (block
//         row, block column, row in block, column in block); frames RGB, rows of 3 · width bytes, 4-byte aligned
// launch  grid = patches / 4, block = 210: a block of 28x28 pixels of both frames passes through shared memory; a thread
//         has one place in two patches, two neighbours wide, and writes it for all frames and channels
// needs   patches of 14 pixels, merged 2x2
// bytes   6 per pixel pair read, 2 per value written
// target  bandwidth-bound; 70 % of 1.80 TB/s. The bus carries 38 MB of pixels for 12.8 MP, not 154 MB of patches
// source  order and arithmetic of transformers 4.57.6, image_processing_qwen2_vl.py
//
// Lines of 84 bytes begin and end within sectors of 32, which are read for two blocks. Bank conflicts are those of the
// table, which is read by what the bytes happen to be, and some where pixels are put down: pairs of bytes lie as they are
// taken.
#include "common.cuh"

constexpr u32 SIDE = QWENVL_PATCH * QWENVL_MERGE;
constexpr u32 LINE_WORDS = SIDE * 3 / 4;
constexpr u32 PATCHES = QWENVL_MERGE * QWENVL_MERGE;
constexpr u32 ROW = QWENVL_PATCH / 2;            // pairs of neighbours in a row of a patch
constexpr u32 PLANE = QWENVL_PATCH * ROW;        // in a channel of a frame of a patch
constexpr u32 PAIRS = 3 * 2 * PLANE;             // in a row of the output
constexpr u32 AT_ONCE = 10;                      // lines of pixels
constexpr u32 PATCHIFY_THREADS = AT_ONCE * LINE_WORDS;
// Of a column of patches in shared memory: the second lies where a warp that takes the end of the first and the start of
// the second finds all banks.
constexpr u32 COLUMN = 2 * PLANE + 30;
constexpr u32 HALF_PIXELS = QWENVL_MERGE * COLUMN + 3; // of all; the 3 halve the conflicts of the stores
static_assert((COLUMN - PLANE) % 32 == 0 && 2 * PLANE <= PATCHIFY_THREADS);

template <class T> __device__ __forceinline__ void patchify(const QwenvlPatchify &p, u32 block) {
    __shared__ u16 table[3 * 256];
    __shared__ u32 bytes[2][3][HALF_PIXELS]; // of two neighbours: r g, b r, g b
    for (u32 i = threadIdx.x; i < 3 * 256; i += PATCHIFY_THREADS) {
        table[i] = to_16bit<T>(p.table[i]);
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
    const u32 line = threadIdx.x / LINE_WORDS, word = threadIdx.x % LINE_WORDS;
    // Where pair of bytes `i` of a line goes.
    auto place = [](u32 (&to)[3][HALF_PIXELS], u32 i) { return to[i % 3] + i / 3 / ROW * COLUMN + i / 3 % ROW; };
#pragma unroll
    for (u32 frame = 0; frame < 2; frame++) {
        const u32 *from = reinterpret_cast<const u32 *>(slice.frames[frame]) + corner + word;
        u32 *even = place(bytes[frame], 2 * word), *odd = place(bytes[frame], 2 * word + 1);
#pragma unroll
        for (u32 first = 0; first < SIDE; first += AT_ONCE) {
            const u32 y = first + line;
            if (y < SIDE) {
                const u32 pixels = from[static_cast<u64>(y) * width_words];
                even[y * ROW] = pixels & 0xffff;
                odd[y * ROW] = pixels >> 16;
            }
        }
    }
    __syncthreads();
    if (threadIdx.x >= 2 * PLANE) {
        return;
    }
    const u32 column = threadIdx.x / PLANE, at = threadIdx.x % PLANE;
    u32 *out = static_cast<u32 *>(p.out) + (static_cast<u64>(block) * PATCHES + column) * PAIRS + at;
#pragma unroll
    for (u32 i = 0; i < 2 * QWENVL_MERGE; i++) {
        const u32 frame = i / QWENVL_MERGE, row = i % QWENVL_MERGE; // of patches
        const u32 from = column * COLUMN + row * PLANE + at;
        const u32 rg = bytes[frame][0][from], br = bytes[frame][1][from], gb = bytes[frame][2][from];
        auto store = [&](u32 channel, u32 first, u32 second) {
            const u16 *values = table + channel * 256;
            out[row * QWENVL_MERGE * PAIRS + (channel * 2 + frame) * PLANE] = values[first] | static_cast<u32>(values[second]) << 16;
        };
        store(0, rg & 0xff, br >> 8);
        store(1, rg >> 8, gb & 0xff);
        store(2, br & 0xff, gb >> 8);
    }
}

extern "C" __global__ __launch_bounds__(PATCHIFY_THREADS) void patchify_bf16(const __grid_constant__ QwenvlPatchify p) {
    patchify<BF16>(p, blockIdx.x);
}
extern "C" __global__ __launch_bounds__(PATCHIFY_THREADS) void patchify_f16(const __grid_constant__ QwenvlPatchify p) {
    patchify<F16>(p, blockIdx.x);
}
