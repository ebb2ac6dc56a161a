// The decode loop: per row the vertical stack for the whole row, per pixel the horizontal stack, the head, the choice.
// Included once by every isa_*.cpp, which sets the instruction set by its compiler flags.
#pragma once

#include "epilogue.h"
#include "gemm.h"
#include "head.h"
#include "timing.h"

namespace {

using pxfast::Cache;
using pxfast::Chooser;
using pxfast::Control;
using pxfast::Epilogue;
using pxfast::kLanes;
using pxfast::Order;
using pxfast::Program;
using pxfast::RowPlan;
using pxfast::Scale;
using pxfast::Step;
using pxfast::Tap;
using pxfast::Workspace;

constexpr long kPanelRows = 120;  // rows of a matrix product between two epilogues; a multiple of every tile's rows

// A block of images, decoded by one thread, or a single image by one thread or a team.
template <class Element>
class Block {
 public:
  Block(const Program& program, Workspace& workspace, const uint8_t* input, uint8_t* output, int images,
        const Chooser& chooser, pxfast::Team* team, int member)
      : program_(program),
        workspace_(workspace),
        input_(input),
        output_(output),
        images_(images),
        chooser_(chooser),
        filters_padded_(pxfast::padded(program.filters)),
        team_(team),
        member_(member),
        members_(team ? team->members : 1) {
    if (member == 0) zero_padding_columns();
  }

  // Pixel by pixel: the least arithmetic.
  bool run(const Control& control) {
    for (int row = 0; row < program_.height; ++row) {
      run_steps(/*per_row=*/true, row, 0, program_.width);
      const int columns = workspace_.stretches * pxfast::kStretch;
      for (int column = 0; column < program_.width; column += columns) {
        const int end = column + columns < program_.width ? column + columns : program_.width;
        sum_early_taps(row, column, end);
        if (!run_pixels(row, column, end, control)) return false;
      }
      control.row_done(control.context, images_);
    }
    return true;
  }

  // One image, each row of it in the order that is asked for, or in the faster one: real images take many sweeps or few,
  // and nobody knows beforehand. Pixels that wait for each other are the first member's alone, since they would have a
  // team meet at every step of every pixel. It shares the work of whole rows, unless that proves the slower way too: a
  // team whose cores are busy elsewhere waits long at every meeting.
  bool run_alone(Order order, const Control& control) {
    if (member_ > 0) return follow();
    Faster sharing, guessing;
    RowPlan& plan = workspace_.plan;
    bool finished = true;
    for (plan.row = 0; finished && plan.row < program_.height; ++plan.row) {
      if (control.cancelled(control.context)) {
        finished = false;
        break;
      }
      plan.shared = members_ > 1 && sharing.second();
      plan.guessed = order == Order::kSpeculative || (order == Order::kAuto && guessing.second());
      if (plan.guessed) guess_input(plan.row);
      if (plan.shared || plan.guessed) wait_for_team();  // the others wait in follow()
      const double started = now();
      const long row_work = run_row(plan);
      const double halfway = now();
      sharing.took(plan.shared, halfway - started, row_work);
      if (plan.guessed) {
        sweep(plan.row);
      } else {
        finished = alone([&] { return run_pixels(plan.row, 0, program_.width, control); });
      }
      guessing.took(plan.guessed, now() - halfway, row_work);
      control.row_done(control.context, 1);
    }
    plan.row = program_.height;
    plan.finished = finished;
    wait_for_team();
    return finished;
  }

