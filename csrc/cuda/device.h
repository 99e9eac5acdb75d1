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

#include <cuda.h>
#include <cuda_runtime.h>
#include <cudaTypedefs.h>

#define FSDINO_DEVICE __device__ __forceinline__
#define FSDINO_KERNEL(threads) __global__ void __launch_bounds__(threads)
#define FSDINO_KERNEL_PAIR(threads) __global__ void __launch_bounds__(threads, 2)
#define FSDINO_PARAMETER const __grid_constant__

namespace fsdino::cuda {

// Whether this is compiled with the instructions of sm_90a, which no other architecture has.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kHopper = true;
#else
constexpr bool kHopper = false;
#endif

FSDINO_DEVICE int thread_index() { return threadIdx.x; }
FSDINO_DEVICE int thread_count() { return blockDim.x; }
FSDINO_DEVICE int block_index() { return blockIdx.x; }
FSDINO_DEVICE void synchronise() { __syncthreads(); }
// The same, and whether any thread's value is true.
FSDINO_DEVICE bool synchronise_or(bool value) { return __syncthreads_or(value); }
FSDINO_DEVICE void synchronise_warp() { __syncwarp(); }

// The block's shared memory, aligned to the swizzle's pattern.
FSDINO_DEVICE char* shared_memory() {
  extern __shared__ __align__(1024) char memory[];
  return memory;
}
FSDINO_DEVICE uint32_t shared_address(const void* place) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(place));
}

FSDINO_DEVICE float from_lane(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Copies BYTES (4, 8 or 16) in the background, of which the first `valid` are read and the rest 0.
template <int BYTES>
FSDINO_DEVICE void copy_async(void* destination, const void* source, int valid) {
  const uint32_t place = shared_address(destination);
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
  const uint32_t place = shared_address(row);
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

// What follows is of sm_90a.

// A barrier in shared memory: a phase ends when all its arrivals and announced bytes are there.
// Phases alternate between the parities 0 and 1.
using PhaseBarrier = uint64_t;
FSDINO_DEVICE void start_barrier(PhaseBarrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)),
               "r"(arrivals) : "memory");
}
// Shows started barriers to the engine that copies; threads see them after `synchronise`.
FSDINO_DEVICE void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
FSDINO_DEVICE void arrive(PhaseBarrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier))
               : "memory");
}
// Arrives, and announces bytes that copies will bring.
FSDINO_DEVICE void arrive_before(PhaseBarrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(
                   shared_address(barrier)), "r"(bytes) : "memory");
}
// Waits for the end of the phase of this parity.
FSDINO_DEVICE void wait_phase(PhaseBarrier* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}\n" ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}

// Copies a box of a tensor into shared memory, in the background; `at` counts from the tensor's
// first element, innermost dimension first. What lies outside of the tensor is 0.
using BoxMap = CUtensorMap;
FSDINO_DEVICE void copy_box(void* destination, const BoxMap& map, const int (&at)[kBoxDims],
                            PhaseBarrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];\n" ::"r"(shared_address(destination)),
      "l"(&map), "r"(shared_address(barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
      : "memory");
}

// Products run in the background, too, in groups that end with a commit; their sums may be touched
// after a wait, and before the next product they need a fence.
FSDINO_DEVICE void fence_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
FSDINO_DEVICE void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Until all but the last PENDING groups of this thread are done.
template <int PENDING>
FSDINO_DEVICE void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(PENDING) : "memory");
}

#define FSDINO_SUMS(j) "+f"(sums[j][0]), "+f"(sums[j][1]), "+f"(sums[j][2]), "+f"(sums[j][3])
#define FSDINO_PLACES                                                                        \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "    \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "    \
  "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "    \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FSDINO_WGMMA(TYPES)                                                                  \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"                             \
               "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPES " {" FSDINO_PLACES "}, " \
               "%64, %65, add, 1, 1, 0, 0;\n}\n"                                            \
               : FSDINO_SUMS(0), FSDINO_SUMS(1), FSDINO_SUMS(2), FSDINO_SUMS(3),             \
                 FSDINO_SUMS(4), FSDINO_SUMS(5), FSDINO_SUMS(6), FSDINO_SUMS(7),             \
                 FSDINO_SUMS(8), FSDINO_SUMS(9), FSDINO_SUMS(10), FSDINO_SUMS(11),           \
                 FSDINO_SUMS(12), FSDINO_SUMS(13), FSDINO_SUMS(14), FSDINO_SUMS(15)          \
               : "l"(a), "l"(b), "r"(1))

