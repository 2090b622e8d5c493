// Row by row what PyTorch's CPU build does in several passes over memory.  Built by kernels.py on first use; fused.py
// holds the same formulas in PyTorch, which are used where there is no compiler, and the tests hold both equal.
// Values are float or bfloat16 in memory and float in registers.  Each row is worked on by one thread in a fixed order:
// results do not depend on the number of threads.

#include "kernels.hpp"

// scores (groups * heads, repeats * queries, width), in place: scale, mask and softmax.  lengths (groups) or null.
// logs (rows) keeps each row's log of the sum of exponentials; where it is known already, one pass is enough.
template <typename T>
static void softmax(T *scores, float *logs, long known, long groups, long heads, long repeats, long queries, long width,
                    const int64_t *lengths, long offset, long causal, long window, float scale) {
    long rows = groups * heads * repeats * queries;
#pragma omp parallel if (rows * width > 32768)
    {
        std::vector<float> kept(width);
        float *part = kept.data();
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++) {
            long group = row / (heads * repeats * queries);
            Seen see = seen(row % queries, lengths ? lengths[group] : width, offset, causal, window);
            T *at = scores + row * width;
            for (long i = 0; i < see.low; i++) put(at[i], 0);
            for (long i = see.high; i < width; i++) put(at[i], 0);
            if (known) {
                float log = logs[row];
#pragma omp simd
                for (long i = see.low; i < see.high; i++) put(at[i], exponential(up(at[i]) * scale - log));
                continue;
            }
            float most = -__builtin_inff(), total = 0;
#pragma omp simd reduction(max : most)
            for (long i = see.low; i < see.high; i++) most = up(at[i]) > most ? up(at[i]) : most;
#pragma omp simd reduction(+ : total)
            for (long i = see.low; i < see.high; i++) {
                part[i] = exponential((up(at[i]) - most) * scale);
                total += part[i];
            }
            float share = 1 / total;
            logs[row] = most * scale + __builtin_logf(total);
#pragma omp simd
            for (long i = see.low; i < see.high; i++) put(at[i], part[i] * share);
        }
    }
}

// gradient of the scores from that of the probabilities, in place: scale * p * (g - sum(p * g)).
template <typename T>
static void softmax_back(T *gradient, const T *odds, long rows, long width, float scale) {
#pragma omp parallel for schedule(static) if (rows * width > 32768)
    for (long row = 0; row < rows; row++) {
        T *g = gradient + row * width;
        const T *p = odds + row * width;
        float inner = 0;
#pragma omp simd reduction(+ : inner)
        for (long i = 0; i < width; i++) inner += up(g[i]) * up(p[i]);
#pragma omp simd
        for (long i = 0; i < width; i++) put(g[i], scale * up(p[i]) * (up(g[i]) - inner));
    }
}

// out = x / rms(x) * weight; inverse (rows) keeps 1 / rms.
template <typename T>
static void norm(const T *x, const T *weight, T *out, float *inverse, long rows, long width, float epsilon) {
#pragma omp parallel for schedule(static) if (rows * width > 32768)
    for (long row = 0; row < rows; row++) {
        const T *from = x + row * width;
        T *to = out + row * width;
        float square = 0;
#pragma omp simd reduction(+ : square)
        for (long i = 0; i < width; i++) square += up(from[i]) * up(from[i]);
        float told = 1 / __builtin_sqrtf(square / width + epsilon);
        inverse[row] = told;
#pragma omp simd
        for (long i = 0; i < width; i++) put(to[i], up(from[i]) * told * up(weight[i]));
    }
}

// dx = r (g w - x r^2 mean(g w x)); dweight (width, float) += g x r, or null.
template <typename T>
static void norm_back(const T *gradient, const T *x, const T *weight, const float *inverse, T *dx, float *dweight,
                      long rows, long width) {
#pragma omp parallel for schedule(static) if (rows * width > 32768)
    for (long row = 0; row < rows; row++) {
        const T *g = gradient + row * width, *from = x + row * width;
        T *to = dx + row * width;
        float r = inverse[row], inner = 0;
#pragma omp simd reduction(+ : inner)
        for (long i = 0; i < width; i++) inner += up(g[i]) * up(weight[i]) * up(from[i]);
        inner *= r * r / width;
#pragma omp simd
        for (long i = 0; i < width; i++) put(to[i], r * (up(g[i]) * up(weight[i]) - up(from[i]) * inner));
    }
    if (!dweight) return;
#pragma omp parallel for schedule(static)
    for (long first = 0; first < width; first += 64) {
        long last = first + 64 < width ? first + 64 : width;
        for (long row = 0; row < rows; row++)
#pragma omp simd
            for (long i = first; i < last; i++)
                dweight[i] += up(gradient[row * width + i]) * up(x[row * width + i]) * inverse[row];
    }
}

