// Generates the mask of one sample; the definition is in random_mask.py. Raw memory and no torch, like loops.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "loops.h"

namespace maekernels {

constexpr uint32_t MASK = 1, MASK_GROUPS = 16;  // streams of philox.py

// The k-th smallest key, counting from 1. Keys are spread over their highest byte (uniformly, for plain masks), so that
// counting settles all but the few that share this byte with the result.
template <class Key>
Key kth_smallest(const Key* keys, int64_t n, int64_t k, std::vector<Key>& candidates) {
  constexpr int TOP = 8 * sizeof(Key) - 8;
  int64_t count[256] = {};
  for (int64_t i = 0; i < n; ++i) ++count[keys[i] >> TOP];
  Key bucket = 0;
  for (; k > count[bucket]; ++bucket) k -= count[bucket];
  candidates.clear();
  for (int64_t i = 0; i < n; ++i) {
    if (keys[i] >> TOP == bucket) candidates.push_back(keys[i]);
  }
  std::nth_element(candidates.begin(), candidates.begin() + (k - 1), candidates.end());
  return candidates[k - 1];
}

// Distributes the tokens in order to `keep` and `mask`, each with room for all of them.
template <class Key>
void split(const Key* keys, int64_t n, int64_t num_keep, std::vector<Key>& candidates, int32_t* keep, int32_t* mask) {
  if (num_keep == 0) {
    for (int64_t i = 0; i < n; ++i) mask[i] = int32_t(i);
    return;
  }
  const Key last = kth_smallest(keys, n, num_keep, candidates);
  int64_t ties = num_keep;  // number kept among the keys equal to the last; smaller indices first
  for (int64_t i = 0; i < n; ++i) ties -= keys[i] < last;
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {
    const bool tie = keys[i] == last && ties > 0, chosen = keys[i] < last || tie;
    ties -= tie;
    // Both are written and only one is used: no branch to mispredict.
    keep[kept] = mask[i - kept] = int32_t(i);
    kept += chosen;
  }
}

struct Mask {
  int64_t length, num_keep;
  uint64_t seed;
  std::vector<int64_t> labels = {};  // [groups, length]

  std::vector<uint32_t> own = {}, of_label = {}, group = {};
  std::vector<uint64_t> wide = {};
  std::vector<uint32_t> candidates = {};
  std::vector<uint64_t> wide_candidates = {};
  std::vector<int32_t> keep = {}, mask = {};

  void draw(uint64_t sample) {
    const int64_t blocks = (length + 3) / 4;
    const Words words = instruction_set().words;
    own.resize(4 * blocks);
    words(seed, MASK, sample, 0, blocks, own.data());
    keep.resize(length + 1);
    mask.resize(length + 1);
    if (labels.empty()) {
      split(own.data(), length, num_keep, candidates, keep.data(), mask.data());
      return;
    }
    group.assign(length, 0);
    of_label.resize(4 * blocks);
    for (size_t g = 0; g < labels.size() / length; ++g) {
      words(seed, MASK_GROUPS + uint32_t(g), sample, 0, blocks, of_label.data());
      const int64_t* label = labels.data() + g * length;
      for (int64_t i = 0; i < length; ++i) group[i] = std::max(group[i], of_label[label[i]]);
    }
    wide.resize(length);
    for (int64_t i = 0; i < length; ++i) wide[i] = uint64_t(group[i]) << 32 | own[i];
    split(wide.data(), length, num_keep, wide_candidates, keep.data(), mask.data());
  }
};

}  // namespace maekernels
