// Softmax by shuffles: one warp per row.

// out[row][i] = exp(in[row][i] - max) / sum, n columns; four warps per CTA.
extern "C" __global__ void softmax_rows(const float *in, float *out, int rows, int n) {
    int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const float *x = in + (long long)row * n;
    float most = -__int_as_float(0x7f800000);
    for (int i = lane; i < n; i += 32) most = fmaxf(most, x[i]);
    for (int d = 16; d; d >>= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
    float sum = 0;
    for (int i = lane; i < n; i += 32) sum += expf(x[i] - most);
    for (int d = 16; d; d >>= 1) sum += __shfl_down_sync(~0u, sum, d);
    sum = __shfl_sync(~0u, sum, 0);
    float scale = 1.0f / sum;
    for (int i = lane; i < n; i += 32) out[(long long)row * n + i] = __expf(x[i] - most) * scale;
}

// Inclusive prefix sum of each row of 32 and its votes.
extern "C" __global__ void scan_warps(const int *in, int *out, unsigned *positive) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32;
    int x = in[i];
    unsigned votes = __ballot_sync(~0u, x > 0);
    for (int d = 1; d < 32; d <<= 1) {
        int other = __shfl_up_sync(~0u, x, d);
        if (lane >= d) x += other;
    }
    out[i] = x;
    if (lane == 0) positive[i / 32] = votes;
#ifdef BUG_INACTIVE_LANE
    if (lane < 16) out[i] = __shfl_xor_sync(~0u, x, 16);
#endif
}
