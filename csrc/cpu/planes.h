// Volumes with the query dims innermost, scratch memory, and the types to compute in.
//
// A volume [B, C, Hq, Wq, Hs, Ws] lies in memory as [B, C, Hs, Ws, Hq, Wq]: every support position
// of every channel is one contiguous plane of query positions. Both convolutions of a center pivot
// are then sums of planes: over the support, of other planes as they are, at any stride; over the
// query, of one plane, shifted. The correlation comes out of its matrix product in this order.

#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>

#include "simd.h"

namespace fsdino::cpu {

// Runs a lambda with `scalar_t`, one of the four types that the ops take.
#define FSDINO_DISPATCH(tensor, name, ...)                                                       \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, (tensor).scalar_type(), name, \
                                  __VA_ARGS__)

template <typename A>
constexpr at::ScalarType kScalar = c10::CppTypeToScalarType<A>::value;

// at::empty, whose memory the system may give in large pages: a volume's planes lie far apart, and
// with small ones nearly every row is a miss of the address cache. Some of it is kept for later tensors
// when its own is freed.
at::Tensor empty(at::IntArrayRef sizes, at::ScalarType type);

// Gives memory back to the system whose values nobody reads again, before its tensor is freed.
void discard(void* data, int64_t bytes);

// Memory for `threads` threads, uninitialised.
template <typename A>
class Scratch {
 public:
  Scratch(int64_t size, int64_t threads = 1)
      : stride_(ceil_div(size, 16) * 16),
        memory_(empty({stride_ * threads + 64}, kScalar<A>)) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.template data_ptr<A>());
    start_ = reinterpret_cast<A*>((address + 63) / 64 * 64);
  }
  A* data(int64_t thread = 0) const { return start_ + thread * stride_; }
  A* mine() const { return data(at::get_thread_num()); }

 private:
  int64_t stride_;
  at::Tensor memory_;
  A* start_;
};

// How many consecutive tasks of `cost` multiply-adds are worth a thread of their own.
inline int64_t grain(int64_t cost) { return std::max<int64_t>(1, 200000 / std::max<int64_t>(1, cost)); }

// The planes of one sample: where the one of a channel and a support position starts. A ring of
// `rows` rows holds a window of more; a whole volume is a ring of all its rows.
template <typename T>
struct Planes {
  T* data;
  int64_t channel, row, column;  // strides
  int64_t rows;

  T* at(int64_t c, int64_t i, int64_t j) const {
    return data + c * channel + i % rows * row + j * column;
  }
};

// Sample `b` of [B, C, H, W, N] in memory.
template <typename T>
Planes<T> sample(T* data, int64_t b, int64_t channels, int64_t height, int64_t width, int64_t count) {
  const int64_t plane = height * width * count;
  return {data + b * channels * plane, plane, width * count, count, height};
}

// [B, C, Hq, Wq, Hs, Ws] in any strides -> [B, C, Hs, Ws, Hq, Wq], contiguous; no copy where the
// memory is already in that order.
at::Tensor to_planes(const at::Tensor& volume);

// The way back: a view of the logical shape.
inline at::Tensor from_planes(const at::Tensor& planes) {
  return planes.permute({0, 1, 4, 5, 2, 3});
}

}  // namespace fsdino::cpu
