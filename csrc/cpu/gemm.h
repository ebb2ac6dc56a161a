// Matrix products with packed weights: a tile of images x outputs in registers, taps gathered through pointers.
//
// Every output is one accumulator that runs over the taps and their channels in order. The tile's shape therefore
// never changes a result: a row alone, in a full tile or in a ragged one gives the same bits.
#pragma once

#include "vector.h"

namespace {

template <class Element>
struct Operand {  // the taps of one step at one position
  int taps;
  const Element* cells[pxfast::kMaxTaps];    // first row of the left matrix
  const Element* weights[pxfast::kMaxTaps];  // in the first tile
  int channels[pxfast::kMaxTaps];            // also the distance between rows
};

// What an instruction set whose products are of another kind has otherwise (amx.h).
template <class Element>
constexpr long kPanelRows = 120;  // rows of a matrix product between two epilogues; a multiple of every tile's rows
template <class Element>
constexpr int kCellMultiple = 1;  // of the channels that a cell has room for

template <class Element>
constexpr int kPack = 1;  // consecutive channels that stand together in the packed weights
template <>
constexpr int kPack<Bf16> = 2;

// How many vectors of outputs a tile may have, and how many rows beside so many registers of outputs: all accumulators,
// a tile row of weights and one spare stay in registers, 32 of 16 floats, 16 of 8, 32 of 4 (NEON), 16 of 4. Tiles of one
// row, that of an image alone, are computed kMaxTilesTogether at a time: one has too few accumulators to hide how long an
// addition takes.
#if defined(__AVX512F__)
constexpr int kMaxTileVectors = 6;
constexpr int kMaxTilesTogether = 2;
constexpr int max_rows(int registers) {
  return registers <= 2 ? 12 : registers == 3 ? 8 : registers == 4 ? 6 : registers == 5 ? 5 : 4;
}
#elif defined(__AVX2__)
constexpr int kMaxTileVectors = 1;
constexpr int kMaxTilesTogether = 4;
constexpr int max_rows(int registers) { return registers == 1 ? 12 : 6; }
#elif defined(PXFAST_NEON)
constexpr int kMaxTileVectors = 1;
constexpr int kMaxTilesTogether = 2;
constexpr int max_rows(int registers) { return registers <= 2 ? 12 : registers == 3 ? 8 : 6; }
#else
constexpr int kMaxTileVectors = 1;
constexpr int kMaxTilesTogether = 2;
constexpr int max_rows(int registers) { return registers == 1 ? 12 : registers == 2 ? 5 : registers == 3 ? 3 : 2; }
#endif
constexpr int kMaxTileRows = 12;

// Where the last register of a tile stands for half as many outputs as it has lanes, or fewer, two rows share one: 40
// outputs take 40 lanes and not 48. Such tiles have an even number of rows, at most half_tile_rows.
#if defined(__AVX512F__)
constexpr int half_tile_rows(int vectors) { return vectors == 2 ? 12 : vectors == 3 ? 10 : 0; }
#else
constexpr int half_tile_rows(int) { return 0; }
#endif

// Left element(s) for all lanes, a register of weights, and their product added: on native registers, since GCC keeps
// an array of them in registers and an array of Vectors, where these have several parts, on the stack.
inline NativeFloat spread(const float* a) { return native_broadcast(*a); }
inline NativeFloat spread(const RoundedFloat* a) { return spread(&a->value); }
inline NativeFloat load_weights(const float* w) { return native_load(w); }
inline NativeFloat load_weights(const RoundedFloat* w) { return native_load(&w->value); }
inline NativeFloat multiply_add(NativeFloat sum, NativeFloat a, NativeFloat w) { return native_fma(a, w, sum); }

#if defined(__AVX512BF16__)
inline __m512i spread(const Bf16* a) {
  int32_t pair;
  std::memcpy(&pair, a, 4);
  return _mm512_set1_epi32(pair);
}
inline __m512i load_weights(const Bf16* w) { return _mm512_loadu_si512(w); }
inline NativeFloat multiply_add(NativeFloat sum, __m512i a, __m512i w) {
  return (NativeFloat)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)a);
}
#elif defined(PXFAST_NEON) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
inline bfloat16x4_t spread(const Bf16* a) {  // the pair; bfdot itself takes it to all lanes
  uint32_t pair;
  std::memcpy(&pair, a, 4);
  return vreinterpret_bf16_u32(vset_lane_u32(pair, vdup_n_u32(0), 0));
}
inline bfloat16x8_t load_weights(const Bf16* w) { return vreinterpretq_bf16_u16(vld1q_u16(&w->bits)); }
inline NativeFloat multiply_add(NativeFloat sum, bfloat16x4_t a, bfloat16x8_t w) {
  return (NativeFloat)vbfdotq_lane_f32((float32x4_t)sum, w, a, 0);
}
#endif

