// What a step does with its sums: adds what belongs to them, and publishes the result for later steps to read.
#pragma once

#include "team.cuh"

namespace pxfast {
namespace cuda {

// What is added to a block's sums, for this lane's outputs of rows g and g + 8: two neighbouring columns in each half.
struct Beside {
  Float2 bias[2][2];   // by row, by half; and the sums over the early taps
  Float2 residual[2];  // of a gate, by row
};

template <class Element, bool kGroups>
class Finish {
 public:
  PXFAST_DEVICE explicit Finish(const Team<Element, kGroups>& team) : team_(team) {}

  // A row's place among the images of the columns from pass.first on.
  PXFAST_DEVICE int position_of(const Pass& pass, int m) const {
    return pass.out_stride == 1 ? m : m / team_.images * pass.out_stride * team_.images + m % team_.images;
  }
  PXFAST_DEVICE float* residuals_of(const Step& step, const Pass& pass, int position, int begin) const {
    return reinterpret_cast<float*>(team_.memory + team_.launch.room.residual[step.per_row][step.level]) +
           ((int64_t)(pass.first - begin) * team_.images + position) * team_.program.padded_filters;
  }

  // A step's sums over early taps, of a position and its unit's outputs.
  PXFAST_DEVICE Float2* partial_of(const Step& step, const Pass& pass, int position, int unit, int half) const {
    const int64_t place = (int64_t)pass.first * team_.images + position;
    return reinterpret_cast<Float2*>(team_.partial + (int64_t)step.partial_at * team_.images +
                                     place * (step.units * kUnit) + unit * kUnit + half * kBlock +
                                     2 * (thread_index() & 3));
  }

  PXFAST_DEVICE Beside fetch(const Step& step, const Pass& pass, int first_row, int rows, int unit, int row,
                             int begin) const {
    const int lane = thread_index() & 31, g = lane >> 2, t = lane & 3;
    Beside found{};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int m = first_row + g + 8 * r;
      if (m >= rows) continue;
      const int position = position_of(pass, m);
      if (step.epilogue == Epilogue::kGate && step.partial != Partial::kLeaves)
        found.residual[r] = load_shared_between_blocks(
            reinterpret_cast<const Float2*>(residuals_of(step, pass, position, begin) + unit * kBlock + 2 * t));
      if (step.partial == Partial::kAdds) {
#pragma unroll
        for (int h = 0; h < 2; ++h)
          found.bias[r][h] = load_shared_between_blocks(partial_of(step, pass, position, unit, h));
      }
      for (int i = 0; i < step.biases; ++i) {
        if (row < step.bias_row[i]) continue;
        if (step.bias_column[i] > 0 && pass.first + position / team_.images < step.bias_column[i]) continue;
        const float* bias = reinterpret_cast<const float*>(team_.launch.block + step.bias[i]) + unit * kUnit + 2 * t;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const Float2 pair = load_constant(reinterpret_cast<const Float2*>(bias + kBlock * h));
          found.bias[r][h].x += pair.x, found.bias[r][h].y += pair.y;
        }
      }
    }
    return found;
  }

