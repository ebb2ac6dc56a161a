// The heads with the fused choice of a value: only the values in range are evaluated, ties go to the smallest.
#pragma once

#include <cmath>

#include "../philox.h"
#include "vector.h"

namespace {

constexpr int kLevelsOfGrey = 256;
constexpr int kMaxMixtures = 128;

struct Range {  // of values, both ends included
  int low, high;
};

// The chooser at one pixel of one image.
struct PixelChooser {
  const pxfast::Chooser& all;
  int image;
  int position;  // in raster order, of the pixel's first channel

  PixelChooser(const pxfast::Chooser& all, int image, int position) : all(all), image(image), position(position) {}

  bool samples() const { return all.eps == nullptr; }
  bool keeps() const { return all.keep_probability <= 1.0f; }
  bool needs_total() const { return samples() || keeps(); }

  // the values that come into question where the input has `value`
  Range range(int value) const {
    if (samples()) return {0, kLevelsOfGrey - 1};
    const int eps = all.eps[image];
    return {value - eps > 0 ? value - eps : 0, value + eps < kLevelsOfGrey - 1 ? value + eps : kLevelsOfGrey - 1};
  }

  // Picks among the masses of a range; `total` is that of all 256 values, `value` the input's. -1 when all of them are
  // too small to tell apart.
  int pick(float* mass, Range range, float total, int value, int channel) const {
    const int values = range.high - range.low + 1;
    if (samples()) return sample(mass, channel);
    if (keeps() && mass[value - range.low] >= all.keep_probability * total) return value;
    int best = 0;
    for (int z = 1; z < values; ++z)
      if (mass[z] > mass[best]) best = z;
    return mass[best] > 1e-30f ? range.low + best : -1;
  }

