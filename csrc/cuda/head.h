// The heads with the fused choice of a value, for a group of lanes that share one pixel of one image: a warp on the
// device, a single lane on the host, where the tests compare it with the CPU engine.
#pragma once

#include <cmath>

#include "philox.h"
#include "program.h"

namespace pxfast {
namespace cuda {

constexpr int kValues = 256;  // of a sub-pixel
constexpr int kMaxMixtures = 128;

struct Range {  // of values, both ends included
  int low, high;
};

// What the lanes of a group share.
struct HeadScratch {
  float log_weight[kMaxMixtures], weight[kMaxMixtures];  // of the components, not normalised
  float mean[kMaxMixtures], inverse_scale[kMaxMixtures];
  float within_bin[kMaxMixtures];  // 1 - exp(-width of a bin in units of the scale)
  float mass[kValues];
  uint8_t chosen[4];
};

PXFAST_HD float to_unit(int value) { return ((float)value - 127.5f) / 127.5f; }

// 1 - exp(-w) for w > 0
PXFAST_HD float one_minus_exp_minus(float w) { return -expm1f(-w); }

// A function of its own, since it is long and seldom needed.
#if defined(__CUDACC__)
#define PXFAST_HD_RARE static __host__ __device__ __noinline__
#else
#define PXFAST_HD_RARE inline
#endif

PXFAST_HD double log_sigmoid(double x) { return x >= 0 ? -log1p(exp(-x)) : x - log1p(exp(x)); }

struct MixtureShape {
  int components;
  float bin_width;  // value z has the bin [(z - 128) * width, (z - 127) * width); 0 and 255 take the tails
};

template <class Group>
PXFAST_HD void mixture_weights(const Group& group, const MixtureShape& shape, const float* logits, HeadScratch& m) {
  float highest = logits[0];
  for (int i = 1; i < shape.components; ++i) highest = logits[i] > highest ? logits[i] : highest;
  for (int i = group.lane(); i < shape.components; i += group.lanes()) {
    m.log_weight[i] = logits[i] - highest;
    m.weight[i] = expf(logits[i] - highest);
  }
}

// Parameters of `channel` given the values already chosen for the earlier channels, in PixelCNN++'s layout.
template <class Group>
PXFAST_HD void mixture_of_channel(const Group& group, const MixtureShape& shape, const float* parameters, int channels,
                                  int channel, HeadScratch& m) {
  const int K = shape.components;
  const int stride = channels == 3 ? 3 * K : 2 * K;
  const float* means = parameters + K + channel * stride;
  const float* coefficients = parameters + K + 2 * K;  // of channel 0; the next channels' follow at `stride`
  for (int i = group.lane(); i < K; i += group.lanes()) {
    float mean = means[i];
    if (channel == 1) mean = fmaf(tanhf(coefficients[i]), to_unit(m.chosen[0]), mean);
    if (channel == 2) {
      mean = fmaf(tanhf(coefficients[stride + i]), to_unit(m.chosen[0]), mean);
      mean = fmaf(tanhf(coefficients[2 * stride + i]), to_unit(m.chosen[1]), mean);
    }
    m.mean[i] = mean;
    m.inverse_scale[i] = expf(-fmaxf(means[K + i], -7.0f));
    m.within_bin[i] = one_minus_exp_minus(m.inverse_scale[i] * shape.bin_width);
  }
}

// The mass of one value's bin, not normalised. With the edges a < b of a bin in units of the scale a component's mass
// is sigmoid(b) * sigmoid(-a) * (1 - exp(a - b)): no cancellation.
PXFAST_HD float mixture_mass(const MixtureShape& shape, const HeadScratch& m, int value) {
  float mass = 0.0f;
  for (int i = 0; i < shape.components; ++i) {
    const float scale = m.inverse_scale[i], mean = m.mean[i];
    const float lower = scale * ((float)(value - 128) * shape.bin_width - mean);
    const float upper = scale * ((float)(value - 127) * shape.bin_width - mean);
    const float lower_t = expf(-fabsf(lower)), upper_t = expf(-fabsf(upper));
    const float above_lower = (lower >= 0.0f ? lower_t : 1.0f) / (1.0f + lower_t);
    const float below_upper = (upper >= 0.0f ? 1.0f : upper_t) / (1.0f + upper_t);
    const float share = value == 0                ? below_upper
                        : value == kValues - 1    ? above_lower
                                                  : m.within_bin[i] * below_upper * above_lower;
    mass = fmaf(m.weight[i], share, mass);
  }
  return mass;
}

// Log of a component's mass in the bin of a value, in double precision.
PXFAST_HD_RARE double log_bin_mass(double mean, double scale, double bin_width, int value) {
  const double width = scale * bin_width, lower = scale * ((value - 128) * bin_width - mean);
  double log_mass = 0.0;
  if (value < kValues - 1) log_mass += log_sigmoid(lower + width);
  if (value > 0) log_mass += log_sigmoid(-lower);
  if (value > 0 && value < kValues - 1) log_mass += log(-expm1(-width));
  return log_mass;
}

// Log of the mass of one value's bin, for a range so far out that every mass underflows.
PXFAST_HD_RARE float log_mixture_mass(const MixtureShape& shape, const HeadScratch& m, int value) {
  double highest = -HUGE_VAL, sum = 0.0;
  for (int i = 0; i < shape.components; ++i) {
    const double log_mass = m.log_weight[i] + log_bin_mass(m.mean[i], m.inverse_scale[i], shape.bin_width, value);
    if (log_mass > highest) {
      sum = sum * exp(highest - log_mass) + 1.0;
      highest = log_mass;
    } else {
      sum += exp(log_mass - highest);
    }
  }
  return (float)(highest + log(sum));
}

// What a chosen value says about which component made the pixel: log w += log p(value), rescaled.
template <class Group>
PXFAST_HD void condition_weights(const Group& group, const MixtureShape& shape, int value, HeadScratch& m) {
  for (int i = group.lane(); i < shape.components; i += group.lanes())
    m.mass[i] = (float)(m.log_weight[i] + log_bin_mass(m.mean[i], m.inverse_scale[i], shape.bin_width, value));
  group.sync();
  float highest = m.mass[0];
  for (int i = 1; i < shape.components; ++i) highest = m.mass[i] > highest ? m.mass[i] : highest;
  for (int i = group.lane(); i < shape.components; i += group.lanes()) {
    m.log_weight[i] = m.mass[i] - highest;
    m.weight[i] = expf(m.mass[i] - highest);
  }
  group.sync();
}

// The least value of the largest mass in a range, the same for all lanes; its mass in `largest`.
template <class Group>
PXFAST_HD int best_value(const Group& group, const float* mass, Range range, float& largest) {
  int best = kValues;
  largest = -HUGE_VALF;
  for (int z = range.low + group.lane(); z <= range.high; z += group.lanes())
    if (best == kValues || mass[z] > largest) largest = mass[z], best = z;
  group.combine(largest, best);
  return best;
}

// The first value whose cumulative mass exceeds a uniform share of the whole. One lane's work: the order of the sums is
// part of the result.
PXFAST_HD int sample_value(const Chooser& chooser, int64_t image, uint32_t position, float* mass) {
  if (chooser.inverse_temperature != 1.0f) {
    float highest = 0.0f;
    PXFAST_UNROLL_SOME
    for (int z = 0; z < kValues; ++z) highest = mass[z] > highest ? mass[z] : highest;
    PXFAST_UNROLL_SOME
    for (int z = 0; z < kValues; ++z) mass[z] = powf(mass[z] / highest, chooser.inverse_temperature);
  }
  double total = 0.0, sum = 0.0;
  PXFAST_UNROLL_SOME
  for (int z = 0; z < kValues; ++z) total += mass[z];
  const double target = uniform_of(chooser.seed, chooser.first + (uint64_t)image, position) * total;
  PXFAST_UNROLL_SOME
  for (int z = 0; z < kValues; ++z) {
    sum += mass[z];
    if (sum > target) return z;
  }
  return kValues - 1;
}

// The chooser at one pixel of one image.
struct PixelChooser {
  const Chooser* all;
  int64_t image;
  uint32_t position;  // in raster order, of the pixel's first channel
  int eps;            // of the image; unused when sampling

