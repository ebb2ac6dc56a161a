// What the kernels ask of the machine: every PTX instruction stands here. On a host without a GPU the tests compile the
// kernels against tests/support/cuda_shim/shim.h, which has a twin of each of these functions.
#pragma once

#include <cstdint>

#if defined(PXFAST_CUDA_SHIM)
#include "shim.h"
#else

#include <cuda_runtime.h>

#define PXFAST_DEVICE __device__ __forceinline__

namespace pxfast {
namespace cuda {

PXFAST_DEVICE int thread_index() { return threadIdx.x; }
// The same to the programmer. What is made of it is made again each time, and holds no register in between.
PXFAST_DEVICE int thread_index_again() {
  int index = threadIdx.x;
  asm volatile("" : "+r"(index));
  return index;
}
PXFAST_DEVICE int block_index() { return blockIdx.x; }
PXFAST_DEVICE void sync_block() { __syncthreads(); }
// So many threads of the block, whole warps, which name the same barrier.
template <int kBarrier, int kSome>
PXFAST_DEVICE void sync_some() {
  asm volatile("bar.sync %0, %1;\n" ::"n"(kBarrier), "n"(kSome) : "memory");
}
PXFAST_DEVICE void sync_warp() { __syncwarp(); }

PXFAST_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char shared[];
  return shared;
}

template <class T>
PXFAST_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

template <class T>
PXFAST_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

PXFAST_DEVICE uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// Which lanes of the warp say so, a bit for each.
PXFAST_DEVICE uint32_t ballot(bool said) { return __ballot_sync(0xffffffffu, said); }
PXFAST_DEVICE int count_bits(uint32_t bits) { return __popc(bits); }

// A value that all lanes have, known to the compiler as such.
PXFAST_DEVICE int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

// 16 bytes from global to shared memory, past the first-level cache; both ends 16-byte aligned.
PXFAST_DEVICE void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(shared_address(shared)),
               "l"(global)
               : "memory");
}
PXFAST_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Until all but the last kPending committed groups of this thread's copies have landed.
template <int kPending>
PXFAST_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Two floats to bf16, to nearest, ties to even; `low` in the low half.
PXFAST_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// sum (16 x 8) += a (16 x 16) b (16 x 8). With g = lane / 4 and t = lane % 4 a lane holds, as pairs: a of row g at
// 2t in a[0] and at 2t + 8 in a[2], of row g + 8 in a[1] and a[3]; b of column g at 2t in b[0] and at 2t + 8 in b[1];
// sums of row g at columns 2t and 2t + 1 in sum[0] and sum[1], of row g + 8 in sum[2] and sum[3].
PXFAST_DEVICE void multiply_add(float* sum, const uint32_t* a, const uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

PXFAST_DEVICE float fused_multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// exp and 1 / x as fast as bf16 results need them. Results below 2^-126 are 0: to keep those would take five
// instructions in place of two.
PXFAST_DEVICE float fast_exp(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
  return y;
}
PXFAST_DEVICE float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Global memory that other blocks write during the launch is read and written in the second-level cache.
struct alignas(8) Float2 {
  float x, y;
};
PXFAST_DEVICE Float2 load_shared_between_blocks(const Float2* p) {
  const float2 v = __ldcg(reinterpret_cast<const float2*>(p));
  return {v.x, v.y};
}
PXFAST_DEVICE float load_shared_between_blocks(const float* p) { return __ldcg(p); }
PXFAST_DEVICE int load_shared_between_blocks(const int* p) { return __ldcg(p); }
PXFAST_DEVICE uint8_t load_shared_between_blocks(const uint8_t* p) { return __ldcg(p); }
PXFAST_DEVICE void store_shared_between_blocks(Float2* p, Float2 v) {
  __stcg(reinterpret_cast<float2*>(p), make_float2(v.x, v.y));
}
PXFAST_DEVICE void store_shared_between_blocks(float* p, float v) { __stcg(p, v); }
PXFAST_DEVICE void store_shared_between_blocks(uint32_t* p, uint32_t v) { __stcg(p, v); }
PXFAST_DEVICE void store_shared_between_blocks(uint16_t* p, uint16_t v) { __stcg(p, v); }
PXFAST_DEVICE void store_shared_between_blocks(int* p, int v) { __stcg(p, v); }
PXFAST_DEVICE void store_shared_between_blocks(uint8_t* p, uint8_t v) { __stcg(p, v); }
PXFAST_DEVICE void atomic_min(int* p, int v) { atomicMin(p, v); }

// What a launch never writes.
template <class T>
PXFAST_DEVICE T load_constant(const T* p) {
  return __ldg(p);
}
PXFAST_DEVICE Float2 load_constant(const Float2* p) {
  const float2 v = __ldg(reinterpret_cast<const float2*>(p));
  return {v.x, v.y};
}
// Brings it near, for a load that comes soon.
PXFAST_DEVICE void prefetch_constant(const void* p) { asm volatile("prefetch.global.L1 [%0];\n" ::"l"(p)); }

// Adds one to a count of arrivals; everything this thread has seen written is visible to whoever sees the count. A
// release and an acquire are enough for that: sequentially consistent fences on top would cost a round trip each.
PXFAST_DEVICE void arrive(unsigned int* count) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;\n" ::"l"(count) : "memory");
}
PXFAST_DEVICE void wait_for_arrivals(const unsigned int* count, unsigned int wanted) {
  unsigned int found;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];\n" : "=r"(found) : "l"(count) : "memory");
  } while (found < wanted);
}