  // The epilogue of 16 rows x one unit.
  PXFAST_DEVICE void publish(const Step& step, const Pass& pass, int first_row, int rows, int unit, int begin,
                             const float (&sums)[8], const Beside& beside) {
    const int lane = thread_index() & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int m = first_row + g + 8 * r;
      if (m >= rows) continue;
      const int position = position_of(pass, m);
      float v[2][2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        v[h][0] = sums[4 * h + 2 * r] * step.multiplier + beside.bias[r][h].x;
        v[h][1] = sums[4 * h + 2 * r + 1] * step.multiplier + beside.bias[r][h].y;
      }
      if (step.partial == Partial::kLeaves) {
#pragma unroll
        for (int h = 0; h < 2; ++h)
          store_shared_between_blocks(partial_of(step, pass, position, unit, h), Float2{v[h][0], v[h][1]});
      } else if (step.epilogue == Epilogue::kOutput) {
        float* to = team_.parameters +
                    ((int64_t)(pass.first - begin) * team_.images + position) * team_.program.head_stride +
                    unit * kUnit + 2 * t;
#pragma unroll
        for (int h = 0; h < 2; ++h)
          store_shared_between_blocks(reinterpret_cast<Float2*>(to + kBlock * h), Float2{v[h][0], v[h][1]});
      } else if (step.epilogue == Epilogue::kHidden) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int n = unit * kUnit + h * kBlock + 2 * t;
          if (n < team_.program.padded_filters) store_concat_elu(step, pass, position, n, v[h][0], v[h][1]);
        }
      } else {
        float* residuals = residuals_of(step, pass, position, begin);
        if (step.epilogue == Epilogue::kGate) {
          const int n = unit * kBlock + 2 * t;
          Float2 x = beside.residual[r];
          x.x = fused_multiply_add(v[0][0], sigmoid<Element>(v[1][0]), x.x);
          x.y = fused_multiply_add(v[0][1], sigmoid<Element>(v[1][1]), x.y);
          store_shared_between_blocks(reinterpret_cast<Float2*>(residuals + n), x);
          show(step, pass, position, n, x.x, x.y);
        } else {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int n = unit * kUnit + h * kBlock + 2 * t;
            if (n >= team_.program.padded_filters) continue;
            store_shared_between_blocks(reinterpret_cast<Float2*>(residuals + n), Float2{v[h][0], v[h][1]});
            show(step, pass, position, n, v[h][0], v[h][1]);
          }
        }
      }
    }
  }

  // Where a position's channels go in a cache that a step writes.
  struct Cell {
    Element* first;
    uint32_t block;  // elements from one block of channels to the next

    PXFAST_DEVICE Element* at(int channel) const {
      return first + (uint32_t)(channel / kBlock) * block + channel % kBlock;
    }
  };
  PXFAST_DEVICE Cell cell(const Target& target, const Pass& pass, const Step& step, int channels, int position) {
    using Cells = CacheOrder<kGroups>;
    const int columns = (team_.program.width >> step.level) + 2;
    return {team_.caches +
                Cells::cell(target.cache, target.slots, columns, channels, team_.images, pass.row, pass.first) +
                (uint32_t)position * Cells::image_stride(channels),
            Cells::block_stride(columns, team_.images)};
  }

  PXFAST_DEVICE void store_concat_elu(const Step& step, const Pass& pass, int position, int n, float x, float y) {
    float positive[2], negative[2];
    elu_both<Element>(x, positive[0], negative[0]);
    elu_both<Element>(y, positive[1], negative[1]);
    const Cell to = cell(step.concat_elu, pass, step, 2 * team_.program.padded_filters, position);
    Arithmetic<Element>::store(to.at(positive_half(n)), positive[0], positive[1]);
    Arithmetic<Element>::store(to.at(negative_half(n)), negative[0], negative[1]);
  }

  PXFAST_DEVICE void show(const Step& step, const Pass& pass, int position, int n, float x, float y) {
    const int channels = (team_.program.padded_filters + kInner - 1) / kInner * kInner;
    if (step.concat_elu.slots > 0) store_concat_elu(step, pass, position, n, x, y);
    if (step.raw.slots > 0) Arithmetic<Element>::store(cell(step.raw, pass, step, channels, position).at(n), x, y);
    if (step.elu.slots > 0) {
      float first, second, unused;
      elu_both<Element>(x, first, unused);
      elu_both<Element>(y, second, unused);
      Arithmetic<Element>::store(cell(step.elu, pass, step, channels, position).at(n), first, second);
    }
  }

 private:
  const Team<Element, kGroups>& team_;
};

}  // namespace cuda
}  // namespace pxfast
