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
typedef uint32_t NativeBits __attribute__((vector_size(4 * kNativeLanes)));  // sums of these may overflow

// the same, anywhere in memory: read and written as a whole, since a store of halves holds up the load of a whole
typedef float NativeFloatInMemory __attribute__((vector_size(4 * kNativeLanes), aligned(4), may_alias));

// What is called on registers is part of its caller: a call would take Vectors of several parts through memory.
#define PXFAST_INLINE inline __attribute__((always_inline))

PXFAST_INLINE NativeFloat native_load(const float* p) { return *reinterpret_cast<const NativeFloatInMemory*>(p); }
PXFAST_INLINE void native_store(float* p, NativeFloat x) { *reinterpret_cast<NativeFloatInMemory*>(p) = x; }
PXFAST_INLINE NativeFloat native_broadcast(float x) { return x - NativeFloat{}; }
PXFAST_INLINE NativeFloat native_fma(NativeFloat a, NativeFloat b, NativeFloat c) {
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

// a where a > b, b elsewhere
PXFAST_INLINE NativeFloat native_max(NativeFloat a, NativeFloat b) {
#if defined(__AVX512F__)
  // GCC does not find it by itself, and warns of what is behind _mm512_max_ps
  return (NativeFloat)_mm512_mask_max_ps((__m512)a, 0xffff, (__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}
PXFAST_INLINE NativeFloat native_negate(NativeFloat a) { return (NativeFloat)((NativeInt)a ^ INT32_MIN); }
PXFAST_INLINE NativeFloat native_negative_abs(NativeFloat a) { return (NativeFloat)((NativeInt)a | INT32_MIN); }

// yes where x >= 0 (and where x is -0), no elsewhere
PXFAST_INLINE NativeFloat native_where_nonnegative(NativeFloat x, NativeFloat yes, NativeFloat no) {
  return x >= NativeFloat{} ? yes : no;
}

// lanes 1 and up of a, then the first one of b
PXFAST_INLINE NativeFloat native_next_lanes(NativeFloat a, NativeFloat b) {
#if defined(__AVX512F__)
  return (NativeFloat)_mm512_maskz_alignr_epi32(0xffff, (__m512i)b, (__m512i)a, 1);
#elif defined(__clang__) && defined(__AVX2__)
  return __builtin_shufflevector(a, b, 1, 2, 3, 4, 5, 6, 7, 8);
#elif defined(__clang__)
  return __builtin_shufflevector(a, b, 1, 2, 3, 4);
#elif defined(__AVX2__)
  return __builtin_shuffle(a, b, NativeInt{1, 2, 3, 4, 5, 6, 7, 8});
#else
  return __builtin_shuffle(a, b, NativeInt{1, 2, 3, 4});
#endif
}

PXFAST_INLINE NativeFloat native_exp(NativeFloat x) {
  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const NativeFloat magic = native_broadcast(12582912.0f);
  const NativeFloat least = native_broadcast(-87.3f);
  const NativeFloat clamped = native_max(x, least);
  const NativeFloat shifted = native_fma(clamped, native_broadcast(1.44269504f), magic);
  const NativeFloat n = shifted - magic;
  NativeFloat r = native_fma(n, native_broadcast(-0.693359375f), clamped);
  r = native_fma(n, native_broadcast(2.12194440e-4f), r);
  NativeFloat y = native_broadcast(1.9875691500e-4f);
  y = native_fma(y, r, native_broadcast(1.3981999507e-3f));
  y = native_fma(y, r, native_broadcast(8.3334519073e-3f));
  y = native_fma(y, r, native_broadcast(4.1665795894e-2f));
  y = native_fma(y, r, native_broadcast(1.6666665459e-1f));
  y = native_fma(y, r, native_broadcast(5.0000001201e-1f));
  y = native_fma(y * r, r, r + native_broadcast(1.0f));
  return (NativeFloat)((NativeBits)y + ((NativeBits)shifted << 23));
}

PXFAST_INLINE NativeFloat native_sigmoid(NativeFloat x) {
  const NativeFloat one = native_broadcast(1.0f), t = native_exp(native_negative_abs(x));
  const NativeFloat s = one / (one + t);
  return native_where_nonnegative(x, s, t * s);
}

PXFAST_INLINE NativeFloat native_tanh(NativeFloat x) {
  const NativeFloat one = native_broadcast(1.0f);
  const NativeFloat t = native_exp(native_broadcast(2.0f) * native_negative_abs(x));
  const NativeFloat magnitude = (one - t) / (one + t);
  return native_where_nonnegative(x, magnitude, native_negate(magnitude));
}

struct Vector {
  NativeFloat part[kParts];
};

// Part after part, and each from its operands to its result: several at a time would not fit into the registers.
#define PXFAST_PARTWISE(expression)                               \
  Vector result;                                                  \
  for (int p = 0; p < kParts; ++p) result.part[p] = (expression); \
  return result

PXFAST_INLINE Vector broadcast(float x) { PXFAST_PARTWISE(native_broadcast(x)); }
PXFAST_INLINE Vector load(const float* from) { PXFAST_PARTWISE(native_load(from + p * kNativeLanes)); }
PXFAST_INLINE void store(float* to, const Vector& x) {
  for (int p = 0; p < kParts; ++p) native_store(to + p * kNativeLanes, x.part[p]);
}
PXFAST_INLINE Vector operator+(const Vector& a, const Vector& b) { PXFAST_PARTWISE(a.part[p] + b.part[p]); }
PXFAST_INLINE Vector operator-(const Vector& a, const Vector& b) { PXFAST_PARTWISE(a.part[p] - b.part[p]); }
PXFAST_INLINE Vector operator*(const Vector& a, const Vector& b) { PXFAST_PARTWISE(a.part[p] * b.part[p]); }
PXFAST_INLINE Vector operator/(const Vector& a, const Vector& b) { PXFAST_PARTWISE(a.part[p] / b.part[p]); }
PXFAST_INLINE Vector fma(const Vector& a, const Vector& b, const Vector& c) {
  PXFAST_PARTWISE(native_fma(a.part[p], b.part[p], c.part[p]));
}
PXFAST_INLINE Vector max(const Vector& a, const Vector& b) {
  PXFAST_PARTWISE(native_max(a.part[p], b.part[p]));
}
PXFAST_INLINE Vector negate(const Vector& a) { PXFAST_PARTWISE(native_negate(a.part[p])); }
PXFAST_INLINE Vector negative_abs(const Vector& a) { PXFAST_PARTWISE(native_negative_abs(a.part[p])); }
PXFAST_INLINE Vector where_nonnegative(const Vector& x, const Vector& yes, const Vector& no) {
  PXFAST_PARTWISE(native_where_nonnegative(x.part[p], yes.part[p], no.part[p]));
}

PXFAST_INLINE Vector next_lanes(const Vector& a, const Vector& b) {
  PXFAST_PARTWISE(native_next_lanes(a.part[p], p + 1 < kParts ? a.part[p + 1] : b.part[0]));
}

// exp(x) for x <= 88; 2 units in the last place; below -87.3 (results under 2^-126) it stays at exp(-87.3).
PXFAST_INLINE Vector exp(const Vector& x) { PXFAST_PARTWISE(native_exp(x.part[p])); }
// From exp(-|x|), so that nothing overflows.
PXFAST_INLINE Vector sigmoid(const Vector& x) { PXFAST_PARTWISE(native_sigmoid(x.part[p])); }
PXFAST_INLINE Vector tanh(const Vector& x) { PXFAST_PARTWISE(native_tanh(x.part[p])); }

// ---- storage of the caches -----------------------------------------------------------------------------------------

struct Bf16 {  // native bf16, multiplied in pairs by vdpbf16ps or bfdot
  uint16_t bits;
};
struct RoundedFloat {  // bf16 values kept as fp32, where the machine has no bf16 arithmetic
  float value;
};

PXFAST_INLINE void store_first(float* to, const Vector& x, int count) {
#if defined(__AVX512F__)
  if (count >= pxfast::kLanes) return store(to, x);
  _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)x.part[0]);
#else
  for (int p = 0; p < kParts; ++p, to += kNativeLanes, count -= kNativeLanes) {
    if (count >= kNativeLanes) {
      native_store(to, x.part[p]);
    } else {
      float lanes[kNativeLanes];
      native_store(lanes, x.part[p]);
      for (int i = 0; i < kNativeLanes - 1 && i < count; ++i) to[i] = lanes[i];
    }
  }
#endif
}

PXFAST_INLINE Vector round_to_bf16(const Vector& x) {  // to nearest, ties to even; values are finite
  Vector result;
  for (int p = 0; p < kParts; ++p) {
    const NativeBits bits = (NativeBits)x.part[p];
    result.part[p] = (NativeFloat)((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000);
  }
  return result;
}

PXFAST_INLINE void store_first(RoundedFloat* to, const Vector& x, int count) {
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
PXFAST_INLINE void store_first(Bf16* to, const Vector& x, int count) {
  const __m256i half = (__m256i)_mm512_cvtneps_pbh((__m512)x.part[0]);
  if (count >= pxfast::kLanes) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), half);
  } else if (count == 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(half));
  } else {
    _mm256_mask_storeu_epi16(to, (__mmask16)((1u << count) - 1), half);
  }
}
#elif defined(PXFAST_NEON) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
PXFAST_INLINE void store_first(Bf16* to, const Vector& x, int count) {
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