// ---- clusters of blocks, and copies that a barrier counts; compute capability 9.0 ----

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 900
constexpr bool kHasClusters = true;
#define PXFAST_HOPPER_ASM(...) asm volatile(__VA_ARGS__)
#else
constexpr bool kHasClusters = false;
#define PXFAST_HOPPER_ASM(...) __trap()
#endif

// Meeting of all threads of a cluster; what they wrote before it is seen behind it.
PXFAST_DEVICE void sync_cluster() {
  PXFAST_HOPPER_ASM("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}

// A barrier in shared memory, counting arrivals and bytes.
using CopyBarrier = uint64_t;

PXFAST_DEVICE void start_barrier(CopyBarrier* barrier, int arrivals) {
  PXFAST_HOPPER_ASM("mbarrier.init.shared::cta.b64 [%0], %1;\nfence.mbarrier_init.release.cluster;\n" ::"r"(
                        shared_address(barrier)),
                    "r"(arrivals)
                    : "memory");
}
PXFAST_DEVICE void arrive(CopyBarrier* barrier) {
  PXFAST_HOPPER_ASM("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives at the barrier, which then also waits for so many bytes of copies.
PXFAST_DEVICE void expect_bytes(CopyBarrier* barrier, uint32_t bytes) {
  PXFAST_HOPPER_ASM("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(bytes)
                    : "memory");
}
// Until the phase of this parity, 0 at first, is complete.
PXFAST_DEVICE void wait_for_barrier(CopyBarrier* barrier, int parity) {
  PXFAST_HOPPER_ASM(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
// Bytes from global to shared memory, by the copy engine; the barrier counts them. A multiple of 16 bytes, both ends
// 16-byte aligned.
PXFAST_DEVICE void copy_bulk(void* shared, const void* global, uint32_t bytes, CopyBarrier* barrier) {
  PXFAST_HOPPER_ASM(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(
          shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
// What this thread has written to global memory, and what others have and it has heard of, comes before bulk copies of it.
PXFAST_DEVICE void fence_global_copies() { PXFAST_HOPPER_ASM("fence.proxy.async.global;\n" ::: "memory"); }

// ---- warpgroups: four warps that multiply from shared memory; compute capability 9.0 with its own features ----

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PXFAST_GROUPS 1
#define PXFAST_GROUP_ASM(...) asm volatile(__VA_ARGS__)
#else
#define PXFAST_GROUPS 0
#define PXFAST_GROUP_ASM(...) __trap()
#endif

// Comes before the first product and after anything else that has touched its sums.
PXFAST_DEVICE void begin_products() { PXFAST_GROUP_ASM("wgmma.fence.sync.aligned;\n" ::: "memory"); }
PXFAST_DEVICE void commit_products() { PXFAST_GROUP_ASM("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Until all but the last kPending committed groups of products have read their operands and added to their sums.
template <int kPending>
PXFAST_DEVICE void wait_products() {
  PXFAST_GROUP_ASM("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}
// Keeps the compiler from reading a sum before what stands above.
PXFAST_DEVICE void hold_here(float& sum) { PXFAST_GROUP_ASM("" : "+f"(sum)::"memory"); }

// sums (64 x 80) += a (64 x 16) b (16 x 80), asynchronously, all in bf16 but the sums. The operands are described as
// group_tile.cuh does. Warp w of the group holds rows 16 w to 16 w + 15, ten times what multiply_add has of 8 columns.
PXFAST_DEVICE void multiply_group(float (&s)[5][8], uint64_t a, uint64_t b) {
#define PXFAST_SUMS(i) \
  "+f"(s[i][0]), "+f"(s[i][1]), "+f"(s[i][2]), "+f"(s[i][3]), "+f"(s[i][4]), "+f"(s[i][5]), "+f"(s[i][6]), "+f"(s[i][7])
  PXFAST_GROUP_ASM(
      "{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39}, "
      "%40, %41, add, 1, 1, 0, 0;\n}\n"
      : PXFAST_SUMS(0), PXFAST_SUMS(1), PXFAST_SUMS(2), PXFAST_SUMS(3), PXFAST_SUMS(4)
      : "l"(a), "l"(b)
      : "memory");
#undef PXFAST_SUMS
}

}  // namespace cuda
}  // namespace pxfast

#endif
