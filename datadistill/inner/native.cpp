// Convolution and max pooling for networks with few channels, on a CPU, in float32, differentiable any number of times.
//
// General libraries lay channels out in blocks as wide as a vector register, so a layer with 1 or 6 channels leaves most
// of each register empty, and their pooling is scalar. Here a register holds neighbouring positions of one plane
// instead. A padded plane is read as one long row: with row length Wp, output (y, x) lies at p = y * Wp + x and needs
// inputs p + i * Wp + j, so a register is filled by one unaligned load for every tap (i, j). The Wp - Wo positions at
// the end of a row are computed for nothing and dropped.
//
// Convolution, its data gradient and its weight gradient are each bilinear, and the derivatives of any one are the
// other two: that closes the set under differentiation, which is what a hypergradient needs.

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// ---------------------------------------------------------------------------------------------------- registers

constexpr int64_t kLanes = 16;
constexpr int64_t kMostVectors = 8;   // vectors of positions in a tile
constexpr int64_t kImageBlock = 16;   // images whose weight gradients are added up together
constexpr int64_t kFewPlanes = 16;    // output planes up to which the weight gradient here beats the library's

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float))));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

// Compilers like to load an operand again for each use, which for unaligned vectors costs twice the arithmetic.
inline void stay_in_register(Vector& value) {
#if defined(__AVX512F__)
  asm("" : "+v"(value));
#endif
}

// Halves are added to halves: three additions of vectors and two of numbers.
inline float sum(Vector value) {
  typedef float Half __attribute__((vector_size(32)));
  typedef float Quarter __attribute__((vector_size(16)));
  const auto halves = std::bit_cast<std::array<Half, 2>>(value);
  const auto quarters = std::bit_cast<std::array<Quarter, 2>>(halves[0] + halves[1]);
  const Quarter four = quarters[0] + quarters[1];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// Rows are short, and a call to the library's memcpy takes longer than the copy.
inline void copy_row(float* to, const float* from, int64_t count) {
  for (; count >= 16; count -= 16, to += 16, from += 16) std::memcpy(to, from, 16 * sizeof(float));
  if (count & 8) std::memcpy(to, from, 8 * sizeof(float)), to += 8, from += 8;
  if (count & 4) std::memcpy(to, from, 4 * sizeof(float)), to += 4, from += 4;
  if (count & 2) std::memcpy(to, from, 2 * sizeof(float)), to += 2, from += 2;
  if (count & 1) *to = *from;
}

inline int64_t rounded_up(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// Scratch memory that starts on a cache line.
class Buffer {
 public:
  explicit Buffer(int64_t count) : memory_(new float[count + kLanes]) {
    void* start = memory_.get();
    size_t space = (count + kLanes) * sizeof(float);
    data_ = static_cast<float*>(std::align(kLanes * sizeof(float), count * sizeof(float), start, space));
  }
  float* data() { return data_; }

 private:
  std::unique_ptr<float[]> memory_;
  float* data_;
};

// ---------------------------------------------------------------------------------------------------- geometry

// A convolution with stride 1: n images of c planes h x w become o planes.
struct Shape {
  int64_t n, c, h, w, o, kh, kw, ph, pw;
  int64_t padded_h() const { return h + 2 * ph; }
  int64_t padded_w() const { return w + 2 * pw; }
  int64_t out_h() const { return padded_h() - kh + 1; }
  int64_t out_w() const { return padded_w() - kw + 1; }
  int64_t positions() const { return out_h() * padded_w(); }
  // The last tile of positions reads past the plane's end, so planes are followed by slack.
  int64_t plane() const { return rounded_up((padded_h() + kh) * padded_w() + kw + kMostVectors * kLanes); }
  int64_t out_plane() const { return rounded_up(positions()) + kMostVectors * kLanes; }
};

// Negative padding crops: the data gradient of a convolution with more padding than its kernel needs it.
// The border must be zero already, and stays so from one image to the next.
void pad(const float* image, const Shape& s, float* padded) {
  const int64_t cut_h = std::max<int64_t>(0, -s.ph), cut_w = std::max<int64_t>(0, -s.pw);
  for (int64_t c = 0; c < s.c; ++c)
    for (int64_t y = cut_h; y < s.h - cut_h; ++y)
      copy_row(padded + c * s.plane() + (y + s.ph) * s.padded_w() + s.pw + cut_w, image + (c * s.h + y) * s.w + cut_w,
               s.w - 2 * cut_w);
}

// ---------------------------------------------------------------------------------------------------- convolution

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
  Buffer padded(s.c * s.plane()), sums(kMostPlanes * s.out_plane());
  std::memset(padded.data(), 0, s.c * s.plane() * sizeof(float));
  for (int64_t n = 0; n < s.n; ++n) {
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

void weight_gradient(const Shape& s, const float* images, const float* gradients, float* out) {
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
                   gradients + (((first + n) * s.o + o) * s.out_h() + y) * s.out_w(), s.out_w());
    }
    weight_block(s, count, spread.data(), padded.data(), out);
  }
}