// Of two rows that share a register: their left elements, the weights, the sums. (Masks of all lanes, since GCC warns of
// what the forms without a mask leave undefined.)
#if defined(__AVX512F__)
inline NativeFloat halves(NativeFloat low, NativeFloat high) {
  return (NativeFloat)_mm512_mask_blend_ps(0xff00, (__m512)low, (__m512)high);
}
inline __m512i halves(__m512i low, __m512i high) { return _mm512_mask_blend_epi32(0xff00, low, high); }
inline NativeFloat load_half_weights(const float* w) {
  return (NativeFloat)_mm512_maskz_broadcast_f32x8(0xffff, _mm256_loadu_ps(w));
}
inline NativeFloat load_half_weights(const RoundedFloat* w) { return load_half_weights(&w->value); }
inline NativeFloat load_halves(const float* low, const float* high) {
  return (NativeFloat)_mm512_mask_loadu_ps((__m512)native_load(low), 0xff00, high - 8);
}
inline void store_halves(float* low, float* high, NativeFloat x) {  // zeros behind each
  _mm512_storeu_ps(low, _mm512_maskz_mov_ps(0x00ff, (__m512)x));
  _mm512_storeu_ps(high, _mm512_maskz_shuffle_f32x4(0x00ff, (__m512)x, (__m512)x, 0xee));
}
#if defined(__AVX512BF16__)
inline __m512i load_half_weights(const Bf16* w) {
  return _mm512_maskz_broadcast_i64x4(0xff, _mm256_loadu_si256((const __m256i*)w));
}
#endif
#endif

// Before a loop over a tile's registers: all its turns are written out. GCC leaves loops of many turns, and an array that
// is indexed by a variable lies on the stack.
#if defined(__clang__)
#define PXFAST_UNROLL_ALL _Pragma("clang loop unroll(full)")
#else
#define PXFAST_UNROLL_ALL _Pragma("GCC unroll 32")
#endif

// Between two rows of a tile: loads stay on their side. On NEON GCC would load all rows' elements first, and these with
// the sums and the weights are more than 32 registers.
#if defined(PXFAST_NEON) && !defined(__clang__)
inline void keep_row_order() { asm volatile("" ::: "memory"); }
#else
inline void keep_row_order() {}
#endif

// On their way to the second-level cache while a tile multiplies: the rows behind its own, since a block's activations are
// more than that holds, and weights, where a step's are.
template <class Element>
inline void prefetch(const Element* from, long elements) {
  for (long i = 0; i < elements; i += 64 / (long)sizeof(Element)) __builtin_prefetch(from + i, 0, 2);
}

constexpr size_t kCachedWeights = 1 << 19;  // bytes of a step's weights that still are in the second-level cache
constexpr long kPrefetchBytes = 4096;       // a processor's own prefetching stops at the end of a page

// Where a tile's weights, sums and results are.
struct TilePlace {
  size_t weights, weights_stride;  // elements before the tile's, and to the next tile's
  const float* initial;            // what the accumulators begin at, laid out as `out` is; null: zeros
  float* out;
  long out_stride;
  bool prefetch_next;     // the next rows; for the first of the tiles that read them
  bool prefetch_weights;  // for the first rows of a tile
};

// kRows rows of a tile whose last register two rows share.
template <class Element, int kRows, int kVectors>
void half_tile_kernel(const Operand<Element>&, long, const TilePlace&);

