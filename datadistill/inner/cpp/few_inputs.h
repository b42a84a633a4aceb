// Convolution from few channels into many, and its two derivatives, for layers whose answers have channels as their
// innermost dimension: the first layer of most networks for images.
//
// General libraries fill a register with input channels, of which there are one or three. Here it holds neighbouring
// output channels of one pixel, and the inputs, which are few, are read one number at a time. What is left is about
// the time that memory takes for the answer.

#pragma once

#include "shape.h"

namespace {

constexpr int64_t kFewInputs = 4;  // channels up to which these are used
constexpr int kTilePixels = 5;     // pixels of a row whose sums are in registers together
constexpr int kTapTile = 6;        // taps whose gradients are

// Output channels in turn: work(V, first channel, lanes) for V whole vectors, then half as many, and at last for one with
// as many lanes as are left.
template <int V, typename Work>
inline void for_channels(int64_t o, int64_t end, const Work& work) {
  for (; o + V * kLanes <= end; o += V * kLanes) work(std::integral_constant<int, V>(), o, kLanes);
  if constexpr (V > 1)
    for_channels<V / 2>(o, end, work);
  else if (o < end)
    work(std::integral_constant<int, 1>(), o, end - o);
}

inline Vector load_lanes(const float* from, int64_t lanes) {
  return lanes == kLanes ? load(from) : load_some(from, lanes);
}

inline void store_lanes(float* to, Vector value, int64_t lanes) {
  lanes == kLanes ? store(to, value) : store_some(to, value, lanes);
}

// Where each tap of a kernel reads, from the place of an output, in padded planes.
std::vector<int64_t> tap_offsets(const Shape& s) {
  std::vector<int64_t> found;
  for (int64_t c = 0; c < s.c; ++c)
    for (int64_t i = 0; i < s.kh; ++i)
      for (int64_t j = 0; j < s.kw; ++j) found.push_back(c * s.plane() + i * s.padded_w() + j);
  return found;
}

// P pixels of a row, V vectors of channels; taps[k * o + channel].
template <int P, int V>
inline void row_tile(const float* in, const std::vector<int64_t>& offsets, const float* taps, int64_t stride,
                     const float* bias, float* out, int64_t lanes) {
  Vector sums[P][V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    const Vector from = bias ? load_lanes(bias + v * kLanes, lanes) : Vector{};
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sums[p][v] = from;
  }
  for (size_t k = 0; k < offsets.size(); ++k) {
    const float* at = in + offsets[k];
    Vector tap[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) tap[v] = load_lanes(taps + k * stride + v * kLanes, lanes);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[p][v] += tap[v] * at[p];
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store_lanes(out + p * stride + v * kLanes, sums[p][v], lanes);
}

// Weights as [taps, output channels].
void by_tap(const Shape& s, const float* weights, float* taps) {
  const int64_t count = s.c * s.kh * s.kw;
  for (int64_t o = 0; o < s.o; ++o)
    for (int64_t k = 0; k < count; ++k) taps[k * s.o + o] = weights[o * count + k];
}

void few_inputs(const Shape& s, const float* images, const float* weights, const float* bias, float* out) {
  const auto offsets = tap_offsets(s);
  Buffer memory(offsets.size() * s.o);
  const float* taps = memory.data();
  by_tap(s, weights, memory.data());
  shared(s.n, s.o * offsets.size() * s.out_h() * s.out_w(), [&](int64_t begin, int64_t end) {
    Buffer padded(s.c * s.plane());
    std::memset(padded.data(), 0, s.c * s.plane() * sizeof(float));
    for (int64_t n = begin; n < end; ++n) {
      pad(images + n * s.c * s.h * s.w, s, padded.data());
      for (int64_t y = 0; y < s.out_h(); ++y) {
        const float* in = padded.data() + y * s.padded_w();
        float* row = out + (n * s.out_h() + y) * s.out_w() * s.o;
        for_channels<4>(0, s.o, [&]<int V>(std::integral_constant<int, V>, int64_t o, int64_t lanes) {
          const float* shift = bias ? bias + o : nullptr;
          int64_t x = 0;
          for (; x + kTilePixels <= s.out_w(); x += kTilePixels)
            row_tile<kTilePixels, V>(in + x, offsets, taps + o, s.o, shift, row + x * s.o + o, lanes);
          for (; x < s.out_w(); ++x)
            row_tile<1, V>(in + x, offsets, taps + o, s.o, shift, row + x * s.o + o, lanes);
        });
      }
    }
  });
}

// The gradients of T taps for V vectors of channels, added up over a row of outputs.
template <int T, int V>
void taps_of_row(const float* in, const int64_t* offsets, const float* gradients, int64_t stride, int64_t pixels,
                 int64_t lanes, float* out) {
  Vector sums[T][V];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[t][v] = load_lanes(out + t * stride + v * kLanes, lanes);
  for (int64_t x = 0; x < pixels; ++x) {
    Vector g[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) g[v] = load_lanes(gradients + x * stride + v * kLanes, lanes);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[t][v] += g[v] * in[offsets[t] + x];
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store_lanes(out + t * stride + v * kLanes, sums[t][v], lanes);
}

template <int V>
using TapsOfRow = void (*)(const float*, const int64_t*, const float*, int64_t, int64_t, int64_t, float*);

template <int V>
constexpr TapsOfRow<V> kTapsOfRow[kTapTile] = {
    taps_of_row<1, V>, taps_of_row<2, V>, taps_of_row<3, V>, taps_of_row<4, V>, taps_of_row<5, V>, taps_of_row<6, V>};

// Images are summed up one by one, and then in double precision. Each core has channels of its own.
void few_inputs_weight_gradient(const Shape& s, const float* images, const float* gradients, float* out) {
  constexpr int64_t kBlock = 4 * kLanes;
  const auto offsets = tap_offsets(s);
  const int64_t taps = offsets.size(), tiles = (taps + kTapTile - 1) / kTapTile;
  const int64_t blocks = (s.o + kBlock - 1) / kBlock;
  shared(blocks, s.n * taps * kBlock * s.out_h() * s.out_w(), [&](int64_t from, int64_t to) {
    const int64_t begin = from * kBlock, end = std::min(s.o, to * kBlock);
    Buffer padded(s.c * s.plane());
    std::memset(padded.data(), 0, s.c * s.plane() * sizeof(float));
    std::vector<float> sums(taps * s.o);
    std::vector<double> totals(taps * s.o);
    for (int64_t n = 0; n < s.n; ++n) {
      pad(images + n * s.c * s.h * s.w, s, padded.data());
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t y = 0; y < s.out_h(); ++y) {
        const float* in = padded.data() + y * s.padded_w();
        const float* row = gradients + (n * s.out_h() + y) * s.out_w() * s.o;
        for_channels<4>(begin, end, [&]<int V>(std::integral_constant<int, V>, int64_t o, int64_t lanes) {
          for (int64_t tile = 0, k = 0; tile < tiles; ++tile) {
            const int64_t count = (taps - k) / (tiles - tile);
            kTapsOfRow<V>[count - 1](in, offsets.data() + k, row + o, s.o, s.out_w(), lanes, sums.data() + k * s.o + o);
            k += count;
          }
        });
      }
      for (int64_t k = 0; k < taps; ++k)
        for (int64_t o = begin; o < end; ++o) totals[k * s.o + o] += sums[k * s.o + o];
    }
    for (int64_t o = begin; o < end; ++o)
      for (int64_t k = 0; k < taps; ++k) out[o * taps + k] = static_cast<float>(totals[k * s.o + o]);
  });
}

// P pixels of a row of the images' gradient in C channels: products with all output channels, which are added up last.
template <int C, int P>
inline void pixels_of_row(const Shape& s, const float* gradients, int64_t row, const float* taps, float* out) {
  const int64_t count = s.kh * s.kw;
  Vector sums[C][P] = {};
  for (int64_t i = 0; i < s.kh; ++i)
    for (int64_t j = 0; j < s.kw; ++j) {
      const float* tap = taps + (count - 1 - i * s.kw - j) * s.o;
      const float* at = gradients + i * row + j * s.o;
      for_channels<1>(0, s.o, [&](auto, int64_t o, int64_t lanes) {
        Vector factor[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) factor[c] = load_lanes(tap + c * count * s.o + o, lanes);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
          const Vector g = load_lanes(at + p * s.o + o, lanes);
#pragma GCC unroll 8
          for (int c = 0; c < C; ++c) sums[c][p] += factor[c] * g;
        }
      });
    }
  for (int c = 0; c < C; ++c)
    for (int p = 0; p < P; ++p) out[c * s.h * s.w + p] = sum(sums[c][p]);
}

template <int C>
void rows_of_image(const Shape& s, const float* gradients, int64_t row, const float* taps, float* out) {
  constexpr int kPixels = 6;
  for (int64_t y = 0; y < s.h; ++y) {
    const float* in = gradients + y * row;
    int64_t x = 0;
    for (; x + kPixels <= s.w; x += kPixels) pixels_of_row<C, kPixels>(s, in + x * s.o, row, taps, out + y * s.w + x);
    for (; x < s.w; ++x) pixels_of_row<C, 1>(s, in + x * s.o, row, taps, out + y * s.w + x);
  }
}

using RowsOfImage = void (*)(const Shape&, const float*, int64_t, const float*, float*);
constexpr RowsOfImage kRowsOfImage[kFewInputs] = {rows_of_image<1>, rows_of_image<2>, rows_of_image<3>,
                                                  rows_of_image<4>};

// `s` is the shape of the convolution itself. What more padding than the kernel needs gave is cut off.
void few_inputs_data_gradient(const Shape& s, const float* gradients, const float* weights, float* out) {
  const int64_t taps = s.kh * s.kw, above = s.kh - 1 - s.ph, before = s.kw - 1 - s.pw;
  const int64_t cut_h = std::max<int64_t>(0, -above), cut_w = std::max<int64_t>(0, -before);
  const int64_t row = (s.out_w() + 2 * before) * s.o;
  Buffer memory(s.c * taps * s.o);
  by_tap(s, weights, memory.data());
  shared(s.n, s.c * taps * s.o * s.h * s.w, [&](int64_t begin, int64_t end) {
    Buffer padded((s.out_h() + 2 * above) * row);
    std::memset(padded.data(), 0, (s.out_h() + 2 * above) * row * sizeof(float));
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t y = cut_h; y < s.out_h() - cut_h; ++y)
        std::memcpy(padded.data() + (y + above) * row + (before + cut_w) * s.o,
                    gradients + ((n * s.out_h() + y) * s.out_w() + cut_w) * s.o,
                    (s.out_w() - 2 * cut_w) * s.o * sizeof(float));
      kRowsOfImage[s.c - 1](s, padded.data(), row, memory.data(), out + n * s.c * s.h * s.w);
    }
  });
}

}  // namespace
