// What a step does with its sums: adds what belongs to them, and publishes the result for later steps to read.
#pragma once

#include "team.cuh"

namespace pxfast {
namespace cuda {

// What is added to a block's sums, for this lane's outputs of rows g and g + 8: two neighbouring columns in each half.
struct Beside {
  Float2 partial[2][2];  // by row, by half: the sums over the early taps, and biases that not all columns have
  Float2 residual[2];    // of a gate, by row

  // A row step has nothing else, which the compiler does not know: it spares registers where these are fewest.
  PXFAST_DEVICE void keep_residual() {
#pragma unroll
    for (int r = 0; r < 2; ++r) partial[r][0] = partial[r][1] = Float2{0.0f, 0.0f};
  }
};

// A step's results of one tile. Stores make the compiler forget what it has read of the step, so all that is the same
// for the blocks of a tile is found once, and a block's values and addresses are all there before its first store. Both
// rows of a lane go hand in hand: the epilogue is one long chain of dependent instructions, and two of them take little
// longer than one.
template <class Element, bool kGroups>
class Finish {
  using Cells = CacheOrder<kGroups>;

 public:
  PXFAST_DEVICE Finish(const Team<Element, kGroups>& team, const Step& step, const Pass& pass)
      : team_(team),
        step_(step),
        pass_(pass),
        lane_(thread_index_again() & 31),
        leaves_(step.partial == Partial::kLeaves),
        adds_(step.partial == Partial::kAdds),
        epilogue_(step.epilogue),
        bias_differs_(pass.results.bias_differs != 0) {
#pragma unroll
    for (int i = 0; i < kMaxBiases; ++i)
      bias_[i] = pass.results.bias[i] == nullptr ? nullptr
                                                 : reinterpret_cast<const Float2*>(pass.results.bias[i] + pair());
  }

  // Fills in the results of a pass of which the rest is known, a lane for each.
  static PXFAST_DEVICE void describe(const Team<Element, kGroups>& team, const Step& step, Pass& pass, int lane) {
    const Program& program = team.program;
    const int filters = program.padded_filters, narrow = (filters + kInner - 1) / kInner * kInner;
    const int columns = (program.width >> step.level) + 2;
    Results& results = pass.results;
    if (lane >= 0 && lane < 3) {  // three of them side by side: a remainder takes thirty instructions
      const Target& target = lane == 0 ? step.concat_elu : lane == 1 ? step.raw : step.elu;
      uint32_t& found = lane == 0 ? results.concat_elu : lane == 1 ? results.raw : results.elu;
      found = target.slots == 0 ? kNoCell
                                : Cells::cell(target.cache, target.slots, columns, lane == 0 ? 2 * filters : narrow,
                                              team.images, pass.row, pass.first);
    }
    if (lane == 3) {
      static_assert(kMaxBiases == 2, "both are looked at");
      results.bias_differs = step.biases > 0 && (step.bias_column[0] | step.bias_column[1]) > 0;
      for (int i = 0; i < kMaxBiases; ++i)
        results.bias[i] = i < step.biases && pass.row >= step.bias_row[i]
                              ? reinterpret_cast<const float*>(team.launch.block + step.bias[i])
                              : nullptr;
    }
    if (lane == 4) {
      results.block = Cells::block_stride(columns, team.images);
      const int64_t offset = (int64_t)pass.offset * team.images, first = (int64_t)pass.first * team.images;
      float* const residuals =
          reinterpret_cast<float*>(team.memory + team.launch.room.residual[step.per_row][step.level]);
      results.residual = residuals + offset * filters;
      results.partial = team.partial() + (int64_t)step.partial_at * team.images + first * (step.units * kUnit);
      results.parameters = team.parameters() + offset * program.head_stride;
    }
  }

  // The 16 rows that are meant from now on; those from `rows` on do not exist.
  PXFAST_DEVICE void take_rows(int first_row, int rows) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int m = first_row + (lane_ >> 2) + 8 * r;
      here_[r] = m < rows;
      position_[r] = position_of(m);
      residual_[r] = row_of(pass_.results.residual, r, team_.program.padded_filters);
      partial_[r] = row_of(pass_.results.partial, r, step_.units * kUnit);
    }
  }

