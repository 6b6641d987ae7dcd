// The loops of csrc/cpu without torch, as a program: one built for another processor can run in an emulator.
//
//     loops_host words SEED STREAM SAMPLE FIRST BLOCKS           -> uint32 [4 BLOCKS]
//     loops_host normals SEED SAMPLE FIRST BLOCKS                -> float [4 BLOCKS]
//     loops_host mask LENGTH KEEP SEED SAMPLE SETS               -> int32 ids: kept, then masked
//         labels int64 [SETS, LENGTH]
//     loops_host convert TYPE N                                  -> TYPE [N], then float [N] read from it
//         float [N]
//     loops_host patches IN OUT NORM PT PH PW C ST SH SW SC PACKED ROWS   -> OUT [ROWS, P]
//         first pixels int64 [ROWS], in elements; scale and shift float [PW * C]; pixels IN
//     loops_host mse the same arguments, OUT unused              -> float [ROWS] squared distances, [ROWS, P] gradients
//         the same, with predictions float [ROWS, P] before the pixels
//
// What is not the first line of a job comes from stdin, results go to stdout, in the machine's bytes. Types are the
// numbers of loops.h.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "loops.h"
#include "mask.h"

namespace {

using namespace maekernels;

struct Job {
  std::vector<std::string> words;
  size_t next = 0;

  uint64_t number() { return std::strtoull(words.at(next++).c_str(), nullptr, 10); }

  template <class T>
  std::vector<T> read(size_t n) {
    std::vector<T> found(n);
    if (std::fread(found.data(), sizeof(T), n, stdin) != n) std::exit(3);
    return found;
  }

  std::vector<char> rest() {
    std::vector<char> found;
    char part[4096];
    for (size_t n; (n = std::fread(part, 1, sizeof part, stdin)) > 0;) found.insert(found.end(), part, part + n);
    return found;
  }
};

template <class T>
void give(const T* values, size_t n) {
  if (std::fwrite(values, sizeof(T), n, stdout) != n) std::exit(4);
}

constexpr size_t SIZE[TYPES] = {1, 4, 2, 2, 8};
const Loops<float>& loops() { return instruction_set().in_float; }

void pixels(Job& job, bool mse) {
  const Type in = Type(job.number()), out = Type(job.number());
  const bool norm = job.number() != 0;
  Patch patch{};
  for (int64_t* field : {&patch.pt, &patch.ph, &patch.pw, &patch.channels, &patch.st, &patch.sh, &patch.sw,
                         &patch.sc}) {
    *field = int64_t(job.number());
  }
  patch.packed = job.number() != 0;
  const size_t rows = job.number(), dim = size_t(patch.size());
  const auto first = job.read<int64_t>(rows);
  const auto scale = job.read<float>(size_t(patch.line())), shift = job.read<float>(size_t(patch.line()));
  const auto predictions = job.read<float>(mse ? rows * dim : 0);
  const std::vector<char> memory = job.rest();
  std::vector<float> values(dim), distances, gradients(rows * dim);
  std::vector<char> written(dim * SIZE[out]);
  for (size_t row = 0; row < rows; ++row) {
    loops().load_patch[in](memory.data() + size_t(first[row]) * SIZE[in], patch, scale.data(), shift.data(),
                           values.data());
    if (norm) loops().normalise(values.data(), patch.size());
    if (mse) {
      const float* prediction = predictions.data() + row * dim;
      distances.push_back(loops().squared_distance(prediction, values.data(), patch.size()));
      loops().scaled_difference(prediction, values.data(), 2.0f / float(rows * dim), &gradients[row * dim],
                                patch.size());
    } else {
      loops().write[out](values.data(), patch.size(), written.data());
      give(written.data(), written.size());
    }
  }
  if (mse) {
    give(distances.data(), rows);
    give(gradients.data(), rows * dim);
  }
}

void mask(Job& job) {
  const int64_t length = int64_t(job.number()), keep = int64_t(job.number());
  Mask one{length, keep, job.number()};
  const uint64_t sample = job.number();
  one.labels = job.read<int64_t>(job.number() * size_t(length));
  one.draw(sample);
  give(one.keep.data(), size_t(keep));
  give(one.mask.data(), size_t(length - keep));
}

void run(Job& job) {
  const std::string what = job.words.at(job.next++);
  if (what == "words" || what == "normals") {
    const uint64_t seed = job.number(), stream = what == "words" ? job.number() : 0, sample = job.number();
    const int64_t first = int64_t(job.number()), blocks = int64_t(job.number());
    std::vector<uint32_t> words(4 * size_t(blocks));
    std::vector<float> normals(words.size());
    if (what == "words") {
      instruction_set().words(seed, uint32_t(stream), sample, first, blocks, words.data());
      give(words.data(), words.size());
    } else {
      instruction_set().normals(seed, sample, first, blocks, normals.data());
      give(normals.data(), normals.size());
    }
  } else if (what == "mask") {
    mask(job);
  } else if (what == "convert") {
    const Type type = Type(job.number());
    const size_t n = job.number();
    auto values = job.read<float>(n);
    std::vector<char> written(n * SIZE[type]);
    loops().write[type](values.data(), int64_t(n), written.data());
    loops().read[type](written.data(), int64_t(n), values.data());
    give(written.data(), written.size());
    give(values.data(), n);
  } else if (what == "patches" || what == "mse") {
    pixels(job, what == "mse");
  } else {
    std::exit(2);
  }
}

}  // namespace

int main(int count, char** words) {
  Job job{{words + 1, words + count}};
  run(job);
}
