// Decoding a batch with several threads: blocks of images, one thread each, or single images with a team each.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

#include "engine_state.h"

namespace pxfast {
namespace {

// A barrier for threads that meet every few microseconds: they spin. Who waits longer, because another is late or goes
// through pixels alone, first gives way and then sleeps, so that a core is left to whoever can use it.
struct PatientTeam : Team {
  std::atomic<int> arrived{0}, phase{0}, sleeping{0};
  std::mutex mutex;
  std::condition_variable next_phase;

  explicit PatientTeam(int size) : Team{size, &wait_for} {}

  static void wait_for(Team* team) {
    auto& self = *static_cast<PatientTeam*>(team);
    const int phase = self.phase.load(std::memory_order_acquire);
    if (self.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == self.members) {
      self.arrived.store(0, std::memory_order_relaxed);
      self.phase.store(phase + 1);
      if (self.sleeping.load() > 0) {
        std::lock_guard<std::mutex> lock(self.mutex);  // a sleeper looks at the phase with it before it sleeps
        self.next_phase.notify_all();
      }
      return;
    }
    for (int spins = 0; self.phase.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins >= kSpins + kYields) return self.sleep_through(phase);
      if (spins >= kSpins) {
        std::this_thread::yield();
      } else {
#if defined(__x86_64__)
        _mm_pause();
#endif
      }
    }
  }

 private:
  static constexpr int kSpins = 1000, kYields = 16;  // 20 to 50 microseconds

  void sleep_through(int current) {
    std::unique_lock<std::mutex> lock(mutex);
    ++sleeping;
    next_phase.wait(lock, [&] { return phase.load() != current; });
    --sleeping;
  }
};

// A workspace with the memory behind it.
struct Room {
  Workspace workspace{};
  std::vector<Buffer> buffers;

  Room(const Program& program, const Backend& backend, const size_t* residual_floats, int64_t capacity, int members,
       bool alone) {
    workspace.caches = add(program.elements_per_image * backend.element_size * capacity);
    for (auto& levels : workspace.residual)
      for (int level = 0; level < kLevels; ++level)
        levels[level] = static_cast<float*>(add(residual_floats[level] * capacity * sizeof(float)));
    workspace.stretches = alone ? whole_row(program) : stretches(program, capacity);
    workspace.partial = static_cast<float*>(
        add(program.partial_per_stretch * workspace.stretches * capacity * sizeof(float)));
    for (int member = 0; member < members; ++member)
      workspace.products[member] = static_cast<float*>(add(backend.products_size(program) * sizeof(float)));
    if (alone) {
      const Step& output = program.step[program.steps - 1];
      const size_t width = (size_t)output.tiles * output.tile_vectors * kLanes;
      workspace.parameters = static_cast<float*>(add((program.width * width + 2 * kLanes) * sizeof(float)));
    }
  }

 private:
  void* add(size_t bytes) {
    buffers.emplace_back(bytes);
    return buffers.back().as<void>();
  }
};

// The chooser for a part of its batch that begins at `image`; image_bytes: of each.
Chooser from_image(const Chooser& all, int64_t image, int64_t image_bytes) {
  Chooser part = all;
  part.lower += image * image_bytes;
  part.upper += image * image_bytes;
  part.first += (uint64_t)image;
  return part;
}

// What the threads of one decode share.
struct Shared {
  std::atomic<bool> cancel{false};
  std::atomic<int64_t> next{0};  // block or image
  std::atomic<int64_t> rows_done{0};
  std::mutex mutex;
  std::condition_variable finished;
  int running = 0;
  std::exception_ptr error;

  Control control() {
    return {[](void* shared) { return static_cast<Shared*>(shared)->cancel.load(std::memory_order_relaxed); },
            [](void* shared, int images) {
              static_cast<Shared*>(shared)->rows_done.fetch_add(images, std::memory_order_relaxed);
            },
            this};
  }
};

// Threads that are waited for, also when this one is unwound.
struct Pool {
  std::vector<std::thread> threads;

