// Group normalisation with what often follows it, ReLU and 2 x 2 average pooling, and two derivatives, each in one pass
// over memory.
//
// Channels are the innermost dimension: a register holds neighbouring channels of a pixel, so that sums over pixels and
// pooling need no work across lanes. The groups of some channels of one image are read twice, for their sums and for
// the result, and the second time they lie in the cache. ReLU costs nothing but its sign, which each derivative works
// out again, and pooling saves most of the memory behind it.

#pragma once

#include "common.h"

namespace {

constexpr int64_t kChannelBlock = 64;  // channels that are read twice in turn, if the groups are no larger

// n images of c channels h x w in `groups`; what is done with them besides.
struct Grouped {
  int64_t n, c, h, w, groups;
  bool relu, pool;
  int64_t depth() const { return c / groups; }
  int64_t pixels() const { return h * w; }
  int64_t count() const { return depth() * pixels(); }
  int64_t block() const { return std::max<int64_t>(1, kChannelBlock / depth()) * depth(); }
  int64_t out_h() const { return pool ? h / 2 : h; }
  int64_t out_w() const { return pool ? w / 2 : w; }
};

// Rows of numbers, one for each channel.
template <typename T, size_t N>
std::array<T*, N> rows_of(std::vector<T>& memory, int64_t channels) {
  memory.assign(N * channels, T(0));
  std::array<T*, N> rows;
  for (size_t i = 0; i < N; ++i) rows[i] = memory.data() + i * channels;
  return rows;
}

// Calls work(cell, offsets of its pixels) for a row of outputs: a cell is one pixel, or the four of a pooling window.
template <bool P, typename Work>
inline void for_row(const Grouped& s, int64_t y, const Work& work) {
  const int64_t row = s.out_w();
  for (int64_t x = 0; x < row; ++x) {
    if constexpr (P) {
      const int64_t corner = (2 * y * s.w + 2 * x) * s.c;
      work((y * row + x) * s.c, std::array{corner, corner + s.c, corner + s.w * s.c, corner + (s.w + 1) * s.c});
    } else {
      work((y * row + x) * s.c, std::array{(y * row + x) * s.c});
    }
  }
}

// Sums over all cells of S numbers for each channel: `add(cell, pixels, channel, lanes, sums)` adds one cell's.
// Rows are summed up on their own, and then in double precision: an error of a sum is the same in every pixel, so that
// the next layer adds it up instead of averaging it out.
template <int S, bool P, int V, typename Add>
inline void sum_tile(const Grouped& s, int64_t c, int64_t lanes, const Add& add, const std::array<double*, S>& to) {
  double totals[S][V * kLanes] = {};
  for (int64_t y = 0; y < s.out_h(); ++y) {
    Vec sums[V][S];
    for_row<P>(s, y, [&](int64_t cell, const auto& pixels) __attribute__((always_inline)) {
      UNROLLED for (int v = 0; v < V; ++v) add(cell, pixels, c + v * kLanes, lanes, sums[v]);
    });
    UNROLLED for (int i = 0; i < S; ++i)
      UNROLLED for (int v = 0; v < V; ++v) {
        float row[kLanes];
        sums[v][i].store(row);
        for (int64_t lane = 0; lane < kLanes; ++lane) totals[i][v * kLanes + lane] += row[lane];
      }
  }
  for (int i = 0; i < S; ++i) std::copy_n(totals[i], V > 1 ? V * kLanes : lanes, to[i] + c);
}

template <int S, bool P, typename Add>
inline void sum_up(const Grouped& s, int64_t first, int64_t last, const Add& add, const std::array<double*, S>& to) {
  constexpr int V = std::clamp((kRegisters - 6) / S, 1, 4);
  int64_t c = first;
  for (; c + V * kLanes <= last; c += V * kLanes) sum_tile<S, P, V>(s, c, kLanes, add, to);
  for (; c < last; c += kLanes) sum_tile<S, P, 1>(s, c, std::min(kLanes, last - c), add, to);
}

// Calls work(cell, pixels, channel, lanes) for every register of every cell.
template <bool P, typename Work>
inline void for_all(const Grouped& s, int64_t first, int64_t last, const Work& work) {
  for (int64_t y = 0; y < s.out_h(); ++y)
    for_row<P>(s, y, [&](int64_t cell, const auto& pixels) __attribute__((always_inline)) {
      int64_t c = first;
      for (; c + kLanes <= last; c += kLanes) work(cell, pixels, c, kLanes);
      if (c < last) work(cell, pixels, c, last - c);
    });
}

// Each channel gets the sum of its group.
void over_groups(const Grouped& s, int64_t first, int64_t last, double* values) {
  for (int64_t c = first; c < last; c += s.depth()) {
    double total = 0;
    for (int64_t i = c; i < c + s.depth(); ++i) total += values[i];
    std::fill(values + c, values + c + s.depth(), total);
  }
}

// Calls work(image, first channel, last channel), with whole groups each time, shared out among cores.
template <typename Work>
void for_groups(const Grouped& s, int64_t cost, const Work& work) {
  const int64_t blocks = (s.c + s.block() - 1) / s.block();
  shared(s.n * blocks, s.block() * s.pixels() * cost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      work(i / blocks, i % blocks * s.block(), std::min(s.c, (i % blocks + 1) * s.block()));
  });
}

