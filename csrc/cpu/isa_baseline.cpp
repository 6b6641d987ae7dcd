// The loops for any machine: SSE2 on x86-64, NEON on arm64.
#include "loops.h"

#define ISA isa_baseline
#define ISA_NAME "baseline"
#include "loops.inl"
