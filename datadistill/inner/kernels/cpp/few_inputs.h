// Convolution from few channels into many, and its data gradient, for layers whose answers have channels as their
// innermost dimension: the first layer of most networks for images. Of the weight gradient the library loses less.
//
// General libraries fill a register with input channels, of which there are one or three. Here it holds neighbouring
// output channels of one pixel, and the inputs, which are few, are read one number at a time. What is left is about
// the time that memory takes for the answer.

#pragma once

#include "common.h"

namespace {

constexpr int kAcross = kRegisters / 8;   // vectors of channels in a tile
constexpr int kTilePixels = 5;            // pixels of a row whose sums are in registers together

// Output channels in turn: work(V, first channel, lanes) for V whole vectors, then half as many, and at last for one
// with as many lanes as are left.
template <int V, typename Work>
inline void for_channels(int64_t o, int64_t end, const Work& work) {
  for (; o + V * kLanes <= end; o += V * kLanes) work(std::integral_constant<int, V>(), o, kLanes);
  if constexpr (V > 1)
    for_channels<V / 2>(o, end, work);
  else if (o < end)
    work(std::integral_constant<int, 1>(), o, end - o);
}

// Where each tap of a kernel reads, from the place of an output, in padded planes.
std::vector<int64_t> tap_offsets(const Shape& s) {
  std::vector<int64_t> offsets;
  for (int64_t c = 0; c < s.c; ++c)
    for (int64_t i = 0; i < s.kh; ++i)
      for (int64_t j = 0; j < s.kw; ++j) offsets.push_back(c * s.plane() + i * s.row() + j);
  return offsets;
}

// P pixels of a row, V vectors of channels; taps[k * stride + channel].
template <int P, int V>
inline void row_tile(const float* in, const std::vector<int64_t>& offsets, const float* taps, int64_t stride,
                     const float* bias, float* out, int64_t lanes) {
  Vec sums[P][V];
  UNROLLED for (int v = 0; v < V; ++v) {
    const Vec from = bias ? Vec::loadu(bias + v * kLanes, lanes) : Vec(0.0f);
    UNROLLED for (int p = 0; p < P; ++p) sums[p][v] = from;
  }
  for (size_t k = 0; k < offsets.size(); ++k) {
    const float* at = in + offsets[k];
    Vec tap[V];
    UNROLLED for (int v = 0; v < V; ++v) tap[v] = Vec::loadu(taps + k * stride + v * kLanes, lanes);
    UNROLLED for (int p = 0; p < P; ++p) {
      const Vec factor(at[p]);
      UNROLLED for (int v = 0; v < V; ++v) sums[p][v] = fmadd(tap[v], factor, sums[p][v]);
    }
  }
  UNROLLED for (int p = 0; p < P; ++p)
    UNROLLED for (int v = 0; v < V; ++v) sums[p][v].store(out + p * stride + v * kLanes, lanes);
}

// Weights as [taps, output channels].
Floats by_tap(const Shape& s, const float* weights) {
  Floats taps(s.taps() * s.o);
  for (int64_t o = 0; o < s.o; ++o)
    for (int64_t k = 0; k < s.taps(); ++k) taps[k * s.o + o] = weights[o * s.taps() + k];
  return taps;
}

void few_inputs(const Shape& s, const float* images, const float* weights, const float* bias, float* out) {
  const auto offsets = tap_offsets(s);
  const Floats by_taps = by_tap(s, weights);
  const float* taps = by_taps.data();
  shared(s.n, s.o * s.taps() * s.out_h() * s.out_w(), [&](int64_t begin, int64_t end) {
    Floats padded(s.c * s.plane());
    for (int64_t n = begin; n < end; ++n) {
      pad(images + n * s.c * s.h * s.w, s, padded.data());
      for (int64_t y = 0; y < s.out_h(); ++y) {
        const float* in = padded.data() + y * s.row();
        float* row = out + (n * s.out_h() + y) * s.out_w() * s.o;
        for_channels<kAcross>(0, s.o, [&]<int V>(std::integral_constant<int, V>, int64_t o, int64_t lanes) {
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

// P pixels of a row of the images' gradient in C channels: products with all output channels, which are added up last.
template <int C, int P>
inline void pixels_of_row(const Shape& s, const float* gradients, int64_t row, const float* taps, float* out) {
  const int64_t count = s.kh * s.kw;
  Vec sums[C][P];
  for (int64_t i = 0; i < s.kh; ++i)
    for (int64_t j = 0; j < s.kw; ++j) {
      const float* tap = taps + (count - 1 - i * s.kw - j) * s.o;
      const float* at = gradients + i * row + j * s.o;
      for_channels<1>(0, s.o, [&](auto, int64_t o, int64_t lanes) {
        Vec factor[C];
        UNROLLED for (int c = 0; c < C; ++c) factor[c] = Vec::loadu(tap + c * count * s.o + o, lanes);
        UNROLLED for (int p = 0; p < P; ++p) {
          const Vec g = Vec::loadu(at + p * s.o + o, lanes);
          UNROLLED for (int c = 0; c < C; ++c) sums[c][p] = fmadd(factor[c], g, sums[c][p]);
        }
      });
    }
  UNROLLED for (int c = 0; c < C; ++c)
    UNROLLED for (int p = 0; p < P; ++p) out[c * s.h * s.w + p] = sum(sums[c][p]);
}

template <int C>
void rows_of_image(const Shape& s, const float* gradients, int64_t row, const float* taps, float* out) {
  constexpr int kPixels = std::min(6, (kRegisters - 2 - C) / C);
  for (int64_t y = 0; y < s.h; ++y) {
    const float* in = gradients + y * row;
    int64_t x = 0;
    for (; x + kPixels <= s.w; x += kPixels) pixels_of_row<C, kPixels>(s, in + x * s.o, row, taps, out + y * s.w + x);
    for (; x < s.w; ++x) pixels_of_row<C, 1>(s, in + x * s.o, row, taps, out + y * s.w + x);
  }
}

using RowsOfImage = void (*)(const Shape&, const float*, int64_t, const float*, float*);
constexpr RowsOfImage kRowsOfImage[] = {rows_of_image<1>, rows_of_image<2>, rows_of_image<3>, rows_of_image<4>};

// `s` is the shape of the convolution itself. What more padding than the kernel needs gave is cut off.
void few_inputs_data_gradient(const Shape& s, const float* gradients, const float* weights, float* out) {
  const int64_t above = s.kh - 1 - s.ph, before = s.kw - 1 - s.pw;
  const int64_t cut_h = std::max<int64_t>(0, -above), cut_w = std::max<int64_t>(0, -before);
  const int64_t row = (s.out_w() + 2 * before) * s.o;
  const Floats taps = by_tap(s, weights);
  shared(s.n, s.taps() * s.o * s.h * s.w, [&](int64_t begin, int64_t end) {
    Floats padded((s.out_h() + 2 * above) * row);
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t y = cut_h; y < s.out_h() - cut_h; ++y)
        copy_row(padded.data() + (y + above) * row + (before + cut_w) * s.o,
                 gradients + ((n * s.out_h() + y) * s.out_w() + cut_w) * s.o, (s.out_w() - 2 * cut_w) * s.o);
      kRowsOfImage[s.c - 1](s, padded.data(), row, taps.data(), out + n * s.c * s.h * s.w);
    }
  });
}

}  // namespace
