// One image decoded alone, by one thread or a team: each row in the order that proves faster.
//
// Included once by every isa_*.cpp, which sets the instruction set by its compiler flags.
#pragma once

#include "decode.h"

namespace {

using pxfast::Order;
using pxfast::RowPlan;

// Real images take many sweeps or few, and nobody knows beforehand. Pixels that wait for each other are the first
// member's alone, since they would have a team meet at every step of every pixel. It shares the work of whole rows,
// unless that proves the slower way too: a team whose cores are busy elsewhere waits long at every meeting. What is tried
// and turns out badly is broken off; the result is the same, bit for bit.
template <class Element>
class Alone : Block<Element> {
  using Base = Block<Element>;
  using Base::control_;
  using Base::membership_;
  using Base::patience_;
  using Base::program_;
  using Base::workspace_;

 public:
  Alone(const Program& program, Workspace& workspace, const uint8_t* input, uint8_t* output, const Chooser& chooser,
        const Control& control, pxfast::Team* team, int member)
      : Base(program, workspace, input, output, 1, chooser, control, team, member) {}

  // False when cancelled.
  bool run(Order order) {
    if (!membership_.first()) return follow();
    const bool speculative = order == Order::kSpeculative;
    Faster sharing, guessing;
    double row_work_alone = 0.0;  // seconds of a unit
    RowPlan& plan = workspace_.plan;
    bool finished = true;
    for (plan.row = 0; finished && plan.row < program_.height; ++plan.row) {
      if (Base::cancelled()) {
        finished = false;
        break;
      }
      membership_.gather();
      plan.shared = membership_.together() && sharing.second();
      plan.guessed = speculative || (order == Order::kAuto && guessing.second());
      if (plan.guessed) guess_input(plan.row);
      if (plan.shared) {
        membership_.wait();  // the others wait in follow()
      } else {
        membership_.part();
      }

      const double started = now();
      if (plan.shared) patience_ = {started, kSlack, 2.0 * row_work_alone};
      const long row_work = run_row(plan.row);
      const double halfway = now();
      if (!plan.shared) row_work_alone = (halfway - started) / (double)row_work;

      int column = 0;
      if (plan.guessed && (speculative || plan.shared == membership_.together())) {  // not where the team has parted
        column = sweep(plan.row, speculative ? kForever : guessing.cost(false) * (double)row_work / program_.width);
        guessing.took(true, (now() - halfway) * program_.width / (column > 0 ? column : 1), row_work);
      }
      const bool one_way = column == 0 || column == program_.width;
      if (column < program_.width) {
        const double begun = now();
        membership_.part();
        finished = Base::run_pixels(plan.row, column, program_.width);
        if (column == 0) guessing.took(false, now() - begun, row_work);
      }
      // judged by the whole row: what others computed lies in their caches when the pixels come
      if (one_way) sharing.took(plan.shared, now() - started, row_work);
      control_.row_done(control_.context, 1);
    }
    plan.row = program_.height;
    plan.finished = finished;
    membership_.wait();
    return finished;
  }

 private:
  static constexpr double kSlack = 100e-6, kForever = 1e30;  // seconds
  static constexpr int kSweepsToJudge = 3;

  // What the other members of a team do meanwhile.
  bool follow() {
    for (;;) {
      membership_.gather();
      membership_.wait();
      const RowPlan plan = workspace_.plan;  // the first member changes it only after the next meeting
      if (plan.row == program_.height) return plan.finished;  // all members leave a cancelled decode, or none does
      run_row(plan.row);
      if (plan.guessed && !membership_.left()) sweep(plan.row, kForever);
    }
  }

  // The work that is done for a whole row at once; the first member may have to finish it alone. Returns the work, as
  // run_steps does.
  long run_row(int row) {
    long work = Base::run_steps(/*per_row=*/true, row, 0, program_.width);
    patience_ = {};
    if (!membership_.left()) work += Base::sum_early_taps(row, 0, program_.width);
    return work;
  }

  // A guessed row: evaluate all its columns at once, keep the prefix that agrees with the guess and its first
  // correction, repeat from there with the evaluated values as the next guess. A Jacobi iteration on a triangular
  // system (Song et al. 2020), so the fixed point is the sequential result; every column is computed by the same
  // arithmetic, so it is so bit for bit.
  //
  // seconds: what a column costs pixel by pixel. The first member breaks off where that promises to be faster, and
  // returns the first column that is still open.
  int sweep(int row, double seconds) {
    const bool together = membership_.together();
    this->guessing_ = true;
    int begin = 0;
    for (int sweeps = 1; begin < program_.width; ++sweeps) {
      const double started = now();
      patience_ = {started, kSlack + 0.5 * seconds * program_.width, 0.0};
      Base::run_steps(/*per_row=*/false, row, begin, program_.width);
      if (membership_.together() != together || Base::breaks_off()) break;
      bool enough = false;
      int open = 0;
      if (membership_.first()) {
        open = settle(row, begin);
        if (together) workspace_.open = open;  // others may still be reading it while the first is alone
        // the sweeps to come settle as many columns each as those so far, and take half as long as this one in the mean
        enough = sweeps >= kSweepsToJudge && 0.5 * (now() - started) * sweeps / open > seconds;
        if (workspace_.profile) workspace_.profile->sweeps += 1.0;
      }
      if (!membership_.meet(enough)) break;
      begin = membership_.first() ? open : workspace_.open;
      if (enough) break;
    }
    patience_ = {};
    this->guessing_ = false;
    return begin;
  }

  // The first guess of a row is the input itself.
  void guess_input(int row) {
    const long plane = (long)program_.height * program_.width;
    for (int column = 0; column < program_.width; ++column) {
      uint8_t values[kLanes] = {};
      for (int c = 0; c < program_.channels; ++c) {
        const long at = c * plane + (long)row * program_.width + column;
        values[c] = this->output_[at] = this->input_[at];
      }
      Base::show(row, column, 0, values);
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
      if (Base::choose(row, column, 0, parameters) && open == program_.width) open = column + 1;
    }
    watch.lap(&pxfast::Profile::head);
    return open;
  }
};

template <class Element>
bool decode_alone(const Program& program, Workspace& workspace, const uint8_t* input, uint8_t* output,
                  const Chooser& chooser, Order order, const Control& control, pxfast::Team* team, int member) {
  return Alone<Element>(program, workspace, input, output, chooser, control, team, member).run(order);
}

template <class Element>
size_t products_size(const Program& program) {
  size_t widest = 0;
  for (int s = 0; s < program.steps; ++s) {
    const Step& step = program.step[s];
    const size_t width = (size_t)step.tiles * step.tile_vectors * kLanes;
    if (width > widest) widest = width;
  }
  return kPanelRows<Element> * widest + 2 * kLanes;  // loads may run past the last row
}

template <class Element>
constexpr pxfast::Backend make_backend() {
  return {sizeof(Element),        kCellMultiple<Element>, plan_tiles<Element>, pack_tap<Element>,
          products_size<Element>, decode_block<Element>,  decode_alone<Element>};
}

}  // namespace
