// Convolution with stride 1 and its two derivatives.
//
// General libraries lay channels out in blocks as wide as a vector register, so a layer with 1 or 6 channels leaves most
// of each register empty, and their pooling is scalar. Here a register holds neighbouring positions of one plane
// instead. A padded plane is read as one long row: with row length Wp, output (y, x) lies at p = y * Wp + x and needs
// inputs p + i * Wp + j, so a register is filled by one unaligned load for every tap (i, j). The Wp - Wo positions at
// the end of a row are computed for nothing and dropped.

#pragma once

#include "few_inputs.h"

namespace {

constexpr int64_t kImageBlock = 16;   // images whose weight gradients are added up together
constexpr int64_t kFewChannels = 16;  // on either side, below which the convolutions here beat the library's,
constexpr int64_t kFewPlanes = 16;    // and output planes up to which their weight gradient does

// O output planes of one image, V vectors at a time: O * V registers hold the sums.
template <int O, int V>
void convolve_tile(const Shape& s, const float* padded, const float* taps, const float* bias, float* out) {
  for (int64_t p = 0; p < s.positions(); p += kLanes * V) {
    Vector sums[O][V];
    for (int o = 0; o < O; ++o)
      for (int v = 0; v < V; ++v) sums[o][v] = Vector{} + (bias ? bias[o] : 0.0f);
    const float* tap = taps;
    for (int64_t c = 0; c < s.c; ++c)
      for (int64_t i = 0; i < s.kh; ++i) {
        const float* row = padded + c * s.plane() + p + i * s.padded_w();
        for (int64_t j = 0; j < s.kw; ++j, tap += O) {
          Vector in[V];
          for (int v = 0; v < V; ++v) in[v] = load(row + j + v * kLanes);
          for (int o = 0; o < O; ++o)
            for (int v = 0; v < V; ++v) sums[o][v] += in[v] * tap[o];
        }
      }
    for (int o = 0; o < O; ++o)
      for (int v = 0; v < V; ++v) store(out + o * s.out_plane() + p + v * kLanes, sums[o][v]);
  }
}

using Tile = void (*)(const Shape&, const float*, const float*, const float*, float*);
constexpr int64_t kMostPlanes = 8;
constexpr Tile kTiles[kMostPlanes] = {convolve_tile<1, 8>, convolve_tile<2, 8>, convolve_tile<3, 8>,
                                      convolve_tile<4, 6>, convolve_tile<5, 5>, convolve_tile<6, 4>,
                                      convolve_tile<7, 3>, convolve_tile<8, 3>};

// Output planes in nearly equal parts of at most eight.
std::vector<std::pair<int64_t, int64_t>> parts(int64_t planes) {
  const int64_t count = (planes + kMostPlanes - 1) / kMostPlanes;
  std::vector<std::pair<int64_t, int64_t>> found;
  for (int64_t i = 0, first = 0; i < count; ++i) {
    const int64_t size = (planes - first) / (count - i);
    found.emplace_back(first, size);
    first += size;
  }
  return found;
}

// weights[o * stride_o + c * stride_c + i * kw + j], with the kernel turned by 180 degrees if `turned`.
void convolve(const Shape& s, const float* images, const float* weights, int64_t stride_o, int64_t stride_c,
              bool turned, const float* bias, float* out) {
  const auto split = parts(s.o);
  const int64_t taps_per_plane = s.c * s.kh * s.kw;
  Buffer taps(s.o * taps_per_plane);
  float* tap = taps.data();
  for (auto [first, count] : split)
    for (int64_t c = 0; c < s.c; ++c)
      for (int64_t k = 0; k < s.kh * s.kw; ++k)
        for (int64_t o = first; o < first + count; ++o)
          *tap++ = weights[o * stride_o + c * stride_c + (turned ? s.kh * s.kw - 1 - k : k)];
  shared(s.n, s.o * taps_per_plane * s.positions(), [&](int64_t begin, int64_t end) {
    Buffer padded(s.c * s.plane()), sums(kMostPlanes * s.out_plane());
    std::memset(padded.data(), 0, s.c * s.plane() * sizeof(float));
    for (int64_t n = begin; n < end; ++n) {
      pad(images + n * s.c * s.h * s.w, s, padded.data());
      for (auto [first, count] : split) {
        kTiles[count - 1](s, padded.data(), taps.data() + first * taps_per_plane, bias ? bias + first : nullptr,
                          sums.data());
        for (int64_t o = 0; o < count; ++o)
          for (int64_t y = 0; y < s.out_h(); ++y)
            copy_row(out + ((n * s.o + first + o) * s.out_h() + y) * s.out_w(),
                     sums.data() + o * s.out_plane() + y * s.padded_w(), s.out_w());
      }
    }
  });
}

// The gradients of O output planes with respect to J neighbouring taps, over a block of images.
template <int O, int J>
void weight_tile(const Shape& s, int64_t images, const float* gradients, const float* padded, float* out) {
  Vector sums[O][J] = {};
  const int64_t plane = rounded_up(s.positions());
  for (int64_t n = 0; n < images; ++n)
    for (int64_t p = 0; p < plane; p += kLanes) {
      Vector in[O];
      for (int o = 0; o < O; ++o) in[o] = load(gradients + (n * s.o + o) * plane + p);
      for (int j = 0; j < J; ++j) {
        Vector at = load(padded + n * s.c * s.plane() + p + j);
        stay_in_register(at);
        for (int o = 0; o < O; ++o) sums[o][j] += in[o] * at;
      }
    }
  for (int o = 0; o < O; ++o)
    for (int j = 0; j < J; ++j) out[o * s.c * s.kh * s.kw + j] += sum(sums[o][j]);
}

using WeightTile = void (*)(const Shape&, int64_t, const float*, const float*, float*);
constexpr int64_t kMostRows = 4, kMostTaps = 5;
constexpr WeightTile kWeightTiles[kMostRows][kMostTaps] = {
    {weight_tile<1, 1>, weight_tile<1, 2>, weight_tile<1, 3>, weight_tile<1, 4>, weight_tile<1, 5>},
    {weight_tile<2, 1>, weight_tile<2, 2>, weight_tile<2, 3>, weight_tile<2, 4>, weight_tile<2, 5>},
    {weight_tile<3, 1>, weight_tile<3, 2>, weight_tile<3, 3>, weight_tile<3, 4>, weight_tile<3, 5>},
    {weight_tile<4, 1>, weight_tile<4, 2>, weight_tile<4, 3>, weight_tile<4, 4>, weight_tile<4, 5>}};

void weight_block(const Shape& s, int64_t images, const float* gradients, const float* padded, float* out) {
  const int64_t rows = (s.o + kMostRows - 1) / kMostRows;
  for (int64_t row = 0, o = 0; row < rows; ++row) {
    const int64_t count = (s.o - o) / (rows - row);
    for (int64_t c = 0; c < s.c; ++c)
      for (int64_t i = 0; i < s.kh; ++i)
        for (int64_t j = 0; j < s.kw; j += kMostTaps)
          kWeightTiles[count - 1][std::min(kMostTaps, s.kw - j) - 1](
              s, images, gradients + o * rounded_up(s.positions()), padded + c * s.plane() + i * s.padded_w() + j,
              out + ((o * s.c + c) * s.kh + i) * s.kw + j);
    o += count;
  }
}

// The gradients of output planes from `begin` on, of which `s` has its share and the images have `planes`.
void weight_rows(const Shape& s, int64_t planes, int64_t begin, const float* images, const float* gradients,
                 float* out) {
  const int64_t plane = rounded_up(s.positions()), most = std::min(kImageBlock, s.n);
  Buffer padded(most * s.c * s.plane()), spread(most * s.o * plane);
  // What lies between the rows stays zero from here on.
  std::memset(padded.data(), 0, most * s.c * s.plane() * sizeof(float));
  std::memset(spread.data(), 0, most * s.o * plane * sizeof(float));
  std::memset(out, 0, s.o * s.c * s.kh * s.kw * sizeof(float));
  for (int64_t first = 0; first < s.n; first += kImageBlock) {
    const int64_t count = std::min(kImageBlock, s.n - first);
    for (int64_t n = 0; n < count; ++n) {
      pad(images + (first + n) * s.c * s.h * s.w, s, padded.data() + n * s.c * s.plane());
      for (int64_t o = 0; o < s.o; ++o)
        for (int64_t y = 0; y < s.out_h(); ++y)
          copy_row(spread.data() + (n * s.o + o) * plane + y * s.padded_w(),
                   gradients + (((first + n) * planes + begin + o) * s.out_h() + y) * s.out_w(), s.out_w());
    }
    weight_block(s, count, spread.data(), padded.data(), out);
  }
}

void weight_gradient(const Shape& s, const float* images, const float* gradients, float* out) {
  const int64_t taps = s.c * s.kh * s.kw;
  shared((s.o + kMostRows - 1) / kMostRows, kMostRows * s.n * taps * s.positions(), [&](int64_t first, int64_t last) {
    Shape part = s;
    part.o = std::min(last * kMostRows, s.o) - first * kMostRows;
    weight_rows(part, s.o, first * kMostRows, images, gradients, out + first * kMostRows * taps);
  });
}

Shape shape_of(const Tensor& images, at::IntArrayRef weights, int64_t ph, int64_t pw) {
  return {images.size(0), images.size(1), images.size(2), images.size(3), weights[0], weights[2], weights[3], ph, pw};
}

// How a convolution with many channels on both sides is left to the library: on images whose channels are their
// innermost dimension, if `last`, which is where it is fastest, and else on images as they come.
struct Padding {
  int64_t h, w;
  bool last;
  bool few_inputs(int64_t channels) const { return last && channels <= kFewInputs; }
  bool library(const Tensor& weights) const {
    return last || std::min(weights.size(0), weights.size(1)) >= kFewChannels;
  }
  Tensor laid_out(const Tensor& tensor) const {
    return last ? channels_last(tensor) : tensor;
  }
  std::vector<int64_t> numbers() const { return {h, w, last}; }
};

// One of the two derivatives of PyTorch's convolution.
Tensor library_gradient(const Tensor& g, const Tensor& x, const Tensor& w, const Padding& p, bool of_weights) {
  const auto found = at::convolution_backward(p.laid_out(g), p.laid_out(x), p.laid_out(w), std::nullopt, {1, 1},
                                              {p.h, p.w}, {1, 1}, false, {0, 0}, 1, {!of_weights, of_weights, false});
  return of_weights ? std::get<1>(found) : std::get<0>(found);
}

Tensor forward_of(const Tensor& images, const Tensor& weights, const std::optional<Tensor>& bias, const Padding& p) {
  const bool few = p.few_inputs(weights.size(1));
  if (!few && p.library(weights))
    return at::convolution(p.laid_out(images), p.laid_out(weights), bias, {1, 1}, {p.h, p.w}, {1, 1}, false, {0, 0}, 1);
  const Tensor x = images.contiguous(), w = weights.contiguous();
  const Shape s = shape_of(x, w.sizes(), p.h, p.w);
  const std::array<int64_t, 4> sizes{s.n, s.o, s.out_h(), s.out_w()};
  Tensor out = few ? empty_channels_last(sizes, x) : at::empty(sizes, x.options());
  const Tensor b = bias ? bias->contiguous() : Tensor();
  const float* shift = b.defined() ? b.const_data_ptr<float>() : nullptr;
  if (few)
    few_inputs(s, x.const_data_ptr<float>(), w.const_data_ptr<float>(), shift, out.mutable_data_ptr<float>());
  else
    convolve(s, x.const_data_ptr<float>(), w.const_data_ptr<float>(), s.c * s.kh * s.kw, s.kh * s.kw, false, shift,
             out.mutable_data_ptr<float>());
  return out;
}

// The gradient with respect to the images is a convolution again: channels exchanged, kernel turned.
Tensor data_gradient_of(const Tensor& gradients, const Tensor& weights, const Padding& p) {
  const int64_t h = gradients.size(2) + weights.size(2) - 1 - 2 * p.h;
  const int64_t width = gradients.size(3) + weights.size(3) - 1 - 2 * p.w;
  if (p.few_inputs(weights.size(1))) {
    const Tensor g = channels_last(gradients), w = weights.contiguous();
    const Shape s{g.size(0), w.size(1), h, width, w.size(0), w.size(2), w.size(3), p.h, p.w};
    Tensor out = at::empty({s.n, s.c, s.h, s.w}, g.options());
    few_inputs_data_gradient(s, g.const_data_ptr<float>(), w.const_data_ptr<float>(), out.mutable_data_ptr<float>());
    return out;
  }
  if (p.library(weights)) {
    const Tensor x = at::empty({gradients.size(0), weights.size(1), h, width}, gradients.options());  // never read
    return library_gradient(gradients, x, weights, p, false);
  }
  const Tensor g = gradients.contiguous(), w = weights.contiguous();
  const int64_t taps = w.size(2) * w.size(3);
  const Shape s{g.size(0), g.size(1), g.size(2), g.size(3), w.size(1), w.size(2), w.size(3),
                w.size(2) - 1 - p.h, w.size(3) - 1 - p.w};
  Tensor out = at::empty({s.n, s.o, s.out_h(), s.out_w()}, g.options());
  convolve(s, g.const_data_ptr<float>(), w.const_data_ptr<float>(), taps, s.o * taps, true, nullptr,
           out.mutable_data_ptr<float>());
  return out;
}

Tensor weight_gradient_of(const Tensor& images, const Tensor& gradients, int64_t kh, int64_t kw, const Padding& p) {
  if (p.few_inputs(images.size(1))) {
    const Tensor x = images.contiguous(), g = channels_last(gradients);
    Tensor out = at::empty({g.size(1), x.size(1), kh, kw}, x.options());
    few_inputs_weight_gradient(shape_of(x, out.sizes(), p.h, p.w), x.const_data_ptr<float>(),
                               g.const_data_ptr<float>(), out.mutable_data_ptr<float>());
    return out;
  }
  const Tensor x = p.last ? images : images.contiguous(), g = p.last ? gradients : gradients.contiguous();
  Tensor out = at::empty({g.size(1), x.size(1), kh, kw}, x.options());
  if (p.library(out) || g.size(1) > kFewPlanes) return library_gradient(g, x, out, p, true);
  weight_gradient(shape_of(x, out.sizes(), p.h, p.w), x.const_data_ptr<float>(), g.const_data_ptr<float>(),
                  out.mutable_data_ptr<float>());
  return out;
}

Padding padding_of(AutogradContext* ctx) {
  const auto n = ctx->saved_data["numbers"].toIntVector();
  return {n[0], n[1], n[2] != 0};
}

struct Convolution : Function<Convolution> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias,
                        const Padding& p);
  static variable_list backward(AutogradContext* ctx, variable_list gradients);
};

