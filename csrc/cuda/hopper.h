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

  FSDINO_DEVICE void copy(void* destination, int channel, int token, int layer, int batch,
                          PhaseBarrier* barrier) const {
    copy_box(destination, map, {channel, token, layer * layer_step, batch * batch_step}, barrier);
  }
};

template <typename T>
FeatureMap feature_map(const Cosines<T>& cosines, const Tokens<T>& tokens, int box_tokens) {
  const BoxShape shape = box_shape(cosines.batches, tokens.batch, cosines.layers, tokens.layer,
                                   tokens.count, cosines.channels, box_tokens);
  return {box_map(tokens.values, shape), shape.sizes[2] > 1, shape.sizes[3] > 1};
}

// Stages of shared memory that copies fill and all of a block's warps consume, in turns; each has a
// barrier that says it is full and one that says it is empty. The block's first thread starts all
// copies, a step behind the products that it takes part in: by then the other warps, too, are past
// the step whose stage it fills.
template <int STAGES, int STAGE_BYTES>
class BoxPipeline {
 public:
  static constexpr int kBarrierBytes = 2 * STAGES * int(sizeof(PhaseBarrier));

  FSDINO_DEVICE BoxPipeline(char* stages, char* barriers, int warps)
      : stages_(stages), full_(reinterpret_cast<PhaseBarrier*>(barriers)), empty_(full_ + STAGES) {
    if (thread_index() == 0) {
      for (int i = 0; i < STAGES; ++i) {
        start_barrier(full_ + i, 1);
        start_barrier(empty_ + i, warps);
      }
      publish_barriers();
    }
    synchronise();
  }

  // Announces all steps that will be run, and starts the first of them. `copy(stage, barrier)` starts
  // the copies of one step after the other, STAGE_BYTES each.
  template <typename Copy>
  FSDINO_DEVICE void begin(int steps, Copy& copy) {
    left_ = steps;
    for (int i = 0; i < STAGES && left_ > 0; ++i) fill(copy);
  }

  // Takes the next `steps` steps: `multiply(stage)` starts a step's products as one group; while they
  // run the stage before is given back. All are done at the end.
  template <typename Copy, typename Multiply>
  FSDINO_DEVICE void run(int steps, Copy& copy, const Multiply& multiply) {
    for (int step = 0; step < steps; ++step) {
      wait_phase(full_ + taken_.stage, taken_.parity);
      multiply(stages_ + taken_.stage * STAGE_BYTES);
      taken_.advance();
      wait_products<1>();
      if (step > 0) release(copy);
    }
    wait_products<0>();
    if (steps > 0) release(copy);
  }

 private:
  // The stages in order, and the parity of the barriers' phases.
  struct Turn {
    int stage = 0, parity = 0;

    FSDINO_DEVICE void advance() {
      if (++stage < STAGES) return;
      stage = 0;
      parity ^= 1;
    }
  };

  template <typename Copy>
  FSDINO_DEVICE void fill(Copy& copy) {
    --left_;
    if (thread_index() == 0) {
      arrive_before(full_ + filled_.stage, STAGE_BYTES);
      copy(stages_ + filled_.stage * STAGE_BYTES, full_ + filled_.stage);
    }
    filled_.advance();
  }
  // This warp has no more use for the oldest stage; it is filled again once no warp has.
  template <typename Copy>
  FSDINO_DEVICE void release(Copy& copy) {
    synchronise_warp();
    if (lane_index() == 0) arrive(empty_ + released_.stage);
    if (left_ > 0) {
      if (thread_index() == 0) wait_phase(empty_ + released_.stage, released_.parity);
      fill(copy);
    }
    released_.advance();
    synchronise_warp();
  }

  char* stages_;
  PhaseBarrier *full_, *empty_;
  Turn filled_, taken_, released_;
  int left_ = 0;
};

// A warpgroup's kAsyncRows x kAsyncColumns of a product.
template <typename T>
struct AsyncProduct {
  static constexpr int kWarpRows = kAsyncRows / 4;
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

  // Of this thread's sums, `sums[j][k]` lies in row `row_of(k / 2)` and column `column_of(j) + k % 2`.
  FSDINO_DEVICE static int row_of(int half) {
    return warp_index() % 4 * kWarpRows + lane_index() / 4 + half * 8;
  }
  FSDINO_DEVICE static int column_of(int j) { return 8 * j + lane_index() % 4 * 2; }
};

FSDINO_DEVICE int warpgroup_index() { return thread_index() / kWarpgroup; }

}  // namespace fsdino::cuda
