// The loops of loops.h. Each isa_*.cpp includes this file after choosing its instruction set and naming it ISA.
//
// Everything has internal linkage and nothing of the standard library is instantiated: otherwise the linker could keep
// the AVX-512 copy of a shared inline function for a machine without AVX-512.

namespace maekernels {
namespace {

inline float SQRT(float x) { return __builtin_sqrtf(x); }
inline double SQRT(double x) { return __builtin_sqrt(x); }

#include "philox.inl"

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

inline float from(uint8_t x) { return x; }
inline float from(float x) { return x; }
inline double from(double x) { return x; }
inline float from(BFloat16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }

// A multiplication rebiases the exponent of a half, which also normalises subnormals.
inline float from(Half x) {
  const uint32_t magnitude = x.bits & 0x7FFFu;
  uint32_t bits = __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, magnitude << 13) * 0x1p112f);
  bits = magnitude >= 0x7C00u ? bits | 0x7F800000u : bits;
  return __builtin_bit_cast(float, bits | uint32_t(x.bits & 0x8000u) << 16);
}

// Rounds to nearest, ties to even; every nan becomes a quiet nan.
template <class Out, class A>
inline Out to(A x) {
  const float f = float(x);
  const uint32_t bits = __builtin_bit_cast(uint32_t, f), magnitude = bits & 0x7FFFFFFFu;
  if constexpr (__is_same(Out, BFloat16)) {
    const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
    return {uint16_t(magnitude > 0x7F800000u ? 0x7FC0u : rounded)};
  } else if constexpr (__is_same(Out, Half)) {
    const uint32_t normal = (magnitude + 0xFFFu + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
    // Rounded once, by adding 1/2, whose unit in the last place is the smallest half.
    const uint32_t subnormal = __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, magnitude) + 0.5f) - 0x3F000000u;
    uint32_t found = magnitude < 0x38800000u ? subnormal : normal;
    found = magnitude >= 0x477FF000u ? 0x7C00u : found;
    found = magnitude > 0x7F800000u ? 0x7E00u : found;
    return {uint16_t(found | (bits >> 16 & 0x8000u))};
  } else {
    return Out(x);
  }
}

template <class In, class A>
void load_patch(const void* origin, const Patch& p, const A* __restrict scale, const A* __restrict shift,
                A* __restrict out) {
  const int64_t line = p.line();
  for (int64_t t = 0; t < p.pt; ++t) {
    for (int64_t h = 0; h < p.ph; ++h, out += line) {
      const In* in = static_cast<const In*>(origin) + t * p.st + h * p.sh;
      if (p.packed) {
#pragma omp simd
        for (int64_t i = 0; i < line; ++i) out[i] = A(from(in[i])) * scale[i] + shift[i];
      } else {
        for (int64_t c = 0; c < p.channels; ++c) {
          for (int64_t w = 0; w < p.pw; ++w) {
            out[w * p.channels + c] = A(from(in[w * p.sw + c * p.sc])) * scale[c] + shift[c];
          }
        }
      }
    }
  }
}

template <class Out, class A>
void store_patch(const A* __restrict values, const Patch& p, const A* __restrict scale, void* origin) {
  const int64_t line = p.line();
  for (int64_t t = 0; t < p.pt; ++t) {
    for (int64_t h = 0; h < p.ph; ++h, values += line) {
      Out* out = static_cast<Out*>(origin) + t * p.st + h * p.sh;
      if (p.packed) {
#pragma omp simd
        for (int64_t i = 0; i < line; ++i) out[i] = to<Out>(values[i] * scale[i]);
      } else {
        for (int64_t c = 0; c < p.channels; ++c) {
          for (int64_t w = 0; w < p.pw; ++w) {
            out[w * p.sw + c * p.sc] = to<Out>(values[w * p.channels + c] * scale[c]);
          }
        }
      }
    }
  }
}

template <class In, class A>
void read(const void* memory, int64_t n, A* __restrict out) {
  const In* in = static_cast<const In*>(memory);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = A(from(in[i]));
}

template <class Out, class A>
void write(const A* __restrict in, int64_t n, void* memory) {
  Out* out = static_cast<Out*>(memory);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = to<Out>(in[i]);
}

