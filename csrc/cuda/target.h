// The algorithms in these headers are compiled twice: by nvcc for a GPU, and by a C++ compiler for tests without one.
#pragma once

#ifdef __CUDACC__
#define MAEKERNELS_FN __device__ __forceinline__
#else
#define MAEKERNELS_FN inline
#endif
