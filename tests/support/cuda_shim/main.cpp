// Decodes a batch with the CUDA engine's own sources on the host. stdin: numbers as tests/support/cuda_shim/__init__.py writes
// them; stdout: the decoded images. Exits with 1 and a message when the engine throws.
#include <cstdio>
#include <cstdlib>
#include <algorithm>
#include <exception>
#include <stdexcept>

#include "engine.h"

namespace pxfast {
namespace cuda {
extern unsigned shim_seed;
extern int shim_multiprocessors;
extern size_t shim_shared_bytes;
void shim_eager_copies(bool eager);
}  // namespace cuda
}  // namespace pxfast

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

// Aligned as cudaMalloc aligns, and no larger than asked for, so that the address sanitizer sees every step beside it.
struct DeviceMemory {
  unsigned char* data;
  explicit DeviceMemory(size_t bytes) : data(static_cast<unsigned char*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256))) {}
  ~DeviceMemory() { std::free(data); }
};

void run() {
  const pxfast::ProgramSpec spec = read_program();
  const auto kernel = static_cast<pxfast::cuda::Kernel>(read_int());
  const auto order = static_cast<pxfast::Order>(read_int());
  const int members = (int)read_int();
  const bool clusters = read_int() != 0;
  pxfast::cuda::shim_seed = (unsigned)read_int();
  pxfast::cuda::shim_eager_copies(read_int() != 0);
  pxfast::cuda::shim_multiprocessors = (int)read_int();
  pxfast::cuda::shim_shared_bytes = (size_t)read_int();
  const bool samples = read_int() != 0;
  pxfast::Chooser chooser{};
  chooser.keep_probability = (float)read_real();
  chooser.seed = (uint64_t)read_int();
  chooser.first = (uint64_t)read_int();
  chooser.inverse_temperature = (float)read_real();
  const int64_t images = read_int();
  const auto eps = read_values<uint8_t>((size_t)images);
  if (!samples) chooser.eps = eps.data();
  const auto input = read_values<uint8_t>((size_t)images * spec.channels * spec.height * spec.width);
  std::vector<uint8_t> output(input.size());

  const pxfast::cuda::Engine engine(spec, kernel);
  const auto plan = engine.plan(images, pxfast::cuda::describe_device(0), order, members, clusters);
  DeviceMemory block(engine.block().size()), workspace(engine.workspace_bytes(plan));
  std::copy(engine.block().begin(), engine.block().end(), block.data);
  int64_t finished = -1;
  engine.decode(plan, block.data, workspace.data, input.data(), output.data(), images, chooser, nullptr,
                [&](int64_t done) { finished = done; });
  if (finished != images) throw std::runtime_error("the last report is not of all images");
  std::fprintf(stderr, "teams %d members %d capacity %d cluster %d speculative %d stages %d pieces %d\n", plan.teams, plan.members,
               plan.capacity, plan.cluster, plan.speculative, plan.stages, plan.pixel_pieces);
  std::fwrite(output.data(), 1, output.size(), stdout);
}

}  // namespace

int main() {
  try {
    run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
