// f64 and 64-bit integers.

extern "C" __global__ void f64_math(const double *x, const double *y, double *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    double a = x[i], b = y[i];
    out[8 * i + 0] = a + b;
    out[8 * i + 1] = a * b;
    out[8 * i + 2] = a / b;
    out[8 * i + 3] = sqrt(fabs(a));
    out[8 * i + 4] = fma(a, b, 1.0);
    out[8 * i + 5] = floor(a) + rint(b) + fmin(a, b);
    out[8 * i + 6] = exp(a * 0.01);
    out[8 * i + 7] = (double)(long long)a + (double)(float)b;
}

extern "C" __global__ void divide_64(const long long *x, const long long *y, long long *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    long long a = x[i], b = y[i];
    unsigned long long ua = a, ub = b;
    out[8 * i + 0] = a / b;
    out[8 * i + 1] = a % b;
    out[8 * i + 2] = ua / ub;
    out[8 * i + 3] = ua % ub;
    out[8 * i + 4] = __mul64hi(a, b);
    out[8 * i + 5] = __umul64hi(ua, ub);
    out[8 * i + 6] = a / 1000003;
    out[8 * i + 7] = (int)a / ((int)b | 1) + (unsigned)a % ((unsigned)b | 1);
}
