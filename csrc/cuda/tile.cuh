// One tile of a step's matrix product: some rows (images x columns) times some units of 16 outputs, in one block.
//
// Chunks of the inner dimension pass through a ring of stages in shared memory, filled by asynchronous copies: rows
// gathered from the taps' cells, and weights packed in the order in which a lane multiplies them. In row steps the
// warps share the rows; in pixel steps, where rows are few, they share the inner dimension in kSlices interleaved
// slices that are added at the end in a fixed order. Every output is therefore the same sum whatever the tile, the
// batch or the number of blocks: that is what makes results batch-invariant.
#pragma once

#include "device.cuh"
#include "program.h"

namespace pxfast {
namespace cuda {

// Storage of the caches and how it is multiplied. kPieces: 16-byte pieces of a row in one step of the inner dimension.
template <class Element>
struct Traits;

struct Bf16 {
  uint16_t bits;
};

template <>
struct Traits<Bf16> {
  static constexpr int kPieces = 2;
};
template <>
struct Traits<float> {
  static constexpr int kPieces = 4;
};

template <class Element>
constexpr int kRowBytes = Traits<Element>::kPieces * 16;
template <class Element>
constexpr int kUnitBytes = kInner * kUnit * (int)sizeof(Element);

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

// A pass over a step, for columns that have the same taps; in shared memory.
struct Pass {
  int taps;
  int out_stride;                   // columns between neighbours
  int first;                        // column
  int rows;                         // images x columns
  int row;                          // of the step's level
  uint32_t cell[pxfast::kMaxTaps];   // of each tap: elements before the cell that the first row reads
  uint32_t inner[pxfast::kMaxTaps];  // where its weights begin
};

struct Tile {
  int row, rows;    // first row; how many at most
  int unit, units;  // the same of the units of outputs
};

// Which 16-byte piece of a row stands where, so that eight rows read at once lie in different banks.
template <class Element>
PXFAST_DEVICE int swizzled(int piece, int row) {
  return sizeof(Element) == 4 ? piece ^ ((row >> 1) & 3) : piece;
}

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

// Walks the taps of a pass in steps of the inner dimension.
struct Cursor {
  int tap, step;

  PXFAST_DEVICE Cursor(int start, int tap_inner) : tap(0), step(start) { settle(tap_inner); }
  PXFAST_DEVICE void advance(int steps, int tap_inner) {
    step += steps;
    settle(tap_inner);
  }

 private:
  PXFAST_DEVICE void settle(int tap_inner) {
    while (step >= tap_inner) step -= tap_inner, ++tap;
  }
};

// Where a warp stands in a tile.
struct Place {
  int slice, row, unit;  // slice of the inner dimension; first row and unit of the tile

  PXFAST_DEVICE Place(const Step& step, int warp)
      : slice(step.per_row ? 0 : warp >> 1), row(step.per_row ? (warp >> 1) * 16 * kTilesPerWarp : 0), unit(warp & 1) {}
};

// A place in the ring of stages, and the parity of the barriers' phase there.
struct Slot {
  int stage = 0, parity = 0;

