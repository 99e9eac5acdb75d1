// A thread block's matrix product: operands staged in shared memory by a pipeline of background
// copies, multiplied by warps on tensor cores. What is multiplied is said by sources, which know
// where each piece of an operand lies.

#pragma once

#include "device.h"

namespace fsdino::cuda {

// One stage of the pipeline: words of a row along the inner dimension, and their distance. Rows 20
// words apart put the 8 rows that one access reads into different banks.
constexpr int kDepthWords = 16;
constexpr int kPitch = kDepthWords + 4;
constexpr int kStages = 3;
template <typename T>
constexpr int kDepth = kDepthWords * kPerWord<T>;  // elements

// 16 rows of an operand.
FSDINO_DEVICE void load_rows(Word (&words)[4], const Word* tile) {
  const int lane = lane_index();
  load_matrices(words, tile + (lane % 16) * kPitch + lane / 16 * 4);
}

// Two times 8 rows of the other operand.
FSDINO_DEVICE void load_columns(Word (&words)[2][2], const Word* tile) {
  const int lane = lane_index();
  Word four[4];
  load_matrices(four, tile + (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 4);
  words[0][0] = four[0];
  words[0][1] = four[1];
  words[1][0] = four[2];
  words[1][1] = four[3];
}

// Stages `rows` rows of an operand whose inner dimension lies side by side in memory, in pieces of
// BYTES. The source says where: (row, step, element, count of elements that exist from there on).
template <typename T, int BYTES, int THREADS, typename Source>
FSDINO_DEVICE void stage_along(Word* tile, int rows, int step, const Source& source) {
  constexpr int kElements = BYTES / int(sizeof(T)), kPieces = kDepth<T> / kElements;
  for (int i = thread_index(); i < rows * kPieces; i += THREADS) {
    const int row = i / kPieces, element = i % kPieces * kElements;
    T* place = reinterpret_cast<T*>(tile + row * kPitch) + element;
    int valid = 0;
    const T* from = source.at(row, step, element, valid);
    valid = clamp(valid, 0, kElements);
    if constexpr (BYTES >= 4) {
      copy_async<BYTES>(place, from, valid * int(sizeof(T)));
    } else {
      *place = valid > 0 ? *from : T(0.0f);
    }
  }
}

// ROWS x COLUMNS of a product; each warp computes WARP_ROWS x WARP_COLUMNS of it.
template <typename T, int ROWS, int COLUMNS, int WARP_ROWS, int WARP_COLUMNS>
struct Product {
  static constexpr int kRows = ROWS, kColumns = COLUMNS;
  static constexpr int kWarpsDown = ROWS / WARP_ROWS, kWarpsAcross = COLUMNS / WARP_COLUMNS;
  static constexpr int kThreads = kWarpsDown * kWarpsAcross * kWarp;
  static constexpr int kStageWords = (ROWS + COLUMNS) * kPitch;
  static constexpr int kSharedBytes = kStages * kStageWords * int(sizeof(Word));
  static constexpr int kDown = WARP_ROWS / 16, kAcross = WARP_COLUMNS / 8;

  float sums[kDown][kAcross][4] = {};

  // `stage(words for ROWS, words for COLUMNS, step)` starts the copies of a step.
  template <typename Stage>
  FSDINO_DEVICE void run(Word* memory, int steps, bool tf32, const Stage& stage) {
    const auto start = [&](int step) {
      Word* const tile = memory + step % kStages * kStageWords;
      if (step < steps) stage(tile, tile + ROWS * kPitch, step);
      commit_copies();
    };
    for (int step = 0; step < kStages - 1; ++step) start(step);
    for (int step = 0; step < steps; ++step) {
      wait_copies<kStages - 2>();
      synchronise();
      start(step + kStages - 1);
      const Word* const tile = memory + step % kStages * kStageWords;
      for (int word = 0; word < kDepthWords; word += kStepWords) {
        multiply_step(tile + word, tile + ROWS * kPitch + word, tf32);
      }
    }
  }

  FSDINO_DEVICE void multiply_step(const Word* rows, const Word* columns, bool tf32) {
    Word a[kDown][4], b[kAcross / 2][2][2];
#pragma unroll
    for (int i = 0; i < kDown; ++i) load_rows(a[i], rows + (first_row() + 16 * i) * kPitch);
#pragma unroll
    for (int j = 0; j < kAcross / 2; ++j) {
      load_columns(b[j], columns + (first_column() + 16 * j) * kPitch);
    }
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kAcross; ++j) multiply<T>(sums[i][j], a[i], b[j / 2][j % 2], tf32);
    }
  }

  FSDINO_DEVICE static int first_row() { return warp_index() / kWarpsAcross * WARP_ROWS; }
  FSDINO_DEVICE static int first_column() { return warp_index() % kWarpsAcross * WARP_COLUMNS; }

  // Calls `visit(row, column, sum)` for this thread's elements.
  template <typename Visit>
  FSDINO_DEVICE void for_each(const Visit& visit) {
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kAcross; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) visit(row_of(i, k / 2), column_of(j) + k % 2, sums[i][j][k]);
      }
    }
  }

  // What a thread knows of each of its columns.
  using OfColumns = float[kAcross][2];
  // The sum of each column, given to all that have it. Uses the shared memory from `memory` on,
  // kWarpsDown * COLUMNS floats.
  FSDINO_DEVICE void sum_columns(OfColumns& totals, float* memory) {
    for_each_column([&](int, int j, int k) {
      float total = 0.0f;
#pragma unroll
      for (int i = 0; i < kDown; ++i) total += sums[i][j][k] + sums[i][j][2 + k];
      for (int mask = 4; mask < kWarp; mask *= 2) total += from_lane(total, mask);
      totals[j][k] = total;
    });
    synchronise();
    float* const own = memory + first_row() / WARP_ROWS * COLUMNS;
    for_each_column([&](int column, int j, int k) {
      if (lane_index() < 4) own[column] = totals[j][k];
    });
    synchronise();
    for_each_column([&](int column, int j, int k) {
      totals[j][k] = 0.0f;
      for (int warp = 0; warp < kWarpsDown; ++warp) totals[j][k] += memory[warp * COLUMNS + column];
    });
  }
  // Calls `visit(column, j, k)` for this thread's columns.
  template <typename Visit>
  FSDINO_DEVICE static void for_each_column(const Visit& visit) {
#pragma unroll
    for (int j = 0; j < kAcross; ++j) {
#pragma unroll
      for (int k = 0; k < 2; ++k) visit(column_of(j) + k, j, k);
    }
  }
  // Whether this is the thread that writes what is known of its columns.
  FSDINO_DEVICE static bool has_first_row() { return first_row() == 0 && lane_index() < 4; }

  FSDINO_DEVICE static int row_of(int i, int half) {
    return first_row() + 16 * i + lane_index() / 4 + 8 * half;
  }
  FSDINO_DEVICE static int column_of(int j) {
    return first_column() + 8 * j + lane_index() % 4 * 2;
  }
};

// The element type and the bytes of a piece that all of these allow: calls `run(T(), bytes)`.
template <typename T, typename F>
void with_piece_bytes(int64_t row_bytes, const F& run) {
  if (row_bytes % 16 == 0) {
    run(std::integral_constant<int, 16>());
  } else if (row_bytes % 4 == 0) {
    run(std::integral_constant<int, 4>());
  } else if constexpr (sizeof(T) < 4) {
    run(std::integral_constant<int, int(sizeof(T))>());
  }
}

}  // namespace fsdino::cuda
