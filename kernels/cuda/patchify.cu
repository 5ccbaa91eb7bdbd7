// patchify: 8-bit frames to normalised rows of patches in merged order
// math    out = table[channel][byte]
// layout  out T [patches, (channel, frame of the pair, y, x)]; patches in blocks of merge x merge:
//         (block row, block column, row in block, column in block); frames RGB, rows of 3 · width bytes
// launch  grid = rows, 256 threads
// needs   patch even; an image names its frame twice
// bytes   reads each pixel once per named frame, writes 2 per value
// target  bandwidth-bound; 38 MB of pixels instead of 154 MB of patches cross the bus for 12.8 MP
// source  order of transformers 4.57.6, image_processing_qwen2_vl.py
#include "common.cuh"

template <class T> __device__ __forceinline__ void patchify(const QwenvlPatchify &p) {
    __shared__ float table[768];
    for (u32 i = threadIdx.x; i < 768; i += THREADS) {
        table[i] = p.table[i];
    }
    __syncthreads();
    u32 patch = p.first_row + blockIdx.x;
    u32 at = 0;
    while (at + 1 < p.n_slices && p.slices[at + 1].first_patch <= patch) {
        at++;
    }
    QwenvlFrames slice = p.slices[at];
    u32 index = patch - slice.first_patch;
    u32 block = index / (p.merge * p.merge), inside = index % (p.merge * p.merge), blocks = slice.grid_w / p.merge;
    u32 top = (block / blocks * p.merge + inside / p.merge) * p.patch;
    u32 left = (block % blocks * p.merge + inside % p.merge) * p.patch;
    u32 width = slice.grid_w * p.patch, area = p.patch * p.patch;
    u32 *out = static_cast<u32 *>(p.out) + static_cast<u64>(blockIdx.x) * (3 * area);
    for (u32 pair = threadIdx.x; pair < 3 * area; pair += THREADS) {
        u32 i = pair * 2;
        u32 channel = i / (2 * area), frame = i / area % 2, y = i % area / p.patch, x = i % p.patch;
        const u8 *pixel = (frame ? slice.frames[1] : slice.frames[0]) +
                          (static_cast<u64>(top + y) * width + left + x) * 3 + channel;
        out[pair] = T::pack(table[channel * 256 + pixel[0]], table[channel * 256 + pixel[3]]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) patchify_bf16(const __grid_constant__ QwenvlPatchify p) {
    patchify<BF16>(p);
}
extern "C" __global__ void __launch_bounds__(THREADS) patchify_f16(const __grid_constant__ QwenvlPatchify p) {
    patchify<F16>(p);
}