  // What is added to the sums of a unit.
  PXFAST_DEVICE Beside fetch(int unit) const {
    Beside found{};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!here_[r]) continue;
      if (epilogue_ == Epilogue::kGate && !leaves_)
        found.residual[r] = load_shared_between_blocks(residual_[r] + unit * kBlock / 2);
      if (adds_) {
#pragma unroll
        for (int h = 0; h < 2; ++h) found.partial[r][h] = load_shared_between_blocks(partial_at(r, unit, h));
      }
    }
#pragma unroll
    for (int i = 0; i < kMaxBiases; ++i) {
      if (bias_[i] == nullptr) continue;
      if (!bias_differs_) {
        prefetch_constant(bias_at(i, unit, 0));
        continue;
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (pass_.first + (int)position_[r] / team_.images < step_.bias_column[i]) continue;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const Float2 two = load_constant(bias_at(i, unit, h));
          found.partial[r][h].x += two.x, found.partial[r][h].y += two.y;
        }
      }
    }
    return found;
  }

  // Where the tile's results go: called when its products are there, and before `publish`.
  PXFAST_DEVICE void aim() {
    filters_ = team_.program.padded_filters;
    multiplier_ = step_.multiplier;
    block_ = pass_.results.block;
    concat_elu_ = cache_of(pass_.results.concat_elu);
    raw_ = cache_of(pass_.results.raw);
    elu_ = cache_of(pass_.results.elu);
    concat_elu_stride_ = Cells::image_stride(2 * filters_);
    narrow_stride_ = Cells::image_stride((filters_ + kInner - 1) / kInner * kInner);
  }

  // The epilogue of the 16 rows and one unit.
  PXFAST_DEVICE void publish(int unit, const float (&sums)[8], const Beside& beside) const {
    Values v[2];  // by half
#pragma unroll
    for (int h = 0; h < 2; ++h) v[h] = {beside.partial[0][h], beside.partial[1][h]};
#pragma unroll
    for (int i = 0; i < kMaxBiases; ++i) {
      if (bias_[i] == nullptr || bias_differs_) continue;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const Float2 two = load_constant(bias_at(i, unit, h));
#pragma unroll
        for (int r = 0; r < 2; ++r) v[h].at[r].x += two.x, v[h].at[r].y += two.y;
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        v[h].at[r].x = sums[4 * h + 2 * r] * multiplier_ + v[h].at[r].x;
        v[h].at[r].y = sums[4 * h + 2 * r + 1] * multiplier_ + v[h].at[r].y;
      }
    if (leaves_) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        store_all(v[h], [&](int r) { return partial_at(r, unit, h); });
    } else if (epilogue_ == Epilogue::kGate) {
      Values x;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        x.at[r].x = fused_multiply_add(v[0].at[r].x, Arithmetic<Element>::sigmoid(v[1].at[r].x), beside.residual[r].x);
        x.at[r].y = fused_multiply_add(v[0].at[r].y, Arithmetic<Element>::sigmoid(v[1].at[r].y), beside.residual[r].y);
      }
      show(x, unit);
    } else if (epilogue_ == Epilogue::kHidden) {
      Values positive[2], negative[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) elu_both_of(v[h], positive[h], negative[h]);
#pragma unroll
      for (int h = 0; h < 2; ++h)
        if (2 * unit * kBlock + h * kBlock < filters_) store_halves(positive[h], negative[h], 2 * unit + h);
    } else if (epilogue_ == Epilogue::kOutput) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        store_all(v[h], [&](int r) {
          return row_of(pass_.results.parameters, r, team_.program.head_stride) + half_of(unit, h);
        });
    } else {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        if (2 * unit * kBlock + h * kBlock < filters_) show(v[h], 2 * unit + h);
    }
  }

 private:
  struct Values {
    Float2 at[2];  // two columns of each row
  };

  PXFAST_DEVICE int pair() const { return 2 * (lane_ & 3); }  // the first of a lane's columns among those of a half

  // A row's place among the images of the columns from pass.first on.
  PXFAST_DEVICE int position_of(int m) const {
    return pass_.out_stride == 1 ? m : m / team_.images * pass_.out_stride * team_.images + m % team_.images;
  }
  // This lane's columns of a row among those of so many floats.
  PXFAST_DEVICE Float2* row_of(float* first, int r, int floats) const {
    return reinterpret_cast<Float2*>(first + (uint64_t)position_[r] * (uint32_t)floats + pair());
  }
  // Where half of a unit's outputs stand, in pairs.
  static PXFAST_DEVICE int half_of(int unit, int half) { return unit * (kUnit / 2) + half * (kBlock / 2); }
  PXFAST_DEVICE const Float2* bias_at(int i, int unit, int half) const { return bias_[i] + half_of(unit, half); }
  PXFAST_DEVICE Float2* partial_at(int r, int unit, int half) const { return partial_[r] + half_of(unit, half); }
  // This lane's columns of the first block of a cache; null where the step has none.
  PXFAST_DEVICE Element* cache_of(uint32_t cell) const {
    return cell == kNoCell ? nullptr : team_.caches() + pair() + cell;
  }

  // address: of a row's two values.
  template <class Address>
  PXFAST_DEVICE void store_all(const Values& values, const Address& address) const {
    Float2* const to[2] = {address(0), address(1)};
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (here_[r]) store_shared_between_blocks(to[r], values.at[r]);
  }
  // The same for those that are packed for a block of a cache.
  PXFAST_DEVICE void store_cells(const Values& values, Element* cache, uint32_t stride, int block) const {
    Element* const to[2] = {cache + (position_[0] * stride + (uint32_t)block * block_),
                            cache + (position_[1] * stride + (uint32_t)block * block_)};
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (here_[r]) Arithmetic<Element>::store(to[r], values.at[r].x, values.at[r].y);
  }

  PXFAST_DEVICE static void elu_both_of(const Values& x, Values& positive, Values& negative) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      elu_both<Element>(x.at[r].x, positive.at[r].x, negative.at[r].x);
      elu_both<Element>(x.at[r].y, positive.at[r].y, negative.at[r].y);
    }
  }
  // Of a block of features, as program.h orders them.
  PXFAST_DEVICE void store_halves(const Values& positive, const Values& negative, int block) const {
    store_cells(positive, concat_elu_, concat_elu_stride_, 2 * block);
    store_cells(negative, concat_elu_, concat_elu_stride_, 2 * block + 1);
  }

  // Residuals of a block of features: for the step itself, and for those that read its caches.
  PXFAST_DEVICE void show(const Values& x, int block) const {
    Values positive, negative;
    const bool halves = concat_elu_ != nullptr, whole = elu_ != nullptr;
    if (halves || whole) elu_both_of(x, positive, negative);
    store_all(x, [&](int r) { return residual_[r] + block * (kBlock / 2); });
    if (halves) store_halves(positive, negative, block);
    if (raw_ != nullptr) store_cells(x, raw_, narrow_stride_, block);
    if (whole) store_cells(positive, elu_, narrow_stride_, block);
  }

  const Team<Element, kGroups>& team_;
  const Step& step_;
  const Pass& pass_;
  const int lane_;
  const bool leaves_, adds_;
  const Epilogue epilogue_;
  const bool bias_differs_;         // not all columns have it: it comes with the early sums
  const Float2* bias_[kMaxBiases];  // this lane's columns of those that the row has
  bool here_[2];                    // by row of the lane
  uint32_t position_[2];
  Float2 *residual_[2], *partial_[2];  // this lane's columns of the first unit
  Element *concat_elu_ = nullptr, *raw_ = nullptr, *elu_ = nullptr;
  uint32_t block_ = 0, concat_elu_stride_ = 0, narrow_stride_ = 0;
  int filters_ = 0;
  float multiplier_ = 0.0f;
};

}  // namespace cuda
}  // namespace pxfast