// Where everything lies. `stats` holds each group's mean and the reciprocal of its standard deviation.
struct Given {
  const float *x, *g, *u, *weight, *bias;
  const double* stats;
  double weight_of(int64_t c) const { return weight ? weight[c] : 1.0; }
  double bias_of(int64_t c) const { return bias ? bias[c] : 0.0; }
  std::pair<double, double> stats_of(const Grouped& s, int64_t n, int64_t c) const {
    const double* group = stats + 2 * (n * s.groups + c / s.depth());
    return {group[0], group[1]};
  }
};

// For each channel: z = x * scale + shift, and the normalised value x * inverse + offset.
struct Affine {
  Affine(const Grouped& s, const Given& in, int64_t n, int64_t first, int64_t last) {
    const auto rows = rows_of<float, 4>(memory, s.c);
    for (int64_t c = first; c < last; ++c) {
      const auto [mean, reciprocal] = in.stats_of(s, n, c);
      rows[0][c] = static_cast<float>(reciprocal * in.weight_of(c));
      rows[1][c] = static_cast<float>(in.bias_of(c) - mean * reciprocal * in.weight_of(c));
      rows[2][c] = static_cast<float>(reciprocal);
      rows[3][c] = static_cast<float>(-mean * reciprocal);
    }
    scale = rows[0], shift = rows[1], inverse = rows[2], offset = rows[3];
  }
  std::vector<float> memory;
  const float *scale, *shift, *inverse, *offset;
};

// What reaches a pixel behind ReLU, where z > 0.
template <bool R>
inline Vec passed(Vec from, Vec z) {
  return R ? from & (z > Vec(0.0f)) : from;
}

template <bool R, bool P>
void group_norm(const Grouped& s, const Given& in, double eps, double* stats, float* out) {
  for_groups(s, 4, [&](int64_t n, int64_t first, int64_t last) {
    const float* x = in.x + n * s.pixels() * s.c;
    float* y = out + n * s.out_h() * s.out_w() * s.c;
    std::vector<double> memory;
    std::vector<float> middle(s.c);
    const auto [means, squares] = rows_of<double, 2>(memory, s.c);
    Grouped whole = s;  // pixel by pixel
    whole.pool = false;
    sum_up<1, false>(whole, first, last, [&](int64_t, const auto& pixels, int64_t c, int64_t lanes, Vec* sums) {
      sums[0] = sums[0] + Vec::loadu(x + pixels[0] + c, lanes);
    }, {means});
    over_groups(s, first, last, means);
    for (int64_t c = first; c < last; ++c) middle[c] = static_cast<float>(means[c] /= s.count());
    sum_up<1, false>(whole, first, last, [&](int64_t, const auto& pixels, int64_t c, int64_t lanes, Vec* sums) {
      const Vec away = Vec::loadu(x + pixels[0] + c, lanes) - Vec::loadu(middle.data() + c, lanes);
      sums[0] = fmadd(away, away, sums[0]);
    }, {squares});
    over_groups(s, first, last, squares);
    for (int64_t c = first; c < last; c += s.depth()) {
      double* of_group = stats + 2 * (n * s.groups + c / s.depth());
      const double beside = means[c] - middle[c];
      of_group[0] = means[c];
      of_group[1] = 1 / std::sqrt(squares[c] / static_cast<double>(s.count()) - beside * beside + eps);
    }
    const Affine affine(s, in, n, first, last);
    for_all<P>(s, first, last, [&](int64_t cell, const auto& pixels, int64_t c, int64_t lanes) {
      const Vec scale = Vec::loadu(affine.scale + c, lanes), shift = Vec::loadu(affine.shift + c, lanes);
      Vec total;
      for (const int64_t pixel : pixels) {
        const Vec z = fmadd(Vec::loadu(x + pixel + c, lanes), scale, shift);
        total = total + (R ? at::vec::clamp_min(z, Vec(0.0f)) : z);
      }
      (P ? total * Vec(0.25f) : total).store(y + cell + c, lanes);
    });
  });
}

