// csrc/cuda/random_mask.h with its threads run one after the other, for tests on machines without a GPU.
//
// What is not proven by it: the sum over a block (CUB's on a GPU), atomics and barriers themselves. Threads run in an
// order that the caller chooses: code that lacks a barrier gives other results in another order.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "random_mask.h"

namespace {

template <class Shape_>
struct HostBlock {
  using Shape = Shape_;
  using Lane = maekernels::MaskLane<Shape>;

  maekernels::MaskShared<Shape> shared;
  std::vector<Lane> lanes = std::vector<Lane>(Shape::THREADS);
  std::vector<uint32_t> order = std::vector<uint32_t>(Shape::THREADS);

  explicit HostBlock(int order_seed) {
    // As on a GPU, nothing is zero before someone made it so.
    std::memset(&shared, 0xA5, sizeof(shared));
    std::memset(lanes.data(), 0xA5, lanes.size() * sizeof(Lane));
    for (uint32_t t = 0; t < Shape::THREADS; ++t) order[t] = t;
    if (order_seed > 0) std::shuffle(order.begin(), order.end(), std::mt19937(order_seed));
  }

  template <class F>
  void each(F f) {
    for (uint32_t t : order) f(t, lanes[t]);
  }

  template <class F>
  void exclusive_sum(F f) {
    uint32_t sum = 0;
    for (uint32_t t = 0; t < Shape::THREADS; ++t) {
      const uint32_t value = f(t, lanes[t]);
      lanes[t].before = sum;
      sum += value;
    }
  }

  void increment(uint32_t& x) { ++x; }
};

template <class Key>
void run(const maekernels::MaskJob& job, int64_t batch, int order_seed) {
  maekernels::with_mask_shape<Key>(job.length, [&](auto shape) {
    for (int64_t row = 0; row < batch; ++row) {
      HostBlock<decltype(shape)> block(order_seed);
      maekernels::random_mask(block, job, row);
    }
  });
}

}  // namespace

extern "C" void random_mask_host(int64_t batch, uint32_t length, uint32_t num_keep, int64_t seed, int64_t offset,
                                 const void* groups, int wide, uint32_t sets, int32_t* keep, int32_t* mask,
                                 int order_seed) {
  const maekernels::MaskJob job{&seed, groups, wide != 0, sets, length, num_keep, offset, keep, mask};
  if (groups) {
    run<uint64_t>(job, batch, order_seed);
  } else {
    run<uint32_t>(job, batch, order_seed);
  }
}

extern "C" uint32_t max_length() { return maekernels::MAX_LENGTH; }
