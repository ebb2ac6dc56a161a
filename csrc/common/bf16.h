// Rounding to bf16 on the host, one value at a time.
#pragma once

#include <cstdint>
#include <cstring>

namespace pxfast {
namespace {  // see steps.h

// To nearest, ties to even; x is finite.
inline uint16_t bf16_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace
}  // namespace pxfast
