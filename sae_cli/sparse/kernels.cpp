// Products of a training step over the entries (row b, latent f) that are not zero. Rows of T (bf16 or float) are
// summed in float. Each number of a result is made by one thread in a fixed order, so threads do not change it.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "rows.h"

// One bit for each of up to 64 values: m + offset > above, or NaN.
template <class T>
static inline uint64_t opened(const T* m, const float* offset, int64_t size, float above) {
    uint64_t bits = 0;
#ifdef __AVX512F__
    if (size == 64) {
        for (int64_t i = 0; i < 64; i += 16) {
            const __m512 sums = _mm512_add_ps(wide16(m + i), _mm512_loadu_ps(offset + i));
            bits |= uint64_t(_mm512_cmp_ps_mask(sums, _mm512_set1_ps(above), _CMP_NLE_UQ)) << i;
        }
        return bits;
    }
#endif
    for (int64_t i = 0; i < size; i++) bits |= uint64_t(!(wide(m[i]) + offset[i] <= above)) << i;
    return bits;
}

struct Found {
    std::vector<int32_t> columns;
    std::vector<float> sums;
    std::vector<int32_t> bits;
    int64_t count = 0;
};

// Appends the columns of a row where m + offset > above, and these sums.
template <class T>
static void collect(const T* m, const float* offset, int64_t F, float above, Found& found) {
    if (int64_t(found.columns.size()) < found.count + F) {
        found.columns.resize(2 * found.count + F);
        found.sums.resize(2 * found.count + F);
    }
    int32_t* columns = found.columns.data() + found.count;
    float* sums = found.sums.data() + found.count;
    for (int64_t start = 0; start < F; start += 64) {
        const int64_t size = std::min<int64_t>(64, F - start);
        for (uint64_t bits = opened(m + start, offset + start, size, above); bits; bits &= bits - 1) {
            const int64_t f = start + __builtin_ctzll(bits);
            *columns++ = f;
            *sums++ = wide(m[f]) + offset[f];
        }
    }
    found.count = columns - found.columns.data();
}

// Keeps the k largest of the sums from `begin` on, which are positive and more than k, of equal ones the first. Returns
// the smallest kept: its bits, which order positive floats, are found one by one from the highest.
static float keep_largest(Found& found, int64_t begin, int64_t k) {
    const int64_t count = found.count - begin, padded = (count + 15) / 16 * 16;
    found.bits.assign(padded, 0);
    std::memcpy(found.bits.data(), found.sums.data() + begin, 4 * count);
    const int32_t* bits = found.bits.data();
    int32_t smallest = 0;
    for (int32_t bit = 1 << 30; bit; bit >>= 1) {
        int32_t reached = 0;
        for (int64_t i = 0; i < padded; i++) reached += bits[i] >= (smallest | bit);
        if (reached >= k) smallest |= bit;
    }
    int64_t ties = k - std::count_if(bits, bits + count, [&](int32_t z) { return z > smallest; }), end = begin;
    for (int64_t i = 0; i < count; i++)
        if (bits[i] > smallest || (bits[i] == smallest && ties-- > 0)) {
            found.columns[end] = found.columns[begin + i];
            found.sums[end++] = found.sums[begin + i];
        }
    found.count = end;
    float value;
    std::memcpy(&value, &smallest, 4);
    return value;
}

