// The CPU engine: a program with its packed weights, decoded by several threads, each over its own block of images.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/program.h"
#include "program.h"

namespace pxfast {

// Instruction sets this machine and this build can run, best first.
std::vector<std::string> usable_isas();

// Whether an instruction set of this machine multiplies bf16 faster than fp32.
bool prefers_bf16(const std::string& isa);

class Engine {
 public:
  // Packs the weights for an instruction set ('' for the best). Throws std::invalid_argument for one not usable here
  // and for a program that is out of the engine's bounds.
  Engine(const ProgramSpec& spec, const std::string& isa, bool bf16);
  ~Engine();

  // input, output: images x channels x height x width. tick is called about twenty times a second from the calling
  // thread with the images finished so far; it may throw, which cancels the decode and passes the exception on.
  // block: images that a thread decodes together at most; 0 for block(). It changes no bit.
  void decode(const uint8_t* input, uint8_t* output, int64_t images, const Chooser& chooser, int threads, Order order,
              const std::function<void(int64_t)>& tick, int64_t block = 0) const;

  // decode in one thread, with the seconds spent by kind of work
  Profile profile(const uint8_t* input, uint8_t* output, int64_t images, const Chooser& chooser, Order order) const;

  const std::string& isa() const;
  int64_t block() const;           // images that a thread decodes together, so that they take a GiB at most
  size_t bytes_per_image() const;  // of caches, residuals and early sums, in flight, in blocks of many images
  size_t weight_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace pxfast