static inline float sigmoid(float x) { return 1 / (1 + exponential(-x)); }

// out = silu(gate) * other
template <typename T>
static void gated(const T *gate, const T *other, T *out, long size) {
#pragma omp parallel for simd schedule(static) if (size > 32768)
    for (long i = 0; i < size; i++) put(out[i], up(gate[i]) * sigmoid(up(gate[i])) * up(other[i]));
}

template <typename T>
static void gated_back(const T *gradient, const T *gate, const T *other, T *dgate, T *dother, long size) {
#pragma omp parallel for simd schedule(static) if (size > 32768)
    for (long i = 0; i < size; i++) {
        float g = up(gradient[i]), x = up(gate[i]), s = sigmoid(x);
        put(dother[i], g * x * s);
        put(dgate[i], g * up(other[i]) * s * (1 + x * (1 - s)));
    }
}

// x (tokens, heads, depth) turned by the angles of cos, sin (tokens, depth): halves pair up; sign -1 turns back.
template <typename T>
static void turn(const T *x, const T *cos, const T *sin, T *out, long tokens, long heads, long depth, float sign) {
    long half = depth / 2;
#pragma omp parallel for schedule(static) if (tokens * heads * depth > 32768)
    for (long token = 0; token < tokens; token++)
        for (long head = 0; head < heads; head++) {
            const T *from = x + (token * heads + head) * depth, *c = cos + token * depth, *s = sin + token * depth;
            T *to = out + (token * heads + head) * depth;
#pragma omp simd
            for (long i = 0; i < half; i++) {
                float a = up(from[i]), b = up(from[i + half]);
                put(to[i], a * up(c[i]) - sign * b * up(s[i]));
                put(to[i + half], b * up(c[i + half]) + sign * a * up(s[i + half]));
            }
        }
}

// logits (rows, size) become the gradient of weight * loss where wanted; losses (rows) get weight * loss.
template <typename T>
static void cross_entropy(T *logits, const int64_t *targets, const float *weights, float *losses, long rows, long size,
                          float smoothing, long wanted) {
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++) {
        T *at = logits + row * size;
        float most = -__builtin_inff(), total = 0, sum = 0, chosen = up(at[targets[row]]);
#pragma omp simd reduction(max : most)
        for (long i = 0; i < size; i++) most = up(at[i]) > most ? up(at[i]) : most;
#pragma omp simd reduction(+ : total)
        for (long i = 0; i < size; i++) total += exponential(up(at[i]) - most);
        if (smoothing > 0) {
#pragma omp simd reduction(+ : sum)
            for (long i = 0; i < size; i++) sum += up(at[i]) - most;
        }
        float log = __builtin_logf(total);
        losses[row] = weights[row] * (log - (1 - smoothing) * (chosen - most) - smoothing * sum / size);
        if (!wanted) continue;
        float share = weights[row] / total, even = weights[row] * smoothing / size;
        float there = exponential(chosen - most) * share - even - weights[row] * (1 - smoothing);
#pragma omp simd
        for (long i = 0; i < size; i++) put(at[i], exponential(up(at[i]) - most) * share - even);
        put(at[targets[row]], there);
    }
}

// 4-bit codes, two to a byte and the first in the upper half, become levels[code] * scale of their block.
typedef uint8_t Codes __attribute__((vector_size(16)));
template <typename T> struct Wide;  // sixteen values in one register, looked up there
template <> struct Wide<float> {
    typedef float Values __attribute__((vector_size(64)));
    typedef int32_t Places __attribute__((vector_size(64)));
};
template <> struct Wide<bf16> {
    typedef uint16_t Values __attribute__((vector_size(32)));
    typedef uint16_t Places __attribute__((vector_size(32)));
};

