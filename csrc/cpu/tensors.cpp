#include "tensors.h"

#include <cmath>
#include <sstream>
#include <stdexcept>

namespace maekernels {

Type type_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return U8;
    case ScalarType::Float:
      return F32;
    case ScalarType::BFloat16:
      return BF16;
    case ScalarType::Half:
      return F16;
    case ScalarType::Double:
      return F64;
    default:
      throw std::invalid_argument("dtype: must be uint8 or a float type");
  }
}

std::vector<int64_t> checked_integers(const Tensor& ids, int64_t length, const char* name, const char* what) {
  const Tensor held = torch::stable::contiguous(ids);
  const int64_t count = held.numel();
  std::vector<int64_t> found(count);
  if (held.scalar_type() == ScalarType::Int) {
    std::copy_n(data<int32_t>(held), count, found.begin());
  } else {
    std::copy_n(data<int64_t>(held), count, found.begin());
  }
  if (count == 0) return found;
  int64_t low = found[0], high = found[0];
  for (const int64_t id : found) {
    low = std::min(low, id);
    high = std::max(high, id);
  }
  if (low < 0 || high >= length) {
    std::ostringstream words;
    words << name << "=" << what << " in [" << low << ", " << high << "]: must be in [0, " << length << ")";
    throw std::invalid_argument(words.str());
  }
  return found;
}

Levels::Levels(const Tensor& alpha_bar, bool check) {
  const Tensor held = torch::stable::contiguous(alpha_bar);
  const float* value = data<float>(held);
  const int64_t batch = held.numel();
  if (batch == 0) return;
  const auto [low, high] = std::minmax_element(value, value + batch);
  const bool inside = std::all_of(value, value + batch, [](float v) { return v >= 0 && v <= 1; });
  if (check && !inside) {
    std::ostringstream words;
    words.precision(9);
    words << "alpha_bar=values in [" << *low << ", " << *high << "]: must be in [0, 1]";
    throw std::invalid_argument(words.str());
  }
  for (int64_t b = 0; b < batch; ++b) {
    signal.push_back(std::sqrt(value[b]));
    sigma.push_back(std::sqrt(1 - value[b]));
  }
}

}  // namespace maekernels
