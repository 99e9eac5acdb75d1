// One copy of the inner loops per instruction set, and the choice among them.

#include "simd.h"

#include <ATen/Version.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <string>

#if defined(__x86_64__) || defined(__amd64__)
#define FSDINO_X86
#include <cpuid.h>
#include <immintrin.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#if defined(__clang__)
#define FSDINO_PRAGMA(text) _Pragma(#text)
#define FSDINO_BEGIN_TARGET(features) \
  FSDINO_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define FSDINO_BEGIN_WIDE_TARGET FSDINO_BEGIN_TARGET
#define FSDINO_END_TARGET _Pragma("clang attribute pop")
#else
#define FSDINO_PRAGMA(text) _Pragma(#text)
#define FSDINO_BEGIN_TARGET(features) _Pragma("GCC push_options") FSDINO_PRAGMA(GCC target(features))
#define FSDINO_BEGIN_WIDE_TARGET(features) \
  _Pragma("GCC push_options") FSDINO_PRAGMA(GCC target("prefer-vector-width=512", features))
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
#include "elements.h"
#include "tile.h"
#undef FSDINO_VECTOR_BYTES
#undef FSDINO_TILE_VECTORS
#undef FSDINO_TILE_ROWS
}  // namespace plain

#ifdef FSDINO_X86
FSDINO_BEGIN_TARGET("avx2,fma,f16c")
namespace avx2 {
#define FSDINO_VECTOR_BYTES 32
#define FSDINO_TILE_VECTORS 3
#define FSDINO_TILE_ROWS 4
#include "elements.h"
#include "tile.h"
#undef FSDINO_VECTOR_BYTES
#undef FSDINO_TILE_VECTORS
#undef FSDINO_TILE_ROWS
}  // namespace avx2
FSDINO_END_TARGET

FSDINO_BEGIN_WIDE_TARGET("avx2,fma,f16c,avx512f,avx512vl,avx512dq,avx512bw")
namespace avx512 {
#define FSDINO_VECTOR_BYTES 64
#define FSDINO_TILE_VECTORS 3
#define FSDINO_TILE_ROWS 8
#include "elements.h"
#include "tile.h"
#undef FSDINO_VECTOR_BYTES
#undef FSDINO_TILE_VECTORS
#undef FSDINO_TILE_ROWS
}  // namespace avx512
FSDINO_END_TARGET

#define FSDINO_VECTOR_BYTES 64
#define FSDINO_TILE_VECTORS 3
#define FSDINO_TILE_ROWS 8
FSDINO_BEGIN_WIDE_TARGET(
    "avx2,fma,f16c,avx512f,avx512vl,avx512dq,avx512bw,avx512bf16")
namespace avx512_bf16 {
#include "elements.h"
#include "tile.h"
#include "pairs.h"
}  // namespace avx512_bf16
FSDINO_END_TARGET

#if defined(__clang__) || __GNUC__ >= 11  // older ones have no AMX
#define FSDINO_AMX
FSDINO_BEGIN_WIDE_TARGET(
    "avx2,fma,f16c,avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,amx-tile,amx-bf16")
namespace amx {
#include "elements.h"
#include "tile.h"
#include "pairs.h"
}  // namespace amx
FSDINO_END_TARGET
#endif
#undef FSDINO_VECTOR_BYTES
#undef FSDINO_TILE_VECTORS
#undef FSDINO_TILE_ROWS
#endif

#ifdef FSDINO_X86
// What oneDNN's switch, which people set for PyTorch's products, says; in capitals, empty without it.
std::string onednn_limit() {
  const char* limit = std::getenv("ONEDNN_MAX_CPU_ISA");
  if (!limit) limit = std::getenv("DNNL_MAX_CPU_ISA");
  std::string name = limit ? limit : "";
  for (char& letter : name) letter = static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
  return name == "DEFAULT" || name == "ALL" ? "" : name;
}

bool limit_has(const char* part) { return onednn_limit().find(part) != std::string::npos; }

// A bit of CPUID's leaf 7.
bool has_feature(unsigned subleaf, unsigned bit, bool in_edx) {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, subleaf, &eax, &ebx, &ecx, &edx)) return false;
  return (in_edx ? edx : eax) >> bit & 1;
}

bool is_intel() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(0, &eax, &ebx, &ecx, &edx) && ebx == signature_INTEL_ebx;
}

// Intel's cores take longer for a pair than for two products of float32: there it takes the switch to
// name the set. Those of newer sets include it.
bool has_avx512_bf16() {
  if (!has_feature(1, 5, false)) return false;
  if (is_intel()) return onednn_limit() == "AVX512_CORE_BF16";
  return onednn_limit().empty() || limit_has("BF16") || limit_has("FP16") || limit_has("AMX") ||
         limit_has("AVX10");
}

#ifdef FSDINO_AMX
// AMX, with the kernel's permission, which holds for all threads of the process.
bool has_amx() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return has_feature(0, 22, true) && has_feature(0, 24, true) &&
         (onednn_limit().empty() || limit_has("AMX")) &&
         syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#endif
#endif

template <typename T>
const Simd<T>& choose() {
#ifdef FSDINO_X86
  const std::string capability = at::get_cpu_capability();
  if (capability.rfind("AVX512", 0) == 0) {
    if constexpr (std::is_same_v<T, at::BFloat16>) {
#ifdef FSDINO_AMX
      if (has_amx()) return amx::pairs_table("AMX");
#endif
      if (has_avx512_bf16()) return avx512_bf16::pairs_table("AVX512_BF16");
    }
    return avx512::table<T>("AVX512");
  }
  if (capability == "AVX2") return avx2::table<T>("AVX2");
#endif
  return plain::table<T>("DEFAULT");
}

}  // namespace

template <typename T>
const Simd<T>& simd() {
  static const Simd<T>& chosen = choose<T>();
  return chosen;
}

template const Simd<float>& simd<float>();
template const Simd<double>& simd<double>();
template const Simd<at::Half>& simd<at::Half>();
template const Simd<at::BFloat16>& simd<at::BFloat16>();

}  // namespace fsdino::cpu
