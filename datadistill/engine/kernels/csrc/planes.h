// Convolution with few channels, and its gradient of the weights.
//
// General libraries lay channels out in blocks as wide as a vector register, so a layer with 1 or 6 channels leaves
// most of each register empty. Here a register holds neighbouring positions of one plane instead, filled by one
// unaligned load for every tap. Only the gradient of the weights has output channels in its registers, where they fill
// them: then no position between two rows is computed for nothing, and no sum goes across a register.

#pragma once

#include "common.h"

namespace {

constexpr int64_t kImageBlock = 16;                               // images whose weight gradients are added up together
constexpr int kMostPlanes = std::min(8, kRegisters / 2 - 2);      // output planes of a tile,
constexpr int kMostTaps = 5, kMostRows = (kRegisters - 2) / (kMostTaps + 1);  // taps and output planes of a gradient's

// O output planes of one image, V vectors at a time.
template <int O, int V = wide(O)>
void convolve_tile(const Shape& s, const float* padded, const float* taps, const float* bias, float* out) {
  const int64_t positions = s.positions(), row = s.row(), plane = s.plane(), out_plane = s.out_plane();
  for (int64_t p = 0; p < positions; p += kLanes * V) {
    Vec sums[O][V];
    UNROLLED for (int o = 0; o < O; ++o)
      UNROLLED for (int v = 0; v < V; ++v) sums[o][v] = Vec(bias ? bias[o] : 0.0f);
    // Of the kernel's rows, those that meet more than the border.
    const int64_t top = std::max<int64_t>(0, s.ph - (p + kLanes * V - 1) / row);
    const int64_t end = std::min(s.kh, s.ph + s.h - p / row);
    int64_t tap = top * s.kw * O;
    for (int64_t c = 0; c < s.c; ++c, tap += (s.kh - end + top) * s.kw * O)
      for (int64_t i = top; i < end; ++i) {
        const float* from = padded + c * plane + p + i * row;
        for (int64_t j = 0; j < s.kw; ++j, tap += O) {
          Vec in[V];
          UNROLLED for (int v = 0; v < V; ++v) in[v] = Vec::loadu(from + j + v * kLanes);
          UNROLLED for (int o = 0; o < O; ++o) {
            const Vec factor(taps[tap + o]);
            UNROLLED for (int v = 0; v < V; ++v) sums[o][v] = fmadd(in[v], factor, sums[o][v]);
          }
        }
      }
    UNROLLED for (int o = 0; o < O; ++o)
      UNROLLED for (int v = 0; v < V; ++v) sums[o][v].store(out + o * out_plane + p + v * kLanes);
  }
}

constexpr std::array kTiles = []<int... O>(std::integer_sequence<int, O...>) {
  return std::array{&convolve_tile<O + 1>...};
}(std::make_integer_sequence<int, kMostPlanes>());

// Calls work(first, count) for nearly equal parts of [0, total), of at most so many.
template <typename Work>
void in_parts(int64_t total, int64_t most, const Work& work) {
  const int64_t parts = (total + most - 1) / most;
  for (int64_t part = 0; part < parts; ++part)
    work(total * part / parts, total * (part + 1) / parts - total * part / parts);
}

// weights[o * stride_o + c * stride_c + i * kw + j], with the kernel turned by 180 degrees if `turned`.
void convolve(const Shape& s, const float* images, const float* weights, int64_t stride_o, int64_t stride_c,
              bool turned, const float* bias, float* out) {
  Floats taps(s.o * s.taps());
  float* tap = taps.data();
  in_parts(s.o, kMostPlanes, [&](int64_t first, int64_t count) {
    for (int64_t c = 0; c < s.c; ++c)
      for (int64_t k = 0; k < s.kh * s.kw; ++k)
        for (int64_t o = first; o < first + count; ++o)
          *tap++ = weights[o * stride_o + c * stride_c + (turned ? s.kh * s.kw - 1 - k : k)];
  });
  shared(s.n, s.o * s.taps() * s.positions(), [&](int64_t begin, int64_t end) {
    Floats padded(s.c * s.plane()), sums(kMostPlanes * s.out_plane());
    for (int64_t n = begin; n < end; ++n) {
      pad(images + n * s.c * s.h * s.w, s, padded.data());
      in_parts(s.o, kMostPlanes, [&](int64_t first, int64_t count) {
        kTiles[count - 1](s, padded.data(), taps.data() + first * s.taps(), bias ? bias + first : nullptr, sums.data());
        for (int64_t o = 0; o < count; ++o)
          for (int64_t y = 0; y < s.out_h(); ++y)
            copy_row(out + ((n * s.o + first + o) * s.out_h() + y) * s.out_w(),
                     sums.data() + o * s.out_plane() + y * s.row(), s.out_w());
      });
    }
  });
}

// O rows of gradients and J neighbouring taps, added up over all positions of some images: a row is an output plane, or
// (C) a register of channels at each position of one.
template <bool C, int O, int J>
void weight_tile(const Shape& s, int64_t images, const float* gradients, const float* padded, float* out) {
  const int64_t plane = s.gradient_plane(C), rows = C ? s.out_h() : 1, width = C ? s.out_w() : plane;
  Vec sums[O][J];
  for (int64_t n = 0; n < images; ++n, gradients += s.o * plane, padded += s.c * s.plane())
    for (int64_t y = 0; y < rows; ++y)
      for (int64_t x = 0; x < width; x += C ? 1 : kLanes) {
        const float *from = gradients + (C ? (y * width + x) * kLanes : x), *at = padded + y * s.row() + x;
        Vec in[O];
        UNROLLED for (int o = 0; o < O; ++o) in[o] = Vec::loadu(from + o * plane * (C ? kLanes : 1));
        UNROLLED for (int j = 0; j < J; ++j) {
          const Vec value = C ? Vec(at[j]) : Vec::loadu(at + j);
          UNROLLED for (int o = 0; o < O; ++o) sums[o][j] = fmadd(in[o], value, sums[o][j]);
        }
      }
  UNROLLED for (int j = 0; j < J; ++j)
    UNROLLED for (int o = 0; o < O; ++o) {
      float* at = out + j * s.o + o * (C ? kLanes : 1);
      if constexpr (C) (Vec::loadu(at) + sums[o][j]).store(at);
      else *at += at::vec::vec_reduce_all<float>(std::plus<Vec>(), sums[o][j]);
    }
}

template <bool C>
constexpr std::array kWeightTiles = []<int... K>(std::integer_sequence<int, K...>) {
  return std::array{&weight_tile<C, K / kMostTaps + 1, K % kMostTaps + 1>...};
}(std::make_integer_sequence<int, kMostRows * kMostTaps>());

// The gradients of output planes from `begin` on, of which `s` has its share and the images have `all`.
template <bool C>
void weight_rows(const Shape& s, int64_t all, int64_t begin, const float* images, const float* gradients, float* out) {
  const int64_t plane = s.gradient_plane(C), most = std::min(kImageBlock, s.n), unit = C ? kLanes : 1;
  // What lies between the rows stays zero.
  Floats padded(most * s.c * s.plane()), spread(most * s.o * plane), found(s.taps() * s.o);
  for (int64_t first = 0; first < s.n; first += kImageBlock) {
    const int64_t count = std::min(kImageBlock, s.n - first);
    for (int64_t n = 0; n < count; ++n) {
      pad(images + (first + n) * s.c * s.h * s.w, s, padded.data() + n * s.c * s.plane());
      for (int64_t o = 0; o < s.o; o += unit) {
        const float* from = gradients + ((first + n) * all + begin + o) * s.out_h() * s.out_w();
        float* to = spread.data() + (n * s.o + o) * plane;
        if constexpr (C) turn(from, plane, to);
        else for (int64_t y = 0; y < s.out_h(); ++y) copy_row(to + y * s.row(), from + y * s.out_w(), s.out_w());
      }
    }
    in_parts(s.o / unit, kMostRows, [&](int64_t o, int64_t rows) {
      for (int64_t c = 0; c < s.c; ++c)
        for (int64_t i = 0; i < s.kh; ++i)
          for (int64_t j = 0; j < s.kw; j += kMostTaps)
            kWeightTiles<C>[(rows - 1) * kMostTaps + std::min<int64_t>(kMostTaps, s.kw - j) - 1](
                s, count, spread.data() + o * unit * plane, padded.data() + c * s.plane() + i * s.row() + j,
                found.data() + ((c * s.kh + i) * s.kw + j) * s.o + o * unit);
    });
  }
  for (int64_t o = 0; o < s.o; ++o)
    for (int64_t tap = 0; tap < s.taps(); ++tap) out[o * s.taps() + tap] = found[tap * s.o + o];
}

void planes_weight_gradient(const Shape& s, const float* images, const float* gradients, float* out) {
  const bool channels = s.o % kLanes == 0;
  const int64_t unit = channels ? kLanes : kMostRows;
  shared((s.o + unit - 1) / unit, unit * s.n * s.taps() * s.positions(), [&](int64_t from, int64_t to) {
    Shape part = s;
    part.o = std::min(to * unit, s.o) - from * unit;
    (channels ? weight_rows<true> : weight_rows<false>)(part, s.o, from * unit, images, gradients,
                                                        out + from * unit * s.taps());
  });
}

}  // namespace
