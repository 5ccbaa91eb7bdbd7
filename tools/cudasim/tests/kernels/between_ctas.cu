// CTAs that depend on each other: a last-arriver counter, a lock handed over, a grid barrier.

// y[col] = sum over rows of x[rows][n], the rows split over gridDim.y CTAs; the last one to arrive adds the parts up in
// order, so that the result does not depend on who is last. `count` starts at 0 and is left at 0.
extern "C" __global__ void sum_columns_split(const float *x, float *y, float *parts, unsigned *count, int rows, int n) {
    int col = blockIdx.x * blockDim.x + threadIdx.x;
    int each = (rows + gridDim.y - 1) / gridDim.y, begin = blockIdx.y * each, end = min(begin + each, rows);
    float sum = 0;
    if (col < n)
        for (int r = begin; r < end; ++r) sum += x[(long long)r * n + col];
    if (col < n) parts[(long long)blockIdx.y * n + col] = sum;
    __threadfence();
    __syncthreads();
    __shared__ bool last;
    if (threadIdx.x == 0) last = atomicInc(&count[blockIdx.x], gridDim.y - 1) == gridDim.y - 1;
    __syncthreads();
    if (!last || col >= n) return;
    __threadfence();
    float total = 0;
    for (unsigned p = 0; p < gridDim.y; ++p) total += __ldcg(&parts[(long long)p * n + col]);
    y[col] = total;
}

// Each CTA appends to a log in the order of its index, waiting in a spin loop for the one before.
extern "C" __global__ void hand_over(volatile unsigned *turn, unsigned *log) {
    if (threadIdx.x == 0) {
#ifdef BUG_DEADLOCK
        while (*turn != blockIdx.x + 1) {
#else
        while (*turn != blockIdx.x) {
#endif
        }
        __threadfence();
    }
    __syncthreads();
    log[blockIdx.x] = blockIdx.x == 0 ? 1 : 3 * __ldcg(&log[blockIdx.x - 1]) + 1;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *turn = blockIdx.x + 1;
}

// A lock that the lanes of one warp fight for: lanes that spin must let the holder go on.
extern "C" __global__ void lock_in_warp(unsigned *lock, unsigned *counter) {
    bool done = false;
    while (!done) {
        if (atomicCAS(lock, 0u, 1u) == 0u) {
            *(volatile unsigned *)counter = *(volatile unsigned *)counter + threadIdx.x;
            __threadfence();
            atomicExch(lock, 0u);
            done = true;
        }
    }
}

// All CTAs wait for each other between two phases: each then reads what its neighbour wrote before.
extern "C" __global__ void grid_barrier(int *data, int *out, unsigned *arrived, int rounds) {
    int n = gridDim.x;
    for (int r = 0; r < rounds; ++r) {
        if (threadIdx.x == 0) {
            *(volatile int *)&data[blockIdx.x] = blockIdx.x + 100 * r;
            __threadfence();
            atomicAdd(arrived, 1u);
            while (*(volatile unsigned *)arrived < unsigned(n) * (2 * r + 1)) {
            }
            __threadfence();
            out[r * n + blockIdx.x] = *(volatile int *)&data[(blockIdx.x + 1) % n];
            __threadfence();
            atomicAdd(arrived, 1u);
            while (*(volatile unsigned *)arrived < unsigned(n) * (2 * r + 2)) {
            }
        }
        __syncthreads();
    }
}
