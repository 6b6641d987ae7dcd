#include "tensors.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

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

std::vector<int64_t> inverse(const Tensor& ids, int64_t length) {
  const int64_t count = ids.size(1);
  const auto tokens = checked_ids(ids, length);
  std::vector<int64_t> found(ids.size(0) * length, -1);
  for (int64_t i = 0; i < int64_t(tokens.size()); ++i) {
    int64_t& place = found[i / count * length + tokens[i]];
    if (place >= 0) {
      std::ostringstream words;
      words << "ids=" << tokens[i] << " twice in sample " << i / count << ": must be unique within a sample";
      throw std::invalid_argument(words.str());
    }
    place = i % count;
  }
  return found;
}

namespace {

// Formatted as in Python.
std::string written(double x) {
  if (std::isnan(x)) return "nan";
  char digits[32];
  std::string found(digits, std::to_chars(digits, digits + sizeof digits, x).ptr);
  return found.find_first_of(".e") == std::string::npos ? found + ".0" : found;
}

}  // namespace

Levels::Levels(const Tensor& alpha_bar, bool check) {
  const Tensor held = torch::stable::contiguous(alpha_bar);
  const float* value = data<float>(held);
  const int64_t batch = held.numel();
  float low = std::numeric_limits<float>::infinity(), high = -low;
  for (int64_t b = 0; b < batch; ++b) {
    low = std::isnan(low) || value[b] >= low ? low : value[b];
    high = std::isnan(high) || value[b] <= high ? high : value[b];
    signal.push_back(std::sqrt(value[b]));
    sigma.push_back(std::sqrt(1 - value[b]));
  }
  if (check && batch > 0 && !(low >= 0 && high <= 1)) {
    const std::string words = "alpha_bar=values in [" + written(low) + ", " + written(high) + "]";
    throw std::invalid_argument(words + ": must be in [0, 1]");
  }
}

}  // namespace maekernels
