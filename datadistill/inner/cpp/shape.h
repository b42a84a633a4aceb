// What a convolution with stride 1 is of, and its images with their border.

#pragma once

#include "common.h"

namespace {

constexpr int64_t kMostVectors = 8;  // vectors of positions in a tile

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

}  // namespace