// Sum of term(i) over n, in LANES partial sums: the order does not depend on the vector width.
template <class A, class Term>
inline A sum(int64_t n, Term term) {
  constexpr int LANES = 32;
  A lane[LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
#pragma omp simd
    for (int j = 0; j < LANES; ++j) lane[j] += term(i + j);
  }
  for (int j = 0; i < n; ++i, ++j) lane[j] += term(i);
  for (int width = LANES / 2; width; width /= 2) {
    for (int j = 0; j < width; ++j) lane[j] += lane[j + width];
  }
  return lane[0];
}

template <class A>
A normalise(A* v, int64_t n) {
  const A mean = sum<A>(n, [=](int64_t i) { return v[i]; }) / A(n);
  const A variance = sum<A>(n, [=](int64_t i) { return (v[i] - mean) * (v[i] - mean); }) / A(n - 1);
  const A rstd = 1 / SQRT(variance + A(1e-6));
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) v[i] = (v[i] - mean) * rstd;
  return rstd;
}

template <class A>
void normalise_backward(A* __restrict grad, const A* __restrict v, A rstd, int64_t n) {
  const A mean = sum<A>(n, [=](int64_t i) { return grad[i]; }) / A(n);
  const A along = sum<A>(n, [=](int64_t i) { return grad[i] * v[i]; }) / A(n - 1);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) grad[i] = rstd * (grad[i] - mean - v[i] * along);
}

template <class A>
void normalise_channels(A* v, int64_t n, int64_t channels, A* rstd, A* slope) {
  const int64_t size = n / channels;
  for (int64_t c = 0; c < channels; ++c) {
    A* own = v + c;
    const A mean = sum<A>(size, [=](int64_t i) { return own[i * channels]; }) / A(size);
    const A squares =
        sum<A>(size, [=](int64_t i) { return (own[i * channels] - mean) * (own[i * channels] - mean); });
    const A deviation = SQRT(squares / A(size - 1));
    rstd[c] = 1 / (deviation + A(1e-6));
    slope[c] = deviation > 0 ? 1 / deviation : A(0);
    for (int64_t i = 0; i < size; ++i) own[i * channels] = (own[i * channels] - mean) * rstd[c];
  }
}

template <class A>
void normalise_channels_backward(A* __restrict grad, const A* __restrict v, const A* rstd, const A* slope, int64_t n,
                                 int64_t channels) {
  const int64_t size = n / channels;
  for (int64_t c = 0; c < channels; ++c) {
    A* g = grad + c;
    const A* own = v + c;
    const A mean = sum<A>(size, [=](int64_t i) { return g[i * channels]; }) / A(size);
    const A dot = sum<A>(size, [=](int64_t i) { return g[i * channels] * own[i * channels]; });
    const A along = dot / A(size - 1) * slope[c];
    for (int64_t i = 0; i < size; ++i) {
      g[i * channels] = rstd[c] * (g[i * channels] - mean) - own[i * channels] * along;
    }
  }
}

template <class A>
void mix(const A* v, const float* noise, float signal, float sigma, A* out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = A(signal) * v[i] + A(sigma * noise[i]);
}

template <class A>
void multiply(const A* v, A factor, A* out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = factor * v[i];
}

template <class A>
void add(A* __restrict total, const A* __restrict v, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) total[i] += v[i];
}

template <class A>
A squared_distance(const A* a, const A* b, int64_t n) {
  return sum<A>(n, [=](int64_t i) { return (a[i] - b[i]) * (a[i] - b[i]); });
}

template <class A>
void scaled_difference(const A* a, const A* b, A factor, A* __restrict out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = (a[i] - b[i]) * factor;
}

template <class A>
constexpr Loops<A> loops_in() {
  return {
      {load_patch<uint8_t, A>, load_patch<float, A>, load_patch<BFloat16, A>, load_patch<Half, A>,
       load_patch<double, A>},
      {store_patch<uint8_t, A>, store_patch<float, A>, store_patch<BFloat16, A>, store_patch<Half, A>,
       store_patch<double, A>},
      {read<uint8_t, A>, read<float, A>, read<BFloat16, A>, read<Half, A>, read<double, A>},
      {write<uint8_t, A>, write<float, A>, write<BFloat16, A>, write<Half, A>, write<double, A>},
      normalise<A>,
      normalise_backward<A>,
      normalise_channels<A>,
      normalise_channels_backward<A>,
      mix<A>,
      multiply<A>,
      add<A>,
      squared_distance<A>,
      scaled_difference<A>,
  };
}

}  // namespace

extern const InstructionSet ISA;
const InstructionSet ISA = {ISA_NAME, words, normals, loops_in<float>(), loops_in<double>()};

}  // namespace maekernels