#if defined(__AVX512F__)
template <class Element, int kRows, int kVectors>
void half_tile_kernel(const Operand<Element>& operand, long first_row, const TilePlace& place) {
  constexpr int kWhole = kVectors - 1, kWidth = kVectors * pxfast::kLanes, kHalf = kWhole * pxfast::kLanes;
  const long stride = place.out_stride;
  NativeFloat sum[kRows][kWhole] = {}, shared[kRows / 2] = {};
  if (place.initial != nullptr) {
    PXFAST_UNROLL_ALL
    for (int i = 0; i < kRows; ++i) {
      PXFAST_UNROLL_ALL
      for (int j = 0; j < kWhole; ++j) sum[i][j] = native_load(place.initial + i * stride + j * kNativeLanes);
    }
    PXFAST_UNROLL_ALL
    for (int i = 0; i < kRows; i += 2)
      shared[i / 2] = load_halves(place.initial + i * stride + kHalf, place.initial + (i + 1) * stride + kHalf);
  }
  for (int t = 0; t < operand.taps; ++t) {
    const long channels = operand.channels[t];
    const Element* a = operand.cells[t] + first_row * channels;
    const Element* w = operand.weights[t] + place.weights;
    if (place.prefetch_next) prefetch(a + kRows * channels, kRows * channels);
    const Element *a4 = a + 4 * channels, *a8 = a + 8 * channels;  // as in tile_kernel
    for (const Element* end = w + channels * kWidth; w != end; w += kWidth * kPack<Element>) {
      decltype(load_weights(w)) weights[kWhole];
      PXFAST_UNROLL_ALL
      for (int j = 0; j < kWhole; ++j) weights[j] = load_weights(w + j * kNativeLanes * kPack<Element>);
      const auto half_weights = load_half_weights(w + kHalf * kPack<Element>);
      if (place.prefetch_weights) prefetch(w + kPrefetchBytes / (long)sizeof(Element), kWidth * kPack<Element>);
      PXFAST_UNROLL_ALL
      for (int i = 0; i < kRows; i += 2) {
        const Element* row = (i < 4 ? a : i < 8 ? a4 : a8) + (i % 4) * channels;
        const auto low = spread(row), high = spread(row + channels);
        PXFAST_UNROLL_ALL
        for (int j = 0; j < kWhole; ++j) {
          sum[i][j] = multiply_add(sum[i][j], low, weights[j]);
          sum[i + 1][j] = multiply_add(sum[i + 1][j], high, weights[j]);
        }
        shared[i / 2] = multiply_add(shared[i / 2], halves(low, high), half_weights);
      }
      a += kPack<Element>, a4 += kPack<Element>, a8 += kPack<Element>;
    }
  }
  PXFAST_UNROLL_ALL
  for (int i = 0; i < kRows; i += 2) {
    float *low = place.out + i * stride, *high = low + stride;
    PXFAST_UNROLL_ALL
    for (int j = 0; j < kWhole; ++j) {
      native_store(low + j * kNativeLanes, sum[i][j]);
      native_store(high + j * kNativeLanes, sum[i + 1][j]);
    }
    store_halves(low + kHalf, high + kHalf, shared[i / 2]);
  }
}
#endif