// ---------------------------------------------------------------------------------------------------- tensors

Shape shape_of(const Tensor& images, at::IntArrayRef weights, int64_t ph, int64_t pw) {
  return {images.size(0), images.size(1), images.size(2), images.size(3), weights[0], weights[2], weights[3], ph, pw};
}

Tensor forward_of(const Tensor& images, const Tensor& weights, const std::optional<Tensor>& bias, int64_t ph, int64_t pw) {
  const Tensor x = images.contiguous(), w = weights.contiguous();
  const Shape s = shape_of(x, w.sizes(), ph, pw);
  Tensor out = at::empty({s.n, s.o, s.out_h(), s.out_w()}, x.options());
  const Tensor b = bias ? bias->contiguous() : Tensor();
  convolve(s, x.const_data_ptr<float>(), w.const_data_ptr<float>(), s.c * s.kh * s.kw, s.kh * s.kw, false,
           b.defined() ? b.const_data_ptr<float>() : nullptr, out.mutable_data_ptr<float>());
  return out;
}

// The gradient with respect to the images is a convolution again: channels exchanged, kernel turned.
Tensor data_gradient_of(const Tensor& gradients, const Tensor& weights, int64_t ph, int64_t pw) {
  const Tensor g = gradients.contiguous(), w = weights.contiguous();
  const int64_t taps = w.size(2) * w.size(3);
  const Shape s{g.size(0), g.size(1), g.size(2), g.size(3), w.size(1), w.size(2), w.size(3),
                w.size(2) - 1 - ph, w.size(3) - 1 - pw};
  Tensor out = at::empty({s.n, s.o, s.out_h(), s.out_w()}, g.options());
  convolve(s, g.const_data_ptr<float>(), w.const_data_ptr<float>(), taps, s.o * taps, true, nullptr,
           out.mutable_data_ptr<float>());
  return out;
}

Tensor weight_gradient_of(const Tensor& images, const Tensor& gradients, int64_t kh, int64_t kw, int64_t ph,
                          int64_t pw) {
  const Tensor x = images.contiguous(), g = gradients.contiguous();
  Tensor out = at::empty({g.size(1), x.size(1), kh, kw}, x.options());
  if (g.size(1) > kFewPlanes)
    return std::get<1>(at::convolution_backward(g, x, out, std::nullopt, {1, 1}, {ph, pw}, {1, 1}, false, {0, 0}, 1,
                                                {false, true, false}));
  weight_gradient(shape_of(x, out.sizes(), ph, pw), x.const_data_ptr<float>(), g.const_data_ptr<float>(),
                  out.mutable_data_ptr<float>());
  return out;
}

// ---------------------------------------------------------------------------------------------------- derivatives

struct Convolution : Function<Convolution> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias, int64_t ph,
                        int64_t pw);
  static variable_list backward(AutogradContext* ctx, variable_list gradients);
};

struct DataGradient : Function<DataGradient> {
  static Tensor forward(AutogradContext* ctx, const Tensor& g, const Tensor& w, int64_t ph, int64_t pw);
  static variable_list backward(AutogradContext* ctx, variable_list gradients);
};

struct WeightGradient : Function<WeightGradient> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& g, int64_t kh, int64_t kw, int64_t ph,
                        int64_t pw);
  static variable_list backward(AutogradContext* ctx, variable_list gradients);
};

void remember(AutogradContext* ctx, const Tensor& a, const Tensor& b, at::IntArrayRef numbers) {
  ctx->save_for_backward({a, b});
  ctx->saved_data["numbers"] = numbers.vec();
}

Tensor Convolution::forward(AutogradContext* ctx, const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias, int64_t ph,
                            int64_t pw) {
  remember(ctx, x, w, {ph, pw});
  ctx->saved_data["biased"] = bias.has_value();
  return forward_of(x, w, bias, ph, pw);
}

