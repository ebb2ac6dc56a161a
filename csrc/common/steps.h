// What a step of the network is to both engines: its kinds, its limits, the positions that it reads and writes.
//
// Plain data, and functions in an unnamed namespace: the CPU engine includes this under several instruction sets, and a
// function compiled for AVX-512 must never be the copy that the linker keeps for an older machine. For the same reason
// there are no standard-library templates here.
#pragma once

#include "host_device.h"

namespace pxfast {

constexpr int kMaxTaps = 16;  // of one step
constexpr int kMaxBiases = 2;
constexpr int kLevels = 3;

enum class Epilogue : int {
  kHidden,   // concat-ELU of the sum into a cache
  kGate,     // residual += a * sigmoid(b), then publish
  kPublish,  // residual = sum, then publish
  kOutput,   // parameters of the head
};

enum class Scale : int { kSame, kDown, kUp };  // input position: as output, twice, half

// Two orders of evaluation, one result: pixel by pixel, or rows guessed and repaired (small batches).
enum class Order : int { kAuto, kSequential, kSpeculative };

enum class HeadKind : int {
  kLogistic,         // mixture per channel, bins of width 1/128 (PixelDefend)
  kSoftmax,          // 256 free logits per channel
  kPixelCnnPlusPlus  // mixture shared by a pixel's channels, bins of width 1/127.5
};

namespace {

// The row or column that a step reads for one that it writes, before a tap's own offset.
PXFAST_HD int in_position(int position, Scale scale) {
  return scale == Scale::kDown ? 2 * position : scale == Scale::kUp ? position >> 1 : position;
}

PXFAST_HD int level_size(int size, int level) { return size >> level; }

// The columns of a level that a range of the image's columns needs: [first, last).
PXFAST_HD int first_column(int begin, int level) { return (begin + (1 << level) - 1) >> level; }
PXFAST_HD int last_column(int end, int level) { return ((end - 1) >> level) + 1; }

// The network's view of a pixel: 2v - 255 of each channel, an odd integer below 256 and so exact in bf16, and a channel
// of ones, which are 255 in these units; the steps that read it multiply by 1/255.
PXFAST_HD float network_view(int value) { return (float)(2 * value - 255); }
constexpr float kOne = 255.0f;

}  // namespace
}  // namespace pxfast
