// From a program's description to the block of memory that the kernels read: weights in the order in which a warp's
// lanes multiply them, biases, tables, steps.
#include <algorithm>
#include <cstring>

#include "common/bf16.h"
#include "engine.h"

namespace pxfast {
namespace cuda {
namespace {

int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// What stands in a cache, and how: decides the order of its channels.
struct CacheLayout {
  bool concat_elu = false;
  int channels = 0;     // padding included
  uint32_t offset = 0;  // elements per image before it
};

// The description's channel that stands at `place` in a cell, or -1 for padding.
int channel_at(const CacheLayout& cache, int filters, int described, int place) {
  if (!cache.concat_elu) return place < described ? place : -1;
  const int n = place / (2 * kBlock) * kBlock + place % kBlock;
  if (n >= filters) return -1;
  return place / kBlock % 2 == 0 ? n : filters + n;
}

// The matrix's column that output `i` of a unit is, or -1 for padding.
int output_at(Epilogue epilogue, int filters, int outputs, int unit, int i) {
  if (epilogue == Epilogue::kGate) {
    const int n = unit * kBlock + i % kBlock;
    return n >= filters ? -1 : i < kBlock ? n : filters + n;
  }
  const int n = unit * kUnit + i;
  return n < outputs ? n : -1;
}

// What the kernels ask of a program beyond what every engine does.
void check_taps(const ProgramSpec& spec) {
  for (const StepSpec& step : spec.steps) {
    const CacheSpec& first = spec.caches[step.taps[0].cache];
    for (const TapSpec& tap : step.taps) {
      const CacheSpec& cache = spec.caches[tap.cache];
      require(cache.channels == first.channels && cache.level == first.level,
              "the taps of a step read caches of one shape");
    }
  }
}

// How many of a step's first taps are summed for a whole row. In fp32 not those of gates, whose sums are twice as many: an
// image in flight stays below 8 MB.
int early_taps(const StepSpec& step, int element_size) {
  return element_size == 4 && step.epilogue == Epilogue::kGate ? 0 : step.early;
}

class Packer {
 public:
  Packer(const ProgramSpec& spec, Kernel kernel, Program& program, std::vector<uint8_t>& block)
      : spec_(spec), kernel_(kernel), program_(program), block_(block) {}

  void run() {
    check(spec_);
    check_taps(spec_);
    program_.channels = spec_.channels;
    program_.height = spec_.height;
    program_.width = spec_.width;
    program_.padded_filters = round_up(spec_.filters, kBlock);
    program_.head_stride = round_up(spec_.steps.back().outputs, kUnit);
    program_.head = spec_.head;
    program_.mixtures = spec_.mixtures;
    program_.element_size = kernel_ == Kernel::kFp32 ? 4 : 2;
    lay_out_caches();
    std::vector<Step> steps;
    for (const StepSpec& from : spec_.steps)
      steps.push_back(pack_step(from, early_taps(from, program_.element_size), (int)from.taps.size()));
    for (size_t i = 0; i < spec_.steps.size(); ++i) {  // behind the vertical stream
      const StepSpec& from = spec_.steps[i];
      if (early_taps(from, program_.element_size) == 0) continue;
      Step early = pack_step(from, 0, early_taps(from, program_.element_size));
      early.per_row = 1;
      early.biases = 0;
      early.partial = Partial::kLeaves;
      steps[i].partial = Partial::kAdds;
      early.partial_at = steps[i].partial_at = program_.partial_per_image;
      program_.partial_per_image += (uint32_t)(level_size(spec_.width, from.level) * early.units * kUnit);
      steps.push_back(early);
    }
    for (int per_row = 0; per_row < 2; ++per_row)
      for (int level = 0; level < kLevels; ++level) link(steps, per_row, level);
    program_.steps = (int)steps.size();
    program_.step_offset = append(steps.data(), steps.size() * sizeof(Step));
    program_.table_offset = append(spec_.tables.data(), spec_.tables.size() * sizeof(float));
  }