  PXFAST_DEVICE void advance(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// How the blocks of a cluster share the weights of a pixel step: each copies a part of every chunk to all of them. They
// go through the same chunks in the same order. Before a stage is filled, all of them have said that it is free.
struct Sharing {
  int blocks, rank;  // blocks: 1 when nothing is shared
  CopyBarrier *full, *empty;  // one for each stage
  Slot slot;                  // that the next shared chunk fills
};

// The products of a tile: sums[16-row tile * kUnitsPerWarp + every second unit][outputs of a lane].
template <class Element>
PXFAST_DEVICE void multiply_tile(const Launch& launch, const Step& step, const Pass& pass, const Tile& tile, int images,
                                 const Element* caches, unsigned char* ring, Sharing& sharing, const Place& place,
                                 int tiles, int units, float (&sums)[kBlocksPerWarp][8]) {
  constexpr int kPieces = Traits<Element>::kPieces;
  constexpr int kCopies = kRowTile * kRowPieces / kThreads;  // of rows, by one thread for one chunk
  const int thread = thread_index(), warp = thread >> 5, lane = thread & 31;
  const int pieces = step.per_row ? kRowPieces : launch.pixel_pieces;  // of a row, in a chunk
  const int chunk = pieces / kPieces;                                  // steps of the inner dimension in a chunk
  const int inner = pass.taps * step.tap_inner;
  const int chunks = (inner + chunk - 1) / chunk;
  const int row_pitch = (step.per_row ? kRowTile : kPixelTile) * kRowBytes<Element> + kRowPadding;
  const int slices = step.per_row ? 1 : kSlices;

  // this thread's copies of rows: always the same piece, of a few rows
  const int piece = thread & (pieces - 1);
  const int row_inner = piece / kPieces;
  const int row_step = kThreads / pieces;
  const int column_stride = step.scale == Scale::kDown ? 2 : 1;  // of the input, between neighbours in the pass
  uint32_t from[kCopies];
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    const int row = tile.row + thread / pieces + i * row_step;
    const int position = column_stride == 1 ? row : row / images * column_stride * images + row % images;
    from[i] = (uint32_t)position * step.channels + (piece % kPieces) * (16 / (int)sizeof(Element));
  }
  // and of weights: always the same inner step, of every few units
  const int unit_inner = warp & (chunk - 1), unit_first = warp / chunk, unit_step = kWarps / chunk;
  const unsigned char* weights =
      launch.block + step.weights + (uint64_t)tile.unit * step.total_inner * kUnitBytes<Element> + 16 * lane;

  Cursor row_cursor(row_inner, step.tap_inner), unit_cursor(unit_inner, step.tap_inner);
  const bool shared = sharing.blocks > 1 && !step.per_row;
  int next = 0;  // chunk to be loaded
  Slot next_slot, slot;
  if (shared) {
    next_slot = slot = sharing.slot;
    fence_copies();  // the ring held other things
    sync_block();
  }
  const auto load = [&] {
    unsigned char* stage = ring + next_slot.stage * launch.stage_bytes;
    if (shared && thread < sharing.blocks) arrive_in_cluster(&sharing.empty[next_slot.stage], thread);
    if (next * chunk + row_inner < inner) {
      const Element* cell = caches + pass.cell[row_cursor.tap] + row_cursor.step * kInner;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const int row = thread / pieces + i * row_step;
        if (row < tile.rows)
          copy_async(stage + row_inner * row_pitch + row * kRowBytes<Element> +
                         16 * swizzled<Element>(piece % kPieces, row),
                     cell + from[i]);
      }
    }
    if (!shared && next * chunk + unit_inner < inner) {
      const unsigned char* packed =
          weights + (uint32_t)(pass.inner[unit_cursor.tap] + unit_cursor.step) * kUnitBytes<Element>;
      unsigned char* to = stage + chunk * row_pitch + unit_inner * kUnitBytes<Element> + 16 * lane;
      for (int unit = unit_first; unit < tile.units; unit += unit_step) {
#pragma unroll
        for (int part = 0; part < kUnitBytes<Element> / 512; ++part)
          copy_async(to + unit * chunk * kUnitBytes<Element> + 512 * part,
                     packed + (uint64_t)unit * step.total_inner * kUnitBytes<Element> + 512 * part);
      }
    }
    row_cursor.advance(chunk, step.tap_inner);
    unit_cursor.advance(chunk, step.tap_inner);
    ++next;
    next_slot.advance(launch.stages);
  };
  // This block's part of a chunk's weights, by the first warp: in one chunk's time after the stage was said to be free
  // here, so that the others' word has come.
  int next_shared = 0;
  const auto share = [&] {
    const int count = inner - next_shared * chunk < chunk ? inner - next_shared * chunk : chunk;
    if (warp == 0) {
      CopyBarrier* full = &sharing.full[sharing.slot.stage];
      wait_for_barrier(&sharing.empty[sharing.slot.stage], sharing.slot.parity);
      if (lane == 0) expect_bytes(full, tile.units * count * kUnitBytes<Element>);
      sync_warp();
      unsigned char* to = ring + sharing.slot.stage * launch.stage_bytes + chunk * row_pitch;
      for (int i = sharing.rank + sharing.blocks * lane; i < tile.units * count; i += sharing.blocks * 32) {
        const int unit = i / count, k = i % count, at = next_shared * chunk + k;
        const uint32_t packed = pass.inner[at / step.tap_inner] + at % step.tap_inner;
        copy_to_cluster(to + (unit * chunk + k) * kUnitBytes<Element>,
                        launch.block + step.weights +
                            ((uint64_t)(tile.unit + unit) * step.total_inner + packed) * kUnitBytes<Element>,
                        kUnitBytes<Element>, full, (uint16_t)((1 << sharing.blocks) - 1));
      }
    }
    ++next_shared;
    sharing.slot.advance(launch.stages);
  };

#pragma unroll
  for (int b = 0; b < kBlocksPerWarp; ++b)
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[b][i] = 0.0f;

