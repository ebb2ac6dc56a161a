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
  const uint8_t *lower, *upper;  // of every sub-pixel, as the images have them: what comes into question, both included
  bool samples;                  // a value is drawn; if not, it is the likeliest in range
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
  const uint8_t* given;  // the images
  int channels;
  uint32_t plane;  // values of a channel of an image
  int64_t place;   // of the first channel's value among those of all images

  PXFAST_HD PixelChooser(const Chooser& all, const uint8_t* given, int channels, uint32_t plane, int64_t place)
      : all(&all), given(given), channels(channels), plane(plane), place(place) {}

  PXFAST_HD bool samples() const { return all->samples; }
  PXFAST_HD bool keeps() const { return all->keep_probability <= 1.0f; }
  PXFAST_HD bool needs_total() const { return samples() || keeps(); }

  // A channel's value in the input, and the values that come into question for it.
  PXFAST_HD int value(int channel) const { return given[place_of(channel)]; }
  PXFAST_HD Range range(int channel) const { return {all->lower[place_of(channel)], all->upper[place_of(channel)]}; }

  // Whether the input's value stays, which has so much mass of the total.
  PXFAST_HD bool keeps_value(float mass, float total) const { return mass >= all->keep_probability * total; }

  // The first value of a range whose cumulative mass exceeds a uniform share of the range's; -1 when the masses are too
  // small to draw by. mass: of the values from range.low on; it is changed where there is a temperature. The order of the
  // sums is part of the result.
  PXFAST_HD int sample(float* mass, Range range, int channel) const {
    const int values = range.high - range.low + 1;
    if (all->inverse_temperature != 1.0f) {
      float highest = 0.0f;
      PXFAST_UNROLL_SOME
      for (int z = 0; z < values; ++z) highest = mass[z] > highest ? mass[z] : highest;
      if (!(highest > kLeastMass)) return -1;
      PXFAST_UNROLL_SOME
      for (int z = 0; z < values; ++z) mass[z] = powf(mass[z] / highest, all->inverse_temperature);
    }
    double total = 0.0, sum = 0.0;
    PXFAST_UNROLL_SOME
    for (int z = 0; z < values; ++z) total += mass[z];
    if (!(total > kLeastMass)) return -1;
    const double target = uniform(channel) * total;
    PXFAST_UNROLL_SOME
    for (int z = 0; z < values; ++z) {
      sum += mass[z];
      if (sum > target) return range.low + z;
    }
    return range.high;
  }

 private:
  PXFAST_HD int64_t place_of(int channel) const { return place + (int64_t)channel * plane; }

  // The random number of a channel, by the image's number and the position in raster order. They are found from the
  // place, since nobody else needs them: fewer registers are taken.
  PXFAST_HD float uniform(int channel) const {
    const uint64_t values = (uint64_t)channels * plane, image = (uint64_t)place / values;
    const uint32_t pixel = (uint32_t)((uint64_t)place - image * values);
    return uniform_of(all->seed, all->first + image, pixel * (uint32_t)channels + (uint32_t)channel);
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
