// Inner products of listed pairs of rows, sums over them, and the largest numbers of a tile. Each number of a result is
// made by one thread in a fixed order, so threads do not change it.
#include <omp.h>

#include <cmath>
#include <utility>
#include <vector>

#include "rows.h"

// dots (N, C) = <row rows[n] of U, row others[n, c] of U>.
template <class T>
static void pair_dots(const T* U, int64_t D, const int32_t* rows, const int32_t* others, int64_t N, int64_t C,
                      int64_t threads, float* dots) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> row(D);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            const T* u = U + rows[n] * D;
            for (int64_t j = 0; j < D; j++) row[j] = wide(u[j]);
            for (int64_t c = 0; n + 1 < N && c < C; c++)  // the next row's others on their way
                for (int64_t j = 0; j < D; j += 64 / sizeof(T)) __builtin_prefetch(U + others[(n + 1) * C + c] * D + j);
            dot_rows(U, D, others + n * C, C, row.data(), dots + n * C);
        }
    }
}

// Adds to each row of out (M, D) the sum over the pairs it is in, weight not 0, of weight times the other row of U.
template <class T>
static void pair_sums(const T* U, int64_t M, int64_t D, const int32_t* rows, const int32_t* others,
                      const float* weights, int64_t N, int64_t C, int64_t threads, float* out) {
    std::vector<int64_t> next(M + 1, 0);  // where each row's pairs begin, then where its next pair goes
    for (int64_t i = 0; i < N * C; i++)
        if (weights[i] != 0) next[rows[i / C]]++, next[others[i]]++;
    int64_t total = 0;
    for (int64_t m = 0; m <= M; m++) total += std::exchange(next[m], total);
    std::vector<int32_t> partner(total);
    std::vector<float> weight(total);
    const auto add = [&](int64_t to, int32_t from, float w) { partner[next[to]] = from, weight[next[to]++] = w; };
    for (int64_t i = 0; i < N * C; i++)
        if (weights[i] != 0) add(rows[i / C], others[i], weights[i]), add(others[i], rows[i / C], weights[i]);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 64)
    for (int64_t m = 0; m < M; m++) {
        const int64_t begin = m ? next[m - 1] : 0;
        for (int64_t p = next[m]; p < std::min(next[m] + 2, total); p++)  // what a next row adds is on its way
            for (int64_t j = 0; j < D; j += 64 / sizeof(T)) __builtin_prefetch(U + partner[p] * D + j);
        add_rows(U, D, partner.data() + begin, weight.data() + begin, next[m] - begin, out + m * D);
    }
}

// One bit for each of up to 64 values that are above a bound, or above one bound each.
template <class T>
static inline uint64_t above(const T* values, int64_t size, bool absolute, const float* bounds, bool each) {
    uint64_t bits = 0;
#ifdef __AVX512F__
    if (size == 64) {
        for (int64_t i = 0; i < 64; i += 16) {
            const __m512 v = absolute ? _mm512_abs_ps(wide16(values + i)) : wide16(values + i);
            const __m512 bound = each ? _mm512_loadu_ps(bounds + i) : _mm512_set1_ps(*bounds);
            bits |= uint64_t(_mm512_cmp_ps_mask(v, bound, _CMP_GT_OQ)) << i;
        }
        return bits;
    }
#endif
    for (int64_t i = 0; i < size; i++) {
        const float v = wide(values[i]);
        bits |= uint64_t((absolute ? std::abs(v) : v) > bounds[each ? i : 0]) << i;
    }
    return bits;
}

// Puts a value that is above the last of C descending ones among them, behind equal ones.
static inline void insert(float* best, int64_t* found, int64_t C, float value, int64_t id) {
    int64_t c = C - 1;
    for (; c && best[c - 1] < value; c--) best[c] = best[c - 1], found[c] = found[c - 1];
    best[c] = value, found[c] = id;
}

// Keeps for each row of a tile c (T, S) the `count` largest of what `best` holds and of the tile, descending, and whose
// they are; for each column likewise if `column_count`. Values of a direction with itself do not count.
template <class T>
static void keep_largest(const T* c, int64_t rows, int64_t columns, bool absolute, const int64_t* row_ids,
                         const int64_t* column_ids, int64_t count, float* best, int64_t* found, int64_t column_count,
                         float* column_best, int64_t* column_found, int64_t threads) {
    const auto value = [&](int64_t i, int64_t j) {
        const float v = wide(c[i * columns + j]);
        return absolute ? std::abs(v) : v;
    };
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < (count ? rows : 0); i++) {
            float* mine = best + i * count;
            for (int64_t start = 0; start < columns; start += 64) {
                const int64_t size = std::min<int64_t>(64, columns - start);
                for (uint64_t bits = above(c + i * columns + start, size, absolute, mine + count - 1, false); bits;
                     bits &= bits - 1) {
                    const int64_t j = start + __builtin_ctzll(bits);
                    if (row_ids[i] != column_ids[j] && value(i, j) > mine[count - 1])
                        insert(mine, found + i * count, count, value(i, j), column_ids[j]);
                }
            }
        }
        float bounds[64];
#pragma omp for schedule(static)
        for (int64_t start = 0; start < (column_count ? columns : 0); start += 64) {
            const int64_t size = std::min<int64_t>(64, columns - start);
            for (int64_t j = 0; j < size; j++) bounds[j] = column_best[(start + j + 1) * column_count - 1];
            for (int64_t i = 0; i < rows; i++)
                for (uint64_t bits = above(c + i * columns + start, size, absolute, bounds, true); bits;
                     bits &= bits - 1) {
                    const int64_t j = start + __builtin_ctzll(bits), at = j * column_count;
                    if (row_ids[i] == column_ids[j]) continue;
                    insert(column_best + at, column_found + at, column_count, value(i, j), row_ids[i]);
                    bounds[j - start] = column_best[at + column_count - 1];
                }
        }
    }
}

// What Python calls: `narrow` says that the first matrix is bf16.
extern "C" {
void sae_pair_dots(const void* U, int64_t narrow, int64_t D, const int32_t* rows, const int32_t* others, int64_t N,
                   int64_t C, float* dots, int64_t threads) {
    narrow ? pair_dots((const bf16*)U, D, rows, others, N, C, threads, dots)
           : pair_dots((const float*)U, D, rows, others, N, C, threads, dots);
}

void sae_pair_sums(const void* U, int64_t narrow, int64_t M, int64_t D, const int32_t* rows, const int32_t* others,
                   const float* weights, int64_t N, int64_t C, float* out, int64_t threads) {
    narrow ? pair_sums((const bf16*)U, M, D, rows, others, weights, N, C, threads, out)
           : pair_sums((const float*)U, M, D, rows, others, weights, N, C, threads, out);
}

void sae_keep_largest(const void* c, int64_t narrow, int64_t rows, int64_t columns, int64_t absolute,
                      const int64_t* row_ids, const int64_t* column_ids, int64_t count, float* best, int64_t* found,
                      int64_t column_count, float* column_best, int64_t* column_found, int64_t threads) {
    narrow ? keep_largest((const bf16*)c, rows, columns, absolute, row_ids, column_ids, count, best, found,
                          column_count, column_best, column_found, threads)
           : keep_largest((const float*)c, rows, columns, absolute, row_ids, column_ids, count, best, found,
                          column_count, column_best, column_found, threads);
}
}
