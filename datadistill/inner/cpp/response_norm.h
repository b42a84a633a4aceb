// AlexCifarNet's local response normalisation, and two derivatives of it, each in one pass.

#pragma once

#include "common.h"

namespace {

// y = x * s^-3/4 with s = 1 + scale * (sum of x^2 over the channels from c - before to c + after).
struct Neighbours {
  float scale;
  int64_t before, after;
};

constexpr float kPower = 0.75f;

// s^-3/4 from 1 / s: two roots.
inline Vector power(Vector inverse) {
  Vector found;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const float root = std::sqrt(inverse[lane]);
    found[lane] = root * std::sqrt(root);
  }
  return found;
}

// The sum of the channels around each, of `channels` vectors.
inline void windows(const Vector* from, int64_t channels, int64_t before, int64_t after, Vector* sums) {
  std::copy_n(from, channels, sums);
  for (int64_t i = 1; i <= before; ++i)
    for (int64_t c = i; c < channels; ++c) sums[c] += from[c - i];
  for (int64_t i = 1; i <= after; ++i)
    for (int64_t c = 0; c < channels - i; ++c) sums[c] += from[c + i];
}

// The same sixteen pixels of every channel, next to each other.
inline void gather(const float* from, int64_t channels, int64_t plane, int64_t count, Vector* to) {
  for (int64_t c = 0; c < channels; ++c) to[c] = load_some(from + c * plane, count);
}

// Calls work(offset of the pixels in the first channel, how many, scratch) for sixteen pixels of an image at a time.
template <typename Work>
void for_pixels(const Tensor& x, int64_t arrays, const Work& work) {
  const int64_t channels = x.size(1), pixels = x.size(2) * x.size(3);
  shared(x.size(0), channels * pixels * 16, [&](int64_t first, int64_t last) {
    Buffer scratch(arrays * channels * kLanes);
    for (int64_t n = first; n < last; ++n)
      for (int64_t p = 0; p < pixels; p += kLanes)
        work(n * channels * pixels + p, std::min(kLanes, pixels - p), reinterpret_cast<Vector*>(scratch.data()));
  });
}

Tensor norm_of(const Tensor& images, const Neighbours& near) {
  const Tensor x = images.contiguous();
  Tensor out = at::empty_like(x);
  const int64_t channels = x.size(1), plane = x.size(2) * x.size(3);
  const float* from = x.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  for_pixels(x, 3, [&](int64_t at, int64_t count, Vector* values) {
    Vector *squares = values + channels, *sums = squares + channels;
    gather(from + at, channels, plane, count, values);
    for (int64_t c = 0; c < channels; ++c) squares[c] = values[c] * values[c];
    windows(squares, channels, near.before, near.after, sums);
    for (int64_t c = 0; c < channels; ++c)
      store_some(to + at + c * plane, values[c] * power(1.0f / (1.0f + near.scale * sums[c])), count);
  });
  return out;
}

// With r = s^-3/4 and q = r / s: g r - 3/2 scale x (sum of g x q over the channels whose window holds this one).
Tensor norm_gradient_of(const Tensor& images, const Tensor& gradients, const Neighbours& near) {
  const Tensor x = images.contiguous(), g = gradients.contiguous();
  Tensor out = at::empty_like(x);
  const int64_t channels = x.size(1), plane = x.size(2) * x.size(3);
  const float *xs = x.const_data_ptr<float>(), *gs = g.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  const float factor = 2 * kPower * near.scale;
  for_pixels(x, 5, [&](int64_t at, int64_t count, Vector* x) {
    Vector *g = x + channels, *terms = g + channels, *sums = terms + channels, *powers = sums + channels;
    gather(xs + at, channels, plane, count, x);
    gather(gs + at, channels, plane, count, g);
    for (int64_t c = 0; c < channels; ++c) terms[c] = x[c] * x[c];
    windows(terms, channels, near.before, near.after, sums);
    for (int64_t c = 0; c < channels; ++c) {
      const Vector inverse = 1.0f / (1.0f + near.scale * sums[c]);
      powers[c] = power(inverse);
      terms[c] = g[c] * x[c] * powers[c] * inverse;
    }
    windows(terms, channels, near.after, near.before, sums);
    for (int64_t c = 0; c < channels; ++c)
      store_some(to + at + c * plane, g[c] * powers[c] - factor * x[c] * sums[c], count);
  });
  return out;
}