// With h = what reaches the normalised values, dx = inverse * (h - mean h - xn * mean(h xn)).
template <bool R, bool P>
void group_norm_gradient(const Grouped& s, const Given& in, float* of_x, float* of_weight, float* of_bias) {
  const Vec share(P ? 0.25f : 1.0f);
  for_groups(s, 4, [&](int64_t n, int64_t first, int64_t last) {
    const float *x = in.x + n * s.pixels() * s.c, *g = in.g + n * s.out_h() * s.out_w() * s.c;
    float* to = of_x + n * s.pixels() * s.c;
    std::vector<double> memory;
    std::vector<float> rounded;
    const auto [mean, slope, sum_g, sum_gx] = rows_of<double, 4>(memory, s.c);
    const auto [factor, level] = rows_of<float, 2>(rounded, s.c);
    const Affine affine(s, in, n, first, last);
    sum_up<2, P>(s, first, last, [&](int64_t cell, const auto& pixels, int64_t c, int64_t lanes, Vec* sums) {
      const auto of = [&](const float* row) { return Vec::loadu(row + c, lanes); };
      const Vec scale = of(affine.scale), shift = of(affine.shift), from = of(g + cell) * share;
      const Vec inverse = of(affine.inverse), offset = of(affine.offset);
      for (const int64_t pixel : pixels) {
        const Vec value = of(x + pixel), gz = passed<R>(from, fmadd(value, scale, shift));
        sums[0] = sums[0] + gz;
        sums[1] = fmadd(gz, fmadd(value, inverse, offset), sums[1]);
      }
    }, {sum_g, sum_gx});
    for (int64_t c = first; c < last; ++c) {
      of_weight[n * s.c + c] = static_cast<float>(sum_gx[c]);
      of_bias[n * s.c + c] = static_cast<float>(sum_g[c]);
      mean[c] = sum_g[c] * in.weight_of(c) / s.count();
      slope[c] = sum_gx[c] * in.weight_of(c) / s.count();
    }
    over_groups(s, first, last, mean);
    over_groups(s, first, last, slope);
    for (int64_t c = first; c < last; ++c) {
      const auto [middle, inverse] = in.stats_of(s, n, c);
      factor[c] = static_cast<float>(-inverse * inverse * slope[c]);
      level[c] = static_cast<float>(-inverse * (mean[c] - slope[c] * middle * inverse));
    }
    for_all<P>(s, first, last, [&](int64_t cell, const auto& pixels, int64_t c, int64_t lanes) {
      const auto of = [&](const float* row) { return Vec::loadu(row + c, lanes); };
      const Vec scale = of(affine.scale), shift = of(affine.shift), from = of(g + cell) * share;
      const Vec factors = of(factor), levels = of(level);
      for (const int64_t pixel : pixels) {
        const Vec value = of(x + pixel), gz = passed<R>(from, fmadd(value, scale, shift));
        fmadd(gz, scale, fmadd(value, factors, levels)).store(to + pixel + c, lanes);
      }
    });
  });
}

