// Runs kernels of csrc/cuda on a CPU, for tests: what csrc/cuda/device.h asks of the hardware.
//
// Each thread of a block is a fiber, which runs until it has to wait for others. What hardware makes
// visible late is late here, too: background copies arrive when they are waited for. Shared memory
// starts as NaN. Fibers run in rising order in two blocks and in falling order in the next two; a
// missing barrier makes a difference.
// In every other block one warp runs only where no other can, and boxes arrive at once: what relies on
// warps going together, or on slow copies, breaks there.
// Of sm_90a, a box otherwise arrives when a thread waits for its barrier, and products read their operands when
// they are waited for. Descriptors and swizzles are taken apart here as the PTX manual has them. What
// the async proxy knows of shared memory is kept beside it: ordinary stores become part of that by
// `fence_async_proxy`, and copies and products of a place where they differ fail.

#pragma once

#include "emulator_hopper.h"
#include "emulator_machine.h"

namespace fsdino::cuda {

namespace emulator {

template <typename T>
float element(const Slot* slots, int lane, int word, int half) {
  const Word bits = slots[lane].words[word];
  if constexpr (std::is_same_v<T, float>) {
    return bits_as<float>(bits & 0xffffe000u);
  } else {
    return T(uint16_t(bits >> 16 * half), T::from_bits());
  }
}

}  // namespace emulator

inline float from_lane(float value, int mask) {
  emulator::Slot own{};
  own.value = value;
  return emulator::exchange(own)[emulator::machine.current % kWarp ^ mask].value;
}

template <int BYTES>
void copy_async(void* destination, const void* source, int valid) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
  const char* const shared = emulator::machine.shared.data();
  const char* const place = static_cast<const char*>(destination);
  if (place < shared || place + BYTES > shared + emulator::machine.shared.size()) {
    emulator::fail("a copy leaves shared memory");
  }
  if (reinterpret_cast<uintptr_t>(destination) % BYTES || valid < 0 || valid > BYTES ||
      (valid && reinterpret_cast<uintptr_t>(source) % BYTES)) {
    emulator::fail("a copy is not aligned");
  }
  emulator::machine.fibers[emulator::machine.current].copies.back().push_back(
      {destination, source, BYTES, valid});
}
inline void commit_copies() {
  emulator::machine.fibers[emulator::machine.current].copies.emplace_back();
}
template <int PENDING>
void wait_copies() {
  auto& groups = emulator::machine.fibers[emulator::machine.current].copies;
  while (groups.size() > PENDING + 1) {
    for (const auto& copy : groups.front()) {
      std::memset(copy.destination, 0, copy.bytes);
      if (copy.valid) std::memcpy(copy.destination, copy.source, copy.valid);
    }
    groups.erase(groups.begin());
  }
}

inline void load_matrices(Word (&words)[4], const Word* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) emulator::fail("a matrix is not aligned");
  emulator::Slot own{};
  own.row = row;
  const emulator::Slot* const slots = emulator::exchange(own);
  const int lane = emulator::machine.current % kWarp;
  for (int i = 0; i < 4; ++i) words[i] = slots[8 * i + lane / 4].row[lane % 4];
}

template <typename T>
void multiply_words(float (&sum)[4], const Word (&a)[4], const Word (&b)[2]) {
  emulator::Slot own{};
  std::memcpy(own.words, a, sizeof a);
  std::memcpy(own.words + 4, b, sizeof b);
  const emulator::Slot* const slots = emulator::exchange(own);
  const int lane = emulator::machine.current % kWarp;
  for (int k = 0; k < 4; ++k) {
    const int row = lane / 4 + k / 2 * 8, column = lane % 4 * 2 + k % 2;
    for (int part = 0; part < 2; ++part) {
      constexpr int kCount = emulator::kSummed<T>;
      static_assert(kCount == kStepWords / 2 * kPerWord<T>);
      float of_row[kCount], of_column[kCount];
      for (int i = 0; i < kCount; ++i) {
        const int word = i / kPerWord<T>, half = i % kPerWord<T>;
        of_row[i] = emulator::element<T>(slots, row % 8 * 4 + word, row / 8 + part * 2, half);
        of_column[i] = emulator::element<T>(slots, column * 4 + word, 4 + part, half);
      }
      sum[k] = emulator::add_products<T>(sum[k], of_row, of_column);
    }
  }
}

inline Word as_word(float value) { return emulator::bits_as<Word>(value); }
inline float as_float(Word word) { return emulator::bits_as<float>(word); }
inline float to_tf32(float value) {
  if (!std::isfinite(value)) return value;
  return as_float((as_word(value) + 0x1000u) & 0xffffe000u);
}
inline float inverse(float value) { return 1.0f / value; }
inline float root(float value) { return std::sqrt(value); }

inline bool device_runs_hopper_code() { return emulator::machine.hopper; }

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared, Stream,
            const Arguments&... arguments) {
  auto& machine = emulator::machine;
  if (shared > machine.shared_limit) throw std::runtime_error("too much shared memory");
  machine.threads = threads;
  machine.fibers.resize(threads);
  machine.warps.assign(threads / kWarp, {});
  machine.shared.assign(shared + 1023, 0);
  machine.kernel = [&] { kernel(Parameters(arguments)...); };
  for (machine.block = 0; machine.block < blocks; ++machine.block) emulator::run_block();
}

}  // namespace fsdino::cuda