// sums [64, kAsyncColumns] += a [64, 16] * b [kAsyncColumns, 16]^T by the four warps of a warpgroup,
// from shared memory: see `matrix_descriptor`. Warp w holds rows 16 w to 16 w + 15, `sums[j]` columns
// 8 j to 8 j + 7, spread over the lanes as by `multiply_words`.
template <typename T>
FSDINO_DEVICE void multiply_async(float (&sums)[kAsyncColumns / 8][4], uint64_t a, uint64_t b) {
  if constexpr (std::is_same_v<T, c10::Half>) {
    FSDINO_WGMMA("f16.f16");
  } else {
    FSDINO_WGMMA("bf16.bf16");
  }
}
#undef FSDINO_SUMS
#undef FSDINO_WGMMA
#undef FSDINO_PLACES

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
    cudaGetLastError();  // said here, it is not another call's
    throw std::runtime_error(std::string("backend 'cuda': ") + what + ": " +
                             cudaGetErrorString(error));
  }
}

// A map of a tensor of 16-bit elements whose boxes land in the swizzle of 128 bytes.
inline BoxMap box_map(const void* tensor, const BoxShape& shape) {
  const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                           cudaEnableDefault, &result), "bulk copies");
#else
    check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result),
          "bulk copies");
#endif
    if (found == nullptr) throw std::runtime_error("backend 'cuda': the driver has no bulk copies");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
  };
  static const auto encode_tiled = encode();
  cuuint64_t sizes[kBoxDims], strides[kBoxDims - 1];
  cuuint32_t box[kBoxDims], steps[kBoxDims];
  for (int i = 0; i < kBoxDims; ++i) {
    sizes[i] = shape.sizes[i];
    box[i] = shape.box[i];
    steps[i] = 1;
    if (i > 0) strides[i - 1] = shape.strides[i];
  }
  BoxMap map;
  // Bits are copied as they are: one type serves both halves.
  const CUresult error = encode_tiled(
      &map, CU_TENSOR_MAP_DATA_TYPE_UINT16, kBoxDims, const_cast<void*>(tensor), sizes, strides, box,
      steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error != CUDA_SUCCESS) {
    throw std::runtime_error("backend 'cuda': the driver takes no map of the features, error " +
                             std::to_string(int(error)));
  }
  return map;
}

// Bytes of shared memory that one block may have on the current device.
inline int64_t device_shared_limit() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "no device");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "shared memory of the device");
  return bytes;
}

// Threads that `which_kernel` allows in the code of sm_90a, and in any other.
constexpr int kHopperBound = 64, kOtherBound = 128;
// Whether the driver has chosen the code of sm_90a for the current device: of this kernel, and so of
// all. The architecture alone does not tell: a build may lack that code.
template <int>
__global__ void __launch_bounds__(kHopper ? kHopperBound : kOtherBound) which_kernel() {}
inline bool device_runs_hopper_code() {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, which_kernel<0>), "this GPU cannot run a kernel");
  return attributes.maxThreadsPerBlock == kHopperBound;
}

constexpr int64_t kSharedForAll = 48 << 10;  // what a block gets unasked
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared,
            Stream stream, const Arguments&... arguments) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX) throw std::runtime_error("backend 'cuda': too many blocks for a launch");
  // All that there is, since the limit is the kernel's: another thread may launch it with more.
  if (shared > kSharedForAll) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               int(device_shared_limit())),
          "this GPU cannot run a kernel");
  }
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