variable_list Convolution::backward(AutogradContext* ctx, variable_list gradients) {
  const auto saved = ctx->get_saved_variables();
  const auto n = ctx->saved_data["numbers"].toIntVector();
  const Tensor &x = saved[0], &w = saved[1], &g = gradients[0];
  variable_list found(5);
  if (ctx->needs_input_grad(0)) found[0] = DataGradient::apply(g, w, n[0], n[1]);
  if (ctx->needs_input_grad(1)) found[1] = WeightGradient::apply(x, g, w.size(2), w.size(3), n[0], n[1]);
  if (ctx->saved_data["biased"].toBool() && ctx->needs_input_grad(2)) found[2] = g.sum({0, 2, 3});
  return found;
}

Tensor DataGradient::forward(AutogradContext* ctx, const Tensor& g, const Tensor& w, int64_t ph, int64_t pw) {
  remember(ctx, g, w, {ph, pw});
  return data_gradient_of(g, w, ph, pw);
}

variable_list DataGradient::backward(AutogradContext* ctx, variable_list gradients) {
  const auto saved = ctx->get_saved_variables();
  const auto n = ctx->saved_data["numbers"].toIntVector();
  const Tensor &g = saved[0], &w = saved[1], &along = gradients[0];
  variable_list found(4);
  if (ctx->needs_input_grad(0)) found[0] = Convolution::apply(along, w, std::nullopt, n[0], n[1]);
  if (ctx->needs_input_grad(1)) found[1] = WeightGradient::apply(along, g, w.size(2), w.size(3), n[0], n[1]);
  return found;
}

Tensor WeightGradient::forward(AutogradContext* ctx, const Tensor& x, const Tensor& g, int64_t kh, int64_t kw,
                               int64_t ph, int64_t pw) {
  remember(ctx, x, g, {ph, pw});
  return weight_gradient_of(x, g, kh, kw, ph, pw);
}

variable_list WeightGradient::backward(AutogradContext* ctx, variable_list gradients) {
  const auto saved = ctx->get_saved_variables();
  const auto n = ctx->saved_data["numbers"].toIntVector();
  const Tensor &x = saved[0], &g = saved[1], &along = gradients[0];
  variable_list found(6);
  if (ctx->needs_input_grad(0)) found[0] = DataGradient::apply(g, along, n[0], n[1]);
  if (ctx->needs_input_grad(1)) found[1] = Convolution::apply(x, along, std::nullopt, n[0], n[1]);
  return found;
}

// ---------------------------------------------------------------------------------------------------- max pooling

struct Window {
  int64_t h, w, kernel, stride, padding;
  int64_t out_h() const { return (h + 2 * padding - kernel) / stride + 1; }
  int64_t out_w() const { return (w + 2 * padding - kernel) / stride + 1; }
};

// A candidate for the largest and its place, taken without a branch: what wins is as good as random.
inline void contend(float value, int at, float* most, int* place) {
  const int better = -static_cast<int>((value > *most) | (value != value));
  const int bits = std::bit_cast<int>(*most);
  *most = std::bit_cast<float>(bits ^ ((bits ^ std::bit_cast<int>(value)) & better));
  *place ^= (*place ^ at) & better;
}

// The largest of a window and its place. The first of equal values counts and NaN wins, as in PyTorch.
inline void largest(const float* plane, int w, int top, int bottom, int left, int right, float* best, int* place) {
  float most = plane[top * w + left];
  int at = top * w + left;
  for (int i = top; i < bottom; ++i)
    for (int j = left; j < right; ++j) contend(plane[i * w + j], i * w + j, &most, &at);
  *best = most;
  *place = at;
}

// With kernel and stride known to the compiler, whole windows side by side become the lanes of vectors.
template <int K, int S>
void whole_windows(const float* from, int w, int base, int count, float* best, int* place) {
  for (int x = 0; x < count; ++x) {
    float most = from[x * S];
    int at = x * S;
    for (int i = 0; i < K; ++i)
      for (int j = 0; j < K; ++j) contend(from[i * w + x * S + j], i * w + x * S + j, &most, &at);
    best[x] = most;
    place[x] = base + at;
  }
}

typedef int Places __attribute__((vector_size(kLanes * sizeof(int))));

