// y[n] = sum_k x[k] * (q[n][k] - 8) * scale[n][k / 128]: weights of 4 bits, one warp per row.
// Eight weights a word; nibble j of a word is weight {0, 2, 4, 6, 1, 3, 5, 7}[j], so that `word >> 4 i` has the pair
// (2 i, 2 i + 1) in its low and high half.
#include <cuda_fp16.h>

// Two nibbles to halves minus 8: or them into the mantissa of 1024 and subtract 1032.
__device__ __forceinline__ __half2 dequantise(unsigned word) {
    unsigned h;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(h) : "r"(word), "n"(0x000f000f), "n"(0x64006400));
    __half2 offset = __halves2half2(__ushort_as_half(0x6408), __ushort_as_half(0x6408));
    return __hsub2(*reinterpret_cast<__half2 *>(&h), offset);
}

extern "C" __global__ void gemv_int4(const unsigned *q, const __half *scale, const __half *x, float *y, int n, int k) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= n) return;
    const unsigned *words = q + (long long)row * (k / 8);
    const __half *scales = scale + (long long)row * (k / 128);
    float sum = 0;
    for (int w = lane; w < k / 8; w += 32) {
        unsigned word = words[w];
        uint4 vx = *reinterpret_cast<const uint4 *>(x + w * 8);
        const __half2 *hx = reinterpret_cast<const __half2 *>(&vx);
        float part = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float2 p = __half22float2(__hmul2(dequantise(word >> (4 * i)), hx[i]));
            part += p.x + p.y;
        }
        sum += part * __half2float(scales[w / 16]);
    }
    for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
    if (lane == 0) y[row] = sum;
}
