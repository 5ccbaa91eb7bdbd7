// Local memory: arrays indexed at run time, spills, functions that are called.

// Sorts 16 numbers per thread in a local array.
extern "C" __global__ void sort_local(const int *in, int *out, int n) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= n) return;
    int a[16];
    for (int i = 0; i < 16; ++i) a[i] = in[t * 16 + i];
    for (int i = 1; i < 16; ++i) {
        int x = a[i], j = i;
        while (j > 0 && a[j - 1] > x) {
            a[j] = a[j - 1];
            --j;
        }
        a[j] = x;
    }
    for (int i = 0; i < 16; ++i) out[t * 16 + i] = a[i];
}

__device__ __noinline__ int collatz(long long x, int *steps) {
    int most = 0;
    while (x != 1 && *steps < 1000) {
        x = x % 2 ? 3 * x + 1 : x / 2;
        ++*steps;
        most = max(most, (int)(x & 0x7fffffff));
    }
    return most;
}

// Calls a function that writes through a pointer to a local variable.
extern "C" __global__ void call_function(const int *in, int *out, int n) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= n) return;
    int steps = 0;
    int most = collatz(in[t], &steps);
    out[2 * t] = steps;
    out[2 * t + 1] = most;
}

__constant__ int table[8] = {3, 1, 4, 1, 5, 9, 2, 6};
__device__ int offset = 7;
__device__ const int *where = &offset;

// Constant memory, variables of the module, a switch.
extern "C" __global__ void lookup(const int *in, int *out, int n) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= n) return;
    int x = in[t], y;
    switch (x & 7) {
    case 0: y = x * 3; break;
    case 1: y = x ^ 0x55; break;
    case 2: y = __popc(x); break;
    case 3: y = __clz(x); break;
    case 4: y = __brev(x); break;
    case 5: y = __ffs(x); break;
    case 6: y = x >> 3; break;
    default: y = -x; break;
    }
    out[t] = y + table[x & 7] + *where;
}