  ~Pool() { join(); }
  void join() {
    for (std::thread& thread : threads) thread.join();
    threads.clear();
  }
};

// Runs work(0) ... work(threads - 1), each in a thread of its own, and tick(rows done) from this one until all are
// finished. An exception of theirs or of tick's cancels the rest and is thrown here.
void run_threads(int threads, Shared& shared, const std::function<void(int)>& work,
                 const std::function<void(int64_t)>& tick) {
  // A team waits for its missing members for ever, so nobody begins before all threads exist, and then all do, even
  // when the decode is cancelled meanwhile: the members learn of it together, in `work`.
  bool started = false, complete = true;
  std::condition_variable start;
  const auto body = [&](int index) {
    try {
      {
        std::unique_lock<std::mutex> lock(shared.mutex);
        start.wait(lock, [&] { return started; });
      }
      if (complete) work(index);
    } catch (...) {
      std::lock_guard<std::mutex> lock(shared.mutex);
      if (!shared.error) shared.error = std::current_exception();
      shared.cancel = true;
    }
    std::lock_guard<std::mutex> lock(shared.mutex);
    --shared.running;
    shared.finished.notify_all();
  };
  Pool pool;
  std::unique_lock<std::mutex> lock(shared.mutex);
  try {
    for (int index = 0; index < threads; ++index) {
      pool.threads.emplace_back(body, index);
      ++shared.running;
    }
  } catch (const std::system_error& error) {  // the system's own words do not say what it refuses
    shared.error = std::make_exception_ptr(std::runtime_error(
        "only " + std::to_string(pool.threads.size()) + " of the decode's " + std::to_string(threads) +
        " threads can be started here, so ask for fewer (threads, PXFAST_THREADS): " + error.what()));
  } catch (...) {
    shared.error = std::current_exception();
  }
  if (shared.error) {
    shared.cancel = true;
    complete = false;
  }
  started = true;
  start.notify_all();
  while (shared.running > 0) {
    shared.finished.wait_for(lock, std::chrono::milliseconds(50));
    lock.unlock();
    if (!shared.cancel) {
      try {
        tick(shared.rows_done);
#if defined(__GLIBCXX__)
      } catch (const abi::__forced_unwind&) {  // pthread_exit: Python ends threads so at its end, and aborts otherwise
        shared.cancel = true;
        throw;
#endif
      } catch (...) {
        std::lock_guard<std::mutex> relock(shared.mutex);
        shared.error = std::current_exception();
        shared.cancel = true;
      }
    }
    lock.lock();
  }
  lock.unlock();
  pool.join();
  if (shared.error) std::rethrow_exception(shared.error);
  tick(shared.rows_done);  // what finished during the last one
}

// Whether images are decoded one by one, each by a team where there are more threads than images, and not in blocks.
// Guessing rows may pay for such an image; with one image a thread or more, a block is as fast or faster (measured:
// docs/cpu.md).
bool one_by_one(Order order, int64_t images, int threads) {
  return order == Order::kSpeculative || images <= std::max(1, threads - 1);
}

}  // namespace

void Engine::decode(const uint8_t* input, uint8_t* output, int64_t images, const Chooser& chooser, int threads,
                    Order order, const std::function<void(int64_t)>& tick, int64_t block) const {
  if (images == 0) return;
  const State& s = *state_;
  const int64_t image_bytes = (int64_t)s.program.channels * s.program.height * s.program.width;
  Shared shared;
  const Control control = shared.control();
  const auto images_done = [&](int64_t rows) { tick(rows / s.program.height); };

  if (one_by_one(order, images, threads)) {
    const int teams = (int)std::min<int64_t>(threads, images);
    const int members = std::min(threads / teams, kMaxTeam);
    struct Group {
      Room room;
      PatientTeam team;
      int64_t image = 0;
    };
    std::vector<std::unique_ptr<Group>> groups;
    for (int g = 0; g < teams; ++g)
      groups.push_back(std::unique_ptr<Group>(
          new Group{Room(s.program, *s.backend, s.residual_floats, 1, members, true), PatientTeam(members)}));
    const auto work = [&](int index) {
      Group& group = *groups[index / members];
      const int member = index % members;
      Team* team = members > 1 ? &group.team : nullptr;
      for (;;) {
        if (member == 0) group.image = shared.next.fetch_add(1);
        if (team) team->wait(team);
        const int64_t image = group.image;
        if (image >= images ||
            !s.backend->decode_alone(s.program, group.room.workspace, input + image * image_bytes,
                                     output + image * image_bytes, from_image(chooser, image, image_bytes), order,
                                     control, team, member))
          return;
      }
    };
    return run_threads(teams * members, shared, work, images_done);
  }

  threads = (int)std::min<int64_t>(threads, images);
  // as many blocks as threads, or a multiple, all of nearly the same size
  block = std::min(block == 0 ? s.block() : block, images);  // however many are allowed
  const int64_t rounds = (images + threads * block - 1) / (threads * block);
  const int64_t blocks = rounds * threads;
  const int64_t capacity = (images + blocks - 1) / blocks;
  const auto first_of = [&](int64_t block) { return images * block / blocks; };
  const auto work = [&](int) {
    Room room(s.program, *s.backend, s.residual_floats, capacity, 1, false);
    for (int64_t index; (index = shared.next.fetch_add(1)) < blocks;) {
      const int64_t first = first_of(index), count = first_of(index + 1) - first;
      if (count > 0 && !s.backend->decode(s.program, room.workspace, input + first * image_bytes,
                                          output + first * image_bytes, (int)count,
                                          from_image(chooser, first, image_bytes), control))
        return;
    }
  };
  run_threads(threads, shared, work, images_done);
}

Profile Engine::profile(const uint8_t* input, uint8_t* output, int64_t images, const Chooser& chooser,
                        Order order) const {
  const State& s = *state_;
  const int64_t image_bytes = (int64_t)s.program.channels * s.program.height * s.program.width;
  Shared shared;
  const Control control = shared.control();
  Profile profile{};
  const bool alone = one_by_one(order, images, 1);
  const int64_t block = alone ? 1 : s.block();
  Room room(s.program, *s.backend, s.residual_floats, std::min(images, block), 1, alone);
  room.workspace.profile = &profile;
  for (int64_t first = 0; first < images; first += block) {
    const uint8_t* from = input + first * image_bytes;
    uint8_t* to = output + first * image_bytes;
    const Chooser part = from_image(chooser, first, image_bytes);
    if (alone) {
      s.backend->decode_alone(s.program, room.workspace, from, to, part, order, control, nullptr, 0);
    } else {
      s.backend->decode(s.program, room.workspace, from, to, (int)std::min(block, images - first), part, control);
    }
  }
  return profile;
}

}  // namespace pxfast
