// Rows of a matrix in bf16 or float, read in float.
#pragma once
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#include <algorithm>
#include <cstdint>
#include <cstring>

struct bf16 {
    uint16_t bits;
};
static inline float wide(float x) { return x; }
static inline float wide(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}
static inline void narrow(float x, float& y) { y = x; }
static inline void narrow(float x, bf16& y) {  // to the nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    y.bits = x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

// sum[d] += sum over i of weights[i] * (row rows[i] of G)[d]; D numbers a row.
template <class T>
static void add_rows(const T* G, int64_t D, const int32_t* rows, const float* weights, int64_t count, float* sum) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {  // four rows at a time, and the next four on their way
        const T *a = G + rows[i] * D, *b = G + rows[i + 1] * D, *c = G + rows[i + 2] * D, *d = G + rows[i + 3] * D;
        const float wa = weights[i], wb = weights[i + 1], wc = weights[i + 2], wd = weights[i + 3];
        for (int64_t next = i + 4; next < std::min(i + 8, count); next++)
            for (int64_t j = 0; j < D; j += 64 / sizeof(T)) __builtin_prefetch(G + rows[next] * D + j);
        for (int64_t j = 0; j < D; j++)
            sum[j] += wa * wide(a[j]) + wb * wide(b[j]) + (wc * wide(c[j]) + wd * wide(d[j]));
    }
    for (; i < count; i++) {
        const T* a = G + rows[i] * D;
        const float wa = weights[i];
        for (int64_t j = 0; j < D; j++) sum[j] += wa * wide(a[j]);
    }
}

// dots[i] = <e, row rows[i] of W>.
template <class T>
static void dot_rows(const T* W, int64_t D, const int32_t* rows, int64_t count, const float* e, float* dots) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const T *a = W + rows[i] * D, *b = W + rows[i + 1] * D, *c = W + rows[i + 2] * D, *d = W + rows[i + 3] * D;
        float sa = 0, sb = 0, sc = 0, sd = 0;
        for (int64_t j = 0; j < D; j++) {
            sa += e[j] * wide(a[j]);
            sb += e[j] * wide(b[j]);
            sc += e[j] * wide(c[j]);
            sd += e[j] * wide(d[j]);
        }
        dots[i] = sa, dots[i + 1] = sb, dots[i + 2] = sc, dots[i + 3] = sd;
    }
    for (; i < count; i++) {
        const T* a = W + rows[i] * D;
        float sa = 0;
        for (int64_t j = 0; j < D; j++) sa += e[j] * wide(a[j]);
        dots[i] = sa;
    }
}

#ifdef __AVX512F__
static inline __m512 wide16(const float* x) { return _mm512_loadu_ps(x); }
static inline __m512 wide16(const bf16* x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16));
}
#endif
