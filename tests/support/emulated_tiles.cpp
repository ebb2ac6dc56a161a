// The CPU engine's build for AMX on any machine: its own source, with the instructions in plain code. It stands in for the
// portable build's bf16.
#include <cstdio>
#include <cstdlib>

#include "cpu/vector.h"

namespace {

inline void store_first(Bf16* to, const Vector& x, int count) {
  float lanes[pxfast::kLanes];
  store(lanes, x);
  for (int i = 0; i < pxfast::kLanes && i < count; ++i) store_scalar(to + i, lanes[i]);
}

}  // namespace

#define PXFAST_TEST_TILES "emulated_tiles.h"
#define kBackendFp32_avx512amx kBackendFp32_emulated
#define kBackendBf16_avx512amx kBackendBf16_portable
#include "cpu/isa_avx512amx.cpp"