// The derivatives of <dx, u> + <dweight, along_weight> + <dbias, along_bias> with respect to x, g and weight.
//
// With a = mean(u xn), b = mean(h xn) and P u = u - mean u - xn a, <dx, u> = inverse <P u, h>. Its change with xn is
// q = -inverse (b u + a h), to which dweight adds along_weight gz, and with the deviation <P u, h>: so
//   of x       inverse P q - inverse^2 xn <P u, h> / count
//   of gz      weight inverse P u + along_weight xn + along_bias
//   of weight  the sum of gz inverse P u
template <bool R, bool P>
void group_norm_curvature(const Grouped& s, const Given& in, const float* along_weight, const float* along_bias,
                          float* of_x, float* of_g, float* of_weight) {
  const Vec share(P ? 0.25f : 1.0f);
  for_groups(s, 8, [&](int64_t n, int64_t first, int64_t last) {
    const float *x = in.x + n * s.pixels() * s.c, *u = in.u + n * s.pixels() * s.c;
    const float* g = in.g + n * s.out_h() * s.out_w() * s.c;
    float *to_x = of_x + n * s.pixels() * s.c, *to_g = of_g + n * s.out_h() * s.out_w() * s.c;
    std::vector<double> memory;
    std::vector<float> rounded;
    const auto [sum_g, sum_gx, sum_u, sum_ux, sum_gu, mean_h, b, mean_u, a, product, mean_q, slope] =
        rows_of<double, 12>(memory, s.c);
    const auto [by_u, by_g, by_x, level, gz_by_u, gz_by_x, gz_level] = rows_of<float, 7>(rounded, s.c);
    const Affine affine(s, in, n, first, last);
    sum_up<5, P>(s, first, last, [&](int64_t cell, const auto& pixels, int64_t c, int64_t lanes, Vec* sums) {
      const auto of = [&](const float* row) { return Vec::loadu(row + c, lanes); };
      const Vec scale = of(affine.scale), shift = of(affine.shift), from = of(g + cell) * share;
      const Vec inverse = of(affine.inverse), offset = of(affine.offset);
      for (const int64_t pixel : pixels) {
        const Vec value = of(x + pixel), along = of(u + pixel), xn = fmadd(value, inverse, offset);
        const Vec gz = passed<R>(from, fmadd(value, scale, shift));
        sums[0] = sums[0] + gz;
        sums[1] = fmadd(gz, xn, sums[1]);
        sums[2] = sums[2] + along;
        sums[3] = fmadd(along, xn, sums[3]);
        sums[4] = fmadd(gz, along, sums[4]);
      }
    }, {sum_g, sum_gx, sum_u, sum_ux, sum_gu});
    const double share_of = 1.0 / static_cast<double>(s.count());
    for (int64_t c = first; c < last; ++c) {
      const double weight = in.weight_of(c), along = along_weight ? along_weight[c] : 0.0;
      mean_h[c] = weight * sum_g[c] * share_of;
      b[c] = weight * sum_gx[c] * share_of;
      mean_u[c] = sum_u[c] * share_of;
      a[c] = sum_ux[c] * share_of;
      product[c] = weight * sum_gu[c] * share_of;
      mean_q[c] = along * sum_g[c] * share_of;
      slope[c] = along * sum_gx[c] * share_of;
    }
    for (double* values : {mean_h, b, mean_u, a, product, mean_q, slope}) over_groups(s, first, last, values);
    // What is left is linear: of x = u * by_u + gz * by_g + x * by_x + level, and of gz likewise without gz.
    for (int64_t c = first; c < last; ++c) {
      const auto [middle, inverse] = in.stats_of(s, n, c);
      const double offset = -middle * inverse, weight = in.weight_of(c);
      const double along = along_weight ? along_weight[c] : 0.0, level_of_z = along_bias ? along_bias[c] : 0.0;
      of_weight[n * s.c + c] = static_cast<float>(inverse * (sum_gu[c] - mean_u[c] * sum_g[c] - a[c] * sum_gx[c]));
      const double q = mean_q[c] - inverse * (b[c] * mean_u[c] + a[c] * mean_h[c]);
      const double qx = slope[c] - 2 * inverse * a[c] * b[c];
      const double deviation = product[c] - mean_u[c] * mean_h[c] - a[c] * b[c];
      const double by_xn = -inverse * qx - inverse * inverse * deviation;
      by_u[c] = static_cast<float>(-inverse * inverse * b[c]);
      by_g[c] = static_cast<float>(inverse * (along - inverse * a[c] * weight));
      by_x[c] = static_cast<float>(by_xn * inverse);
      level[c] = static_cast<float>(by_xn * offset - inverse * q);
      const double gz_by_xn = along - weight * inverse * a[c];
      gz_by_u[c] = static_cast<float>(weight * inverse);
      gz_by_x[c] = static_cast<float>(gz_by_xn * inverse);
      gz_level[c] = static_cast<float>(gz_by_xn * offset - weight * inverse * mean_u[c] + level_of_z);
    }
    for_all<P>(s, first, last, [&](int64_t cell, const auto& pixels, int64_t c, int64_t lanes) {
      const auto of = [&](const float* row) { return Vec::loadu(row + c, lanes); };
      const Vec scale = of(affine.scale), shift = of(affine.shift), from = of(g + cell) * share;
      Vec total;
      for (const int64_t pixel : pixels) {
        const Vec value = of(x + pixel), along = of(u + pixel), z = fmadd(value, scale, shift);
        fmadd(along, of(by_u), fmadd(passed<R>(from, z), of(by_g), fmadd(value, of(by_x), of(level))))
            .store(to_x + pixel + c, lanes);
        total = total + passed<R>(fmadd(along, of(gz_by_u), fmadd(value, of(gz_by_x), of(gz_level))), z);
      }
      (total * share).store(to_g + cell + c, lanes);
    });
  });
}

