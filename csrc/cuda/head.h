// The heads with the fused choice of a value, for a group of lanes that share one pixel of one image: a warp.
#pragma once

#include <cmath>

#include "program.h"

namespace pxfast {
namespace cuda {

// What the lanes of a group share.
struct HeadScratch {
  float log_weight[kMaxMixtures], weight[kMaxMixtures];  // of the components, not normalised
  float mean[kMaxMixtures], inverse_scale[kMaxMixtures];
  float within_bin[kMaxMixtures];  // 1 - exp(-width of a bin in units of the scale)
  float mass[kValues];
  uint8_t chosen[4];
};

// 1 - exp(-w) for w > 0
PXFAST_HD float one_minus_exp_minus(float w) { return -expm1f(-w); }

struct MixtureShape {
  int components;
  float bin_width;
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

// Parameters of `channel` given the values already chosen for the earlier channels.
template <class Group>
PXFAST_HD void mixture_of_channel(const Group& group, const MixtureShape& shape, const float* parameters, int channels,
                                  int channel, HeadScratch& m) {
  const ChannelParameters from = channel_parameters(parameters, shape.components, channels, channel);
  for (int i = group.lane(); i < shape.components; i += group.lanes()) {
    float mean = from.means[i];
    if (channel > 0) mean = fmaf(tanhf(from.by_first[i]), to_unit(m.chosen[0]), mean);
    if (channel > 1) mean = fmaf(tanhf(from.by_second[i]), to_unit(m.chosen[1]), mean);
    m.mean[i] = mean;
    m.inverse_scale[i] = expf(-fmaxf(from.log_scales[i], kLeastLogScale));
    m.within_bin[i] = one_minus_exp_minus(m.inverse_scale[i] * shape.bin_width);
  }
}

// The mass of one value's bin by component i, over the component's weight. With the edges a < b of a bin in units of the
// scale it is sigmoid(b) * sigmoid(-a) * (1 - exp(a - b)): no cancellation.
PXFAST_HD float component_mass(const MixtureShape& shape, const HeadScratch& m, int i, int value) {
  const float scale = m.inverse_scale[i], mean = m.mean[i];
  const float lower = scale * ((float)(value - 128) * shape.bin_width - mean);
  const float upper = scale * ((float)(value - 127) * shape.bin_width - mean);
  const float lower_t = expf(-fabsf(lower)), upper_t = expf(-fabsf(upper));
  const float above_lower = (lower >= 0.0f ? lower_t : 1.0f) / (1.0f + lower_t);
  const float below_upper = (upper >= 0.0f ? 1.0f : upper_t) / (1.0f + upper_t);
  return value == 0              ? below_upper
         : value == kValues - 1 ? above_lower
                                : m.within_bin[i] * below_upper * above_lower;
}

// The masses of a range of values, not normalised, into m.mass: a value for each lane. An eps of 16 has 33 values: the
// few that are left over have a lane for each of their components, or they would take as long as the others. The sums
// are the same.
template <class Group>
PXFAST_HD void mixture_masses(const Group& group, const MixtureShape& shape, HeadScratch& m, Range range) {
  const int left = (range.high - range.low + 1) % group.lanes();
  const int few = left * shape.components <= group.lanes() ? left : 0, first = range.high + 1 - few;
  for (int z = range.low + group.lane(); z < first; z += group.lanes()) {
    float mass = 0.0f;
    for (int i = 0; i < shape.components; ++i) mass = fmaf(m.weight[i], component_mass(shape, m, i, z), mass);
    m.mass[z] = mass;
  }
  if (few == 0) return;
  const int which = group.lane() / shape.components, begin = which * shape.components;
  const int z = first + (which < few ? which : 0);
  const float own = component_mass(shape, m, group.lane() - begin, z);
  float mass = 0.0f;
  for (int i = 0; i < shape.components; ++i) mass = fmaf(m.weight[i], group.shuffle(own, begin + i), mass);
  if (which < few && group.lane() == begin) m.mass[z] = mass;
}

// What a chosen value says about which component made the pixel: log w += log p(value), rescaled.
template <class Group>
PXFAST_HD void condition_weights(const Group& group, const MixtureShape& shape, const float* log_scales, int value,
                                 HeadScratch& m) {
  for (int i = group.lane(); i < shape.components; i += group.lanes())
    m.mass[i] = (float)(m.log_weight[i] +
                        log_bin_mass(m.mean[i], m.inverse_scale[i], log_scales[i], shape.bin_width, value));
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

// A draw from m.mass, whose values in range are known, by the first lane; -1 when all of them are too small. The same for
// all lanes.
template <class Group>
PXFAST_HD int draw(const Group& group, const PixelChooser& chooser, HeadScratch& m, Range range, int channel) {
  const bool first = group.lane() == 0;
  float known = first ? 1.0f : 0.0f;
  int drawn = first ? chooser.sample(m.mass + range.low, range, channel) : kValues;
  group.combine(known, drawn);
  return drawn;
}

// Picks among m.mass, whose values in range are known; `total` is that of all 256. -1 when all of them are too small to
// tell apart. The same for all lanes.
template <class Group>
PXFAST_HD int pick(const Group& group, const PixelChooser& chooser, HeadScratch& m, Range range, float total,
                   int channel) {
  if (chooser.samples()) return draw(group, chooser, m, range, channel);
  if (chooser.keeps()) {
    const int value = chooser.value(channel);
    if (chooser.keeps_value(m.mass[value], total)) return value;
  }
  float largest;
  const int best = best_value(group, m.mass, range, largest);
  return largest > kLeastMass ? best : -1;
}

// Chooses all channels of one pixel into m.chosen. parameters: the network's output there.
template <class Group>
PXFAST_HD void choose_logistic(const Group& group, const Program& program, const float* parameters,
                               const PixelChooser& chooser, HeadScratch& m) {
  const bool shared = program.head == HeadKind::kPixelCnnPlusPlus;
  const MixtureShape shape{program.mixtures, bin_width(program.head)};
  mixture_weights(group, shape, parameters, m);
  for (int c = 0; c < program.channels; ++c) {
    const Range range = chooser.range(c);
    const float* log_scales = channel_parameters(parameters, shape.components, program.channels, c).log_scales;
    mixture_of_channel(group, shape, parameters, program.channels, c, m);
    group.sync();
    mixture_masses(group, shape, m, range);
    group.sync();
    float total = 0.0f;
    for (int i = 0; i < shape.components; ++i) total += m.weight[i];
    int picked = pick(group, chooser, m, range, total, c);
    if (picked < 0) {
      group.sync();
      for (int z = range.low + group.lane(); z <= range.high; z += group.lanes())
        m.mass[z] = (float)log_mixture_mass(m, log_scales, shape.components, shape.bin_width, z);
      group.sync();
      float largest;
      picked = best_value(group, m.mass, range, largest);
    }
    if (group.lane() == 0) m.chosen[c] = (uint8_t)picked;
    group.sync();
    if (shared && c + 1 < program.channels) condition_weights(group, shape, log_scales, picked, m);
  }
}

// The same for the softmax head; tables: (pairs, 256, 256), pairs R->G, R->B, G->B.
template <class Group>
PXFAST_HD void choose_softmax(const Group& group, const Program& program, const float* tables, const float* parameters,
                              const PixelChooser& chooser, HeadScratch& m) {
  const float* table = tables;
  for (int c = 0; c < program.channels; ++c) {
    const Range range = chooser.range(c);
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
      if (!chooser.samples()) best_value(group, m.mass, needed, highest);  // a draw's range alone, so as not to underflow
      group.sync();
      for (int z = group.lane(); z < kValues; z += group.lanes()) m.mass[z] = expf(m.mass[z] - highest);
      group.sync();
      float total = 0.0f;
      PXFAST_UNROLL_SOME
      for (int z = 0; z < kValues; ++z) total += m.mass[z];
      const int found = pick(group, chooser, m, range, total, c);
      if (found >= 0) picked = found;
    }
    group.sync();
    if (group.lane() == 0) m.chosen[c] = (uint8_t)picked;
    group.sync();
  }
}

}  // namespace cuda
}  // namespace pxfast