// The derivatives of <gradient, u> with respect to x and g: how s, r and q change along u gives both.
std::pair<Tensor, Tensor> norm_curvature_of(const Tensor& images, const Tensor& gradients, const Tensor& direction,
                                            const Neighbours& near) {
  const Tensor x = images.contiguous(), g = gradients.contiguous(), u = direction.contiguous();
  Tensor of_x = at::empty_like(x), of_g = at::empty_like(x);
  const int64_t channels = x.size(1), plane = x.size(2) * x.size(3);
  const float *xs = x.const_data_ptr<float>(), *gs = g.const_data_ptr<float>(), *us = u.const_data_ptr<float>();
  float *to_x = of_x.mutable_data_ptr<float>(), *to_g = of_g.mutable_data_ptr<float>();
  const float factor = 2 * kPower * near.scale;
  for_pixels(x, 7, [&](int64_t at, int64_t count, Vector* x) {
    Vector *g = x + channels, *u = g + channels, *terms = u + channels, *changes = terms + channels;
    Vector *sums = changes + channels, *slopes = sums + channels;
    gather(xs + at, channels, plane, count, x);
    gather(gs + at, channels, plane, count, g);
    gather(us + at, channels, plane, count, u);
    for (int64_t c = 0; c < channels; ++c) {
      terms[c] = x[c] * x[c];
      changes[c] = 2 * near.scale * x[c] * u[c];
    }
    windows(terms, channels, near.before, near.after, sums);
    windows(changes, channels, near.before, near.after, slopes);
    for (int64_t c = 0; c < channels; ++c) {
      const Vector inverse = 1.0f / (1.0f + near.scale * sums[c]);
      const Vector r = power(inverse), q = r * inverse, dr = -kPower * q * slopes[c];
      store_some(to_g + at + c * plane, u[c] * r + x[c] * dr, count);
      terms[c] = g[c] * x[c] * q;
      changes[c] = g[c] * q * (u[c] - (kPower + 1) * x[c] * slopes[c] * inverse);
      g[c] *= dr;
    }
    windows(terms, channels, near.after, near.before, sums);
    windows(changes, channels, near.after, near.before, slopes);
    for (int64_t c = 0; c < channels; ++c)
      store_some(to_x + at + c * plane, g[c] - factor * (u[c] * sums[c] + x[c] * slopes[c]), count);
  });
  return {of_x, of_g};
}

Tensor windows_of(const Tensor& values, int64_t before, int64_t after) {
  const Tensor padded = at::constant_pad_nd(values, {0, 0, 0, 0, before, after});
  Tensor sums = padded.narrow(1, 0, values.size(1));
  for (int64_t i = 1; i <= before + after; ++i) sums = sums + padded.narrow(1, i, values.size(1));
  return sums;
}

Neighbours neighbours_of(AutogradContext* ctx) {
  const auto n = ctx->saved_data["numbers"].toIntVector();
  return {static_cast<float>(ctx->saved_data["scale"].toDouble()), n[0], n[1]};
}

struct Norm : Function<Norm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, double scale, int64_t before, int64_t after) {
    remember(ctx, x, x, {before, after});
    ctx->saved_data["scale"] = scale;
    return norm_of(x, {static_cast<float>(scale), before, after});
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients);
};

struct NormGradient : Function<NormGradient> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& g, double scale, int64_t before,
                        int64_t after) {
    remember(ctx, x, g, {before, after});
    ctx->saved_data["scale"] = scale;
    return norm_gradient_of(x, g, {static_cast<float>(scale), before, after});
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients);
};

variable_list Norm::backward(AutogradContext* ctx, variable_list gradients) {
  const Neighbours near = neighbours_of(ctx);
  const Tensor x = ctx->get_saved_variables()[0];
  const double scale = ctx->saved_data["scale"].toDouble();
  return {NormGradient::apply(x, gradients[0], scale, near.before, near.after), {}, {}, {}};
}

variable_list NormGradient::backward(AutogradContext* ctx, variable_list gradients) {
  const auto saved = ctx->get_saved_variables();
  const Neighbours near = neighbours_of(ctx);
  const Tensor &x = saved[0], &g = saved[1], &u = gradients[0];
  if (!at::GradMode::is_enabled()) {
    auto [of_x, of_g] = norm_curvature_of(x, g, u, near);
    return {of_x, of_g, {}, {}, {}};
  }
  // The same from PyTorch's operations, which can be differentiated on.
  const Tensor s = 1 + near.scale * windows_of(x * x, near.before, near.after);
  const Tensor ds = 2 * near.scale * windows_of(x * u, near.before, near.after);
  const Tensor r = s.pow(-kPower), q = r / s, dr = -kPower * q * ds, dq = -(kPower + 1) * q / s * ds;
  const Tensor sums = windows_of(g * x * q, near.after, near.before);
  const Tensor changes = windows_of(g * u * q + g * x * dq, near.after, near.before);
  return {g * dr - 2 * kPower * near.scale * (u * sums + x * changes), u * r + x * dr, {}, {}, {}};
}

}  // namespace
