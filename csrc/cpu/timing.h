// What the decode loop measures of itself: where the time goes, and which of two ways is the faster.
//
// Compiled under several instruction sets: the rule that common/steps.h states holds here too.
#pragma once

#include <time.h>

#include "program.h"

#if defined(PXFAST_TEST_CLOCK)
extern "C" double pxfast_test_clock();  // one that jumps: no choice by time may change a result or keep a team waiting
#endif

namespace {

inline double now() {  // seconds
#if defined(PXFAST_TEST_CLOCK)
  return pxfast_test_clock();
#else
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#endif
}

// The faster of two ways of doing the same work, by what either took the last time: seconds for a unit of it. The other
// one is tried again now and then, since what kept it back may be over; ever more seldom while it is far behind.
class Faster {
 public:
  bool second() {
    if (cost_[0] == 0.0) return false;
    if (cost_[1] == 0.0) return true;
    const bool better = cost_[1] < cost_[0];
    if (++since_other_ < pause_) return better;
    since_other_ = 0;
    if (cost_[!better] > 3.0 * cost_[better]) pause_ *= 2;
    return !better;
  }
  double cost(bool second) const { return cost_[second]; }
  void took(bool second, double seconds, long units) { cost_[second] = seconds / (double)(units > 0 ? units : 1); }

 private:
  double cost_[2] = {0.0, 0.0};  // 0: not tried yet
  int since_other_ = 0, pause_ = 8;
};

// Where the time goes, in seconds of one thread; filled in by a profiled decode only.
struct Stopwatch {
  pxfast::Profile* profile;
  explicit Stopwatch(pxfast::Profile* p) : profile(p) {
    if (profile) last_ = now();
  }
  void lap(double pxfast::Profile::*part) {
    if (!profile) return;
    const double t = now();
    profile->*part += t - last_;
    last_ = t;
  }

 private:
  double last_ = 0.0;
};

}  // namespace
