// The machine under emulator.h: the threads of a block as fibers, what they share, and how tensor
// cores add.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <climits>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define FSDINO_DEVICE inline
#define FSDINO_KERNEL(threads) void
#define FSDINO_KERNEL_PAIR(threads) void
#define FSDINO_PARAMETER const

namespace fsdino::cuda {

constexpr bool kHopper = true;

struct BoxMap {
  const char* tensor;
  BoxShape shape;
};

// As wide as the hardware's. `arrivals` of a phase, of which `missing` and `bytes` are to come.
struct PhaseBarrier {
  int16_t arrivals, missing;
  int32_t bytes : 31;
  uint32_t parity : 1;
};
static_assert(sizeof(PhaseBarrier) == 8);

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

struct BoxCopy {
  char* destination;
  BoxMap map;
  int at[kBoxDims];
  PhaseBarrier* barrier;
};

struct Fiber {
  static constexpr size_t kStackBytes = 128 << 10;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  ucontext_t context;
  jmp_buf jump;
  bool started, done;
  std::vector<std::vector<Copy>> copies;
  std::vector<std::vector<std::function<void()>>> products;
  bool fenced;
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
  std::vector<char> shared, known;  // to all threads, and to the async proxy
  std::vector<BoxCopy> boxes;
  Barrier barrier;
  std::function<void()> kernel;
  jmp_buf scheduler;
  int64_t block = 0, progress = 0, shared_limit = 163 << 10;
  int current = 0, threads = 0;
  bool hopper = false, any = false, barriers_known = true;
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

inline bool uneven() { return machine.block % 2 != 0; }

inline void run_block() {
  for (Fiber& fiber : machine.fibers) {
    fiber.started = fiber.done = false;
    fiber.copies.assign(1, {});
    fiber.products.assign(1, {});
    fiber.fenced = false;
  }
  machine.boxes.clear();
  std::memset(machine.shared.data(), 0xff, machine.shared.size());
  machine.known = machine.shared;
  machine.barriers_known = true;
  const int slow_warp = uneven() ? int(machine.block / 2 % (machine.threads / kWarp)) : -1;
  bool stuck = false;  // without the slow warp
  for (int left = machine.threads; left > 0;) {
    const int64_t before = machine.progress;
    for (int i = 0; i < machine.threads; ++i) {
      const int thread = machine.block / 2 % 2 ? machine.threads - 1 - i : i;
      if (machine.fibers[thread].done || (!stuck && thread / kWarp == slow_warp)) continue;
      resume(thread);
      if (machine.fibers[thread].done) --left, ++machine.progress;
    }
    const bool moved = machine.progress != before;
    if (!moved && (stuck || slow_warp < 0)) fail("threads wait for each other");
    stuck = !moved;
  }
  if (!machine.boxes.empty()) fail("a copy is not waited for");
  for (const Fiber& fiber : machine.fibers) {
    if (fiber.products.size() > 1 || !fiber.products.back().empty()) {
      fail("a product is not waited for");
    }
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

// Tensor cores add 16 bytes of products of each operand at a time, together with the sum so far: all
// are aligned to the largest exponent and truncated behind one bit more than a float has, and what
// comes out is truncated to a float. So it was measured on the A100 (Fasi, Higham, Mikaitis and
// Pranesh, Numerical behavior of NVIDIA tensor cores, PeerJ Computer Science 7:e330, 2021), and it is
// an assumption that later ones keep as much.
constexpr int kFractionBits = 24;
template <typename T>
constexpr int kSummed = 16 / int(sizeof(T));

inline int exponent_of(float value) {
  return larger(int(bits_as<uint32_t>(value) >> 23 & 0xff), 1) - 127;
}
inline double power_of_two(int exponent) { return bits_as<double>(uint64_t(1023 + exponent) << 52); }

template <typename T>
float add_products(float sum, const float* a, const float* b) {
  double products[kSummed<T>], total = sum;
  int exponent = sum == 0.0f ? INT_MIN : exponent_of(sum);
  for (int i = 0; i < kSummed<T>; ++i) {
    products[i] = double(a[i]) * b[i];
    total += products[i];
    if (products[i] != 0) exponent = larger(exponent, exponent_of(a[i]) + exponent_of(b[i]));
  }
  if (!std::isfinite(total) || exponent == INT_MIN) return float(total);
  const double unit = power_of_two(exponent - kFractionBits);
  total = std::trunc(sum / unit);
  for (const double product : products) total += std::trunc(product / unit);
  total *= unit;
  const float rounded = float(total);
  const bool away = std::fabs(double(rounded)) > std::fabs(total) && std::isfinite(rounded);
  return away ? std::nextafter(rounded, 0.0f) : rounded;
}

}  // namespace emulator

inline int thread_index() { return emulator::machine.current; }
inline int block_index() { return int(emulator::machine.block); }
inline int thread_count() { return emulator::machine.threads; }
inline void synchronise() { emulator::wait(emulator::machine.barrier, emulator::machine.threads); }
inline bool synchronise_or(bool value) {
  synchronise();  // nobody still reads what the last one found
  emulator::machine.any = false;
  synchronise();
  emulator::machine.any |= value;
  synchronise();
  return emulator::machine.any;
}
inline void synchronise_warp() { emulator::exchange({}); }

inline char* shared_memory() {
  const auto address = reinterpret_cast<uintptr_t>(emulator::machine.shared.data());
  return reinterpret_cast<char*>((address + 1023) / 1024 * 1024);
}
// As on the hardware, the first 1024 bytes are not the kernel's.
inline uint32_t shared_address(const void* place) {
  return uint32_t(1024 + (static_cast<const char*>(place) - shared_memory()));
}

}  // namespace fsdino::cuda
