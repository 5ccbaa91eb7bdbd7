// How linear.cuh makes A fragments of weights: two k16 steps of two 16x16 tiles from what a lane loads at once.
#pragma once

#include "common.cuh"

// A weight format: GROUP inputs have a scale, SCALES bytes in the tail; VECTORS for 32 outputs x 32 inputs of a lane. LIFTED:
// codes are multiplied as they are, or with a constant added, and what that and the zero points amount to is taken off the
// sum of a group.
template <int GROUP_> struct Int4Of {
    static constexpr u32 GROUP = GROUP_, SCALES = 320, TAIL = 128 / GROUP * SCALES, RECORD = 8192 + TAIL, VECTORS = 1;
    static constexpr bool GROUPED = true, LIFTED = GROUP == 128;
    template <class T> struct Zero {
        u32 z[2][2]; // [tile][row half]: two numbers to be added to two codes; LIFTED, an f32 for an input of 1
    };
    template <class T>
    static __device__ __forceinline__ void load_zero(Zero<T> &zero, const u8 *tail, u32 u, u32 g) {
        u32 nibbles = *reinterpret_cast<const u16 *>(tail + 256 + (u * 8 + g) * 2);
        nibbles = ptx::opaque(LIFTED ? nibbles << 16 : nibbles * 0x10001);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 at = nibbles >> 4 * i;
            zero.z[i / 2][i % 2] = LIFTED ? __float_as_uint(T::minus_zero(at, i % 2)) : ptx::and_or(at, 0x000f000fu, T::NEGATIVE);
        }
    }
    template <class T>
    static __device__ __forceinline__ void decode(u32 (&a)[2][2][4], const uint4 *from, const Zero<T> &zero) {
        uint4 v = from[0];
        u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 16; i++) {
            u32 word = words[i / 4], j = i / 4 % 2, e = i % 4;
            a[i / 8][j][e] =
                LIFTED ? T::code(word, e) : T::add(ptx::and_or(word >> 4 * e, 0x000f000fu, T::MAGIC), zero.z[j][e % 2]);
        }
    }
    // The unit of the sums of a half.
    template <class T> static __device__ __forceinline__ float unit(u32 h) { return T::code_unit(h); }
};

using Int4 = Int4Of<128>;

template <int GROUP_, bool ZEROS> struct Int8Of {
    static constexpr u32 GROUP = GROUP_, SCALES = ZEROS ? 384 : 256, TAIL = 128 / GROUP * SCALES, RECORD = 16384 + TAIL;
    static constexpr u32 VECTORS = 2;
    static constexpr bool GROUPED = true, LIFTED = false;
    template <class T> struct Zero {
        u32 z[2][2]; // [tile][row half]: twice 128 less the zero point; unused where that is 128
    };
    template <class T>
    static __device__ __forceinline__ void load_zero(Zero<T> &zero, const u8 *tail, u32 u, u32 g) {
        if (ZEROS) {
            u32 bytes = *reinterpret_cast<const u32 *>(tail + 256 + (u * 8 + g) * 4);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                zero.z[i / 2][i % 2] = T::byte_minus_128((bytes >> 8 * i & 255) * 0x10001) ^ 0x80008000u;
            }
        }
    }
    template <class T>
    static __device__ __forceinline__ void decode(u32 (&a)[2][2][4], const uint4 *from, const Zero<T> &zero) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            uint4 v = from[j * 32];
            u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int w = 0; w < 4; w++) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    u32 code = T::byte_minus_128(words[w] >> 8 * h);
                    a[w / 2][j][w % 2 * 2 + h] = ZEROS ? T::add(code, zero.z[j][h]) : code;
                }
            }
        }
    }
};
using Int8 = Int8Of<128, false>;

struct Dense {
    static constexpr u32 GROUP = 128, SCALES = 0, TAIL = 0, RECORD = 32768, VECTORS = 4;
    static constexpr bool GROUPED = false, LIFTED = false;
    template <class T> struct Zero {};
    template <class T> static __device__ __forceinline__ void load_zero(Zero<T> &, const u8 *, u32, u32) {}
    template <class T>
    static __device__ __forceinline__ void decode(u32 (&a)[2][2][4], const uint4 *from, const Zero<T> &) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint4 v = from[i * 32];
            a[i / 2][i % 2][0] = v.x;
            a[i / 2][i % 2][1] = v.y;
            a[i / 2][i % 2][2] = v.z;
            a[i / 2][i % 2][3] = v.w;
        }
    }
};

// 16-bit weights of the type U, rounded to that of X as they are used.
template <class U> struct Cast : Dense {
    template <class T>
    static __device__ __forceinline__ void decode(u32 (&a)[2][2][4], const uint4 *from, const Zero<T> &zero) {
        Dense::decode<T>(a, from, zero);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            u32 &w = a[i / 8][i / 4 % 2][i % 4];
            w = T::pack(U::low(w), U::high(w));
        }
    }
};