// Entries of m (B, F) where m + offset > 0, of each row at most the k largest sums (k = 0: all), as row starts (B + 1),
// columns and m (capacity). Returns how many, -1 if there are more than fit, -2 if there is no memory to look for them.
template <class T>
static int64_t find(const T* m, const float* offset, int64_t B, int64_t F, int64_t k, int64_t capacity,
                    int64_t threads, int32_t* starts, int32_t* columns, float* values) {
    std::vector<int64_t> counts(threads, 0);
    std::atomic<bool> full{false}, exhausted{false};
    starts[0] = 0;
#pragma omp parallel num_threads(threads)
    {
        const int64_t parts = omp_get_num_threads(), part = omp_get_thread_num();
        const int64_t first = part * B / parts, last = (part + 1) * B / parts;
        Found mine;
        float above = 0;  // a row's k largest are looked for above a share of the last row's smallest, then lower
        for (int64_t b = first; b < last && !full; b++) try {
            const int64_t begin = mine.count;
            collect(m + b * F, offset, F, above, mine);
            while (k && above > 0 && mine.count - begin < k) {
                mine.count = begin;
                above = above > 1e-6f ? 0.8f * above : 0;
                collect(m + b * F, offset, F, above, mine);
            }
            if (k && mine.count - begin > k) above = 0.95f * keep_largest(mine, begin, k);
            starts[b + 1] = mine.count - begin;
            if (mine.count > capacity) full = true;
        } catch (const std::bad_alloc&) {
            full = exhausted = true;
        }
        counts[part] = mine.count;
#pragma omp barrier
#pragma omp single
        {
            if (std::accumulate(counts.begin(), counts.end(), int64_t(0)) > capacity) full = true;
            for (int64_t b = 0; !full && b < B; b++) starts[b + 1] += starts[b];
        }
        if (!full) {
            std::copy(mine.columns.begin(), mine.columns.begin() + mine.count, columns + starts[first]);
            for (int64_t b = first; b < last; b++)
                for (int64_t i = starts[b]; i < starts[b + 1]; i++) values[i] = wide(m[b * F + columns[i]]);
        }
    }
    return exhausted ? -2 : full ? -1 : starts[B];
}

// e = b_dec - target + sum over a row's entries of f times W's row; squares (B) = ||e||^2; dots = <e, W's row> of each
// entry. e itself is rounded to T.
template <class T>
static void decode(const T* W, const float* b_dec, const float* target, int64_t B, int64_t D, const int32_t* starts,
                   const int32_t* columns, const float* f, int64_t threads, T* e, float* squares, float* dots) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> row(D);
#pragma omp for schedule(dynamic, 16)
        for (int64_t b = 0; b < B; b++) {
            for (int64_t j = 0; j < D; j++) row[j] = b_dec[j] - target[b * D + j];
            const int64_t begin = starts[b], count = starts[b + 1] - begin;
            add_rows(W, D, columns + begin, f + begin, count, row.data());
            dot_rows(W, D, columns + begin, count, row.data(), dots + begin);
            float square = 0;
            for (int64_t j = 0; j < D; j++) square += row[j] * row[j];
            squares[b] = square;
            for (int64_t j = 0; j < D; j++) narrow(row[j], e[b * D + j]);
        }
    }
}

constexpr int64_t TILE = 16;

// out (F, D) = for each column the sum over its entries of weight times G's row; transposed: out (D, F).
// The entries of column f are order[starts[f] .. starts[f + 1]], their rows are rows[...] in the same order.
template <class T>
static void accumulate(const T* G, int64_t D, int64_t F, const int32_t* starts, const int32_t* rows,
                       const int32_t* order, const float* weights, int64_t transposed, int64_t threads, float* out) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> tile(transposed ? TILE * D : 0), mine;
#pragma omp for schedule(dynamic, 4)
        for (int64_t first = 0; first < F; first += TILE) {
            const int64_t size = std::min(TILE, F - first);
            for (int64_t f = first; f < first + size; f++) {
                const int64_t begin = starts[f], count = starts[f + 1] - begin;
                float* sum = transposed ? tile.data() + (f - first) * D : out + f * D;
                std::fill(sum, sum + D, 0.f);
                mine.resize(count);
                for (int64_t i = 0; i < count; i++) mine[i] = weights[order[begin + i]];
                add_rows(G, D, rows + begin, mine.data(), count, sum);
            }
            if (!transposed) continue;
            for (int64_t d = 0; d < D; d++)
                for (int64_t f = 0; f < size; f++) out[d * F + first + f] = tile[f * D + d];
        }
    }
}

