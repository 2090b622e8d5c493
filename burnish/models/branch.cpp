// Attention of rows that begin alike and of trees behind them: sixteen queries at a time, first over what all rows begin
// with, then over a stretch that all sixteen see, then over single keys that some of them see.  generate/packed.py says
// which.  A block of queries and a head of keys are one thread's work, in a fixed order: what a block gives hangs on
// nothing but its own queries and keys.  Values are float or bfloat16 in memory and float in registers.

#include "kernels.hpp"
#include <algorithm>

typedef float Lanes __attribute__((vector_size(64)));  // a number of each of sixteen queries
static const long WIDE = 16, DEEP = 64, STEP = 8;      // queries and keys taken at once; sums kept in registers

static inline Lanes load(const float *at) {
    Lanes told;
    std::memcpy(&told, at, sizeof told);
    return told;
}
static inline void store(float *to, Lanes x) { std::memcpy(to, &x, sizeof x); }

// Sixteen queries of each of `repeats` heads that share keys, and what they have gathered so far (online softmax;
// Milakov and Gimelshein 2018, algorithm 3).  Everything is (..., 16), a query in each lane.
struct Block {
    long repeats, depth, filled = 0;
    bool part = false;                         // whether a key that is not seen by all is waiting
    std::vector<float> queries, sums, most, total, scores, keys, values;
    uint32_t seen[DEEP];

    Block(long repeats, long depth)
        : repeats(repeats), depth((depth + STEP - 1) / STEP * STEP), queries(repeats * this->depth * WIDE),
          sums(queries.size()), most(repeats * WIDE), total(repeats * WIDE), scores(DEEP * WIDE),
          keys(DEEP * this->depth), values(keys.size()) {}

    void begin() {
        std::fill(sums.begin(), sums.end(), 0.0f);
        std::fill(most.begin(), most.end(), -3e38f);
        std::fill(total.begin(), total.end(), 0.0f);
    }

    // Take one key of `size` numbers in, seen by the queries whose bit is set.
    template <typename T> void take(const T *key, const T *value, long size, uint32_t mask) {
        float *k = &keys[filled * depth], *v = &values[filled * depth];
#pragma omp simd
        for (long i = 0; i < size; i++) k[i] = up(key[i]);
#pragma omp simd
        for (long i = 0; i < size; i++) v[i] = up(value[i]);
        part |= mask != 0xffff;
        seen[filled++] = mask;
        if (filled == DEEP) settle();
    }

    // Work the keys that wait into the sums.
    void settle() {
        if (!filled) return;
        long count = (filled + STEP - 1) / STEP * STEP;
        for (; filled < count; filled++) {     // none sees what fills up; finite, because it is multiplied by 0
            std::fill(&keys[filled * depth], &keys[filled * depth] + depth, 0.0f);
            std::fill(&values[filled * depth], &values[filled * depth] + depth, 0.0f);
            seen[filled] = 0, part = true;
        }
        for (long head = 0; head < repeats; head++) {
            const float *q = &queries[head * depth * WIDE];
            for (long j = 0; j < count; j += STEP) {
                Lanes sum[STEP] = {};
                for (long i = 0; i < depth; i++) {
                    Lanes x = load(q + i * WIDE);
                    for (long n = 0; n < STEP; n++) sum[n] += x * keys[(j + n) * depth + i];
                }
                for (long n = 0; n < STEP; n++) store(&scores[(j + n) * WIDE], sum[n]);
            }
            shares(&most[head * WIDE], &total[head * WIDE], &sums[head * depth * WIDE], count);
            for (long i = 0; i < depth; i += STEP) {
                float *to = &sums[(head * depth + i) * WIDE];
                Lanes sum[STEP];
                for (long n = 0; n < STEP; n++) sum[n] = load(to + n * WIDE);
                for (long j = 0; j < count; j++) {
                    Lanes x = load(&scores[j * WIDE]);
                    for (long n = 0; n < STEP; n++) sum[n] += x * values[j * depth + i + n];
                }
                for (long n = 0; n < STEP; n++) store(to + n * WIDE, sum[n]);
            }
        }
        filled = 0, part = false;
    }

