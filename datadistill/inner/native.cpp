// Convolution, linear layers, max pooling and response norm on a CPU, in float32, differentiable any number of times.
//
// General libraries lay channels out in blocks as wide as a vector register, so a layer with 1 or 6 channels leaves most
// of each register empty, and their pooling is scalar. Here a register holds neighbouring positions of one plane
// instead. A padded plane is read as one long row: with row length Wp, output (y, x) lies at p = y * Wp + x and needs
// inputs p + i * Wp + j, so a register is filled by one unaligned load for every tap (i, j). The Wp - Wo positions at
// the end of a row are computed for nothing and dropped.
//
// Convolution, its data gradient and its weight gradient are each bilinear, and the derivatives of any one are the
// other two: that closes the set under differentiation, which is what a hypergradient needs. With many channels the
// library does each of the three. A linear layer is the same without neighbours.
//
// Inner loops of fixed length are unrolled by order: left to themselves compilers keep the sums in memory.

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// ---------------------------------------------------------------------------------------------------- registers

constexpr int64_t kLanes = 16;
constexpr int64_t kMostVectors = 8;   // vectors of positions in a tile
constexpr int64_t kImageBlock = 16;   // images whose weight gradients are added up together
constexpr int64_t kShare = 1 << 18;   // multiplications that are worth another core
constexpr int64_t kFewChannels = 16;  // on either side, below which the convolutions here beat the library's,
constexpr int64_t kFewPlanes = 16;    // and output planes up to which their weight gradient does

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float))));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

// The first `count` lanes: the others are read as zero, and not written.
inline Vector load_some(const float* from, int64_t count) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#else
  Vector value{};
  std::memcpy(&value, from, count * sizeof(float));
  return value;
#endif
}

inline void store_some(float* to, Vector value, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), value);
#else
  std::memcpy(to, &value, count * sizeof(float));
#endif
}

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

// Shares out [0, count) among the cores that PyTorch may use, where each index costs so many multiplications.
template <typename Work>
void shared(int64_t count, int64_t cost, const Work& work) {
  at::parallel_for(0, count, std::max<int64_t>(1, kShare / std::max<int64_t>(1, cost)), work);
}

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

// ---------------------------------------------------------------------------------------------------- linear layers

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

// ---------------------------------------------------------------------------------------------------- tensors

Shape shape_of(const Tensor& images, at::IntArrayRef weights, int64_t ph, int64_t pw) {
  return {images.size(0), images.size(1), images.size(2), images.size(3), weights[0], weights[2], weights[3], ph, pw};
}

bool is_wide(const Tensor& weights) { return std::min(weights.size(0), weights.size(1)) >= kFewChannels; }

// One of the two derivatives of PyTorch's convolution.
Tensor library_gradient(const Tensor& g, const Tensor& x, const Tensor& w, int64_t ph, int64_t pw, bool of_weights) {
  const auto found = at::convolution_backward(g, x, w, std::nullopt, {1, 1}, {ph, pw}, {1, 1}, false, {0, 0}, 1,
                                              {!of_weights, of_weights, false});
  return of_weights ? std::get<1>(found) : std::get<0>(found);
}

Tensor forward_of(const Tensor& images, const Tensor& weights, const std::optional<Tensor>& bias, int64_t ph, int64_t pw) {
  if (is_wide(weights)) return at::convolution(images, weights, bias, {1, 1}, {ph, pw}, {1, 1}, false, {0, 0}, 1);
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
  if (is_wide(weights)) {
    const int64_t h = gradients.size(2) + weights.size(2) - 1 - 2 * ph;
    const int64_t width = gradients.size(3) + weights.size(3) - 1 - 2 * pw;
    const Tensor x = at::empty({gradients.size(0), weights.size(1), h, width}, gradients.options());  // never read
    return library_gradient(gradients, x, weights, ph, pw, false);
  }
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
  if (is_wide(out) || g.size(1) > kFewPlanes) return library_gradient(g, x, out, ph, pw, true);
  weight_gradient(shape_of(x, out.sizes(), ph, pw), x.const_data_ptr<float>(), g.const_data_ptr<float>(),
                  out.mutable_data_ptr<float>());
  return out;
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
  shared(planes, size * kernel * kernel, [&](int64_t first, int64_t last) {
    for (int64_t plane = first; plane < last; ++plane)
      pool_plane(from + plane * s.h * s.w, from + planes * s.h * s.w, s, best + plane * size, place + plane * size);
  });
  return {values, places};
}

