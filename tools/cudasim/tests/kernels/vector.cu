// Vectors: a grid-stride add, and half2 arithmetic through 16-byte loads.
#include <cuda_fp16.h>

// c[i] = a[i] + b[i]
extern "C" __global__ void add_f32(const float *a, const float *b, float *c, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x;
#ifdef BUG_OUT_OF_BOUNDS_GLOBAL
         i <= n;
#else
         i < n;
#endif
         i += gridDim.x * blockDim.x) {
#ifdef BUG_UNINITIALISED_GLOBAL
        c[i] += a[i] + b[i];
#else
        c[i] = a[i] + b[i];
#endif
    }
}

// y = a * x + y on halves, eight at a time; n is a multiple of 8.
extern "C" __global__ void axpy_f16(__half a, const __half *x, __half *y, int n) {
    int i = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= n) return;
#ifdef BUG_MISALIGNED
    const __half *from = x + i + (i == 0 ? 2 : 0);
#else
    const __half *from = x + i;
#endif
    uint4 vx = *reinterpret_cast<const uint4 *>(from);
    uint4 vy = *reinterpret_cast<uint4 *>(y + i);
    const __half2 *hx = reinterpret_cast<const __half2 *>(&vx);
    __half2 *hy = reinterpret_cast<__half2 *>(&vy);
    __half2 a2 = __half2half2(a);
#pragma unroll
    for (int j = 0; j < 4; ++j) hy[j] = __hfma2(a2, hx[j], hy[j]);
    *reinterpret_cast<uint4 *>(y + i) = vy;
}

// Every CTA writes the words of its own part; with the bug the first word of the next part too.
extern "C" __global__ void fill_parts(unsigned *out, int part) {
    int last = part;
#ifdef BUG_TWO_WRITERS
    if (blockIdx.x + 1 < gridDim.x) last = part + 1;
#endif
    for (int i = threadIdx.x; i < last; i += blockDim.x) out[blockIdx.x * part + i] = blockIdx.x;
}
