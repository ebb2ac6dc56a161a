#include "program.h"

#include <stdexcept>
#include <string>

#include "head.h"

namespace pxfast {
namespace {

// A step's outputs: those that its epilogue takes, or the parameters of the head.
int outputs_of(const ProgramSpec& spec, Epilogue epilogue) {
  if (epilogue == Epilogue::kGate) return 2 * spec.filters;
  if (epilogue != Epilogue::kOutput) return spec.filters;
  if (spec.head == HeadKind::kSoftmax) return kValues * spec.channels;
  return (spec.channels == 3 ? 10 : 3) * spec.mixtures;
}

// The level of the caches that a step reads.
int level_read(const StepSpec& step) {
  return step.level + (step.scale == Scale::kUp ? 1 : step.scale == Scale::kDown ? -1 : 0);
}

// A row of a cache has one column of zeros on either side, and as many rows are kept as the cache has slots.
void check_tap(const ProgramSpec& spec, const StepSpec& step, const TapSpec& tap) {
  require(tap.cache >= 0 && tap.cache < (int)spec.caches.size(), "tap's cache");
  const CacheSpec& cache = spec.caches[tap.cache];
  require(cache.level == level_read(step), "tap's level");
  require(tap.row <= 0 && tap.row > -cache.slots, "tap's row");
  require(tap.column >= -1 && tap.column <= 1, "tap's column");
  require(tap.matrix.size() == (size_t)cache.channels * step.outputs, "tap's matrix");
}

void check_written(const ProgramSpec& spec, const StepSpec& step, int cache, int channels) {
  require(cache >= -1 && cache < (int)spec.caches.size(), "written cache");
  require(cache < 0 || (spec.caches[cache].level == step.level && spec.caches[cache].channels == channels),
          "written cache's shape");
}

// Whether an enumeration's value, which came as a plain number, is one of those from 0 to the last.
template <typename Kind>
bool known(Kind value, Kind last) {
  return static_cast<int>(value) >= 0 && value <= last;
}

}  // namespace

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("bad program: ") + what);
}

void check(const ProgramSpec& spec) {
  require(spec.channels == 1 || spec.channels == 3, "channels");
  require(spec.height > 0 && spec.width > 0 && spec.height % 4 == 0 && spec.width % 4 == 0, "image size");
  require(spec.filters > 0, "filters");
  require(known(spec.head, HeadKind::kPixelCnnPlusPlus), "kind of head");
  require(spec.head == HeadKind::kSoftmax || (spec.mixtures > 0 && spec.mixtures <= kMaxMixtures),
          "a mixture head takes 1 to 128 mixtures");
  const int pairs = spec.head == HeadKind::kSoftmax && spec.channels == 3 ? 3 : 0;
  require(spec.tables.size() == (size_t)pairs * kValues * kValues, "tables");
  const int caches = (int)spec.caches.size();
  for (const CacheSpec& cache : spec.caches)
    require(cache.level >= 0 && cache.level < kLevels && cache.channels > 0 && cache.channels % 2 == 0 &&
                cache.slots > 0,
            "cache");
  require(spec.input_cache >= 0 && spec.input_cache < caches, "input cache");
  require(spec.caches[spec.input_cache].level == 0 && spec.caches[spec.input_cache].channels == spec.channels + 1,
          "input cache's shape");
  require(!spec.steps.empty(), "the last step is the output");
  for (const StepSpec& step : spec.steps) {
    require(known(step.epilogue, Epilogue::kOutput) && known(step.scale, Scale::kUp), "kind of step");
    const bool last = &step == &spec.steps.back();
    require((step.epilogue == Epilogue::kOutput) == last && (!last || (!step.per_row && step.level == 0)),
            "the last step is the output");
    require(step.level >= 0 && step.level < kLevels, "level");
    require(step.outputs == outputs_of(spec, step.epilogue), "outputs");
    require(!step.taps.empty() && (int)step.taps.size() <= kMaxTaps, "taps");
    require(step.early >= 0 && step.early <= (step.per_row ? 0 : (int)step.taps.size()), "early taps");
    require(!step.biases.empty() && (int)step.biases.size() <= kMaxBiases, "biases");
    for (const BiasSpec& bias : step.biases) {
      require((int)bias.values.size() == step.outputs, "bias size");
      require(!step.per_row || bias.min_column <= 0, "a row step's bias that not all columns have");
    }
    for (const TapSpec& tap : step.taps) check_tap(spec, step, tap);
    check_written(spec, step, step.concat_elu, 2 * spec.filters);
    for (const int cache : {step.raw, step.elu}) check_written(spec, step, cache, spec.filters + spec.filters % 2);
  }
}

}  // namespace pxfast
