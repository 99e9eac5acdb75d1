// A thread block's matrix product on sm_90a: boxes of both operands come to shared memory by bulk
// copies, and warpgroups multiply them there. Three pieces: the features' map, the pipeline that
// copies and hands over stages, and a warpgroup's product.

#pragma once

#include "device.h"

namespace fsdino::cuda {

// Where copies find one side's features.
struct FeatureMap {
  BoxMap map;
  int layer_step, batch_step;  // 0 where all layers, or the batch, share one

  FSDINO_DEVICE void copy(void* destination, int channel, int column, int row, int layer, int batch,
                          PhaseBarrier* barrier) const {
    copy_box(destination, map, {channel, column, row, layer * layer_step, batch * batch_step},
             barrier);
  }
};

template <typename T>
FeatureMap feature_map(const Cosines<T>& cosines, const Tokens<T>& tokens, int rows, int columns,
                       int box_rows, int box_columns) {
  const BoxShape shape = box_shape(cosines.batches, tokens.batch, cosines.layers, tokens.layer, rows,
                                   columns, cosines.channels, box_rows, box_columns);
  return {box_map(tokens.values, shape), shape.sizes[3] > 1, shape.sizes[4] > 1};
}

// Stages of shared memory that copies fill and all of a block's warps consume, in turns without end.
// Step n uses stage n % STAGES; each stage has a barrier that says it is full and one that says it is
// empty. The block's first thread starts all copies, a step behind the products that it takes part
// in: by then the other warps, too, are past the step whose stage it fills.
template <int STAGES>
class BoxPipeline {
 public:
  static constexpr int kStages = STAGES;
  static constexpr int kSharedBytes = 2 * STAGES * int(sizeof(PhaseBarrier));

  FSDINO_DEVICE BoxPipeline(char* barriers, int warps)
      : full_(reinterpret_cast<PhaseBarrier*>(barriers)), empty_(full_ + STAGES) {
    if (thread_index() == 0) {
      for (int i = 0; i < STAGES; ++i) {
        start_barrier(full_ + i, 1);
        start_barrier(empty_ + i, warps);
      }
      publish_barriers();
    }
    synchronise();
  }

  // Announces `steps` steps of `bytes` each, and starts the first of them. `copy(step, stage,
  // barrier)` starts the copies of a step, counted from here.
  template <typename Copy>
  FSDINO_DEVICE void begin(int steps, int bytes, const Copy& copy) {
    first_ = at_;
    last_ = at_ + steps;
    bytes_ = bytes;
    for (int i = 0; i < smaller(STAGES, steps); ++i) start(at_ + i, copy);
  }

  // Takes the next `steps` steps: `multiply(stage)` starts a step's products as one group, or none; while
  // they run the stage before is given back. All are done at the end.
  template <typename Copy, typename Multiply>
  FSDINO_DEVICE void run(int steps, const Copy& copy, const Multiply& multiply) {
    for (int step = 0; step < steps; ++step, ++at_) {
      wait_phase(full_ + at_ % STAGES, at_ / STAGES % 2);
      multiply(at_ % STAGES);
      wait_products<1>();
      if (step > 0) release(at_ - 1, copy);
    }
    wait_products<0>();
    if (steps > 0) release(at_ - 1, copy);
  }

 private:
  template <typename Copy>
  FSDINO_DEVICE void start(int step, const Copy& copy) const {
    if (thread_index() != 0) return;
    const int stage = step % STAGES;
    if (step >= STAGES) wait_phase(empty_ + stage, (step / STAGES - 1) % 2);
    arrive_before(full_ + stage, bytes_);
    copy(step - first_, stage, full_ + stage);
  }
  // This warp has no more use for a step's stage.
  template <typename Copy>
  FSDINO_DEVICE void release(int step, const Copy& copy) const {
    synchronise_warp();
    if (lane_index() == 0) arrive(empty_ + step % STAGES);
    if (step + STAGES < last_) start(step + STAGES, copy);
    synchronise_warp();
  }

  PhaseBarrier *full_, *empty_;
  int at_ = 0, first_ = 0, last_ = 0, bytes_ = 0;
};

// A warpgroup's kAsyncRows x kAsyncColumns of a product.
template <typename T>
struct AsyncProduct {
  float sums[kAsyncColumns / 8][4] = {};

  FSDINO_DEVICE void clear() {
#pragma unroll
    for (int j = 0; j < kAsyncColumns / 8; ++j) {
      for (int k = 0; k < 4; ++k) sums[j][k] = 0.0f;
    }
  }

  // Starts the products of all its rows with all its columns, in the depth of one box, as one group.
  FSDINO_DEVICE void multiply(const char* rows, const char* columns) {
    const uint64_t a = matrix_descriptor(shared_address(rows));
    const uint64_t b = matrix_descriptor(shared_address(columns));
    fence_products();
#pragma unroll
    for (int depth = 0; depth < kBoxDepth; depth += kAsyncDepth) {
      multiply_async<T>(sums, descriptor_along(a, depth), descriptor_along(b, depth));
    }
    commit_products();
  }

  // Calls `visit(row, column, sum)` for this thread's elements.
  template <typename Visit>
  FSDINO_DEVICE void for_each(const Visit& visit) const {
    const int first = lane_index() % 4 * 2;
#pragma unroll
    for (int j = 0; j < kAsyncColumns / 8; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) visit(row_of(k / 2), 8 * j + first + k % 2, sums[j][k]);
    }
  }
  // Of its two rows the first or the second.
  FSDINO_DEVICE static int row_of(int half) {
    return warp_index() % 4 * 16 + lane_index() / 4 + half * 8;
  }
};

FSDINO_DEVICE int warpgroup_index() { return thread_index() / kWarpgroup; }

}  // namespace fsdino::cuda
