// The decode loop: per row the vertical stack for the whole row, per pixel the horizontal stack, the head, the choice.
// Included once by every isa_*.cpp, which sets the instruction set by its compiler flags.
#pragma once

#include "gemm.h"
#include "head.h"

namespace {

using pxfast::Cache;
using pxfast::Chooser;
using pxfast::Control;
using pxfast::Epilogue;
using pxfast::kLanes;
using pxfast::Program;
using pxfast::Scale;
using pxfast::Step;
using pxfast::Tap;
using pxfast::Workspace;

constexpr long kPanelRows = 120;  // rows of a matrix product between two epilogues; a multiple of every tile's rows

template <class Element>
class Block {
 public:
  Block(const Program& program, Workspace& workspace, const uint8_t* input, uint8_t* output, int images,
        const Chooser& chooser)
      : program_(program),
        workspace_(workspace),
        input_(input),
        output_(output),
        images_(images),
        chooser_(chooser),
        filters_padded_(pxfast::padded(program.filters)) {
    zero_padding_columns();
  }

  bool run(const Control& control) {
    for (int row = 0; row < program_.height; ++row) {
      run_steps(/*per_row=*/true, row, 0);
      for (int column = 0; column < program_.width; ++column) {
        if (control.cancelled(control.context)) return false;
        run_steps(/*per_row=*/false, row, column);
      }
      control.row_done(control.context, images_);
    }
    return true;
  }

 private:
  const Program& program_;
  Workspace& workspace_;
  const uint8_t* input_;
  uint8_t* output_;
  const int images_;
  const Chooser chooser_;
  const int filters_padded_;

  // Cell of the block's first image; the other images' cells follow, `channels` apart. Column -1 and the one behind
  // the last are zeros.
  Element* cell(const Cache& cache, int row, int column) {
    const int columns = pxfast::level_size(program_.width, cache.level) + 2;
    Element* base = static_cast<Element*>(workspace_.caches) + cache.offset * images_;
    return base + ((size_t)(row % cache.slots) * columns + (column + 1)) * images_ * cache.channels;
  }

  void zero_padding_columns() {
    for (int c = 0; c < program_.caches; ++c) {
      const Cache& cache = program_.cache[c];
      const size_t bytes = sizeof(Element) * images_ * cache.channels;
      for (int slot = 0; slot < cache.slots; ++slot) {
        std::memset(cell(cache, slot, -1), 0, bytes);
        std::memset(cell(cache, slot, pxfast::level_size(program_.width, cache.level)), 0, bytes);
      }
    }
  }

  float* residual(const Step& step, int column) {
    return workspace_.residual[step.per_row][step.level] +
           (step.per_row ? (size_t)column * images_ * filters_padded_ : 0);
  }

  void run_steps(bool per_row, int row, int column) {
    for (int s = 0; s < program_.steps; ++s) {
      const Step& step = program_.step[s];
      const int mask = (1 << step.level) - 1;
      if (step.per_row != per_row || (row & mask) || (column & mask)) continue;
      const int r = row >> step.level, c = column >> step.level;
      if (!per_row) {
        run_step(step, r, c, 1);
        continue;
      }
      const int width = pxfast::level_size(program_.width, step.level);
      if (step.scale == Scale::kSame) {
        run_step(step, r, 0, width);  // the columns' cells stand one behind the other, as the images' do
      } else {
        for (int i = 0; i < width; ++i) run_step(step, r, i, 1);
      }
    }
  }

