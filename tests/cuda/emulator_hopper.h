// What csrc/cuda/device.h asks of sm_90a: barriers, copies of boxes, products of warpgroups.

#pragma once

#include "emulator_machine.h"

namespace fsdino::cuda {

namespace emulator {

// Swizzle of 128 bytes: bits 4 to 6 of an address take bits 7 to 9 upon them.
inline char* swizzled_place(uint32_t address) {
  const uint32_t piece = (address >> 4 & 7) ^ (address >> 7 & 7);
  const uint32_t place = (address & ~0x70u) | piece << 4;
  if (place < 1024 || place - 1024 >= machine.shared.size()) fail("beyond shared memory");
  return shared_memory() + (place - 1024);
}

inline char* known_at(const char* place) {
  return machine.known.data() + (place - machine.shared.data());
}

inline void check_known(const char* place, int bytes, const char* what) {
  if (std::memcmp(place, known_at(place), bytes)) fail(what);
}

inline void check_barrier(const PhaseBarrier& barrier) {
  if (barrier.arrivals <= 0 || barrier.missing < 0) fail("a barrier is not started");
}

inline void end_phase(PhaseBarrier& barrier) {
  if (barrier.missing != 0 || barrier.bytes != 0) return;
  barrier.missing = barrier.arrivals;
  barrier.parity ^= 1;
  ++machine.progress;
}

// Writes a box; the bytes that it brings, zeros included.
inline int deliver(const BoxCopy& copy) {
  const BoxShape& shape = copy.map.shape;
  const uint32_t start = shared_address(copy.destination);
  int rows = 1;
  for (int i = 1; i < kBoxDims; ++i) rows *= shape.box[i];
  for (int row = 0; row < rows; ++row) {
    for (int element = 0; element < shape.box[0]; ++element) {
      int64_t offset = 0;
      bool inside = true;
      for (int i = 0, rest = row; i < kBoxDims; ++i) {
        const int64_t at = copy.at[i] + (i == 0 ? element : rest % shape.box[i]);
        if (i > 0) rest /= shape.box[i];
        inside = inside && at >= 0 && at < shape.sizes[i];
        offset += at * shape.strides[i];
      }
      char* const to = swizzled_place(start + uint32_t(row * shape.box[0] + element) * 2);
      check_known(to, 2, "ordinary stores write where a copy is on its way");
      if (inside) std::memcpy(to, copy.map.tensor + offset, 2); else std::memset(to, 0, 2);
      std::memcpy(known_at(to), to, 2);
    }
  }
  return rows * shape.box[0] * 2;
}

// Where element k of an operand's row lies, as the descriptor has it.
inline const char* operand_at(uint64_t descriptor, int row, int k) {
  const uint32_t start = uint32_t(descriptor & 0x3fff) << 4;
  const uint32_t stride = uint32_t(descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) fail("a layout that is not emulated");
  if (start >> 7 & 7) fail("an operand does not start where the swizzle's pattern does");
  return swizzled_place(start + row / 8 * stride + row % 8 * 128 + k * 2);
}

inline void check_operand(uint64_t descriptor, int rows) {
  for (int row = 0; row < rows; ++row) {
    for (int k = 0; k < kAsyncDepth; k += 8) {
      check_known(operand_at(descriptor, row, k), 16,
                  "a product reads what ordinary stores wrote, without fence.proxy.async");
    }
  }
}

// A row of an operand, 16 elements along the inner dimension.
template <typename T>
void read_row(uint64_t descriptor, int row, float (&values)[kAsyncDepth]) {
  for (int k = 0; k < kAsyncDepth; ++k) {
    const char* const place = operand_at(descriptor, row, k);
    check_known(place, 2, "ordinary stores change what a product may still read");
    T value;
    std::memcpy(&value, place, 2);
    values[k] = value;
  }
}

// This thread's elements of a warpgroup's product.
template <typename T>
void product_of_thread(float (&sums)[kAsyncColumns / 8][4], uint64_t a, uint64_t b) {
  const int thread = machine.current % 128, warp = thread / 32, lane = thread % 32;
  float rows[2][kAsyncDepth], columns[2][kAsyncDepth];
  read_row<T>(a, 16 * warp + lane / 4, rows[0]);
  read_row<T>(a, 16 * warp + lane / 4 + 8, rows[1]);
  for (int j = 0; j < kAsyncColumns / 8; ++j) {
    read_row<T>(b, 8 * j + lane % 4 * 2, columns[0]);
    read_row<T>(b, 8 * j + lane % 4 * 2 + 1, columns[1]);
    for (int k = 0; k < 4; ++k) {
      for (int i = 0; i < kAsyncDepth; i += kSummed<T>) {
        sums[j][k] = add_products<T>(sums[j][k], rows[k / 2] + i, columns[k % 2] + i);
      }
    }
  }
}

}  // namespace emulator

inline void start_barrier(PhaseBarrier* barrier, int arrivals) {
  if (reinterpret_cast<uintptr_t>(barrier) % 8) emulator::fail("a barrier is not aligned");
  *barrier = {int16_t(arrivals), int16_t(arrivals), 0, 0};
  emulator::machine.barriers_known = false;
}
inline void publish_barriers() { emulator::machine.barriers_known = true; }
// As fence.proxy.async by all threads that stored: what ordinary stores wrote until now is seen by
// copies and products. No kernel needs it: none lets them read, or write over, anything but what
// copies brought.
inline void fence_async_proxy() { emulator::machine.known = emulator::machine.shared; }
inline void arrive_before(PhaseBarrier* barrier, int bytes) {
  emulator::check_barrier(*barrier);
  if (barrier->missing == 0) emulator::fail("too many arrivals at a barrier");
  barrier->bytes += bytes;
  --barrier->missing;
  emulator::end_phase(*barrier);
}
inline void arrive(PhaseBarrier* barrier) { arrive_before(barrier, 0); }
inline void wait_phase(PhaseBarrier* barrier, int parity) {
  emulator::check_barrier(*barrier);
  while (int(barrier->parity) == parity) {
    auto& boxes = emulator::machine.boxes;
    for (size_t i = 0; i < boxes.size();) {
      if (boxes[i].barrier != barrier) {
        ++i;
        continue;
      }
      barrier->bytes -= emulator::deliver(boxes[i]);
      boxes.erase(boxes.begin() + int64_t(i));
      emulator::end_phase(*barrier);
    }
    if (int(barrier->parity) == parity) emulator::yield();
  }
}

// The limits are those of `cuTensorMapEncodeTiled` in cuda.h.
inline BoxMap box_map(const void* tensor, const BoxShape& shape) {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw std::runtime_error(std::string("emulator: the driver takes no map ") + what);
  };
  require(reinterpret_cast<uintptr_t>(tensor) % 16 == 0, "of an address between 16 bytes");
  for (int i = 0; i < kBoxDims; ++i) {
    require(shape.sizes[i] >= 1 && shape.sizes[i] <= int64_t(1) << 32, "of sizes beyond 1 to 2^32");
    require(shape.box[i] >= 1 && shape.box[i] <= 256, "of boxes beyond 1 to 256 elements a side");
    if (i == 0) continue;
    require(shape.strides[i] > 0 && shape.strides[i] % 16 == 0, "of strides between 16 bytes");
    require(shape.strides[i] < int64_t(1) << 40, "of strides from 2^40 bytes on");
  }
  require(shape.box[0] * 2 % 16 == 0, "of boxes whose rows end between 16 bytes");
  require(shape.box[0] * 2 <= kBoxBytes, "of boxes whose rows are longer than the swizzle");
  if (shape.strides[0] != 2 || shape.box[0] != kBoxDepth) {
    throw std::runtime_error("emulator: boxes that are not emulated");
  }
  return {static_cast<const char*>(tensor), shape};
}
inline void copy_box(void* destination, const BoxMap& map, const int (&at)[kBoxDims],
                     PhaseBarrier* barrier) {
  emulator::check_barrier(*barrier);
  if (!emulator::machine.barriers_known) {
    emulator::fail("a copy's barrier was started without fence.mbarrier_init");
  }
  if (shared_address(destination) % 1024) emulator::fail("a box starts within a pattern");
  int bytes = 2;
  for (const int side : map.shape.box) bytes *= side;
  emulator::check_known(static_cast<const char*>(destination), bytes,
                        "a copy writes over ordinary stores, without fence.proxy.async");
  emulator::BoxCopy copy{static_cast<char*>(destination), map, {}, barrier};
  std::memcpy(copy.at, at, sizeof copy.at);
  if (emulator::uneven()) {
    barrier->bytes -= emulator::deliver(copy);
    emulator::end_phase(*barrier);
  } else {
    emulator::machine.boxes.push_back(copy);
  }
}

