// The hot loops of the ops, compiled once for each instruction set. They use raw memory and no torch.
#pragma once

#include <cstdint>

namespace maekernels {

// Element types in memory; they index the tables below.
enum Type : int { U8, F32, BF16, F16, F64 };
constexpr int TYPES = 5;

// One patch in memory: sizes, and strides in elements. `packed`: w and c are contiguous.
struct Patch {
  int64_t pt, ph, pw, channels;
  int64_t st, sh, sw, sc;
  bool packed;

  int64_t line() const { return pw * channels; }
  int64_t size() const { return pt * ph * line(); }
};

// Loops that compute in A: float, or double if an input is double. Results do not depend on the instruction set: sums
// have a fixed order and nothing is contracted to a fused multiply-add.
template <class A>
struct Loops {
  // out = pixels * scale + shift, in the order (t, h, w, c); one scale and shift per element of a line.
  void (*load_patch[TYPES])(const void* origin, const Patch& patch, const A* scale, const A* shift, A* out);
  // pixels = values * scale: the reverse, for the gradient.
  void (*store_patch[TYPES])(const A* values, const Patch& patch, const A* scale, void* origin);
  void (*read[TYPES])(const void* from, int64_t n, A* to);
  void (*write[TYPES])(const A* from, int64_t n, void* to);
  // v = (v - mean) * rstd with rstd = 1 / sqrt(var + 1e-6), var unbiased; returns rstd.
  A (*normalise)(A* v, int64_t n);
  // In place: from the gradient of the normalised values v to that of the values before `normalise`.
  void (*normalise_backward)(A* grad, const A* v, A rstd, int64_t n);
  // (v - mean) / (sqrt(var) + 1e-6) for each channel v[c], v[c + channels], ...; the factor goes to rstd[c], and
  // 1 / sqrt(var), or 0 for a constant channel, to slope[c].
  void (*normalise_channels)(A* v, int64_t n, int64_t channels, A* rstd, A* slope);
  void (*normalise_channels_backward)(A* grad, const A* v, const A* rstd, const A* slope, int64_t n, int64_t channels);
  // out = signal * v + sigma * noise; v may alias out
  void (*mix)(const A* v, const float* noise, float signal, float sigma, A* out, int64_t n);
  void (*multiply)(const A* v, A factor, A* out, int64_t n);
  void (*add)(A* total, const A* v, int64_t n);
  // sum (a - b)^2
  A (*squared_distance)(const A* a, const A* b, int64_t n);
  // out = (a - b) * factor
  void (*scaled_difference)(const A* a, const A* b, A factor, A* out, int64_t n);
};

// Philox4x32-10 blocks `first`, `first + 1`, ... of one sample: four words, or four normals, per block.
using Words = void (*)(uint64_t seed, uint32_t stream, uint64_t sample, int64_t first, int64_t blocks, uint32_t* out);
using Normals = void (*)(uint64_t seed, uint64_t sample, int64_t first, int64_t blocks, float* out);

struct InstructionSet {
  const char* name;
  Words words;
  Normals normals;
  Loops<float> in_float;
  Loops<double> in_double;

  template <class A>
  const Loops<A>& loops() const {
    if constexpr (sizeof(A) == sizeof(float)) {
      return in_float;
    } else {
      return in_double;
    }
  }
};

// The best that this machine supports, or the one named by the environment variable MAEKERNELS_CPU_ISA.
const InstructionSet& instruction_set();

}  // namespace maekernels
