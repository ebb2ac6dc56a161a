// What the CUDA engine runs: plain data, made on the host by pack.cpp, read by the kernels from one block of memory.
//
// Features stand in the caches in blocks of kBlock: a concat-ELU cache holds 8 positive halves, then their 8 negative
// ones, and so on, so that what one thread computes lies together. Channels are padded to multiples of kInner.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/head.h"
#include "common/steps.h"

namespace pxfast {
namespace cuda {

constexpr int kBlock = 8;      // features
constexpr int kInner = 16;     // channels in one step of a product's inner dimension
constexpr int kUnit = 16;      // outputs computed together: 16 of them, or 8 pairs of a gate
constexpr int kThreads = 256;  // of a block that compute
constexpr int kFeedingThreads = 128;  // and that feed them, where warpgroups multiply
constexpr int kWarps = kThreads / 32;
constexpr int kUnitsPerTile = 10;
constexpr int kRowTile = 128;   // rows of a product: images x columns
constexpr int kPixelTile = 32, kGroupPixelTile = 64;  // multiplied by warps, by warpgroups
constexpr int kSlices = 4, kGroupSlices = 2;  // of the inner dimension in pixel steps, each summed by warps of its own
constexpr int kGroupChunk = 4;  // steps of the inner dimension in a stage that warpgroups read

// Storage of the caches and weights, and what multiplies: warps, or Hopper's warpgroups, which read caches and weights in
// another order.
enum class Kernel : int32_t { kFp32, kBf16, kBf16Groups };

struct Tap {
  uint32_t cache;         // elements per image before the cache
  int16_t slots;          // rows kept in it
  int16_t row, column;    // relative to the (scaled) output position
  int8_t row_parity, column_parity;
  uint32_t inner;         // steps of the inner dimension before it, in the packed weights
};

struct Target {  // a cache that a step writes
  uint32_t cache;
  int32_t slots;  // 0: none
};

// A pixel step whose first taps do not wait for the row's pixels is two steps: one with these taps, run for the whole
// row behind the vertical stream, leaves its sums; the other adds them to its own.
enum class Partial : int32_t { kNone, kLeaves, kAdds };

struct alignas(16) Step {
  int32_t level, per_row;
  Epilogue epilogue;
  Scale scale;
  int32_t units;
  int32_t taps, tap_inner;         // and steps of the inner dimension in each tap
  int32_t total_inner;             // of all taps
  int32_t channels, in_columns;    // of the caches it reads, padding included
  float multiplier;
  int32_t biases;
  uint64_t weights;                // bytes from the beginning of the block
  uint64_t bias[kMaxBiases];       // the same, floats in the order of the units' outputs
  int32_t bias_row[kMaxBiases], bias_column[kMaxBiases];
  Target concat_elu, raw, elu;
  int32_t next[kLevels];           // the next step of the same stream at a level up to this one; -1: none
  Partial partial;
  uint32_t partial_at;             // floats per image before its sums, [column][image][output of the units]
  int32_t padding_;
  Tap tap[kMaxTaps];
};
static_assert(sizeof(Step) % 16 == 0, "steps are copied 16 bytes at a time");

// The whole, passed to the kernels by value.
struct Program {
  int32_t channels, height, width;
  int32_t padded_filters, head_stride;  // floats of a residual, and of the head's parameters
  HeadKind head;
  int32_t mixtures;
  int32_t steps, element_size;
  int32_t first[2][kLevels];    // [per_row][level]: the stream's first step at a level up to this one
  uint32_t input_cache;         // elements per image before it
  int32_t input_slots;
  uint32_t elements_per_image;  // of all caches
  uint32_t partial_per_image;   // floats of a row's sums over early taps
  uint64_t step_offset, table_offset;  // bytes from the beginning of the block
};

// How cells stand in a cache. Warps gather a cell's channels, image by image: [row][column][image][channel]. For
// warpgroups one copy brings a block of channels of all images and columns of a tile:
// [row][block of channels][column][image][channel of the block].
template <bool kGroups>
struct CacheOrder {
  // Elements before the first channel of the first of `images` images; column -1 and the one behind the last are zeros.
  static PXFAST_HD uint32_t cell(uint32_t cache, int slots, int in_columns, int channels, int images, int row, int column) {
    return (uint32_t)images * (cache + (uint32_t)(row % slots * in_columns * channels) +
                               (uint32_t)((column + 1) * (kGroups ? kBlock : channels)));
  }
  // From one image to the next.
  static PXFAST_HD uint32_t image_stride(int channels) { return kGroups ? kBlock : channels; }
  // From one block of channels to the next.
  static PXFAST_HD uint32_t block_stride(int in_columns, int images) { return kGroups ? in_columns * images * kBlock : kBlock; }
};

// Where feature n and its negative stand in a concat-ELU cell.
PXFAST_HD int positive_half(int n) { return n / kBlock * 2 * kBlock + n % kBlock; }
PXFAST_HD int negative_half(int n) { return positive_half(n) + kBlock; }

// The coarsest level that has work in a row, for a range of its columns.
PXFAST_HD int active_level(int row, int begin, int end) {
  int level = 0;
  while (level + 1 < kLevels && (row & ((2 << level) - 1)) == 0 &&
         first_column(begin, level + 1) < last_column(end, level + 1))
    ++level;
  return level;
}

// Memory of one team of blocks, in bytes from its beginning.
struct Room {
  uint64_t caches, residual[2][kLevels], partial, parameters, open, total;
};

PXFAST_HD Room room_for(const Program& program, int images, bool speculative) {
  Room room{};
  uint64_t at = 0;
  const auto take = [&at](uint64_t bytes) {
    const uint64_t before = at;
    at += (bytes + 255) / 256 * 256;
    return before;
  };
  room.open = take(2 * sizeof(int));
  room.caches = take((uint64_t)program.elements_per_image * program.element_size * images);
  for (int per_row = 0; per_row < 2; ++per_row)
    for (int level = 0; level < kLevels; ++level) {
      const int columns = per_row || speculative ? program.width >> level : 1;
      room.residual[per_row][level] = take((uint64_t)columns * images * program.padded_filters * sizeof(float));
    }
  room.partial = take((uint64_t)program.partial_per_image * images * sizeof(float));
  room.parameters = take((uint64_t)(speculative ? program.width : 1) * images * program.head_stride * sizeof(float));
  room.total = at;
  return room;
}

// One launch: a row of a batch that is shared by teams of blocks.
struct Launch {
  Program program;
  Chooser chooser;
  const unsigned char* block;  // weights, biases, tables, steps
  unsigned char* workspace;    // `teams` rooms
  Room room;
  unsigned int* arrivals;      // of each team, zero before the launch; kArrivalStride apart
  const uint8_t* input;
  uint8_t* output;
  int64_t images;
  int32_t capacity;            // images a room holds
  int32_t teams, members;      // blocks = teams x members
  int32_t row;
  int32_t speculative;
  int32_t stages, stage_bytes;  // of the ring that warps read
  int32_t ring_bytes;           // of the ring that warpgroups read
  int32_t cluster;             // 1, or members: a team is a cluster, whose blocks meet by the hardware's barrier
  int32_t pixel_pieces;        // 16-byte pieces of a row that a stage holds, in pixel steps by warps; in row steps it is 8
};

constexpr int kMaxStages = 8;
constexpr int kRowPieces = 8;
constexpr int kRowPadding = 64;  // bytes behind the rows of one inner step in a stage, against bank conflicts
constexpr int kArrivalStride = 32;  // a cache line for each team

PXFAST_HD int64_t first_image(int64_t images, int teams, int team) { return images * team / teams; }

}  // namespace cuda
}  // namespace pxfast
