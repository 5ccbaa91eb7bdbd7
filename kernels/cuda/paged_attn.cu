// paged_attn: attention of one new token per sequence over its KV pages; see paged_attn.cuh
// launch  grid = (kv_heads, n_seqs, any number): a block takes every gridDim.z-th split, so that the grid need not
//         know the lengths; block = 256, 2 blocks per SM. Lengths and pages come from device memory
#include "paged_attn.cuh"

#define PAGED_ATTN(name, T)                                                                                            \
    extern "C" __global__ __launch_bounds__(THREADS, 2) void name(const __grid_constant__ QwenvlDecodeAttention p) {   \
        __shared__ PagedShared shared;                                                                                 \
        paged_attn<T>(p, shared, blockIdx.x, blockIdx.y, blockIdx.z, gridDim.z);                                       \
    }
PAGED_ATTN(paged_attn_bf16, BF16)
PAGED_ATTN(paged_attn_f16, F16)
