// See fibers.h.
#include "fibers.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(PXFAST_THREAD_SANITIZER)
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

namespace fibers {
namespace {

void order_after(void* what) {
#if defined(PXFAST_THREAD_SANITIZER)
  __tsan_acquire(what);
#endif
  (void)what;
}
void order_before(void* what) {
#if defined(PXFAST_THREAD_SANITIZER)
  __tsan_release(what);
#endif
  (void)what;
}

}  // namespace

#if defined(__x86_64__)
// Saves the registers that a call must keep, swaps stacks, and restores.
extern "C" void pxfast_switch_stack(void** save, void* load);
asm(R"(
.text
.type pxfast_switch_stack, @function
pxfast_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pxfast_switch_stack, .-pxfast_switch_stack
)");
#endif

constexpr size_t kStack = 128 * 1024;

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  void* stack = nullptr;
  void* sanitizer_stack = nullptr;  // kept by the address sanitizer across switches
  void* sanitizer_fiber = nullptr;
  int block = 0, thread = 0;
  bool finished = false;
  Fiber* next = nullptr;  // of those that wait at the same barrier
};

class Scheduler {
 public:
  ~Scheduler() {
    for (auto& fiber : fibers_)
      if (fiber->stack) munmap(fiber->stack, kStack);
  }

  void run(int blocks, int threads, unsigned seed, void (*body)(void*), void* context) {
    body_ = body;
    context_ = context;
    random_.seed(seed);
    shuffle_ = seed != 0;
    const int count = blocks * threads;
    while ((int)fibers_.size() < count) fibers_.push_back(std::make_unique<Fiber>());
    ready_.assign(count + 1, nullptr);
    head_ = tail_ = 0;
    order_before(&started_);
    for (int i = 0; i < count; ++i) {
      Fiber& fiber = *fibers_[i];
      fiber.block = i / threads, fiber.thread = i % threads, fiber.finished = false;
      prepare(fiber);
      make_ready(&fiber);
    }
    unfinished_ = blocks * threads;
    idle_ = 0;
#if defined(PXFAST_THREAD_SANITIZER)
    main_.sanitizer_fiber = __tsan_get_current_fiber();
#endif
    while (unfinished_ > 0) {
      if (head_ == tail_) die("deadlock: every unfinished thread waits at a barrier");
      switch_to(main_, *take());
    }
#if defined(PXFAST_THREAD_SANITIZER)
    for (int i = 0; i < blocks * threads; ++i) __tsan_destroy_fiber(fibers_[i]->sanitizer_fiber);
#endif
    order_after(&finished_);
  }

  Fiber& current() { return *current_; }

  // Waits until someone makes this fiber ready again.
  void block() {
    idle_ = 0;
    leave();
  }
  void make_ready(Fiber* fiber) {
    ready_[tail_] = fiber;
    tail_ = (tail_ + 1) % ready_.size();
  }
  // Lets the others run, for a thread that spins.
  void yield() {
    if (++idle_ > 1000000) die("livelock: only threads that spin are left");
    make_ready(current_);
    leave();
  }

  [[noreturn]] static void die(const char* why) {
    std::fprintf(stderr, "shim: %s\n", why);
    std::abort();
  }

 private:
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> ready_;  // a ring: no memory is taken or given back while fibers run
  size_t head_ = 0, tail_ = 0;
  Fiber main_;
  Fiber* current_ = nullptr;
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  std::mt19937 random_;
  bool shuffle_ = false;
  char started_ = 0, finished_ = 0;  // what comes before all fibers, and after; not of one before another
  int unfinished_ = 0, idle_ = 0;

  Fiber* take() {
    if (shuffle_) {
      const size_t count = (tail_ + ready_.size() - head_) % ready_.size();
      std::swap(ready_[head_], ready_[(head_ + random_() % count) % ready_.size()]);
    }
    Fiber* next = ready_[head_];
    head_ = (head_ + 1) % ready_.size();
    return next;
  }

  void leave() {
    Fiber& from = *current_;
    if (head_ == tail_) {
      switch_to(from, main_);
    } else {
      Fiber* next = take();
      if (next != &from) switch_to(from, *next);
    }
  }

  void prepare(Fiber& fiber) {
    if (!fiber.stack) {
      fiber.stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (fiber.stack == MAP_FAILED) die("no memory for a stack");
    }
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack, kStack);
#endif
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(static_cast<char*>(fiber.stack) + kStack - 64);
    *--top = nullptr;  // the return address of enter, which never returns
    *--top = reinterpret_cast<void*>(&enter);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.stack_pointer = top;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &enter, 0);
#endif
#if defined(PXFAST_THREAD_SANITIZER)
    fiber.sanitizer_fiber = __tsan_create_fiber(0);
#endif
  }

  static void enter();
  void finish();

  void arrived(Fiber& self) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(self.sanitizer_stack, nullptr, nullptr);
#endif
    (void)self;
  }

  void switch_to(Fiber& from, Fiber& to) {
    current_ = &to;
#if defined(__SANITIZE_ADDRESS__)
    const bool to_main = &to == &main_;
    __sanitizer_start_switch_fiber(from.finished ? nullptr : &from.sanitizer_stack, to_main ? main_stack() : to.stack,
                                   to_main ? main_stack_bytes() : kStack);
#endif
#if defined(PXFAST_THREAD_SANITIZER)
    __tsan_switch_to_fiber(to.sanitizer_fiber, 1);  // 1: a switch orders nothing
#endif
#if defined(__x86_64__)
    pxfast_switch_stack(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.context, &to.context);
#endif
    arrived(from);
  }

