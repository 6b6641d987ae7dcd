// Shared by the ops: element types, checked ids, and multithreaded loops.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "loops.h"

namespace maekernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Type type_of(ScalarType dtype);

inline Type type_of(const Tensor& x) { return type_of(x.scalar_type()); }

inline int64_t size_of(Type type) {
  constexpr int64_t sizes[TYPES] = {1, 4, 2, 2, 8};
  return sizes[type];
}

// The element type of A, for which rows need no conversion.
template <class A>
constexpr Type own_type = sizeof(A) == sizeof(float) ? F32 : F64;

template <class T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// The integers of a tensor in logical order. Throws std::invalid_argument, in Python ValueError, with the message of
// `maekernels._checks.check_range` unless every one is in [0, length).
std::vector<int64_t> checked_integers(const Tensor& ids, int64_t length, const char* name, const char* what);

inline std::vector<int64_t> checked_ids(const Tensor& ids, int64_t length) {
  return checked_integers(ids, length, "ids", "values");
}

// For each of the [batch, length] positions, the k of the id that refers to it, or -1. Throws std::invalid_argument if
// an id occurs twice in a sample, and like `checked_ids`.
std::vector<int64_t> inverse(const Tensor& ids, int64_t length);

// sqrt(alpha_bar) and sqrt(1 - alpha_bar) of each sample; checks the range [0, 1] like `check_alpha_bar_range`.
struct Levels {
  explicit Levels(const Tensor& alpha_bar, bool check = true);
  std::vector<float> signal, sigma;
};

// n elements of a contiguous tensor from element `first` on, as A. They are used in place if they have that type, and
// go through a buffer of the reader otherwise: each thread has its own reader and writer.
template <class A>
class Reader {
 public:
  Reader(const Tensor& x, int64_t most)
      : type_(type_of(x)), base_(data<char>(x)), buffer_(type_ == own_type<A> ? 0 : most) {}

  const A* operator()(int64_t first, int64_t n) {
    const char* from = base_ + first * size_of(type_);
    if (type_ == own_type<A>) return reinterpret_cast<const A*>(from);
    instruction_set().loops<A>().read[type_](from, n, buffer_.data());
    return buffer_.data();
  }

 private:
  Type type_;
  const char* base_;
  std::vector<A> buffer_;
};

template <class A>
class Writer {
 public:
  Writer(const Tensor& out, int64_t most)
      : type_(type_of(out)), base_(mutable_data<char>(out)), buffer_(type_ == own_type<A> ? 0 : most) {}

  // Where to write the elements from `first` on; then call `done`.
  A* at(int64_t first) { return type_ == own_type<A> ? reinterpret_cast<A*>(place(first)) : buffer_.data(); }
  void done(int64_t first, int64_t n) {
    if (type_ != own_type<A>) instruction_set().loops<A>().write[type_](buffer_.data(), n, place(first));
  }

 private:
  char* place(int64_t first) { return base_ + first * size_of(type_); }

  Type type_;
  char* base_;
  std::vector<A> buffer_;
};

// Calls work(first, last) on parts of [0, rows), on one thread if there is too little work to distribute. Results must
// not depend on how the rows are divided.
template <class Work>
void for_rows(int64_t rows, int64_t elements_of_row, const Work& work) {
  constexpr int64_t ENOUGH = 1 << 15;
  if (rows == 0) return;
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, ENOUGH / std::max<int64_t>(1, elements_of_row)), work);
}

// Calls f with a float, or with a double if one of the element types is double: the type to compute in.
template <class F>
void with_arithmetic(bool wide, const F& f) {
  wide ? f(double()) : f(float());
}

}  // namespace maekernels
