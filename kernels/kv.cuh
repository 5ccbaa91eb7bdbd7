// kv: where keys and values are.
//
// layout  per layer [page][k|v][kv_head][64 tokens][128 channels] of the activation type, so that the keys
//         (or values) of one head and page are 16 KiB in one piece. A slot is page · 64 + token.
#pragma once

#include <stdint.h>

constexpr int KV_PAGE_TOKENS = 64;
constexpr int KV_HEAD_DIM = 128;
constexpr int KV_TILE = KV_PAGE_TOKENS * KV_HEAD_DIM;  // elements of one head's keys in a page

enum KvPart { KV_KEYS = 0, KV_VALUES = 1 };

// Elements from the start of the layer to channel 0 of a token's key or value.
__device__ __forceinline__ int64_t kv_offset(int page, KvPart part, int kv_head, int token, int n_kv_heads) {
    return ((int64_t)page * 2 + part) * n_kv_heads * KV_TILE + (int64_t)kv_head * KV_TILE + token * KV_HEAD_DIM;
}
