// Packing: from a program's description to plain data and weights in the layout of an instruction set's kernels.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "engine_state.h"

namespace pxfast {

#define PXFAST_DECLARE(isa)                \
  extern const Backend kBackendFp32_##isa; \
  extern const Backend kBackendBf16_##isa;

PXFAST_DECLARE(portable)
PXFAST_DECLARE(avx2)
PXFAST_DECLARE(avx512)
PXFAST_DECLARE(avx512bf16)
PXFAST_DECLARE(avx512amx)
PXFAST_DECLARE(neon)
PXFAST_DECLARE(neonbf16)

namespace {

struct Isa {
  const char* name;
  bool usable;
  const Backend* fp32;
  const Backend* bf16;
};

#if defined(PXFAST_HAS_NEONBF16)
bool has_arm_bf16() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP2) & (1ul << 14)) != 0;  // HWCAP2_BF16, which older headers do not have
#elif defined(__APPLE__)
  int found = 0;
  size_t bytes = sizeof found;
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &found, &bytes, nullptr, 0) == 0 && found != 0;
#else
  return false;
#endif
}
#endif

#if defined(PXFAST_HAS_AVX512AMX)
// AMX with bf16, and the system's leave to use it: it keeps 8 KB more of each thread then.
bool has_amx() {
#if defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & (1u << 22)) || !(d & (1u << 24))) return false;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA of newer headers
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// setup.py defines PXFAST_HAS_... for each instruction set that this build holds.
#define PXFAST_ISA(name, usable) found.push_back({#name, usable, &kBackendFp32_##name, &kBackendBf16_##name})

const std::vector<Isa>& isas() {
  static const std::vector<Isa> table = [] {
    std::vector<Isa> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    [[maybe_unused]] const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    [[maybe_unused]] const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                                         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                                         __builtin_cpu_supports("avx512vl");
#endif
#if defined(PXFAST_HAS_AVX512AMX)
    PXFAST_ISA(avx512amx, avx512 && __builtin_cpu_supports("avx512bf16") && has_amx());
#endif
#if defined(PXFAST_HAS_AVX512BF16)
    PXFAST_ISA(avx512bf16, avx512 && __builtin_cpu_supports("avx512bf16"));
#endif
#if defined(PXFAST_HAS_AVX512)
    PXFAST_ISA(avx512, avx512);
#endif
#if defined(PXFAST_HAS_AVX2)
    PXFAST_ISA(avx2, avx2);
#endif
#if defined(PXFAST_HAS_NEONBF16)
    PXFAST_ISA(neonbf16, has_arm_bf16());
#endif
#if defined(PXFAST_HAS_NEON)
    PXFAST_ISA(neon, true);  // every aarch64 processor has it
#endif
    PXFAST_ISA(portable, true);
    return found;
  }();
  return table;
}

const Isa& find_isa(const std::string& name) {
  std::string known;
  for (const Isa& isa : isas()) {
    if (!isa.usable) continue;
    if (name.empty() || name == isa.name) return isa;
    known += known.empty() ? isa.name : std::string(", ") + isa.name;
  }
  throw std::invalid_argument("unknown or unusable instruction set '" + name + "'; usable here: " + known);
}

// Of a step's weights, which begin and end at the borders of cache lines.
size_t packed_bytes(const Step& step, const Backend& backend) {
  return (step.tile_stride * step.tiles * backend.element_size + 63) / 64 * 64;
}

}  // namespace

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas())
    if (isa.usable) names.emplace_back(isa.name);
  return names;
}

bool prefers_bf16(const std::string& isa) {
#if defined(__x86_64__)
  // AMD's cores make as many vdpbf16ps as fused multiply-adds, Intel's fewer than half as many (measured: docs/cpu.md).
  return isa == "avx512amx" || (isa == "avx512bf16" && !__builtin_cpu_is("intel"));
#else
  (void)isa;  // how fast bfdot is on any machine was never measured
  return false;
#endif
}