    // Scores become exponentials against the highest so far; what was gathered against a lower one is scaled down.
    void shares(float *most, float *total, float *sums, long count) {
        float high[WIDE], factor[WIDE], sum[WIDE] = {};
        std::memcpy(high, most, sizeof high);
        for (long j = 0; j < count; j++) {
            float *s = &scores[j * WIDE];
            if (part)
#pragma omp simd
                for (long n = 0; n < WIDE; n++) s[n] = seen[j] >> n & 1 ? s[n] : -3e38f;
#pragma omp simd
            for (long n = 0; n < WIDE; n++) high[n] = s[n] > high[n] ? s[n] : high[n];
        }
#pragma omp simd
        for (long n = 0; n < WIDE; n++) factor[n] = exponential(most[n] - high[n]);
        for (long j = 0; j < count; j++) {
            float *s = &scores[j * WIDE];
#pragma omp simd
            for (long n = 0; n < WIDE; n++) s[n] = exponential(s[n] - high[n]);
            if (part)
#pragma omp simd
                for (long n = 0; n < WIDE; n++) s[n] = seen[j] >> n & 1 ? s[n] : 0.0f;
#pragma omp simd
            for (long n = 0; n < WIDE; n++) sum[n] += s[n];
        }
#pragma omp simd
        for (long n = 0; n < WIDE; n++) total[n] = total[n] * factor[n] + sum[n];
        std::memcpy(most, high, sizeof high);
        Lanes down = load(factor);
        for (long i = 0; i < depth; i++) store(sums + i * WIDE, load(sums + i * WIDE) * down);
    }
};

// q (tokens, heads, depth), k and v (tokens, shared, depth), whose tokens and heads lie `down` and `along` apart; out
// (tokens, heads, depth) without gaps; before_k, before_v (shared, before, depth).
// blocks (many, 4): first query, how many (at most 16), and the keys [from, to) that all of them see; beyond those the
// keys[ends[b]] to keys[ends[b + 1]], each seen by the queries whose bits are set in masks.
template <typename T>
static void branch(const T *q, const T *k, const T *v, T *out, const T *before_k, const T *before_v,
                   const int64_t *blocks, const int64_t *ends, const int64_t *keys, const int64_t *masks, long many,
                   long heads, long shared, long depth, long before, long q_down, long q_along, long k_down,
                   long k_along, long v_down, long v_along, float scale) {
    long repeats = heads / shared;
#pragma omp parallel
    {
        Block work(repeats, depth);
#pragma omp for schedule(dynamic, 8)
        for (long task = 0; task < many * shared; task++) {
            long head = task / many, b = task % many;
            const int64_t *own = blocks + 4 * b;
            long first = own[0], count = own[1];
            for (long r = 0; r < repeats; r++)
                for (long n = 0; n < WIDE; n++)
                    for (long i = 0; i < depth; i++)
                        work.queries[(r * work.depth + i) * WIDE + n] =
                            n < count ? scale * up(q[(first + n) * q_down + (head * repeats + r) * q_along + i]) : 0;
            work.begin();
            for (long j = 0; j < before; j++)
                work.take(before_k + (head * before + j) * depth, before_v + (head * before + j) * depth, depth, 0xffff);
            auto key = [&](long j, uint32_t mask) {
                work.take(k + j * k_down + head * k_along, v + j * v_down + head * v_along, depth, mask);
            };
            for (long j = own[2]; j < own[3]; j++) key(j, 0xffff);
            for (long j = ends[b]; j < ends[b + 1]; j++) key(keys[j], uint32_t(masks[j]));
            work.settle();
            for (long r = 0; r < repeats; r++)
                for (long n = 0; n < count; n++) {
                    T *to = out + ((first + n) * heads + head * repeats + r) * depth;
                    float share = 1 / work.total[r * WIDE + n];
                    for (long i = 0; i < depth; i++) put(to[i], work.sums[(r * work.depth + i) * WIDE + n] * share);
                }
        }
    }
}

#define BRANCH(T)                                                                                                      \
    const T *q, const T *k, const T *v, T *out, const T *before_k, const T *before_v, const int64_t *blocks,           \
        const int64_t *ends, const int64_t *keys, const int64_t *masks, long many, long heads, long shared,            \
        long depth, long before, long q_down, long q_along, long k_down, long k_along, long v_down, long v_along,      \
        float scale
#define GIVEN                                                                                                          \
    q, k, v, out, before_k, before_v, blocks, ends, keys, masks, many, heads, shared, depth, before, q_down, q_along,  \
        k_down, k_along, v_down, v_along, scale
extern "C" void branch_f32(BRANCH(float)) { branch<float>(GIVEN); }
extern "C" void branch_bf16(BRANCH(bf16)) { branch<bf16>(GIVEN); }
