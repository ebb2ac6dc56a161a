// The decode loop: per row the vertical stack for the whole row, per pixel the horizontal stack, the head, the choice.
// Included once by every isa_*.cpp, by way of alone.h, which sets the instruction set by its compiler flags.
#pragma once

#include "epilogue.h"
#include "gemm.h"
#include "head.h"
#include "team.h"
#include "timing.h"

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

// A block of images, decoded by one thread, or a single image by one thread or a team.
template <class Element>
class Block {
 public:
  Block(const Program& program, Workspace& workspace, const uint8_t* input, uint8_t* output, int images,
        const Chooser& chooser, const Control& control, pxfast::Team* team, int member)
      : program_(program),
        workspace_(workspace),
        input_(input),
        output_(output),
        images_(images),
        chooser_(chooser),
        control_(control),
        filters_padded_(pxfast::padded(program.filters)),
        membership_(team, member) {
    if (membership_.first()) zero_padding_columns();
  }

  // Pixel by pixel: the least arithmetic.
  bool run() {
    for (int row = 0; row < program_.height; ++row) {
      run_steps(/*per_row=*/true, row, 0, program_.width);
      const int columns = workspace_.stretches * pxfast::kStretch;
      for (int column = 0; column < program_.width; column += columns) {
        const int end = column + columns < program_.width ? column + columns : program_.width;
        sum_early_taps(row, column, end);
        if (!run_pixels(row, column, end)) return false;
      }
      control_.row_done(control_.context, images_);
    }
    return true;
  }

 protected:
  const Program& program_;
  Workspace& workspace_;
  const uint8_t* input_;
  uint8_t* output_;
  const int images_;
  const Chooser chooser_;
  const Control& control_;
  const int filters_padded_;
  Membership membership_;
  Patience patience_;      // with a team in shared work
  bool guessing_ = false;  // whether rows are guessed: all outputs of one are kept, and chosen from afterwards

  bool cancelled() const { return control_.cancelled(control_.context); }