 private:
  const ProgramSpec& spec_;
  const Kernel kernel_;
  Program& program_;
  std::vector<uint8_t>& block_;
  std::vector<CacheLayout> caches_;

  uint64_t append(const void* data, size_t bytes) {
    block_.resize((block_.size() + 255) / 256 * 256);
    const uint64_t at = block_.size();
    const auto* from = static_cast<const uint8_t*>(data);
    if (bytes > 0) block_.insert(block_.end(), from, from + bytes);
    return at;
  }

  void lay_out_caches() {
    caches_.resize(spec_.caches.size());
    for (const StepSpec& step : spec_.steps)
      if (step.concat_elu >= 0) caches_[step.concat_elu].concat_elu = true;
    uint64_t offset = 0;
    for (size_t i = 0; i < caches_.size(); ++i) {
      const auto& from = spec_.caches[i];
      caches_[i].channels =
          caches_[i].concat_elu ? 2 * program_.padded_filters : round_up(from.channels, kInner);
      caches_[i].offset = (uint32_t)offset;
      offset += (uint64_t)from.slots * columns(from.level) * caches_[i].channels;
      require(offset < (1u << 31), "size of the caches");
    }
    program_.elements_per_image = (uint32_t)offset;
    program_.input_cache = caches_[spec_.input_cache].offset;
    program_.input_slots = spec_.caches[spec_.input_cache].slots;
    require(caches_[spec_.input_cache].channels == kInner, "input cache's channels");
  }

  int columns(int level) const { return (spec_.width >> level) + 2; }

  Target target(int cache) const {
    if (cache < 0) return {0, 0};
    return {caches_[cache].offset, spec_.caches[cache].slots};
  }

  // Of the taps [first, last).
  Step pack_step(const StepSpec& from, int first, int last) {
    Step step{};
    const CacheLayout& source = caches_[from.taps[0].cache];
    step.level = from.level;
    step.per_row = from.per_row;
    step.epilogue = from.epilogue;
    step.scale = from.scale;
    step.units = from.epilogue == Epilogue::kGate ? program_.padded_filters / kBlock : round_up(from.outputs, kUnit) / kUnit;
    step.taps = last - first;
    step.tap_inner = source.channels / kInner;
    step.total_inner = step.taps * step.tap_inner;
    step.channels = source.channels;
    step.in_columns = columns(spec_.caches[from.taps[0].cache].level);
    step.multiplier = from.multiplier;
    step.biases = (int)from.biases.size();
    step.concat_elu = target(from.concat_elu);
    step.raw = target(from.raw);
    step.elu = target(from.elu);
    for (int t = 0; t < step.taps; ++t) {
      const TapSpec& tap = from.taps[first + t];
      step.tap[t] = {caches_[tap.cache].offset,
                     (int16_t)spec_.caches[tap.cache].slots,
                     (int16_t)tap.row,
                     (int16_t)tap.column,
                     (int8_t)tap.row_parity,
                     (int8_t)tap.column_parity,
                     (uint32_t)(t * step.tap_inner)};
    }
    for (int b = 0; b < step.biases; ++b) {
      std::vector<float> values(step.units * kUnit);
      for (int n = 0; n < (int)values.size(); ++n) {
        const int output = output_at(from.epilogue, spec_.filters, from.outputs, n / kUnit, n % kUnit);
        if (output >= 0) values[n] = from.biases[b].values[output];
      }
      step.bias[b] = append(values.data(), values.size() * sizeof(float));
      step.bias_row[b] = from.biases[b].min_row;
      step.bias_column[b] = from.biases[b].min_column;
    }
    step.weights = pack_weights(from, first, step);
    return step;
  }

