// Vectors, threads and scratch memory for all operations.

#pragma once

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
#include <optional>
#include <type_traits>
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

constexpr int64_t kLanes = 16;
constexpr int64_t kShare = 1 << 18;  // multiplications that are worth another core

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

// With channels as the innermost dimension. The strides say so even where there is one channel, and both orders are one.
Tensor channels_last(const Tensor& images) {
  const Tensor x = images.contiguous(at::MemoryFormat::ChannelsLast);
  return x.as_strided(x.sizes(), {x.size(1) * x.size(2) * x.size(3), 1, x.size(3) * x.size(1), x.size(1)});
}

Tensor empty_channels_last(at::IntArrayRef sizes, const Tensor& like) {
  return at::empty(sizes, like.options().memory_format(at::MemoryFormat::ChannelsLast));
}

void remember(AutogradContext* ctx, const Tensor& a, const Tensor& b, at::IntArrayRef numbers) {
  ctx->save_for_backward({a, b});
  ctx->saved_data["numbers"] = numbers.vec();
}

}  // namespace
