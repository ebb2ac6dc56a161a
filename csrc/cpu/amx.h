// Matrix products of bf16 on the tiles of AMX: 16 x 32 cells times 32 x 16 weights are one instruction.
//
// Included by isa_avx512amx.cpp alone, before decode.h. As everywhere an output is summed over the taps and their
// channels in order, here 32 channels at a time, and whatever rows stand beside its own change nothing.
#pragma once

#include <utility>  // integer_sequence, a type alone

#include "gemm.h"

namespace {

constexpr int kTileRows = 16;
constexpr int kTileChannels = 32;
constexpr int kTileWeights = kTileChannels * pxfast::kLanes;  // elements, one behind the other
constexpr int kSums = 4;                                      // tiles 0 to 3: an instruction waits for three others
constexpr int kLeft = 4, kRight = 6;                          // tiles of cells and of weights, two of each in turns

struct alignas(64) TileShapes {  // as the processor reads them
  uint8_t palette = 1, unused[15] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// The instructions. Compilers have them too, but GCC 12's take no template's numbers and do not say that tiles are read
// from memory and written to it.
#if defined(PXFAST_TEST_TILES)
#include PXFAST_TEST_TILES  // the same in plain code, for machines that have none
#else
inline void tile_configure(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
inline void tile_release() { asm volatile("tilerelease"); }
template <int kTile>
PXFAST_INLINE void tile_load(const void* from, long row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(kTile) : "memory");
}
template <int kTile>
PXFAST_INLINE void tile_store(void* to, long row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(kTile) : "memory");
}
template <int kTile>
PXFAST_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kSum, int kCells, int kWeights>
PXFAST_INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kCells), "i"(kWeights));
}
#endif

// How many rows the sums have, one below the other: up to 16, all alike; up to 32, the second tile's are the rest. Setting
// them takes a while and empties the tiles.
thread_local int tiles_set_for = 0;

inline void set_tiles(int rows) {
  if (rows == tiles_set_for) return;
  TileShapes shapes;
  const int upper = rows < kTileRows ? rows : kTileRows, lower = rows > kTileRows ? rows - kTileRows : upper;
  for (int tile = 0; tile < 8; ++tile) {
    const bool is_lower = tile == 2 || tile == 3 || tile == kLeft + 1;
    shapes.row_bytes[tile] = 64;
    shapes.rows[tile] = (uint8_t)(tile >= kRight ? kTileChannels / 2 : is_lower ? lower : upper);
  }
  tile_configure(shapes);
  tiles_set_for = rows;
}

// Around all products of a thread's decode: nothing is known of the tiles before, and they are given back behind.
inline void take_tiles() { tiles_set_for = 0; }
inline void give_tiles_back() { tile_release(); }

template <int kNumber>
struct Constant {  // std::integral_constant has functions that the builds of several instruction sets would share
  constexpr operator int() const { return kNumber; }
};

// kDown x kBeside tiles of sums, at most kSums of them.
template <int kDown, int kBeside>
class TileProduct {
 public:
  // a function of its own: what its loop needs is in registers then
  __attribute__((noinline)) static void run(const Operand<Bf16>& operand, long first_row, const TilePlace& place) {
    const long out_bytes = place.out_stride * (long)sizeof(float), weights_stride = (long)place.weights_stride;
    const bool prefetch_next = kDown > 1 && place.prefetch_next;  // a single tile's rows are the last
    const auto offset = [&](int down, int beside) {
      return down * kTileRows * place.out_stride + beside * pxfast::kLanes;
    };
    each_sum([&](auto down, auto beside) {
      if (place.initial != nullptr) {
        tile_load<sum(down, beside)>(place.initial + offset(down, beside), out_bytes);
      } else {
        tile_zero<sum(down, beside)>();
      }
    });
    for (int t = 0; t < operand.taps; ++t) {
      const long channels = operand.channels[t], rows = kDown * kTileRows;
      const Bf16* cells = operand.cells[t] + first_row * channels;
      const Bf16* weights = operand.weights[t] + place.weights;
      for (const Bf16* end = cells + channels; cells != end; cells += kTileChannels, weights += kTileWeights) {
        // line by line beside the products: all of a tap's at once would have these wait
        if (prefetch_next)
          for (long row = rows; row < 2 * rows; ++row) __builtin_prefetch(cells + row * channels, 0, 2);
        each_sum([&](auto down, auto beside) {
          constexpr int kCells = kLeft + down % 2, kWeights = kRight + beside % 2;
          if (down == 0) tile_load<kWeights>(weights + beside * weights_stride, 64);
          if (beside == 0) tile_load<kCells>(cells + down * kTileRows * channels, channels * (long)sizeof(Bf16));
          tile_multiply<sum(down, beside), kCells, kWeights>();
        });
      }
    }
    each_sum([&](auto down, auto beside) {
      tile_store<sum(down, beside)>(place.out + offset(down, beside), out_bytes);
    });
  }

