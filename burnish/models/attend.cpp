// Attention of every document of a pack in bfloat16, tile by tile out of the cache, for processors that multiply pairs
// of bfloat16 (AVX-512 BF16).  attention.py does the same work in larger steps where they do not.
// A document and a head of keys are one thread's work, in a fixed order: results do not depend on the number of threads.

#include "kernels.hpp"

#ifndef __AVX512BF16__
extern "C" long attends() { return 0; }
#else
#include <immintrin.h>
#include <type_traits>

static const long TILE = 36;  // queries taken at once: their scores over a thousand keys stay in the second cache
static const long DEEP = 64;  // pairs taken at once

// The left side of a product: the next row lies `down`, the next pair of columns `along` values on.
struct Left { const bf16 *at; long down, along; };
// The right side: two rows side by side, value by value; the next two rows lie `down`, the next 16 columns `along` on.
struct Right { const bf16 *at; long down, along; };

// c (R, 16 C), rows `under` apart, = or += left (R, 2 pairs) right (2 pairs, 16 C)
template <long R, long C>
static inline void tile(Left left, Right right, float *c, long under, long pairs, bool more) {
    __m512 sum[R][C];
    for (long r = 0; r < R; r++)
        for (long i = 0; i < C; i++) sum[r][i] = more ? _mm512_loadu_ps(c + r * under + 16 * i) : _mm512_setzero_ps();
    for (long p = 0; p < pairs; p++) {
        __m512bh b[C];
        for (long i = 0; i < C; i++) b[i] = (__m512bh)_mm512_loadu_si512(right.at + p * right.down + i * right.along);
        for (long r = 0; r < R; r++) {
            int two;
            std::memcpy(&two, left.at + r * left.down + p * left.along, 4);
            __m512bh a = (__m512bh)_mm512_set1_epi32(two);
            for (long i = 0; i < C; i++) sum[r][i] = _mm512_dpbf16_ps(sum[r][i], a, b[i]);
        }
    }
    for (long r = 0; r < R; r++)
        for (long i = 0; i < C; i++) _mm512_storeu_ps(c + r * under + 16 * i, sum[r][i]);
}

template <long C>
static void strip(Left left, Right right, float *c, long under, long rows, long pairs, bool more) {
    auto by = [&](auto size) {
        constexpr long R = decltype(size)::value;
        for (; rows >= R; rows -= R, left.at += R * left.down, c += R * under)
            tile<R, C>(left, right, c, under, pairs, more);
    };
    by(std::integral_constant<long, 6>());
    by(std::integral_constant<long, 4>());
    by(std::integral_constant<long, 2>());
    by(std::integral_constant<long, 1>());
}

// The same for any number of rows and a multiple of 16 columns, in steps whose right side stays in the nearest cache.
static void product(Left left, Right right, float *c, long under, long rows, long columns, long pairs, bool more) {
    for (long done = 0; done < pairs; done += DEEP) {
        long deep = pairs - done < DEEP ? pairs - done : DEEP;
        Left a{left.at + done * left.along, left.down, left.along};
        for (long i = 0; i < columns; i += 64) {
            Right b{right.at + done * right.down + i / 16 * right.along, right.down, right.along};
            if (columns - i >= 64) strip<4>(a, b, c + i, under, rows, deep, more || done);
            else if (columns - i == 48) strip<3>(a, b, c + i, under, rows, deep, more || done);
            else if (columns - i == 32) strip<2>(a, b, c + i, under, rows, deep, more || done);
            else strip<1>(a, b, c + i, under, rows, deep, more || done);
        }
    }
}

static inline long sixteens(long size) { return (size + 15) / 16 * 16; }

// A distance of rows whose beginnings do not all fall into the same few sets of the nearest cache.
static inline long uneven(long size) { return size / 16 % 2 ? size : size + 16; }

