// cp.async pipelines: each CTA squares tiles of 512 floats and adds them up per element, DEPTH tiles in flight.

__device__ __forceinline__ void copy16(void *to, const void *from) {
    unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// 128 threads, each moves 16 bytes of a tile; thread t then reads words t, t + 128, ..., which others moved.
template <int DEPTH> __device__ __forceinline__ void square_tiles(const float *in, float *out, int tiles) {
    __shared__ __align__(16) float tile[DEPTH][512];
    const float *from = in + (long long)blockIdx.x * tiles * 512;
    int t = threadIdx.x;
    float sum[4] = {0, 0, 0, 0};
#pragma unroll
    for (int s = 0; s < DEPTH - 1; ++s) {
        if (s < tiles) copy16(&tile[s][4 * t], from + s * 512 + 4 * t);
        commit();
    }
    for (int k = 0; k < tiles; ++k) {
#ifndef BUG_NO_WAIT
        wait<DEPTH - 2>();
#endif
#ifndef BUG_NO_BARRIER
        __syncthreads();
#endif
        int next = k + DEPTH - 1;
        if (next < tiles) copy16(&tile[next % DEPTH][4 * t], from + next * 512 + 4 * t);
        commit();
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float x = tile[k % DEPTH][t + 128 * j];
            sum[j] += x * x;
        }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) out[blockIdx.x * 512 + t + 128 * j] = sum[j];
}

extern "C" __global__ void __launch_bounds__(128) pipeline2(const float *in, float *out, int tiles) {
    square_tiles<2>(in, out, tiles);
}
extern "C" __global__ void __launch_bounds__(128) pipeline3(const float *in, float *out, int tiles) {
    square_tiles<3>(in, out, tiles);
}
extern "C" __global__ void __launch_bounds__(128) pipeline4(const float *in, float *out, int tiles) {
    square_tiles<4>(in, out, tiles);
}
extern "C" __global__ void __launch_bounds__(128) pipeline5(const float *in, float *out, int tiles) {
    square_tiles<5>(in, out, tiles);
}

// Zero-fill: copies of fewer source bytes than the 16 that are written.
extern "C" __global__ void copy_ragged(const float *in, float *out, int n) {
    __shared__ __align__(16) float tile[128];
    int i = 4 * threadIdx.x;
    int left = n - i;
    int bytes = left <= 0 ? 0 : (left < 4 ? left * 4 : 16);
    unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(&tile[i]));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(in + (bytes ? i : 0)), "r"(bytes)
                 : "memory");
    commit();
    asm volatile("cp.async.wait_all;" ::: "memory");
    for (int j = 0; j < 4; ++j) out[i + j] = tile[i + j];
}
