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

// A step's results of one tile. Stores make the compiler forget what it has read, so where they go is found once for
// all blocks of the tile, and a block's values and addresses are all there before its first store. Both rows of a lane go
// hand in hand: the epilogue is one long chain of dependent instructions, and two of them take little longer than one.
template <class Element, bool kGroups>
class Finish {
  using Cells = CacheOrder<kGroups>;

 public:
  PXFAST_DEVICE Finish(const Team<Element, kGroups>& team, const Step& step, const Pass& pass)
      : team_(team),
        step_(step),
        pass_(pass),
        lane_(thread_index() & 31),
        residuals_(reinterpret_cast<float*>(team.memory + team.launch.room.residual[step.per_row][step.level]) +
                   (int64_t)pass.offset * team.images * team.program.padded_filters),
        partial_(team.partial() + (int64_t)step.partial_at * team.images +
                 (int64_t)pass.first * team.images * (step.units * kUnit)) {}

  PXFAST_DEVICE Beside fetch(int first_row, int rows, int unit) const {
    Beside found{};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int m = first_row + (lane_ >> 2) + 8 * r;
      if (m >= rows) continue;
      const int position = position_of(m);
      if (step_.epilogue == Epilogue::kGate && step_.partial != Partial::kLeaves)
        found.residual[r] =
            load_shared_between_blocks(reinterpret_cast<const Float2*>(residual_at(position, unit * kBlock)));
      if (step_.partial == Partial::kAdds) {
#pragma unroll
        for (int h = 0; h < 2; ++h) found.partial[r][h] = load_shared_between_blocks(partial_at(position, unit, h));
      }
    }
    for (int i = 0; i < step_.biases; ++i) {
      const Float2* bias = bias_at(i, unit);
      if (!bias_differs()) {
        prefetch_constant(bias);
        continue;
      }
      if (pass_.row < step_.bias_row[i]) continue;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int position = position_of(first_row + (lane_ >> 2) + 8 * r);
        if (pass_.first + position / team_.images < step_.bias_column[i]) continue;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const Float2 two = load_constant(bias + h * kBlock / 2);
          found.partial[r][h].x += two.x, found.partial[r][h].y += two.y;
        }
      }
    }
    return found;
  }

  // Where the tile's results go: called when its products are there, and before `publish`.
  PXFAST_DEVICE void aim() {
    const int narrow = (team_.program.padded_filters + kInner - 1) / kInner * kInner;
    const int columns = (team_.program.width >> step_.level) + 2;
    block_ = Cells::block_stride(columns, team_.images);
    concat_elu_ = first_cell(step_.concat_elu, columns, 2 * team_.program.padded_filters);
    raw_ = first_cell(step_.raw, columns, narrow);
    elu_ = first_cell(step_.elu, columns, narrow);
    concat_elu_stride_ = Cells::image_stride(2 * team_.program.padded_filters);
    narrow_stride_ = Cells::image_stride(narrow);
    parameters_ = team_.parameters() + (int64_t)pass_.offset * team_.images * team_.program.head_stride;
  }

  // The epilogue of 16 rows x one unit.
  PXFAST_DEVICE void publish(int first_row, int rows, int unit, const float (&sums)[8],
                             const Beside& beside) const {
    Rows at;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int m = first_row + (lane_ >> 2) + 8 * r;
      at.here[r] = m < rows;
      at.position[r] = position_of(m);
    }
    Values v[2];  // by half
