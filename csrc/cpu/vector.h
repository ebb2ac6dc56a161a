// A vector of kLanes floats on whatever registers this file is compiled for, and the few functions on it.
//
// Every operation is per lane and every fused multiply-add is written out (the build turns contraction off), so a
// value never depends on the lane or the loop that computes it: that is what makes results batch-invariant.
#pragma once

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(PXFAST_NEON)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>

#include "common/bf16.h"
#include "program.h"

namespace {

#if defined(__AVX512F__)
constexpr int kNativeLanes = 16;
#elif defined(__AVX2__)
constexpr int kNativeLanes = 8;
#else
constexpr int kNativeLanes = 4;
#endif
constexpr int kParts = pxfast::kLanes / kNativeLanes;

typedef float NativeFloat __attribute__((vector_size(4 * kNativeLanes)));
typedef int32_t NativeInt __attribute__((vector_size(4 * kNativeLanes)));

// the same, anywhere in memory: read and written as a whole, since a store of halves holds up the load of a whole
typedef float NativeFloatInMemory __attribute__((vector_size(4 * kNativeLanes), aligned(4), may_alias));

inline NativeFloat native_load(const float* p) { return *reinterpret_cast<const NativeFloatInMemory*>(p); }
inline void native_store(float* p, NativeFloat x) { *reinterpret_cast<NativeFloatInMemory*>(p) = x; }

struct Vector {
  NativeFloat part[kParts];
};

#define PXFAST_PARTWISE(expression)                                   \
  Vector result;                                                      \
  for (int p = 0; p < kParts; ++p) result.part[p] = (expression);     \
  return result

inline Vector broadcast(float x) { PXFAST_PARTWISE(x - NativeFloat{}); }
inline Vector load(const float* from) { PXFAST_PARTWISE(native_load(from + p * kNativeLanes)); }
inline void store(float* to, const Vector& x) {
  for (int p = 0; p < kParts; ++p) native_store(to + p * kNativeLanes, x.part[p]);
}
inline Vector operator+(const Vector& a, const Vector& b) { PXFAST_PARTWISE(a.part[p] + b.part[p]); }
inline Vector operator-(const Vector& a, const Vector& b) { PXFAST_PARTWISE(a.part[p] - b.part[p]); }
inline Vector operator*(const Vector& a, const Vector& b) { PXFAST_PARTWISE(a.part[p] * b.part[p]); }
inline Vector operator/(const Vector& a, const Vector& b) { PXFAST_PARTWISE(a.part[p] / b.part[p]); }

inline NativeFloat native_fma(NativeFloat a, NativeFloat b, NativeFloat c) {
#if defined(__AVX512F__)
  return (NativeFloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (NativeFloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(PXFAST_NEON)
  return (NativeFloat)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
inline Vector fma(const Vector& a, const Vector& b, const Vector& c) {
  PXFAST_PARTWISE(native_fma(a.part[p], b.part[p], c.part[p]));
}

inline Vector max(const Vector& a, const Vector& b) { PXFAST_PARTWISE(a.part[p] > b.part[p] ? a.part[p] : b.part[p]); }
inline Vector negate(const Vector& a) { PXFAST_PARTWISE((NativeFloat)((NativeInt)a.part[p] ^ INT32_MIN)); }
inline Vector negative_abs(const Vector& a) { PXFAST_PARTWISE((NativeFloat)((NativeInt)a.part[p] | INT32_MIN)); }

// yes where x >= 0 (and where x is -0), no elsewhere
inline Vector where_nonnegative(const Vector& x, const Vector& yes, const Vector& no) {
  PXFAST_PARTWISE(x.part[p] >= NativeFloat{} ? yes.part[p] : no.part[p]);
}

// exp(x) for x <= 88; 2 units in the last place; below -87.3 (results under 2^-126) it stays at exp(-87.3).
inline Vector exp(const Vector& x) {
  const Vector magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const Vector clamped = max(x, broadcast(-87.3f));
  const Vector shifted = fma(clamped, broadcast(1.44269504f), magic);
  const Vector n = shifted - magic;
  Vector r = fma(n, broadcast(-0.693359375f), clamped);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vector y = broadcast(1.9875691500e-4f);
  y = fma(y, r, broadcast(1.3981999507e-3f));
  y = fma(y, r, broadcast(8.3334519073e-3f));
  y = fma(y, r, broadcast(4.1665795894e-2f));
  y = fma(y, r, broadcast(1.6666665459e-1f));
  y = fma(y, r, broadcast(5.0000001201e-1f));
  y = fma(y * r, r, r + broadcast(1.0f));
  PXFAST_PARTWISE((NativeFloat)((NativeInt)y.part[p] + ((NativeInt)shifted.part[p] << 23)));
}

inline Vector sigmoid(const Vector& x) {  // from exp(-|x|), so that nothing overflows
  const Vector t = exp(negative_abs(x));
  const Vector s = broadcast(1.0f) / (broadcast(1.0f) + t);
  return where_nonnegative(x, s, t * s);
}

inline Vector tanh(const Vector& x) {
  const Vector t = exp(broadcast(2.0f) * negative_abs(x));
  const Vector magnitude = (broadcast(1.0f) - t) / (broadcast(1.0f) + t);
  return where_nonnegative(x, magnitude, negate(magnitude));
}

// ---- storage of the caches -----------------------------------------------------------------------------------------

struct Bf16 {  // native bf16, multiplied in pairs by vdpbf16ps or bfdot
  uint16_t bits;
};
struct RoundedFloat {  // bf16 values kept as fp32, where the machine has no bf16 arithmetic
  float value;
};

inline void store_first(float* to, const Vector& x, int count) {
  if (count >= pxfast::kLanes) {
    store(to, x);
    return;
  }
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)x.part[0]);
#else
  float lanes[pxfast::kLanes];
  store(lanes, x);
  for (int i = 0; i < count; ++i) to[i] = lanes[i];
#endif
}

inline Vector round_to_bf16(const Vector& x) {  // to nearest, ties to even; values are finite
  Vector result;
  for (int p = 0; p < kParts; ++p) {
    const NativeInt bits = (NativeInt)x.part[p];
    result.part[p] = (NativeFloat)((bits + 0x7fff + ((bits >> 16) & 1)) & (int32_t)0xffff0000);
  }
  return result;
}

inline void store_first(RoundedFloat* to, const Vector& x, int count) {
  store_first(&to->value, round_to_bf16(x), count);
}

inline float scalar_to_bf16(float x) {
  const uint32_t bits = (uint32_t)pxfast::bf16_bits(x) << 16;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline void store_scalar(float* to, float x) { *to = x; }
inline void store_scalar(RoundedFloat* to, float x) { to->value = scalar_to_bf16(x); }
inline void store_scalar(Bf16* to, float x) { to->bits = pxfast::bf16_bits(x); }

#if defined(__AVX512BF16__)
inline void store_first(Bf16* to, const Vector& x, int count) {
  const __m256i half = (__m256i)_mm512_cvtneps_pbh((__m512)x.part[0]);
  const __mmask16 mask = count >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << count) - 1);
  _mm256_mask_storeu_epi16(to, mask, half);
}
#elif defined(PXFAST_NEON) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
inline void store_first(Bf16* to, const Vector& x, int count) {
  const Vector rounded = round_to_bf16(x);
  uint16_t halves[pxfast::kLanes];
  for (int p = 0; p < kParts; ++p)
    vst1_u16(halves + p * kNativeLanes, vshrn_n_u32((uint32x4_t)rounded.part[p], 16));
  if (count >= pxfast::kLanes) {
    std::memcpy(to, halves, sizeof halves);
  } else {
    for (int i = 0; i < count; ++i) to[i].bits = halves[i];
  }
}
#endif

}  // namespace