  // 16 channels x 16 outputs as they are read: by a warp, lane by lane, or by a warpgroup, in core matrices of 8 outputs x
  // 8 channels. For warps unit by unit, and in each the steps of the inner dimension; for warpgroups, whose copies take
  // neighbouring units, step by step and in each the units.
  uint64_t pack_weights(const StepSpec& from, int first, const Step& step) {
    const size_t element = program_.element_size;
    std::vector<uint8_t> packed((size_t)step.units * step.total_inner * kInner * kUnit * element);
    for (int unit = 0; unit < step.units; ++unit) {
      for (int t = 0; t < step.taps; ++t) {
        const TapSpec& tap = from.taps[first + t];
        const int described = spec_.caches[tap.cache].channels;
        const auto value = [&](int place, int i) {
          const int channel = channel_at(caches_[tap.cache], spec_.filters, described, place);
          const int output = output_at(from.epilogue, spec_.filters, from.outputs, unit, i);
          return channel < 0 || output < 0 ? 0.0f : tap.matrix[(size_t)channel * from.outputs + output];
        };
        for (int inner = 0; inner < step.tap_inner; ++inner) {
          const size_t step_of_inner = (size_t)t * step.tap_inner + inner;
          const size_t piece = kernel_ == Kernel::kBf16Groups ? step_of_inner * step.units + unit
                                                              : unit * (size_t)step.total_inner + step_of_inner;
          size_t at = piece * kInner * kUnit * element;
          for (int i = 0; i < kInner * kUnit; ++i, at += element) {
            if (kernel_ == Kernel::kBf16Groups) {
              const int half = i / 128, channels = i / 64 % 2, output = i / 8 % 8, k = i % 8;
              const uint16_t bits = bf16_bits(value(inner * kInner + channels * 8 + k, half * kBlock + output));
              std::memcpy(&packed[at], &bits, 2);
            } else if (kernel_ != Kernel::kFp32) {  // a lane's 8 values: 4 channels of output g, and of output 8 + g
              const int lane = i / 8, half = i / 4 % 2, k = i % 4;
              const uint16_t bits = bf16_bits(value(inner * kInner + lane % 4 * 4 + k, half * kBlock + lane / 4));
              std::memcpy(&packed[at], &bits, 2);
            } else {  // 4 channels of every output, for lanes that have two neighbouring outputs
              const int quarter = i / 64, half = i / 32 % 2, output = i / 4 % 8, k = i % 4;
              const float x = value(inner * kInner + quarter * 4 + k, half * kBlock + output);
              std::memcpy(&packed[at], &x, 4);
            }
          }
        }
      }
    }
    return append(packed.data(), packed.size());
  }

  // The order in which a stream's steps run where a level is the coarsest that has work.
  void link(std::vector<Step>& steps, int per_row, int level) {
    int next = -1;
    for (int i = (int)steps.size() - 1; i >= 0; --i) {
      if (steps[i].per_row != per_row) continue;
      steps[i].next[level] = next;
      if (steps[i].level <= level) next = i;
    }
    require(next >= 0, "a stream without steps");
    program_.first[per_row][level] = next;
  }
};

}  // namespace

Engine::Engine(const ProgramSpec& spec, Kernel kernel) : kernel_(kernel) {
  Packer(spec, kernel, program_, block_).run();
  const double element = program_.element_size;
  for (const StepSpec& step : spec.steps) {
    const double columns = spec.width >> step.level, rows = spec.height >> step.level;
    const double positions = rows * columns;
    const int early = early_taps(step, program_.element_size);
    if (step.per_row || early > 0) row_.steps += rows;
    if (!step.per_row) pixel_.steps += positions, sweep_steps_ += rows;
    for (size_t t = 0; t < step.taps.size(); ++t) {
      const TapSpec& tap = step.taps[t];
      const bool per_row = step.per_row || (int)t < early;
      Costs& costs = per_row ? row_ : pixel_;
      const double share = (tap.row_parity >= 0 ? 0.5 : 1.0) * (tap.column_parity >= 0 ? 0.5 : 1.0);
      const double weight_bytes = element * tap.matrix.size() * share * (per_row ? rows : positions);
      costs.weight_bytes += weight_bytes;
      if (per_row) row_weights_[step.level] += weight_bytes;
      costs.cell_bytes += element * tap.matrix.size() / step.outputs * share * positions;
    }
  }
}

}  // namespace cuda
}  // namespace pxfast
