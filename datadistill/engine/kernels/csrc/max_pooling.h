// Max pooling with stride 2: where the maxima lie, and the numbers that lie there.

#pragma once

#include "common.h"

namespace {

// A row of outputs, a vector at a time, from a padded plane. As in PyTorch the first of equals counts, and NaN wins.
template <int K>
void row_of_maxima(const float* padded, int64_t row, int64_t kernel, int64_t top, int64_t padding, int64_t w,
                   int64_t count, int32_t* places) {
  for (int64_t x = 0; x < count; x += kLanes) {
    const Vec column = Vec::arange(static_cast<float>(2 * x - padding), 2.0f);
    const Vec corner = column + Vec(static_cast<float>(top * w));
    Vec most(-std::numeric_limits<float>::infinity());
    Vec place = at::vec::clamp_min(column, Vec(0.0f)) + Vec(static_cast<float>(std::max<int64_t>(top, 0) * w));
    for (int64_t i = 0; i < (K ? K : kernel); ++i)
      for (int64_t j = 0; j < (K ? K : kernel); ++j) {
        const float* from = padded + i * row + j + 2 * x;
        const Vec value = at::vec::deinterleave2(Vec::loadu(from), Vec::loadu(from + kLanes)).first;
        const Vec better = (value > most) | (value != value);
        most = Vec::blendv(most, value, better);
        place = Vec::blendv(place, corner + Vec(static_cast<float>(i * w + j)), better);
      }
    at::vec::convert_to_int_of_same_size(place).store(places + x, std::min(kLanes, count - x));
  }
}

// For each output its place in the plane of h x w.
Tensor maxima(const Tensor& images, int64_t kernel, int64_t padding) {
  const Tensor x = images.contiguous();
  const int64_t planes = x.size(0) * x.size(1), h = x.size(2), w = x.size(3), row = w + 2 * padding;
  const int64_t out_h = (h + 2 * padding - kernel) / 2 + 1, out_w = (w + 2 * padding - kernel) / 2 + 1;
  TORCH_CHECK(2 * padding <= kernel && std::min(h, w) + 2 * padding >= kernel && h * w < 1 << 24,
              "the window does not fit the images, or places in them are no whole numbers in single precision");
  Tensor out = at::empty({x.size(0), x.size(1), out_h, out_w}, x.options().dtype(at::kInt));
  const float* from = x.const_data_ptr<float>();
  int32_t* places = out.mutable_data_ptr<int32_t>();
  shared(planes, out_h * out_w * kernel * kernel, [&](int64_t first, int64_t last) {
    Floats padded((h + 2 * padding) * row + kernel + 4 * kLanes, -std::numeric_limits<float>::infinity());
    for (int64_t plane = first; plane < last; ++plane) {
      for (int64_t y = 0; y < h; ++y)
        copy_row(padded.data() + (y + padding) * row + padding, from + (plane * h + y) * w, w);
      for (int64_t y = 0; y < out_h; ++y)
        (kernel == 2 ? row_of_maxima<2> : row_of_maxima<0>)(padded.data() + 2 * y * row, row, kernel, 2 * y - padding,
                                                            padding, w, out_w, places + (plane * out_h + y) * out_w);
    }
  });
  return out;
}

// The numbers of each plane that lie at its places; or, if they are to be `put` there, planes of these sizes with their
// sum at each place, and zeros elsewhere. Either is the derivative of the other.
Tensor placed(const Tensor& values, const Tensor& places, at::IntArrayRef sizes, bool put) {
  const at::AutoDispatchBelowADInplaceOrView below;
  const Tensor x = values.contiguous();
  Tensor out = at::empty(put ? sizes : places.sizes(), x.options());
  const int64_t size = sizes[2] * sizes[3], count = places.size(2) * places.size(3);
  const float* from = x.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  const int32_t* at = places.const_data_ptr<int32_t>();
  shared(sizes[0] * sizes[1], 2 * size, [&](int64_t first, int64_t last) {
    if (put) std::fill(to + first * size, to + last * size, 0.0f);
    for (int64_t plane = first; plane < last; ++plane)
      for (int64_t i = plane * count; i < (plane + 1) * count; ++i)
        if (put) to[plane * size + at[i]] += from[i];
        else to[i] = from[plane * size + at[i]];
  });
  const auto pull = [kept = sizes.vec(), put](size_t, const Tensor&, const Tensor& places, const Tensor& u) {
    return placed(u, places, kept, !put);
  };
  return recorded(out, pull, Tensor(), places, values);
}

Tensor max_pool2d(const Tensor& images, int64_t kernel, int64_t padding) {
  return placed(images, maxima(images, kernel, padding), images.sizes(), false);
}

}  // namespace
