#include "planes.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

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

// Large blocks between two tensors. The system clears pages before it gives them, some virtual
// machines even have to ask their host for them, and the C library returns large blocks at once.
class Blocks final : public c10::Allocator {
 public:
  static constexpr size_t kLeast = 1 << 20;   // the C library keeps smaller ones
  static constexpr size_t kMost = 100 << 20;  // of one block that is kept
  static constexpr size_t kAll = 256 << 20;   // of all of them

  // The smallest block that is kept and has these bytes, unless it has more than twice as many; else
  // a new one, in large pages where the system has them. Beside a very large one nothing is kept: there
  // it would add to the peak.
  c10::DataPtr allocate(size_t bytes) override {
    auto block = std::make_unique<Block>(take(bytes));
    if (!block->memory) {
      *block = {c10::GetCPUAllocator()->allocate(bytes), bytes};
      ask_for_large_pages(block->memory.get(), bytes);
    }
    void* const data = block->memory.get();
    return {data, block.release(), &give_back, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  struct Block {
    c10::DataPtr memory;
    size_t bytes = 0;
  };

  Block take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (bytes > kMost) {
      kept_.clear();
      kept_bytes_ = 0;
      return {};
    }
    auto best = kept_.end();
    for (auto block = kept_.begin(); block != kept_.end(); ++block) {
      if (block->bytes < bytes || block->bytes > 2 * bytes) continue;
      if (best == kept_.end() || block->bytes < best->bytes) best = block;
    }
    if (best == kept_.end()) return {};
    Block found = std::move(*best);
    kept_.erase(best);
    kept_bytes_ -= found.bytes;
    return found;
  }
  void keep(Block block) {
    if (block.bytes > kMost) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_bytes_ += block.bytes;
    kept_.push_back(std::move(block));
    while (kept_bytes_ > kAll) {  // the oldest goes
      kept_bytes_ -= kept_.front().bytes;
      kept_.erase(kept_.begin());
    }
  }
  static void give_back(void* block);
  static void ask_for_large_pages(void* data, size_t bytes);

  std::mutex mutex_;
  std::vector<Block> kept_;
  size_t kept_bytes_ = 0;
};

// Never destroyed: tensors and other threads may outlive it when the process ends.
Blocks& blocks() {
  static Blocks* const all = new Blocks;
  return *all;
}

void Blocks::give_back(void* block) {
  const std::unique_ptr<Block> own(static_cast<Block*>(block));
  blocks().keep(std::move(*own));
}

void Blocks::ask_for_large_pages(void* data, size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 2 << 20;
  const auto start = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (start + kPage - 1) / kPage * kPage, last = (start + bytes) / kPage * kPage;
  // Where the system has no large pages it refuses, and nothing is lost.
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Sanitizers are to see the end of every block, and when it is given back.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kKeeps = false;
#else
constexpr bool kKeeps = true;
#endif

}  // namespace

at::Tensor empty(at::IntArrayRef sizes, at::ScalarType type) {
  const size_t bytes = c10::multiply_integers(sizes) * c10::elementSize(type);
  if (!kKeeps || bytes < Blocks::kLeast) return at::empty(sizes, at::TensorOptions().dtype(type));
  constexpr c10::DispatchKeySet kDense(c10::DispatchKey::CPU);
  const at::Tensor tensor = at::detail::empty_generic(sizes, &blocks(), kDense, type, std::nullopt);
  if (at::globalContext().deterministicAlgorithms() &&
      at::globalContext().deterministicFillUninitializedMemory()) {
    std::memset(tensor.mutable_data_ptr(), 0xff, tensor.nbytes());  // NaN, as in at::empty
  }
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
  at::Tensor planes = empty(swapped.sizes(), volume.scalar_type());
  const int64_t count = volume.size(0) * volume.size(1);
  const int64_t rows = volume.size(2) * volume.size(3), columns = volume.size(4) * volume.size(5);
  FSDINO_DISPATCH(volume, "to_planes", [&] {
    transpose(source.const_data_ptr<scalar_t>(), count, rows, columns,
              planes.mutable_data_ptr<scalar_t>());
  });
  return planes;
}

}  // namespace fsdino::cpu
