// masked_mse and its gradient; the definition is in masked_mse.py.
#include "pixels.h"

namespace maekernels {
namespace {

struct Target {
  const Tensor &x, &ids;
  const std::vector<int64_t>& patch;
  const std::vector<double>&mean, &std;
  int64_t norm_pix;
  bool channels_first;
};

// Calls work(row, prediction, target) for each row, in A; on several threads, each with its own copy of `work`.
template <class A, class Work>
void for_each_row(const Tensor& pred, const Target& of, const Work& work) {
  const int64_t count = of.ids.size(1), dim = pred.size(2);
  const PatchReader<A> read_patch(of.x, of.patch, of.mean, of.std, of.channels_first);
  const auto tokens = checked_ids(of.ids, read_patch.pixels.tokens);
  for_rows(of.ids.numel(), 2 * dim, [&](int64_t first, int64_t last) {
    Reader<A> read(pred, dim);
    std::vector<A> target(dim);
    Normaliser<A> normalise(of.norm_pix, read_patch.pixels);
    Work own = work;
    for (int64_t row = first; row < last; ++row) {
      read_patch(row / count, tokens[row], target.data());
      normalise(target.data());
      own(row, read(row * dim, dim), target.data());
    }
  });
}

Tensor masked_mse(const Tensor& pred, const Tensor& x, const Tensor& ids, std::vector<int64_t> patch,
                  std::vector<double> mean, std::vector<double> std, int64_t norm_pix, bool channels_first) {
  const bool wide = type_of(pred) == F64;
  const Tensor held = torch::stable::contiguous(pred);
  const Tensor out = torch::stable::new_empty(pred, {}, wide ? ScalarType::Double : ScalarType::Float);
  // One number per row, summed in order: the same for any number of threads.
  std::vector<double> of_row(ids.numel());
  with_arithmetic(wide || type_of(x) == F64, [&](auto zero) {
    using A = decltype(zero);
    const auto distance = instruction_set().loops<A>().squared_distance;
    for_each_row<A>(held, {x, ids, patch, mean, std, norm_pix, channels_first},
                    [&, distance](int64_t row, const A* prediction, const A* target) {
                      of_row[row] = double(distance(prediction, target, held.size(2)));
                    });
  });
  double total = 0;
  for (const double one : of_row) total += one;
  total /= double(pred.numel());
  if (wide) {
    *mutable_data<double>(out) = total;
  } else {
    *mutable_data<float>(out) = float(total);
  }
  return out;
}

Tensor masked_mse_backward(const Tensor& grad_loss, const Tensor& pred, const Tensor& x, const Tensor& ids,
                           std::vector<int64_t> patch, std::vector<double> mean, std::vector<double> std,
                           int64_t norm_pix, bool channels_first) {
  const Tensor held = torch::stable::contiguous(pred), out = torch::stable::new_empty(held, held.sizes());
  const int64_t dim = pred.size(2);
  const double incoming = type_of(grad_loss) == F64 ? *data<double>(grad_loss) : double(*data<float>(grad_loss));
  const double factor = 2.0 / double(std::max<int64_t>(1, pred.numel())) * incoming;
  with_arithmetic(type_of(pred) == F64 || type_of(x) == F64, [&](auto zero) {
    using A = decltype(zero);
    const auto difference = instruction_set().loops<A>().scaled_difference;
    Writer<A> write(out, dim);
    for_each_row<A>(held, {x, ids, patch, mean, std, norm_pix, channels_first},
                    [=](int64_t row, const A* prediction, const A* target) mutable {
                      difference(prediction, target, A(factor), write.at(row * dim), dim);
                      write.done(row * dim, dim);
                    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maekernels, CPU, m) {
  m.impl("masked_mse", TORCH_BOX(&masked_mse));
  m.impl("masked_mse_backward", TORCH_BOX(&masked_mse_backward));
}

}  // namespace maekernels