// Sixteen windows of K x K with stride 2 next to each other, a register for each tap.
template <int K>
inline void sixteen_windows(const float* from, int w, int base, int count, float* best, int* place) {
  Vector most{};
  Places at{};
  const Places lanes = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
  for (int i = 0; i < K; ++i)
    for (int j = 0; j < K; ++j) {
      const float* row = from + i * w + j;
      const Vector value = __builtin_shufflevector(load(row), load(row + kLanes), 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20,
                                                   22, 24, 26, 28, 30);
      const auto better = i + j == 0 ? Places{} == Places{} : (value > most) | (value != value);
      most = better ? value : most;
      at = better ? lanes + (base + i * w + j) : at;
    }
  float values[kLanes];
  int places[kLanes];
  store(values, most);
  std::memcpy(places, &at, sizeof(at));
  std::copy_n(values, count, best);
  std::copy_n(places, count, place);
}

// Vectors read 32 floats of a row, and past its end, but not past the tensor's; what is left is done one by one.
template <int K>
void row_of_windows(const float* from, const float* end, int w, int base, int count, float* best, int* place) {
  for (int x = 0; x < count; x += kLanes) {
    const int some = std::min<int>(kLanes, count - x);
    if (end - (from + 2 * x) >= (K - 1) * (w + 1) + 2 * kLanes)
      sixteen_windows<K>(from + 2 * x, w, base + 2 * x, some, best + x, place + x);
    else
      whole_windows<K, 2>(from + 2 * x, w, base + 2 * x, some, best + x, place + x);
  }
}

void any_windows(const float* from, int w, int base, int count, const Window& s, float* best, int* place) {
  for (int x = 0; x < count; ++x) {
    const int k = static_cast<int>(s.kernel), left = x * static_cast<int>(s.stride);
    largest(from, w, 0, k, left, left + k, best + x, place + x);
    place[x] += base;
  }
}

// `end` is where the tensor ends: vectors may read past a row, but not past that.
void pool_plane(const float* plane, const float* end, const Window& s, float* best, int* place) {
  const int h = static_cast<int>(s.h), w = static_cast<int>(s.w), k = static_cast<int>(s.kernel);
  const int stride = static_cast<int>(s.stride), padding = static_cast<int>(s.padding);
  const int ow = static_cast<int>(s.out_w());
  const int first = (padding + stride - 1) / stride, count = std::max(0, (w - k + padding) / stride + 1 - first);
  for (int y = 0; y < s.out_h(); ++y, best += ow, place += ow) {
    const int top = y * stride - padding, start = top * w + first * stride - padding;
    const bool whole = top >= 0 && top + k <= h;
    if (whole && k == 2 && stride == 2)
      row_of_windows<2>(plane + start, end, w, start, count, best + first, place + first);
    else if (whole && k == 3 && stride == 2)
      row_of_windows<3>(plane + start, end, w, start, count, best + first, place + first);
    else if (whole)
      any_windows(plane + start, w, start, count, s, best + first, place + first);
    for (int x = 0; x < ow; ++x) {
      if (whole && x == first) x += count;  // done above
      if (x >= ow) break;
      const int left = x * stride - padding;
      largest(plane, w, std::max(0, top), std::min(h, top + k), std::max(0, left), std::min(w, left + k), best + x,
              place + x);
    }
  }
}

std::pair<Tensor, Tensor> max_pool_of(const Tensor& images, int64_t kernel, int64_t stride, int64_t padding) {
  const Tensor x = images.contiguous();
  const Window s{x.size(2), x.size(3), kernel, stride, padding};
  const int64_t planes = x.size(0) * x.size(1), size = s.out_h() * s.out_w();
  Tensor values = at::empty({x.size(0), x.size(1), s.out_h(), s.out_w()}, x.options());
  Tensor places = at::empty(values.sizes(), x.options().dtype(at::kInt));
  const float* from = x.const_data_ptr<float>();
  float* best = values.mutable_data_ptr<float>();
  int* place = places.mutable_data_ptr<int>();
  for (int64_t plane = 0; plane < planes; ++plane)
    pool_plane(from + plane * s.h * s.w, from + planes * s.h * s.w, s, best + plane * size, place + plane * size);
  return {values, places};
}

Tensor scatter_of(const Tensor& gradients, const Tensor& places, int64_t h, int64_t w) {
  const Tensor g = gradients.contiguous();
  Tensor out = at::zeros({g.size(0), g.size(1), h, w}, g.options());
  const int64_t planes = g.size(0) * g.size(1), size = g.size(2) * g.size(3);
  const float* from = g.const_data_ptr<float>();
  const int* place = places.const_data_ptr<int>();
  float* to = out.mutable_data_ptr<float>();
  for (int64_t plane = 0; plane < planes; ++plane)
    for (int64_t i = plane * size; i < (plane + 1) * size; ++i) to[plane * h * w + place[i]] += from[i];
  return out;
}