template <typename T>
static void dequantize(T *out, const uint8_t *codes, const float *scales, const float *levels, long blocks,
                       long block) {
#pragma omp parallel for schedule(static) if (blocks * block > 32768)
    for (long b = 0; b < blocks; b++) {
        T made[16];
#pragma omp simd
        for (int i = 0; i < 16; i++) put(made[i], levels[i] * scales[b]);
        typename Wide<T>::Values table;
        std::memcpy(&table, made, sizeof table);
        for (long i = b * block; i < (b + 1) * block; i += 16) {
            uint16_t pairs[8];
            for (int j = 0; j < 8; j++) pairs[j] = codes[i / 2 + j] >> 4 | (codes[i / 2 + j] & 15) << 8;
            Codes at;
            std::memcpy(&at, pairs, sizeof at);
#ifdef __clang__  // has no shuffle by places that are not constants
            for (int j = 0; j < 16; j++) out[i + j] = made[at[j]];
#else
            auto values = __builtin_shuffle(table, __builtin_convertvector(at, typename Wide<T>::Places));
            std::memcpy(out + i, &values, sizeof values);
#endif
        }
    }
}

// float32 numbers as bfloat16, halves away from zero, and the 16 bits that these lack (train/optim.py).
extern "C" void split_f32(const uint32_t *exact, uint16_t *upper, int16_t *lower, long size) {
#pragma omp parallel for simd schedule(static) if (size > 32768)
    for (long i = 0; i < size; i++) {
        uint32_t bits = exact[i] + 0x8000;
        upper[i] = bits >> 16;
        lower[i] = (int16_t)((int32_t)(bits & 0xFFFF) - 0x8000);
    }
}

extern "C" void join_f32(uint32_t *exact, const uint16_t *upper, const int16_t *lower, long size) {
#pragma omp parallel for simd schedule(static) if (size > 32768)
    for (long i = 0; i < size; i++) exact[i] = ((uint32_t)upper[i] << 16) + (uint32_t)(int32_t)lower[i];
}

#define BOTH(name, parameters, arguments)                                                                              \
    extern "C" void name##_f32 parameters(float) { name<float> arguments; }                                            \
    extern "C" void name##_bf16 parameters(bf16) { name<bf16> arguments; }

#define SOFTMAX(T) (T *scores, float *logs, long known, long groups, long heads, long repeats, long queries,           \
                    long width, const int64_t *lengths, long offset, long causal, long window, float scale)
BOTH(softmax, SOFTMAX,
     (scores, logs, known, groups, heads, repeats, queries, width, lengths, offset, causal, window, scale))
#define SOFTMAX_BACK(T) (T *gradient, const T *odds, long rows, long width, float scale)
BOTH(softmax_back, SOFTMAX_BACK, (gradient, odds, rows, width, scale))
#define NORM(T) (const T *x, const T *weight, T *out, float *inverse, long rows, long width, float epsilon)
BOTH(norm, NORM, (x, weight, out, inverse, rows, width, epsilon))
#define NORM_BACK(T) (const T *gradient, const T *x, const T *weight, const float *inverse, T *dx, float *dweight,     \
                      long rows, long width)
BOTH(norm_back, NORM_BACK, (gradient, x, weight, inverse, dx, dweight, rows, width))
#define GATED(T) (const T *gate, const T *other, T *out, long size)
BOTH(gated, GATED, (gate, other, out, size))
#define GATED_BACK(T) (const T *gradient, const T *gate, const T *other, T *dgate, T *dother, long size)
BOTH(gated_back, GATED_BACK, (gradient, gate, other, dgate, dother, size))
#define TURN(T) (const T *x, const T *cos, const T *sin, T *out, long tokens, long heads, long depth, float sign)
BOTH(turn, TURN, (x, cos, sin, out, tokens, heads, depth, sign))
#define CROSS_ENTROPY(T) (T *logits, const int64_t *targets, const float *weights, float *losses, long rows,           \
                          long size, float smoothing, long wanted)
BOTH(cross_entropy, CROSS_ENTROPY, (logits, targets, weights, losses, rows, size, smoothing, wanted))
#define DEQUANTIZE(T) (T *out, const uint8_t *codes, const float *scales, const float *levels, long blocks, long block)
BOTH(dequantize, DEQUANTIZE, (out, codes, scales, levels, blocks, block))
