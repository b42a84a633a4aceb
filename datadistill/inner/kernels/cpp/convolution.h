// Convolution with stride 1, its data gradient and its weight gradient, each by the operation that fits.
//
// The three are bilinear, and the derivatives of any one are the other two: that closes the set under differentiation,
// which is what a hypergradient needs. PyTorch differentiates twice through a fourth, a convolution of odd shape.

#pragma once

#include "few_inputs.h"
#include "planes.h"

namespace {

constexpr int64_t kFewChannels = 16;  // on either side, below which `planes.h` beats the library,
constexpr int64_t kFewPlanes = 16;    // and output planes up to which its weight gradient does

enum class How : int64_t { planes, few_inputs, library, library_last };

// What all three operations are told, besides two tensors.
struct Kernel {
  int64_t h, w, ph, pw;
  How how;
  bool last() const { return how == How::few_inputs || how == How::library_last; }
  Tensor laid_out(const Tensor& tensor) const { return last() ? channels_last(tensor) : tensor.contiguous(); }
  std::vector<int64_t> numbers() const { return {h, w, ph, pw, static_cast<int64_t>(how)}; }
};

Kernel kernel_of(AutogradContext* ctx) {
  const auto n = ctx->saved_data["kernel"].toIntVector();
  return {n[0], n[1], n[2], n[3], static_cast<How>(n[4])};
}

// One of the two derivatives of PyTorch's convolution.
Tensor library_gradient(const Tensor& g, const Tensor& x, const Tensor& w, const Kernel& k, bool of_weights) {
  const auto both = at::convolution_backward(k.laid_out(g), k.laid_out(x), k.laid_out(w), std::nullopt, {1, 1},
                                             {k.ph, k.pw}, {1, 1}, false, {0, 0}, 1, {!of_weights, of_weights, false});
  return of_weights ? std::get<1>(both) : std::get<0>(both);
}

Tensor convolution(const Tensor& images, const Tensor& weights, const MaybeTensor& bias, const Kernel& k) {
  if (k.how == How::library || k.how == How::library_last)
    return at::convolution(k.laid_out(images), k.laid_out(weights), bias, {1, 1}, {k.ph, k.pw}, {1, 1}, false, {0, 0}, 1);
  const Tensor x = images.contiguous(), w = weights.contiguous(), b = bias ? bias->contiguous() : Tensor();
  const Shape s{x.size(0), x.size(1), x.size(2), x.size(3), w.size(0), k.h, k.w, k.ph, k.pw};
  const std::array<int64_t, 4> sizes{s.n, s.o, s.out_h(), s.out_w()};
  Tensor out = k.last() ? empty_channels_last(sizes, x) : at::empty(sizes, x.options());
  const float *from = x.const_data_ptr<float>(), *taps = w.const_data_ptr<float>();
  const float* shift = b.defined() ? b.const_data_ptr<float>() : nullptr;
  if (k.last()) few_inputs(s, from, taps, shift, out.mutable_data_ptr<float>());
  else convolve(s, from, taps, s.taps(), s.kh * s.kw, false, shift, out.mutable_data_ptr<float>());
  return out;
}

// The gradient of the images is a convolution again: channels exchanged, kernel turned.
Tensor data_gradient(const Tensor& gradients, const Tensor& weights, const Kernel& k) {
  const int64_t n = gradients.size(0), o = gradients.size(1), c = weights.size(1), h = gradients.size(2),
                w = gradients.size(3), images_h = h + k.h - 1 - 2 * k.ph, images_w = w + k.w - 1 - 2 * k.pw;
  Tensor out = at::empty({n, c, images_h, images_w}, gradients.options());
  if (k.how == How::library || k.how == How::library_last)
    return library_gradient(gradients, out, weights, k, false);  // reads no image
  const Tensor g = k.laid_out(gradients), taps = weights.contiguous();
  const float *from = g.const_data_ptr<float>(), *factors = taps.const_data_ptr<float>();
  if (k.last())
    few_inputs_data_gradient({n, c, images_h, images_w, o, k.h, k.w, k.ph, k.pw}, from, factors,
                             out.mutable_data_ptr<float>());
  else
    convolve({n, o, h, w, c, k.h, k.w, k.h - 1 - k.ph, k.w - 1 - k.pw}, from, factors, k.h * k.w, c * k.h * k.w, true,
             nullptr, out.mutable_data_ptr<float>());
  return out;
}

Tensor weight_gradient(const Tensor& images, const Tensor& gradients, const Kernel& k) {
  const Tensor g = k.laid_out(gradients);
  Tensor out = at::empty({g.size(1), images.size(1), k.h, k.w}, g.options());
  if (k.how == How::library || k.how == How::library_last || (k.how == How::planes && g.size(1) > kFewPlanes))
    return library_gradient(g, images, out, k, true);
  const Tensor x = images.contiguous();
  const Shape s{x.size(0), x.size(1), x.size(2), x.size(3), g.size(1), k.h, k.w, k.ph, k.pw};
  const auto gradient_of = k.last() ? few_inputs_weight_gradient : planes_weight_gradient;
  gradient_of(s, x.const_data_ptr<float>(), g.const_data_ptr<float>(), out.mutable_data_ptr<float>());
  return out;
}

// F: images and weights to their convolution; D: gradients and weights to the images' gradient; W: images and gradients
// to the weights' gradient.
enum class Kind { F, D, W };

template <Kind K>
struct Bilinear : Function<Bilinear<K>> {
  static Tensor forward(AutogradContext* ctx, const Tensor& a, const Tensor& b, const MaybeTensor& bias,
                        const Kernel& k) {
    ctx->save_for_backward({a, b});
    ctx->saved_data["kernel"] = k.numbers();
    ctx->saved_data["biased"] = bias.has_value();
    return K == Kind::F ? convolution(a, b, bias, k) : K == Kind::D ? data_gradient(a, b, k) : weight_gradient(a, b, k);
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients);
};

template <Kind K>
variable_list Bilinear<K>::backward(AutogradContext* ctx, variable_list gradients) {
  const auto saved = ctx->get_saved_variables();
  const Kernel k = kernel_of(ctx);
  const Tensor &a = saved[0], &b = saved[1], &u = gradients[0];
  variable_list out(4);
  if (ctx->needs_input_grad(0)) {
    if constexpr (K == Kind::F) out[0] = Bilinear<Kind::D>::apply(u, b, std::nullopt, k);
    if constexpr (K == Kind::D) out[0] = Bilinear<Kind::F>::apply(u, b, std::nullopt, k);
    if constexpr (K == Kind::W) out[0] = Bilinear<Kind::D>::apply(b, u, std::nullopt, k);
  }
  if (ctx->needs_input_grad(1)) {
    if constexpr (K == Kind::F) out[1] = Bilinear<Kind::W>::apply(a, u, std::nullopt, k);
    if constexpr (K == Kind::D) out[1] = Bilinear<Kind::W>::apply(u, a, std::nullopt, k);
    if constexpr (K == Kind::W) out[1] = Bilinear<Kind::F>::apply(a, u, std::nullopt, k);
  }
  if (ctx->saved_data["biased"].toBool() && ctx->needs_input_grad(2)) out[2] = u.sum({0, 2, 3});
  return out;
}

// `how` is one of How, in order.
Tensor conv2d(const Tensor& images, const Tensor& weights, const MaybeTensor& bias, int64_t ph, int64_t pw,
              int64_t how) {
  const Kernel k{weights.size(2), weights.size(3), ph, pw, static_cast<How>(how)};
  TORCH_CHECK(images.size(1) == weights.size(1) && (!bias || bias->numel() == weights.size(0)) &&
                  images.size(2) + 2 * ph >= k.h && images.size(3) + 2 * pw >= k.w,
              "the weights do not fit the images");
  return Bilinear<Kind::F>::apply(images, weights, bias, k);
}

}  // namespace
