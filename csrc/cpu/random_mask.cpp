// random_mask: the smallest `num_keep` keys of each sample, found by selection; the definition is in random_mask.py.
#include <optional>
#include <tuple>

#include "mask.h"
#include "tensors.h"

namespace maekernels {
namespace {

std::tuple<Tensor, Tensor> random_mask(int64_t batch, int64_t length, int64_t num_keep, const Tensor& seed,
                                       int64_t offset, const std::optional<Tensor>& groups) {
  Mask prototype{length, num_keep, uint64_t(*data<int64_t>(seed))};
  if (groups.has_value()) prototype.labels = checked_integers(*groups, length, "groups", "labels");
  Tensor ids_keep = torch::stable::new_empty(seed, {batch, num_keep}, ScalarType::Int);
  Tensor ids_mask = torch::stable::new_empty(seed, {batch, length - num_keep}, ScalarType::Int);
  if (length == 0) return {ids_keep, ids_mask};
  int32_t* keep = mutable_data<int32_t>(ids_keep);
  int32_t* mask = mutable_data<int32_t>(ids_mask);
  for_rows(batch, 4 * length, [&](int64_t first, int64_t last) {
    Mask one = prototype;
    for (int64_t b = first; b < last; ++b) {
      one.draw(uint64_t(offset) + uint64_t(b));
      std::copy_n(one.keep.data(), num_keep, keep + b * num_keep);
      std::copy_n(one.mask.data(), length - num_keep, mask + b * (length - num_keep));
    }
  });
  return {ids_keep, ids_mask};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(maekernels, CPU, m) { m.impl("random_mask", TORCH_BOX(&random_mask)); }

}  // namespace maekernels
