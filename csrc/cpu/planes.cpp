#include "planes.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace fsdino::cpu {
namespace {

// Transposes `count` matrices [rows, columns], in squares that fit the first cache.
template <typename T>
void transpose(const T* from, int64_t count, int64_t rows, int64_t columns, T* to) {
  constexpr int64_t kSide = 32;
  const int64_t bands = ceil_div(columns, kSide);
  at::parallel_for(0, count * bands, grain(rows * kSide), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % bands * kSide, last = std::min(first + kSide, columns);
      const T* source = from + task / bands * rows * columns;
      T* target = to + task / bands * rows * columns;
      for (int64_t r0 = 0; r0 < rows; r0 += kSide) {
        const int64_t r1 = std::min(r0 + kSide, rows);
        for (int64_t c = first; c < last; ++c) {
          for (int64_t r = r0; r < r1; ++r) target[c * rows + r] = source[r * columns + c];
        }
      }
    }
  });
}

}  // namespace

at::Tensor empty(at::IntArrayRef sizes, at::TensorOptions options) {
  const at::Tensor tensor = at::empty(sizes, options);
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 2 << 20;
  const auto start = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const uintptr_t first = (start + kPage - 1) / kPage * kPage;
  const uintptr_t last = (start + tensor.nbytes()) / kPage * kPage;
  // Where the system has no large pages it refuses, and nothing is lost.
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return tensor;
}

void discard(void* data, int64_t bytes) {
#ifdef __linux__
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (start + page - 1) / page * page;
  const uintptr_t last = (start + static_cast<uintptr_t>(bytes)) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
#endif
}

at::Tensor to_planes(const at::Tensor& volume) {
  const at::Tensor swapped = volume.permute({0, 1, 4, 5, 2, 3});
  if (swapped.is_contiguous()) return swapped;
  const at::Tensor source = volume.contiguous();
  at::Tensor planes = empty(swapped.sizes(), volume.options());
  const int64_t count = volume.size(0) * volume.size(1);
  const int64_t rows = volume.size(2) * volume.size(3), columns = volume.size(4) * volume.size(5);
  FSDINO_DISPATCH(volume, "to_planes", [&] {
    transpose(source.const_data_ptr<scalar_t>(), count, rows, columns,
              planes.mutable_data_ptr<scalar_t>());
  });
  return planes;
}

}  // namespace fsdino::cpu
