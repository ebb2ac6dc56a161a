// What the host side asks of the CUDA runtime; decode.cu has it, and the tests have a twin without a GPU.
//
// Errors are std::bad_alloc where memory is short, std::runtime_error naming the call otherwise.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

#include "program.h"

namespace pxfast {
namespace cuda {

constexpr int kCluster = 4;  // blocks of a team that is a cluster

struct Device {
  std::string name;
  int major, minor;       // compute capability
  int multiprocessors;
  size_t shared_bytes;    // that one block may have
  int clusters;           // of kCluster blocks with all of that memory that run at once; 0: the GPU has none
  bool groups;            // Kernel::kBf16Groups runs there
};

// Why the kernels can't run on a device, as a sentence; nothing when they can.
std::optional<std::string> device_problem(int device);
Device describe_device(int device);
void select_device(int device);

// Asynchronous, in order of the stream.
void clear_memory(void* memory, size_t bytes, void* stream);
void launch_rows(const Launch& launch, Kernel kernel, size_t shared_bytes, void* stream);

// A mark in a stream, and waiting until the device has reached it.
class Mark {
 public:
  Mark();
  ~Mark();
  Mark(const Mark&) = delete;
  Mark& operator=(const Mark&) = delete;
  void set(void* stream);
  void wait();

 private:
  void* event_ = nullptr;
};

size_t shared_state_bytes();  // what a block holds beside the ring of stages

}  // namespace cuda
}  // namespace pxfast
