// Atomics on global and shared memory.

// counts[v] += 1 for each value, through a histogram in shared memory.
extern "C" __global__ void histogram(const unsigned char *in, unsigned *counts, int n) {
    __shared__ unsigned own[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) own[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&own[in[i]], 1u);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x)
        if (own[i]) atomicAdd(&counts[i], own[i]);
}

// One word per operation, over all values.
extern "C" __global__ void every_operation(const int *in, int *out, unsigned long long *wide, float *f, double *d, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int x = in[i];
    unsigned u = x;
    atomicAdd(&out[0], x);
    atomicSub(&out[1], x);
    atomicMin(&out[2], x);
    atomicMax(&out[3], x);
    atomicMin((unsigned *)&out[4], u);
    atomicMax((unsigned *)&out[5], u);
    atomicAnd(&out[6], x | 0xff);
    atomicOr(&out[7], x & 0xff);
    atomicXor(&out[8], x);
    atomicInc((unsigned *)&out[9], 999u);
    atomicDec((unsigned *)&out[10], 777u);
    atomicAdd(&wide[0], (unsigned long long)u * u);
    atomicMax(&wide[1], (unsigned long long)u * u);
    atomicAdd(f, 1.0f);
    atomicAdd(d, 0.25);
    // A floating-point maximum by compare-and-swap.
    int old = out[11], seen;
    do {
        seen = old;
        if (__int_as_float(seen) >= (float)x) break;
        old = atomicCAS(&out[11], seen, __float_as_int((float)x));
    } while (old != seen);
    // Who came when does not matter; everybody must get another ticket.
    out[12 + atomicAdd(&out[12], 1) + 1] = 1;
}