Engine::Engine(const ProgramSpec& spec, const std::string& isa, bool bf16) : state_(new State) {
  check(spec);
  State& s = *state_;
  const Isa& chosen = find_isa(isa);
  s.isa = chosen.name;
  s.backend = bf16 ? chosen.bf16 : chosen.fp32;

  size_t offset = 0;
  const auto with_room = [&](int channels) {
    const int multiple = s.backend->cell_multiple;
    return (channels + multiple - 1) / multiple * multiple;
  };
  for (const auto& cache : spec.caches) {
    const int channels = with_room(cache.channels);
    s.caches.push_back({cache.level, channels, cache.slots, offset});
    offset += (size_t)cache.slots * (level_size(spec.width, cache.level) + 2) * channels;
  }
  for (int level = 0; level < kLevels; ++level)
    s.residual_floats[level] = (size_t)level_size(spec.width, level) * padded(spec.filters);

  for (const StepSpec& from : spec.steps) {
    Step step{};
    step.level = from.level;
    step.per_row = from.per_row;
    step.scale = from.scale;
    step.epilogue = from.epilogue;
    step.outputs = from.outputs;
    step.multiplier = from.multiplier;
    step.concat_elu = from.concat_elu;
    step.raw = from.raw;
    step.elu = from.elu;
    step.early = from.early;
    size_t rows = 0;
    for (const TapSpec& tap : from.taps) {
      step.tap[step.taps++] = {tap.cache, tap.row, tap.column, tap.row_parity, tap.column_parity, rows};
      rows += s.caches[tap.cache].channels;
    }
    for (const auto& bias : from.biases) {
      s.biases.emplace_back(bias.values);
      s.biases.back().resize(padded(from.outputs) + kLanes);
      step.bias[step.biases++] = {s.biases.back().data(), bias.min_row, bias.min_column};
    }
    s.backend->plan(step, rows);
    s.weight_bytes += packed_bytes(step, *s.backend);
    s.steps.push_back(step);
  }
  // one behind the other in the order of use, so that all are in few and large pages
  s.packed = Buffer(s.weight_bytes);
  char* packed = s.packed.as<char>();
  for (size_t i = 0; i < s.steps.size(); ++i) {
    Step& step = s.steps[i];
    step.packed = packed;
    for (int t = 0; t < step.taps; ++t) {
      const Tap& tap = step.tap[t];
      s.backend->pack(step, tap, spec.caches[tap.cache].channels, spec.steps[i].taps[t].matrix.data(), packed);
    }
    packed += packed_bytes(step, *s.backend);
  }
  size_t partial = 0, early_bytes = 0;
  for (Step& step : s.steps) {
    if (step.early == 0) continue;
    const size_t width = (size_t)step.tiles * step.tile_vectors * kLanes;
    step.partial = partial;
    partial += level_size(kStretch, step.level) * width;
    for (int t = 0; t < step.early; ++t)
      early_bytes += s.caches[step.tap[t].cache].channels * width * s.backend->element_size;
  }

  s.tables = spec.tables;
  s.program = {spec.channels,      spec.height,     spec.width,          spec.filters,
               spec.head,          spec.mixtures,   s.tables.data(),     spec.input_cache,
               (int)s.caches.size(), (int)s.steps.size(), s.caches.data(), s.steps.data(), offset,
               partial,            early_bytes};
}

Engine::~Engine() = default;

const std::string& Engine::isa() const { return state_->isa; }
size_t Engine::weight_bytes() const { return state_->weight_bytes; }

int whole_row(const Program& program) { return program.width / kStretch; }

int stretches(const Program& program, int64_t images) {
  if (program.early_bytes == 0) return 1;
  const double sums = (double)(program.partial_per_stretch * sizeof(float) * images);
  const double wanted = std::min(std::round(2.0 * program.early_bytes / sums), kMostSums / sums);
  return std::clamp((int)wanted, 1, whole_row(program));
}

size_t Engine::State::bytes_per_image(int64_t images) const {
  size_t floats = program.partial_per_stretch * stretches(program, images);
  for (const size_t count : residual_floats) floats += 2 * count;
  return program.elements_per_image * backend->element_size + floats * sizeof(float);
}

int64_t Engine::State::block() const {
  int64_t images = kBlock;
  while (images > 1 && (double)bytes_per_image(images) * images > kMostBytes) --images;
  return images;
}

int64_t Engine::block() const { return state_->block(); }
size_t Engine::bytes_per_image() const { return state_->bytes_per_image(block()); }

}  // namespace pxfast
