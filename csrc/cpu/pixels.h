// The input layout of the pixel ops: the video [B, T, H, W, C] of kernels/maekernels/_pixels.py, by strides, so that
// channels-first and other views are read in place.
#pragma once

#include "tensors.h"

namespace maekernels {

class Pixels {
 public:
  Pixels(const Tensor& x, const std::vector<int64_t>& patch, bool channels_first);

  // Byte offset of the first pixel of patch `token` of sample b.
  int64_t origin(int64_t b, int64_t token) const {
    const int64_t t = token / (grid_h_ * grid_w_), h = token / grid_w_ % grid_h_, w = token % grid_w_;
    const int64_t element = b * stride_b_ + t * patch.pt * patch.st + h * patch.ph * patch.sh + w * patch.pw * patch.sw;
    return element * size_of(type);
  }

  Type type;
  Patch patch;
  int64_t tokens;
  int64_t dim;  // P, elements per patch

 private:
  int64_t grid_h_, grid_w_, stride_b_;
};

// value = pixel * scale + shift for each element of a line of a patch, from the mean and std of each channel; uint8 is
// scaled by 1/255 first. Like `scale_and_shift` in _pixels.py, rounded once.
template <class A>
struct Normal {
  Normal(const Pixels& pixels, const std::vector<double>& mean, const std::vector<double>& std) {
    const double unit = pixels.type == U8 ? 255.0 : 1.0;
    const int64_t channels = pixels.patch.channels;
    for (int64_t i = 0; i < pixels.patch.line(); ++i) {
      scale.push_back(A(1.0 / (unit * std[i % channels])));
      shift.push_back(A(-mean[i % channels] / std[i % channels]));
    }
  }

  std::vector<A> scale, shift;
};

// Reads patch `token` of sample b, normalised, in A.
template <class A>
class PatchReader {
 public:
  PatchReader(const Tensor& x, const std::vector<int64_t>& patch, const std::vector<double>& mean,
              const std::vector<double>& std, bool channels_first)
      : pixels(x, patch, channels_first), normal_(pixels, mean, std), base_(data<char>(x)) {}

  void operator()(int64_t b, int64_t token, A* out) const {
    const auto load = instruction_set().loops<A>().load_patch[pixels.type];
    load(base_ + pixels.origin(b, token), pixels.patch, normal_.scale.data(), normal_.shift.data(), out);
  }

  const Pixels pixels;

 private:
  Normal<A> normal_;
  const char* base_;
};

// How `norm_pix` of masked_mse.py normalises a patch, with the values of _pixels.py.
enum Norm : int64_t { PLAIN, PATCH, CHANNEL };

// Normalises target patches, and propagates gradients through the last one.
template <class A>
class Normaliser {
 public:
  Normaliser(int64_t norm, const Pixels& pixels) : norm_(norm), dim_(pixels.dim), channels_(pixels.patch.channels) {}

  void operator()(A* patch) {
    const auto& loops = instruction_set().loops<A>();
    if (norm_ == PATCH) rstd_[0] = loops.normalise(patch, dim_);
    if (norm_ == CHANNEL) loops.normalise_channels(patch, dim_, channels_, rstd_, slope_);
  }

  void backward(A* grad, const A* patch) const {
    const auto& loops = instruction_set().loops<A>();
    if (norm_ == PATCH) loops.normalise_backward(grad, patch, rstd_[0], dim_);
    if (norm_ == CHANNEL) loops.normalise_channels_backward(grad, patch, rstd_, slope_, dim_, channels_);
  }

 private:
  int64_t norm_, dim_, channels_;
  A rstd_[4], slope_[4];  // at most 4 channels, which check_pixels enforces
};

}  // namespace maekernels
