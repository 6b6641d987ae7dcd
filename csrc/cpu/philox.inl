// Philox4x32-10 (Salmon et al. 2011) and Box-Muller, for loops that the compiler vectorises over blocks.
// Included by loops.inl, inside its namespace.

struct Block {
  uint32_t w0, w1, w2, w3;
};

inline Block philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  // Unrolled, since an inner loop would prevent the loop over blocks from being vectorised.
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p2 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p2 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p2);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

// -2 ln u for u in (0, 1]: u = m 2^e with m in [1/sqrt 2, sqrt 2), ln m = 2 artanh((m - 1) / (m + 1)). The next term of
// the series is below 2^-28 of the result.
inline float minus_two_log(float u) {
  const int32_t bits = __builtin_bit_cast(int32_t, u);
  const int32_t e = (bits - 0x3F3504F3) >> 23;
  const float m = __builtin_bit_cast(float, bits - (e << 23));
  const float s = (m - 1) / (m + 1), z = s * s;
  const float ln = s * (2 + z * (2.0f / 3 + z * (2.0f / 5 + z * (2.0f / 7 + z * (2.0f / 9)))));
  return -2 * (ln + float(e) * 0.693147180559945f);
}

// Two normals. The angle is reduced as an integer, exactly, to [-pi/4, pi/4), where the Taylor series of sine and
// cosine have an error below 2^-28.
inline void box_muller(uint32_t radius, uint32_t angle, float& z0, float& z1) {
  const float r = SQRT(minus_two_log(float(radius) * 0x1p-32f + 0x1p-33f));
  const uint32_t quarter = (angle + 0x20000000u) >> 30;
  const float x = float(int32_t(angle - (quarter << 30))) * 1.4629180792671596e-9f, y = x * x;
  const float sine = x + x * y * (-1.0f / 6 + y * (1.0f / 120 + y * (-1.0f / 5040 + y * (1.0f / 362880))));
  const float cosine =
      1 - y * (0.5f - y * (1.0f / 24 - y * (1.0f / 720 - y * (1.0f / 40320 - y * (1.0f / 3628800)))));
  const bool swapped = quarter & 1;
  const uint32_t c = __builtin_bit_cast(uint32_t, swapped ? sine : cosine);
  const uint32_t s = __builtin_bit_cast(uint32_t, swapped ? cosine : sine);
  z0 = r * __builtin_bit_cast(float, c ^ ((quarter + 1) << 30 & 0x80000000u));
  z1 = r * __builtin_bit_cast(float, s ^ (quarter << 30 & 0x80000000u));
}

void words(uint64_t seed, uint32_t stream, uint64_t sample, int64_t first, int64_t blocks, uint32_t* __restrict out) {
  const uint32_t c2 = uint32_t(sample), c3 = uint32_t(sample >> 32);
#pragma omp simd
  for (int64_t i = 0; i < blocks; ++i) {
    const Block w = philox(seed, uint32_t(first) + uint32_t(i), stream, c2, c3);
    out[4 * i] = w.w0;
    out[4 * i + 1] = w.w1;
    out[4 * i + 2] = w.w2;
    out[4 * i + 3] = w.w3;
  }
}

void normals(uint64_t seed, uint64_t sample, int64_t first, int64_t blocks, float* __restrict out) {
  const uint32_t c2 = uint32_t(sample), c3 = uint32_t(sample >> 32);
#pragma omp simd
  for (int64_t i = 0; i < blocks; ++i) {
    const Block w = philox(seed, uint32_t(first) + uint32_t(i), 0, c2, c3);
    float z0, z1, z2, z3;
    box_muller(w.w0, w.w1, z0, z1);
    box_muller(w.w2, w.w3, z2, z3);
    out[4 * i] = z0;
    out[4 * i + 1] = z1;
    out[4 * i + 2] = z2;
    out[4 * i + 3] = z3;
  }
}