  // Asked before every panel, since the rows of a block of wide images take seconds. What is computed afterwards is
  // wrong, and nobody will see it: a decode stays cancelled. A team goes on: its members have to leave together.
  bool breaks_off() const { return !membership_.together() && cancelled(); }

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
    return workspace_.residual[step.per_row][step.level] + (size_t)column * images_ * filters_padded_;
  }

  // The sums over a pixel step's early taps, from a column of those that are decoded next on.
  float* partial(const Step& step, int column) {
    const int kept = pxfast::level_size(workspace_.stretches * pxfast::kStretch, step.level);
    return workspace_.partial +
           (step.partial * workspace_.stretches + (size_t)(column % kept) * product_stride(step)) * images_;
  }

  // Sums the early taps of every pixel step for the columns [begin, end) of a row, both at stride 1: as many as there is
  // memory for, or the rest of a row. A team shares the work, and has met when this returns. Returns the work, as
  // run_steps does.
  long sum_early_taps(int row, int begin, int end) {
    Stopwatch watch(workspace_.profile);
    long work = 0;
    for (int s = 0; s < program_.steps; ++s) {
      const Step& step = program_.step[s];
      if (step.early == 0 || (row & ((1 << step.level) - 1))) continue;
      const int level_row = row >> step.level;
      const int first = pxfast::first_column(begin, step.level), last = pxfast::last_column(end, step.level);
      work += (last - first) * step.early;
      const int share = membership_.share(), shares = membership_.shares();
      if (step.scale == Scale::kSame) {
        const long rows = (long)(last - first) * images_;
        sum_early_taps(step, level_row, first, last - first, rows * share / shares, rows * (share + 1) / shares);
      } else {
        for (int column = first + share; column < last; column += shares)
          sum_early_taps(step, level_row, column, 1, 0, images_);
      }
    }
    watch.lap(&pxfast::Profile::row_products);
    membership_.meet(false);
    return work;
  }

  static long panel_rows(long first, long last) {
    return last - first < kPanelRows<Element> ? last - first : kPanelRows<Element>;
  }

  void sum_early_taps(const Step& step, int row, int column, int columns, long first, long last) {
    const Operand<Element> operand = gather(step, 0, step.early, row, column, columns);
    float* sums = partial(step, column);
    for (; first < last && !breaks_off(); first += kPanelRows<Element>)
      matrix_product(step, operand, first, panel_rows(first, last), nullptr, sums + first * product_stride(step));
  }

  // Pixels of a row one after the other; false when cancelled.
  bool run_pixels(int row, int begin, int end) {
    for (int column = begin; column < end; ++column) {
      run_steps(/*per_row=*/false, row, column, column + 1);
      if (cancelled()) return false;  // a panel may be missing
    }
    return true;
  }

  // Every step of a stream for the columns [begin, end) of a row, both at stride 1. A team shares the work and meets after
  // each step, until its first member loses patience. Returns the work: taps times columns.
  long run_steps(bool per_row, int row, int begin, int end) {
    long work = 0;
    for (int s = 0; s < program_.steps; ++s) {
      const Step& step = program_.step[s];
      if (step.per_row != per_row || (row & ((1 << step.level) - 1))) continue;
      const int first = pxfast::first_column(begin, step.level), last = pxfast::last_column(end, step.level);
      if (first >= last) continue;
      run_step(step, row >> step.level, first, last);
      work += (long)(last - first) * (step.taps - step.early);
      if (!meet(work)) break;
    }
    return work;
  }

  bool meet(long work) {
    return membership_.meet(membership_.together() && membership_.first() && patience_.over(work));
  }

  // Of the taps [first, last) those that exist at an output position. One outside the image is left out when a single
  // column is computed; several columns read the zeros beside the image, which adds nothing: the same bits.
  Operand<Element> gather(const Step& step, int first, int last, int row, int column, int columns) {
    Operand<Element> operand;
    operand.taps = 0;
    const int tile_width = step.tile_vectors * kLanes;
    for (int t = first; t < last; ++t) {
      const Tap& tap = step.tap[t];
      if (tap.row_parity >= 0 && tap.row_parity != (row & 1)) continue;
      if (tap.column_parity >= 0 && tap.column_parity != (column & 1)) continue;
      const Cache& cache = program_.cache[tap.cache];
      const int r = pxfast::in_position(row, step.scale) + tap.row;
      const int c = pxfast::in_position(column, step.scale) + tap.column;
      if (r < 0) continue;
      if (columns == 1 && (c < 0 || c >= pxfast::level_size(program_.width, cache.level))) continue;
      const int i = operand.taps++;
      operand.cells[i] = cell(cache, r, c);
      operand.weights[i] = static_cast<const Element*>(step.packed) + tap.weights * tile_width;
      operand.channels[i] = cache.channels;
    }
    return operand;
  }

  // This member's share of one step for the columns [begin, end) of its own level.
  void run_step(const Step& step, int row, int begin, int end) {
    const int share = membership_.share(), shares = membership_.shares();
    if (step.scale == Scale::kSame) {
      // the columns' cells stand one behind the other, as the images' do
      const long rows = (long)(end - begin) * images_;
      run_rows(step, row, begin, begin, end, rows * share / shares, rows * (share + 1) / shares);
    } else {
      for (int column = begin + share; column < end; column += shares)
        run_rows(step, row, begin, column, column + 1, 0, images_);
    }
  }

  // Rows [first, last) of the step's matrix product over the columns [column, end). Residuals are kept from column
  // `begin` of the step on.
  void run_rows(const Step& step, int row, int begin, int column, int end, long first, long last) {
    Stopwatch watch(workspace_.profile);
    const Operand<Element> operand = gather(step, step.early, step.taps, row, column, end - column);
    watch.lap(&pxfast::Profile::gather);
    const float* initial = step.early > 0 ? partial(step, column) : nullptr;
    float* residuals = residual(step, column - begin);
    for (; first < last && !breaks_off(); first += kPanelRows<Element>) {
      const Panel panel{first, panel_rows(first, last),
                        step.epilogue == Epilogue::kOutput && guessing_
                            ? workspace_.parameters + first * product_stride(step)
                            : workspace_.products[membership_.share()]};
      matrix_product(step, operand, panel.first, panel.rows,
                     initial == nullptr ? nullptr : initial + panel.first * product_stride(step), panel.products);
      watch.lap(step.per_row ? &pxfast::Profile::row_products : &pxfast::Profile::pixel_products);
      add_bias(step, images_, row, column, panel);
      finish(step, row, column, panel, residuals);
      watch.lap(step.epilogue == Epilogue::kOutput ? &pxfast::Profile::head : &pxfast::Profile::elementwise);
    }
  }

  void finish(const Step& step, int row, int column, const Panel& panel, float* residuals) {
    float* x = residuals + panel.first * filters_padded_;
    const long stride = product_stride(step);
    switch (step.epilogue) {
      case Epilogue::kHidden:
        return store_concat_elu(columns(step.concat_elu, row, column, panel), program_.filters, panel.products, stride);
      case Epilogue::kGate:
        for (long m = 0; m < panel.rows; ++m)
          gate(panel.products + m * stride, program_.filters, x + m * filters_padded_);
        return publish(step, row, column, panel, x);
      case Epilogue::kPublish:
        for (long m = 0; m < panel.rows; ++m)
          for (int n = 0; n < program_.filters; n += kLanes)
            store(x + m * filters_padded_ + n, load(panel.products + m * stride + n));
        return publish(step, row, column, panel, x);
      case Epilogue::kOutput:
        if (!guessing_)  // a guessed row is judged when the whole of it is there
          for (long m = 0; m < panel.rows; ++m)
            choose(row, column, (int)(panel.first + m), panel.products + m * stride);
    }
  }

  // x as the caches of the step want it
  void publish(const Step& step, int row, int column, const Panel& panel, const float* x) {
    const int filters = program_.filters;
    if (step.concat_elu >= 0)
      store_concat_elu(columns(step.concat_elu, row, column, panel), filters, x, filters_padded_);
    if (step.raw >= 0) store_filters<false>(columns(step.raw, row, column, panel), filters, x, filters_padded_);
    if (step.elu >= 0) store_filters<true>(columns(step.elu, row, column, panel), filters, x, filters_padded_);
  }

  // Where a panel's rows stand in a cache.
  Columns<Element> columns(int id, int row, int column, const Panel& panel) {
    const Cache& cache = program_.cache[id];
    return {cell(cache, row, column) + panel.first * cache.channels, cache.channels, panel.rows};
  }

  // Picks a pixel's channels and shows them to the input cache. Returns whether they differ from what stood there in
  // the output.
  bool choose(int row, int column, int image, const float* parameters) {
    const long plane = (long)program_.height * program_.width;
    const int channels = program_.channels;
    const long pixel = (long)image * channels * plane + (long)row * program_.width + column;
    uint8_t chosen[kLanes] = {};  // room for whole vectors
    const PixelChooser chooser(chooser_, input_, channels, (uint32_t)plane, pixel);
    if (program_.head == pxfast::HeadKind::kSoftmax) {
      choose_softmax(program_, parameters, chooser, chosen);
    } else {
      choose_logistic(program_, parameters, chooser, chosen);
    }
    bool changed = false;
    for (int c = 0; c < channels; ++c) {
      changed |= output_[pixel + c * plane] != chosen[c];
      output_[pixel + c * plane] = chosen[c];
    }
    show(row, column, image, chosen);
    return changed;
  }

  void show(int row, int column, int image, const uint8_t* values) {
    const int channels = program_.channels;
    const Cache& cache = program_.cache[program_.input_cache];
    Element* to = cell(cache, row, column) + image * cache.channels;
    for (int c = 0; c < channels; ++c) store_scalar(to + c, pxfast::network_view(values[c]));
    store_scalar(to + channels, pxfast::kOne);
    clear(to + channels + 1, cache.channels - channels - 1);
  }
};

template <class Element>
bool decode_block(const Program& program, Workspace& workspace, const uint8_t* input, uint8_t* output, int images,
                  const Chooser& chooser, const Control& control) {
  return Block<Element>(program, workspace, input, output, images, chooser, control, nullptr, 0).run();
}

}  // namespace
