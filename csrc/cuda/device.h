// What kernels ask of the hardware, behind small functions. With FSDINO_EMULATED a C++
// compiler takes the same functions from an emulator (tests/cuda/emulator.h): tests run whole kernels
// on a CPU.

#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "kernels.h"

#ifndef FSDINO_EMULATED

#include <cuda_runtime.h>

#define FSDINO_DEVICE __device__ __forceinline__
#define FSDINO_KERNEL(threads) __global__ void __launch_bounds__(threads)

namespace fsdino::cuda {

FSDINO_DEVICE int thread_index() { return threadIdx.x; }
FSDINO_DEVICE int block_index() { return blockIdx.x; }
FSDINO_DEVICE void synchronise() { __syncthreads(); }
FSDINO_DEVICE void synchronise_warp() { __syncwarp(); }

// The block's shared memory, aligned to 16 bytes.
FSDINO_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

FSDINO_DEVICE float from_lane(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Copies BYTES (4, 8 or 16) in the background, of which the first `valid` are read and the rest 0.
template <int BYTES>
FSDINO_DEVICE void copy_async(void* destination, const void* source, int valid) {
  const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(destination));
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(place), "l"(source),
                 "r"(valid) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(place), "l"(source),
                 "n"(BYTES), "r"(valid) : "memory");
  }
}
FSDINO_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until all but the last PENDING groups of this thread's copies have arrived.
template <int PENDING>
FSDINO_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

// Four matrices of 8 rows by 4 words; lane i points at row i % 8 of matrix i / 8 and receives, of
// each, word i % 4 of row i / 4.
FSDINO_DEVICE void load_matrices(Word (&words)[4], const Word* row) {
  const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(place) : "memory");
}

#define FSDINO_MMA(SHAPE, TYPES)                                                            \
  asm volatile("mma.sync.aligned." SHAPE ".row.col.f32." TYPES ".f32 "                      \
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"          \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                     \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// sum [16, 8] += a [16, 8 words] * b [8, 8 words]^T, spread over the lanes of a warp: lane i holds
// words i % 4 and i % 4 + 4 of rows i / 4 and i / 4 + 8 of a, and of row i / 4 of b; of the sum, in
// these two rows, columns 2 * (i % 4) and the next.
template <typename T>
FSDINO_DEVICE void multiply_words(float (&sum)[4], const Word (&a)[4], const Word (&b)[2]) {
  if constexpr (std::is_same_v<T, c10::Half>) {
    FSDINO_MMA("m16n8k16", "f16.f16");
  } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
    FSDINO_MMA("m16n8k16", "bf16.bf16");
  } else {
    FSDINO_MMA("m16n8k8", "tf32.tf32");
  }
}
#undef FSDINO_MMA

FSDINO_DEVICE Word as_word(float value) { return __float_as_uint(value); }
FSDINO_DEVICE float as_float(Word word) { return __uint_as_float(word); }
FSDINO_DEVICE float to_tf32(float value) {
  Word word;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(word) : "f"(value));
  return __uint_as_float(word);
}
FSDINO_DEVICE float inverse(float value) { return __frcp_rn(value); }
FSDINO_DEVICE float root(float value) { return __fsqrt_rn(value); }

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("backend 'cuda': ") + what + ": " +
                             cudaGetErrorString(error));
  }
}

// Bytes of shared memory that one block may have on the current device.
inline int64_t device_shared_limit() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "no device");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "shared memory of the device");
  return bytes;
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared,
            Stream stream, const Arguments&... arguments) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX) throw std::runtime_error("backend 'cuda': too many blocks for a launch");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)),
        "this GPU cannot run a kernel");
  kernel<<<unsigned(blocks), unsigned(threads), size_t(shared), stream>>>(Parameters(arguments)...);
  check(cudaGetLastError(), "a kernel could not be started");
}

}  // namespace fsdino::cuda

#else
#include "emulator.h"
#endif

namespace fsdino::cuda {

FSDINO_DEVICE int lane_index() { return thread_index() % kWarp; }
FSDINO_DEVICE int warp_index() { return thread_index() / kWarp; }

FSDINO_DEVICE bool is_finite(float value) { return value - value == 0.0f; }

// `multiply_words` in the accuracy of the type. Floats are split into two TF32 parts, whose three
// larger products are summed apart from the rest, with rounding to nearest (Ootomo and Yokota,
// 2022); `tf32` takes the first alone. Infinity has no second part.
template <typename T>
FSDINO_DEVICE void multiply(float (&sum)[4], const Word (&a)[4], const Word (&b)[2], bool tf32) {
  if constexpr (!std::is_same_v<T, float>) {
    multiply_words<T>(sum, a, b);
  } else {
    Word a_high[4], a_low[4], b_high[2], b_low[2];
    for (int i = 0; i < 4; ++i) {
      const float high = to_tf32(as_float(a[i])), low = as_float(a[i]) - high;
      a_high[i] = as_word(high);
      a_low[i] = as_word(is_finite(low) ? to_tf32(low) : 0.0f);
    }
    for (int i = 0; i < 2; ++i) {
      const float high = to_tf32(as_float(b[i])), low = as_float(b[i]) - high;
      b_high[i] = as_word(high);
      b_low[i] = as_word(is_finite(low) ? to_tf32(low) : 0.0f);
    }
    float large[4] = {}, small[4] = {};
    if (!tf32) {
      multiply_words<T>(small, a_low, b_high);
      multiply_words<T>(small, a_high, b_low);
    }
    multiply_words<T>(large, a_high, b_high);
    for (int i = 0; i < 4; ++i) sum[i] += large[i] + (is_finite(small[i]) ? small[i] : 0.0f);
  }
}

// Negative values become 0; NaN stays.
FSDINO_DEVICE float rectified(float value) { return value <= 0 ? 0.0f : value; }

}  // namespace fsdino::cuda
