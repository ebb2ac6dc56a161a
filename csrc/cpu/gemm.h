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

template <class Element>
constexpr int kPack = 1;  // consecutive channels that stand together in the packed weights
template <>
constexpr int kPack<Bf16> = 2;

// How many vectors of outputs a tile may have, and how many rows beside so many registers of outputs: all accumulators,
// a tile row of weights and one spare stay in registers, 32 of 16 floats, 16 of 8, 32 of 4 (NEON), 16 of 4.
#if defined(__AVX512F__)
constexpr int kMaxTileVectors = 6;
constexpr int max_rows(int registers) {
  return registers <= 2 ? 12 : registers == 3 ? 8 : registers == 4 ? 6 : registers == 5 ? 5 : 4;
}
#elif defined(__AVX2__)
constexpr int kMaxTileVectors = 1;
constexpr int max_rows(int registers) { return registers == 1 ? 12 : 6; }
#elif defined(PXFAST_NEON)
constexpr int kMaxTileVectors = 1;
constexpr int max_rows(int registers) { return registers <= 2 ? 12 : registers == 3 ? 8 : 6; }
#else
constexpr int kMaxTileVectors = 1;
constexpr int max_rows(int registers) { return registers == 1 ? 12 : registers == 2 ? 5 : registers == 3 ? 3 : 2; }
#endif
constexpr int kMaxTileRows = 12;

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

// Before a loop over a tile's registers: all its turns are written out. GCC leaves loops of many turns, and an array
// that is indexed by a variable lies on the stack.
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

// On their way to the second-level cache while a tile multiplies: the rows behind its own, since a block's activations
// are more than that holds, and weights, where a step's are.
template <class Element>
inline void prefetch(const Element* from, long elements) {
  for (long i = 0; i < elements; i += 64 / (long)sizeof(Element)) __builtin_prefetch(from + i, 0, 2);
}

constexpr size_t kCachedWeights = 1 << 19;  // bytes of a step's weights that still are in the second-level cache
constexpr long kPrefetchBytes = 4096;       // a processor's own prefetching stops at the end of a page

// kEmpty: the registers at the tile's end that stand for no outputs, which become zeros. prefetch_next: the next rows,
// for the first of the tiles that read them. prefetch_weights: for the first rows of a tile.
template <class Element, int kRows, int kVectors, int kEmpty>
void tile_kernel(const Operand<Element>& operand, long first_row, size_t tile_offset, float* out, long out_stride,
                 bool prefetch_next, bool prefetch_weights) {
  constexpr int kRegisters = kVectors * kParts - kEmpty;
  NativeFloat sum[kRows][kRegisters] = {};
  for (int t = 0; t < operand.taps; ++t) {
    const long channels = operand.channels[t];
    const Element* a = operand.cells[t] + first_row * channels;
    const Element* w = operand.weights[t] + tile_offset;
    if (prefetch_next) prefetch(a + kRows * channels, kRows * channels);
    // A pointer for every four rows: x86's addressing modes reach the others from there with two registers. With an
    // index from one pointer GCC needs a register a row, and keeps the loop's end on the stack.
    const Element *a4 = a + 4 * channels, *a8 = a + 8 * channels;
    for (const Element* end = w + channels * kVectors * pxfast::kLanes; w != end;) {
      decltype(load_weights(w)) weights[kRegisters];
      PXFAST_UNROLL_ALL
      for (int j = 0; j < kRegisters; ++j) weights[j] = load_weights(w + j * kNativeLanes * kPack<Element>);
      if (prefetch_weights)
        prefetch(w + kPrefetchBytes / (long)sizeof(Element), kVectors * pxfast::kLanes * kPack<Element>);
      w += kVectors * pxfast::kLanes * kPack<Element>;
      PXFAST_UNROLL_ALL
      for (int i = 0; i < kRows; ++i) {
        keep_row_order();
        const auto left = spread((i < 4 ? a : i < 8 ? a4 : a8) + (i % 4) * channels);
        PXFAST_UNROLL_ALL
        for (int j = 0; j < kRegisters; ++j) sum[i][j] = multiply_add(sum[i][j], left, weights[j]);
      }
      a += kPack<Element>, a4 += kPack<Element>, a8 += kPack<Element>;
    }
  }
  PXFAST_UNROLL_ALL
  for (int i = 0; i < kRows; ++i) {
    PXFAST_UNROLL_ALL
    for (int j = 0; j < kRegisters; ++j) native_store(out + i * out_stride + j * kNativeLanes, sum[i][j]);
    PXFAST_UNROLL_ALL
    for (int j = kRegisters; j < kRegisters + kEmpty; ++j)
      native_store(out + i * out_stride + j * kNativeLanes, NativeFloat{});
  }
}

template <class Element>
using TileKernel = void (*)(const Operand<Element>&, long, size_t, float*, long, bool, bool);

template <class Element>
struct KernelTable {
  TileKernel<Element> kernel[kMaxTileVectors + 1][kParts][kMaxTileRows + 1] = {};

  template <int kVectors, int kEmpty, int kRows>
  constexpr void fill_rows() {
    kernel[kVectors][kEmpty][kRows] = &tile_kernel<Element, kRows, kVectors, kEmpty>;
    if constexpr (kRows > 1) fill_rows<kVectors, kEmpty, kRows - 1>();
  }
  template <int kVectors, int kEmpty>
  constexpr void fill() {
    fill_rows<kVectors, kEmpty, max_rows(kVectors * kParts - kEmpty)>();
    if constexpr (kEmpty > 0) fill<kVectors, kEmpty - 1>();
    if constexpr (kEmpty == 0 && kVectors > 1) fill<kVectors - 1, kParts - 1>();
  }
  constexpr KernelTable() { fill<kMaxTileVectors, kParts - 1>(); }
};

// rows x (tiles * tile_vectors * kLanes) products, starting at row first_row of the operand
template <class Element>
void matrix_product(const pxfast::Step& step, const Operand<Element>& operand, long first_row, long rows, float* out) {
  static constexpr KernelTable<Element> table;
  const int tile_width = step.tile_vectors * pxfast::kLanes;
  const long out_stride = (long)step.tiles * tile_width;
  const bool streams = step.tiles * step.tile_stride * sizeof(Element) > kCachedWeights;
  for (int tile = 0; tile < step.tiles; ++tile) {
    const int beyond = (int)((tile + 1) * (long)tile_width - step.outputs) / kNativeLanes;
    const int empty = beyond < 0 ? 0 : beyond < kParts ? beyond : kParts - 1;
    const auto& kernels = table.kernel[step.tile_vectors][empty];
    const long tile_rows = max_rows(step.tile_vectors * kParts - empty);
    for (long row = 0; row < rows; row += tile_rows) {
      const long count = rows - row < tile_rows ? rows - row : tile_rows;
      kernels[count](operand, first_row + row, tile * step.tile_stride, out + row * out_stride + tile * tile_width,
                     out_stride, tile == 0, streams && row == 0);
    }
  }
}

inline void plan_tiles(pxfast::Step& step, size_t rows) {
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
