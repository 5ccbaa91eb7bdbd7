// What follows the product of a linear layer, for 16 outputs of a row at a time.
#pragma once

#include "common.cuh"

// The 16 outputs that a lane finishes, of any row: 8 from `n[0]` on and their partners (the next 8, or those half a head
// on) from `n[1]`.
struct Outputs {
    u32 n[2];
    bool there[2];
};

// Those of tile `tile` of all tiles.
__device__ __forceinline__ Outputs outputs(const QwenvlLinear &p, u32 tile) {
    Outputs of;
    if (p.half == 0) {
        of.n[0] = tile * 16;
        of.n[1] = of.n[0] + 8;
    } else {
        u32 tiles = p.half / 8; // of a head
        of.n[0] = tile / tiles * 2 * p.half + tile % tiles * 8;
        of.n[1] = of.n[0] + p.half;
    }
    of.there[0] = of.n[0] < p.n;
    of.there[1] = of.n[1] < p.n;
    return of;
}

// Where a row is turned to and kept. Loaded while the row before is finished: waiting for it, and then for the angles,
// would take longer than the product of a small layer.
struct Place {
    Positions positions;
    u32 slot;
};
__device__ __forceinline__ void load_place(Place &place, const QwenvlLinear &p, u32 m) {
    if (m < p.m && (p.epilogue == QWENVL_ROPE || p.epilogue == QWENVL_ROPE_KV)) {
        place.positions = positions(p.rope, m);
        if (p.epilogue == QWENVL_ROPE_KV) {
            place.slot = p.slots[m];
        }
    }
}

__device__ __forceinline__ void load_eight(float (&to)[8], const float *from) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        float4 v = *reinterpret_cast<const float4 *>(from + i);
        to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
    }
}
__device__ __forceinline__ void add_eight(float (&to)[8], const float *from) {
    float by[8];
    load_eight(by, from);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        to[i] += by[i];
    }
}

template <class T> __device__ __forceinline__ void store_run(u16 *to, const float (&y)[8]) {
    *reinterpret_cast<uint4 *>(to) =
        make_uint4(T::pack(y[0], y[1]), T::pack(y[2], y[3]), T::pack(y[4], y[5]), T::pack(y[6], y[7]));
}

__device__ __forceinline__ void add_bias(float (&y)[2][8], const QwenvlLinear &p, const Outputs &of) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (p.bias != nullptr && of.there[h]) {
            add_eight(y[h], p.bias + of.n[h]);
        }
    }
}

// The epilogue of the outputs of one row, biases added.
template <class T, u32 EPILOGUE>
__device__ __forceinline__ void finish_run(const QwenvlLinear &p, float (&y)[2][8], u32 m, const Outputs &of,
                                           const Place &place) {
    if (m >= p.m || !of.there[0]) {
        return;
    }
    float(&low)[8] = y[0], (&high)[8] = y[1];
    u64 row = static_cast<u64>(m) * p.ldo;
    if (EPILOGUE == QWENVL_SWIGLU) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            low[i] = gated(low[i], 1.0f) * high[i];
        }
        return store_run<T>(static_cast<u16 *>(p.out) + row + of.n[0], low);
    }
    u16 *to[2] = {static_cast<u16 *>(p.out) + row + of.n[0], static_cast<u16 *>(p.out) + row + of.n[1]};
    if (EPILOGUE == QWENVL_ROPE || EPILOGUE == QWENVL_ROPE_KV) {
        u32 channel = of.n[0] % (2 * p.half); // within a head, below half
        if (of.n[0] < p.n_rotated) {
            Turn by[8];
            turns(by, p.rope, place.positions, channel);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float turned = low[i] * by[i].cos - high[i] * by[i].sin;
                high[i] = high[i] * by[i].cos + low[i] * by[i].sin;
                low[i] = turned;
            }
        }
        if (EPILOGUE == QWENVL_ROPE_KV && of.n[0] >= p.n_q) {
            u32 slot = place.slot;
            if (slot == QWENVL_NO_SLOT) {
                return;
            }
            bool value = of.n[0] >= p.n_rotated;
            u32 head = (of.n[0] - (value ? p.n_rotated : p.n_q)) / p.kv.head_dim;
            to[0] = static_cast<u16 *>(p.kv.pages) + channel +
                    kv_at(p.kv, slot / QWENVL_PAGE_TOKENS, value, head, slot % QWENVL_PAGE_TOKENS);
            to[1] = to[0] + p.half;
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (!of.there[h]) {
            continue;
        }
        if constexpr (EPILOGUE == QWENVL_STORE_F32 || EPILOGUE == QWENVL_RESIDUAL) {
            if (EPILOGUE == QWENVL_RESIDUAL) {
                add_eight(y[h], p.residual + row + of.n[h]);
            }
            float4 *out = reinterpret_cast<float4 *>(static_cast<float *>(p.out) + row + of.n[h]);
            out[0] = make_float4(y[h][0], y[h][1], y[h][2], y[h][3]);
            out[1] = make_float4(y[h][4], y[h][5], y[h][6], y[h][7]);
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                if (EPILOGUE == QWENVL_QUICK_GELU) {
                    y[h][i] = gated(y[h][i], 1.702f);
                } else if (EPILOGUE == QWENVL_GELU) {
                    y[h][i] = gelu(y[h][i]);
                }
            }
            store_run<T>(to[h], y[h]);
        }
    }
}