// kTiles tiles of kRows rows. kEmpty: the registers at a tile's end that stand for no outputs, which become zeros.
template <class Element, int kRows, int kVectors, int kEmpty, int kTiles>
void tile_kernel(const Operand<Element>& operand, long first_row, const TilePlace& place) {
  constexpr int kRegisters = kVectors * kParts - kEmpty;
  constexpr int kWidth = kVectors * pxfast::kLanes;
  const size_t weights_stride = place.weights_stride;
  const bool prefetch_weights = kTiles == 1 && place.prefetch_weights;
  NativeFloat sum[kTiles][kRows][kRegisters] = {};
  if (place.initial != nullptr) {
    PXFAST_UNROLL_ALL
    for (int n = 0; n < kTiles; ++n) {
      PXFAST_UNROLL_ALL
      for (int i = 0; i < kRows; ++i) {
        PXFAST_UNROLL_ALL
        for (int j = 0; j < kRegisters; ++j)
          sum[n][i][j] = native_load(place.initial + i * place.out_stride + n * kWidth + j * kNativeLanes);
      }
    }
  }
  for (int t = 0; t < operand.taps; ++t) {
    const long channels = operand.channels[t];
    const Element* a = operand.cells[t] + first_row * channels;
    const Element* w = operand.weights[t] + place.weights;
    if (place.prefetch_next) prefetch(a + kRows * channels, kRows * channels);
    // A pointer for every four rows: x86's addressing modes reach the others from there with two registers. With an
    // index from one pointer GCC needs a register a row, and keeps the loop's end on the stack.
    const Element *a4 = a + 4 * channels, *a8 = a + 8 * channels;
    for (const Element* end = w + channels * kWidth; w != end;) {
      PXFAST_UNROLL_ALL
      for (int n = 0; n < kTiles; ++n) {
        const Element* own = w + n * weights_stride;
        decltype(load_weights(w)) weights[kRegisters];
        PXFAST_UNROLL_ALL
        for (int j = 0; j < kRegisters; ++j) weights[j] = load_weights(own + j * kNativeLanes * kPack<Element>);
        if (prefetch_weights) prefetch(own + kPrefetchBytes / (long)sizeof(Element), kWidth * kPack<Element>);
        if (n == kTiles - 1) w += kWidth * kPack<Element>;
        PXFAST_UNROLL_ALL
        for (int i = 0; i < kRows; ++i) {
          keep_row_order();
          const auto left = spread((i < 4 ? a : i < 8 ? a4 : a8) + (i % 4) * channels);
          PXFAST_UNROLL_ALL
          for (int j = 0; j < kRegisters; ++j) sum[n][i][j] = multiply_add(sum[n][i][j], left, weights[j]);
        }
      }
      a += kPack<Element>, a4 += kPack<Element>, a8 += kPack<Element>;
    }
  }
  PXFAST_UNROLL_ALL
  for (int n = 0; n < kTiles; ++n) {
    PXFAST_UNROLL_ALL
    for (int i = 0; i < kRows; ++i) {
      float* to = place.out + i * place.out_stride + n * kWidth;
      PXFAST_UNROLL_ALL
      for (int j = 0; j < kRegisters; ++j) native_store(to + j * kNativeLanes, sum[n][i][j]);
      PXFAST_UNROLL_ALL
      for (int j = kRegisters; j < kRegisters + kEmpty; ++j) native_store(to + j * kNativeLanes, NativeFloat{});
    }
  }
}

template <class Element>
using TileKernel = void (*)(const Operand<Element>&, long, const TilePlace&);

template <class Element>
struct KernelTable {
  TileKernel<Element> kernel[kMaxTileVectors + 1][kParts][kMaxTileRows + 1] = {};
  TileKernel<Element> row_of_tiles[kMaxTilesTogether + 1][kMaxTileVectors + 1] = {};  // one row of 2 or 4 tiles
  TileKernel<Element> half[kMaxTileVectors + 1][kMaxTileRows / 2 + 1] = {};  // by half the number of rows

  template <int kVectors, int kEmpty, int kRows>
  constexpr void fill_rows() {
    kernel[kVectors][kEmpty][kRows] = &tile_kernel<Element, kRows, kVectors, kEmpty, 1>;
    if constexpr (kRows == 1 && kEmpty == 0) {
      row_of_tiles[2][kVectors] = &tile_kernel<Element, 1, kVectors, 0, 2>;
      if constexpr (kMaxTilesTogether == 4) row_of_tiles[4][kVectors] = &tile_kernel<Element, 1, kVectors, 0, 4>;
    }
    if constexpr (kRows > 1) fill_rows<kVectors, kEmpty, kRows - 1>();
  }
  template <int kVectors, int kRows>
  constexpr void fill_half() {
    if constexpr (kRows > 0) {
      half[kVectors][kRows / 2] = &half_tile_kernel<Element, kRows, kVectors>;
      fill_half<kVectors, kRows - 2>();
    }
  }
  template <int kVectors, int kEmpty>
  constexpr void fill() {
    if constexpr (kEmpty == 0) fill_half<kVectors, half_tile_rows(kVectors)>();
    fill_rows<kVectors, kEmpty, max_rows(kVectors * kParts - kEmpty)>();
    if constexpr (kEmpty > 0) fill<kVectors, kEmpty - 1>();
    if constexpr (kEmpty == 0 && kVectors > 1) fill<kVectors - 1, kParts - 1>();
  }
  constexpr KernelTable() { fill<kMaxTileVectors, kParts - 1>(); }
};