 private:
  // what is read for the first of several sums has to be there still for the last
  static_assert(kDown * kBeside <= kSums && (kDown == 1 || kBeside == 1 || (kDown == 2 && kBeside == 2)));

  static constexpr int sum(int down, int beside) { return kDown == 2 ? 2 * down + beside : down + beside; }

  // body(down, beside) for all sums, the ones beside each other first; the numbers are constants
  template <class Body>
  PXFAST_INLINE static void each_sum(const Body& body) {
    each_sum(body, std::make_integer_sequence<int, kDown * kBeside>{});
  }
  template <class Body, int... kEach>
  PXFAST_INLINE static void each_sum(const Body& body, std::integer_sequence<int, kEach...>) {
    (body(Constant<kEach / kBeside>{}, Constant<kEach % kBeside>{}), ...);
  }
};

template <>
constexpr long kPanelRows<Bf16> = 128;

template <>
constexpr int kCellMultiple<Bf16> = kTileChannels;

template <>
inline void plan_tiles<Bf16>(pxfast::Step& step, size_t rows) {
  step.tile_vectors = 1;
  step.tiles = pxfast::padded(step.outputs) / pxfast::kLanes;
  step.tile_stride = rows * pxfast::kLanes;
}

template <>
inline void matrix_product<Bf16>(const pxfast::Step& step, const Operand<Bf16>& operand, long first_row, long rows,
                                 const float* initial, float* out) {
  const long out_stride = (long)step.tiles * pxfast::kLanes;
  const auto multiply = [&](TileKernel<Bf16> kernel, int tile, long row) {
    const long at = row * out_stride + tile * pxfast::kLanes;
    kernel(operand, first_row + row,
           {tile * step.tile_stride, step.tile_stride, initial == nullptr ? nullptr : initial + at, out + at,
            out_stride, tile == 0, false});
  };
  const long whole = rows / (2 * kTileRows) * (2 * kTileRows), rest = rows - whole;
  if (whole > 0) {
    set_tiles(2 * kTileRows);
    int tile = 0;
    for (; tile + 2 <= step.tiles; tile += 2)
      for (long row = 0; row < whole; row += 2 * kTileRows) multiply(TileProduct<2, 2>::run, tile, row);
    if (tile < step.tiles) {
      long row = 0;
      for (; row + 4 * kTileRows <= whole; row += 4 * kTileRows) multiply(TileProduct<4, 1>::run, tile, row);
      if (row < whole) multiply(TileProduct<2, 1>::run, tile, row);
    }
  }
  if (rest > 0) {
    set_tiles((int)rest);
    int tile = 0;
    if (rest <= kTileRows)
      for (; tile + 4 <= step.tiles; tile += 4) multiply(TileProduct<1, 4>::run, tile, whole);
    for (; tile + 2 <= step.tiles; tile += 2)
      multiply(rest > kTileRows ? TileProduct<2, 2>::run : TileProduct<1, 2>::run, tile, whole);
    if (tile < step.tiles) multiply(rest > kTileRows ? TileProduct<2, 1>::run : TileProduct<1, 1>::run, tile, whole);
  }
}

}  // namespace