  // The taps that exist at an output position. One outside the image is left out when a single column is computed;
  // a whole row reads the zeros beside it, which adds nothing: the same bits.
  Operand<Element> gather(const Step& step, int row, int column, int columns) {
    Operand<Element> operand;
    operand.taps = 0;
    const int tile_width = step.tile_vectors * kLanes;
    for (int t = 0; t < step.taps; ++t) {
      const Tap& tap = step.tap[t];
      if (tap.row_parity >= 0 && tap.row_parity != (row & 1)) continue;
      if (tap.column_parity >= 0 && tap.column_parity != (column & 1)) continue;
      const Cache& cache = program_.cache[tap.cache];
      const int r = scaled(step.scale, row) + tap.row, c = scaled(step.scale, column) + tap.column;
      if (r < 0) continue;
      if (columns == 1 && (c < 0 || c >= pxfast::level_size(program_.width, cache.level))) continue;
      const int i = operand.taps++;
      operand.cells[i] = cell(cache, r, c);
      operand.weights[i] = static_cast<const Element*>(step.packed) + tap.weights * tile_width;
      operand.channels[i] = cache.channels;
    }
    return operand;
  }

  static int scaled(Scale scale, int position) {
    return scale == Scale::kDown ? 2 * position : scale == Scale::kUp ? position >> 1 : position;
  }

  void run_step(const Step& step, int row, int column, int columns) {
    const Operand<Element> operand = gather(step, row, column, columns);
    const long rows = (long)columns * images_;
    for (long first = 0; first < rows; first += kPanelRows) {
      const long count = rows - first < kPanelRows ? rows - first : kPanelRows;
      matrix_product(step, operand, first, count, workspace_.products);
      add_bias(step, row, column, first, count);
      finish(step, row, column, first, count);
    }
  }

  // products = products * multiplier + biases, in place
  void add_bias(const Step& step, int row, int column, long first, long count) {
    const float* active[pxfast::kMaxBiases];
    const long stride = (long)step.tiles * step.tile_vectors * kLanes;
    const Vector multiplier = broadcast(step.multiplier);
    for (long m = 0; m < count; ++m) {
      const int c = column + (int)((first + m) / images_);
      int biases = 0;
      for (int b = 0; b < step.biases; ++b)
        if (row >= step.bias[b].min_row && c >= step.bias[b].min_column) active[biases++] = step.bias[b].values;
      float* products = workspace_.products + m * stride;
      for (int n = 0; n < step.outputs; n += kLanes) {
        Vector sum = load(products + n) * multiplier;
        for (int b = 0; b < biases; ++b) sum = sum + load(active[b] + n);
        store(products + n, sum);
      }
    }
  }

  void finish(const Step& step, int row, int column, long first, long count) {
    switch (step.epilogue) {
      case Epilogue::kHidden:
        return store_concat_elu(step, row, column, first, count, workspace_.products, product_stride(step));
      case Epilogue::kGate:
        gate(step, column, first, count);
        return publish(step, row, column, first, count);
      case Epilogue::kPublish:
        set_residual(step, column, first, count);
        return publish(step, row, column, first, count);
      case Epilogue::kOutput:
        return choose(step, row, column, first, count);
    }
  }

  static long product_stride(const Step& step) { return (long)step.tiles * step.tile_vectors * kLanes; }

  // residual += a * sigmoid(b)
  void gate(const Step& step, int column, long first, long count) {
    const long stride = product_stride(step);
    const int filters = program_.filters;
    for (long m = 0; m < count; ++m) {
      const float* a = workspace_.products + m * stride;
      float* x = residual(step, column) + (first + m) * filters_padded_;
      for (int n = 0; n < filters; n += kLanes)
        store(x + n, fma(load(a + n), sigmoid(load(a + filters + n)), load(x + n)));
    }
  }

  void set_residual(const Step& step, int column, long first, long count) {
    const long stride = product_stride(step);
    for (long m = 0; m < count; ++m) {
      float* x = residual(step, column) + (first + m) * filters_padded_;
      for (int n = 0; n < program_.filters; n += kLanes) store(x + n, load(workspace_.products + m * stride + n));
    }
  }