 private:
  // The first value whose cumulative mass exceeds a uniform share of the whole.
  int sample(float* mass, int channel) const {
    if (all.inverse_temperature != 1.0f) {
      float highest = 0.0f;
      for (int z = 0; z < kLevelsOfGrey; ++z) highest = mass[z] > highest ? mass[z] : highest;
      for (int z = 0; z < kLevelsOfGrey; ++z) mass[z] = std::pow(mass[z] / highest, all.inverse_temperature);
    }
    double total = 0.0, sum = 0.0;
    for (int z = 0; z < kLevelsOfGrey; ++z) total += mass[z];
    const double target = uniform_of(all.seed, all.first + (uint64_t)image, (uint32_t)(position + channel)) * total;
    for (int z = 0; z < kLevelsOfGrey; ++z) {
      sum += mass[z];
      if (sum > target) return z;
    }
    return kLevelsOfGrey - 1;
  }
};

// The mixture of one channel: per component its weight (not normalised), mean, inverse scale, and 1 - exp(-width) with
// the bin's width in units of the scale. Value z has the bin [(z - 128) * width, (z - 127) * width).
struct Mixture {
  int components;
  float bin_width;
  float log_weight[kMaxMixtures + pxfast::kLanes];
  float weight[kMaxMixtures + pxfast::kLanes];
  float mean[kMaxMixtures + pxfast::kLanes];
  float inverse_scale[kMaxMixtures + pxfast::kLanes];
  float within_bin[kMaxMixtures + pxfast::kLanes];
};

inline float to_unit(int value) { return ((float)value - 127.5f) / 127.5f; }

// 1 - exp(-w) for w > 0, without cancellation for small w
inline Vector one_minus_exp_minus(const Vector& w) {
  const Vector one = broadcast(1.0f);
  Vector series = one - w * broadcast(1.0f / 6.0f);
  series = one - w * broadcast(1.0f / 5.0f) * series;
  series = one - w * broadcast(1.0f / 4.0f) * series;
  series = one - w * broadcast(1.0f / 3.0f) * series;
  series = w * (one - w * broadcast(0.5f) * series);
  return where_nonnegative(w - broadcast(0.25f), one - exp(negate(w)), series);
}

inline void mixture_weights(const float* logits, Mixture& m) {
  float highest = logits[0];
  for (int i = 1; i < m.components; ++i) highest = logits[i] > highest ? logits[i] : highest;
  for (int i = 0; i < m.components; i += pxfast::kLanes) {
    const Vector log_weight = load(logits + i) - broadcast(highest);
    store(m.log_weight + i, log_weight);
    store(m.weight + i, exp(log_weight));
  }
}

// Parameters of `channel` given the values already chosen for the earlier channels, in PixelCNN++'s layout.
inline void mixture_of_channel(const float* parameters, int channels, int channel, const uint8_t* chosen, Mixture& m) {
  const int K = m.components;
  const int stride = channels == 3 ? 3 * K : 2 * K;
  const float* means = parameters + K + channel * stride;
  const float* coefficients = parameters + K + 2 * K;  // of channel 0; the next channels' follow at `stride`
  for (int i = 0; i < K; i += pxfast::kLanes) {
    Vector mean = load(means + i);
    if (channel == 1) mean = fma(tanh(load(coefficients + i)), broadcast(to_unit(chosen[0])), mean);
    if (channel == 2) {
      mean = fma(tanh(load(coefficients + stride + i)), broadcast(to_unit(chosen[0])), mean);
      mean = fma(tanh(load(coefficients + 2 * stride + i)), broadcast(to_unit(chosen[1])), mean);
    }
    const Vector log_scale = max(load(means + K + i), broadcast(-7.0f));
    const Vector inverse_scale = exp(negate(log_scale));
    store(m.mean + i, mean);
    store(m.inverse_scale + i, inverse_scale);
    store(m.within_bin + i, one_minus_exp_minus(inverse_scale * broadcast(m.bin_width)));
  }
}

// Log of a component's mass in the bin of a value, in double precision.
inline double log_bin_mass(const Mixture& m, int component, int value) {
  const auto log_sigmoid = [](double x) { return x >= 0 ? -std::log1p(std::exp(-x)) : x - std::log1p(std::exp(x)); };
  const double scale = m.inverse_scale[component], width = scale * m.bin_width;
  const double lower = scale * ((value - 128) * (double)m.bin_width - m.mean[component]);
  double log_mass = 0.0;
  if (value < 255) log_mass += log_sigmoid(lower + width);
  if (value > 0) log_mass += log_sigmoid(-lower);
  if (value > 0 && value < 255) log_mass += std::log(-std::expm1(-width));
  return log_mass;
}

// The argmax in log space and double precision, for a range so far out that every mass underflows.
inline int argmax_far_out(const Mixture& m, Range range) {
  int best = range.low;
  double best_log = -HUGE_VAL;
  for (int z = range.low; z <= range.high; ++z) {
    double highest = -HUGE_VAL, sum = 0.0;
    for (int i = 0; i < m.components; ++i) {
      const double log_mass = m.log_weight[i] + log_bin_mass(m, i, z);
      if (log_mass > highest) {
        sum = sum * std::exp(highest - log_mass) + 1.0;
        highest = log_mass;
      } else {
        sum += std::exp(log_mass - highest);
      }
    }
    const double log_probability = highest + std::log(sum);
    if (log_probability > best_log) best_log = log_probability, best = z;
  }
  return best;
}

// What a chosen value says about which component made the pixel: log w += log p(value), rescaled.
inline void condition_weights(Mixture& m, int value) {
  double log_weight[kMaxMixtures];
  double highest = -HUGE_VAL;
  for (int i = 0; i < m.components; ++i) {
    log_weight[i] = m.log_weight[i] + log_bin_mass(m, i, value);
    if (log_weight[i] > highest) highest = log_weight[i];
  }
  for (int i = 0; i < m.components; ++i) {
    m.log_weight[i] = (float)(log_weight[i] - highest);
    m.weight[i] = (float)std::exp(log_weight[i] - highest);
  }
}

constexpr int kEdges = kLevelsOfGrey + 2 * pxfast::kLanes;

// The masses of the values of a range. With the edges a < b of a bin in units of the scale its mass is
// sigmoid(b) * sigmoid(-a) * (1 - exp(a - b)), and neighbouring values share an edge.
inline void mixture_masses(const Mixture& m, Range range, float* mass) {
  alignas(64) float below[kEdges], above[kEdges];
  const int values = range.high - range.low + 1;
  for (int z = 0; z < values; z += pxfast::kLanes) store(mass + z, broadcast(0.0f));
  float mass_of_0 = 0.0f, mass_of_255 = 0.0f;
  alignas(64) float ramp[pxfast::kLanes];
  for (int i = 0; i < pxfast::kLanes; ++i) ramp[i] = (float)(range.low - 128 + i);
  const Vector first = load(ramp);
  for (int i = 0; i < m.components; ++i) {
    const Vector scale = broadcast(m.inverse_scale[i]), mean = broadcast(m.mean[i]);
    for (int z = 0; z <= values; z += pxfast::kLanes) {
      const Vector position = (first + broadcast((float)z)) * broadcast(m.bin_width);
      const Vector edge = scale * (position - mean);
      const Vector t = exp(negative_abs(edge));
      const Vector s = broadcast(1.0f) / (broadcast(1.0f) + t);
      store(below + z, where_nonnegative(edge, s, t * s));
      store(above + z, where_nonnegative(edge, t * s, s));
    }
    const Vector weight = broadcast(m.weight[i] * m.within_bin[i]);
    for (int z = 0; z < values; z += pxfast::kLanes) {
      store(mass + z, fma(weight * load(below + z + 1), load(above + z), load(mass + z)));
    }
    mass_of_0 += m.weight[i] * below[1];
    mass_of_255 += m.weight[i] * above[values - 1];
  }
  if (range.low == 0) mass[0] = mass_of_0;  // the outermost bins take the tails
  if (range.high == 255) mass[values - 1] = mass_of_255;
}

// Chooses all channels of one pixel. parameters: the network's output there (readable kLanes floats past its end);
// around: the input's values there.
inline void choose_logistic(const pxfast::Program& program, const float* parameters, const uint8_t* around,
                            const PixelChooser& chooser, long channel_stride, uint8_t* chosen) {
  const bool shared = program.head == pxfast::HeadKind::kPixelCnnPlusPlus;
  Mixture m;
  m.components = program.mixtures;
  m.bin_width = shared ? 1.0f / 127.5f : 1.0f / 128.0f;
  mixture_weights(parameters, m);
  for (int c = 0; c < program.channels; ++c) {
    const int value = around[c * channel_stride];
    const Range range = chooser.range(value);
    const bool condition = shared && c + 1 < program.channels;
    if (range.low == range.high && !condition) {
      chosen[c] = (uint8_t)value;
      continue;
    }
    mixture_of_channel(parameters, program.channels, c, chosen, m);
    alignas(64) float mass[kEdges];
    mixture_masses(m, range, mass);
    float total = 0.0f;
    for (int i = 0; i < m.components; ++i) total += m.weight[i];
    const int picked = chooser.pick(mass, range, total, value, c);
    chosen[c] = (uint8_t)(picked >= 0 ? picked : argmax_far_out(m, range));
    if (condition) condition_weights(m, chosen[c]);
  }
}

inline void choose_softmax(const pxfast::Program& program, const float* parameters, const uint8_t* around,
                           const PixelChooser& chooser, long channel_stride, uint8_t* chosen) {
  const float* table = program.tables;
  for (int c = 0; c < program.channels; ++c) {
    const int value = around[c * channel_stride];
    const Range range = chooser.range(value);
    const float* logits = parameters + c * kLevelsOfGrey;
    const float* rows[2] = {nullptr, nullptr};
    for (int earlier = 0; earlier < c; ++earlier, table += kLevelsOfGrey * kLevelsOfGrey)
      rows[earlier] = table + (long)chosen[earlier] * kLevelsOfGrey;
    const Range needed = chooser.needs_total() ? Range{0, kLevelsOfGrey - 1} : range;
    float logit[kLevelsOfGrey];
    int best = range.low;
    for (int z = needed.low; z <= needed.high; ++z) {
      logit[z] = logits[z];
      for (int earlier = 0; earlier < c; ++earlier) logit[z] += rows[earlier][z];
    }
    for (int z = range.low; z <= range.high; ++z)
      if (logit[z] > logit[best]) best = z;
    if (chooser.needs_total()) {
      alignas(64) float mass[kLevelsOfGrey];
      float highest = logit[0], total = 0.0f;
      for (int z = 1; z < kLevelsOfGrey; ++z) highest = logit[z] > highest ? logit[z] : highest;
      for (int z = 0; z < kLevelsOfGrey; z += pxfast::kLanes)
        store(mass + z, exp(load(logit + z) - broadcast(highest)));
      for (int z = 0; z < kLevelsOfGrey; ++z) total += mass[z];
      const int picked = chooser.pick(mass + range.low, range, total, value, c);
      if (picked >= 0) best = picked;
    }
    chosen[c] = (uint8_t)best;
  }
}

}  // namespace