// rows (count, depth), `down` apart, as the right side of a product with their transpose: (width / 16, depth / 2, 16)
// pairs, zero past the end
static Right turned(const bf16 *rows, long down, long count, long depth, std::vector<bf16> &out) {
    for (long j = 0; j < sixteens(count); j++)
        for (long p = 0; p < depth / 2; p++) {
            uint32_t two = 0;
            if (j < count) std::memcpy(&two, rows + j * down + 2 * p, 4);
            std::memcpy(&out[j / 16 * 16 * depth + 32 * p + 2 * (j % 16)], &two, 4);
        }
    return {out.data(), 32, 16 * depth};
}

// rows (count, depth), `down` apart, as the right side of a product: (until / 2, depth) pairs, zero past the end
static Right beside(const bf16 *rows, long down, long count, long depth, std::vector<bf16> &out, long until) {
    for (long j = 0; j < until; j += 2)
        for (long i = 0; i < depth; i += 16) {
            auto row = [&](long j) {
                __m256i read = j < count ? _mm256_loadu_si256((const __m256i *)(rows + j * down + i)) : _mm256_setzero_si256();
                return _mm512_cvtepu16_epi32(read);
            };
            __m512i two = _mm512_or_si512(row(j), _mm512_slli_epi32(row(j + 1), 16));
            _mm512_storeu_si512(&out[j * depth + 2 * i], two);
        }
    return {out.data(), 2 * depth, 32};
}

// A right side from a later row (a multiple of 2) or column (of 16) on.
static Right below(Right right, long row) { return {right.at + row / 2 * right.down, right.down, right.along}; }
static Right beyond(Right right, long column) { return {right.at + column / 16 * right.along, right.down, right.along}; }

// exp of sixteen values, as `exponential` of kernels.hpp
static inline __m512 exponential(__m512 x) {
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 0);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    f = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), f);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    for (float term : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(term));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, f), f, _mm512_add_ps(f, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

static inline void put(bf16 *to, __m512 x) { _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x)); }
static inline __m512i bits(__m512 x) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)); }

// which of the sixteen keys from `at` on are seen
static inline __mmask16 among(Seen see, long at) {
    long low = see.low > at ? see.low - at : 0, high = see.high < at + 16 ? see.high - at : 16;
    return low >= high ? 0 : (__mmask16)((1u << high) - (1u << low));
}

struct Shape {
    long documents, heads, shared, depth, causal, window;
    const int64_t *queries, *keys;  // where each document begins, and the end of the last
    float scale;
};

// What one thread works with: a document and a head of its keys, which `repeats` heads of queries share.
struct Work {
    long head, repeats, first, many, start, size, width, step, before;
    const Shape &shape;
    Work(const Shape &s, long task) : shape(s) {
        long document = task / s.shared;
        head = task % s.shared, repeats = s.heads / s.shared;
        first = s.queries[document], many = s.queries[document + 1] - first;
        start = s.keys[document], size = s.keys[document + 1] - start;
        width = sixteens(size), step = uneven(width);
        before = s.causal ? size - many : 0;  // keys in front of the first query's own
    }
    Seen by(long query) const { return seen(query, size, before, shape.causal, shape.window); }
    // what any of some queries sees, out to multiples of 16
    Seen by(long query, long rows) const { return {by(query).low / 16 * 16, sixteens(by(query + rows - 1).high)}; }
    long of_keys() const { return (start * shape.shared + head) * shape.depth; }
};