#if defined(__SANITIZE_ADDRESS__)
  // learnt when the first fiber starts
  const void* main_bottom_ = nullptr;
  size_t main_bytes_ = 0;
  const void* main_stack() const { return main_bottom_; }
  size_t main_stack_bytes() const { return main_bytes_; }
#endif
};

inline Scheduler& scheduler() {
  static Scheduler instance;
  return instance;
}

inline void Scheduler::enter() {
  Scheduler& self = scheduler();
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (!self.main_bottom_) self.main_bottom_ = bottom, self.main_bytes_ = bytes;
#endif
  order_after(&self.started_);
  self.body_(self.context_);
  order_before(&self.finished_);
  self.finish();
}

inline void Scheduler::finish() {
  idle_ = 0;
  --unfinished_;
  current_->finished = true;
  leave();
  die("a finished thread was resumed");
}

void run(int blocks, int threads, unsigned seed, void (*body)(void*), void* context) {
  scheduler().run(blocks, threads, seed, body, context);
}
int block() { return scheduler().current().block; }
int thread() { return scheduler().current().thread; }
void yield() { scheduler().yield(); }

void start(CopyBarrier* barrier, int arrivals) { *barrier = {arrivals, arrivals, 0, {}, 0}; }

static void settle(CopyBarrier* barrier) {
  if (barrier->pending > 0 || barrier->bytes != 0) return;
  barrier->pending = barrier->arrivals;
  barrier->phase ^= 1;
}

void arrive(CopyBarrier* barrier, long expected_bytes) {
  if (barrier->pending < 1) Scheduler::die("an arrival too many at a barrier for copies");
  order_before(&barrier->order[barrier->phase]);
  --barrier->pending;
  barrier->bytes += expected_bytes;
  settle(barrier);
}

void complete(CopyBarrier* barrier, long bytes) {
  order_before(&barrier->order[barrier->phase]);
  barrier->bytes -= bytes;
  settle(barrier);
}

void wait(CopyBarrier* barrier, int parity, void (*copy)(CopyBarrier*)) {
  for (copy(barrier); barrier->phase == parity; copy(barrier)) scheduler().yield();
  order_after(&barrier->order[parity]);
}

struct Store {
  unsigned long place;  // in units of 16 bytes; 0: none
  const unsigned* fences;
  unsigned before;
};
static constexpr unsigned long kStores = 1 << 21;
static Store stores[kStores];
static unsigned long stored = 0;

static Store& store_at(unsigned long place) {
  unsigned long at = place * 0x9e3779b97f4a7c15ul >> 43;
  while (stores[at].place != 0 && stores[at].place != place) at = (at + 1) % kStores;
  return stores[at];
}

void note_store(const void* to, const unsigned* fences) {
  const unsigned long place = reinterpret_cast<unsigned long>(to) / 16;
  Store& store = store_at(place);
  if (store.place == 0 && ++stored > kStores / 2) Scheduler::die("too many places were stored to");
  store = {place, fences, *fences};
}

bool published(const void* from, unsigned bytes) {
  const unsigned long first = reinterpret_cast<unsigned long>(from) / 16;
  for (unsigned long place = first; place < first + bytes / 16; ++place) {
    const Store& store = store_at(place);
    if (store.place != 0 && *store.fences == store.before) return false;
  }
  return true;
}

void forget_stores() {
  if (stored > 0) std::memset(stores, 0, sizeof stores);
  stored = 0;
}

// A fixed room for them: the thread sanitizer would take a vector's memory for shared data that nothing guards.
static struct {
  CopyBarrier* barrier[4096];
  BulkCopy copy[4096];
  int count;
} waiting;

void copy_later(CopyBarrier* barrier, const BulkCopy& copy) {
  if (waiting.count == 4096) Scheduler::die("too many bulk copies under way");
  order_before(&barrier->order[barrier->phase]);
  waiting.barrier[waiting.count] = barrier;
  waiting.copy[waiting.count++] = copy;
}

bool take_copy(CopyBarrier* barrier, BulkCopy* copy) {
  for (int i = 0; i < waiting.count; ++i) {
    if (waiting.barrier[i] != barrier) continue;
    *copy = waiting.copy[i];
    waiting.barrier[i] = waiting.barrier[--waiting.count];
    waiting.copy[i] = waiting.copy[waiting.count];
    order_after(&barrier->order[barrier->phase]);
    return true;
  }
  return false;
}

void Barrier::wait() {
  Scheduler& s = scheduler();
  char* order = &order_[phase_];
  order_before(order);
  if (++arrived_ == size_) {
    for (Fiber* fiber = first_; fiber != nullptr; fiber = fiber->next) s.make_ready(fiber);
    arrived_ = 0;
    phase_ ^= 1;
    first_ = nullptr;
  } else {
    s.current().next = first_;
    first_ = &s.current();
    s.block();
  }
  order_after(order);
}

}  // namespace fibers
