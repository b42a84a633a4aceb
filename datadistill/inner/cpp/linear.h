// Linear layers and their two derivatives.

#pragma once

#include "common.h"

namespace {

constexpr int64_t kRows = 5;         // rows of a tile
constexpr int64_t kWide = 4;         // outputs of a tile, or vectors of columns
constexpr int64_t kColumns = 768;    // columns: those of ten images stay in the nearest cache

// Indices in nearly equal parts, in order.
template <typename Work>
void in_parts(int64_t count, int64_t most, const Work& work) {
  const int64_t parts = (count + most - 1) / most;
  for (int64_t part = 0; part < parts; ++part)
    work(count * part / parts, count * (part + 1) / parts - count * part / parts);
}

// sums[r][o] += <rows[r], weights[o]> over `count` columns of rows that are `stride` numbers long.
template <int R>
void multiply(const float* rows, const float* weights, int64_t stride, int64_t count, int64_t some, int64_t outputs,
              float* sums) {
  // A tile at the edge works out its last output again and drops it.
  const float* weight[kWide];
#pragma GCC unroll 8
  for (int o = 0; o < kWide; ++o) weight[o] = weights + std::min<int64_t>(o, some - 1) * stride;
  Vector total[R][kWide];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int o = 0; o < kWide; ++o) total[r][o] = Vector{};
  const auto add = [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
    Vector in[kWide];
#pragma GCC unroll 8
    for (int o = 0; o < kWide; ++o) in[o] = load_some(weight[o] + i, lanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vector row = load_some(rows + r * stride + i, lanes);
#pragma GCC unroll 8
      for (int o = 0; o < kWide; ++o) total[r][o] += row * in[o];
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) add(i, kLanes);
  if (i < count) add(i, count - i);
  float found[R][kWide];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int o = 0; o < kWide; ++o) found[r][o] = sum(total[r][o]);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    for (int64_t o = 0; o < some; ++o) sums[r * outputs + o] += found[r][o];
}

// out[r][i] (+)= sum over k of factors[r * by_row + k * by_term] * from[k][i], rows of `stride` numbers.
struct Mix {
  const float* factors;
  int64_t by_row, by_term;
  const float* from;
  int64_t terms, stride;
  bool more;
  float* out;
};

template <int R, int V>
inline void mix_columns(const Mix& m, int64_t i, int64_t lanes) {
  float* out = m.out + i;
  Vector total[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v)
      total[r][v] = m.more ? load_some(out + r * m.stride + v * kLanes, lanes) : Vector{};
  const float *from = m.from + i, *factors = m.factors;
  for (int64_t k = 0; k < m.terms; ++k, from += m.stride, factors += m.by_term) {
    Vector in[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) in[v] = load_some(from + v * kLanes, lanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) total[r][v] += in[v] * factors[r * m.by_row];
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store_some(out + r * m.stride + v * kLanes, total[r][v], lanes);
}

template <int R>
void mix(const Mix& m, int64_t count) {
  int64_t i = 0;
  for (; i + kWide * kLanes <= count; i += kWide * kLanes) mix_columns<R, kWide>(m, i, kLanes);
  for (; i + kLanes <= count; i += kLanes) mix_columns<R, 1>(m, i, kLanes);
  if (i < count) mix_columns<R, 1>(m, i, count - i);
}

constexpr auto kMultiply = std::array{multiply<1>, multiply<2>, multiply<3>, multiply<4>, multiply<5>};
constexpr auto kMix = std::array{mix<1>, mix<2>, mix<3>, mix<4>, mix<5>};

// n images of `in` numbers become `out` numbers each.
struct Layer {
  int64_t n, in, out;
};

void linear(const Layer& s, const float* x, const float* w, const float* bias, float* y) {
  shared((s.out + kWide - 1) / kWide, kWide * s.n * s.in, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kWide, end = std::min(last * kWide, s.out);
    for (int64_t n = 0; n < s.n; ++n)
      for (int64_t o = begin; o < end; ++o) y[n * s.out + o] = bias ? bias[o] : 0.0f;
    for (int64_t i = 0; i < s.in; i += kColumns)
      for (int64_t o = begin; o < end; o += kWide)
        in_parts(s.n, kRows, [&](int64_t n, int64_t rows) {
          kMultiply[rows - 1](x + n * s.in + i, w + o * s.in + i, s.in, std::min(kColumns, s.in - i),
                              std::min(kWide, end - o), s.out, y + n * s.out + o);
        });
  });
}

