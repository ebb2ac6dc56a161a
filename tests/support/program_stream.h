// What tests/support/program_stream.py writes to a test's program, read from stdin: little-endian 64-bit integers and
// doubles, arrays after their length. An input that ends too early exits with 2.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "common/head.h"
#include "common/program.h"

namespace {

template <class T>
std::vector<T> read_values(size_t count) {
  std::vector<T> values(count);
  if (count > 0 && std::fread(values.data(), sizeof(T), count, stdin) != count) {
    std::fprintf(stderr, "the input ends too early\n");
    std::exit(2);
  }
  return values;
}
int64_t read_int() { return read_values<int64_t>(1)[0]; }
double read_real() { return read_values<double>(1)[0]; }
std::vector<float> read_floats() {
  const int64_t count = read_int();
  return read_values<float>((size_t)count);
}

pxfast::ProgramSpec read_program() {
  pxfast::ProgramSpec spec;
  spec.channels = (int)read_int();
  spec.height = (int)read_int();
  spec.width = (int)read_int();
  spec.filters = (int)read_int();
  spec.head = static_cast<pxfast::HeadKind>(read_int());
  spec.mixtures = (int)read_int();
  spec.tables = read_floats();
  spec.input_cache = (int)read_int();
  spec.caches.resize((size_t)read_int());
  for (auto& cache : spec.caches) cache.level = (int)read_int(), cache.channels = (int)read_int(), cache.slots = (int)read_int();
  spec.steps.resize((size_t)read_int());
  for (auto& step : spec.steps) {
    step.level = (int)read_int();
    step.per_row = read_int() != 0;
    step.scale = static_cast<pxfast::Scale>(read_int());
    step.epilogue = static_cast<pxfast::Epilogue>(read_int());
    step.outputs = (int)read_int();
    step.multiplier = (float)read_real();
    step.concat_elu = (int)read_int();
    step.raw = (int)read_int();
    step.elu = (int)read_int();
    step.early = (int)read_int();
    step.taps.resize((size_t)read_int());
    for (auto& tap : step.taps) {
      tap.cache = (int)read_int(), tap.row = (int)read_int(), tap.column = (int)read_int();
      tap.row_parity = (int)read_int(), tap.column_parity = (int)read_int();
      tap.matrix = read_floats();
    }
    step.biases.resize((size_t)read_int());
    for (auto& bias : step.biases) {
      bias.values = read_floats();
      bias.min_row = (int)read_int(), bias.min_column = (int)read_int();
    }
  }
  return spec;
}

// The chooser and its images; `lower` and `upper` hold what the chooser points to.
struct ChooserAndImages {
  pxfast::Chooser chooser{};
  int64_t images;
  std::vector<uint8_t> input, lower, upper;

  explicit ChooserAndImages(const pxfast::ProgramSpec& spec) {
    chooser.samples = read_int() != 0;
    chooser.keep_probability = (float)read_real();
    chooser.seed = (uint64_t)read_int();
    chooser.first = (uint64_t)read_int();
    chooser.inverse_temperature = (float)read_real();
    images = read_int();
    const size_t bytes = (size_t)images * spec.channels * spec.height * spec.width;
    input = read_values<uint8_t>(bytes);
    lower = read_values<uint8_t>(bytes);
    upper = read_values<uint8_t>(bytes);
    chooser.lower = lower.data();
    chooser.upper = upper.data();
  }
};

}  // namespace