#ifdef __AVX2__
#include <immintrin.h>
#endif

// What Python calls: `narrow` says that the first matrix is bf16.
extern "C" {
int64_t sae_find(const void* m, int64_t narrow, const float* offset, int64_t B, int64_t F, int64_t k, int64_t capacity,
                 int64_t threads, int32_t* starts, int32_t* columns, float* values) {
    return narrow ? find((const bf16*)m, offset, B, F, k, capacity, threads, starts, columns, values)
                  : find((const float*)m, offset, B, F, k, capacity, threads, starts, columns, values);
}

void sae_decode(const void* W, int64_t narrow, const float* b_dec, const float* target, int64_t B, int64_t D,
                const int32_t* starts, const int32_t* columns, const float* f, int64_t threads, void* e, float* squares,
                float* dots) {
    narrow ? decode((const bf16*)W, b_dec, target, B, D, starts, columns, f, threads, (bf16*)e, squares, dots)
           : decode((const float*)W, b_dec, target, B, D, starts, columns, f, threads, (float*)e, squares, dots);
}

void sae_accumulate(const void* G, int64_t narrow, int64_t D, int64_t F, const int32_t* starts, const int32_t* rows,
                    const int32_t* order, const float* weights, int64_t transposed, int64_t threads, float* out) {
    narrow ? accumulate((const bf16*)G, D, F, starts, rows, order, weights, transposed, threads, out)
           : accumulate((const float*)G, D, F, starts, rows, order, weights, transposed, threads, out);
}

// Copies row i to place places[i], counted through batches of `size` rows; a negative place: nowhere. Rows that are
// aligned go past the caches: by the time a batch is read they would no longer be there.
void sae_scatter(const char* rows, const int64_t* places, char* const* batches, int64_t count, int64_t row_bytes,
                 int64_t size) {
    for (int64_t i = 0; i < count; i++, rows += row_bytes) {
        if (places[i] < 0) continue;
        char* to = batches[places[i] / size] + places[i] % size * row_bytes;
#ifdef __AVX2__
        if (row_bytes % 32 == 0 && (uintptr_t)to % 32 == 0) {
            for (int64_t j = 0; j < row_bytes; j += 32)
                _mm256_stream_si256((__m256i*)(to + j), _mm256_loadu_si256((const __m256i*)(rows + j)));
            continue;
        }
#endif
        std::memcpy(to, rows, row_bytes);
    }
#ifdef __AVX2__
    _mm_sfence();
#endif
}

// Takes off each row of grad (n, D) what is along the same row of W.
void sae_project(float* grad, const float* W, int64_t n, int64_t D, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float along = 0;
        for (int64_t j = 0; j < D; j++) along += grad[i * D + j] * W[i * D + j];
        for (int64_t j = 0; j < D; j++) grad[i * D + j] -= along * W[i * D + j];
    }
}

// Sets each row of W (n, D) to norm 1.
void sae_unit(float* W, int64_t n, int64_t D, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float square = 0;
        for (int64_t j = 0; j < D; j++) square += W[i * D + j] * W[i * D + j];
        const float norm = std::max(std::sqrt(square), 1e-12f);
        for (int64_t j = 0; j < D; j++) W[i * D + j] /= norm;
    }
}

// Entries by column: starts (F + 1), and in this order their rows and places among the entries by row.
void sae_by_column(int64_t B, int64_t F, const int32_t* row_starts, const int32_t* columns, int32_t* starts,
                   int32_t* rows, int32_t* order) {
    std::fill(starts, starts + F + 1, 0);
    for (int64_t i = 0; i < row_starts[B]; i++) starts[columns[i] + 1]++;
    for (int64_t f = 0; f < F; f++) starts[f + 1] += starts[f];
    std::vector<int32_t> next(starts, starts + F);
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = row_starts[b]; i < row_starts[b + 1]; i++) {
            const int32_t place = next[columns[i]]++;
            rows[place] = b;
            order[place] = i;
        }
}
}
