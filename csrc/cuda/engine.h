// The CUDA engine's host side: packs a program into one block of memory, plans how the GPU's multiprocessors share a
// batch, and launches row after row. All device memory and the stream come from the caller.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "common/program.h"
#include "program.h"
#include "runtime.h"

namespace pxfast {
namespace cuda {

// How a batch is decoded: `teams` of `members` blocks, one block for a multiprocessor; a team decodes up to `capacity`
// images.
struct Plan {
  int teams = 0, members = 0, capacity = 0;
  int cluster = 1;  // or members: a team is a cluster of blocks
  bool speculative = false;
  int stages = 0, stage_bytes = 0, pixel_pieces = 0, ring_bytes = 0;
  size_t shared_bytes = 0;
  double predicted_seconds = 0.0;  // by the model in engine.cpp, which knows no measurement
};

class Engine {
 public:
  // Throws std::invalid_argument for a program that is out of the engine's bounds.
  Engine(const ProgramSpec& spec, Kernel kernel);

  // Weights, biases, tables and steps, for the device to hold as they are; 256-byte aligned there.
  const std::vector<uint8_t>& block() const { return block_; }

  // For so many images at once. members: blocks of a team, 0 for what the model of the costs prefers. clusters: teams are
  // clusters of kCluster blocks, which meet by the hardware's barrier; throws where the GPU has none.
  Plan plan(int64_t images, const Device& device, Order order, int members = 0, bool clusters = false) const;
  // Of which there is a plan: a team's caches have fewer than 2^32 elements. members, clusters: as for plan.
  int64_t most_images(const Device& device, int members = 0, bool clusters = false) const;
  size_t workspace_bytes(const Plan& plan) const;
  size_t bytes_per_image(bool speculative) const;  // in flight: caches, residuals, the head's parameters

  // Decodes images x channels x height x width bytes that lie on the device, as the chooser's ranges do. Rows are launched one
  // ahead of the one waited for; tick is called after each with the images finished so far, pro rata; it may throw,
  // which ends the decode and passes the exception on once the device has finished what was launched.
  void decode(const Plan& plan, const void* block, void* workspace, const uint8_t* input, uint8_t* output,
              int64_t images, const Chooser& chooser, void* stream, const std::function<void(int64_t)>& tick) const;

 private:
  Program program_{};
  Kernel kernel_;
  std::vector<uint8_t> block_;
  // of one image: bytes of weights that the steps stream and cells that they read, and the steps themselves
  struct Costs {
    double weight_bytes, cell_bytes, steps;
  } pixel_{}, row_{};
  double row_weights_[kLevels] = {};  // those of row_, by level
  double sweep_steps_ = 0.0;          // pixel steps of one sweep over every row
};

}  // namespace cuda
}  // namespace pxfast
