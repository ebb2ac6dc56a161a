// The kernels and the CUDA runtime behind runtime.h.
#include <new>
#include <stdexcept>

#include "decode.cuh"
#include "runtime.h"

namespace pxfast {
namespace cuda {
namespace {

template <class Element>
__global__ void __launch_bounds__(kThreads, 1) decode_rows(const __grid_constant__ Launch launch) {
  Decoder<Element, false>(launch).run();
}

// Empty where the architecture has no warpgroups; `groups_compiled` says whether this device's code has them.
__global__ void __launch_bounds__(kThreads + kFeedingThreads, 1)
    decode_rows_by_groups(const __grid_constant__ Launch launch) {
#if PXFAST_GROUPS
  Decoder<Bf16, true>(launch).run();
#else
  (void)launch;
  __trap();
#endif
}
__device__ int groups_compiled = PXFAST_GROUPS;

const void* code_of(Kernel kernel) {
  switch (kernel) {
    case Kernel::kFp32:
      return reinterpret_cast<const void*>(&decode_rows<float>);
    case Kernel::kBf16:
      return reinterpret_cast<const void*>(&decode_rows<Bf16>);
    default:
      return reinterpret_cast<const void*>(&decode_rows_by_groups);
  }
}

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // the next call starts without it
  if (status == cudaErrorMemoryAllocation) throw std::bad_alloc();
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
}

// The grid's shape with its clusters; `attribute` must outlive the result.
cudaLaunchConfig_t clustered(int blocks, int threads, int cluster, size_t shared_bytes, cudaStream_t stream,
                             cudaLaunchAttribute& attribute) {
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return config;
}

int count_clusters(const cudaDeviceProp& properties) {
  if (properties.major != 9) return 0;
  const void* kernel = code_of(Kernel::kBf16);
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  if (attributes.ptxVersion < 90) return 0;  // compiled at start, from code for older GPUs
  check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)properties.sharedMemPerBlockOptin),
      "cudaFuncSetAttribute");
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = clustered(properties.multiProcessorCount / kCluster * kCluster, kThreads, kCluster,
                                              properties.sharedMemPerBlockOptin, nullptr, attribute);
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config), "cudaOccupancyMaxActiveClusters");
  return clusters;
}

bool has_groups() {
  int compiled = 0;
  check(cudaMemcpyFromSymbol(&compiled, groups_compiled, sizeof compiled), "cudaMemcpyFromSymbol");
  return compiled != 0;
}

}  // namespace

std::optional<std::string> device_problem(int device) {
  const auto problem = [](cudaError_t status) {
    cudaGetLastError();  // the next call starts without it
    return std::string(cudaGetErrorString(status));
  };
  int count = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) return "the CUDA driver does not answer: " + problem(status);
  if (device < 0 || device >= count) return "there is no CUDA device " + std::to_string(device);
  cudaDeviceProp properties;
  status = cudaGetDeviceProperties(&properties, device);
  if (status != cudaSuccess) return "the CUDA driver does not answer: " + problem(status);
  const std::string name = std::string(properties.name) + " (compute capability " + std::to_string(properties.major) +
                           "." + std::to_string(properties.minor) + ")";
  if (properties.major < 8) return "it needs compute capability 8.0 or newer, and this is " + name;
  int before = 0;
  cudaGetDevice(&before);
  cudaFuncAttributes attributes;
  cudaSetDevice(device);
  status = cudaFuncGetAttributes(&attributes, code_of(Kernel::kBf16));
  const std::string reason = status == cudaSuccess ? "" : problem(status);
  cudaSetDevice(before);
  if (status != cudaSuccess) return "its kernels were not built for " + name + ": " + reason;
  return std::nullopt;
}

Device describe_device(int device) {
  select_device(device);
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return {properties.name,
          properties.major,
          properties.minor,
          properties.multiProcessorCount,
          properties.sharedMemPerBlockOptin,
          count_clusters(properties),
          has_groups()};
}

void select_device(int device) { check(cudaSetDevice(device), "cudaSetDevice"); }

void clear_memory(void* memory, size_t bytes, void* stream) {
  check(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)), "cudaMemsetAsync");
}

void launch_rows(const Launch& launch, Kernel which, size_t shared_bytes, void* stream) {
  const void* kernel = code_of(which);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes),
        "cudaFuncSetAttribute");
  const int threads = which == Kernel::kBf16Groups ? kThreads + kFeedingThreads : kThreads;
  void* arguments[] = {const_cast<Launch*>(&launch)};
  if (launch.cluster > 1) {
    cudaLaunchAttribute attribute;
    const cudaLaunchConfig_t config = clustered(launch.teams * launch.members, threads, launch.cluster, shared_bytes,
                                                static_cast<cudaStream_t>(stream), attribute);
    check(cudaLaunchKernelExC(&config, kernel, arguments), "cudaLaunchKernelExC");
    return;
  }
  // cooperative, so that all blocks run at once: those of a team wait for each other
  check(cudaLaunchCooperativeKernel(kernel, dim3(launch.teams * launch.members), dim3(threads), arguments, shared_bytes,
                                    static_cast<cudaStream_t>(stream)),
        "cudaLaunchCooperativeKernel");
}

Mark::Mark() {
  cudaEvent_t event;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync), "cudaEventCreateWithFlags");
  event_ = event;
}
Mark::~Mark() { cudaEventDestroy(static_cast<cudaEvent_t>(event_)); }
void Mark::set(void* stream) {
  check(cudaEventRecord(static_cast<cudaEvent_t>(event_), static_cast<cudaStream_t>(stream)), "cudaEventRecord");
}
void Mark::wait() { check(cudaEventSynchronize(static_cast<cudaEvent_t>(event_)), "cudaEventSynchronize"); }

size_t shared_state_bytes() { return sizeof(SharedState); }

}  // namespace cuda
}  // namespace pxfast