// rows x (tiles * tile_vectors * kLanes) products, starting at row first_row of the operand, added to as many values
// from `initial` on; null: zeros
template <class Element>
void matrix_product(const pxfast::Step& step, const Operand<Element>& operand, long first_row, long rows,
                    const float* initial, float* out) {
  static constexpr KernelTable<Element> table;
  const int tile_width = step.tile_vectors * pxfast::kLanes;
  const long out_stride = (long)step.tiles * tile_width;
  const bool streams = step.tiles * step.tile_stride * sizeof(Element) > kCachedWeights;
  const auto multiply = [&](TileKernel<Element> kernel, int tile, long row) {
    const long at = row * out_stride + tile * tile_width;
    kernel(operand, first_row + row,
           {tile * step.tile_stride, step.tile_stride, initial == nullptr ? nullptr : initial + at, out + at,
            out_stride, tile == 0, streams && row == 0});
  };
  int tile = 0;
  if (rows == 1) {
    const int full = step.outputs / tile_width;  // tiles without empty registers
    for (int tiles = kMaxTilesTogether; tiles > 1; tiles /= 2)
      for (; tile + tiles <= full; tile += tiles) multiply(table.row_of_tiles[tiles][step.tile_vectors], tile, 0);
  }
  for (; tile < step.tiles; ++tile) {
    const int beyond = (int)((tile + 1) * (long)tile_width - step.outputs);  // lanes without outputs
    const int empty = beyond < 0 ? 0 : beyond < kParts * kNativeLanes ? beyond / kNativeLanes : kParts - 1;
    const auto& kernels = table.kernel[step.tile_vectors][empty];
    const long tile_rows = max_rows(step.tile_vectors * kParts - empty);
    long row = 0;
    if (2 * beyond >= kNativeLanes) {
      const long most = half_tile_rows(step.tile_vectors);
      for (long pairs; (pairs = (rows - row < most ? rows - row : most) / 2) > 0; row += 2 * pairs)
        multiply(table.half[step.tile_vectors][pairs], tile, row);
    }
    for (; row < rows; row += tile_rows)
      multiply(kernels[rows - row < tile_rows ? rows - row : tile_rows], tile, row);
  }
}

template <class Element>
void plan_tiles(pxfast::Step& step, size_t rows) {
  const int vectors = pxfast::padded(step.outputs) / pxfast::kLanes;
  // the widths in order of measured speed; take the first that wastes the least
  constexpr int kWidths[] = {5, 4, 6, 3, 2, 1};
  int best = 1, best_total = 1 << 30;
  for (int width : kWidths) {
    if (width > kMaxTileVectors) continue;
    const int total = (vectors + width - 1) / width * width;
    if (total < best_total) best = width, best_total = total;
  }
  step.tile_vectors = best;
  step.tiles = best_total / best;
  step.tile_stride = rows * best * pxfast::kLanes;
}

template <class Element>
void pack_tap(const pxfast::Step& step, const pxfast::Tap& tap, int channels, const float* matrix, void* packed) {
  const int tile_width = step.tile_vectors * pxfast::kLanes;
  for (int tile = 0; tile < step.tiles; ++tile) {
    Element* to = static_cast<Element*>(packed) + tile * step.tile_stride + tap.weights * tile_width;
    for (int k = 0; k < channels; ++k) {
      for (int n = 0; n < tile_width; ++n) {
        const int output = tile * tile_width + n;
        const float value = output < step.outputs ? matrix[(long)k * step.outputs + output] : 0.0f;
        const int pack = kPack<Element>;
        store_scalar(to + ((long)(k / pack) * tile_width + n) * pack + k % pack, value);
      }
    }
  }
}

}  // namespace