// Calls work<R, P>() with ReLU or without, with pooling or without.
template <typename Work>
void specialised(const Grouped& s, const Work& work) {
  if (s.relu) s.pool ? work.template operator()<true, true>() : work.template operator()<true, false>();
  else s.pool ? work.template operator()<false, true>() : work.template operator()<false, false>();
}

// The tensors that all three operations read, where the loops expect them.
struct Read {
  Read(const Tensor& x, const MaybeTensor& g, const MaybeTensor& u, const MaybeTensor& weight, const MaybeTensor& bias,
       const Tensor& stats)
      : kept{channels_last(x), g ? channels_last(*g) : Tensor(), u ? channels_last(*u) : Tensor(), plain(weight),
             plain(bias), stats} {}
  Given given() const {
    return {at(kept[0]), at(kept[1]), at(kept[2]), at(kept[3]), at(kept[4]), kept[5].const_data_ptr<double>()};
  }
  std::array<Tensor, 6> kept;
};

Grouped grouped(const Tensor& x, const MaybeTensor& weight, int64_t groups, bool relu, bool pool) {
  TORCH_CHECK(x.size(1) % groups == 0 && (!weight || weight->numel() == x.size(1)), "the groups do not fit the images");
  return {x.size(0), x.size(1), x.size(2), x.size(3), groups, relu, pool};
}

// The answer, and for each group its mean and the reciprocal of its standard deviation.
std::tuple<Tensor, Tensor> group_norm_of(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
                                         int64_t groups, double eps, bool relu, bool pool) {
  const Grouped s = grouped(x, weight, groups, relu, pool);
  Tensor out = empty_channels_last({s.n, s.c, s.out_h(), s.out_w()}, x);
  Tensor stats = at::empty({s.n, groups, 2}, x.options().dtype(at::kDouble));
  const Read in(x, {}, {}, weight, bias, stats);
  specialised(s, [&]<bool R, bool P>() {
    group_norm<R, P>(s, in.given(), eps, stats.mutable_data_ptr<double>(), out.mutable_data_ptr<float>());
  });
  return {out, stats};
}

// The gradients of images, weight and bias.
std::tuple<Tensor, Tensor, Tensor> group_norm_gradient_of(const Tensor& x, const Tensor& g, const MaybeTensor& weight,
                                                          const MaybeTensor& bias, const Tensor& stats, int64_t groups,
                                                          bool relu, bool pool) {
  const Grouped s = grouped(x, weight, groups, relu, pool);
  const Read in(x, g, {}, weight, bias, stats);
  Tensor of_x = empty_channels_last(x.sizes(), x);
  Tensor of_weight = at::empty({s.n, s.c}, x.options()), of_bias = at::empty({s.n, s.c}, x.options());
  specialised(s, [&]<bool R, bool P>() {
    group_norm_gradient<R, P>(s, in.given(), of_x.mutable_data_ptr<float>(), of_weight.mutable_data_ptr<float>(),
                              of_bias.mutable_data_ptr<float>());
  });
  return {of_x, of_weight.sum(0), of_bias.sum(0)};
}

// What `group_norm_curvature` says of x, g and weight.
std::tuple<Tensor, Tensor, Tensor> group_norm_curvature_of(const Tensor& x, const Tensor& g, const Tensor& u,
                                                           const MaybeTensor& weight, const MaybeTensor& bias,
                                                           const MaybeTensor& along_weight,
                                                           const MaybeTensor& along_bias, const Tensor& stats,
                                                           int64_t groups, bool relu, bool pool) {
  const Grouped s = grouped(x, weight, groups, relu, pool);
  const Read in(x, g, u, weight, bias, stats);
  const Tensor of_w = plain(along_weight), of_b = plain(along_bias);
  Tensor of_x = empty_channels_last(x.sizes(), x), of_g = empty_channels_last(g.sizes(), x);
  Tensor of_weight = at::empty({s.n, s.c}, x.options());
  specialised(s, [&]<bool R, bool P>() {
    group_norm_curvature<R, P>(s, in.given(), at(of_w), at(of_b), of_x.mutable_data_ptr<float>(),
                               of_g.mutable_data_ptr<float>(), of_weight.mutable_data_ptr<float>());
  });
  return {of_x, of_g, of_weight.sum(0)};
}

}  // namespace