void linear_data_gradient(const Layer& s, const float* g, const float* w, float* x) {
  constexpr int64_t columns = kColumns / 2, terms = 8;  // eight rows of weights beside the sums in the nearest cache
  shared((s.in + columns - 1) / columns, columns * s.n * s.out, [&](int64_t first, int64_t last) {
    for (int64_t i = first * columns; i < std::min(last * columns, s.in); i += columns)
      for (int64_t o = 0; o < s.out; o += terms)
        in_parts(s.n, kRows, [&](int64_t n, int64_t rows) {
          kMix[rows - 1]({g + n * s.out + o, s.out, 1, w + o * s.in + i, std::min(terms, s.out - o), s.in, o > 0,
                          x + n * s.in + i},
                         std::min(columns, s.in - i));
        });
  });
}

void linear_weight_gradient(const Layer& s, const float* x, const float* g, float* w) {
  shared((s.out + kRows - 1) / kRows, kRows * s.n * s.in, [&](int64_t first, int64_t last) {
    for (int64_t i = 0; i < s.in; i += kColumns)
      for (int64_t o = first * kRows; o < std::min(last * kRows, s.out); o += kRows)
        kMix[std::min(kRows, s.out - o) - 1]({g + o, 1, s.out, x + i, s.n, s.in, false, w + o * s.in + i},
                                             std::min(kColumns, s.in - i));
  });
}

Tensor linear_of(const Tensor& rows, const Tensor& weights, const std::optional<Tensor>& bias) {
  const Tensor x = rows.contiguous(), w = weights.contiguous(), b = bias ? bias->contiguous() : Tensor();
  Tensor out = at::empty({x.size(0), w.size(0)}, x.options());
  linear({x.size(0), x.size(1), w.size(0)}, x.const_data_ptr<float>(), w.const_data_ptr<float>(),
         b.defined() ? b.const_data_ptr<float>() : nullptr, out.mutable_data_ptr<float>());
  return out;
}

Tensor linear_data_gradient_of(const Tensor& gradients, const Tensor& weights) {
  const Tensor g = gradients.contiguous(), w = weights.contiguous();
  Tensor out = at::empty({g.size(0), w.size(1)}, g.options());
  linear_data_gradient({g.size(0), w.size(1), w.size(0)}, g.const_data_ptr<float>(), w.const_data_ptr<float>(),
                       out.mutable_data_ptr<float>());
  return out;
}

// Laid out as the weights are, which PyTorch's own derivative is not: adding the two up is faster.
Tensor linear_weight_gradient_of(const Tensor& rows, const Tensor& gradients) {
  const Tensor x = rows.contiguous(), g = gradients.contiguous();
  Tensor out = at::empty({g.size(1), x.size(1)}, x.options());
  linear_weight_gradient({x.size(0), x.size(1), g.size(1)}, x.const_data_ptr<float>(), g.const_data_ptr<float>(),
                         out.mutable_data_ptr<float>());
  return out;
}

// A linear layer is a convolution without neighbours: the same three operations.
struct Linear : Function<Linear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias) {
    remember(ctx, x, w, {});
    ctx->saved_data["biased"] = bias.has_value();
    return linear_of(x, w, bias);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients);
};

struct LinearDataGradient : Function<LinearDataGradient> {
  static Tensor forward(AutogradContext* ctx, const Tensor& g, const Tensor& w) {
    remember(ctx, g, w, {});
    return linear_data_gradient_of(g, w);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients);
};

struct LinearWeightGradient : Function<LinearWeightGradient> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& g) {
    remember(ctx, x, g, {});
    return linear_weight_gradient_of(x, g);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients);
};

variable_list Linear::backward(AutogradContext* ctx, variable_list gradients) {
  const auto saved = ctx->get_saved_variables();
  const Tensor &x = saved[0], &w = saved[1], &g = gradients[0];
  variable_list found(3);
  if (ctx->needs_input_grad(0)) found[0] = LinearDataGradient::apply(g, w);
  if (ctx->needs_input_grad(1)) found[1] = LinearWeightGradient::apply(x, g);
  if (ctx->saved_data["biased"].toBool() && ctx->needs_input_grad(2)) found[2] = g.sum(0);
  return found;
}

variable_list LinearDataGradient::backward(AutogradContext* ctx, variable_list gradients) {
  const auto saved = ctx->get_saved_variables();
  const Tensor &g = saved[0], &w = saved[1], &along = gradients[0];
  variable_list found(2);
  if (ctx->needs_input_grad(0)) found[0] = Linear::apply(along, w, std::nullopt);
  if (ctx->needs_input_grad(1)) found[1] = LinearWeightGradient::apply(along, g);
  return found;
}

variable_list LinearWeightGradient::backward(AutogradContext* ctx, variable_list gradients) {
  const auto saved = ctx->get_saved_variables();
  const Tensor &x = saved[0], &g = saved[1], &along = gradients[0];
  variable_list found(2);
  if (ctx->needs_input_grad(0)) found[0] = LinearDataGradient::apply(g, along);
  if (ctx->needs_input_grad(1)) found[1] = Linear::apply(x, along, std::nullopt);
  return found;
}

}  // namespace
