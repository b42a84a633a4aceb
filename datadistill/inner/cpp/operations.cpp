// Convolution, linear layers, max pooling, group norm and response norm on a CPU, in float32 (group norm in float64
// too), differentiable any number of times.
//
// Convolution, its data gradient and its weight gradient are each bilinear, and the derivatives of any one are the
// other two: that closes the set under differentiation, which is what a hypergradient needs. With many channels the
// library does each of the three. A linear layer is the same without neighbours.
//
// Inner loops of fixed length are unrolled by order: left to themselves compilers keep the sums in memory.

#include "convolution.h"
#include "group_norm.h"
#include "linear.h"
#include "max_pooling.h"
#include "response_norm.h"

namespace {

void check_plain(const Tensor& tensor, const char* name, int64_t dimensions) {
  TORCH_CHECK(tensor.dim() == dimensions && tensor.scalar_type() == at::kFloat && tensor.is_cpu(), name, " must have ",
              dimensions, " dimensions and be float32 in a CPU's memory");
}

void check_bias(const std::optional<Tensor>& bias, int64_t outputs) {
  TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == outputs && bias->scalar_type() == at::kFloat),
              "bias must have one float32 for each output");
}

Tensor conv2d(const Tensor& images, const Tensor& weights, const std::optional<Tensor>& bias, int64_t ph, int64_t pw,
              bool channels_last) {
  check_plain(images, "images", 4);
  check_plain(weights, "weights", 4);
  TORCH_CHECK(images.size(1) == weights.size(1), "images have ", images.size(1), " channels, weights expect ",
              weights.size(1));
  TORCH_CHECK(ph >= 0 && pw >= 0 && images.size(2) + 2 * ph >= weights.size(2) &&
                  images.size(3) + 2 * pw >= weights.size(3) && weights.numel() > 0,
              "the kernel is larger than the padded images");
  check_bias(bias, weights.size(0));
  return Convolution::apply(images, weights, bias, Padding{ph, pw, channels_last});
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

Tensor group_norm_layer(const Tensor& images, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                        int64_t groups, double eps, bool relu, bool pool) {
  const auto type = images.scalar_type();
  TORCH_CHECK(images.dim() == 4 && images.is_cpu() && (type == at::kFloat || type == at::kDouble) && images.numel() > 0,
              "images must have 4 dimensions and be float32 or float64 in a CPU's memory");
  TORCH_CHECK(groups > 0 && images.size(1) % groups == 0, images.size(1), " channels are not ", groups, " groups");
  TORCH_CHECK(!pool || (images.size(2) % 2 == 0 && images.size(3) % 2 == 0), "pooling needs an even height and width");
  for (const auto& numbers : {weight, bias})
    TORCH_CHECK(!numbers || (numbers->dim() == 1 && numbers->size(0) == images.size(1) &&
                             numbers->scalar_type() == type),
                "weight and bias must have one number of the images' type for each channel");
  return GroupNorm::apply(images, weight, bias, at::IntArrayRef({groups, relu, pool}), eps);
}

}  // namespace

TORCH_LIBRARY(datadistill, library) {
  library.def("conv2d(Tensor images, Tensor weights, Tensor? bias, int ph, int pw, bool channels_last) -> Tensor", conv2d);
  library.def(
      "group_norm(Tensor images, Tensor? weight, Tensor? bias, int groups, float eps, bool relu, bool pool) -> Tensor",
      group_norm_layer);
  library.def("linear(Tensor rows, Tensor weights, Tensor? bias) -> Tensor", linear_layer);
  library.def("local_response_norm(Tensor images, float scale, int before, int after) -> Tensor", local_response_norm);
  library.def("max_pool2d(Tensor images, int kernel, int stride, int padding) -> Tensor", max_pool2d);
}
