// The threads that share the work on one pixel's head: a warp.
#pragma once

#include "device.cuh"

namespace pxfast {
namespace cuda {

struct WarpGroup {
  int lane_;
  PXFAST_DEVICE int lane() const { return lane_; }
  PXFAST_DEVICE int lanes() const { return 32; }
  PXFAST_DEVICE void sync() const { sync_warp(); }
  // what another lane has; of one beyond the last, anything
  PXFAST_DEVICE float shuffle(float value, int lane) const { return cuda::shuffle(value, lane & 31); }
  // the largest value over all lanes, and the smallest index that has it
  PXFAST_DEVICE void combine(float& value, int& index) const {
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1) {
      const float other = shuffle_xor(value, mask);
      const int other_index = shuffle_xor(index, mask);
      if (other > value || (other == value && other_index < index)) value = other, index = other_index;
    }
  }
};

}  // namespace cuda
}  // namespace pxfast
