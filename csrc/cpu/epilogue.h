// What happens to the rows of a matrix product: biases, gates, and the activations that the caches keep.
#pragma once

#include "vector.h"

namespace {

struct Panel {  // some rows of a matrix product
  long first, rows;
  float* products;
};

template <class Element>
struct Columns {  // where rows of activations stand in a cache
  Element* first;
  int channels;  // also the distance between rows
  long rows;
};

inline long product_stride(const pxfast::Step& step) { return (long)step.tiles * step.tile_vectors * pxfast::kLanes; }

// products = products * multiplier + biases, in place. The rows are those of `images` images at each column, the first
// of the product at `column`.
inline void add_bias(const pxfast::Step& step, int images, int row, int column, const Panel& panel) {
  const float* active[pxfast::kMaxBiases];
  const long stride = product_stride(step);
  const Vector multiplier = broadcast(step.multiplier);
  for (long m = 0; m < panel.rows; ++m) {
    const int c = column + (int)((panel.first + m) / images);
    int biases = 0;
    for (int b = 0; b < step.biases; ++b)
      if (row >= step.bias[b].min_row && c >= step.bias[b].min_column) active[biases++] = step.bias[b].values;
    float* products = panel.products + m * stride;
    for (int n = 0; n < step.outputs; n += pxfast::kLanes) {
      Vector sum = load(products + n) * multiplier;
      for (int b = 0; b < biases; ++b) sum = sum + load(active[b] + n);
      store(products + n, sum);
    }
  }
}

// x += a * sigmoid(b), where products = [a, b]
inline void gate(const float* products, int filters, float* x) {
  for (int n = 0; n < filters; n += pxfast::kLanes)
    store(x + n, fma(load(products + n), sigmoid(load(products + filters + n)), load(x + n)));
}

// elu(x) and elu(-x): one exponential serves both
inline void elu_both(const Vector& x, Vector& positive, Vector& negative) {
  const Vector saturated = exp(negative_abs(x)) - broadcast(1.0f);
  negative = where_nonnegative(x, saturated, negate(x));
  positive = where_nonnegative(x, x, saturated);
}

// The channels behind a cell's own stand for nothing, and are zeros.
template <class Element>
PXFAST_INLINE void clear(Element* to, int count) {
  for (; count > 0; count -= pxfast::kLanes, to += pxfast::kLanes) store_first(to, broadcast(0.0f), count);
}

// elu([x, -x]); `stride`: between rows of x
template <class Element>
void store_concat_elu(const Columns<Element>& columns, int filters, const float* x, long stride) {
  Element* to = columns.first;
  for (long m = 0; m < columns.rows; ++m, to += columns.channels, x += stride) {
    for (int n = 0; n < filters; n += pxfast::kLanes) {
      Vector positive, negative;
      elu_both(load(x + n), positive, negative);
      store_first(to + n, positive, filters - n);
      store_first(to + filters + n, negative, filters - n);
    }
    clear(to + 2 * filters, columns.channels - 2 * filters);
  }
}

// x or elu(x); `stride`: between rows of x
template <bool kElu, class Element>
void store_filters(const Columns<Element>& columns, int filters, const float* x, long stride) {
  Element* to = columns.first;
  for (long m = 0; m < columns.rows; ++m, to += columns.channels, x += stride) {
    for (int n = 0; n < filters; n += pxfast::kLanes) {
      Vector value = load(x + n), unused;
      if (kElu) elu_both(value, value, unused);
      store_first(to + n, value, filters - n);
    }
    clear(to + filters, columns.channels - filters);
  }
}

}  // namespace
