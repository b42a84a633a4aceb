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
constexpr int kTileVectors = 4;        // vectors of channels, each with its sums in registers

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

// A register of floats or doubles.
template <typename T>
struct Wide {
  static constexpr int64_t kCount = 64 / sizeof(T);
  typedef T Type __attribute__((vector_size(64)));
};

template <typename T>
inline typename Wide<T>::Type load_wide(const T* from, int64_t count) {
  typename Wide<T>::Type value{};
  if (count == Wide<T>::kCount) {
    std::memcpy(&value, from, sizeof(value));
  } else if constexpr (std::is_same_v<T, float>) {
    return std::bit_cast<typename Wide<T>::Type>(load_some(from, count));
  } else {
    std::memcpy(&value, from, count * sizeof(T));
  }
  return value;
}

template <typename T>
inline void store_wide(T* to, typename Wide<T>::Type value, int64_t count) {
  if (count == Wide<T>::kCount) {
    std::memcpy(to, &value, sizeof(value));
  } else if constexpr (std::is_same_v<T, float>) {
    store_some(to, std::bit_cast<Vector>(value), count);
  } else {
    std::memcpy(to, &value, count * sizeof(T));
  }
}

// Numbers for each channel, in rows.
template <typename T>
class Rows {
 public:
  Rows(int64_t rows, int64_t channels) : length_(channels), memory_(rows * channels) {}
  T* operator[](int64_t row) { return memory_.data() + row * length_; }

 private:
  int64_t length_;
  std::vector<T> memory_;
};

// Calls work(cell, offsets of its pixels) for a row of outputs: a cell is one pixel, or the four of a pooling window.
template <bool P, typename Work>
inline void for_row(const Grouped& s, int64_t y, const Work& work) {
  const int64_t row = s.out_w();
  for (int64_t x = 0; x < row; ++x) {
    if constexpr (P) {
      const int64_t corner = (2 * y * s.w + 2 * x) * s.c;
      const int64_t pixels[4] = {corner, corner + s.c, corner + s.w * s.c, corner + (s.w + 1) * s.c};
      work((y * row + x) * s.c, pixels);
    } else {
      const int64_t pixels[1] = {(y * row + x) * s.c};
      work(pixels[0], pixels);
    }
  }
}

// Sums over all cells of S numbers for each channel: `add(cell, pixels, channel, lanes, sums)` adds one cell's.
// Rows are summed up on their own, and then in double precision: an error of a sum is the same in every pixel, so that
// the next layer adds it up instead of averaging it out.
template <typename T, int S, bool P, int V, typename Add>
inline void sum_tile(const Grouped& s, int64_t c, int64_t lanes, const Add& add, double* const (&to)[S]) {
  using W = typename Wide<T>::Type;
  double totals[S][V * Wide<T>::kCount] = {};
  for (int64_t y = 0; y < s.out_h(); ++y) {
    W sums[S][V] = {};
    for_row<P>(s, y, [&](int64_t cell, const auto& pixels) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        W part[S];
#pragma GCC unroll 8
        for (int i = 0; i < S; ++i) part[i] = sums[i][v];
        add(cell, pixels, c + v * Wide<T>::kCount, lanes, part);
#pragma GCC unroll 8
        for (int i = 0; i < S; ++i) sums[i][v] = part[i];
      }
    });
    for (int i = 0; i < S; ++i) {
      T row[V * Wide<T>::kCount];
      std::memcpy(row, sums[i], sizeof(row));
      for (int64_t lane = 0; lane < V * Wide<T>::kCount; ++lane) totals[i][lane] += row[lane];
    }
  }
  for (int i = 0; i < S; ++i) std::copy_n(totals[i], V > 1 ? V * Wide<T>::kCount : lanes, to[i] + c);
}

template <typename T, int S, bool P, typename Add>
inline void sum_up(const Grouped& s, int64_t first, int64_t last, const Add& add, double* const (&to)[S]) {
  constexpr int64_t lanes = Wide<T>::kCount, tile = kTileVectors * lanes;
  int64_t c = first;
  for (; c + tile <= last; c += tile) sum_tile<T, S, P, kTileVectors>(s, c, lanes, add, to);
  for (; c < last; c += lanes) sum_tile<T, S, P, 1>(s, c, std::min(lanes, last - c), add, to);
}

