// How one thread block generates the mask of one sample; the definition is in maekernels/random_mask.py.
//
//   keys     each thread computes the words of its 4 * BLOCKS consecutive tokens in registers. A group's word is
//            computed once, in a table in shared memory, instead of once for each of its tokens.
//   select   finds the key of the last kept token, 8 bits at a time from the highest: a histogram of the digit over the
//            keys that match the digits found so far, and the digit where its prefix sum reaches the required rank. It
//            ends as soon as every remaining key is kept: for random 32-bit keys nearly always after the second digit.
//   compact  two counts per thread, summed over the preceding threads, determine where its kept and masked tokens go.
//            They are ordered in shared memory, so that the stores to global memory are coalesced.
//
// `Block` runs the threads, so that this can be tested without a GPU:
//
//   each(f)           f(t, lane) for every thread t with its registers `lane`, then a barrier
//   exclusive_sum(f)  lane.before = sum of f(t', lane') over the threads t' < t
//   increment(x)      atomic, in shared memory
//   shared            the shared memory
//
// Between two barriers, no thread reads what another one writes, except through `increment`.
#pragma once

#include <cstdint>

#include "philox.h"
#include "target.h"

namespace maekernels {

constexpr uint32_t MAX_LENGTH = 8192;
constexpr int DIGIT_BITS = 8;
constexpr uint32_t DIGITS = 1 << DIGIT_BITS;

// The parameters of a launch, the same for all samples.
struct MaskJob {
  const int64_t* seed;  // on the device: may change between replays of a CUDA graph
  const void* groups;   // labels [sets, length], int64 if `wide`, else int32
  bool wide;
  uint32_t sets;
  uint32_t length;
  uint32_t num_keep;
  int64_t offset;  // index of the first sample
  int32_t* keep;   // [batch, num_keep]
  int32_t* mask;   // [batch, length - num_keep]
};

// A block of THREADS threads for up to CAPACITY tokens. Key: uint32_t, or uint64_t = [group key | own key].
template <class Key_, uint32_t THREADS_, uint32_t BLOCKS_>
struct MaskShape {
  using Key = Key_;
  static constexpr uint32_t THREADS = THREADS_;
  static constexpr uint32_t BLOCKS = BLOCKS_;  // Philox blocks per thread
  static constexpr uint32_t TOKENS = 4 * BLOCKS;
  static constexpr uint32_t CAPACITY = THREADS * TOKENS;
  static constexpr int KEY_BITS = 8 * static_cast<int>(sizeof(Key));
  static constexpr bool GROUPED = KEY_BITS == 64;
  static_assert(THREADS >= DIGITS, "a thread for each digit");
  static_assert(CAPACITY <= 1 << 14, "two counts of tokens share a word, tokens are stored in 16 bits");
};

// The registers of a thread: the keys of its consecutive tokens, and the last exclusive_sum.
template <class Shape>
struct MaskLane {
  typename Shape::Key key[Shape::TOKENS];
  uint32_t before;
};

// The digit found by a pass, the number of tokens still to keep, and the number of keys that match the digits so far.
struct Pivot {
  uint32_t digit, room, rivals;
};

template <class Shape>
struct MaskShared {
  union {
    uint32_t word[Shape::GROUPED ? Shape::CAPACITY : 1];  // per label of one group set, until the keys are complete
    uint16_t token[Shape::CAPACITY];                      // kept tokens, then masked ones
  };
  uint32_t count[2][DIGITS];
  Pivot pivot;
};

// Calls `f` with the smallest shape that holds `length` <= MAX_LENGTH tokens. Few tokens per thread: a sample is so
// little work that its time is that of the longest dependency chain.
template <class Key, class F>
void with_mask_shape(uint32_t length, F f) {
  if (length <= 1024) {
    f(MaskShape<Key, 256, 1>{});
  } else if (length <= 2048) {
    f(MaskShape<Key, 512, 1>{});
  } else if (length <= 4096) {
    f(MaskShape<Key, 1024, 1>{});
  } else {
    f(MaskShape<Key, 1024, 2>{});
  }
}

template <class Block>
MAEKERNELS_FN void make_keys(Block& block, const MaskJob& job, int64_t sample) {
  using Shape = typename Block::Shape;
  using Key = typename Shape::Key;
  const int64_t seed = *job.seed;
  block.each([&](uint32_t t, auto& lane) {
    if (t < DIGITS) block.shared.count[0][t] = 0;
#pragma unroll
    for (uint32_t b = 0; b < Shape::BLOCKS; ++b) {
      const Words own = philox(seed, MASK_STREAM, sample, t * Shape::BLOCKS + b);
#pragma unroll
      for (uint32_t w = 0; w < 4; ++w) lane.key[4 * b + w] = own.word[w];
    }
  });
  if constexpr (Shape::GROUPED) {
    for (uint32_t set = 0; set < job.sets; ++set) {
      block.each([&](uint32_t t, auto&) {
        for (uint32_t b = t; 4 * b < job.length; b += Shape::THREADS) {
          const Words group = philox(seed, MASK_GROUPS_STREAM + set, sample, b);
#pragma unroll
          for (uint32_t w = 0; w < 4; ++w) block.shared.word[4 * b + w] = group.word[w];
        }
      });
      block.each([&](uint32_t t, auto& lane) {
#pragma unroll
        for (uint32_t i = 0; i < Shape::TOKENS; ++i) {
          const uint32_t n = t * Shape::TOKENS + i;
          if (n < job.length) {
            const int64_t place = int64_t{set} * job.length + n;
            const uint32_t label = job.wide ? static_cast<uint32_t>(static_cast<const int64_t*>(job.groups)[place])
                                            : static_cast<const uint32_t*>(job.groups)[place];
            // A label outside [0, length) violates the contract, but must not read outside the table.
            const uint32_t word = block.shared.word[label < job.length ? label : 0u];
            const uint32_t most = static_cast<uint32_t>(lane.key[i] >> 32);
            lane.key[i] = Key{word > most ? word : most} << 32 | static_cast<uint32_t>(lane.key[i]);
          }
        }
      });
    }
  }
}

template <class Block>
MAEKERNELS_FN void random_mask(Block& block, const MaskJob& job, int64_t row) {
  using Shape = typename Block::Shape;
  using Key = typename Shape::Key;
  make_keys(block, job, job.offset + row);

  // `high` masks the digits found so far, `found` holds them. Keys below `found` in these digits are kept, keys above
  // are not, and of the `rivals` that are equal, `room` are kept. If that is none or all of them, the search is over.
  Key high = 0, found = 0;
  uint32_t room = job.num_keep, rivals = job.length;
  for (int shift = Shape::KEY_BITS - DIGIT_BITS, pass = 0; shift >= 0 && room > 0 && room < rivals;
       shift -= DIGIT_BITS, ++pass) {
    uint32_t* const count = block.shared.count[pass % 2];
    uint32_t* const next = block.shared.count[(pass + 1) % 2];
    block.each([&](uint32_t t, auto& lane) {
      if (t < DIGITS) next[t] = 0;
#pragma unroll
      for (uint32_t i = 0; i < Shape::TOKENS; ++i) {
        if (t * Shape::TOKENS + i < job.length && (lane.key[i] & high) == found) {
          block.increment(count[static_cast<uint32_t>(lane.key[i] >> shift) % DIGITS]);
        }
      }
    });
    block.exclusive_sum([&](uint32_t t, auto&) { return t < DIGITS ? count[t] : 0u; });
    block.each([&](uint32_t t, auto& lane) {
      if (t < DIGITS && lane.before < room && room <= lane.before + count[t]) {
        block.shared.pivot = {t, room - lane.before, count[t]};
      }
    });
    const Pivot pivot = block.shared.pivot;
    found |= Key{pivot.digit} << shift;
    high |= Key{DIGITS - 1} << shift;
    room = pivot.room;
    rivals = pivot.rivals;
  }

  // Both prefix sums in one word: keys below the pivot in the low half, keys equal to it in the high half.
  block.exclusive_sum([&](uint32_t t, auto& lane) {
    uint32_t counts = 0;
#pragma unroll
    for (uint32_t i = 0; i < Shape::TOKENS; ++i) {
      const Key digits = lane.key[i] & high;
      if (t * Shape::TOKENS + i < job.length) counts += (digits < found) + ((digits == found) << 16);
    }
    return counts;
  });
  block.each([&](uint32_t t, auto& lane) {
    uint32_t below = lane.before & 0xFFFF, equal = lane.before >> 16;
#pragma unroll
    for (uint32_t i = 0; i < Shape::TOKENS; ++i) {
      const uint32_t n = t * Shape::TOKENS + i;
      if (n < job.length) {
        const Key digits = lane.key[i] & high;
        const uint32_t kept = below + (equal < room ? equal : room);  // of the tokens before n
        const bool keep = digits < found || (digits == found && equal < room);
        block.shared.token[keep ? kept : job.num_keep + n - kept] = static_cast<uint16_t>(n);
        below += digits < found;
        equal += digits == found;
      }
    }
  });
  int32_t* const keep = job.keep + row * job.num_keep;
  int32_t* const mask = job.mask + row * (job.length - job.num_keep);
  block.each([&](uint32_t t, auto&) {
    for (uint32_t i = t; i < job.length; i += Shape::THREADS) {
      const int32_t token = block.shared.token[i];
      if (i < job.num_keep) {
        keep[i] = token;
      } else {
        mask[i - job.num_keep] = token;
      }
    }
  });
}

}  // namespace maekernels
