// What all kernels use: bfloat16 in memory, float in registers; an exponential; which keys a query may see.

#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

struct bf16 { uint16_t bits; };

static inline float up(float x) { return x; }
static inline float up(bf16 x) {
    uint32_t wide = uint32_t(x.bits) << 16;
    float told;
    std::memcpy(&told, &wide, 4);
    return told;
}
static inline void put(float &to, float x) { to = x; }
static inline void put(bf16 &to, float x) {  // to the nearest, ties to even; NaN stays NaN
    uint32_t wide;
    std::memcpy(&wide, &x, 4);
    uint32_t near = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
    to.bits = uint16_t((wide & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : near);
}

// exp to 2 units in the last place (Cephes' polynomial); below -87 it is 0 to float's least normal number; NaN stays NaN
static inline float exponential(float x) {
    x = x < -87.3f ? -87.3f : x;
    x = x > 88.7f ? 88.7f : x;
    float n = __builtin_rintf(x * 1.44269504088896341f);
    float f = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    int32_t whole = int32_t(n == n ? n : 0.0f);
    uint32_t power = uint32_t(whole + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, 4);
    return p * scale;
}

// Which keys a query may see: [low, high).
struct Seen { long low, high; };
static inline Seen seen(long query, long keys, long offset, long causal, long window) {
    long high = causal && query + offset + 1 < keys ? query + offset + 1 : keys;
    long low = window > 0 && query + offset - window + 1 > 0 ? query + offset - window + 1 : 0;
    if (low >= high) { low = 0; high = 1; }  // past a document's end: anything finite, it is thrown away
    return {low, high};
}
