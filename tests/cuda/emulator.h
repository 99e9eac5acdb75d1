// Runs kernels of csrc/cuda on a CPU, for tests: what csrc/cuda/device.h asks of the hardware.
//
// Each thread of a block is a fiber, which runs until it has to wait for others. What hardware makes
// visible late is late here, too: background copies arrive when they are waited for. Shared memory
// starts as NaN. Fibers run in rising order in two blocks and in falling order in the next two; a
// missing barrier makes a difference.
// In every other block one warp runs only where no other can, and boxes arrive at once: what relies on
// warps going together, or on slow copies, breaks there.
// Of sm_90a, a box otherwise arrives when a thread waits for its barrier, and products read their operands when
// they are waited for. Descriptors and swizzles are taken apart here as the PTX manual has them.

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
  std::vector<char> shared;
  std::vector<BoxCopy> boxes;
  Barrier barrier;
  std::function<void()> kernel;
  jmp_buf scheduler;
  int64_t block = 0, progress = 0, shared_limit = 163 << 10;
  int current = 0, threads = 0;
  bool hopper = false, any = false;
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

namespace emulator {

// Swizzle of 128 bytes: bits 4 to 6 of an address take bits 7 to 9 upon them.
inline char* swizzled_place(uint32_t address) {
  const uint32_t piece = (address >> 4 & 7) ^ (address >> 7 & 7);
  const uint32_t place = (address & ~0x70u) | piece << 4;
  if (place < 1024 || place - 1024 >= machine.shared.size()) fail("beyond shared memory");
  return shared_memory() + (place - 1024);
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
      if (inside) std::memcpy(to, copy.map.tensor + offset, 2); else std::memset(to, 0, 2);
    }
  }
  return rows * shape.box[0] * 2;
}

// An operand's 16 elements along the inner dimension, as the descriptor has them.
template <typename T>
void read_row(uint64_t descriptor, int row, float (&values)[16]) {
  const uint32_t start = uint32_t(descriptor & 0x3fff) << 4;
  const uint32_t stride = uint32_t(descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) fail("a layout that is not emulated");
  if (start >> 7 & 7) fail("an operand does not start where the swizzle's pattern does");
  for (int k = 0; k < 16; ++k) {
    const uint32_t address = start + row / 8 * stride + row % 8 * 128 + k * 2;
    T value;
    std::memcpy(&value, swizzled_place(address), 2);
    values[k] = value;
  }
}

// This thread's elements of a warpgroup's product.
template <typename T>
void product_of_thread(float (&sums)[kAsyncColumns / 8][4], uint64_t a, uint64_t b) {
  const int thread = machine.current % 128, warp = thread / 32, lane = thread % 32;
  float rows[2][16], columns[2][16];
  read_row<T>(a, 16 * warp + lane / 4, rows[0]);
  read_row<T>(a, 16 * warp + lane / 4 + 8, rows[1]);
  for (int j = 0; j < kAsyncColumns / 8; ++j) {
    read_row<T>(b, 8 * j + lane % 4 * 2, columns[0]);
    read_row<T>(b, 8 * j + lane % 4 * 2 + 1, columns[1]);
    for (int k = 0; k < 4; ++k) {
      double total = sums[j][k];
      for (int i = 0; i < 16; ++i) total += double(rows[k / 2][i]) * columns[k % 2][i];
      sums[j][k] = float(total);
    }
  }
}

}  // namespace emulator

inline void start_barrier(PhaseBarrier* barrier, int arrivals) {
  if (reinterpret_cast<uintptr_t>(barrier) % 8) emulator::fail("a barrier is not aligned");
  *barrier = {int16_t(arrivals), int16_t(arrivals), 0, 0};
}
inline void publish_barriers() {}
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

inline BoxMap box_map(const void* tensor, const BoxShape& shape) {
  for (int i = 0; i < kBoxDims; ++i) {
    if (shape.sizes[i] < 1 || shape.box[i] < 1 || shape.box[i] > 256 ||
        (i > 0 && (shape.strides[i] <= 0 || shape.strides[i] % 16))) {
      throw std::runtime_error("emulator: a map of boxes that the driver does not take");
    }
  }
  if (reinterpret_cast<uintptr_t>(tensor) % 16 || shape.strides[0] != 2 || shape.box[0] != 64) {
    throw std::runtime_error("emulator: a map of boxes that the driver does not take");
  }
  return {static_cast<const char*>(tensor), shape};
}
inline void copy_box(void* destination, const BoxMap& map, const int (&at)[kBoxDims],
                     PhaseBarrier* barrier) {
  emulator::check_barrier(*barrier);
  if (shared_address(destination) % 1024) emulator::fail("a box starts within a pattern");
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