static void forward(const Shape &s, long task, const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, float *logs) {
    Work w(s, task);
    long depth = s.depth, step = w.step, apart = s.shared * depth;
    std::vector<bf16> keys(w.width * depth), values(w.width * depth), odds(TILE * step);
    std::vector<float> scores(TILE * step), sums(TILE * depth), shares(TILE);
    Right key = turned(k + w.of_keys(), apart, w.size, depth, keys);
    Right value = beside(v + w.of_keys(), apart, w.size, depth, values, w.width);
    for (long at = 0; at < w.many; at += TILE) {
        long rows = w.many - at < TILE ? w.many - at : TILE;
        Seen all = w.by(at, rows);
        for (long own = w.head * w.repeats; own < (w.head + 1) * w.repeats; own++) {
            long place = (w.first + at) * s.heads + own;
            product({q + place * depth, s.heads * depth, 2}, beyond(key, all.low), scores.data() + all.low, step, rows,
                    all.high - all.low, depth / 2, false);
            for (long row = 0; row < rows; row++) {
                Seen see = w.by(at + row);
                float *score = scores.data() + row * step;
                bf16 *odd = odds.data() + row * step;
                __m512 tops = _mm512_set1_ps(-__builtin_inff()), totals = _mm512_setzero_ps();
                for (long i = all.low; i < all.high; i += 16)
                    tops = _mm512_mask_max_ps(tops, among(see, i), tops, _mm512_loadu_ps(score + i));
                float most = _mm512_reduce_max_ps(tops);
                for (long i = all.low; i < all.high; i += 16) {
                    __m512 x = _mm512_sub_ps(_mm512_loadu_ps(score + i), _mm512_set1_ps(most));
                    x = exponential(_mm512_mul_ps(x, _mm512_set1_ps(s.scale)));
                    x = _mm512_maskz_mov_ps(among(see, i), x);
                    put(odd + i, x);
                    totals = _mm512_add_ps(totals, x);
                }
                float total = _mm512_reduce_add_ps(totals);
                shares[row] = 1 / total;
                logs[place + row * s.heads] = most * s.scale + __builtin_logf(total);
            }
            product({odds.data() + all.low, step, 2}, below(value, all.low), sums.data(), depth, rows, depth,
                    (all.high - all.low) / 2, false);
            for (long row = 0; row < rows; row++) {
                bf16 *to = out + (place + row * s.heads) * depth;
                for (long i = 0; i < depth; i += 16)
                    put(to + i, _mm512_mul_ps(_mm512_loadu_ps(&sums[row * depth + i]), _mm512_set1_ps(shares[row])));
            }
        }
    }
}

