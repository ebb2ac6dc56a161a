// What a team of blocks decodes, and where it stands in memory.
#pragma once

#include "elementwise.cuh"

namespace pxfast {
namespace cuda {

// kGroups: caches are ordered for warpgroups.
template <class Element, bool kGroups>
struct Team {
  const Launch& launch;
  const Program& program;
  const int index, member;  // of the team; of this block in it
  const int images;
  unsigned char* const memory;

  PXFAST_DEVICE explicit Team(const Launch& from)
      : launch(from),
        program(from.program),
        index(block_index() / from.members),
        member(block_index() % from.members),
        images((int)(cuda::first_image(from.images, from.teams, index + 1) -
                     cuda::first_image(from.images, from.teams, index))),
        memory(from.workspace + from.room.total * index) {}

  // Found where they are needed: registers are few. Images of a launch are as many as memory holds, far below 2^24.
  PXFAST_DEVICE int64_t first_image() const {
    return (uint32_t)launch.images * (uint32_t)index / (uint32_t)launch.teams;
  }
  PXFAST_DEVICE Element* caches() const { return reinterpret_cast<Element*>(memory + launch.room.caches); }
  PXFAST_DEVICE float* partial() const { return reinterpret_cast<float*>(memory + launch.room.partial); }
  PXFAST_DEVICE float* parameters() const { return reinterpret_cast<float*>(memory + launch.room.parameters); }
  PXFAST_DEVICE int* open() const { return reinterpret_cast<int*>(memory + launch.room.open); }

  // Of a pixel among those of all images, as input and output have them, in the first channel.
  PXFAST_DEVICE int64_t pixel_index(int row, int column, int image) const {
    return (first_image() + image) * program.channels * program.height * program.width + (int64_t)row * program.width +
           column;
  }

  // One channel of a pixel for the network to see, or behind the last one that of ones.
  PXFAST_DEVICE void show(int row, int column, int image, int channel, int chosen) const {
    using Cells = CacheOrder<kGroups>;
    Element* to =
        caches() +
        Cells::cell(program.input_cache, program.input_slots, program.width + 2, kInner, images, row, column) +
        (uint32_t)image * Cells::image_stride(kInner) + channel;  // of the first block of channels
    store_one(to, channel < program.channels ? network_view(chosen) : kOne);
  }

 private:
  static PXFAST_DEVICE void store_one(float* to, float value) { store_shared_between_blocks(to, value); }
  static PXFAST_DEVICE void store_one(Bf16* to, float value) {
    store_shared_between_blocks(&to->bits, (uint16_t)pack_bf16(value, 0.0f));
  }
};

}  // namespace cuda
}  // namespace pxfast