  for (int i = 0; i < launch.stages - 1; ++i) {
    if (next < chunks) load();
    commit_copies();
  }
  while (shared && next_shared < next - 1) share();
  for (int c = 0; c < chunks; ++c) {
    if (launch.stages == 4) {
      wait_copies<2>();
    } else if (launch.stages == 3) {
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    if (shared) {
      if (next_shared < next) share();
      wait_for_barrier(&sharing.full[slot.stage], slot.parity);
    }
    sync_block();  // chunk c has landed, and everyone is done with the stage that is filled next
    if (next < chunks) load();
    commit_copies();
    const unsigned char* stage = ring + slot.stage * launch.stage_bytes;
    const int count = inner - c * chunk < chunk ? inner - c * chunk : chunk;
    for (int k = (place.slice - c * chunk) & (slices - 1); k < count && units > 0; k += slices)
      multiply_inner(Element{}, sums, stage + k * row_pitch + place.row * kRowBytes<Element>,
                     stage + chunk * row_pitch + (place.unit * chunk + k) * kUnitBytes<Element>,
                     chunk * kUnitBytes<Element>, tiles, units, lane);
    slot.advance(launch.stages);
  }
  wait_copies<0>();
  sync_block();  // the ring is free
}

// The sums of a tile go through shared memory: the slices meet there, and the epilogue, which is long, is compiled once
// and not for every register. Lane by lane, so that nothing conflicts.
PXFAST_DEVICE Float4* sums_of(unsigned char* ring, int warp, int block, int lane) {
  return reinterpret_cast<Float4*>(ring) + (warp * kBlocksPerWarp + block) * 64 + lane;
}

PXFAST_DEVICE void keep_sums(unsigned char* ring, const float (&sums)[kBlocksPerWarp][8], int tiles, int units) {
  const int warp = thread_index() >> 5, lane = thread_index() & 31;
#pragma unroll
  for (int b = 0; b < kBlocksPerWarp; ++b) {
    if (b / kUnitsPerWarp >= tiles || 2 * (b % kUnitsPerWarp) >= units) continue;
    Float4* to = sums_of(ring, warp, b, lane);
    to[0] = {sums[b][0], sums[b][1], sums[b][2], sums[b][3]};
    to[32] = {sums[b][4], sums[b][5], sums[b][6], sums[b][7]};
  }
}

PXFAST_DEVICE Float4 add(const Float4& a, const Float4& b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// One block of 16 rows x one unit, all slices added as (0 + 1) + (2 + 3).
PXFAST_DEVICE void load_sums(unsigned char* ring, bool sliced, int block, float (&sums)[8]) {
  const int warp = thread_index() >> 5, lane = thread_index() & 31;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    Float4 sum;
    if (sliced) {
      Float4 part[kSlices];
#pragma unroll
      for (int i = 0; i < kSlices; ++i) part[i] = sums_of(ring, (warp & 1) + 2 * i, block, lane)[32 * h];
      sum = add(add(part[0], part[1]), add(part[2], part[3]));
    } else {
      sum = sums_of(ring, warp, block, lane)[32 * h];
    }
    sums[4 * h] = sum.x, sums[4 * h + 1] = sum.y, sums[4 * h + 2] = sum.z, sums[4 * h + 3] = sum.w;
  }
}

}  // namespace cuda
}  // namespace pxfast
