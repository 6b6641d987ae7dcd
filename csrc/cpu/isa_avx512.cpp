// The loops for x86-64 machines with AVX-512.
#include "loops.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif

#define ISA isa_avx512
#define ISA_NAME "avx512"
#include "loops.inl"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
