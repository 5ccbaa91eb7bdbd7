// What follows the product of a linear layer, for 16 outputs of a row at a time.
#pragma once

#include "common.cuh"

// The first outputs (rows of W) of the two halves of tile `tile` of all tiles.
__device__ __forceinline__ void outputs(const QwenvlLinear &p, u32 tile, u32 &low, u32 &high) {
    if (p.half == 0) {
        low = tile * 16;
        high = low + 8;
    } else {
        u32 tiles = p.half / 8; // of a head
        low = tile / tiles * 2 * p.half + tile % tiles * 8;
        high = low + p.half;
    }
}

template <class T> __device__ __forceinline__ void store_run(u16 *to, const float (&y)[8]) {
    *reinterpret_cast<uint4 *>(to) =
        make_uint4(T::pack(y[0], y[1]), T::pack(y[2], y[3]), T::pack(y[4], y[5]), T::pack(y[6], y[7]));
}

__device__ __forceinline__ void add_eight(float (&y)[8], const float *bias) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        float4 v = *reinterpret_cast<const float4 *>(bias + i);
        y[i] += v.x, y[i + 1] += v.y, y[i + 2] += v.z, y[i + 3] += v.w;
    }
}

// The epilogue of 8 outputs `low` and their 8 partners `high` (the next 8, or those half a head on) of one row.
template <class T, u32 EPILOGUE>
__device__ __forceinline__ void finish_run(const QwenvlLinear &p, float (&low)[8], float (&high)[8], u32 m, u32 tile) {
    u32 n[2];
    outputs(p, tile, n[0], n[1]);
    bool there[2] = {n[0] < p.n, n[1] < p.n};
    if (m >= p.m || !there[0]) {
        return;
    }
    bool turned = (EPILOGUE == QWENVL_ROPE || EPILOGUE == QWENVL_ROPE_KV) && n[0] < p.n_rotated;
    if (p.bias != nullptr) {
        add_eight(low, p.bias + n[0]);
        if (there[1]) {
            add_eight(high, p.bias + n[1]);
        }
    }
    u64 row = static_cast<u64>(m) * p.ldo;
    if (EPILOGUE == QWENVL_SWIGLU) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            low[i] = gated(low[i], 1.0f) * high[i];
        }
        return store_run<T>(static_cast<u16 *>(p.out) + row + n[0], low);
    }
    u16 *to[2] = {static_cast<u16 *>(p.out) + row + n[0], static_cast<u16 *>(p.out) + row + n[1]};
    u32 channel = n[0] % (2 * p.half); // within a head, below half
    u32 slot = QWENVL_NO_SLOT; // loaded beside the positions
    if (EPILOGUE == QWENVL_ROPE_KV && n[0] >= p.n_q) {
        slot = p.slots[m];
    }
    if (turned) {
        Turn by[8];
        turns(by, p.rope, m, channel);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float x = low[i] * by[i].cos - high[i] * by[i].sin;
            high[i] = high[i] * by[i].cos + low[i] * by[i].sin;
            low[i] = x;
        }
    }
    if (EPILOGUE == QWENVL_ROPE_KV && n[0] >= p.n_q) {
        if (slot == QWENVL_NO_SLOT) {
            return;
        }
        bool value = n[0] >= p.n_rotated;
        u32 head = (n[0] - (value ? p.n_rotated : p.n_q)) / p.kv.head_dim;
        to[0] = static_cast<u16 *>(p.kv.pages) + channel +
                kv_at(p.kv, slot / QWENVL_PAGE_TOKENS, value, head, slot % QWENVL_PAGE_TOKENS);
        to[1] = to[0] + p.half;
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float(&y)[8] = h == 0 ? low : high;
        if (!there[h]) {
            continue;
        }
        if constexpr (EPILOGUE == QWENVL_STORE_F32 || EPILOGUE == QWENVL_RESIDUAL) {
            float4 *out = reinterpret_cast<float4 *>(static_cast<float *>(p.out) + row + n[h]);
            float4 a = make_float4(y[0], y[1], y[2], y[3]), b = make_float4(y[4], y[5], y[6], y[7]);
            if (EPILOGUE == QWENVL_RESIDUAL) {
                const float4 *residual = reinterpret_cast<const float4 *>(p.residual + row + n[h]);
                float4 ra = residual[0], rb = residual[1];
                a = make_float4(ra.x + a.x, ra.y + a.y, ra.z + a.z, ra.w + a.w);
                b = make_float4(rb.x + b.x, rb.y + b.y, rb.z + b.z, rb.w + b.w);
            }
            out[0] = a;
            out[1] = b;
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                if (EPILOGUE == QWENVL_QUICK_GELU) {
                    y[i] = gated(y[i], 1.702f);
                } else if (EPILOGUE == QWENVL_GELU) {
                    y[i] = gelu(y[i]);
                }
            }
            store_run<T>(to[h], y);
        }
    }
}
