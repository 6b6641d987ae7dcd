// The loops for x86-64 machines with AVX2.
#include "loops.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif

#define ISA isa_avx2
#define ISA_NAME "avx2"
#include "loops.inl"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
