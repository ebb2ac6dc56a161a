// Host twins of the functions in csrc/cuda/device.cuh, so that the kernels' own source runs on the CPU.
//
// Asynchronous copies happen at the latest moment that the waits allow, or at once, as the test asks: a copy that
// nobody waited for, or into memory still in use, shows either way.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "fibers.h"

#define PXFAST_DEVICE inline

namespace pxfast {
namespace cuda {
namespace shim {

constexpr int kThreads = 384;  // of a block, at most

[[noreturn]] inline void fail(const char* why) {
  std::fprintf(stderr, "shim: %s\n", why);
  std::abort();
}

// Word by word: a compiler may expand memcpy of a few bytes in place, where the thread sanitizer does not see it.
typedef uint32_t __attribute__((may_alias)) Word;
inline void copy_words(void* to, const void* from, size_t bytes) {
  for (size_t i = 0; i < bytes / 4; ++i) static_cast<Word*>(to)[i] = static_cast<const Word*>(from)[i];
}

struct PendingCopy {
  void* to;
  const void* from;
};
// Sums that products under way will add to; `shown` is where the kernel has them.
struct Sums {
  float (*shown)[8];
  float value[5][8];
  int pending = 0;
};
struct Product {
  Sums* sums;
  uint64_t a, b, digest;  // descriptors, and what the operands were when the product began
};
constexpr int kMaxProducts = 32;
struct Thread {
  PendingCopy copy[512];
  int copies = 0;  // waiting
  int group[64];   // copies in each committed group
  int groups = 0;
  int uncommitted = 0;
  Sums sums[2];
  Product product[kMaxProducts];
  int products = 0;                 // under way
  int product_group[kMaxProducts];  // products up to the end of each committed group
  int product_groups = 0;
  bool begun = false;
};
struct Warp {
  fibers::Barrier barrier;
  unsigned char exchange[2][32][64];  // of the lanes; the halves are used in turn, so that one barrier is enough
};
struct Block {
  fibers::Barrier barrier, some[2];  // of all threads, of the first 256, of the others
  Warp warp[kThreads / 32];
  Thread thread[kThreads];
  int turn[kThreads];
  std::vector<unsigned char> shared;
  std::vector<unsigned char> by_thread;  // of every 16 bytes: whether a thread, and not the copy engine, copied them
  unsigned fences[kThreads];             // of global memory for the copy engine, that a thread has passed, and one

  void start(size_t shared_bytes, int threads) {
    barrier.reset(threads);
    some[0].reset(256);
    some[1].reset(threads - 256);
    for (auto& w : warp) w.barrier.reset(32);
    for (auto& t : thread) {
      t.copies = t.groups = t.uncommitted = t.products = t.product_groups = 0;
      for (auto& s : t.sums) s.pending = 0;
    }
    std::memset(turn, 0, sizeof turn);
    shared.assign(shared_bytes, 0xff);  // floats that nobody has written are NaN
    by_thread.assign(shared_bytes / 16, 0);
    for (unsigned& count : fences) count = 1;
  }
};

struct Grid {
  std::vector<Block> block;
  std::vector<fibers::Barrier> cluster;
  int cluster_blocks = 1;
  bool eager_copies = false;
};
inline Grid& grid() {
  static Grid instance;
  return instance;
}
inline Block& block() { return grid().block[fibers::block()]; }
inline Warp& warp() { return block().warp[fibers::thread() / 32]; }

// Every lane shows `mine` and gets all lanes' values.
inline const unsigned char (*exchange(const void* mine, size_t bytes))[64] {
  Warp& w = warp();
  int& turn = block().turn[fibers::thread()];
  turn ^= 1;
  copy_words(w.exchange[turn][fibers::thread() % 32], mine, bytes);
  w.barrier.wait();
  return w.exchange[turn];
}

// The end of a copy of 16 bytes.
inline void land(void* to, const void* from) {
  copy_words(to, from, 16);
  Block& here = block();
  here.by_thread[(static_cast<unsigned char*>(to) - here.shared.data()) / 16] = 1;
}

inline void note_store(const void* to) { fibers::note_store(to, &block().fences[fibers::thread()]); }

// The bulk copies that a barrier still counts.
inline void finish_copies(fibers::CopyBarrier* barrier) {
  fibers::BulkCopy copy;
  while (fibers::take_copy(barrier, &copy)) {
    copy_words(copy.to, copy.from, copy.bytes);
    fibers::complete(barrier, copy.bytes);
  }
}

inline float from_bf16(uint32_t bits) {
  bits <<= 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

}  // namespace shim

inline int thread_index() { return fibers::thread(); }
inline int thread_index_again() { return thread_index(); }
inline int block_index() { return fibers::block(); }
inline void sync_block() { shim::block().barrier.wait(); }
template <int kBarrier, int kSome>
void sync_some() {
  static_assert((kBarrier == 1 && kSome == 256) || (kBarrier == 2 && kSome == 128), "as Block::start has them");
  shim::block().some[kBarrier - 1].wait();
}
inline void sync_warp() { shim::warp().barrier.wait(); }
inline unsigned char* shared_memory() { return shim::block().shared.data(); }
inline uint32_t shared_address(const void* p) {
  return (uint32_t)(static_cast<const unsigned char*>(p) - shim::block().shared.data());
}
inline int uniform(int value) { return value; }

template <class T>
T shuffle(T value, int lane) {
  const auto lanes = shim::exchange(&value, sizeof value);
  T other;
  shim::copy_words(&other, lanes[lane], sizeof other);
  return other;
}
template <class T>
T shuffle_xor(T value, int mask) {
  return shuffle(value, (fibers::thread() % 32) ^ mask);
}

inline uint32_t ballot(bool said) {
  const uint32_t mine = said;
  const auto lanes = shim::exchange(&mine, sizeof mine);
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t one;
    shim::copy_words(&one, lanes[lane], sizeof one);
    bits |= one << lane;
  }
  return bits;
}
inline int count_bits(uint32_t bits) { return __builtin_popcount(bits); }

inline void copy_async(void* to, const void* from) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) __builtin_trap();
  if (shim::grid().eager_copies) {
    shim::land(to, from);
    return;
  }
  shim::Thread& t = shim::block().thread[fibers::thread()];
  if (t.copies == 512) __builtin_trap();
  t.copy[t.copies++] = {to, from};
  ++t.uncommitted;
}
inline void commit_copies() {
  shim::Thread& t = shim::block().thread[fibers::thread()];
  if (t.groups == 64) __builtin_trap();
  t.group[t.groups++] = t.uncommitted;
  t.uncommitted = 0;
}
template <int kPending>
void wait_copies() {
  shim::Thread& t = shim::block().thread[fibers::thread()];
  const int finished = t.groups > kPending ? t.groups - kPending : 0;
  int copies = 0;
  for (int g = 0; g < finished; ++g) copies += t.group[g];
  for (int i = 0; i < copies; ++i) shim::land(t.copy[i].to, t.copy[i].from);
  std::memmove(t.copy, t.copy + copies, (t.copies - copies) * sizeof t.copy[0]);
  std::memmove(t.group, t.group + finished, (t.groups - finished) * sizeof t.group[0]);
  t.copies -= copies;
  t.groups -= finished;
}

