// Philox4x32-10 blocks made in registers, by a loop of its own: the limit does not move with what is measured.
// Built by philox_cpu.py for the machine that it runs on.
#include <cstdint>
#include <thread>
#include <vector>

namespace {

constexpr int LANES = 64;

uint32_t spin(uint64_t blocks) {
  uint32_t kept[LANES] = {};
  for (uint64_t first = 0; first < blocks; first += LANES) {
#pragma omp simd
    for (int lane = 0; lane < LANES; ++lane) {
      uint32_t a = uint32_t(first) + uint32_t(lane), b = uint32_t(first >> 32), c = 0, d = 0, k0 = 1, k1 = 2;
#pragma GCC unroll 10
      for (int round = 0; round < 10; ++round) {
        const uint64_t p = uint64_t{0xD2511F53} * a, q = uint64_t{0xCD9E8D57} * c;
        a = uint32_t(q >> 32) ^ b ^ k0;
        b = uint32_t(q);
        c = uint32_t(p >> 32) ^ d ^ k1;
        d = uint32_t(p);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
      }
      kept[lane] ^= a ^ b ^ c ^ d;
    }
  }
  uint32_t all = 0;
  for (uint32_t one : kept) all ^= one;
  return all;
}

}  // namespace

// `blocks` on each of the threads; the xor of all words, so that none can be left out.
extern "C" uint32_t philox_blocks(uint64_t blocks, int threads) {
  std::vector<uint32_t> found(threads);
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back([&found, blocks, t] { found[t] = spin(blocks); });
  found[0] = spin(blocks);
  uint32_t all = found[0];
  for (int t = 1; t < threads; ++t) {
    others[t - 1].join();
    all ^= found[t];
  }
  return all;
}