// Calls work(cell, pixels, channel, lanes) for every register of every cell.
template <typename T, bool P, typename Work>
inline void for_all(const Grouped& s, int64_t first, int64_t last, const Work& work) {
  constexpr int64_t lanes = Wide<T>::kCount;
  for (int64_t y = 0; y < s.out_h(); ++y)
    for_row<P>(s, y, [&](int64_t cell, const auto& pixels) __attribute__((always_inline)) {
      int64_t c = first;
      for (; c + lanes <= last; c += lanes) work(cell, pixels, c, lanes);
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
template <typename T>
struct Given {
  const T *x, *g, *u, *weight, *bias;
  const double* stats;
  double weight_of(int64_t c) const { return weight ? weight[c] : 1.0; }
  double bias_of(int64_t c) const { return bias ? bias[c] : 0.0; }
};

// The mean of a channel's group, and the reciprocal of its standard deviation.
template <typename T>
std::pair<double, double> stats_of(const Grouped& s, const Given<T>& in, int64_t n, int64_t c) {
  const double* stats = in.stats + 2 * (n * s.groups + c / s.depth());
  return {stats[0], stats[1]};
}

// For each channel: z = x * scale + shift, and the normalised value x * inverse + offset.
template <typename T>
struct Affine {
  Affine(const Grouped& s, const Given<T>& in, int64_t n, int64_t first, int64_t last)
      : rows(4, s.c), scale(rows[0]), shift(rows[1]), inverse(rows[2]), offset(rows[3]) {
    for (int64_t c = first; c < last; ++c) {
      const auto [mean, reciprocal] = stats_of(s, in, n, c);
      inverse[c] = static_cast<T>(reciprocal);
      offset[c] = static_cast<T>(-mean * reciprocal);
      scale[c] = static_cast<T>(reciprocal * in.weight_of(c));
      shift[c] = static_cast<T>(in.bias_of(c) - mean * reciprocal * in.weight_of(c));
    }
  }
  Rows<T> rows;
  T *scale, *shift, *inverse, *offset;
};

template <typename T, bool R, bool P>
void group_norm(const Grouped& s, const Given<T>& in, double eps, double* stats, T* out) {
  using W = typename Wide<T>::Type;
  constexpr T share = P ? T(0.25) : T(1);
  for_groups(s, 4, [&](int64_t n, int64_t first, int64_t last) {
    const T* x = in.x + n * s.pixels() * s.c;
    T* y = out + n * s.out_h() * s.out_w() * s.c;
    Rows<double> rows(2, s.c);
    Rows<T> rounded(1, s.c);
    double *means = rows[0], *squares = rows[1];
    T* middle = rounded[0];
    Grouped whole = s;  // pixel by pixel
    whole.pool = false;
    sum_up<T, 1, false>(whole, first, last, [&](int64_t, const auto& pixels, int64_t c, int64_t lanes, W* sums) {
      sums[0] += load_wide<T>(x + pixels[0] + c, lanes);
    }, {means});
    over_groups(s, first, last, means);
    for (int64_t c = first; c < last; ++c) middle[c] = static_cast<T>(means[c] /= s.count());
    sum_up<T, 1, false>(whole, first, last, [&](int64_t, const auto& pixels, int64_t c, int64_t lanes, W* sums) {
      const W away = load_wide<T>(x + pixels[0] + c, lanes) - load_wide<T>(middle + c, lanes);
      sums[0] += away * away;
    }, {squares});
    over_groups(s, first, last, squares);
    for (int64_t c = first; c < last; c += s.depth()) {
      double* of_group = stats + 2 * (n * s.groups + c / s.depth());
      const double beside = means[c] - middle[c];
      of_group[0] = means[c];
      of_group[1] = 1 / std::sqrt(squares[c] / static_cast<double>(s.count()) - beside * beside + eps);
    }
    const Affine<T> affine(s, in, n, first, last);
    for_all<T, P>(s, first, last, [&](int64_t cell, const auto& pixels, int64_t c, int64_t lanes) {
      const W scale = load_wide<T>(affine.scale + c, lanes), shift = load_wide<T>(affine.shift + c, lanes);
      W total{};
      for (const int64_t pixel : pixels) {
        const W z = load_wide<T>(x + pixel + c, lanes) * scale + shift;
        total += R ? (z <= 0 ? W{} : z) : z;
      }
      store_wide<T>(y + cell + c, total * share, lanes);
    });
  });
}

// With h = what reaches the normalised values, dx = inverse * (h - mean h - xn * mean(h xn)).
template <typename T, bool R, bool P>
void group_norm_gradient(const Grouped& s, const Given<T>& in, T* of_x, T* of_weight, T* of_bias) {
  using W = typename Wide<T>::Type;
  constexpr T share = P ? T(0.25) : T(1);
  for_groups(s, 4, [&](int64_t n, int64_t first, int64_t last) {
    const T *x = in.x + n * s.pixels() * s.c, *g = in.g + n * s.out_h() * s.out_w() * s.c;
    T* to = of_x + n * s.pixels() * s.c;
    Rows<double> rows(4, s.c);
    Rows<T> rounded(2, s.c);
    double *mean = rows[0], *slope = rows[1], *sum_g = rows[2], *sum_gx = rows[3];
    T *factor = rounded[0], *level = rounded[1];
    const Affine<T> affine(s, in, n, first, last);
    sum_up<T, 2, P>(s, first, last, [&](int64_t cell, const auto& pixels, int64_t c, int64_t lanes, W* sums) {
      const W scale = load_wide<T>(affine.scale + c, lanes), shift = load_wide<T>(affine.shift + c, lanes);
      const W inverse = load_wide<T>(affine.inverse + c, lanes), offset = load_wide<T>(affine.offset + c, lanes);
      const W from = load_wide<T>(g + cell + c, lanes) * share;
      for (const int64_t pixel : pixels) {
        const W value = load_wide<T>(x + pixel + c, lanes);
        const W gz = R ? (value * scale + shift > 0 ? from : W{}) : from;
        sums[0] += gz;
        sums[1] += gz * (value * inverse + offset);
      }
    }, {sum_g, sum_gx});
    for (int64_t c = first; c < last; ++c) {
      of_weight[n * s.c + c] = static_cast<T>(sum_gx[c]);
      of_bias[n * s.c + c] = static_cast<T>(sum_g[c]);
      mean[c] = sum_g[c] * in.weight_of(c) / s.count();
      slope[c] = sum_gx[c] * in.weight_of(c) / s.count();
    }
    over_groups(s, first, last, mean);
    over_groups(s, first, last, slope);
    for (int64_t c = first; c < last; ++c) {
      const auto [middle, inverse] = stats_of(s, in, n, c);
      factor[c] = static_cast<T>(-inverse * inverse * slope[c]);
      level[c] = static_cast<T>(-inverse * (mean[c] - slope[c] * middle * inverse));
    }
    const auto finish = [&](int64_t cell, const auto& pixels, int64_t c, int64_t lanes) {
      const W scale = load_wide<T>(affine.scale + c, lanes), shift = load_wide<T>(affine.shift + c, lanes);
      const W factors = load_wide<T>(factor + c, lanes), levels = load_wide<T>(level + c, lanes);
      const W from = load_wide<T>(g + cell + c, lanes) * share;
      for (const int64_t pixel : pixels) {
        const W value = load_wide<T>(x + pixel + c, lanes);
        const W gz = R ? (value * scale + shift > 0 ? from : W{}) : from;
        store_wide<T>(to + pixel + c, gz * scale + value * factors + levels, lanes);
      }
    };
    for_all<T, P>(s, first, last, finish);
  });
}

// The derivatives of <dx, u> + <dweight, along_weight> + <dbias, along_bias> with respect to x, g and weight.
//
// With a = mean(u xn), b = mean(h xn) and P u = u - mean u - xn a, <dx, u> = inverse <P u, h>. Its change with xn is
// q = -inverse (b u + a h), to which dweight adds along_weight gz, and with the deviation <P u, h>: so
//   of x       inverse P q - inverse^2 xn <P u, h> / count
//   of gz      weight inverse P u + along_weight xn + along_bias
//   of weight  the sum of gz inverse P u
template <typename T, bool R, bool P>
void group_norm_curvature(const Grouped& s, const Given<T>& in, const T* along_weight, const T* along_bias, T* of_x,
                          T* of_g, T* of_weight) {
  using W = typename Wide<T>::Type;
  constexpr T share = P ? T(0.25) : T(1);
  for_groups(s, 8, [&](int64_t n, int64_t first, int64_t last) {
    const T *x = in.x + n * s.pixels() * s.c, *u = in.u + n * s.pixels() * s.c;
    const T* g = in.g + n * s.out_h() * s.out_w() * s.c;
    T *to_x = of_x + n * s.pixels() * s.c, *to_g = of_g + n * s.out_h() * s.out_w() * s.c;
    Rows<double> rows(12, s.c);
    Rows<T> rounded(7, s.c);
    double *sum_g = rows[0], *sum_gx = rows[1], *sum_u = rows[2], *sum_ux = rows[3], *sum_gu = rows[4];
    double *mean_h = rows[5], *b = rows[6], *mean_u = rows[7], *a = rows[8], *product = rows[9], *mean_q = rows[10];
    double* slope = rows[11];
    const Affine<T> affine(s, in, n, first, last);
    sum_up<T, 5, P>(s, first, last, [&](int64_t cell, const auto& pixels, int64_t c, int64_t lanes, W* sums) {
      const W scale = load_wide<T>(affine.scale + c, lanes), shift = load_wide<T>(affine.shift + c, lanes);
      const W inverse = load_wide<T>(affine.inverse + c, lanes), offset = load_wide<T>(affine.offset + c, lanes);
      const W from = load_wide<T>(g + cell + c, lanes) * share;
      for (const int64_t pixel : pixels) {
        const W value = load_wide<T>(x + pixel + c, lanes), along = load_wide<T>(u + pixel + c, lanes);
        const W gz = R ? (value * scale + shift > 0 ? from : W{}) : from, xn = value * inverse + offset;
        sums[0] += gz;
        sums[1] += gz * xn;
        sums[2] += along;
        sums[3] += along * xn;
        sums[4] += gz * along;
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
    T *by_u = rounded[0], *by_g = rounded[1], *by_x = rounded[2], *level = rounded[3];
    T *gz_by_u = rounded[4], *gz_by_x = rounded[5], *gz_level = rounded[6];
    for (int64_t c = first; c < last; ++c) {
      const auto [middle, inverse] = stats_of(s, in, n, c);
      const double offset = -middle * inverse, weight = in.weight_of(c);
      const double along = along_weight ? along_weight[c] : 0.0, level_of_z = along_bias ? along_bias[c] : 0.0;
      of_weight[n * s.c + c] = static_cast<T>(inverse * (sum_gu[c] - mean_u[c] * sum_g[c] - a[c] * sum_gx[c]));
      const double q = mean_q[c] - inverse * (b[c] * mean_u[c] + a[c] * mean_h[c]);
      const double qx = slope[c] - 2 * inverse * a[c] * b[c];
      const double deviation = product[c] - mean_u[c] * mean_h[c] - a[c] * b[c];
      const double by_xn = -inverse * qx - inverse * inverse * deviation;
      by_u[c] = static_cast<T>(-inverse * inverse * b[c]);
      by_g[c] = static_cast<T>(inverse * (along - inverse * a[c] * weight));
      by_x[c] = static_cast<T>(by_xn * inverse);
      level[c] = static_cast<T>(by_xn * offset - inverse * q);
      const double gz_by_xn = along - weight * inverse * a[c];
      gz_by_u[c] = static_cast<T>(weight * inverse);
      gz_by_x[c] = static_cast<T>(gz_by_xn * inverse);
      gz_level[c] = static_cast<T>(gz_by_xn * offset - weight * inverse * mean_u[c] + level_of_z);
    }
    for_all<T, P>(s, first, last, [&](int64_t cell, const auto& pixels, int64_t c, int64_t lanes) {
      const auto of = [&](const T* row) { return load_wide<T>(row + c, lanes); };
      const W scale = of(affine.scale), shift = of(affine.shift), from = load_wide<T>(g + cell + c, lanes) * share;
      W total{};
      for (const int64_t pixel : pixels) {
        const W value = load_wide<T>(x + pixel + c, lanes), along = load_wide<T>(u + pixel + c, lanes);
        const auto open = value * scale + shift > 0;
        const W gz = R ? (open ? from : W{}) : from;
        store_wide<T>(to_x + pixel + c, along * of(by_u) + gz * of(by_g) + value * of(by_x) + of(level), lanes);
        const W of_z = along * of(gz_by_u) + value * of(gz_by_x) + of(gz_level);
        total += R ? (open ? of_z : W{}) : of_z;
      }
      store_wide<T>(to_g + cell + c, total * share, lanes);
    });
  });
}

// Calls work<T, R, P>() for the type of the numbers, with ReLU or without, with pooling or without.
template <typename Work>
void specialised(const Grouped& s, at::ScalarType type, const Work& work) {
  const auto flags = [&]<typename T>(T) {
    if (s.relu && s.pool) work.template operator()<T, true, true>();
    if (s.relu && !s.pool) work.template operator()<T, true, false>();
    if (!s.relu && s.pool) work.template operator()<T, false, true>();
    if (!s.relu && !s.pool) work.template operator()<T, false, false>();
  };
  if (type == at::kDouble) flags(double());
  else flags(float());
}

// The tensors that all three operations read, where the loops expect them.
struct Read {
  Tensor x, g, u, weight, bias, stats;
  template <typename T>
  Given<T> given() const {
    const auto at = [](const Tensor& t) { return t.defined() ? t.const_data_ptr<T>() : nullptr; };
    return {at(x), at(g), at(u), at(weight), at(bias), stats.const_data_ptr<double>()};
  }
};

Read read(const Tensor& x, const Tensor& g, const Tensor& u, const Tensor& weight, const Tensor& bias,
          const Tensor& stats) {
  const auto last = [](const Tensor& t) { return t.defined() ? channels_last(t) : t; };
  const auto plain = [](const Tensor& t) { return t.defined() ? t.contiguous() : t; };
  return {last(x), last(g), last(u), plain(weight), plain(bias), stats};
}

std::pair<Tensor, Tensor> group_norm_of(const Grouped& s, const Tensor& x, const Tensor& weight, const Tensor& bias,
                                        double eps) {
  Tensor out = empty_channels_last({s.n, s.c, s.out_h(), s.out_w()}, x);
  Tensor stats = at::empty({s.n, s.groups, 2}, x.options().dtype(at::kDouble));
  const Read in = read(x, {}, {}, weight, bias, stats);
  specialised(s, x.scalar_type(), [&]<typename T, bool R, bool P>() {
    group_norm<T, R, P>(s, in.given<T>(), eps, stats.mutable_data_ptr<double>(), out.mutable_data_ptr<T>());
  });
  return {out, stats};
}

variable_list group_norm_gradient_of(const Grouped& s, const Read& in) {
  Tensor of_x = empty_channels_last(in.x.sizes(), in.x);
  Tensor of_weight = at::empty({s.n, s.c}, in.x.options()), of_bias = at::empty({s.n, s.c}, in.x.options());
  specialised(s, in.x.scalar_type(), [&]<typename T, bool R, bool P>() {
    group_norm_gradient<T, R, P>(s, in.given<T>(), of_x.mutable_data_ptr<T>(), of_weight.mutable_data_ptr<T>(),
                                 of_bias.mutable_data_ptr<T>());
  });
  if (!in.weight.defined()) return {of_x};
  return {of_x, of_weight.sum(0), of_bias.sum(0)};
}

// Of x, g and weight.
std::array<Tensor, 3> group_norm_curvature_of(const Grouped& s, const Read& in, const Tensor& along_weight,
                                              const Tensor& along_bias) {
  Tensor of_x = empty_channels_last(in.x.sizes(), in.x), of_g = empty_channels_last(in.g.sizes(), in.x);
  Tensor of_weight = at::empty({s.n, s.c}, in.x.options());
  const Tensor weight = along_weight.defined() ? along_weight.contiguous() : along_weight;
  const Tensor bias = along_bias.defined() ? along_bias.contiguous() : along_bias;
  specialised(s, in.x.scalar_type(), [&]<typename T, bool R, bool P>() {
    group_norm_curvature<T, R, P>(s, in.given<T>(), weight.defined() ? weight.const_data_ptr<T>() : nullptr,
                                  bias.defined() ? bias.const_data_ptr<T>() : nullptr, of_x.mutable_data_ptr<T>(),
                                  of_g.mutable_data_ptr<T>(), of_weight.mutable_data_ptr<T>());
  });
  return {of_x, of_g, in.weight.defined() ? of_weight.sum(0) : Tensor()};
}

// The same from PyTorch's operations, which can be differentiated on.
std::array<Tensor, 3> differentiable_curvature(const Grouped& s, const Tensor& images, const Tensor& gradients,
                                               const Tensor& direction, const Tensor& weight, const Tensor& bias,
                                               const Tensor& along_weight, const Tensor& along_bias, double eps) {
  const auto grouped = [&](const Tensor& t) { return t.reshape({s.n, s.groups, s.depth(), s.h, s.w}); };
  const auto by_channel = [&](const Tensor& t, double otherwise) {
    return t.defined() ? t.reshape({1, s.groups, s.depth(), 1, 1})
                       : at::full({1, 1, 1, 1, 1}, otherwise, images.options());
  };
  const auto mean = [](const Tensor& t) { return t.mean({2, 3, 4}, true); };
  const Tensor x = grouped(images), u = grouped(direction), w = by_channel(weight, 1);
  const Tensor away = x - mean(x), inverse = (mean(away * away) + eps).rsqrt(), xn = away * inverse;
  const Tensor along = by_channel(along_weight, 0);
  Tensor gz = gradients;
  if (s.pool)
    gz = gz.reshape({s.n, s.c, s.out_h(), 1, s.out_w(), 1}).expand({s.n, s.c, s.out_h(), 2, s.out_w(), 2}) / 4;
  gz = grouped(gz.reshape(images.sizes()));
  const Tensor open = (xn * w + by_channel(bias, 0) > 0).to(x.scalar_type());
  if (s.relu) gz = gz * open;
  const Tensor h = gz * w, a = mean(u * xn), b = mean(h * xn), projected = u - mean(u) - xn * a;
  const Tensor q = along * gz - inverse * (b * u + a * h);
  const Tensor of_x =
      inverse * (q - mean(q) - xn * mean(q * xn)) - inverse * inverse * mean(projected * h) * xn;
  Tensor of_g = w * inverse * projected + along * xn + by_channel(along_bias, 0);
  if (s.relu) of_g = of_g * open;
  of_g = of_g.reshape(images.sizes());
  if (s.pool) of_g = of_g.reshape({s.n, s.c, s.out_h(), 2, s.out_w(), 2}).mean({3, 5});
  const Tensor of_weight = (gz * inverse * projected).sum({0, 3, 4}).reshape({s.c});
  return {of_x.reshape(images.sizes()), of_g, weight.defined() ? of_weight : Tensor()};
}

Grouped grouped_of(AutogradContext* ctx, const Tensor& x) {
  const auto n = ctx->saved_data["numbers"].toIntVector();
  return {x.size(0), x.size(1), x.size(2), x.size(3), n[0], n[1] != 0, n[2] != 0};
}

struct GroupNormGradient : Function<GroupNormGradient> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& g,
                               const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                               const Tensor& stats, at::IntArrayRef numbers, double eps) {
    const Tensor w = weight.value_or(Tensor()), b = bias.value_or(Tensor());
    ctx->save_for_backward({x, g, w, b, stats});
    ctx->saved_data["numbers"] = numbers.vec();
    ctx->saved_data["eps"] = eps;
    return group_norm_gradient_of(grouped_of(ctx, x), read(x, g, {}, w, b, stats));
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &g = saved[1], &weight = saved[2], &bias = saved[3];
    const Grouped s = grouped_of(ctx, x);
    gradients.resize(3);
    const auto found = at::GradMode::is_enabled()
                           ? differentiable_curvature(s, x, g, gradients[0], weight, bias, gradients[1], gradients[2],
                                                      ctx->saved_data["eps"].toDouble())
                           : group_norm_curvature_of(s, read(x, g, gradients[0], weight, bias, saved[4]), gradients[1],
                                                     gradients[2]);
    return {found[0], found[1], found[2], {}, {}, {}, {}};
  }
};

struct GroupNorm : Function<GroupNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& weight,
                        const std::optional<Tensor>& bias, at::IntArrayRef numbers, double eps) {
    const Tensor w = weight.value_or(Tensor()), b = bias.value_or(Tensor());
    ctx->saved_data["numbers"] = numbers.vec();
    ctx->saved_data["eps"] = eps;
    const auto [out, stats] = group_norm_of(grouped_of(ctx, x), x, w, b, eps);
    ctx->save_for_backward({x, w, b, stats});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const auto some = [](const Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; };
    auto found = GroupNormGradient::apply(saved[0], gradients[0], some(saved[1]), some(saved[2]), saved[3],
                                          ctx->saved_data["numbers"].toIntVector(), ctx->saved_data["eps"].toDouble());
    found.resize(3);
    return {found[0], found[1], saved[2].defined() ? found[2] : Tensor(), {}, {}};
  }
};

}  // namespace
