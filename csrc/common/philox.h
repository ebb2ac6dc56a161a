// Counter-based random numbers, the same on every engine: Philox4x32-10 (Salmon et al. 2011).
#pragma once

#include <cstdint>

#include "host_device.h"

namespace pxfast {
namespace {  // see steps.h

// A uniform number in (0, 1), a multiple of 2^-24, of one sub-pixel: position is (row * W + column) * C + channel.
PXFAST_HD float uniform_of(uint64_t seed, uint64_t image, uint32_t position) {
  uint32_t counter[4] = {(uint32_t)image, (uint32_t)(image >> 32), position, 0};
  uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = (uint64_t)0xD2511F53u * counter[0], second = (uint64_t)0xCD9E8D57u * counter[2];
    const uint32_t next[4] = {(uint32_t)(second >> 32) ^ counter[1] ^ key[0], (uint32_t)second,
                              (uint32_t)(first >> 32) ^ counter[3] ^ key[1], (uint32_t)first};
    for (int i = 0; i < 4; ++i) counter[i] = next[i];
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return ((float)(counter[0] >> 9) + 0.5f) * (1.0f / 8388608.0f);
}

}  // namespace
}  // namespace pxfast
