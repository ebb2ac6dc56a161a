// What both engines do alike at a sub-pixel: the chooser's rules, a mixture's layout, and its far tails in double
// precision. The masses of the values are each engine's own work: by vectors on the CPU, by warps on a GPU.
#pragma once

#include <cmath>
#include <cstdint>

#include "philox.h"
#include "steps.h"

namespace pxfast {

constexpr int kValues = 256;  // of a sub-pixel
constexpr int kMaxMixtures = 128;
constexpr float kLeastLogScale = -7.0f;  // of a mixture's component
constexpr float kLeastMass = 1e-30f;     // smaller ones do not tell values apart
constexpr float kWideLogScale = 80.0f;   // above it the inverse scale leaves what a float can hold

// What becomes of a sub-pixel, given the model's distribution there; see pxfast/engines/choosers.py.
struct Chooser {
  const uint8_t* eps;         // greedy, of each image: the likeliest value within +-eps of the input's; null: sampling
  float keep_probability;     // greedy: a sub-pixel whose input value is at least so probable keeps it; above 1: none
  uint64_t seed, first;       // sampling: `first` is the number of the first image
  float inverse_temperature;  // sampling
};

namespace {  // see steps.h

struct Range {  // of values, both ends included
  int low, high;
};

// The chooser at one pixel of one image.
struct PixelChooser {
  const Chooser* all;
  int64_t image;
  uint32_t position;  // in raster order, of the pixel's first channel
  int eps;            // of the image; unused when sampling

  PXFAST_HD PixelChooser(const Chooser& all, int64_t image, uint32_t position)
      : all(&all), image(image), position(position), eps(all.eps == nullptr ? 0 : (int)all.eps[image]) {}

  PXFAST_HD bool samples() const { return all->eps == nullptr; }
  PXFAST_HD bool keeps() const { return all->keep_probability <= 1.0f; }
  PXFAST_HD bool needs_total() const { return samples() || keeps(); }

  // The values that come into question where the input has `value`.
  PXFAST_HD Range range(int value) const {
    if (samples()) return {0, kValues - 1};
    return {value > eps ? value - eps : 0, value + eps < kValues - 1 ? value + eps : kValues - 1};
  }

  // Whether the input's value stays, which has so much mass of the total.
  PXFAST_HD bool keeps_value(float mass, float total) const { return mass >= all->keep_probability * total; }

  // The first value whose cumulative mass exceeds a uniform share of the whole. The masses of all values are changed
  // where there is a temperature. The order of the sums is part of the result.
  PXFAST_HD int sample(float* mass, int channel) const {
    if (all->inverse_temperature != 1.0f) {
      float highest = 0.0f;
      PXFAST_UNROLL_SOME
      for (int z = 0; z < kValues; ++z) highest = mass[z] > highest ? mass[z] : highest;
      PXFAST_UNROLL_SOME
      for (int z = 0; z < kValues; ++z) mass[z] = powf(mass[z] / highest, all->inverse_temperature);
    }
    double total = 0.0, sum = 0.0;
    PXFAST_UNROLL_SOME
    for (int z = 0; z < kValues; ++z) total += mass[z];
    const double target = uniform_of(all->seed, all->first + (uint64_t)image, position + (uint32_t)channel) * total;
    PXFAST_UNROLL_SOME
    for (int z = 0; z < kValues; ++z) {
      sum += mass[z];
      if (sum > target) return z;
    }
    return kValues - 1;
  }
};

PXFAST_HD float to_unit(int value) { return ((float)value - 127.5f) / 127.5f; }

// Value z of a mixture head has the bin [(z - 128) * width, (z - 127) * width); 0 and 255 take the tails.
PXFAST_HD float bin_width(HeadKind head) { return head == HeadKind::kPixelCnnPlusPlus ? 1.0f / 127.5f : 1.0f / 128.0f; }

// The parameters of one channel among a pixel's, in PixelCNN++'s layout: the logits of the components come first, then
// each channel's means, log scales and, of three channels, the coefficients of the channels before it.
struct ChannelParameters {
  const float *means, *log_scales;
  const float *by_first, *by_second;  // how the first and the second channel's value move the mean, if they come before
};

PXFAST_HD ChannelParameters channel_parameters(const float* parameters, int components, int channels, int channel) {
  const int stride = channels == 3 ? 3 * components : 2 * components;
  const float* means = parameters + components + channel * stride;
  const float* coefficients = parameters + 3 * components;  // of channel 0; the next channels' follow at `stride`
  return {means, means + components, channel == 2 ? coefficients + stride : coefficients, coefficients + 2 * stride};
}

PXFAST_HD double log_sigmoid(double x) { return x >= 0 ? -log1p(exp(-x)) : x - log1p(exp(x)); }

// Log of a component's mass in the bin of a value; scale: inverse, and log_scale, which counts where that underflows.
PXFAST_HD_RARE double log_bin_mass(double mean, double scale, double log_scale, double bin_width, int value) {
  const double width = scale * bin_width, lower = scale * ((value - 128) * bin_width - mean);
  double log_mass = 0.0;
  if (value < kValues - 1) log_mass += log_sigmoid(lower + width);
  if (value > 0) log_mass += log_sigmoid(-lower);
  if (value > 0 && value < kValues - 1)
    log_mass += log_scale > kWideLogScale ? log(bin_width) - log_scale : log(-expm1(-width));
  return log_mass;
}

// Log of the mass of a value's bin, for a range so far out that every mass underflows. Mixture: arrays of floats
// log_weight, mean and inverse_scale; log_scales: the logarithms of the scales.
template <class Mixture>
PXFAST_HD_RARE double log_mixture_mass(const Mixture& m, const float* log_scales, int components, float bin_width,
                                       int value) {
  double highest = -HUGE_VAL, sum = 0.0;
  for (int i = 0; i < components; ++i) {
    const double log_mass =
        m.log_weight[i] + log_bin_mass(m.mean[i], m.inverse_scale[i], log_scales[i], bin_width, value);
    if (log_mass > highest) {
      sum = sum * exp(highest - log_mass) + 1.0;
      highest = log_mass;
    } else {
      sum += exp(log_mass - highest);
    }
  }
  return highest + log(sum);
}

}  // namespace
}  // namespace pxfast