  PXFAST_HD bool samples() const { return all->eps == nullptr; }
  PXFAST_HD bool keeps() const { return all->keep_probability <= 1.0f; }
  PXFAST_HD bool needs_total() const { return samples() || keeps(); }
  PXFAST_HD Range range(int value) const {
    if (samples()) return {0, kValues - 1};
    return {value > eps ? value - eps : 0, value + eps < kValues - 1 ? value + eps : kValues - 1};
  }

  // Picks among m.mass, whose values in range are known; `total` is that of all 256, `value` the input's. -1 when all
  // of them are too small to tell apart. The same for all lanes.
  template <class Group>
  PXFAST_HD int pick(const Group& group, HeadScratch& m, Range range, float total, int value, int channel) const {
    if (samples()) {
      if (group.lane() == 0) m.chosen[3] = (uint8_t)sample_value(*all, image, position + (uint32_t)channel, m.mass);
      group.sync();
      return m.chosen[3];
    }
    if (keeps() && m.mass[value] >= all->keep_probability * total) return value;
    float largest;
    const int best = best_value(group, m.mass, range, largest);
    return largest > 1e-30f ? best : -1;
  }
};

// Chooses all channels of one pixel into m.chosen. parameters: the network's output there; around: the input's values.
template <class Group>
PXFAST_HD void choose_logistic(const Group& group, const Program& program, const float* parameters,
                               const uint8_t* around, const PixelChooser& chooser, int64_t channel_stride,
                               HeadScratch& m) {
  const bool shared = program.head == HeadKind::kPixelCnnPlusPlus;
  const MixtureShape shape{program.mixtures, shared ? 1.0f / 127.5f : 1.0f / 128.0f};
  mixture_weights(group, shape, parameters, m);
  for (int c = 0; c < program.channels; ++c) {
    const int value = around[c * channel_stride];
    const Range range = chooser.range(value);
    mixture_of_channel(group, shape, parameters, program.channels, c, m);
    group.sync();
    for (int z = range.low + group.lane(); z <= range.high; z += group.lanes()) m.mass[z] = mixture_mass(shape, m, z);
    group.sync();
    float total = 0.0f;
    for (int i = 0; i < shape.components; ++i) total += m.weight[i];
    int picked = chooser.pick(group, m, range, total, value, c);
    if (picked < 0) {
      group.sync();
      for (int z = range.low + group.lane(); z <= range.high; z += group.lanes())
        m.mass[z] = log_mixture_mass(shape, m, z);
      group.sync();
      float largest;
      picked = best_value(group, m.mass, range, largest);
    }
    if (group.lane() == 0) m.chosen[c] = (uint8_t)picked;
    group.sync();
    if (shared && c + 1 < program.channels) condition_weights(group, shape, picked, m);
  }
}

// The same for the softmax head; tables: (pairs, 256, 256), pairs R->G, R->B, G->B.
template <class Group>
PXFAST_HD void choose_softmax(const Group& group, const Program& program, const float* tables, const float* parameters,
                              const uint8_t* around, const PixelChooser& chooser, int64_t channel_stride,
                              HeadScratch& m) {
  const float* table = tables;
  for (int c = 0; c < program.channels; ++c) {
    const int value = around[c * channel_stride];
    const Range range = chooser.range(value);
    const Range needed = chooser.needs_total() ? Range{0, kValues - 1} : range;
    for (int z = needed.low + group.lane(); z <= needed.high; z += group.lanes()) {
      float logit = parameters[c * kValues + z];
      for (int earlier = 0; earlier < c; ++earlier)
        logit += table[((int64_t)earlier * kValues + m.chosen[earlier]) * kValues + z];
      m.mass[z] = logit;
    }
    group.sync();
    table += (int64_t)c * kValues * kValues;
    float highest;
    int picked = best_value(group, m.mass, range, highest);
    if (chooser.needs_total()) {
      best_value(group, m.mass, needed, highest);
      group.sync();
      for (int z = group.lane(); z < kValues; z += group.lanes()) m.mass[z] = expf(m.mass[z] - highest);
      group.sync();
      float total = 0.0f;
      PXFAST_UNROLL_SOME
      for (int z = 0; z < kValues; ++z) total += m.mass[z];
      const int found = chooser.pick(group, m, range, total, value, c);
      if (found >= 0) picked = found;
    }
    group.sync();
    if (group.lane() == 0) m.chosen[c] = (uint8_t)picked;
    group.sync();
  }
}

}  // namespace cuda
}  // namespace pxfast
