// Sums: shared memory and shuffles, one CTA per row.

// out[row] = sum of in[row][0..n], 256 threads.
extern "C" __global__ void sum_rows(const float *in, float *out, int n) {
    __shared__ float part[8];
    const float *row = in + (long long)blockIdx.x * n;
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += row[i];
    for (int mask = 16; mask; mask >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#ifdef BUG_OUT_OF_BOUNDS_SHARED
    if (lane == 0) part[warp + 1] = sum;
#elif defined(BUG_UNINITIALISED_SHARED)
    if (lane == 0 && warp != 3) part[warp] = sum;
#else
    if (lane == 0) part[warp] = sum;
#endif
#ifdef BUG_DIVERGENT_BARRIER
    if (threadIdx.x != 33) __syncthreads();
#elif !defined(BUG_NO_BARRIER_BEFORE)
    __syncthreads();
#endif
    if (warp == 0) {
        float total = lane < 8 ? part[lane] : 0.0f;
        for (int mask = 4; mask; mask >>= 1) total += __shfl_xor_sync(0xffffffffu, total, mask);
        if (lane == 0) out[blockIdx.x] = total;
    }
}

// The classic tree in shared memory, over several tiles: a barrier before a tile is overwritten.
extern "C" __global__ void sum_tiles(const int *in, int *out, int tiles) {
    __shared__ int tile[128];
    int t = threadIdx.x, total = 0;
    for (int k = 0; k < tiles; ++k) {
        tile[t] = in[((long long)blockIdx.x * tiles + k) * 128 + t];
        __syncthreads();
        for (int step = 64; step; step >>= 1) {
            if (t < step) tile[t] += tile[t + step];
            __syncthreads();
        }
        total += tile[0];
#ifndef BUG_NO_BARRIER_AFTER
        __syncthreads();
#endif
    }
    if (t == 0) out[blockIdx.x] = total;
}
