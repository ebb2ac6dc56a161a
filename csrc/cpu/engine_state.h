// What an Engine holds, and the memory it is held in. Only engine.cpp and parallel.cpp include this.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <string>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "engine.h"

namespace pxfast {

// Memory that the system does not give, and how much was asked for.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(size_t bytes)
      : text_("the CPU engine asked for " + std::to_string(bytes / 1000000 + 1) + " MB, which the system does not give") {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

// Zero-initialised memory on cache-line (and where large, huge-page) boundaries.
class Buffer {
 public:
  explicit Buffer(size_t bytes = 0) {
    if (bytes == 0) return;
    const size_t alignment = bytes >= (1u << 21) ? (1u << 21) : 64;
    bytes = (bytes + alignment - 1) / alignment * alignment;
    memory_ = std::calloc(1, bytes + alignment);  // knows which pages are zeros already
    if (memory_ == nullptr) throw OutOfMemory(bytes);
    data_ = reinterpret_cast<void*>(((uintptr_t)memory_ + alignment - 1) / alignment * alignment);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (alignment > 64) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~Buffer() { std::free(memory_); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void *memory_ = nullptr, *data_ = nullptr;
};

struct Engine::State {
  std::string isa;
  const Backend* backend;
  Program program;
  std::vector<Cache> caches;
  std::vector<Step> steps;
  std::vector<std::vector<float>> biases;
  std::vector<float> tables;
  Buffer packed;
  size_t residual_floats[kLevels];  // of either stream, per image
  size_t weight_bytes = 0;

  // Of caches, residuals and early sums, of an image among so many in flight.
  size_t bytes_per_image(int64_t images) const;
  // Images of a block, from 1 to kBlock.
  int64_t block() const;
};

// Images that a thread decodes together: enough that streaming the weights costs little, few enough that a layer's
// activations stay in the second-level cache. Fewer where the images are so wide that they would take more than
// kMostBytes.
constexpr int64_t kBlock = 64;
constexpr double kMostBytes = 1 << 30;

// The stretches of columns in a row.
int whole_row(const Program& program);

// Stretches whose early taps are summed at once, for so many images decoded together. Few, so that the sums are still in a
// processor's cache when their pixels come; but so many that the weights, which every time are read anew, are about half
// as many bytes, where that takes no more memory than kMostSums.
int stretches(const Program& program, int64_t images);

constexpr double kMostSums = 40 << 20;  // bytes

}  // namespace pxfast
