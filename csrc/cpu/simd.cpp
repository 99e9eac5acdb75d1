// One copy of the inner loops per instruction set, and the choice among them.

#include "simd.h"

#include <ATen/Version.h>

#include <string>

#if defined(__x86_64__) || defined(__amd64__)
#define FSDINO_X86
#endif

#if defined(__clang__)
#define FSDINO_PRAGMA(text) _Pragma(#text)
#define FSDINO_BEGIN_TARGET(features) \
  FSDINO_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define FSDINO_END_TARGET _Pragma("clang attribute pop")
#else
#define FSDINO_PRAGMA(text) _Pragma(#text)
#define FSDINO_BEGIN_TARGET(features) _Pragma("GCC push_options") FSDINO_PRAGMA(GCC target(features))
#define FSDINO_END_TARGET _Pragma("GCC pop_options")
#endif

namespace fsdino::cpu {
namespace {

// 128-bit vectors: SSE2 on x86 (16 registers), NEON on Arm (32).
namespace plain {
#define FSDINO_VECTOR_BYTES 16
#ifdef FSDINO_X86
#define FSDINO_TILE_VECTORS 2
#define FSDINO_TILE_ROWS 4
#else
#define FSDINO_TILE_VECTORS 3
#define FSDINO_TILE_ROWS 8
#endif
#include "tile.h"
#undef FSDINO_VECTOR_BYTES
#undef FSDINO_TILE_VECTORS
#undef FSDINO_TILE_ROWS
}  // namespace plain

#ifdef FSDINO_X86
FSDINO_BEGIN_TARGET("avx2,fma")
namespace avx2 {
#define FSDINO_VECTOR_BYTES 32
#define FSDINO_TILE_VECTORS 3
#define FSDINO_TILE_ROWS 4
#include "tile.h"
#undef FSDINO_VECTOR_BYTES
#undef FSDINO_TILE_VECTORS
#undef FSDINO_TILE_ROWS
}  // namespace avx2
FSDINO_END_TARGET

FSDINO_BEGIN_TARGET("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,prefer-vector-width=512")
namespace avx512 {
#define FSDINO_VECTOR_BYTES 64
#define FSDINO_TILE_VECTORS 3
#define FSDINO_TILE_ROWS 8
#include "tile.h"
#undef FSDINO_VECTOR_BYTES
#undef FSDINO_TILE_VECTORS
#undef FSDINO_TILE_ROWS
}  // namespace avx512
FSDINO_END_TARGET
#endif

template <typename A>
const Simd<A>& choose() {
#ifdef FSDINO_X86
  const std::string capability = at::get_cpu_capability();
  if (capability.rfind("AVX512", 0) == 0) return avx512::table<A>();
  if (capability == "AVX2") return avx2::table<A>();
#endif
  return plain::table<A>();
}

}  // namespace

template <typename A>
const Simd<A>& simd() {
  static const Simd<A>& chosen = choose<A>();
  return chosen;
}

template const Simd<float>& simd<float>();
template const Simd<double>& simd<double>();

}  // namespace fsdino::cpu
