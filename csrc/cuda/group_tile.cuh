// A tile of a step's product by warpgroups, both operands read from shared memory.
//
// The hardware finds a matrix of core matrices (group_feed.cuh) by a descriptor: where it begins, and the bytes from one
// core matrix to the next along the inner dimension, and across it. Every output of every step is the same chain of
// m64n80k16 products, 80 outputs at a time whatever the tile; columns and rows beyond a tile's own are never read. In
// row steps either group has 64 rows of its own; in pixel steps, where rows are few, both have the same 64 and every
// second step of the inner dimension.
#pragma once

#include "group_feed.cuh"
#include "tile.cuh"

namespace pxfast {
namespace cuda {

constexpr int kGroupThreads = 128, kGroupRows = 64;
static_assert(kThreads / kGroupThreads * kGroupRows == kRowTile, "the groups share the rows of a row step");
static_assert(kGroupPixelTile == kGroupRows, "they have the same ones in a pixel step");
static_assert(kThreads / kGroupThreads == kGroupSlices, "and share its inner dimension");
static_assert(2 * kUnitsPerWarp == kUnitsPerTile, "a product is half as wide as a tile");

// Without swizzling; all in bytes, multiples of 16.
PXFAST_HD uint64_t describe_matrix(uint32_t address, uint32_t inner_stride, uint32_t outer_stride) {
  const auto field = [](uint32_t bytes) { return (uint64_t)((bytes & 0x3ffff) >> 4); };
  return field(address) | field(inner_stride) << 16 | field(outer_stride) << 32;
}

// Sums of a warp: its 16 rows x unit u in sums[u]. kHalves: of a tile's outputs that are multiplied.
template <int kHalves, bool kPerRow>
PXFAST_DEVICE void multiply_tile_by_groups(const Stages& stages, Ring& ring, int inner,
                                           float (&sums)[kBlocksPerWarp][8]) {
  constexpr int kTileRows = kPerRow ? kRowTile : kGroupPixelTile;
  constexpr int kSteps = kPerRow ? kGroupChunk : kGroupChunk / kGroupSlices;  // of a whole chunk, by either group
  constexpr int kWeightBytes = kHalves * kHalfUnits * kUnitBytes<Bf16>;
  constexpr int kWeightsAt = kGroupChunk * kTileRows * kInner * 2;
  const int group = uniform(thread_index() / kGroupThreads);
  float half[kHalves][kUnitsPerWarp][8];
#pragma unroll
  for (int h = 0; h < kHalves; ++h)
#pragma unroll
    for (int u = 0; u < kUnitsPerWarp; ++u)
#pragma unroll
      for (int i = 0; i < 8; ++i) half[h][u][i] = 0.0f;

  const uint32_t row_bytes = kPerRow ? group * (kGroupRows * 16) : 0;
  const auto multiply = [&](uint32_t stage, int i) {  // this group's step i of a chunk
    const int k = kPerRow ? i : kGroupSlices * i + group;
    const uint64_t a = describe_matrix(stage + row_bytes + 2 * k * (kTileRows * 16), kTileRows * 16, kCoreBytes);
#pragma unroll
    for (int h = 0; h < kHalves; ++h)
      multiply_group(half[h], a,
                     describe_matrix(stage + kWeightsAt + k * kWeightBytes + h * kHalfUnits * kUnitBytes<Bf16>,
                                     kCoreBytes, 2 * kCoreBytes));
  };
  const int chunks = uniform(chunks_of(inner));
  for (int c = 0; c < chunks; ++c) {
    ring.wait(ring.full, ring.stage);
    const uint32_t stage = shared_address(ring.at(stages));
    const int count = uniform(chunk_steps(inner, c));
    if (count == kGroupChunk) {
      begin_products();
#pragma unroll
      for (int i = 0; i < kSteps; ++i) multiply(stage, i);
      commit_products();
    } else {  // the last chunk
#pragma unroll 1
      for (int i = 0; (kPerRow ? i : kGroupSlices * i + group) < count; ++i) {  // every turn of a loop becomes a group
        begin_products();
        multiply(stage, i);
        commit_products();
      }
    }
    wait_products<0>();
    sync_warp();  // one lane speaks for all of them
    if ((thread_index() & 31) == 0) arrive(&ring.empty[ring.stage]);
    ring.advance(stages);
  }
#pragma unroll
  for (int b = 0; b < kBlocksPerWarp; ++b) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (b >= kHalves * kUnitsPerWarp) {
        sums[b][i] = 0.0f;
        continue;
      }
      float& sum = half[b / kUnitsPerWarp][b % kUnitsPerWarp][i];
      hold_here(sum);
      sums[b][i] = sum;
    }
  }
}

}  // namespace cuda
}  // namespace pxfast