inline void fence_products() {
  emulator::exchange({});
  emulator::machine.fibers[emulator::machine.current].fenced = true;
}
template <typename T>
void multiply_async(float (&sums)[kAsyncColumns / 8][4], uint64_t a, uint64_t b) {
  auto& fiber = emulator::machine.fibers[emulator::machine.current];
  if (!fiber.fenced) emulator::fail("a product without a fence");
  emulator::Slot own{};
  own.words[0] = Word(a);
  own.words[1] = Word(b);
  const emulator::Slot* const slots = emulator::exchange(own);
  for (int lane = 0; lane < kWarp; ++lane) {
    if (std::memcmp(slots[lane].words, own.words, sizeof own.words)) {
      emulator::fail("a warp's lanes multiply different operands");
    }
  }
  if (thread_index() % kWarp == 0) {
    emulator::check_operand(a, kAsyncRows);
    emulator::check_operand(b, kAsyncColumns);
  }
  float(*const to)[kAsyncColumns / 8][4] = &sums;
  fiber.products.back().push_back(
      [to, a, b] { emulator::product_of_thread<T>(*to, a, b); });
}
inline void commit_products() {
  emulator::machine.fibers[emulator::machine.current].products.emplace_back();
}
template <int PENDING>
void wait_products() {
  auto& fiber = emulator::machine.fibers[emulator::machine.current];
  while (fiber.products.size() > PENDING + 1) {
    for (const auto& product : fiber.products.front()) product();
    fiber.products.erase(fiber.products.begin());
  }
  fiber.fenced = false;
}

}  // namespace fsdino::cuda