inline uint32_t pack_bf16(float low, float high) { return shim::to_bf16(low) | shim::to_bf16(high) << 16; }

// The matrix product of a warp, from the documented places of its operands' elements.
inline void multiply_add(float* sum, const uint32_t* a, const uint32_t* b) {
  struct Operands {
    uint32_t a[4], b[2];
  } mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const auto lanes = shim::exchange(&mine, sizeof mine);
  const auto of = [&](int lane) {
    Operands o;
    shim::copy_words(&o, lanes[lane], sizeof o);
    return o;
  };
  const auto half = [](uint32_t pair, int k) { return shim::from_bf16(k & 1 ? pair >> 16 : pair & 0xffff); };
  const int lane = fibers::thread() % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = i / 2 ? g + 8 : g, column = 2 * t + i % 2;
    float total = sum[i];
    for (int k = 0; k < 16; ++k) {
      const int owner = k % 8 / 2;
      const float x = half(of(row % 8 * 4 + owner).a[(row >= 8) + 2 * (k >= 8)], k);
      const float y = half(of(column * 4 + owner).b[k >= 8], k);
      total += x * y;
    }
    sum[i] = total;
  }
}

inline float fused_multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline float fast_exp(float x) { return std::exp(x); }
inline float fast_reciprocal(float x) { return 1.0f / x; }

struct alignas(8) Float2 {
  float x, y;
};
template <class T>
T load_shared_between_blocks(const T* p) {
  return *p;
}
template <class T>
void store_shared_between_blocks(T* p, T v) {
  *p = v;
  if constexpr (sizeof(T) <= 4 && sizeof(T) > 1) shim::note_store(p);  // elements of the caches
}
// counts that several threads change
inline int load_shared_between_blocks(const int* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
inline void store_shared_between_blocks(int* p, int v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
inline void atomic_min(int* p, int v) {
  int found = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (v < found && !__atomic_compare_exchange_n(p, &found, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}
template <class T>
T load_constant(const T* p) {
  return *p;
}
inline void prefetch_constant(const void*) {}

using CopyBarrier = fibers::CopyBarrier;
constexpr bool kHasClusters = true;

inline void sync_cluster() { shim::grid().cluster[fibers::block() / shim::grid().cluster_blocks].wait(); }
inline void start_barrier(CopyBarrier* barrier, int arrivals) { fibers::start(barrier, arrivals); }
inline void arrive(CopyBarrier* barrier) { fibers::arrive(barrier, 0); }
inline void expect_bytes(CopyBarrier* barrier, uint32_t bytes) { fibers::arrive(barrier, bytes); }
// A bulk copy is done when somebody waits for its barrier, or at once.
inline void copy_bulk(void* shared, const void* global, uint32_t bytes, CopyBarrier* barrier) {
  if (bytes == 0 || bytes % 16 != 0 || reinterpret_cast<uintptr_t>(shared) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(global) % 16 != 0)
    __builtin_trap();
  if (!fibers::published(global, bytes)) shim::fail("the copy engine reads what no fence has published");
  fibers::copy_later(barrier, {shared, global, bytes});
  if (shim::grid().eager_copies) shim::finish_copies(barrier);
}
inline void wait_for_barrier(CopyBarrier* barrier, int parity) { fibers::wait(barrier, parity, shim::finish_copies); }
inline void fence_global_copies() { ++shim::block().fences[fibers::thread()]; }

inline void arrive(unsigned int* count) { __atomic_fetch_add(count, 1u, __ATOMIC_ACQ_REL); }
inline void wait_for_arrivals(const unsigned int* count, unsigned int wanted) {
  while (__atomic_load_n(count, __ATOMIC_ACQUIRE) < wanted) fibers::yield();
}

}  // namespace cuda
}  // namespace pxfast

#include "warpgroup.h"