struct DataGradient : Function<DataGradient> {
  static Tensor forward(AutogradContext* ctx, const Tensor& g, const Tensor& w, const Padding& p);
  static variable_list backward(AutogradContext* ctx, variable_list gradients);
};

struct WeightGradient : Function<WeightGradient> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& g, int64_t kh, int64_t kw,
                        const Padding& p);
  static variable_list backward(AutogradContext* ctx, variable_list gradients);
};

Tensor Convolution::forward(AutogradContext* ctx, const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias,
                            const Padding& p) {
  remember(ctx, x, w, p.numbers());
  ctx->saved_data["biased"] = bias.has_value();
  return forward_of(x, w, bias, p);
}

variable_list Convolution::backward(AutogradContext* ctx, variable_list gradients) {
  const auto saved = ctx->get_saved_variables();
  const Padding p = padding_of(ctx);
  const Tensor &x = saved[0], &w = saved[1], &g = gradients[0];
  variable_list found(4);
  if (ctx->needs_input_grad(0)) found[0] = DataGradient::apply(g, w, p);
  if (ctx->needs_input_grad(1)) found[1] = WeightGradient::apply(x, g, w.size(2), w.size(3), p);
  if (ctx->saved_data["biased"].toBool() && ctx->needs_input_grad(2)) found[2] = g.sum({0, 2, 3});
  return found;
}

