// The heads with the fused choice of a value: only the values in range are evaluated, ties go to the smallest.
#pragma once

#include <cmath>

#include "common/head.h"
#include "vector.h"

namespace {

using pxfast::kMaxMixtures;
using pxfast::kValues;
using pxfast::PixelChooser;
using pxfast::Range;

// Picks among the masses of a range; `total` is that of all 256 values. -1 when all of them are too small to tell apart.
inline int pick(const PixelChooser& chooser, float* mass, Range range, float total, int channel) {
  if (chooser.samples()) return chooser.sample(mass, range, channel);
  if (chooser.keeps()) {
    const int value = chooser.value(channel);
    if (chooser.keeps_value(mass[value - range.low], total)) return value;
  }
  int best = 0;
  for (int z = 1; z <= range.high - range.low; ++z)
    if (mass[z] > mass[best]) best = z;
  return mass[best] > pxfast::kLeastMass ? range.low + best : -1;
}

// The mixture of one channel: per component its weight (not normalised), mean, inverse scale, and 1 - exp(-width) with
// the bin's width in units of the scale. The logarithms of the scales stay where the network put them.
struct Mixture {
  int components;
  float bin_width;
  const float* log_scales;
  float log_weight[kMaxMixtures + pxfast::kLanes];
  float weight[kMaxMixtures + pxfast::kLanes];
  float mean[kMaxMixtures + pxfast::kLanes];
  float inverse_scale[kMaxMixtures + pxfast::kLanes];
  float within_bin[kMaxMixtures + pxfast::kLanes];
};

// 1 - exp(-w) for w > 0, without cancellation for small w
PXFAST_INLINE Vector one_minus_exp_minus(const Vector& w) {
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

// Parameters of `channel` given the values already chosen for the earlier channels.
inline void mixture_of_channel(const float* parameters, int channels, int channel, const uint8_t* chosen, Mixture& m) {
  const pxfast::ChannelParameters from = pxfast::channel_parameters(parameters, m.components, channels, channel);
  m.log_scales = from.log_scales;
  for (int i = 0; i < m.components; i += pxfast::kLanes) {
    Vector mean = load(from.means + i);
    if (channel > 0) mean = fma(tanh(load(from.by_first + i)), broadcast(pxfast::to_unit(chosen[0])), mean);
    if (channel > 1) mean = fma(tanh(load(from.by_second + i)), broadcast(pxfast::to_unit(chosen[1])), mean);
    const Vector log_scale = max(load(from.log_scales + i), broadcast(pxfast::kLeastLogScale));
    const Vector inverse_scale = exp(negate(log_scale));
    store(m.mean + i, mean);
    store(m.inverse_scale + i, inverse_scale);
    store(m.within_bin + i, one_minus_exp_minus(inverse_scale * broadcast(m.bin_width)));
  }
}

// The argmax in log space and double precision, for a range so far out that every mass underflows.
inline int argmax_far_out(const Mixture& m, Range range) {
  int best = range.low;
  double best_log = -HUGE_VAL;
  for (int z = range.low; z <= range.high; ++z) {
    const double log_mass = pxfast::log_mixture_mass(m, m.log_scales, m.components, m.bin_width, z);
    if (log_mass > best_log) best_log = log_mass, best = z;
  }
  return best;
}

// What a chosen value says about which component made the pixel: log w += log p(value), rescaled.
inline void condition_weights(Mixture& m, int value) {
  double log_weight[kMaxMixtures];
  double highest = -HUGE_VAL;
  for (int i = 0; i < m.components; ++i) {
    log_weight[i] = m.log_weight[i] +
                    pxfast::log_bin_mass(m.mean[i], m.inverse_scale[i], m.log_scales[i], m.bin_width, value);
    if (log_weight[i] > highest) highest = log_weight[i];
  }
  for (int i = 0; i < m.components; ++i) {
    m.log_weight[i] = (float)(log_weight[i] - highest);
    m.weight[i] = (float)std::exp(log_weight[i] - highest);
  }
}

// sigmoid(x) below the edges of bins, and sigmoid(-x) above them.
struct Edges {
  Vector below, above;
};

PXFAST_INLINE Edges edges_at(const Vector& first, int z, float bin_width, const Vector& scale, const Vector& mean) {
  const Vector position = (first + broadcast((float)z)) * broadcast(bin_width);
  const Vector edge = scale * (position - mean);
  const Vector t = exp(negative_abs(edge));
  const Vector s = broadcast(1.0f) / (broadcast(1.0f) + t);
  return {where_nonnegative(edge, s, t * s), where_nonnegative(edge, t * s, s)};
}

// The masses of the values of a range. With the edges a < b of a bin in units of the scale its mass is
// sigmoid(b) * sigmoid(-a) * (1 - exp(a - b)), and neighbouring values share an edge.
inline void mixture_masses(const Mixture& m, Range range, float* mass) {
  const int values = range.high - range.low + 1;
  for (int z = 0; z < values; z += pxfast::kLanes) store(mass + z, broadcast(0.0f));
  float mass_of_0 = 0.0f, mass_of_255 = 0.0f;
  alignas(64) float ramp[pxfast::kLanes], outermost[pxfast::kLanes];
  for (int i = 0; i < pxfast::kLanes; ++i) ramp[i] = (float)(range.low - 128 + i);
  const Vector first = load(ramp);
  for (int i = 0; i < m.components; ++i) {
    const Vector scale = broadcast(m.inverse_scale[i]), mean = broadcast(m.mean[i]);
    const Vector weight = broadcast(m.weight[i] * m.within_bin[i]);
    Edges edges = edges_at(first, 0, m.bin_width, scale, mean);
    if (range.low == 0) {
      store(outermost, edges.below);
      mass_of_0 += m.weight[i] * outermost[1];
    }
    for (int z = 0; z < values; z += pxfast::kLanes) {
      // the edge behind the last value counts: where it is not among these, it is the first of the next ones
      const int then = z + pxfast::kLanes;
      const Edges next = then <= values ? edges_at(first, then, m.bin_width, scale, mean) : edges;
      const Vector behind = next_lanes(edges.below, next.below);
      store(mass + z, fma(weight * behind, edges.above, load(mass + z)));
      if (range.high == 255 && then >= values) {
        store(outermost, edges.above);
        mass_of_255 += m.weight[i] * outermost[values - 1 - z];
      }
      edges = next;
    }
  }
  if (range.low == 0) mass[0] = mass_of_0;  // the outermost bins take the tails
  if (range.high == 255) mass[values - 1] = mass_of_255;
}

// Chooses all channels of one pixel. parameters: the network's output there (readable kLanes floats past its end).
inline void choose_logistic(const pxfast::Program& program, const float* parameters, const PixelChooser& chooser,
                            uint8_t* chosen) {
  const bool shared = program.head == pxfast::HeadKind::kPixelCnnPlusPlus;
  Mixture m;
  m.components = program.mixtures;
  m.bin_width = pxfast::bin_width(program.head);
  mixture_weights(parameters, m);
  for (int c = 0; c < program.channels; ++c) {
    const Range range = chooser.range(c);
    const bool condition = shared && c + 1 < program.channels;
    if (range.low == range.high && !condition) {
      chosen[c] = (uint8_t)range.low;
      continue;
    }
    mixture_of_channel(parameters, program.channels, c, chosen, m);
    alignas(64) float mass[kValues];
    mixture_masses(m, range, mass);
    float total = 0.0f;
    for (int i = 0; i < m.components; ++i) total += m.weight[i];
    const int picked = pick(chooser, mass, range, total, c);
    chosen[c] = (uint8_t)(picked >= 0 ? picked : argmax_far_out(m, range));
    if (condition) condition_weights(m, chosen[c]);
  }
}

inline void choose_softmax(const pxfast::Program& program, const float* parameters, const PixelChooser& chooser,
                           uint8_t* chosen) {
  const float* table = program.tables;
  for (int c = 0; c < program.channels; ++c) {
    const Range range = chooser.range(c);
    const float* logits = parameters + c * kValues;
    const float* rows[2] = {nullptr, nullptr};
    for (int earlier = 0; earlier < c; ++earlier, table += kValues * kValues)
      rows[earlier] = table + (long)chosen[earlier] * kValues;
    const Range needed = chooser.needs_total() ? Range{0, kValues - 1} : range;
    float logit[kValues];
    int best = range.low;
    for (int z = needed.low; z <= needed.high; ++z) {
      logit[z] = logits[z];
      for (int earlier = 0; earlier < c; ++earlier) logit[z] += rows[earlier][z];
    }
    for (int z = range.low; z <= range.high; ++z)
      if (logit[z] > logit[best]) best = z;
    if (chooser.needs_total()) {
      alignas(64) float mass[kValues];
      float highest = logit[best], total = 0.0f;  // of the range alone for a draw, which then cannot underflow
      if (!chooser.samples())
        for (int z = 0; z < kValues; ++z) highest = logit[z] > highest ? logit[z] : highest;
      for (int z = 0; z < kValues; z += pxfast::kLanes)
        store(mass + z, exp(load(logit + z) - broadcast(highest)));
      for (int z = 0; z < kValues; ++z) total += mass[z];
      const int picked = pick(chooser, mass + range.low, range, total, c);
      if (picked >= 0) best = picked;
    }
    chosen[c] = (uint8_t)best;
  }
}

}  // namespace