Tensor gather_of(const Tensor& images, const Tensor& places) {
  const Tensor x = images.contiguous();
  Tensor out = at::empty(places.sizes(), x.options());
  const int64_t planes = x.size(0) * x.size(1), size = places.size(2) * places.size(3), plane_size = x.size(2) * x.size(3);
  const float* from = x.const_data_ptr<float>();
  const int* place = places.const_data_ptr<int>();
  float* to = out.mutable_data_ptr<float>();
  for (int64_t plane = 0; plane < planes; ++plane)
    for (int64_t i = plane * size; i < (plane + 1) * size; ++i) to[i] = from[plane * plane_size + place[i]];
  return out;
}

// Picking out places and putting back into them are each other's derivative.
struct Gather : Function<Gather> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& places);
  static variable_list backward(AutogradContext* ctx, variable_list gradients);
};

struct Scatter : Function<Scatter> {
  static Tensor forward(AutogradContext* ctx, const Tensor& g, const Tensor& places, int64_t h, int64_t w) {
    ctx->saved_data["places"] = places;
    return scatter_of(g, places, h, w);
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    return {Gather::apply(gradients[0], ctx->saved_data["places"].toTensor()), {}, {}, {}};
  }
};

Tensor Gather::forward(AutogradContext* ctx, const Tensor& x, const Tensor& places) {
  ctx->saved_data["places"] = places;
  ctx->saved_data["size"] = std::vector<int64_t>{x.size(2), x.size(3)};
  return gather_of(x, places);
}

variable_list Gather::backward(AutogradContext* ctx, variable_list gradients) {
  const auto size = ctx->saved_data["size"].toIntVector();
  return {Scatter::apply(gradients[0], ctx->saved_data["places"].toTensor(), size[0], size[1]), {}};
}

struct MaxPool : Function<MaxPool> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, int64_t k, int64_t stride, int64_t padding) {
    auto [values, places] = max_pool_of(x, k, stride, padding);
    ctx->saved_data["places"] = places;
    ctx->saved_data["size"] = std::vector<int64_t>{x.size(2), x.size(3)};
    return values;
  }
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto size = ctx->saved_data["size"].toIntVector();
    return {Scatter::apply(gradients[0], ctx->saved_data["places"].toTensor(), size[0], size[1]), {}, {}, {}};
  }
};

// ---------------------------------------------------------------------------------------------------- registration

void check_plain(const Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.dim() == 4 && tensor.scalar_type() == at::kFloat && tensor.is_cpu(), name,
              " must be four-dimensional float32 in a CPU's memory");
}

Tensor conv2d(const Tensor& images, const Tensor& weights, const std::optional<Tensor>& bias, int64_t ph, int64_t pw) {
  check_plain(images, "images");
  check_plain(weights, "weights");
  TORCH_CHECK(images.size(1) == weights.size(1), "images have ", images.size(1), " channels, weights expect ",
              weights.size(1));
  TORCH_CHECK(ph >= 0 && pw >= 0 && images.size(2) + 2 * ph >= weights.size(2) &&
                  images.size(3) + 2 * pw >= weights.size(3) && weights.numel() > 0,
              "the kernel is larger than the padded images");
  TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weights.size(0) && bias->scalar_type() == at::kFloat),
              "bias must have one float32 for each output channel");
  return Convolution::apply(images, weights, bias, ph, pw);
}

Tensor max_pool2d(const Tensor& images, int64_t kernel, int64_t stride, int64_t padding) {
  check_plain(images, "images");
  TORCH_CHECK(kernel > 0 && stride > 0 && padding >= 0 && 2 * padding <= kernel &&
                  std::min(images.size(2), images.size(3)) + 2 * padding >= kernel,
              "the window does not fit the images");
  TORCH_CHECK(images.size(2) * images.size(3) <= std::numeric_limits<int>::max(), "the images are too large");
  return MaxPool::apply(images, kernel, stride, padding);
}

}  // namespace

TORCH_LIBRARY(datadistill, library) {
  library.def("conv2d(Tensor images, Tensor weights, Tensor? bias, int ph, int pw) -> Tensor", conv2d);
  library.def("max_pool2d(Tensor images, int kernel, int stride, int padding) -> Tensor", max_pool2d);
}