Tensor scatter_of(const Tensor& gradients, const Tensor& places, int64_t h, int64_t w) {
  const Tensor g = gradients.contiguous();
  Tensor out = at::empty({g.size(0), g.size(1), h, w}, g.options());
  const int64_t planes = g.size(0) * g.size(1), size = g.size(2) * g.size(3);
  const float* from = g.const_data_ptr<float>();
  const int* place = places.const_data_ptr<int>();
  float* to = out.mutable_data_ptr<float>();
  shared(planes, h * w, [&](int64_t first, int64_t last) {
    for (int64_t plane = first; plane < last; ++plane) {
      std::memset(to + plane * h * w, 0, h * w * sizeof(float));
      for (int64_t i = plane * size; i < (plane + 1) * size; ++i) to[plane * h * w + place[i]] += from[i];
    }
  });
  return out;
}

Tensor gather_of(const Tensor& images, const Tensor& places) {
  const Tensor x = images.contiguous();
  Tensor out = at::empty(places.sizes(), x.options());
  const int64_t planes = x.size(0) * x.size(1), size = places.size(2) * places.size(3), plane_size = x.size(2) * x.size(3);
  const float* from = x.const_data_ptr<float>();
  const int* place = places.const_data_ptr<int>();
  float* to = out.mutable_data_ptr<float>();
  shared(planes, size, [&](int64_t first, int64_t last) {
    for (int64_t plane = first; plane < last; ++plane)
      for (int64_t i = plane * size; i < (plane + 1) * size; ++i) to[i] = from[plane * plane_size + place[i]];
  });
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

// ---------------------------------------------------------------------------------------------------- local response norm

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

// ---------------------------------------------------------------------------------------------------- registration

void check_plain(const Tensor& tensor, const char* name, int64_t dimensions) {
  TORCH_CHECK(tensor.dim() == dimensions && tensor.scalar_type() == at::kFloat && tensor.is_cpu(), name, " must have ",
              dimensions, " dimensions and be float32 in a CPU's memory");
}

void check_bias(const std::optional<Tensor>& bias, int64_t outputs) {
  TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == outputs && bias->scalar_type() == at::kFloat),
              "bias must have one float32 for each output");
}

Tensor conv2d(const Tensor& images, const Tensor& weights, const std::optional<Tensor>& bias, int64_t ph, int64_t pw) {
  check_plain(images, "images", 4);
  check_plain(weights, "weights", 4);
  TORCH_CHECK(images.size(1) == weights.size(1), "images have ", images.size(1), " channels, weights expect ",
              weights.size(1));
  TORCH_CHECK(ph >= 0 && pw >= 0 && images.size(2) + 2 * ph >= weights.size(2) &&
                  images.size(3) + 2 * pw >= weights.size(3) && weights.numel() > 0,
              "the kernel is larger than the padded images");
  check_bias(bias, weights.size(0));
  return Convolution::apply(images, weights, bias, ph, pw);
}

Tensor linear_layer(const Tensor& rows, const Tensor& weights, const std::optional<Tensor>& bias) {
  check_plain(rows, "rows", 2);
  check_plain(weights, "weights", 2);
  TORCH_CHECK(rows.size(1) == weights.size(1), "rows have ", rows.size(1), " numbers, weights expect ",
              weights.size(1));
  check_bias(bias, weights.size(0));
  return Linear::apply(rows, weights, bias);
}

Tensor max_pool2d(const Tensor& images, int64_t kernel, int64_t stride, int64_t padding) {
  check_plain(images, "images", 4);
  TORCH_CHECK(kernel > 0 && stride > 0 && padding >= 0 && 2 * padding <= kernel &&
                  std::min(images.size(2), images.size(3)) + 2 * padding >= kernel,
              "the window does not fit the images");
  TORCH_CHECK(images.size(2) * images.size(3) <= std::numeric_limits<int>::max(), "the images are too large");
  return MaxPool::apply(images, kernel, stride, padding);
}

Tensor local_response_norm(const Tensor& images, double scale, int64_t before, int64_t after) {
  check_plain(images, "images", 4);
  TORCH_CHECK(scale >= 0 && before >= 0 && after >= 0, "scale and neighbours must not be negative");
  return Norm::apply(images, scale, before, after);
}

}  // namespace

TORCH_LIBRARY(datadistill, library) {
  library.def("conv2d(Tensor images, Tensor weights, Tensor? bias, int ph, int pw) -> Tensor", conv2d);
  library.def("linear(Tensor rows, Tensor weights, Tensor? bias) -> Tensor", linear_layer);
  library.def("local_response_norm(Tensor images, float scale, int before, int after) -> Tensor", local_response_norm);
  library.def("max_pool2d(Tensor images, int kernel, int stride, int padding) -> Tensor", max_pool2d);
}
