// One tile of a step's matrix product: some rows (images x columns) times some units of 16 outputs, in one block.
//
// Chunks of the inner dimension pass through the ring (feed.cuh). Warps multiply them or, in bf16 on Hopper, warpgroups
// (group_tile.cuh). In row steps the warps share the rows; in pixel steps, where rows are few, they share the inner
// dimension in interleaved slices that are added at the end in a fixed order. Every output is therefore the same sum
// whatever the tile, the batch or the number of blocks: that is what makes results batch-invariant.
#pragma once

#include "feed.cuh"

namespace pxfast {
namespace cuda {

constexpr int kTilesPerWarp = 2;  // of 16 rows
constexpr int kUnitsPerWarp = kUnitsPerTile / 2;
constexpr int kBlocksPerWarp = kTilesPerWarp * kUnitsPerWarp;

struct alignas(16) Quad {
  uint32_t x, y, z, w;
};
struct alignas(8) Pair {
  uint32_t x, y;
};
struct alignas(16) Float4 {
  float x, y, z, w;
};

// sums += one step of the inner dimension. rows: this warp's first row in the stage; units: its first unit's weights.
PXFAST_DEVICE void multiply_inner(Bf16, float (&sums)[kBlocksPerWarp][8], const unsigned char* rows,
                                  const unsigned char* weights, int unit_stride, int tiles, int units, int lane) {
  const int g = lane >> 2, t = lane & 3;
  uint32_t a[kTilesPerWarp][4];
#pragma unroll
  for (int i = 0; i < kTilesPerWarp; ++i) {
    if (i < tiles) {
      const unsigned char* from = rows + (16 * i + g) * kRowBytes<Bf16> + 8 * t;
      const Pair upper = *reinterpret_cast<const Pair*>(from);
      const Pair lower = *reinterpret_cast<const Pair*>(from + 8 * kRowBytes<Bf16>);
      a[i][0] = upper.x, a[i][1] = lower.x, a[i][2] = upper.y, a[i][3] = lower.y;
    } else {
      a[i][0] = a[i][1] = a[i][2] = a[i][3] = 0;
    }
  }
#pragma unroll
  for (int j = 0; j < kUnitsPerWarp; ++j) {
    if (2 * j >= units) break;
    const Quad quad = *reinterpret_cast<const Quad*>(weights + 2 * j * unit_stride + 16 * lane);
    const uint32_t b[2][2] = {{quad.x, quad.y}, {quad.z, quad.w}};
#pragma unroll
    for (int i = 0; i < kTilesPerWarp; ++i) {
      if (i >= tiles) break;
      multiply_add(sums[i * kUnitsPerWarp + j], a[i], b[0]);
      multiply_add(sums[i * kUnitsPerWarp + j] + 4, a[i], b[1]);
    }
  }
}

PXFAST_DEVICE void multiply_inner(float, float (&sums)[kBlocksPerWarp][8], const unsigned char* rows,
                                  const unsigned char* weights, int unit_stride, int tiles, int units, int lane) {
  const int g = lane >> 2, t = lane & 3;
#pragma unroll 1
  for (int q = 0; q < 4; ++q) {
    Float4 a[kTilesPerWarp][2];
#pragma unroll
    for (int i = 0; i < kTilesPerWarp; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = 16 * i + 8 * r + g;
        if (i < tiles) {
          a[i][r] = *reinterpret_cast<const Float4*>(rows + row * kRowBytes<float> + 16 * swizzled<float>(q, row));
        } else {
          a[i][r] = {0.0f, 0.0f, 0.0f, 0.0f};
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kUnitsPerWarp; ++j) {
      if (2 * j >= units) break;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const Float4* from = reinterpret_cast<const Float4*>(weights + 2 * j * unit_stride) + ((q * 2 + h) * 4 + t) * 2;
        const Float4 b[2] = {from[0], from[1]};  // columns 2t and 2t + 1
#pragma unroll
        for (int i = 0; i < kTilesPerWarp; ++i) {
          float* sum = sums[i * kUnitsPerWarp + j] + 4 * h;
#pragma unroll
          for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              float s = sum[2 * r + c];
              s = fused_multiply_add(a[i][r].x, b[c].x, s);
              s = fused_multiply_add(a[i][r].y, b[c].y, s);
              s = fused_multiply_add(a[i][r].z, b[c].z, s);
              sum[2 * r + c] = fused_multiply_add(a[i][r].w, b[c].w, s);
            }
          }
        }
      }
    }
  }
}

// Where a warp stands in a tile, and which products its sums are: blocks of 16 rows x one unit. Warpgroups have 16 rows
// and every unit to a warp; else it is 32 rows and every second unit.
template <bool kGroups>
struct Place {
  static constexpr int kSlicesHere = kGroups ? kGroupSlices : kSlices;  // of a pixel step
  static constexpr int kWarpsPerSlice = kWarps / kSlicesHere;
  int slice, row, unit;  // slice of the inner dimension; first row and unit of the tile

