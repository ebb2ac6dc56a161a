// The two heads with the fused constrained argmax: only the values in range are evaluated, ties go to the smallest.
#pragma once

#include <cmath>

#include "vector.h"

namespace {

constexpr int kLevelsOfGrey = 256;
constexpr int kMaxMixtures = 128;

struct Range {  // of values, both ends included
  int low, high;
};

inline Range range_around(int value, int eps) {
  return {value - eps > 0 ? value - eps : 0, value + eps < 255 ? value + eps : 255};
}

// The mixture of one channel: per component its weight (not normalised), mean, inverse scale, and 1 - exp(-width) with
// the bin's width in units of the scale.
struct Mixture {
  int components;
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
    store(m.within_bin + i, one_minus_exp_minus(inverse_scale * broadcast(1.0f / 128.0f)));
  }
}

// The same argmax in log space and double precision, for a range so far out that every mass underflows.
inline int argmax_far_out(const Mixture& m, Range range) {
  const auto log_sigmoid = [](double x) { return x >= 0 ? -std::log1p(std::exp(-x)) : x - std::log1p(std::exp(x)); };
  int best = range.low;
  double best_log = -HUGE_VAL;
  for (int z = range.low; z <= range.high; ++z) {
    double highest = -HUGE_VAL, sum = 0.0;
    for (int i = 0; i < m.components; ++i) {
      const double scale = m.inverse_scale[i];
      const double lower = scale * ((z - 128) / 128.0 - m.mean[i]);
      const double width = scale / 128.0;
      double log_mass = m.log_weight[i];
      if (z < 255) log_mass += log_sigmoid(lower + width);
      if (z > 0) log_mass += log_sigmoid(-lower);
      if (z > 0 && z < 255) log_mass += std::log(-std::expm1(-width));
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

// Value z has the bin [(z - 128) / 128, (z - 127) / 128); with its edges a < b in units of the scale its mass is
// sigmoid(b) * sigmoid(-a) * (1 - exp(a - b)), and neighbouring values share an edge.
inline int argmax_mixture(const Mixture& m, Range range) {
  constexpr int kEdges = kLevelsOfGrey + 2 * pxfast::kLanes;
  alignas(64) float below[kEdges], above[kEdges], mass[kEdges];
  const int values = range.high - range.low + 1;
  for (int z = 0; z < values; z += pxfast::kLanes) store(mass + z, broadcast(0.0f));
  float mass_of_0 = 0.0f, mass_of_255 = 0.0f;
  alignas(64) float ramp[pxfast::kLanes];
  for (int i = 0; i < pxfast::kLanes; ++i) ramp[i] = (float)(range.low - 128 + i);
  const Vector first = load(ramp);
  for (int i = 0; i < m.components; ++i) {
    const Vector scale = broadcast(m.inverse_scale[i]), mean = broadcast(m.mean[i]);
    for (int z = 0; z <= values; z += pxfast::kLanes) {
      const Vector position = (first + broadcast((float)z)) * broadcast(1.0f / 128.0f);
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
  int best = 0;
  for (int z = 1; z < values; ++z)
    if (mass[z] > mass[best]) best = z;
  if (!(mass[best] > 1e-30f)) return argmax_far_out(m, range);
  return range.low + best;
}

// Chooses all channels of one pixel. parameters: the network's output there (readable kLanes floats past its end).
inline void choose_logistic(const pxfast::Program& program, const float* parameters, const uint8_t* around, int eps,
                            long channel_stride, uint8_t* chosen) {
  Mixture m;
  m.components = program.mixtures;
  mixture_weights(parameters, m);
  for (int c = 0; c < program.channels; ++c) {
    mixture_of_channel(parameters, program.channels, c, chosen, m);
    chosen[c] = (uint8_t)argmax_mixture(m, range_around(around[c * channel_stride], eps));
  }
}

inline void choose_softmax(const pxfast::Program& program, const float* parameters, const uint8_t* around, int eps,
                           long channel_stride, uint8_t* chosen) {
  const float* table = program.tables;
  for (int c = 0; c < program.channels; ++c) {
    const Range range = range_around(around[c * channel_stride], eps);
    const float* logits = parameters + c * kLevelsOfGrey;
    const float* rows[2] = {nullptr, nullptr};
    for (int earlier = 0; earlier < c; ++earlier, table += kLevelsOfGrey * kLevelsOfGrey)
      rows[earlier] = table + (long)chosen[earlier] * kLevelsOfGrey;
    int best = range.low;
    float best_logit = -HUGE_VALF;
    for (int z = range.low; z <= range.high; ++z) {
      float logit = logits[z];
      for (int earlier = 0; earlier < c; ++earlier) logit += rows[earlier][z];
      if (logit > best_logit) best_logit = logit, best = z;
    }
    chosen[c] = (uint8_t)best;
  }
}

}  // namespace