#pragma unroll
    for (int h = 0; h < 2; ++h) v[h] = {beside.partial[0][h], beside.partial[1][h]};
    for (int i = 0; i < step_.biases && !bias_differs(); ++i) {
      if (pass_.row < step_.bias_row[i]) continue;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const Float2 two = load_constant(bias_at(i, unit) + h * kBlock / 2);
#pragma unroll
        for (int r = 0; r < 2; ++r) v[h].at[r].x += two.x, v[h].at[r].y += two.y;
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        v[h].at[r].x = sums[4 * h + 2 * r] * step_.multiplier + v[h].at[r].x;
        v[h].at[r].y = sums[4 * h + 2 * r + 1] * step_.multiplier + v[h].at[r].y;
      }
    const int filters = team_.program.padded_filters;
    if (step_.partial == Partial::kLeaves) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        store_all(at, v[h], [&](int position) { return partial_at(position, unit, h); });
    } else if (step_.epilogue == Epilogue::kOutput) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        store_all(at, v[h], [&](int position) {
          return reinterpret_cast<Float2*>(parameters_ + (int64_t)position * team_.program.head_stride + unit * kUnit +
                                           h * kBlock + pair());
        });
    } else if (step_.epilogue == Epilogue::kHidden) {
      store_concat_elu(at, v, unit, filters);
    } else if (step_.epilogue == Epilogue::kGate) {
      Values x;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        x.at[r].x = fused_multiply_add(v[0].at[r].x, sigmoid<Element>(v[1].at[r].x), beside.residual[r].x);
        x.at[r].y = fused_multiply_add(v[0].at[r].y, sigmoid<Element>(v[1].at[r].y), beside.residual[r].y);
      }
      show(at, x, unit * kBlock);
    } else {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        if (unit * kUnit + h * kBlock < filters) show(at, v[h], unit * kUnit + h * kBlock);
    }
  }

 private:
  struct Rows {
    bool here[2];
    int position[2];
  };
  struct Values {
    Float2 at[2];  // two columns of each row
  };

  PXFAST_DEVICE int pair() const { return 2 * (lane_ & 3); }  // the first of a lane's columns among those of a half

  // A row's place among the images of the columns from pass.first on.
  PXFAST_DEVICE int position_of(int m) const {
    return pass_.out_stride == 1 ? m : m / team_.images * pass_.out_stride * team_.images + m % team_.images;
  }
  // Whether it is not the same for all columns.
  PXFAST_DEVICE bool bias_differs() const {
    static_assert(kMaxBiases == 2, "both are looked at");
    return step_.biases > 0 && (step_.bias_column[0] | step_.bias_column[1]) > 0;
  }
  // A lane's two values of a bias's first half.
  PXFAST_DEVICE const Float2* bias_at(int i, int unit) const {
    return reinterpret_cast<const Float2*>(
        reinterpret_cast<const float*>(team_.launch.block + step_.bias[i]) + unit * kUnit + pair());
  }
  PXFAST_DEVICE float* residual_at(int position, int feature) const {
    return residuals_ + (int64_t)position * team_.program.padded_filters + feature + pair();
  }
  // A step's sums over early taps, of a position and its unit's outputs.
  PXFAST_DEVICE Float2* partial_at(int position, int unit, int half) const {
    return reinterpret_cast<Float2*>(partial_ + (int64_t)position * (step_.units * kUnit) + unit * kUnit +
                                     half * kBlock + pair());
  }
  // Of a cache that the step writes; null where there is none.
  PXFAST_DEVICE Element* first_cell(const Target& target, int columns, int channels) const {
    if (target.slots == 0) return nullptr;
    return team_.caches() +
           Cells::cell(target.cache, target.slots, columns, channels, team_.images, pass_.row, pass_.first);
  }
  PXFAST_DEVICE Element* channel_of(Element* cache, uint32_t stride, int position, int channel) const {
    return cache + (uint32_t)position * stride + (uint32_t)(channel / kBlock) * block_ + channel % kBlock;
  }

  // address: of a position's two values.
  template <class Address>
  PXFAST_DEVICE static void store_all(const Rows& at, const Values& values, const Address& address) {
    Float2* const to[2] = {address(at.position[0]), address(at.position[1])};
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (at.here[r]) store_shared_between_blocks(to[r], values.at[r]);
  }
  // The same for those that are packed for a cache, of a lane's columns from `channel` on.
  PXFAST_DEVICE void store_cells(const Rows& at, const Values& values, Element* cache, uint32_t stride,
                                 int channel) const {
    Element* const to[2] = {channel_of(cache, stride, at.position[0], channel),
                            channel_of(cache, stride, at.position[1], channel)};
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (at.here[r]) Arithmetic<Element>::store(to[r], values.at[r].x, values.at[r].y);
  }

  PXFAST_DEVICE static void elu_both_of(const Values& x, Values& positive, Values& negative) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      elu_both<Element>(x.at[r].x, positive.at[r].x, negative.at[r].x);
      elu_both<Element>(x.at[r].y, positive.at[r].y, negative.at[r].y);
    }
  }
  PXFAST_DEVICE void store_halves(const Rows& at, const Values& positive, const Values& negative, int n) const {
    store_cells(at, positive, concat_elu_, concat_elu_stride_, positive_half(n));
    store_cells(at, negative, concat_elu_, concat_elu_stride_, negative_half(n));
  }
  PXFAST_DEVICE void store_concat_elu(const Rows& at, const Values (&v)[2], int unit, int filters) const {
    Values positive[2], negative[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) elu_both_of(v[h], positive[h], negative[h]);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int feature = unit * kUnit + h * kBlock;
      if (feature < filters) store_halves(at, positive[h], negative[h], feature + pair());
    }
  }

  // Residuals of the features from `feature` on: for the step itself, and for those that read its caches.
  PXFAST_DEVICE void show(const Rows& at, const Values& x, int feature) const {
    Values positive, negative;
    const bool halves = concat_elu_ != nullptr, whole = elu_ != nullptr;
    if (halves || whole) elu_both_of(x, positive, negative);
    store_all(at, x, [&](int position) { return reinterpret_cast<Float2*>(residual_at(position, feature)); });
    if (halves) store_halves(at, positive, negative, feature + pair());
    if (raw_ != nullptr) store_cells(at, x, raw_, narrow_stride_, feature + pair());
    if (whole) store_cells(at, positive, elu_, narrow_stride_, feature + pair());
  }

  const Team<Element, kGroups>& team_;
  const Step& step_;
  const Pass& pass_;
  const int lane_;
  float *const residuals_, *const partial_;
  float* parameters_ = nullptr;
  Element *concat_elu_ = nullptr, *raw_ = nullptr, *elu_ = nullptr;  // the first cell of each cache
  uint32_t block_ = 0, concat_elu_stride_ = 0, narrow_stride_ = 0;
};

}  // namespace cuda
}  // namespace pxfast
