// Philox4x32-10 as `maekernels.philox` defines it: the same words for the same (seed, stream, sample, block).
#pragma once

#include <cstdint>

#include "target.h"

namespace maekernels {

// Values of the counter's second word, one for each use of a seed.
constexpr uint32_t MASK_STREAM = 1;
constexpr uint32_t MASK_GROUPS_STREAM = 16;

struct Words {
  uint32_t word[4];
};

// The four words of a block; element e is word e % 4 of block e / 4.
MAEKERNELS_FN Words philox(int64_t seed, uint32_t stream, int64_t sample, uint32_t block) {
  uint32_t c0 = block, c1 = stream;
  uint32_t c2 = static_cast<uint32_t>(sample), c3 = static_cast<uint32_t>(static_cast<uint64_t>(sample) >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    // One wide multiplication each: both halves of the product are needed.
    const uint64_t p0 = uint64_t{0xD2511F53} * c0, p2 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(p2 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p2);
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace maekernels
