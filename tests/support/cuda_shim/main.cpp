// Decodes a batch with the CUDA engine's own sources on the host. stdin: numbers as tests/support/cuda_shim/__init__.py
// writes them; stdout: the decoded images. Exits with 1 and a message when the engine throws.
#include <algorithm>
#include <exception>
#include <stdexcept>

#include "../program_stream.h"
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
  const ChooserAndImages given(spec);
  const int64_t images = given.images;
  std::vector<uint8_t> output(given.input.size());

  const pxfast::cuda::Engine engine(spec, kernel);
  const auto plan = engine.plan(images, pxfast::cuda::describe_device(0), order, members, clusters);
  DeviceMemory block(engine.block().size()), workspace(engine.workspace_bytes(plan));
  std::copy(engine.block().begin(), engine.block().end(), block.data);
  int64_t finished = -1;
  engine.decode(plan, block.data, workspace.data, given.input.data(), output.data(), images, given.chooser, nullptr,
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
