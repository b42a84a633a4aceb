// Convolution with stride 1, its data gradient and its weight gradient, each by the operation that fits.
//
// The three are bilinear, and the derivatives of any one are the other two: that closes the set under differentiation,
// which is what a hypergradient needs. PyTorch differentiates twice through a fourth, a convolution of odd shape.

#pragma once

#include "planes.h"

namespace {

constexpr int64_t kFewPlanes = 16;  // output planes up to which the weight gradient of `planes.h` beats the library's

// Images and weights to their convolution; gradients and weights to the images' gradient; images and gradients to the
// weights' gradient.
enum class Kind { convolution, of_images, of_weights };

// What all three operations are told, besides two tensors; nothing for a linear layer. With channels innermost in
// memory (`last`) the library does the work.
struct Kernel {
  int64_t h, w, ph, pw;
  bool last;
  Tensor laid_out(const Tensor& tensor) const { return last ? channels_last(tensor) : tensor.contiguous(); }
};

// One of the two derivatives of PyTorch's convolution.
Tensor library_gradient(const Tensor& g, const Tensor& x, const Tensor& w, const Kernel& k, bool of_weights) {
  const auto both = at::convolution_backward(k.laid_out(g), k.laid_out(x), k.laid_out(w), std::nullopt, {1, 1},
                                             {k.ph, k.pw}, {1, 1}, false, {0, 0}, 1, {!of_weights, of_weights, false});
  return of_weights ? std::get<1>(both) : std::get<0>(both);
}

Tensor convolution(const Tensor& images, const Tensor& weights, const MaybeTensor& bias, const Kernel& k) {
  if (k.last) return at::conv2d(k.laid_out(images), k.laid_out(weights), bias, {1, 1}, {k.ph, k.pw});
  const Tensor x = images.contiguous(), w = weights.contiguous(), b = plain(bias);
  const Shape s{x.size(0), x.size(1), x.size(2), x.size(3), w.size(0), k.h, k.w, k.ph, k.pw};
  Tensor out = at::empty({s.n, s.o, s.out_h(), s.out_w()}, x.options());
  convolve(s, at(x), at(w), s.taps(), s.kh * s.kw, false, at(b), out.mutable_data_ptr<float>());
  return out;
}

// The gradient of the images is a convolution again: channels exchanged, kernel turned.
Tensor data_gradient(const Tensor& gradients, const Tensor& weights, const Kernel& k) {
  const int64_t n = gradients.size(0), o = gradients.size(1), c = weights.size(1), h = gradients.size(2),
                w = gradients.size(3), images_h = h + k.h - 1 - 2 * k.ph, images_w = w + k.w - 1 - 2 * k.pw;
  Tensor out = at::empty({n, c, images_h, images_w}, gradients.options());
  if (k.last) return library_gradient(gradients, out, weights, k, false);  // reads no image
  const Tensor g = gradients.contiguous(), taps = weights.contiguous();
  convolve({n, o, h, w, c, k.h, k.w, k.h - 1 - k.ph, k.w - 1 - k.pw}, at(g), at(taps), k.h * k.w, c * k.h * k.w, true,
           nullptr, out.mutable_data_ptr<float>());
  return out;
}

Tensor weight_gradient(const Tensor& images, const Tensor& gradients, const Kernel& k) {
  const Tensor g = k.laid_out(gradients);
  Tensor out = at::empty({g.size(1), images.size(1), k.h, k.w}, g.options());
  if (k.last || g.size(1) > kFewPlanes) return library_gradient(g, images, out, k, true);
  const Tensor x = images.contiguous();
  const Shape s{x.size(0), x.size(1), x.size(2), x.size(3), g.size(1), k.h, k.w, k.ph, k.pw};
  planes_weight_gradient(s, at(x), at(g), out.mutable_data_ptr<float>());
  return out;
}

Tensor bilinear(const Tensor& a, const Tensor& b, const MaybeTensor& bias, Kind kind, const Kernel& k) {
  const at::AutoDispatchBelowADInplaceOrView below;
  Tensor out;
  if (kind == Kind::convolution) out = k.h ? convolution(a, b, bias, k) : at::linear(a, b, bias);
  if (kind == Kind::of_images) out = k.h ? data_gradient(a, b, k) : a.mm(b);
  if (kind == Kind::of_weights) out = k.h ? weight_gradient(a, b, k) : b.t().mm(a);
  const auto pull = [kind, k](size_t input, const Tensor& a, const Tensor& b, const Tensor& u) {
    const auto derived = [&](Kind other, const Tensor& x, const Tensor& y) { return bilinear(x, y, {}, other, k); };
    if (input == 2) return k.h ? u.sum({0, 2, 3}) : u.sum(0);
    if (kind == Kind::convolution) return input ? derived(Kind::of_weights, a, u) : derived(Kind::of_images, u, b);
    if (kind == Kind::of_images) return input ? derived(Kind::of_weights, u, a) : derived(Kind::convolution, u, b);
    return input ? derived(Kind::convolution, a, u) : derived(Kind::of_images, b, u);
  };
  return recorded(out, pull, a, b, a, b, bias);
}

Tensor conv2d(const Tensor& images, const Tensor& weights, const MaybeTensor& bias, int64_t ph, int64_t pw,
              bool last) {
  const Kernel k{weights.size(2), weights.size(3), ph, pw, last};
  TORCH_CHECK(images.size(1) == weights.size(1) && (!bias || bias->numel() == weights.size(0)) &&
                  images.size(2) + 2 * ph >= k.h && images.size(3) + 2 * pw >= k.w,
              "the weights do not fit the images");
  return bilinear(images, weights, bias, Kind::convolution, k);
}

Tensor linear(const Tensor& images, const Tensor& weights, const MaybeTensor& bias) {
  return bilinear(images, weights, bias, Kind::convolution, Kernel{});
}

}  // namespace
