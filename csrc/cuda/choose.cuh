// The pixels of a row: chosen from the head's parameters by a warp each, or guessed.
#pragma once

#include "head.h"
#include "team.cuh"
#include "warp.cuh"

namespace pxfast {
namespace cuda {

template <class Element, bool kGroups>
class Choose {
 public:
  // scratch: shared memory that nobody else needs meanwhile.
  PXFAST_DEVICE Choose(const Team<Element, kGroups>& team, unsigned char* scratch) : team_(team), scratch_(scratch) {}

  // Picks the pixels of the columns [begin, end), a warp each, and shows them to the input cache. open, if any, becomes
  // the column behind the first one whose pixel differs from what stood in the output.
  PXFAST_DEVICE void columns(int row, int begin, int end, int* open) {
    HeadScratch& scratch = reinterpret_cast<HeadScratch*>(scratch_)[thread_index() >> 5];
    const WarpGroup group{thread_index() & 31};
    const int64_t plane = (int64_t)team_.program.height * team_.program.width;
    for (int task = team_.member * kWarps + (thread_index() >> 5); task < (end - begin) * team_.images;
         task += team_.launch.members * kWarps) {
      const int column = begin + task / team_.images, image = task % team_.images;
      const int64_t pixel = team_.pixel_index(row, column, image);
      const float* parameters = stage_parameters(group, team_.parameters() + (int64_t)task * team_.program.head_stride);
      const PixelChooser pixel_chooser(team_.launch.chooser, team_.launch.input, team_.program.channels, (uint32_t)plane,
                                       pixel);
      if (team_.program.head == HeadKind::kSoftmax) {
        choose_softmax(group, team_.program,
                       reinterpret_cast<const float*>(team_.launch.block + team_.program.table_offset), parameters,
                       pixel_chooser, scratch);
      } else {
        choose_logistic(group, team_.program, parameters, pixel_chooser, scratch);
      }
      bool changed = false;
      if (group.lane() == 0) {
        for (int c = 0; c < team_.program.channels; ++c) {
          uint8_t* to = team_.launch.output + pixel + c * plane;
          changed |= load_shared_between_blocks(to) != scratch.chosen[c];
          store_shared_between_blocks(to, scratch.chosen[c]);
        }
        if (open != nullptr && changed) atomic_min(open, column + 1);
      }
      if (group.lane() <= team_.program.channels)
        team_.show(row, column, image, group.lane(), scratch.chosen[group.lane()]);
      group.sync();  // scratch is written again
    }
  }

  // The head's parameters of a pixel, into this warp's part of shared memory.
  PXFAST_DEVICE const float* stage_parameters(const WarpGroup& group, const float* from) {
    float* to = reinterpret_cast<float*>(scratch_ + kWarps * sizeof(HeadScratch)) +
                (thread_index() >> 5) * team_.program.head_stride;
    for (int i = group.lane(); i < team_.program.head_stride; i += group.lanes())
      to[i] = load_shared_between_blocks(from + i);
    group.sync();
    return to;
  }

  // The first guess of a row is the input itself.
  PXFAST_DEVICE void guess(int row) {
    const int64_t plane = (int64_t)team_.program.height * team_.program.width;
    for (int task = team_.member * kThreads + thread_index(); task < team_.program.width * team_.images;
         task += team_.launch.members * kThreads) {
      const int column = task / team_.images, image = task % team_.images;
      for (int c = 0; c < team_.program.channels; ++c) {
        const int64_t at = team_.pixel_index(row, column, image) + c * plane;
        const uint8_t value = team_.launch.input[at];
        store_shared_between_blocks(team_.launch.output + at, value);
        team_.show(row, column, image, c, value);
      }
      team_.show(row, column, image, team_.program.channels, 0);
    }
  }

 private:
  const Team<Element, kGroups>& team_;
  unsigned char* scratch_;
};

}  // namespace cuda
}  // namespace pxfast