Tensor DataGradient::forward(AutogradContext* ctx, const Tensor& g, const Tensor& w, const Padding& p) {
  remember(ctx, g, w, p.numbers());
  return data_gradient_of(g, w, p);
}

variable_list DataGradient::backward(AutogradContext* ctx, variable_list gradients) {
  const auto saved = ctx->get_saved_variables();
  const Padding p = padding_of(ctx);
  const Tensor &g = saved[0], &w = saved[1], &along = gradients[0];
  variable_list found(3);
  if (ctx->needs_input_grad(0)) found[0] = Convolution::apply(along, w, std::nullopt, p);
  if (ctx->needs_input_grad(1)) found[1] = WeightGradient::apply(along, g, w.size(2), w.size(3), p);
  return found;
}

Tensor WeightGradient::forward(AutogradContext* ctx, const Tensor& x, const Tensor& g, int64_t kh, int64_t kw,
                               const Padding& p) {
  remember(ctx, x, g, p.numbers());
  return weight_gradient_of(x, g, kh, kw, p);
}

variable_list WeightGradient::backward(AutogradContext* ctx, variable_list gradients) {
  const auto saved = ctx->get_saved_variables();
  const Padding p = padding_of(ctx);
  const Tensor &x = saved[0], &g = saved[1], &along = gradients[0];
  variable_list found(5);
  if (ctx->needs_input_grad(0)) found[0] = DataGradient::apply(g, along, p);
  if (ctx->needs_input_grad(1)) found[1] = Convolution::apply(x, along, std::nullopt, p);
  return found;
}

}  // namespace
