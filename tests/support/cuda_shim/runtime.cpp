// csrc/cuda/runtime.h without a GPU: the kernels' own source, compiled for the host and run by fibers.
#include "runtime.h"

#include "decode.cuh"

namespace pxfast {
namespace cuda {

unsigned shim_seed = 0;          // 0: threads run in order
int shim_multiprocessors = 4;
size_t shim_shared_bytes = 227 * 1024;
void shim_eager_copies(bool eager) { shim::grid().eager_copies = eager; }

std::optional<std::string> device_problem(int) { return std::nullopt; }
Device describe_device(int) {
  return {"shim", 9, 0, shim_multiprocessors, shim_shared_bytes, shim_multiprocessors / kCluster, true};
}
void select_device(int) {}
void clear_memory(void* memory, size_t bytes, void*) { std::memset(memory, 0, bytes); }

template <class Element, bool kGroups>
static void run_rows(void* launch) {
  Decoder<Element, kGroups>(*static_cast<const Launch*>(launch)).run();
}

void launch_rows(const Launch& launch, Kernel kernel, size_t shared_bytes, void*) {
  const int blocks = launch.teams * launch.members;
  auto& grid = shim::grid();
  fibers::forget_stores();
  grid.block.resize(blocks);
  const int threads = kernel == Kernel::kBf16Groups ? kThreads + kFeedingThreads : kThreads;
  for (auto& block : grid.block) block.start(shared_bytes, threads);
  grid.cluster_blocks = launch.cluster;
  grid.cluster.resize(blocks / launch.cluster);
  for (auto& barrier : grid.cluster) barrier.reset(launch.cluster * threads);
  const Launch copy = launch;
  const auto body = kernel == Kernel::kFp32   ? &run_rows<float, false>
                    : kernel == Kernel::kBf16 ? &run_rows<Bf16, false>
                                              : &run_rows<Bf16, true>;
  fibers::run(blocks, threads, shim_seed, body, const_cast<Launch*>(&copy));
}

Mark::Mark() = default;
Mark::~Mark() = default;
void Mark::set(void*) {}
void Mark::wait() {}

size_t shared_state_bytes() { return sizeof(SharedState); }

}  // namespace cuda
}  // namespace pxfast
