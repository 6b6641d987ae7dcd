// add_noise, diffuse_patches and their gradients; the definitions are in add_noise.py and diffuse_patches.py.
#include <type_traits>

#include "pixels.h"

namespace maekernels {
namespace {

// Normals of the elements [first, first + n) of a sample. A row may start inside a Philox block.
class Noise {
 public:
  Noise(const Tensor& seed, int64_t offset, int64_t most)
      : seed_(uint64_t(*data<int64_t>(seed))), offset_(uint64_t(offset)), buffer_(most + 8) {}

  const float* operator()(int64_t b, int64_t first, int64_t n) {
    const int64_t skipped = first % 4;
    instruction_set().normals(seed_, offset_ + uint64_t(b), first / 4, (skipped + n + 3) / 4, buffer_.data());
    return buffer_.data() + skipped;
  }

 private:
  uint64_t seed_, offset_;
  std::vector<float> buffer_;
};

// Calls change(v, out, b, first, n) for all elements of x [B, ...], in float or double: n elements of sample b from
// `first` on, into a new tensor. Each thread has its own copy of `change`.
constexpr int64_t PART = 2048;

template <class Change>
Tensor by_parts(const Tensor& x, const Change& change) {
  const Tensor held = torch::stable::contiguous(x), out = torch::stable::new_empty(held, held.sizes());
  const int64_t batch = held.size(0), elements = held.numel() / std::max<int64_t>(1, batch);
  const int64_t parts = (elements + PART - 1) / PART;
  with_arithmetic(type_of(held) == F64, [&](auto zero) {
    using A = decltype(zero);
    for_rows(batch * parts, PART, [&](int64_t first_part, int64_t last_part) {
      Change own = change;
      Reader<A> read(held, PART);
      Writer<A> write(out, PART);
      for (int64_t part = first_part; part < last_part; ++part) {
        const int64_t b = part / parts, first = part % parts * PART, n = std::min(PART, elements - first);
        const int64_t place = b * elements + first;
        own(read(place, n), write.at(place), b, first, n);
        write.done(place, n);
      }
    });
  });
  return out;
}

Tensor add_noise(const Tensor& x0, const Tensor& alpha_bar, const Tensor& seed, int64_t offset) {
  const Levels levels(alpha_bar);
  return by_parts(x0, [&, noise = Noise(seed, offset, PART)](const auto* v, auto* out, int64_t b, int64_t first,
                                                             int64_t n) mutable {
    const auto& loops = instruction_set().loops<std::remove_pointer_t<decltype(out)>>();
    loops.mix(v, noise(b, first, n), levels.signal[b], levels.sigma[b], out, n);
  });
}

Tensor diffuse_patches(const Tensor& x, const Tensor& ids, std::vector<int64_t> patch, std::vector<double> mean,
                       std::vector<double> std, const Tensor& alpha_bar, const Tensor& seed, int64_t offset,
                       int64_t norm_pix, ScalarType dtype, bool channels_first) {
  const int64_t batch = ids.size(0), count = ids.size(1);
  const Pixels pixels(x, patch, channels_first);
  const int64_t dim = pixels.dim;
  const auto tokens = checked_ids(ids, pixels.tokens);
  const Levels levels(alpha_bar);
  const Tensor out = torch::stable::new_empty(x, {batch, count, dim}, dtype);
  with_arithmetic(pixels.type == F64, [&](auto zero) {
    using A = decltype(zero);
    const auto& loops = instruction_set().loops<A>();
    const PatchReader<A> read(x, patch, mean, std, channels_first);
    for_rows(batch * count, 4 * dim, [&](int64_t first, int64_t last) {
      Writer<A> write(out, dim);
      Noise noise(seed, offset, dim);
      Normaliser<A> normalise(norm_pix, read.pixels);
      for (int64_t row = first; row < last; ++row) {
        const int64_t b = row / count;
        A* value = write.at(row * dim);
        read(b, tokens[row], value);
        normalise(value);
        loops.mix(value, noise(b, tokens[row] * dim, dim), levels.signal[b], levels.sigma[b], value, dim);
        write.done(row * dim, dim);
      }
    });
  });
  return out;
}

Tensor diffuse_patches_backward(const Tensor& grad, const Tensor& x, const Tensor& ids, std::vector<int64_t> patch,
                                std::vector<double> mean, std::vector<double> std, const Tensor& alpha_bar,
                                int64_t norm_pix, bool channels_first) {
  const int64_t batch = ids.size(0), count = ids.size(1), dim = grad.size(2);
  const Tensor held = torch::stable::contiguous(grad), out = torch::stable::new_empty(held, held.sizes());
  const Levels levels(alpha_bar, false);
  with_arithmetic(type_of(x) == F64 || type_of(grad) == F64, [&](auto zero) {
    using A = decltype(zero);
    const auto& loops = instruction_set().loops<A>();
    const PatchReader<A> read_patch(x, patch, mean, std, channels_first);
    const auto tokens = checked_ids(ids, read_patch.pixels.tokens);
    for_rows(batch * count, dim, [&](int64_t first, int64_t last) {
      Reader<A> read(held, dim);
      Writer<A> write(out, dim);
      std::vector<A> target(dim);
      Normaliser<A> normalise(norm_pix, read_patch.pixels);
      for (int64_t row = first; row < last; ++row) {
        const int64_t b = row / count;
        A* value = write.at(row * dim);
        loops.multiply(read(row * dim, dim), levels.signal[b], value, dim);
        if (norm_pix != PLAIN) {
          read_patch(b, tokens[row], target.data());
          normalise(target.data());
          normalise.backward(value, target.data());
        }
        write.done(row * dim, dim);
      }
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maekernels, CPU, m) {
  m.impl("add_noise", TORCH_BOX(&add_noise));
  m.impl("diffuse_patches", TORCH_BOX(&diffuse_patches));
  m.impl("diffuse_patches_backward", TORCH_BOX(&diffuse_patches_backward));
}

}  // namespace maekernels
