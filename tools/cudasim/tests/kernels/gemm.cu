// C[m,n] = A[m,k] B[n,k]^T with ldmatrix and mma.m16n8k16, f16 and bf16, f32 accumulation.
// CTA tile 64 x 64 x 32, four warps of 32 x 32, two stages of cp.async, rows of 64 bytes swizzled by XOR.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__device__ __forceinline__ unsigned shared_address(const void *p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ void ldmatrix4(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
template <bool BF16>
__device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    if (BF16) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
}

// Place of the 16-byte chunk (row, chunk) in a tile of 64 rows of 4 chunks. Two rows fill 128 bytes; the XOR keeps the
// eight rows of an ldmatrix phase in different banks.
__device__ __forceinline__ int swizzled(int row, int chunk) { return (row * 4 + (chunk ^ ((row >> 1) & 3))) * 16; }

template <bool BF16>
__device__ __forceinline__ void gemm(const unsigned short *a, const unsigned short *b, float *c, int m, int n, int k) {
    extern __shared__ __align__(128) unsigned char smem[];
    const int stage = 2 * 64 * 64;
    int t = threadIdx.x, warp = t / 32, lane = t % 32;
    int row0 = blockIdx.y * 64, col0 = blockIdx.x * 64;
    float acc[2][4][4] = {};

    auto load = [&](int s, int k0) {
#pragma unroll
        for (int i = t; i < 256; i += 128) {
            int row = i / 4, chunk = i % 4;
            // Rows beyond m or n are filled with zeros.
            unsigned in_a = row0 + row < m ? 16 : 0, in_b = col0 + row < n ? 16 : 0;
            const unsigned short *pa = a + (long long)(in_a ? row0 + row : 0) * k + k0 + chunk * 8;
            const unsigned short *pb = b + (long long)(in_b ? col0 + row : 0) * k + k0 + chunk * 8;
            unsigned to = shared_address(smem) + s * stage + swizzled(row, chunk);
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(pa), "r"(in_a) : "memory");
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to + 4096), "l"(pb), "r"(in_b)
                         : "memory");
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };

    int steps = k / 32;
    load(0, 0);
    for (int step = 0; step < steps; ++step) {
        if (step + 1 < steps) {
            load((step + 1) & 1, (step + 1) * 32);
            asm volatile("cp.async.wait_group 1;" ::: "memory");
        } else {
            asm volatile("cp.async.wait_group 0;" ::: "memory");
        }
#ifndef BUG_NO_BARRIER_BEFORE
        __syncthreads();
#endif
        unsigned base_a = shared_address(smem) + (step & 1) * stage, base_b = base_a + 4096;
#pragma unroll
        for (int kk = 0; kk < 2; ++kk) {
            unsigned fa[2][4], fb[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                int row = (warp / 2) * 32 + i * 16 + lane % 16;
                ldmatrix4(fa[i], base_a + swizzled(row, kk * 2 + lane / 16));
                row = (warp % 2) * 32 + i * 16 + lane % 8 + (lane / 16) * 8;
                ldmatrix4(fb[i], base_b + swizzled(row, kk * 2 + (lane / 8) % 2));
            }
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) mma<BF16>(acc[i][j], fa[i], fb[j / 2][(j % 2) * 2], fb[j / 2][(j % 2) * 2 + 1]);
        }
#ifndef BUG_NO_BARRIER_AFTER
        __syncthreads();
#endif
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int h = 0; h < 4; ++h) {
                int row = row0 + (warp / 2) * 32 + i * 16 + lane / 4 + (h / 2) * 8;
                int col = col0 + (warp % 2) * 32 + j * 8 + (lane % 4) * 2 + h % 2;
                if (row < m && col < n) c[(long long)row * n + col] = acc[i][j][h];
            }
}

extern "C" __global__ void __launch_bounds__(128)
gemm_f16(const unsigned short *a, const unsigned short *b, float *c, int m, int n, int k) {
    gemm<false>(a, b, c, m, n, k);
}
extern "C" __global__ void __launch_bounds__(128)
gemm_bf16(const unsigned short *a, const unsigned short *b, float *c, int m, int n, int k) {
    gemm<true>(a, b, c, m, n, k);
}
