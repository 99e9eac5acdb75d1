// What the emulator must notice: each case is a kernel, or a map, that real hardware would take amiss,
// or its like that is right. The argument names the case; a failure is said on stderr.

#include <cmath>
#include <cstdio>
#include <exception>
#include <string>

#include "hopper.h"

using namespace fsdino::cuda;
using c10::Half;

namespace {

constexpr int kOperandBytes = (kAsyncRows + kAsyncColumns) * kBoxBytes;

enum Fault { kNone, kNoFence, kLateStore, kBackground, kUnpublished };

// A warpgroup's product of operands that ordinary stores, or copies in the background, have written.
void product_kernel(Fault fault) {
  char* const memory = shared_memory();
  static const Word ones[4] = {0x3c003c00, 0x3c003c00, 0x3c003c00, 0x3c003c00};
  for (int place = thread_index() * 16; place < kOperandBytes; place += 16 * thread_count()) {
    if (fault == kBackground) {
      copy_async<16>(memory + place, ones, 16);
    } else {
      std::memcpy(memory + place, ones, 16);
    }
  }
  commit_copies();
  wait_copies<0>();
  if (fault != kNoFence && fault != kBackground) fence_async_proxy();
  synchronise();
  AsyncProduct<Half> product;
  product.multiply(memory, memory + kAsyncRows * kBoxBytes);
  synchronise();
  if (fault == kLateStore && thread_index() == 0) memory[0] = 7;
  wait_products<0>();
  for (const auto& sums : product.sums) {
    for (const float sum : sums) {
      if (sum != float(kBoxDepth)) emulator::fail("a wrong sum");
    }
  }
}

// A box over what ordinary stores have written.
void copy_kernel(FeatureMap map, Fault fault) {
  char* const memory = shared_memory();
  auto* const barrier = reinterpret_cast<PhaseBarrier*>(memory + kPatternBytes);
  reinterpret_cast<Word*>(memory)[thread_index()] = 1;
  if (fault != kNoFence) fence_async_proxy();
  if (thread_index() == 0) {
    start_barrier(barrier, 1);
    if (fault != kUnpublished) publish_barriers();
  }
  synchronise();
  if (thread_index() == 0) {
    arrive_before(barrier, kPatternBytes);
    map.copy(memory, 0, 0, 0, 0, barrier);
    if (fault == kLateStore) memory[0] = 7;
  }
  wait_phase(barrier, 0);
  if (reinterpret_cast<Half*>(memory)[0] != Half(0.0f)) emulator::fail("a wrong box");
}

// The sum of 1 and products that are all alike, by one instruction.
template <typename T>
void sum_kernel(float factor, float* result) {
  Word word = as_word(factor);
  if constexpr (sizeof(T) == 2) word = T(factor).x * 0x10001u;
  const Word a[4] = {word, word, word, word}, b[2] = {word, word};
  float sum[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  multiply_words<T>(sum, a, b);
  if (thread_index() == 0) *result = sum[0];
}

template <typename T>
void expect_sum(float factor, float expected) {
  float result = 0.0f;
  launch(sum_kernel<T>, 1, kWarp, 0, 0, factor, &result);
  if (result != expected) {
    printf("1 + products of %g: %.9g instead of %.9g\n", factor, result, expected);
    throw std::runtime_error("emulator: another sum");
  }
}

// Addends far below the first are cut off each, not in all; one bit below a float's last is kept.
void check_sums() {
  const float small = std::ldexp(1.0f, -12), last = std::ldexp(1.0f, -23);
  expect_sum<float>(small, 1.0f + 8 * last / 2);
  expect_sum<float>(small * 0.75f, 1.0f);
  expect_sum<Half>(small, 1.0f + 16 * last / 2);
  expect_sum<Half>(small * 0.75f, 1.0f);
  expect_sum<float>(INFINITY, INFINITY);
}

alignas(16) char tensor[64 * 1024];

void make_map(BoxShape shape, int64_t offset = 0) { box_map(tensor + offset, shape); }

void run(const std::string& name) {
  const auto shape = box_shape(1, 0, 1, 0, 16, 64, 8);
  const auto changed = [&](auto change) {
    BoxShape other = shape;
    change(other);
    make_map(other);
  };
  const auto product = [](Fault fault) {
    launch(product_kernel, 2, kWarpgroup, kOperandBytes, 0, fault);
  };
  const auto copy = [&](Fault fault) {
    const FeatureMap map{box_map(tensor, shape), 0, 0};
    launch(copy_kernel, 2, kWarp, kPatternBytes + 64, 0, map, fault);
  };
  if (name == "sums") return check_sums();
  if (name == "product") return product(kNone);
  if (name == "product without fence") return product(kNoFence);
  if (name == "product of background copies") return product(kBackground);
  if (name == "store during a product") return product(kLateStore);
  if (name == "copy") return copy(kNone);
  if (name == "copy without fence") return copy(kNoFence);
  if (name == "store during a copy") return copy(kLateStore);
  if (name == "copy with an unpublished barrier") return copy(kUnpublished);
  if (name == "map") return make_map(shape);
  if (name == "address") return make_map(shape, 8);
  if (name == "no size") return changed([](BoxShape& s) { s.sizes[1] = 0; });
  if (name == "size") return changed([](BoxShape& s) { s.sizes[1] = (int64_t(1) << 32) + 1; });
  if (name == "stride") return changed([](BoxShape& s) { s.strides[2] += 8; });
  if (name == "long stride") return changed([](BoxShape& s) { s.strides[3] = int64_t(1) << 40; });
  if (name == "box") return changed([](BoxShape& s) { s.box[1] = 257; });
  if (name == "box rows") return changed([](BoxShape& s) { s.box[0] = 60; });
  if (name == "swizzle") return changed([](BoxShape& s) { s.box[0] = 72; });
  throw std::runtime_error("no such case");
}

}  // namespace

int main(int, char** arguments) {
  try {
    run(arguments[1]);
  } catch (const std::exception& error) {
    fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
