// The ring of stages in shared memory through which a tile's product is fed, chunk by chunk of the inner dimension: rows
// gathered from the taps' cells, and weights as pack.cpp has packed them.
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
constexpr int kUnitBytes = kInner* kUnit*(int)sizeof(Element);

// What a pass writes and adds, of its first column: found once, since a remainder alone takes thirty instructions.
struct Results {
  uint32_t concat_elu, raw, elu;     // elements before the cell in each cache; kNoCell: the step has none
  uint32_t block;                    // elements from one block of a cell's channels to the next
  const float* bias[kMaxBiases];     // of those that the row has; else null
  int bias_differs;                  // whether not all columns have them
  float *residual, *partial, *parameters;
};
constexpr uint32_t kNoCell = 0xffffffff;

// A pass over a step, for columns that have the same taps; in shared memory.
struct Pass {
  Results results;
  int taps;
  int out_stride;                    // columns between neighbours
  int first, offset;                 // column; and how far it is behind the first of the step's own
  int rows;                          // images x columns
  int tile_rows, tile_units;         // of a tile, at most
  int unit_tiles, tasks;             // tiles for the same rows; all of them, which the blocks of a team take in turn
  int row;                           // of the step's level
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

// What feeds one tile. A thread gathers always the same piece, of a few rows; a warp copies weights of always the same
// step of the inner dimension in a chunk, of every few units.
template <class Element>
class Feed {
  static constexpr int kPieces = Traits<Element>::kPieces;
  static constexpr int kCopies = kRowTile * kRowPieces / kThreads;  // of rows, by one thread for one chunk

 public:
  PXFAST_DEVICE Feed(const Launch& launch, const Step& step, const Pass& pass, const Tile& tile, int images,
                     const Element* caches, unsigned char* ring)
      : launch_(launch),
        step_(step),
        pass_(pass),
        tile_(tile),
        caches_(caches),
        ring_(ring),
        pieces_(step.per_row ? kRowPieces : launch.pixel_pieces),
        inner_(pass.taps * step.tap_inner),
        row_inner_((thread_index() & (pieces_ - 1)) / kPieces),
        row_cursor_(row_inner_, step.tap_inner),
        unit_cursor_((thread_index() >> 5) & (pieces_ / kPieces - 1), step.tap_inner) {
    const int thread = thread_index(), warp = thread >> 5, lane = thread & 31;
    chunk = pieces_ / kPieces;
    chunks = (inner_ + chunk - 1) / chunk;
    row_pitch = (step.per_row ? kRowTile : kPixelTile) * kRowBytes<Element> + kRowPadding;
    weights_at = chunk * row_pitch;
    unit_stride = chunk * kUnitBytes<Element>;
    const int piece = thread & (pieces_ - 1);
    first_row_ = thread / pieces_;
    row_step_ = kThreads / pieces_;
    row_to_ =
        row_inner_ * row_pitch + first_row_ * kRowBytes<Element> + 16 * swizzled<Element>(piece % kPieces, first_row_);
    row_to_step_ = row_step_ * kRowBytes<Element>;
    const int column_stride = step.scale == Scale::kDown ? 2 : 1;  // of the input, between neighbours in the pass
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = tile.row + first_row_ + i * row_step_;
      const int position = column_stride == 1 ? row : row / images * column_stride * images + row % images;
      from_[i] = (uint32_t)position * step.channels + (piece % kPieces) * (16 / (int)sizeof(Element));
    }
    weights_ = launch.block + step.weights + (uint64_t)tile.unit * step.total_inner * kUnitBytes<Element> + 16 * lane;
    unit_inner_ = warp & (chunk - 1);
    unit_first_ = warp / chunk;
    unit_step_ = kWarps / chunk;
  }

  int chunk, chunks;  // steps of the inner dimension in a chunk; chunks
  // a stage: rows, row_pitch bytes from one inner step to the next; then weights, unit by unit
  int row_pitch, weights_at, unit_stride;

  // Starts the first chunks, all that the ring holds but one.
  PXFAST_DEVICE void begin() {
    for (int i = 0; i < launch_.stages - 1; ++i) {
      if (next_ < chunks) load();
      commit_copies();
    }
  }

  // Until this thread's part of the next chunk has landed; the whole of it has behind the block's next meeting.
  PXFAST_DEVICE void wait() {
    if (launch_.stages == 4) {
      wait_copies<2>();
    } else if (launch_.stages == 3) {
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
  }

  // Starts one chunk more, in a stage that everyone is done with.
  PXFAST_DEVICE void load_next() {
    if (next_ < chunks) load();
    commit_copies();
  }

  // The stage that is multiplied, and the steps of the inner dimension in it.
  PXFAST_DEVICE const unsigned char* stage() const { return ring_ + stage_ * launch_.stage_bytes; }
  PXFAST_DEVICE int count(int at) const { return inner_ - at * chunk < chunk ? inner_ - at * chunk : chunk; }
  PXFAST_DEVICE void advance() { stage_ = stage_ + 1 == launch_.stages ? 0 : stage_ + 1; }

 private:
  const Launch& launch_;
  const Step& step_;
  const Pass& pass_;
  const Tile& tile_;
  const Element* caches_;
  unsigned char* ring_;
  const int pieces_, inner_;
  const int row_inner_;
  Cursor row_cursor_, unit_cursor_;
  int first_row_, row_step_, row_to_, row_to_step_;
  uint32_t from_[kCopies];
  const unsigned char* weights_;
  int unit_inner_, unit_first_, unit_step_;
  int next_ = 0;  // chunk to be loaded
  int next_stage_ = 0, stage_ = 0;

  PXFAST_DEVICE void load() {
    const int lane = thread_index() & 31;
    unsigned char* stage = ring_ + next_stage_ * launch_.stage_bytes;
    if (next_ * chunk + row_inner_ < inner_) {
      const Element* cell = caches_ + pass_.cell[row_cursor_.tap] + row_cursor_.step * kInner;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        if (first_row_ + i * row_step_ < tile_.rows) copy_async(stage + row_to_ + i * row_to_step_, cell + from_[i]);
      }
    }
    if (next_ * chunk + unit_inner_ < inner_) {
      const unsigned char* packed =
          weights_ + (uint32_t)(pass_.inner[unit_cursor_.tap] + unit_cursor_.step) * kUnitBytes<Element>;
      unsigned char* to = stage + weights_at + unit_inner_ * kUnitBytes<Element> + 16 * lane;
      for (int unit = unit_first_; unit < tile_.units; unit += unit_step_) {
#pragma unroll
        for (int part = 0; part < kUnitBytes<Element> / 512; ++part)
          copy_async(to + unit * unit_stride + 512 * part,
                     packed + (uint64_t)unit * step_.total_inner * kUnitBytes<Element> + 512 * part);
      }
    }
    row_cursor_.advance(chunk, step_.tap_inner);
    unit_cursor_.advance(chunk, step_.tap_inner);
    ++next_;
    next_stage_ = next_stage_ + 1 == launch_.stages ? 0 : next_stage_ + 1;
  }
};

}  // namespace cuda
}  // namespace pxfast
