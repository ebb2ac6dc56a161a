// Marks of functions that both engines' code calls, on the host and, where nvcc compiles them, on the device.
#pragma once

#if defined(__CUDACC__)
#define PXFAST_HD __host__ __device__ __forceinline__
#define PXFAST_HD_RARE static __host__ __device__ __noinline__  // long and seldom needed: a function of its own
#else
#define PXFAST_HD inline
#define PXFAST_HD_RARE inline
#endif
// On a loop over all values: not 256 turns at once, in as many registers.
#if defined(__CUDA_ARCH__)
#define PXFAST_UNROLL_SOME _Pragma("unroll 4")
#else
#define PXFAST_UNROLL_SOME
#endif
