// gather_tokens, scatter_tokens and the gradient of the fill; the definitions are in gather_tokens.py and
// scatter_tokens.py.
#include <cstring>
#include <optional>

#include "tensors.h"

namespace maekernels {
namespace {

// Rows x[b, n, :] with any strides, copied as bytes.
class Rows {
 public:
  explicit Rows(const Tensor& x)
      : base_(data<char>(x)),
        bytes_(size_of(type_of(x))),
        dim_(x.size(2)),
        stride_{x.stride(0), x.stride(1), x.stride(2)} {}

  void copy(int64_t b, int64_t n, char* to) const {
    const char* from = base_ + (b * stride_[0] + n * stride_[1]) * bytes_;
    if (stride_[2] == 1) {
      std::memcpy(to, from, dim_ * bytes_);
      return;
    }
    for (int64_t d = 0; d < dim_; ++d) std::memcpy(to + d * bytes_, from + d * stride_[2] * bytes_, bytes_);
  }

 private:
  const char* base_;
  int64_t bytes_, dim_, stride_[3];
};

Tensor gather_tokens(const Tensor& x, const Tensor& ids) {
  const int64_t batch = ids.size(0), count = ids.size(1), dim = x.size(2);
  const auto tokens = checked_ids(ids, x.size(1));
  const Tensor out = torch::stable::new_empty(x, {batch, count, dim});
  const Rows rows(x);
  const int64_t bytes = dim * size_of(type_of(x));
  char* to = mutable_data<char>(out);
  for_rows(batch * count, dim, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) rows.copy(row / count, tokens[row], to + row * bytes);
  });
  return out;
}

// One row of the fill, in the type of the output.
std::vector<char> fill_row(const Tensor& values, double number, const std::optional<Tensor>& row) {
  const int64_t dim = values.size(2);
  const Type type = type_of(values);
  std::vector<char> bytes(dim * size_of(type));
  if (row.has_value()) {
    std::memcpy(bytes.data(), data<char>(torch::stable::contiguous(*row)), bytes.size());
  } else {
    const std::vector<double> wide(dim, type == F64 ? number : double(float(number)));
    instruction_set().in_double.write[type](wide.data(), dim, bytes.data());
  }
  return bytes;
}

Tensor scatter_tokens(const Tensor& values, const Tensor& ids, int64_t length, double number,
                      const std::optional<Tensor>& row) {
  const int64_t batch = values.size(0), dim = values.size(2);
  const auto places = inverse(ids, length);
  const Tensor out = torch::stable::new_empty(values, {batch, length, dim});
  const Rows rows(values);
  const auto fill = fill_row(values, number, row);
  const bool zero = std::all_of(fill.begin(), fill.end(), [](char byte) { return byte == 0; });
  char* to = mutable_data<char>(out);
  for_rows(batch * length, dim, [&](int64_t first, int64_t last) {
    for (int64_t place = first; place < last; ++place) {
      char* there = to + place * fill.size();
      if (places[place] >= 0) {
        rows.copy(place / length, places[place], there);
      } else if (zero) {
        // Consecutive rows in one go: the gradient of a gather is mostly zeros.
        const int64_t start = place;
        while (place + 1 < last && places[place + 1] < 0) ++place;
        std::memset(there, 0, (place + 1 - start) * fill.size());
      } else {
        std::memcpy(there, fill.data(), fill.size());
      }
    }
  });
  return out;
}

// The sum of grad over the rows that hold the fill, in parts of a fixed number of rows: independent of the threads.
Tensor scatter_tokens_fill_grad(const Tensor& grad, const Tensor& ids) {
  constexpr int64_t PART = 64;
  const Tensor held = torch::stable::contiguous(grad);
  const int64_t dim = grad.size(2);
  const Tensor out = torch::stable::new_empty(grad, {dim});
  const auto places = inverse(ids, grad.size(1));
  const int64_t rows = int64_t(places.size()), parts = (rows + PART - 1) / PART;
  with_arithmetic(type_of(grad) == F64, [&](auto zero) {
    using A = decltype(zero);
    const auto add = instruction_set().loops<A>().add;
    std::vector<A> total(dim), of_part(parts * dim);
    for_rows(parts, PART * dim, [&](int64_t first, int64_t last) {
      Reader<A> read(held, dim);
      for (int64_t row = first * PART; row < std::min(rows, last * PART); ++row) {
        if (places[row] < 0) add(of_part.data() + row / PART * dim, read(row * dim, dim), dim);
      }
    });
    for (int64_t part = 0; part < parts; ++part) add(total.data(), of_part.data() + part * dim, dim);
    Writer<A> write(out, dim);
    std::copy(total.begin(), total.end(), write.at(0));
    write.done(0, dim);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maekernels, CPU, m) {
  m.impl("gather_tokens", TORCH_BOX(&gather_tokens));
  m.impl("scatter_tokens", TORCH_BOX(&scatter_tokens));
  m.impl("scatter_tokens_fill_grad", TORCH_BOX(&scatter_tokens_fill_grad));
}

}  // namespace maekernels
