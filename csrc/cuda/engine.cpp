// Planning and launching.
#include "engine.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace pxfast {
namespace cuda {
namespace {

// What the choice of a plan rests on: round figures of an H100 and an H200. docs/gpu.md says which are measured, and what
// follows from them.
constexpr double kBlockRate = 100e9;   // bytes/s that one multiprocessor takes from the second-level cache
constexpr double kCacheRate = 5.5e12;  // and all of them together
constexpr double kStepSeconds = 4e-6;  // of a step beside its bytes: latency of loads, the slices' sum, the epilogue
constexpr double kMeetingSeconds = 1e-6, kArrivalSeconds = 2e-8;  // of a team's meeting, and more for every block
// Sweeps of a row by trained models on real images, grey and colour, as bench/experiments/sweeps.py counts them: natural
// colour images gain nothing from guessing.
constexpr double kGreySweeps = 6.0, kColourSweeps = 29.0;
constexpr double kBetter = 0.98;  // a larger team is taken for more than the figures' own error
constexpr int kMaxMembers = 40;
constexpr uint64_t kMostElements = (1ull << 32) - 1;  // of a team's caches, which 32 bits count
constexpr int kMaxSpeculativeTeam = 4;  // images that share a frontier: the slowest one holds up the rest

// Bytes of the ring's stages: deeper is better, and longer pixel chunks are, but every multiprocessor must have room.
void plan_shared_memory(Plan& plan, const Program& program, Kernel kernel, const Device& device) {
  constexpr size_t kSums = (size_t)kRowTile * kUnitsPerTile * kUnit * sizeof(float);  // of a tile
  const size_t beside = shared_state_bytes();
  if (kernel == Kernel::kBf16Groups) {  // the ring is behind the sums, and as large as possible
    constexpr size_t kStage = (size_t)kGroupChunk * kInner * 2 * (kRowTile + kUnitsPerTile * kUnit);
    if (beside + kSums + kFeedingThreads / 32 * kStage <= device.shared_bytes) {  // a stage for each feeder
      plan.ring_bytes = (int)((device.shared_bytes - beside - kSums) / 128 * 128);
      plan.shared_bytes = beside + kSums + plan.ring_bytes;
      return;
    }
  } else {  // the ring is where the sums are
    const int kind_pieces = program.element_size == 2 ? 2 : 4;
    const int unit_bytes = kInner * kUnit * program.element_size;
    for (const auto& [pieces, stages] : {std::pair{16, 4}, {16, 3}, {8, 3}, {8, 2}}) {
      const int chunk = pieces / kind_pieces, row_chunk = kRowPieces / kind_pieces;
      const int pixel = chunk * (kPixelTile * kind_pieces * 16 + kRowPadding + kUnitsPerTile * unit_bytes);
      const int row = row_chunk * (kRowTile * kind_pieces * 16 + kRowPadding + kUnitsPerTile * unit_bytes);
      plan.pixel_pieces = pieces;
      plan.stages = stages;
      plan.stage_bytes = std::max(pixel, row);
      plan.shared_bytes = beside + std::max(kSums, (size_t)stages * plan.stage_bytes);
      if (plan.shared_bytes <= device.shared_bytes) return;
    }
  }
  throw std::runtime_error(
      "the GPU's multiprocessors have too little shared memory: " + std::to_string(device.shared_bytes) + " bytes");
}

}  // namespace

Plan Engine::plan(int64_t images, const Device& device, Order order, int members, bool clusters) const {
  if (images < 1) throw std::invalid_argument("a plan takes one image or more");
  if (members < 0 || members > device.multiprocessors)
    throw std::invalid_argument("members must be 0, or a block for each multiprocessor at most");
  if (clusters) {
    if (device.clusters < 1) throw std::invalid_argument("this GPU has no clusters of blocks: " + device.name);
    if (members != 0 && members != kCluster)
      throw std::invalid_argument("a team that is a cluster has four members, not " + std::to_string(members));
    members = kCluster;
  }
  Plan best;
  const double sweeps = program_.channels == 3 ? kColourSweeps : kGreySweeps;
  const int gate_units = program_.padded_filters / kBlock;  // other steps have half as many
  const int pixel_tile = kernel_ == Kernel::kBf16Groups ? kGroupPixelTile : kPixelTile;
  const auto consider = [&](int size, bool speculative) {
    Plan plan;
    plan.members = size;
    plan.speculative = speculative;
    plan.cluster = clusters ? size : 1;
    plan.teams = (int)std::min<int64_t>(clusters ? device.clusters : device.multiprocessors / size, images);
    plan.capacity = (int)((images + plan.teams - 1) / plan.teams);
    if ((uint64_t)program_.elements_per_image * plan.capacity > kMostElements) return;
    if (speculative && order == Order::kAuto && plan.capacity > kMaxSpeculativeTeam) return;
    // A pass evaluates `rows` rows of every product, images or their columns; `weights` and `cells` are the bytes of all
    // passes, for a whole product and for each of its rows.
    const double passes = speculative ? sweep_steps_ * sweeps : pixel_.steps;
    const double rows = speculative ? 0.5 * program_.width * plan.capacity : plan.capacity;  // half of a row is open
    const double weights = pixel_.weight_bytes * passes / pixel_.steps;
    const double cells = speculative ? pixel_.cell_bytes * sweeps / program_.width : pixel_.cell_bytes;
    double bytes = row_.cell_bytes * plan.capacity / size;  // that one block reads
    for (int level = 0; level < kLevels; ++level)           // weights, once for every tile of rows
      bytes += row_weights_[level] * std::ceil((double)(program_.width >> level) * plan.capacity / kRowTile) / size;
    for (const int units : {gate_units / 2 + gate_units % 2, gate_units}) {  // either kind is half of the work
      const double row_tiles = std::ceil(rows / pixel_tile);
      const double tile_units = std::min<double>(kUnitsPerTile, std::ceil(units * row_tiles / size));
      const double tiles = std::ceil(row_tiles * std::ceil(units / tile_units) / size);
      bytes += 0.5 * tiles * (weights * tile_units / units + cells * std::min<double>(rows, pixel_tile));
    }
    const double meeting = size > 1 ? kMeetingSeconds + size * kArrivalSeconds : 0.0;
    plan.predicted_seconds = std::max(bytes / kBlockRate, bytes * plan.teams * size / kCacheRate) +
                             (passes + row_.steps) * (kStepSeconds + meeting);
    if (best.teams == 0 || plan.predicted_seconds < kBetter * best.predicted_seconds) best = plan;
  };
  const int last = members > 0 ? members : std::min(kMaxMembers, device.multiprocessors);
  for (int size = members > 0 ? members : 1; size <= last; ++size) {
    if (order != Order::kSpeculative) consider(size, false);
    if (order != Order::kSequential) consider(size, true);
  }
  if (best.teams == 0) throw std::runtime_error("too many images at once for one team: " + std::to_string(images));
  plan_shared_memory(best, program_, kernel_, device);
  return best;
}

int64_t Engine::most_images(const Device& device, int members, bool clusters) const {
  const int64_t teams = clusters ? device.clusters : device.multiprocessors / std::max(members, 1);
  return teams * (int64_t)(kMostElements / program_.elements_per_image);
}

size_t Engine::workspace_bytes(const Plan& plan) const {
  const Room room = room_for(program_, plan.capacity, plan.speculative);
  return (size_t)room.total * plan.teams + (size_t)plan.teams * kArrivalStride * sizeof(unsigned int);
}

size_t Engine::bytes_per_image(bool speculative) const {
  constexpr int kMany = 64;
  return room_for(program_, kMany, speculative).total / kMany;
}

void Engine::decode(const Plan& plan, const void* block, void* workspace, const uint8_t* input, uint8_t* output,
                    int64_t images, const Chooser& chooser, void* stream,
                    const std::function<void(int64_t)>& tick) const {
  if (images < plan.teams || images > (int64_t)plan.teams * plan.capacity)
    throw std::invalid_argument("the plan is for another number of images");
  Launch launch{};
  launch.program = program_;
  launch.chooser = chooser;
  launch.block = static_cast<const unsigned char*>(block);
  launch.workspace = static_cast<unsigned char*>(workspace);
  launch.room = room_for(program_, plan.capacity, plan.speculative);
  unsigned char* arrivals = launch.workspace + launch.room.total * plan.teams;
  launch.arrivals = reinterpret_cast<unsigned int*>(arrivals);
  launch.input = input;
  launch.output = output;
  launch.images = images;
  launch.capacity = plan.capacity;
  launch.teams = plan.teams;
  launch.members = plan.members;
  launch.cluster = plan.cluster;
  launch.speculative = plan.speculative;
  launch.stages = plan.stages;
  launch.stage_bytes = plan.stage_bytes;
  launch.pixel_pieces = plan.pixel_pieces;
  launch.ring_bytes = plan.ring_bytes;

  clear_memory(workspace, workspace_bytes(plan), stream);  // the columns beside the images, and all padding, stay zero
  Mark marks[2];
  int launched = 0;
  try {
    for (int row = 0; row <= program_.height; ++row) {
      if (row < program_.height) {
        launch.row = row;
        clear_memory(arrivals, (size_t)plan.teams * kArrivalStride * sizeof(unsigned int), stream);
        launch_rows(launch, kernel_, plan.shared_bytes, stream);
        marks[row % 2].set(stream);
        launched = row + 1;
      }
      if (row > 0) {
        marks[(row - 1) % 2].wait();
        tick(images * row / program_.height);
      }
    }
  } catch (...) {
    if (launched > 0) marks[(launched - 1) % 2].wait();  // the memory is still in use until then
    throw;
  }
}

}  // namespace cuda
}  // namespace pxfast
