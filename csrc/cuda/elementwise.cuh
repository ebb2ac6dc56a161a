// What a step does to its sums element by element, in the arithmetic of the storage type.
#pragma once

#include "feed.cuh"

namespace pxfast {
namespace cuda {

template <class Element>
struct Arithmetic;
template <>
struct Arithmetic<Bf16> {
  static PXFAST_DEVICE float exponential(float x) { return fast_exp(x); }
  static PXFAST_DEVICE float sigmoid(float x) { return fast_reciprocal(1.0f + fast_exp(-x)); }  // 1 / infinity is 0
  static PXFAST_DEVICE void store(Bf16* to, float x, float y) {
    store_shared_between_blocks(reinterpret_cast<uint32_t*>(to), pack_bf16(x, y));
  }
};
template <>
struct Arithmetic<float> {
  static PXFAST_DEVICE float exponential(float x) { return expf(x); }
  static PXFAST_DEVICE float sigmoid(float x) {  // from exp(-|x|), as the CPU engine does
    const float t = expf(-fabsf(x));
    return (x >= 0.0f ? 1.0f : t) / (1.0f + t);
  }
  static PXFAST_DEVICE void store(float* to, float x, float y) {
    store_shared_between_blocks(reinterpret_cast<Float2*>(to), Float2{x, y});
  }
};

// elu(x) and elu(-x): one exponential serves both
template <class Element>
PXFAST_DEVICE void elu_both(float x, float& positive, float& negative) {
  const float saturated = Arithmetic<Element>::exponential(-fabsf(x)) - 1.0f;
  positive = x >= 0.0f ? x : saturated;
  negative = x >= 0.0f ? saturated : -x;
}

}  // namespace cuda
}  // namespace pxfast