// The scores and probabilities of a tile are made again; two rows at a time, as both later products want them.
static void backward(const Shape &s, long task, const bf16 *gradient, const bf16 *q, const bf16 *k, const bf16 *v,
                     const float *logs, bf16 *dq, bf16 *dk, bf16 *dv) {
    Work w(s, task);
    const __m512 scale = _mm512_set1_ps(s.scale);
    long depth = s.depth, size = w.width * depth, space = TILE * w.step, apart = s.heads * depth, next = s.shared * depth;
    std::vector<bf16> keys(size), across(size), values(size);
    std::vector<bf16> inner(space), odd_pairs(space), inner_pairs(space), asked(TILE * depth), taught(TILE * depth);
    std::vector<float> scores(space), back(space), sums(TILE * depth), to_keys(size), to_values(size);
    Right key = turned(k + w.of_keys(), next, w.size, depth, keys);
    Right plain = beside(k + w.of_keys(), next, w.size, depth, across, w.width);
    Right value = turned(v + w.of_keys(), next, w.size, depth, values);
    for (long at = 0; at < w.many; at += TILE) {
        long rows = w.many - at < TILE ? w.many - at : TILE, pairs = (rows + 1) / 2;
        Seen all = w.by(at, rows);
        long many = all.high - all.low, step = uneven(many);
        for (long own = w.head * w.repeats; own < (w.head + 1) * w.repeats; own++) {
            long place = (w.first + at) * s.heads + own;
            const bf16 *query = q + place * depth, *told = gradient + place * depth;
            product({query, apart, 2}, beyond(key, all.low), scores.data(), step, rows, many, depth / 2, false);
            product({told, apart, 2}, beyond(value, all.low), back.data(), step, rows, many, depth / 2, false);
            for (long row = 0; row < rows; row++) {
                Seen see = w.by(at + row);
                float *odd = scores.data() + row * step, *in = back.data() + row * step;
                __m512 log = _mm512_set1_ps(logs[place + row * s.heads]), means = _mm512_setzero_ps();
                for (long i = 0; i < many; i += 16) {
                    __mmask16 here = among(see, all.low + i);
                    __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(odd + i), scale, log);
                    x = _mm512_maskz_mov_ps(here, exponential(x));
                    __m512 g = _mm512_maskz_loadu_ps(here, in + i);
                    means = _mm512_fmadd_ps(x, g, means);
                    _mm512_storeu_ps(odd + i, x);
                    _mm512_storeu_ps(in + i, g);
                }
                __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(means));
                for (long i = 0; i < many; i += 16) {
                    __m512 x = _mm512_mul_ps(scale, _mm512_loadu_ps(odd + i));
                    _mm512_storeu_ps(in + i, _mm512_mul_ps(x, _mm512_sub_ps(_mm512_loadu_ps(in + i), mean)));
                }
            }
            if (rows % 2) {
                std::memset(scores.data() + rows * step, 0, step * sizeof(float));
                std::memset(back.data() + rows * step, 0, step * sizeof(float));
            }
            for (long row = 0; row < rows; row += 2)
                for (long i = row * step; i < row * step + many; i += 16) {
                    auto both = [&](const std::vector<float> &from, std::vector<bf16> &to) {
                        __m512i one = bits(_mm512_loadu_ps(&from[i])), two = bits(_mm512_loadu_ps(&from[i + step]));
                        _mm512_storeu_si512(&to[2 * i - row * step], _mm512_or_si512(one, _mm512_slli_epi32(two, 16)));
                    };
                    both(scores, odd_pairs);
                    both(back, inner_pairs);
                    put(&inner[i], _mm512_loadu_ps(&back[i]));
                    put(&inner[i + step], _mm512_loadu_ps(&back[i + step]));
                }
            product({inner.data(), step, 2}, below(plain, all.low), sums.data(), depth, rows, depth, many / 2, false);
            for (long row = 0; row < rows; row++) {
                bf16 *to = dq + (place + row * s.heads) * depth;
                for (long i = 0; i < depth; i += 16) put(to + i, _mm512_loadu_ps(&sums[row * depth + i]));
            }
            long from = all.low * depth;
            Right teach = beside(told, apart, rows, depth, taught, 2 * pairs);
            product({odd_pairs.data(), 2, 2 * step}, teach, &to_values[from], depth, many, depth, pairs, true);
            Right ask = beside(query, apart, rows, depth, asked, 2 * pairs);
            product({inner_pairs.data(), 2, 2 * step}, ask, &to_keys[from], depth, many, depth, pairs, true);
        }
    }
    for (long row = 0; row < w.size; row++) {
        long place = w.of_keys() + row * next;
        for (long i = 0; i < depth; i += 16) {
            put(dk + place + i, _mm512_loadu_ps(&to_keys[row * depth + i]));
            put(dv + place + i, _mm512_loadu_ps(&to_values[row * depth + i]));
        }
    }
}

extern "C" long attends() { return 1; }

// q, out (T, heads, depth); k, v (S, shared, depth); logs (T, heads): each row's log of the sum of exponentials.
extern "C" void attend_bf16(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, float *logs, const int64_t *queries,
                            const int64_t *keys, long documents, long heads, long shared, long depth, long causal,
                            long window, float scale) {
    Shape s{documents, heads, shared, depth, causal, window, queries, keys, scale};
#pragma omp parallel for schedule(dynamic)
    for (long task = 0; task < documents * shared; task++) forward(s, task, q, k, v, out, logs);
}

extern "C" void attend_back_bf16(const bf16 *gradient, const bf16 *q, const bf16 *k, const bf16 *v, const float *logs,
                                 bf16 *dq, bf16 *dk, bf16 *dv, const int64_t *queries, const int64_t *keys,
                                 long documents, long heads, long shared, long depth, long causal, long window,
                                 float scale) {
    Shape s{documents, heads, shared, depth, causal, window, queries, keys, scale};
#pragma omp parallel for schedule(dynamic)
    for (long task = 0; task < documents * shared; task++) backward(s, task, gradient, q, k, v, logs, dq, dk, dv);
}
#endif