 private:
  const Program& program_;
  Workspace& workspace_;
  const uint8_t* input_;
  uint8_t* output_;
  const int images_;
  const Chooser chooser_;
  const int filters_padded_;
  pxfast::Team* team_;
  const int member_;
  int members_;

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
      if (step.scale == Scale::kSame) {
        const long rows = (long)(last - first) * images_;
        sum_early_taps(step, level_row, first, last - first, rows * member_ / members_,
                       rows * (member_ + 1) / members_);
      } else {
        for (int column = first + member_; column < last; column += members_)
          sum_early_taps(step, level_row, column, 1, 0, images_);
      }
    }
    watch.lap(&pxfast::Profile::row_products);
    wait_for_team();
    return work;
  }

  void sum_early_taps(const Step& step, int row, int column, int columns, long first, long last) {
    const Operand<Element> operand = gather(step, 0, step.early, row, column, columns);
    float* sums = partial(step, column);
    for (; first < last; first += kPanelRows)
      matrix_product(step, operand, first, last - first < kPanelRows ? last - first : kPanelRows, nullptr,
                     sums + first * product_stride(step));
  }

  // Pixels of a row one after the other; false when cancelled.
  bool run_pixels(int row, int begin, int end, const Control& control) {
    for (int column = begin; column < end; ++column) {
      if (control.cancelled(control.context)) return false;
      run_steps(/*per_row=*/false, row, column, column + 1);
    }
    return true;
  }

  // What the other members of a team do meanwhile.
  bool follow() {
    for (;;) {
      wait_for_team();
      const RowPlan plan = workspace_.plan;  // the first member changes it only after the next meeting
      if (plan.row == program_.height) return plan.finished;  // all members leave a cancelled decode, or none does
      if (plan.shared) {
        run_row(plan);
      } else {
        wait_for_team();
      }
      if (plan.guessed) sweep(plan.row);
    }
  }

  // The work that is done for a whole row at once, by the team or by its first member. All have met when it returns.
  long run_row(const RowPlan& plan) {
    const auto work_of_row = [&] {
      return run_steps(/*per_row=*/true, plan.row, 0, program_.width) +
             sum_early_taps(plan.row, 0, program_.width);
    };
    if (plan.shared) return work_of_row();
    const long work = alone(work_of_row);
    if (plan.guessed) wait_for_team();
    return work;
  }

  // What a member does without its team. (No destructor brings the team back: code that unwinds would be shared by the
  // builds of all instruction sets.)
  template <class Work>
  auto alone(const Work& work) {
    pxfast::Team* const team = team_;
    const int members = members_;
    team_ = nullptr, members_ = 1;
    const auto result = work();
    team_ = team, members_ = members;
    return result;
  }

  // A guessed row: evaluate all its columns at once, keep the prefix that agrees with the guess and its first
  // correction, repeat from there with the evaluated values as the next guess. A Jacobi iteration on a triangular
  // system (Song et al. 2020), so the fixed point is the sequential result; every column is computed by the same
  // arithmetic, so it is so bit for bit.
  void sweep(int row) {
    for (int begin = 0; begin < program_.width; begin = workspace_.open) {
      run_steps(/*per_row=*/false, row, begin, program_.width);
      if (member_ == 0) {
        workspace_.open = settle(row, begin);
        if (workspace_.profile) workspace_.profile->sweeps += 1.0;
      }
      wait_for_team();
    }
  }

  bool guessed() const { return workspace_.parameters != nullptr && workspace_.plan.guessed; }

  // Every step of a stream for the columns [begin, end) of a row, both at stride 1. Returns the work: taps times columns.
  long run_steps(bool per_row, int row, int begin, int end) {
    long work = 0;
    for (int s = 0; s < program_.steps; ++s) {
      const Step& step = program_.step[s];
      if (step.per_row != per_row || (row & ((1 << step.level) - 1))) continue;
      const int first = pxfast::first_column(begin, step.level), last = pxfast::last_column(end, step.level);
      if (first >= last) continue;
      run_step(step, row >> step.level, first, last);
      work += (long)(last - first) * (step.taps - step.early);
    }
    return work;
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

  // One step for the columns [begin, end) of its own level.
  void run_step(const Step& step, int row, int begin, int end) {
    if (step.scale == Scale::kSame) {
      // the columns' cells stand one behind the other, as the images' do
      const long rows = (long)(end - begin) * images_;
      run_rows(step, row, begin, begin, end, rows * member_ / members_, rows * (member_ + 1) / members_);
    } else {
      for (int column = begin; column < end; ++column)
        if ((column - begin) % members_ == member_) run_rows(step, row, begin, column, column + 1, 0, images_);
    }
    wait_for_team();
  }

  // Rows [first, last) of the step's matrix product over the columns [column, end). Residuals are kept from column
  // `begin` of the step on.
  void run_rows(const Step& step, int row, int begin, int column, int end, long first, long last) {
    Stopwatch watch(workspace_.profile);
    const Operand<Element> operand = gather(step, step.early, step.taps, row, column, end - column);
    watch.lap(&pxfast::Profile::gather);
    const float* initial = step.early > 0 ? partial(step, column) : nullptr;
    float* residuals = residual(step, column - begin);
    for (; first < last; first += kPanelRows) {
      const Panel panel{first, last - first < kPanelRows ? last - first : kPanelRows,
                        step.epilogue == Epilogue::kOutput && guessed()
                            ? workspace_.parameters + first * product_stride(step)
                            : workspace_.products[member_]};
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
        if (!guessed())  // a guessed row is judged when the whole of it is there
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
    Element* to = cell(program_.cache[program_.input_cache], row, column) + image * (channels + 1);
    for (int c = 0; c < channels; ++c) store_scalar(to + c, pxfast::network_view(values[c]));
    store_scalar(to + channels, pxfast::kOne);
  }

  // ---- speculation, with one image ----

  // The first guess of a row is the input itself.
  void guess_input(int row) {
    const long plane = (long)program_.height * program_.width;
    for (int column = 0; column < program_.width; ++column) {
      uint8_t values[kLanes] = {};
      for (int c = 0; c < program_.channels; ++c) {
        const long at = c * plane + (long)row * program_.width + column;
        values[c] = output_[at] = input_[at];
      }
      show(row, column, 0, values);
    }
  }

  // Chooses at every column from `begin` on. Up to and including the first change the choices are final; behind it
  // they are the next guess. Returns the first column still open.
  int settle(int row, int begin) {
    Stopwatch watch(workspace_.profile);
    const Step& output = program_.step[program_.steps - 1];
    int open = program_.width;
    for (int column = begin; column < program_.width; ++column) {
      const float* parameters = workspace_.parameters + (long)(column - begin) * product_stride(output);
      if (choose(row, column, 0, parameters) && open == program_.width) open = column + 1;
    }
    watch.lap(&pxfast::Profile::head);
    return open;
  }

  void wait_for_team() {
    if (team_) team_->wait(team_);
  }
};

template <class Element>
bool decode_block(const Program& program, Workspace& workspace, const uint8_t* input, uint8_t* output, int images,
                  const Chooser& chooser, const Control& control) {
  return Block<Element>(program, workspace, input, output, images, chooser, nullptr, 0).run(control);
}

template <class Element>
bool decode_alone(const Program& program, Workspace& workspace, const uint8_t* input, uint8_t* output,
                  const Chooser& chooser, Order order, const Control& control, pxfast::Team* team, int member) {
  return Block<Element>(program, workspace, input, output, 1, chooser, team, member).run_alone(order, control);
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
  return {sizeof(Element), plan_tiles, pack_tap<Element>, products_size, decode_block<Element>,
          decode_alone<Element>};
}

}  // namespace
