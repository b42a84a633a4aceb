// Convolution, max pooling and group norm on a CPU, in float32. `layers.py` calls them, with what they can take.

#include "convolution.h"
#include "group_norm.h"
#include "max_pooling.h"

TORCH_LIBRARY(datadistill, library) {
  library.def("conv2d", conv2d);
  library.def("linear", linear);
  library.def("max_pool2d", max_pool2d);
  library.def("group_norm", group_norm_of);
  library.def("group_norm_gradient", group_norm_gradient_of);
  library.def("group_norm_curvature", group_norm_curvature_of);
}
