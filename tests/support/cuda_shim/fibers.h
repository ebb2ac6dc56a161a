// A grid of CUDA threads as fibers of one host thread: barriers are real ones, and a thread that waits lets others run.
//
// Fibers instead of threads, because a small decode passes some hundred thousand barriers of 256 threads each. The
// sanitizers are told of every switch: the thread sanitizer takes each fiber for a thread of its own, and sees only the
// order that barriers and atomic counts establish, so it finds races as if all threads ran at once. fibers.cpp itself is
// compiled without it (PXFAST_THREAD_SANITIZER tells it that the rest is not).
#pragma once

namespace fibers {

struct Fiber;

// Runs body(context) in blocks x threads fibers. seed 0: in order; else the threads that are ready run in a random order.
// Ends the process with a message when all of them wait for each other.
void run(int blocks, int threads, unsigned seed, void (*body)(void*), void* context);

// Of the fiber that runs.
int block();
int thread();

void yield();  // for a thread that spins

// A barrier for a fixed number of fibers.
class Barrier {
 public:
  void reset(int size) { size_ = size, arrived_ = 0, phase_ = 0, first_ = nullptr; }
  void wait();

 private:
  int size_ = 0, arrived_ = 0, phase_ = 0;
  char order_[2];  // of the phases in turn: who leaves one comes after its arrivals, not after those of the next
  Fiber* first_ = nullptr;  // of those that wait
};

// A barrier in shared memory that counts arrivals and bytes; plain data, as the device's are.
struct CopyBarrier {
  int arrivals, pending, phase;
  char order[2];
  long bytes;
};
void start(CopyBarrier* barrier, int arrivals);
void arrive(CopyBarrier* barrier, long expected_bytes);
void complete(CopyBarrier* barrier, long bytes);
void wait(CopyBarrier* barrier, int parity, void (*copy)(CopyBarrier*));  // copy: does what it still counts

// Copies that are still to be done, of those that a barrier counts.
struct BulkCopy {
  void* to;
  const void* from;
  unsigned bytes;
};
// Who has stored to global memory, and how many of its fences came before: the copy engine may read what a fence has
// published since. One place for every 16 bytes.
void note_store(const void* to, const unsigned* fences);
bool published(const void* from, unsigned bytes);
void forget_stores();  // all are, between launches

void copy_later(CopyBarrier* barrier, const BulkCopy& copy);
bool take_copy(CopyBarrier* barrier, BulkCopy* copy);

}  // namespace fibers
