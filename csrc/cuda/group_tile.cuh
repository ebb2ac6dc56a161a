// A row step's tile by warpgroups: 64 rows each, times all of the tile's outputs, both operands read from shared memory.
//
// Rows and weights stand there in core matrices, 8 rows (or outputs) x 16 bytes (8 channels) that are 128 bytes
// together. The hardware finds a matrix by a descriptor: where it begins, and the bytes from one core matrix to the next
// along the inner dimension, and across it. Every output of every row step is the same chain of m64n80k16 products, 80
// outputs at a time whatever the tile; columns and rows beyond a tile's own are never read.
#pragma once

#include "tile.cuh"

namespace pxfast {
namespace cuda {

constexpr int kCoreBytes = 128;
constexpr int kGroupThreads = 128, kGroupRows = 64;
constexpr int kGroupChunk = kRowPieces / Traits<Bf16>::kPieces;  // steps of the inner dimension
static_assert(kThreads / kGroupThreads * kGroupRows == kRowTile, "the groups share the rows");
static_assert(2 * kUnitsPerWarp == kUnitsPerTile, "a product is half as wide as a tile");

// Without swizzling; all in bytes, multiples of 16.
PXFAST_HD uint64_t describe_matrix(uint32_t address, uint32_t inner_stride, uint32_t outer_stride) {
  const auto field = [](uint32_t bytes) { return (uint64_t)((bytes & 0x3ffff) >> 4); };
  return field(address) | field(inner_stride) << 16 | field(outer_stride) << 32;
}

// Sums of a warp: its 16 rows x unit u in sums[u]. kHalves: of a tile's outputs that are multiplied.
template <int kHalves>
PXFAST_DEVICE void multiply_tile_by_groups(const Launch& launch, const Step& step, const Pass& pass, const Tile& tile,
                                           int images, const Bf16* caches, unsigned char* ring, Sharing& sharing,
                                           float (&sums)[kBlocksPerWarp][8]) {
  Feed<Bf16> feed(launch, step, pass, tile, images, caches, ring, sharing, true);
  float half[kHalves][kUnitsPerWarp][8];
#pragma unroll
  for (int h = 0; h < kHalves; ++h)
#pragma unroll
    for (int u = 0; u < kUnitsPerWarp; ++u)
#pragma unroll
      for (int i = 0; i < 8; ++i) half[h][u][i] = 0.0f;

  const auto multiply = [&](const unsigned char* stage, int k) {
    const uint32_t rows = shared_address(stage) + thread_index() / kGroupThreads * (kGroupRows * 16);
    const uint32_t weights = shared_address(stage) + feed.weights_at;
    const uint64_t a = describe_matrix(rows + 2 * k * (kRowTile * 16), kRowTile * 16, kCoreBytes);
#pragma unroll
    for (int h = 0; h < kHalves; ++h)
      multiply_group(half[h], a,
                     describe_matrix(weights + k * feed.inner_stride + h * kUnitsPerWarp * feed.unit_stride, kCoreBytes,
                                     2 * kCoreBytes));
  };
  // Products of one chunk run while the next ones are loaded. None is under way from one turn of the loop to the next:
  // not every compiler keeps such sums where they are.
  feed.begin();
  const int chunks = uniform(feed.chunks);
  for (int c = 0; c < chunks; ++c) {
    feed.wait();
    fence_async_proxy();  // the products below are other threads' too
    sync_block();         // chunk c has landed, and everyone is done with the stage that is filled next
    const unsigned char* stage = feed.stage();
    const int count = uniform(feed.count(c));
    if (count == kGroupChunk) {
      begin_products();
#pragma unroll
      for (int k = 0; k < kGroupChunk; ++k) multiply(stage, k);
      commit_products();
    } else {
#pragma unroll 1
      for (int k = 0; k < count; ++k) {  // every turn of a loop becomes a group
        begin_products();
        multiply(stage, k);
        commit_products();
      }
    }
    feed.load_next();
    feed.advance();
    wait_products<0>();
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
  wait_copies<0>();
  sync_block();  // the ring is free
}

}  // namespace cuda
}  // namespace pxfast
