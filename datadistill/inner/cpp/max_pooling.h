// Max pooling, and picking out and putting back the places it chose.

#pragma once

#include "common.h"

namespace {

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

}  // namespace
