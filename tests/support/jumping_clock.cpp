// The CPU engine's clock in tests: mostly the right time, but often it jumps ahead, as for a thread that lost its core.
// Some jumps put the thread to sleep as well. JUMPING_CLOCK: the seed.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <random>
#include <thread>

namespace {
std::atomic<double> ahead{0.0};
std::atomic<unsigned> threads{0};
}  // namespace

extern "C" double pxfast_test_clock() {
  static const unsigned seed = (unsigned)std::atoi(std::getenv("JUMPING_CLOCK"));
  static thread_local std::minstd_rand random(seed * 1009 + ++threads);
  const unsigned drawn = random() % 40;
  if (drawn < 3) ahead = ahead + 1e-3 * drawn * drawn;
  if (drawn == 3) std::this_thread::sleep_for(std::chrono::microseconds(200));
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(time).count() + ahead;
}
