// patchify and its gradient; the definition is in patchify.py.
#include <cstring>

#include "pixels.h"

namespace maekernels {

Pixels::Pixels(const Tensor& x, const std::vector<int64_t>& sizes, bool channels_first) : type(type_of(x)), patch{} {
  // Dimensions of x that are T, H, W and C; -1: absent, of size 1.
  const int64_t rank = x.dim();
  const bool first = channels_first && rank > 3;
  const int64_t c = rank == 3 ? -1 : first ? 1 : rank - 1, w = first || rank == 3 ? rank - 1 : rank - 2, h = w - 1;
  const int64_t t = rank == 5 ? h - 1 : -1;
  const auto size = [&](int64_t d) { return d < 0 ? 1 : x.size(d); };
  const auto stride = [&](int64_t d) { return d < 0 ? 0 : x.stride(d); };
  patch.pt = sizes.size() == 3 ? sizes[0] : 1;
  patch.ph = sizes[sizes.size() - 2];
  patch.pw = sizes[sizes.size() - 1];
  patch.channels = size(c);
  patch.st = stride(t);
  patch.sh = stride(h);
  patch.sw = stride(w);
  patch.sc = stride(c);
  patch.packed = patch.sw == patch.channels && (patch.channels == 1 || patch.sc == 1);
  grid_h_ = size(h) / patch.ph;
  grid_w_ = size(w) / patch.pw;
  stride_b_ = x.stride(0);
  tokens = size(t) / patch.pt * grid_h_ * grid_w_;
  dim = patch.size();
}

namespace {

Tensor patchify(const Tensor& x, const Tensor& ids, std::vector<int64_t> patch, std::vector<double> mean,
                std::vector<double> std, ScalarType dtype, bool channels_first) {
  const int64_t batch = ids.size(0), count = ids.size(1);
  const Pixels pixels(x, patch, channels_first);
  const auto tokens = checked_ids(ids, pixels.tokens);
  const Tensor out = torch::stable::new_empty(x, {batch, count, pixels.dim}, dtype);
  with_arithmetic(pixels.type == F64, [&](auto zero) {
    using A = decltype(zero);
    const PatchReader<A> read(x, patch, mean, std, channels_first);
    for_rows(batch * count, pixels.dim, [&](int64_t first, int64_t last) {
      Writer<A> write(out, pixels.dim);
      for (int64_t row = first; row < last; ++row) {
        read(row / count, tokens[row], write.at(row * pixels.dim));
        write.done(row * pixels.dim, pixels.dim);
      }
    });
  });
  return out;
}

// No pixel is written by two rows: ids must be unique within a sample and are refused otherwise.
Tensor patchify_backward(const Tensor& grad, const Tensor& x, const Tensor& ids, std::vector<int64_t> patch,
                         std::vector<double> std, bool channels_first) {
  const int64_t batch = ids.size(0), count = ids.size(1);
  const Tensor out = torch::stable::empty_like(x), held = torch::stable::contiguous(grad);
  const Pixels pixels(out, patch, channels_first);
  const auto tokens = checked_ids(ids, pixels.tokens);
  inverse(ids, pixels.tokens);
  char* base = mutable_data<char>(out);
  const int64_t bytes = size_of(pixels.type), elements = out.numel();
  for_rows(elements, 1, [=](int64_t first, int64_t last) {
    std::memset(base + first * bytes, 0, (last - first) * bytes);
  });
  with_arithmetic(pixels.type == F64 || type_of(grad) == F64, [&](auto zero) {
    using A = decltype(zero);
    const Normal<A> normal(pixels, std, std);
    const auto store = instruction_set().loops<A>().store_patch[pixels.type];
    for_rows(batch * count, pixels.dim, [&](int64_t first, int64_t last) {
      Reader<A> read(held, pixels.dim);
      for (int64_t row = first; row < last; ++row) {
        const A* values = read(row * pixels.dim, pixels.dim);
        store(values, pixels.patch, normal.scale.data(), base + pixels.origin(row / count, tokens[row]));
      }
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maekernels, CPU, m) {
  m.impl("patchify", TORCH_BOX(&patchify));
  m.impl("patchify_backward", TORCH_BOX(&patchify_backward));
}

}  // namespace maekernels