  PXFAST_DEVICE Place(const Step& step, int warp)
      : slice(step.per_row ? 0 : warp / kWarpsPerSlice),
        row(kGroups        ? (step.per_row ? warp : warp % kWarpsPerSlice) * 16
            : step.per_row ? warp / 2 * 16 * kTilesPerWarp
                           : 0),
        unit(kGroups ? 0 : warp & 1) {}

  PXFAST_DEVICE int tile_of(int block) const { return kGroups ? 0 : block / kUnitsPerWarp; }
  PXFAST_DEVICE int unit_of(int block) const { return kGroups ? block : 2 * (block % kUnitsPerWarp); }
  PXFAST_DEVICE int tiles(int rows) const { return rows <= 0 ? 0 : rows <= 16 || kGroups ? 1 : 2; }
};

// The products of a tile: sums[16-row tile * kUnitsPerWarp + every second unit][outputs of a lane].
template <class Element>
PXFAST_DEVICE void multiply_tile(const Launch& launch, const Step& step, const Pass& pass, const Tile& tile, int images,
                                 const Element* caches, unsigned char* ring, const Place<false>& place, int tiles,
                                 int units, float (&sums)[kBlocksPerWarp][8]) {
  const int lane = thread_index() & 31, slices = step.per_row ? 1 : kSlices;
  Feed<Element> feed(launch, step, pass, tile, images, caches, ring);
#pragma unroll
  for (int b = 0; b < kBlocksPerWarp; ++b)
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[b][i] = 0.0f;

  feed.begin();
  for (int c = 0; c < feed.chunks; ++c) {
    feed.wait();
    sync_block();  // chunk c has landed, and everyone is done with the stage that is filled next
    feed.load_next();
    const unsigned char* stage = feed.stage();
    const int count = feed.count(c);
    for (int k = (place.slice - c * feed.chunk) & (slices - 1); k < count && units > 0; k += slices)
      multiply_inner(Element{}, sums, stage + k * feed.row_pitch + place.row * kRowBytes<Element>,
                     stage + feed.weights_at + place.unit * feed.unit_stride + k * kUnitBytes<Element>,
                     feed.unit_stride, tiles, units, lane);
    feed.advance();
  }
  wait_copies<0>();
  sync_block();  // the ring is free
}

// The sums of a tile go through shared memory: the slices meet there, and the epilogue, which is long, is compiled once
// and not for every register. Lane by lane, so that nothing conflicts.
PXFAST_DEVICE Float4* sums_of(unsigned char* ring, int warp, int block, int lane) {
  return reinterpret_cast<Float4*>(ring) + (warp * kBlocksPerWarp + block) * 64 + lane;
}

template <bool kGroups>
PXFAST_DEVICE void keep_sums(unsigned char* ring, const float (&sums)[kBlocksPerWarp][8], const Place<kGroups>& place,
                             int tiles, int units) {
  const int thread = thread_index_again(), warp = thread >> 5, lane = thread & 31;
#pragma unroll
  for (int b = 0; b < kBlocksPerWarp; ++b) {
    if (place.tile_of(b) >= tiles || place.unit_of(b) >= units) continue;
    Float4* to = sums_of(ring, warp, b, lane);
    to[0] = {sums[b][0], sums[b][1], sums[b][2], sums[b][3]};
    to[32] = {sums[b][4], sums[b][5], sums[b][6], sums[b][7]};
  }
}

PXFAST_DEVICE Float4 add(const Float4& a, const Float4& b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// One block of 16 rows x one unit, all slices added: four as (0 + 1) + (2 + 3).
template <bool kGroups>
PXFAST_DEVICE void load_sums(unsigned char* ring, bool sliced, int block, float (&sums)[8]) {
  constexpr int kParts = Place<kGroups>::kSlicesHere, kWarpsPerSlice = Place<kGroups>::kWarpsPerSlice;
  const int thread = thread_index_again(), warp = thread >> 5, lane = thread & 31;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    Float4 sum;
    if (sliced) {
      Float4 part[kParts];
#pragma unroll
      for (int i = 0; i < kParts; ++i)
        part[i] = sums_of(ring, warp % kWarpsPerSlice + kWarpsPerSlice * i, block, lane)[32 * h];
      sum = add(part[0], part[1]);
      if constexpr (kParts == 4) sum = add(sum, add(part[2], part[3]));
    } else {
      sum = sums_of(ring, warp, block, lane)[32 * h];
    }
    sums[4 * h] = sum.x, sums[4 * h + 1] = sum.y, sums[4 * h + 2] = sum.z, sums[4 * h + 3] = sum.w;
  }
}

}  // namespace cuda
}  // namespace pxfast
