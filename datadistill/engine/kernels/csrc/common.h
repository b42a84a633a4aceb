// Vectors, tiles, threads and the shape of a convolution, for all operations.
//
// A vector is PyTorch's own (AVX2, AVX-512, NEON, SVE), and tiles follow from how many registers hold one.

#pragma once

#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

// Sums in arrays of fixed length stay in registers only if every loop over them is unrolled.
#define UNROLLED _Pragma("GCC unroll 16")

namespace {

using at::Tensor, at::vec::fmadd;
using MaybeTensor = std::optional<Tensor>;
using Floats = std::vector<float>;
using Vec = at::vec::Vectorized<float>;

constexpr int64_t kLanes = Vec::size();
#if defined(CPU_CAPABILITY_AVX2)
constexpr int kRegisters = 16;
#else
constexpr int kRegisters = 32;
#endif

constexpr int64_t kShare = 1 << 18;  // multiplications that are worth another core

// How many vectors a tile is wide that holds `rows` rows of sums beside a row of operands and one more.
constexpr int wide(int rows) { return std::clamp((kRegisters - 2) / (rows + 1), 1, 8); }

// Rows are short, and a call to the library's memcpy takes longer than the copy.
inline void copy_row(float* to, const float* from, int64_t count) {
  for (; count >= kLanes; count -= kLanes, to += kLanes, from += kLanes) Vec::loadu(from).store(to);
  if (count > 0) Vec::loadu(from, count).store(to, count);
}

// kLanes rows of `count` numbers become as many rows of kLanes.
inline void turn(const float* from, int64_t count, float* to) {
  for (int64_t x = 0; x < count; x += kLanes)
    if (x + kLanes <= count) at::vec::transpose_mxn<float, kLanes, kLanes>(from + x, count, to + x * kLanes, kLanes);
    else at::vec::transpose_mxn<float>(from + x, count, to + x * kLanes, kLanes, kLanes, count - x);
}

constexpr int64_t rounded_up(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// Shares out [0, count) among the cores that PyTorch may use, where each index costs so many multiplications.
template <typename Work>
void shared(int64_t count, int64_t cost, const Work& work) {
  at::parallel_for(0, count, std::max<int64_t>(1, kShare / std::max<int64_t>(1, cost)), work);
}

// With channels as the innermost dimension. The strides say so even with one channel, where both orders are one.
Tensor channels_last(const Tensor& images) {
  const Tensor x = images.contiguous(at::MemoryFormat::ChannelsLast);
  return x.as_strided(x.sizes(), {x.size(1) * x.size(2) * x.size(3), 1, x.size(3) * x.size(1), x.size(1)});
}

Tensor plain(const MaybeTensor& t) { return t ? t->contiguous() : Tensor(); }
const float* at(const Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; }

Tensor empty_channels_last(at::IntArrayRef sizes, const Tensor& like) {
  return at::empty(sizes, like.options().memory_format(at::MemoryFormat::ChannelsLast));
}

// An operation in the graph: `pull` gives the gradient of an input, by its number, from two saved tensors and the
// gradient of the answer. With `torch::autograd::Function` in its place LeNet's steps took longer (docs/engine.md).
struct Operation : torch::autograd::Node {
  torch::autograd::SavedVariable a, b;
  std::function<Tensor(size_t, const Tensor&, const Tensor&, const Tensor&)> pull;

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    torch::autograd::variable_list out(num_outputs());
    for (size_t i = 0; i < out.size(); ++i)
      if (gradients[0].defined() && task_should_compute_output(i))
        out[i] = pull(i, a.unpack(), b.unpack(), gradients[0]);
    return out;
  }
  void release_variables() override { a.reset_data(), b.reset_data(); }
};

// The answer with its operation, if an input has a derivative. The kind of pointer goes by PyTorch's version.
template <typename Pull, typename... Inputs>
Tensor recorded(const Tensor& out, const Pull& pull, const Tensor& a, const Tensor& b, const Inputs&... inputs) {
  if (!torch::autograd::compute_requires_grad(inputs...)) return out;
  const auto made = [](auto kind) {
    if constexpr (std::is_same_v<decltype(kind), std::shared_ptr<torch::autograd::Node>>)
      return std::make_shared<Operation>();
    else return c10::make_intrusive<Operation>();
  }(torch::autograd::Edge().function);
  made->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  made->a = {a, false}, made->b = {b, false}, made->pull = pull;
  torch::autograd::set_history(out, made);
  return out;
}

// A convolution with stride 1: n images of c planes h x w become o planes. Negative padding crops, which the data
// gradient of a convolution with more padding than its kernel needs.
//
// A plane with its border is read as one long row. Between two rows lie (at least) as many zeros as the padding is
// wide, for the end of one and the beginning of the next: output (y, x) lies at p = y * row + x and needs inputs
// p + i * row + j. The row - out_w positions at the end of each row are computed for nothing and dropped.
struct Shape {
  int64_t n, c, h, w, o, kh, kw, ph, pw;
  int64_t row() const { return std::max(w + pw + std::min<int64_t>(pw, 0), out_w()); }
  int64_t out_h() const { return h + 2 * ph - kh + 1; }
  int64_t out_w() const { return w + 2 * pw - kw + 1; }
  int64_t taps() const { return c * kh * kw; }
  int64_t positions() const { return out_h() * row(); }
  // Of a gradient, or with a register of channels at each position, so many of those.
  int64_t gradient_plane(bool channels) const { return channels ? out_h() * out_w() : rounded_up(positions()); }
  // The last tile of positions reads past the plane's end, so planes are followed by slack.
  int64_t plane() const { return rounded_up((h + 2 * ph + kh) * row() + 2 * kw + 8 * kLanes); }
  int64_t out_plane() const { return rounded_up(positions()) + 8 * kLanes; }
};

// The border must be zero already, and stays so from one image to the next.
void pad(const float* image, const Shape& s, float* padded) {
  const int64_t cut_h = std::max<int64_t>(0, -s.ph), cut_w = std::max<int64_t>(0, -s.pw);
  for (int64_t c = 0; c < s.c; ++c)
    for (int64_t y = cut_h; y < s.h - cut_h; ++y)
      copy_row(padded + c * s.plane() + (y + s.ph) * s.row() + s.pw + cut_w, image + (c * s.h + y) * s.w + cut_w,
               s.w - 2 * cut_w);
}

}  // namespace