  void publish(const Step& step, int row, int column, long first, long count) {
    const float* x = residual(step, column) + first * filters_padded_;
    const int filters = program_.filters;
    if (step.concat_elu >= 0) store_concat_elu(step, row, column, first, count, x, filters_padded_);
    if (step.raw >= 0) {
      const Cache& cache = program_.cache[step.raw];
      Element* to = cell(cache, row, column) + first * cache.channels;
      for (long m = 0; m < count; ++m) {
        for (int n = 0; n < filters; n += kLanes)
          store_first(to + m * cache.channels + n, load(x + m * filters_padded_ + n), filters - n);
        if (cache.channels > filters) store_scalar(to + m * cache.channels + filters, 0.0f);
      }
    }
    if (step.elu >= 0) {
      const Cache& cache = program_.cache[step.elu];
      Element* to = cell(cache, row, column) + first * cache.channels;
      for (long m = 0; m < count; ++m) {
        for (int n = 0; n < filters; n += kLanes) {
          Vector positive, negative;
          elu_both(load(x + m * filters_padded_ + n), positive, negative);
          store_first(to + m * cache.channels + n, positive, filters - n);
        }
        if (cache.channels > filters) store_scalar(to + m * cache.channels + filters, 0.0f);
      }
    }
  }

  // elu(x) and elu(-x): one exponential serves both
  static void elu_both(const Vector& x, Vector& positive, Vector& negative) {
    const Vector saturated = exp(negative_abs(x)) - broadcast(1.0f);
    positive = where_nonnegative(x, x, saturated);
    negative = where_nonnegative(x, saturated, negate(x));
  }

  void store_concat_elu(const Step& step, int row, int column, long first, long count, const float* x, long stride) {
    const Cache& cache = program_.cache[step.concat_elu];
    const int filters = program_.filters;
    Element* to = cell(cache, row, column) + first * cache.channels;
    for (long m = 0; m < count; ++m, to += cache.channels, x += stride) {
      for (int n = 0; n < filters; n += kLanes) {
        Vector positive, negative;
        elu_both(load(x + n), positive, negative);
        store_first(to + n, positive, filters - n);
        store_first(to + filters + n, negative, filters - n);
      }
    }
  }

  // Picks the pixel's channels, image by image, and shows them to the input cache as 2v - 255: an odd integer below
  // 256, exact in bf16. The channel of ones is 255 in these units; the steps that read it multiply by 1/255.
  void choose(const Step& step, int row, int column, long first, long count) {
    const long plane = (long)program_.height * program_.width;
    const long stride = product_stride(step);
    const int channels = program_.channels;
    Element* to = cell(program_.cache[program_.input_cache], row, column) + first * (channels + 1);
    for (long m = 0; m < count; ++m, to += channels + 1) {
      const long pixel = (first + m) * channels * plane + (long)row * program_.width + column;
      const float* parameters = workspace_.products + m * stride;
      uint8_t chosen[3];
      if (program_.head == pxfast::HeadKind::kLogistic) {
        choose_logistic(program_, parameters, input_ + pixel, chooser_.eps, plane, chosen);
      } else {
        choose_softmax(program_, parameters, input_ + pixel, chooser_.eps, plane, chosen);
      }
      for (int c = 0; c < channels; ++c) {
        output_[pixel + c * plane] = chosen[c];
        store_scalar(to + c, (float)(2 * chosen[c] - 255));
      }
      store_scalar(to + channels, 255.0f);
    }
  }
};

template <class Element>
bool decode_block(const Program& program, Workspace& workspace, const uint8_t* input, uint8_t* output, int images,
                  const Chooser& chooser, const Control& control) {
  return Block<Element>(program, workspace, input, output, images, chooser).run(control);
}

inline size_t products_size(const Program& program) {
  size_t widest = 0;
  for (int s = 0; s < program.steps; ++s) {
    const Step& step = program.step[s];
    const size_t width = (size_t)step.tiles * step.tile_vectors * kLanes;
    if (width > widest) widest = width;
  }
  return kPanelRows * widest + 2 * kLanes;  // loads may run past the last row
}

template <class Element>
constexpr pxfast::Backend make_backend() {
  return {sizeof(Element), plan_tiles, pack_tap<Element>, products_size, decode_block<Element>};
}

}  // namespace
