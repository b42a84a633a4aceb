// Where the maxima of a max pooling with stride 2 lie: with them it is `gather`, which PyTorch differentiates.

#pragma once

#include "common.h"

namespace {

// A row of outputs, a vector at a time, from a padded plane. As in PyTorch the first of equals counts, and NaN wins.
void row_of_maxima(const float* padded, int64_t row, int64_t kernel, int64_t top, int64_t padding, int64_t w,
                   int64_t count, int64_t* places) {
  const float first = static_cast<float>(std::max<int64_t>(top, 0) * w);
  for (int64_t x = 0; x < count; x += kLanes) {
    const Vec left = Vec::arange(static_cast<float>(2 * x - padding), 2.0f);
    Vec most(-std::numeric_limits<float>::infinity()), place = at::vec::clamp_min(left, Vec(0.0f)) + Vec(first);
    for (int64_t i = 0; i < kernel; ++i)
      for (int64_t j = 0; j < kernel; ++j) {
        const float* from = padded + i * row + j + 2 * x;
        const Vec value = at::vec::deinterleave2(Vec::loadu(from), Vec::loadu(from + kLanes)).first;
        const Vec better = (value > most) | (value != value);
        most = Vec::blendv(most, value, better);
        place = Vec::blendv(place, left + Vec(static_cast<float>((top + i) * w + j)), better);
      }
    float found[kLanes];
    place.store(found);
    for (int64_t lane = 0; lane < std::min(kLanes, count - x); ++lane)
      places[x + lane] = static_cast<int64_t>(found[lane]);
  }
}

// For each output its place in the plane of h x w, as an index for `gather`.
Tensor maxima(const Tensor& images, int64_t kernel, int64_t padding) {
  const Tensor x = images.contiguous();
  const int64_t planes = x.size(0) * x.size(1), h = x.size(2), w = x.size(3), row = w + 2 * padding;
  const int64_t out_h = (h + 2 * padding - kernel) / 2 + 1, out_w = (w + 2 * padding - kernel) / 2 + 1;
  TORCH_CHECK(2 * padding <= kernel && std::min(h, w) + 2 * padding >= kernel, "the window does not fit the images");
  TORCH_CHECK(h * w < 1 << 24, "places in planes of ", h, " x ", w, " are no whole numbers in single precision");
  Tensor out = at::empty({x.size(0), x.size(1), out_h * out_w}, x.options().dtype(at::kLong));
  const float* from = x.const_data_ptr<float>();
  int64_t* places = out.mutable_data_ptr<int64_t>();
  shared(planes, out_h * out_w * kernel * kernel, [&](int64_t first, int64_t last) {
    Floats padded((h + 2 * padding) * row + kernel + 4 * kLanes, -std::numeric_limits<float>::infinity());
    for (int64_t plane = first; plane < last; ++plane) {
      for (int64_t y = 0; y < h; ++y)
        copy_row(padded.data() + (y + padding) * row + padding, from + (plane * h + y) * w, w);
      for (int64_t y = 0; y < out_h; ++y)
        row_of_maxima(padded.data() + 2 * y * row, row, kernel, 2 * y - padding, padding, w, out_w,
                      places + (plane * out_h + y) * out_w);
    }
  });
  return out;
}

}  // namespace
