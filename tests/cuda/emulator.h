// Runs kernels of csrc/cuda on a CPU, for tests: what csrc/cuda/device.h asks of the hardware.
//
// Each thread of a block is a fiber, which runs until it has to wait for others. What hardware makes
// visible late is late here, too: background copies arrive when they are waited for. Shared memory
// starts as NaN. Fibers run in rising or in falling order; a missing barrier makes a difference.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define FSDINO_DEVICE inline
#define FSDINO_KERNEL(threads) void

namespace fsdino::cuda {

namespace emulator {

template <typename To, typename From>
To bits_as(From value) {
  To result;
  static_assert(sizeof result == sizeof value);
  std::memcpy(&result, &value, sizeof result);
  return result;
}

struct Copy {
  void* destination;
  const void* source;
  int bytes, valid;
};

struct Fiber {
  static constexpr size_t kStackBytes = 128 << 10;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  ucontext_t context;
  jmp_buf jump;
  bool started, done;
  std::vector<std::vector<Copy>> copies;
};

struct Barrier {
  int arrived = 0, generation = 0;
};

struct Slot {
  Word words[6];
  const Word* row;
  float value;
};

struct Warp {
  Barrier barrier;
  Slot slots[2][kWarp];
  int turn[kWarp] = {};
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<char> shared;
  Barrier barrier;
  std::function<void()> kernel;
  jmp_buf scheduler;
  int64_t block = 0, progress = 0, shared_limit = 163 << 10;
  int current = 0, threads = 0;
  bool falling = false;
};

inline Machine machine;

[[noreturn]] inline void fail(const char* what) {
  fprintf(stderr, "emulator: %s (block %lld, thread %d)\n", what, (long long)machine.block,
          machine.current);
  abort();
}

inline void yield() {
  if (_setjmp(machine.fibers[machine.current].jump) == 0) _longjmp(machine.scheduler, 1);
}

inline void wait(Barrier& barrier, int size) {
  const int generation = barrier.generation;
  ++machine.progress;
  if (++barrier.arrived == size) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) yield();
}

inline void enter() {
  machine.kernel();
  machine.fibers[machine.current].done = true;
  _longjmp(machine.scheduler, 1);
}

inline void resume(int thread) {
  Fiber& fiber = machine.fibers[thread];
  machine.current = thread;
  if (_setjmp(machine.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.jump, 1);
  fiber.started = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = Fiber::kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
  setcontext(&fiber.context);
}

inline void run_block() {
  for (Fiber& fiber : machine.fibers) {
    fiber.started = fiber.done = false;
    fiber.copies.assign(1, {});
  }
  std::memset(machine.shared.data(), 0xff, machine.shared.size());
  for (int left = machine.threads; left > 0;) {
    const int64_t before = machine.progress;
    for (int i = 0; i < machine.threads; ++i) {
      const int thread = machine.falling ? machine.threads - 1 - i : i;
      if (machine.fibers[thread].done) continue;
      resume(thread);
      if (machine.fibers[thread].done) --left, ++machine.progress;
    }
    if (machine.progress == before) fail("threads wait for each other");
  }
}

// Puts this lane's slot before its warp and returns all of them.
inline const Slot* exchange(const Slot& own) {
  const int lane = machine.current % kWarp;
  Warp& warp = machine.warps[machine.current / kWarp];
  Slot* const slots = warp.slots[warp.turn[lane] ^= 1];
  slots[lane] = own;
  wait(warp.barrier, kWarp);
  return slots;
}

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

inline int thread_index() { return emulator::machine.current; }
inline int block_index() { return int(emulator::machine.block); }
inline void synchronise() { emulator::wait(emulator::machine.barrier, emulator::machine.threads); }
inline void synchronise_warp() { emulator::exchange({}); }

inline char* shared_memory() {
  const auto address = reinterpret_cast<uintptr_t>(emulator::machine.shared.data());
  return reinterpret_cast<char*>((address + 15) / 16 * 16);
}

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
    double total = sum[k];
    for (int word = 0; word < kStepWords; ++word) {
      for (int half = 0; half < kPerWord<T>; ++half) {
        total += double(emulator::element<T>(slots, row % 8 * 4 + word % 4,
                                             row / 8 + word / 4 * 2, half)) *
                 emulator::element<T>(slots, column * 4 + word % 4, 4 + word / 4, half);
      }
    }
    sum[k] = float(total);
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

inline int64_t device_shared_limit() { return emulator::machine.shared_limit; }

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared, Stream,
            const Arguments&... arguments) {
  auto& machine = emulator::machine;
  if (shared > machine.shared_limit) throw std::runtime_error("too much shared memory");
  machine.threads = threads;
  machine.fibers.resize(threads);
  machine.warps.assign(threads / kWarp, {});
  machine.shared.assign(shared + 15, 0);
  machine.kernel = [&] { kernel(Parameters(arguments)...); };
  for (machine.block = 0; machine.block < blocks; ++machine.block) emulator::run_block();
}

}  // namespace fsdino::cuda
