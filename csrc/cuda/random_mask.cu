// maekernels_cuda::random_mask, the CUDA version of maekernels::random_mask: one launch, one thread block per sample.
//
// A separate op, not a second kernel of maekernels::random_mask: that op is a `torch.library.custom_op`, whose CUDA key
// already holds the Python function that launches Triton. Which of two registrations wins would depend on the order of
// imports, and Triton could no longer be requested. So Python chooses (maekernels/_native_cuda.py).
//
// The stream is an argument: the shim that returns the current stream is part of libtorch_cuda, and without it this
// library loads, and is tested, with a torch built for the CPU only.
#include <cub/block/block_scan.cuh>
#include <cuda_runtime.h>
#include <limits>
#include <optional>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <tuple>

#include "random_mask.h"

namespace maekernels {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class Shape_>
struct CudaBlock {
  using Shape = Shape_;
  using Scan = cub::BlockScan<uint32_t, Shape::THREADS, cub::BLOCK_SCAN_WARP_SCANS>;

  MaskShared<Shape>& shared;
  typename Scan::TempStorage& scan;
  MaskLane<Shape> lane;

  template <class F>
  __device__ __forceinline__ void each(F f) {
    f(threadIdx.x, lane);
    __syncthreads();
  }

  // No barrier after it: `before` is private to the thread, and CUB's storage is reused only after an `each`.
  template <class F>
  __device__ __forceinline__ void exclusive_sum(F f) {
    Scan(scan).ExclusiveSum(f(threadIdx.x, lane), lane.before);
  }

  __device__ __forceinline__ void increment(uint32_t& x) { atomicAdd(&x, 1u); }
};

// Threads that should be resident on a multiprocessor, so that a typical batch runs in one wave: all 2048 with four
// tokens per thread, i.e. 32 registers each; wider keys or more of them need more registers.
template <class Shape>
constexpr uint32_t RESIDENT = Shape::KEY_BITS * Shape::BLOCKS == 32 ? 2048 : 1536;

template <class Shape>
__global__ void __launch_bounds__(Shape::THREADS, RESIDENT<Shape> / Shape::THREADS)
    random_mask_kernel(const MaskJob job) {
  __shared__ MaskShared<Shape> shared;
  __shared__ typename CudaBlock<Shape>::Scan::TempStorage scan;
  CudaBlock<Shape> block{shared, scan};
  random_mask(block, job, blockIdx.x);
}

template <class Key>
void launch(const MaskJob& job, int64_t batch, cudaStream_t stream) {
  with_mask_shape<Key>(job.length, [&](auto shape) {
    using Shape = decltype(shape);
    random_mask_kernel<Shape><<<static_cast<unsigned>(batch), Shape::THREADS, 0, stream>>>(job);
  });
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "random_mask: ", cudaGetErrorString(error));
}

std::tuple<Tensor, Tensor> random_mask_cuda(int64_t batch, int64_t length, int64_t num_keep, const Tensor& seed,
                                            int64_t offset, const std::optional<Tensor>& groups, int64_t stream) {
  STD_TORCH_CHECK(batch >= 0 && batch <= std::numeric_limits<int32_t>::max(), "batch=", batch);
  STD_TORCH_CHECK(length >= 0 && length <= MAX_LENGTH, "length=", length, ": must be in [0, ", MAX_LENGTH, "]");
  STD_TORCH_CHECK(num_keep >= 0 && num_keep <= length, "num_keep=", num_keep, ": must be in [0, ", length, "]");
  STD_TORCH_CHECK(seed.dim() == 0 && seed.scalar_type() == ScalarType::Long, "seed: must be a 0-d int64 tensor");

  MaskJob job{};
  if (groups) {
    const ScalarType type = groups->scalar_type();
    STD_TORCH_CHECK(groups->dim() == 2 && groups->size(1) == length && groups->is_contiguous() &&
                        groups->get_device_index() == seed.get_device_index() &&
                        (type == ScalarType::Int || type == ScalarType::Long),
                    "groups: must be contiguous int32 or int64 [G, ", length, "] on the seed's device");
    job.groups = groups->const_data_ptr();
    job.wide = type == ScalarType::Long;
    job.sets = static_cast<uint32_t>(groups->size(0));
  }

  const torch::stable::accelerator::DeviceGuard guard(seed.get_device_index());
  Tensor keep = torch::stable::new_empty(seed, {batch, num_keep}, ScalarType::Int);
  Tensor mask = torch::stable::new_empty(seed, {batch, length - num_keep}, ScalarType::Int);
  job.seed = static_cast<const int64_t*>(seed.const_data_ptr());
  job.length = static_cast<uint32_t>(length);
  job.num_keep = static_cast<uint32_t>(num_keep);
  job.offset = offset;
  job.keep = static_cast<int32_t*>(keep.mutable_data_ptr());
  job.mask = static_cast<int32_t*>(mask.mutable_data_ptr());
  if (batch > 0 && length > 0) {
    const cudaStream_t on = reinterpret_cast<cudaStream_t>(stream);
    groups ? launch<uint64_t>(job, batch, on) : launch<uint32_t>(job, batch, on);
  }
  return {keep, mask};
}

}  // namespace
}  // namespace maekernels

// For module.cpp, which is compiled without the CUDA headers.
extern "C" const int maekernels_cuda_toolkit;
const int maekernels_cuda_toolkit = CUDART_VERSION;

STABLE_TORCH_LIBRARY_FRAGMENT(maekernels_cuda, m) {
  m.def(
      "random_mask(int batch, int length, int num_keep, Tensor seed, int offset, Tensor? groups, int stream)"
      " -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(maekernels_cuda, CUDA, m) {
  m.impl("random_mask", TORCH_BOX(&maekernels::random_mask_cuda));
}
