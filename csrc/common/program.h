// A program as Python describes it, for either engine to pack: the network as steps over caches. The host's side alone;
// what the instruction sets' builds and the kernels see of it is in steps.h and head.h.
#pragma once

#include <vector>

#include "steps.h"

namespace pxfast {

// One tap of a convolution: a cell of a cache times a matrix. row and column are relative to the (scaled) output
// position; only outputs of row_parity and column_parity have it, -1: all (transposed convolutions).
struct TapSpec {
  int cache, row, column, row_parity, column_parity;
  std::vector<float> matrix;  // channels of the cache x outputs
};

struct BiasSpec {
  std::vector<float> values;
  int min_row, min_column;  // it is added from here on: shifted input streams see zeros before
};

struct StepSpec {
  int level;
  bool per_row;
  Scale scale;
  Epilogue epilogue;
  int outputs;
  float multiplier;
  int concat_elu, raw, elu;  // caches that it writes; -1: none
  int early;  // of a pixel step: how many of its first taps read what is known once the row's vertical stream is done
  std::vector<TapSpec> taps;
  std::vector<BiasSpec> biases;
};

struct CacheSpec {
  int level, channels, slots;  // slots: rows kept
};

struct ProgramSpec {
  int channels, height, width, filters;
  HeadKind head;
  int mixtures;
  std::vector<float> tables;  // softmax head: (pairs, 256, 256), pairs R->G, R->B, G->B
  int input_cache;
  std::vector<CacheSpec> caches;
  std::vector<StepSpec> steps;
};

// Throws std::invalid_argument for a program that an engine could not run without leaving its memory.
void check(const ProgramSpec& spec);

// Throws std::invalid_argument, naming what is wrong with a program, unless the condition holds.
void require(bool condition, const char* what);

}  // namespace pxfast
