// What the CPU engine runs: plain data shared by every instruction-set build of the decode loop.
//
// Compiled under several instruction sets: the rule that common/steps.h states holds here too.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/head.h"
#include "common/steps.h"

namespace pxfast {

constexpr int kLanes = 16;  // floats in a vector, on every instruction set

// Activations of one kind for the last rows of a level: slots x (width + 2) x images x channels. A column of zeros on
// either side stands for the convolutions' padding.
struct Cache {
  int level;
  int channels;   // with room; even, so that bf16 pairs never straddle two cells
  int slots;      // rows kept
  size_t offset;  // elements per image before this cache
};

// One tap of a convolution: a cell of a cache times a (channels x outputs) matrix.
struct Tap {
  int cache;
  int row, column;                // relative to the (scaled) output position
  int row_parity, column_parity;  // only outputs of this parity have the tap; -1: all (transposed convolutions)
  size_t weights;                 // channels of the taps before it: where its rows of packed weights begin
};

struct Bias {
  const float* values;       // padded to a multiple of kLanes, plus kLanes
  int min_row, min_column;   // the bias is added from here on: shifted input streams see zeros before
};

struct Step {
  int level;     // of the output
  bool per_row;  // whole rows (vertical stream) or single pixels (horizontal stream)
  Scale scale;
  Epilogue epilogue;
  int outputs;             // N of the matrix product
  int taps, biases;
  int early;               // of a pixel step: so many of its first taps are summed for many columns at once
  Tap tap[kMaxTaps];
  Bias bias[kMaxBiases];
  float multiplier;        // of the matrix product, before the bias
  // caches written by kHidden (concat_elu only) or published; -1: none
  int concat_elu, raw, elu;
  // filled in by packing
  const void* packed;
  size_t tile_stride;  // elements per packed tile
  int tile_vectors;    // vectors of kLanes outputs per tile
  int tiles;
  size_t partial;      // floats per image and stretch of columns before this step's sums over early taps
};

struct Program {
  int channels, height, width, filters;
  HeadKind head;
  int mixtures;
  const float* tables;  // softmax head: (pairs, 256, 256), pairs R->G, R->B, G->B
  int input_cache;
  int caches, steps;
  const Cache* cache;
  const Step* step;
  size_t elements_per_image;  // of all caches
  size_t partial_per_stretch;  // floats per image of all sums over early taps, of kStretch columns
  size_t early_bytes;          // of the early taps' weights
};

// Seconds of one thread by kind of work, and the number of speculative sweeps.
struct Profile {
  double row_products, pixel_products, gather, elementwise, head, sweeps;
};

constexpr int kMaxTeam = 64;
constexpr int kStretch = 1 << (kLevels - 1);  // columns of the image that hold one of the coarsest level

// How a team does the next row of its image.
struct RowPlan {
  int row;        // the image's height: there is none
  bool shared;    // whether all members do the work that is done for whole rows; otherwise the first one alone
  bool guessed;   // whether its pixels are guessed and repaired, or decoded one after the other
  bool finished;  // where there is no next row: whether the image is whole, or the decode was cancelled
};

// Memory of one block of images: a thread's own, or shared by a team that decodes a single image.
struct Workspace {
  void* caches;
  float* residual[2][kLevels];  // [per_row][level]: width x images x padded filters
  int stretches;                // of columns whose early taps are summed before the first of their pixels
  float* partial;               // those sums, by step: columns x images x outputs of its tiles
  float* products[kMaxTeam];    // one panel of a matrix product per member
  Profile* profile;             // null: not measured
  // of one image decoded alone, set by its first member
  float* parameters;  // the head's parameters of a row that is guessed; null for a block of images
  RowPlan plan;       // of the row at hand
  int open;           // its first column that is not final, where it is guessed
};

// Threads that decode one image together: each takes its share of the columns in the work that is done by rows.
struct Team {
  int members;
  void (*wait)(Team* team);  // until all members have called it
  long parted_after = 0;     // the meeting after which its first member went on alone, the last time
};

// Set from outside while a block decodes.
struct Control {
  bool (*cancelled)(void* context);
  void (*row_done)(void* context, int images);
  void* context;
};

// One instruction set's build of the decode loop, for one storage type of the caches.
struct Backend {
  size_t element_size;
  int cell_multiple;  // of the channels that a cell has room for; those behind its own are zeros
  // tile_vectors, tiles and tile_stride of a step whose taps hold `rows` packed rows in all
  void (*plan)(Step& step, size_t rows);
  // one tap's (channels x outputs) fp32 matrix into the step's packed tiles, of zeros so far, at tap.weights
  void (*pack)(const Step& step, const Tap& tap, int channels, const float* matrix, void* packed);
  size_t (*products_size)(const Program& program);  // floats
  // decodes `images` images; false when cancelled
  bool (*decode)(const Program& program, Workspace& workspace, const uint8_t* input, uint8_t* output, int images,
                 const Chooser& chooser, const Control& control);
  // decodes one image in either order, by one thread (team null) or as one member of a team; false when cancelled
  bool (*decode_alone)(const Program& program, Workspace& workspace, const uint8_t* input, uint8_t* output,
                       const Chooser& chooser, Order order, const Control& control, Team* team, int member);
};

namespace {  // see steps.h

inline int padded(int n) { return (n + kLanes - 1) / kLanes * kLanes; }

}  // namespace
}  // namespace pxfast
