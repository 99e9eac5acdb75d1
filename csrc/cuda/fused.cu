// correlation_center_pivot4d: a thread block owns a tile of query positions with its halo, and goes
// over tiles of kept support positions. One layer of the correlation at a time is computed on tensor
// cores into shared memory and consumed there, by both convolutions or by their weights' gradient:
// it never reaches device memory.

#include <algorithm>

#include "hopper.h"
#include "tile.h"

namespace fsdino::cuda {

namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;
constexpr int kJob = 32;     // rows and columns of the correlation that a warp computes at a time
// On sm_90a a warpgroup computes kAsyncRows x kAsyncColumns. Halo and window of the usual kernels, 10 x
// 10 and 9 x 9, are then one job for each of the four.
constexpr int kAsyncColumns = 48;
using FusedPipeline = BoxPipeline<4>;

// Blocks of 16 outputs that a warp accumulates: what the registers hold.
template <typename T>
constexpr int kOutputBlocks = sizeof(T) == 2 ? 4 : 2;

constexpr int most_kept(int element_bytes) {
  return (element_bytes == 2 ? 4 : 2) * kWarps * 16 / FusedTile::kTile;
}

// A block's shared memory, in this order; sizes in bytes.
struct Layout {
  int64_t stages, barriers, correlation, grad, partial, tables;

  FSDINO_BOTH Layout(const FusedTile& tile, int element_bytes, bool backward, bool hopper) {
    const int taps = padded(tile.taps(), 32);
    stages = hopper ? int64_t(FusedPipeline::kStages) * box_stage_bytes(tile)
                    : int64_t(kStages) * stage_words(tile) * int64_t(sizeof(Word));
    barriers = hopper ? FusedPipeline::kSharedBytes : 0;
    correlation = rounded(int64_t(tile.halo()) * tile.pitch() * element_bytes);
    grad = backward ? rounded(int64_t(kFusedColumns) * grad_pitch(tile) * element_bytes) : 0;
    partial = backward ? int64_t(kWarps) * kJob * kFusedColumns * int64_t(sizeof(float)) : 0;
    tables = rounded((tile.halo() + 4 * tile.window() + taps + FusedTile::kTile + tile.kept() + 2) *
                     int64_t(sizeof(int)));
  }
  FSDINO_BOTH int64_t total() const {
    return stages + barriers + correlation + grad + partial + tables;
  }

  FSDINO_BOTH static int padded(int size, int to) { return (size + to - 1) / to * to; }
  FSDINO_BOTH static int64_t rounded(int64_t bytes) { return (bytes + 15) / 16 * 16; }
  FSDINO_BOTH static int stage_words(const FusedTile& tile) {
    return (padded(tile.halo(), kJob) + padded(tile.window(), kJob)) * kPitch;
  }
  // The halo's rows, then the window's.
  FSDINO_BOTH static int box_rows_bytes(const FusedTile& tile) {
    return padded(tile.halo(), kAsyncRows) * kBoxBytes;
  }
  FSDINO_BOTH static int box_stage_bytes(const FusedTile& tile) {
    return box_rows_bytes(tile) + padded(tile.window(), kAsyncColumns) * kBoxBytes;
  }
  // Of a channel's gradients: words of different channels lie in different banks.
  FSDINO_BOTH static int grad_pitch(const FusedTile& tile) {
    return FusedTile::kTile * tile.kept() + 8;
  }
};

// A thread's view of the block's work. How features come to shared memory and are multiplied there is
// what `Features`, the class derived from this, adds:
//   place_of(tile, row)  the place in the halo that a row of its product stands for
//   list_columns()       finds the window's support positions of non-zero weight
//   correlate(consume)   computes each layer's correlation and calls `consume(layer)`
template <typename T, typename Features>
class Block {
 public:
  // For each tile of kept positions: `begin()`, `consume(layer)` with each layer's correlation in
  // shared memory, `end()`. All threads take part, and are together where `consume` is called.
  template <typename Begin, typename Consume, typename End>
  FSDINO_DEVICE void run(const Begin& begin, const Consume& consume, const End& end) {
    const int last = smaller(first_kept_tile_ + arguments_.tiles_in_block, kept_tiles_);
    for (int kept_tile = first_kept_tile_; kept_tile < last; ++kept_tile) {
      kept_tile_row_ = kept_tile / kept_tile_columns_;
      kept_tile_column_ = kept_tile % kept_tile_columns_;
      synchronise();
      features().list_columns();
      for (int i = thread_index(); i < tile_.halo() * tile_.pitch(); i += kThreads) {
        correlation_[i] = T(0.0f);
      }
      begin();
      synchronise();
      if (counts_[1] > 0) {
        features().correlate(consume);
      } else {
        // All 0, and still consumed: weights of the convolution may not be finite.
        for (int layer = 0; layer < arguments_.cosines.layers; ++layer) consume(layer);
      }
      end();
    }
  }

  // Output o of the tile: query position o / kept, kept position o % kept. Its place in the
  // correlation; whether it lies in the volume; and its place in the whole output.
  FSDINO_DEVICE const T* centre(int output) const {
    return correlation_ + query_centres_[output / tile_.kept()] +
           kept_centres_[output % tile_.kept()];
  }
  FSDINO_DEVICE bool place(int output, int64_t& offset) const {
    const int query = output / tile_.kept(), kept = output % tile_.kept();
    const int query_row = tile_row_ * FusedTile::kSide + query / FusedTile::kSide;
    const int query_column = tile_column_ * FusedTile::kSide + query % FusedTile::kSide;
    const int row = kept_tile_row_ * tile_.kept_rows + kept / tile_.kept_columns;
    const int column = kept_tile_column_ * tile_.kept_columns + kept % tile_.kept_columns;
    const Volume& v = arguments_.volume;
    offset = (((int64_t(batch_) * v.query_rows + query_row) * v.query_columns + query_column) *
                  kept_rows_ + row) * kept_columns_ + column;
    return query_row < v.query_rows && query_column < v.query_columns && row < kept_rows_ &&
           column < kept_columns_;
  }
  FSDINO_DEVICE int outputs() const { return FusedTile::kTile * tile_.kept(); }
  FSDINO_DEVICE const int* tap_offsets() const { return tap_offsets_; }
  FSDINO_DEVICE T* grad() const { return grad_; }
  FSDINO_DEVICE float* partial() const { return partial_; }

 protected:
  FSDINO_DEVICE explicit Block(const FusedArguments<T>& arguments, bool backward)
      : arguments_(arguments), tile_(arguments.tile) {
    const Layout layout(tile_, sizeof(T), backward, Features::kInBoxes);
    char* memory = shared_memory();
    stages_ = memory;
    barriers_ = memory += layout.stages;
    correlation_ = reinterpret_cast<T*>(memory += layout.barriers);
    grad_ = reinterpret_cast<T*>(memory += layout.correlation);
    partial_ = reinterpret_cast<float*>(memory += layout.grad);
    int* table = reinterpret_cast<int*>(memory += layout.partial);
    halo_tokens_ = table;
    column_tokens_ = (table += tile_.halo());
    column_places_ = (table += tile_.window());
    kinds_ = (table += tile_.window());
    column_weights_ = reinterpret_cast<float*>(table += tile_.window());
    tap_offsets_ = (table += tile_.window());
    query_centres_ = (table += Layout::padded(tile_.taps(), 32));
    kept_centres_ = (table += FusedTile::kTile);
    counts_ = (table += tile_.kept());

    const Volume& v = arguments.volume;
    kept_rows_ = ceil_div(v.support_rows, tile_.stride);
    kept_columns_ = ceil_div(v.support_columns, tile_.stride);
    kept_tile_columns_ = ceil_div(kept_columns_, tile_.kept_columns);
    kept_tiles_ = ceil_div(kept_rows_, tile_.kept_rows) * kept_tile_columns_;
    const int shares = ceil_div(kept_tiles_, arguments.tiles_in_block);
    const int tile_columns = ceil_div(v.query_columns, FusedTile::kSide);
    const int tiles = ceil_div(v.query_rows, FusedTile::kSide) * tile_columns;
    int block = block_index();
    first_kept_tile_ = block % shares * arguments.tiles_in_block;
    block /= shares;
    tile_row_ = block % tiles / tile_columns;
    tile_column_ = block % tiles % tile_columns;
    batch_ = block / tiles;
    fill_constant_tables();
  }

  FSDINO_DEVICE Features& features() { return static_cast<Features&>(*this); }
  // Support token of a place of the window if its weight is not 0, else -1.
  FSDINO_DEVICE int listed_token(int place) const {
    const int token = support_token(place);
    return token >= 0 && weight_of(token) != 0.0f ? token : -1;
  }
  FSDINO_DEVICE float weight_of(int token) const {
    const T* const weights = arguments_.cosines.weight;
    return weights ? static_cast<float>(weights[batch_ * arguments_.volume.support() + token])
                   : 1.0f;
  }

  FSDINO_DEVICE void fill_constant_tables() {
    const Volume& v = arguments_.volume;
    for (int slot = thread_index(); slot < tile_.halo(); slot += kThreads) {
      const int halo_place = Features::place_of(tile_, slot);
      const int row = tile_.query_row(tile_row_, halo_place);
      const int column = tile_.query_column(tile_column_, halo_place);
      const bool inside = row >= 0 && row < v.query_rows && column >= 0 && column < v.query_columns;
      halo_tokens_[slot] = inside ? row * v.query_columns + column : -1;
    }
    for (int tap = thread_index(); tap < Layout::padded(tile_.taps(), 32); tap += kThreads) {
      tap_offsets_[tap] = tap < tile_.taps() ? tile_.tap_offset(tap) : INT32_MIN;
    }
    for (int i = thread_index(); i < FusedTile::kTile; i += kThreads) {
      query_centres_[i] = tile_.centre(i, 0) - tile_.centre(0, 0);
    }
    for (int i = thread_index(); i < tile_.kept(); i += kThreads) {
      kept_centres_[i] = tile_.centre(0, i);
    }
  }

  FSDINO_DEVICE int support_token(int place) const {
    const Volume& v = arguments_.volume;
    const int row = tile_.support_row(kept_tile_row_, place);
    const int column = tile_.support_column(kept_tile_column_, place);
    const bool inside =
        row >= 0 && row < v.support_rows && column >= 0 && column < v.support_columns;
    return inside ? row * v.support_columns + column : -1;
  }

  // What a layer's products are scaled with on both sides.
  FSDINO_DEVICE const float* query_inverse(int layer) const {
    const Tokens<T>& tokens = arguments_.cosines.query;
    return tokens.inverse + batch_ * tokens.inverse_batch + int64_t(layer) * tokens.count;
  }
  FSDINO_DEVICE const float* support_inverse(int layer) const {
    const Tokens<T>& tokens = arguments_.cosines.support;
    return tokens.inverse + batch_ * tokens.inverse_batch + int64_t(layer) * tokens.count;
  }

  const FusedArguments<T>& arguments_;
  const FusedTile tile_;
  char *stages_, *barriers_;
  T *correlation_, *grad_;
  float *partial_, *column_weights_;
  int *halo_tokens_, *column_tokens_, *column_places_, *kinds_, *tap_offsets_, *query_centres_,
      *kept_centres_, *counts_;
  int kept_rows_, kept_columns_, kept_tiles_, kept_tile_columns_, first_kept_tile_;
  int64_t batch_;
  int tile_row_, tile_column_, kept_tile_row_ = 0, kept_tile_column_ = 0;
};

// Rows of features, gathered in pieces of BYTES, and `mma.sync`. Support positions of weight 0 are
// neither loaded nor multiplied.
template <typename T, int BYTES>
class GatheringBlock : public Block<T, GatheringBlock<T, BYTES>> {
 public:
  using Base = Block<T, GatheringBlock>;
  static constexpr bool kInBoxes = false;

  FSDINO_DEVICE GatheringBlock(const FusedArguments<T>& arguments, bool backward)
      : Base(arguments, backward) {}

  FSDINO_DEVICE static int place_of(const FusedTile& tile, int row) { return tile.halo_place(row); }

  // Lists the window's support positions of non-zero weight, the kept ones first. counts_[0] is
  // their number, counts_[1] that of all.
  FSDINO_DEVICE void list_columns() {
    const int window = tile_.window();
    for (int place = thread_index(); place < window; place += kThreads) {
      kinds_[place] = this->listed_token(place) < 0 ? 2 : tile_.is_kept(place) ? 0 : 1;
    }
    if (thread_index() < 2) counts_[thread_index()] = 0;
    synchronise();
    for (int place = thread_index(); place < window; place += kThreads) {
      int kept = 0, kept_before = 0, others_before = 0;
      for (int other = 0; other < window; ++other) {
        const int kind = kinds_[other];
        kept += kind == 0;
        kept_before += other < place && kind == 0;
        others_before += other < place && kind == 1;
      }
      const int kind = kinds_[place], token = this->support_token(place);
      if (kind < 2) {
        const int column = kind == 0 ? kept_before : kept + others_before;
        column_tokens_[column] = token;
        column_places_[column] = place;
        column_weights_[column] = this->weight_of(token);
      }
      if (place == window - 1) {
        counts_[0] = kept;
        counts_[1] = kept_before + others_before + (kind < 2);
      }
    }
  }

  // All layers' correlation, in rounds of one job for each warp. The pipeline runs on from round to
  // round and from layer to layer: the next one's first steps arrive while this one is consumed.
  template <typename Consume>
  FSDINO_DEVICE void correlate(const Consume& consume) {
    const auto& cosines = arguments_.cosines;
    const int columns = counts_[1];
    const int across = ceil_div(columns, kJob), across_kept = ceil_div(counts_[0], kJob);
    const int inner_jobs = FusedTile::kTile / kJob * across;
    const int jobs =
        inner_jobs + ceil_div(tile_.halo() - FusedTile::kTile, kJob) * across_kept;
    const int rounds = ceil_div(jobs, kWarps), steps = ceil_div(cosines.channels, kDepth<T>);
    const int total = cosines.layers * rounds * steps;
    const int column_stage = Layout::padded(tile_.halo(), kJob) * kPitch;

    const auto start = [&](int at) {
      if (at < total) {
        Word* const stage = words() + at % kStages * Layout::stage_words(tile_);
        const int layer = at / (rounds * steps), step = at % steps;
        const Source query{query_tokens(layer), halo_tokens_, cosines.channels};
        const Source support{support_tokens(layer), column_tokens_, cosines.channels};
        stage_along<T, BYTES, kThreads>(stage, tile_.halo(), step, query);
        stage_along<T, BYTES, kThreads>(stage + column_stage, columns, step, support);
      }
      commit_copies();
    };
    for (int at = 0; at < kStages - 1; ++at) start(at);
    int at = 0;
    for (int layer = 0; layer < cosines.layers; ++layer) {
      for (int round = 0; round < rounds; ++round) {
        const int job = round * kWarps + warp_index();
        const bool inner = job < inner_jobs;
        const int width = larger(1, inner ? across : across_kept);
        const int index = inner ? job : job - inner_jobs;
        const int row = (inner ? 0 : FusedTile::kTile) + index / width * kJob;
        const int column = index % width * kJob;
        const int pairs = ceil_div(smaller(kJob, (inner ? columns : counts_[0]) - column), 16);
        float sums[2][4][4] = {};
        for (int step = 0; step < steps; ++step, ++at) {
          wait_copies<kStages - 2>();
          synchronise();
          start(at + kStages - 1);
          const Word* const stage = words() + at % kStages * Layout::stage_words(tile_);
          if (job < jobs) {
            multiply_job(sums, stage + row * kPitch, stage + column_stage + column * kPitch, pairs);
          }
        }
        if (job < jobs) store_job(sums, layer, row, column, inner ? columns : counts_[0]);
      }
      synchronise();
      consume(layer);
    }
  }

 private:
  using Base::arguments_, Base::tile_, Base::halo_tokens_, Base::column_tokens_, Base::column_places_,
      Base::column_weights_, Base::counts_, Base::kinds_, Base::correlation_, Base::batch_;

  // The tokens that a stage of the pipeline reads: those of the halo, then the listed columns.
  struct Source {
    const T* first;
    const int* tokens;
    int channels;

    FSDINO_DEVICE const T* at(int row, int step, int element, int& valid) const {
      const int channel = step * kDepth<T> + element;
      valid = tokens[row] < 0 ? 0 : channels - channel;
      return valid <= 0 ? first : first + int64_t(tokens[row]) * channels + channel;
    }
  };

  FSDINO_DEVICE Word* words() const { return reinterpret_cast<Word*>(this->stages_); }

  FSDINO_DEVICE void multiply_job(float (&sums)[2][4][4], const Word* rows, const Word* columns,
                                  int pairs) const {
#pragma unroll
    for (int word = 0; word < kDepthWords; word += kStepWords) {
      Word a[2][4];
      load_rows(a[0], rows + word);
      load_rows(a[1], rows + 16 * kPitch + word);
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        if (pair < pairs) {
          Word b[2][2];
          load_columns(b, columns + 16 * pair * kPitch + word);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            multiply<T>(sums[i / 2][2 * pair + i % 2], a[i / 2], b[i % 2], arguments_.cosines.tf32);
          }
        }
      }
    }
  }

  // Cosines, rectified and weighted, into the correlation.
  FSDINO_DEVICE void store_job(const float (&sums)[2][4][4], int layer, int first_row,
                               int first_column, int columns) {
    const float* const query_inverse = this->query_inverse(layer);
    const float* const support_inverse = this->support_inverse(layer);
    const int lane = lane_index();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const int column = first_column + 8 * j + lane % 4 * 2 + k;
        if (column >= columns) continue;
        const float weight = column_weights_[column];
        const float scale = support_inverse[column_tokens_[column]];
        T* const to = correlation_ + column_places_[column];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int slot = first_row + lane / 4 + 8 * i;
          if (slot >= tile_.halo() || halo_tokens_[slot] < 0) continue;
          const float cosine = sums[i / 2][j][i % 2 * 2 + k] * query_inverse[halo_tokens_[slot]];
          to[tile_.halo_place(slot) * tile_.pitch()] = T(rectified(cosine * scale) * weight);
        }
      }
    }
  }

  FSDINO_DEVICE const T* query_tokens(int layer) const {
    const Tokens<T>& tokens = arguments_.cosines.query;
    return tokens.values + batch_ * tokens.batch + layer * tokens.layer;
  }
  FSDINO_DEVICE const T* support_tokens(int layer) const {
    const Tokens<T>& tokens = arguments_.cosines.support;
    return tokens.values + batch_ * tokens.batch + layer * tokens.layer;
  }
};

// Boxes of features and `wgmma`: the halo is one box, the window another. The whole rectangle is
// multiplied, also where only kept positions are read and where weights are 0: by the arithmetic,
// bringing the features takes longer. A tile whose weights are all 0 is skipped.
template <typename T>
class HopperBlock : public Block<T, HopperBlock<T>> {
 public:
  using Base = Block<T, HopperBlock>;
  static constexpr bool kInBoxes = true;
  static constexpr int kWarpgroups = kThreads / kWarpgroup;

  FSDINO_DEVICE HopperBlock(const FusedArguments<T>& arguments, const FeatureMap& query,
                            const FeatureMap& support, bool backward)
      : Base(arguments, backward), query_(query), support_(support),
        pipeline_(this->barriers_, kWarps) {}

  FSDINO_DEVICE static int place_of(const FusedTile&, int row) { return row; }

  // A column is a place of the window; those that are not listed have no token.
  FSDINO_DEVICE void list_columns() {
    const int window = tile_.window();
    for (int place = thread_index(); place < window; place += kThreads) {
      const int token = this->listed_token(place);
      column_tokens_[place] = token;
      column_weights_[place] = token < 0 ? 0.0f : this->weight_of(token);
    }
    synchronise();
    if (thread_index() != 0) return;
    int listed = 0;
    for (int place = 0; place < window; ++place) listed += column_tokens_[place] >= 0;
    counts_[1] = listed;
  }

  // All layers' correlation, in rounds of one job for each warpgroup; the pipeline runs on as above.
  template <typename Consume>
  FSDINO_DEVICE void correlate(const Consume& consume) {
    const auto& cosines = arguments_.cosines;
    const int across = ceil_div(tile_.window(), kAsyncColumns);
    const int jobs = ceil_div(tile_.halo(), kAsyncRows) * across;
    const int rounds = ceil_div(jobs, kWarpgroups), steps = ceil_div(cosines.channels, kBoxDepth);
    const auto copy = [&](int step, int stage, PhaseBarrier* barrier) {
      copy_features(step / (rounds * steps), step % steps * kBoxDepth, stage_at(stage), barrier);
    };
    pipeline_.begin(cosines.layers * rounds * steps, (tile_.halo() + tile_.window()) * kBoxBytes,
                    copy);
    for (int layer = 0; layer < cosines.layers; ++layer) {
      for (int round = 0; round < rounds; ++round) {
        const int job = round * kWarpgroups + warpgroup_index();
        const int row = job / across * kAsyncRows, column = job % across * kAsyncColumns;
        AsyncProduct<T, kAsyncColumns> product;
        pipeline_.run(steps, copy, [&](int stage) {
          if (job >= jobs) return;
          const char* const rows = stage_at(stage);
          product.multiply(rows + row * kBoxBytes,
                           rows + Layout::box_rows_bytes(tile_) + column * kBoxBytes);
        });
        if (round == 0) synchronise();  // The layer before is consumed.
        if (job < jobs) store(product, layer, row, column);
      }
      synchronise();
      consume(layer);
    }
  }

 private:
  using Base::arguments_, Base::tile_, Base::halo_tokens_, Base::column_tokens_, 
      Base::column_weights_, Base::counts_, Base::correlation_, Base::batch_;

  FSDINO_DEVICE char* stage_at(int stage) const {
    return this->stages_ + stage * Layout::box_stage_bytes(tile_);
  }

  FSDINO_DEVICE void copy_features(int layer, int channel, char* stage,
                                   PhaseBarrier* barrier) const {
    query_.copy(stage, channel, tile_.query_column(this->tile_column_, 0),
                tile_.query_row(this->tile_row_, 0), layer, int(batch_), barrier);
    support_.copy(stage + Layout::box_rows_bytes(tile_), channel,
                  tile_.support_column(this->kept_tile_column_, 0),
                  tile_.support_row(this->kept_tile_row_, 0), layer, int(batch_), barrier);
  }

  // Cosines, rectified and weighted, into the correlation.
  FSDINO_DEVICE void store(const AsyncProduct<T, kAsyncColumns>& product, int layer, int first_row,
                           int first_column) const {
    const float* const query_inverse = this->query_inverse(layer);
    const float* const support_inverse = this->support_inverse(layer);
    product.for_each([&](int row, int column, float sum) {
      row += first_row;
      column += first_column;
      if (row >= tile_.halo() || halo_tokens_[row] < 0) return;
      if (column >= tile_.window() || column_tokens_[column] < 0) return;
      const float cosine =
          sum * query_inverse[halo_tokens_[row]] * support_inverse[column_tokens_[column]];
      correlation_[row * tile_.pitch() + column] = T(rectified(cosine) * column_weights_[column]);
    });
  }

  const FeatureMap &query_, &support_;
  FusedPipeline pipeline_;
};

// Element at `offset` from `centre`; 0 for a tap that does not exist.
template <typename T>
FSDINO_DEVICE T read(const T* centre, int offset) {
  return offset == INT32_MIN ? T(0.0f) : centre[offset];
}

FSDINO_DEVICE Word pack(float low, float) { return as_word(low); }
template <typename T>
FSDINO_DEVICE Word pack(T low, T high) {
  return Word(low.x) | Word(high.x) << 16;
}

// A word of two taps of one output, or of one tap of a float.
template <typename T>
FSDINO_DEVICE Word taps_of(const T* centre, const int (&offsets)[2]) {
  if constexpr (kPerWord<T> == 2) {
    return pack(read(centre, offsets[0]), read(centre, offsets[1]));
  } else {
    return pack(read(centre, offsets[0]), 0.0f);
  }
}

template <typename T, typename Block>
FSDINO_DEVICE void convolve(Block& block, const FusedArguments<T>& arguments, int words) {
  const int lane = lane_index();
  float sums[kOutputBlocks<T>][2][4];
  // Outputs 16 * (warp + kWarps * i) + lane / 4 and 8 further on.
  const auto first_output = [&](int i) { return 16 * (warp_index() + kWarps * i) + lane / 4; };

  const auto begin = [&] {
#pragma unroll
    for (int i = 0; i < kOutputBlocks<T>; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) sums[i][j / 4][j % 4] = 0.0f;
    }
  };
  const auto convolve_layer = [&](int layer) {
    const T* const matrix = arguments.weights + int64_t(layer) * kFusedColumns * words * kPerWord<T>;
    const Word* const weights = reinterpret_cast<const Word*>(matrix);
    for (int first = 0; first < words; first += kStepWords) {
      Word b[2][2];
      int offsets[2][2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int word = first + lane % 4 + 4 * half;
        b[0][half] = weights[lane / 4 * words + word];
        b[1][half] = weights[(lane / 4 + 8) * words + word];
        offsets[half][0] = block.tap_offsets()[word * kPerWord<T>];
        offsets[half][1] = block.tap_offsets()[word * kPerWord<T> + kPerWord<T> - 1];
      }
#pragma unroll
      for (int i = 0; i < kOutputBlocks<T>; ++i) {
        const int output = first_output(i);
        if (output >= block.outputs()) break;
        const T *const low = block.centre(output), *const high = block.centre(output + 8);
        const Word a[4] = {taps_of(low, offsets[0]), taps_of(high, offsets[0]),
                           taps_of(low, offsets[1]), taps_of(high, offsets[1])};
        multiply<T>(sums[i][0], a, b[0], arguments.cosines.tf32);
        multiply<T>(sums[i][1], a, b[1], arguments.cosines.tf32);
      }
    }
  };
  const auto end = [&] {
#pragma unroll
    for (int i = 0; i < kOutputBlocks<T>; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int output = first_output(i) + 8 * j;
        int64_t place = 0;
        if (output >= block.outputs() || !block.place(output, place)) continue;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int column = arguments.first_outer + k / 2 * 8 + lane % 4 * 2 + k % 2;
          if (column >= arguments.outer) continue;
          const float bias = arguments.bias ? static_cast<float>(arguments.bias[column]) : 0.0f;
          const float sum = sums[i][k / 2][2 * j + k % 2];
          arguments.out[place * arguments.outer + column] = T(sum + bias);
        }
      }
    }
  };
  block.run(begin, convolve_layer, end);
}

template <typename T, int BYTES>
FSDINO_KERNEL(kThreads)
fused_kernel(const FusedArguments<T> arguments, const int words) {
  GatheringBlock<T, BYTES> block(arguments, false);
  convolve(block, arguments, words);
}

template <typename T>
FSDINO_KERNEL(kThreads)
fused_hopper_kernel(FSDINO_PARAMETER FeatureMap query, FSDINO_PARAMETER FeatureMap support,
                    const FusedArguments<T> arguments, const int words) {
  if constexpr (kHopper) {
    HopperBlock<T> block(arguments, query, support, false);
    convolve(block, arguments, words);
  }
}

// Gradient to the weights: for each layer a product [taps, outputs] x [outputs, channels], the
// outputs shared out among the warps, whose sums are added in order. A block adds up its tiles.
template <typename T, typename Block>
FSDINO_DEVICE void sum_weight_gradients(Block& block, const FusedArguments<T>& arguments) {
  const int lane = lane_index(), pitch = Layout::grad_pitch(arguments.tile);
  const int taps = arguments.tile.taps();
  const int columns = smaller(kFusedColumns, arguments.outer - arguments.first_outer);
  bool first_tile = true;

  const auto load_grad = [&] {
    for (int i = thread_index(); i < block.outputs() * kFusedColumns; i += kThreads) {
      const int output = i / kFusedColumns, column = i % kFusedColumns;
      int64_t place = 0;
      const bool inside = column < columns && block.place(output, place);
      block.grad()[column * pitch + output] =
          inside ? arguments.grad[place * arguments.outer + arguments.first_outer + column]
                 : T(0.0f);
    }
  };
  const auto partial_of = [&](int layer, int tap) {
    const int64_t matrix = int64_t(block_index()) * arguments.cosines.layers + layer;
    return arguments.partial + (matrix * taps + tap) * arguments.outer + arguments.first_outer;
  };
  const auto consume = [&](int layer) {
    for (int first_tap = 0; first_tap < taps; first_tap += kJob) {
      float sums[2][2][4] = {};
      int offsets[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) offsets[i] = block.tap_offsets()[first_tap + lane / 4 + 8 * i];
      constexpr int kStep = kStepWords * kPerWord<T>;
      for (int first = warp_index() * kStep; first < block.outputs(); first += kWarps * kStep) {
        Word a[2][4], b[2][2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int output = first + (lane % 4 + 4 * half) * kPerWord<T>;
          const T* const low = block.centre(output);
          const T* const high = block.centre(output + kPerWord<T> - 1);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            a[i / 2][i % 2 + 2 * half] = pack(read(low, offsets[i]), read(high, offsets[i]));
          }
          const T* const grad = block.grad() + lane / 4 * pitch + output;
          b[0][half] = *reinterpret_cast<const Word*>(grad);
          b[1][half] = *reinterpret_cast<const Word*>(grad + 8 * pitch);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          multiply<T>(sums[i / 2][i % 2], a[i / 2], b[i % 2], arguments.cosines.tf32);
        }
      }
      float* const own = block.partial() + warp_index() * kJob * kFusedColumns;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int row = i / 8 * 16 + i % 4 / 2 * 8 + lane / 4;
        const int column = i / 4 % 2 * 8 + lane % 4 * 2 + i % 2;
        own[row * kFusedColumns + column] = sums[i / 8][i / 4 % 2][i % 4];
      }
      synchronise();
      for (int i = thread_index(); i < kJob * kFusedColumns; i += kThreads) {
        const int tap = first_tap + i / kFusedColumns, column = i % kFusedColumns;
        if (tap >= taps || column >= columns) continue;
        float total = 0.0f;
        for (int warp = 0; warp < kWarps; ++warp) {
          total += block.partial()[warp * kJob * kFusedColumns + i];
        }
        float* const to = partial_of(layer, tap) + column;
        *to = first_tile ? total : *to + total;
      }
      synchronise();
    }
    if (layer == arguments.cosines.layers - 1) first_tile = false;
  };
  block.run(load_grad, consume, [] {});
  for (int i = thread_index(); first_tile && i < arguments.cosines.layers * taps; i += kThreads) {
    for (int column = 0; column < columns; ++column) partial_of(i / taps, i % taps)[column] = 0.0f;
  }
}

template <typename T, int BYTES>
FSDINO_KERNEL(kThreads) fused_weight_kernel(const FusedArguments<T> arguments) {
  GatheringBlock<T, BYTES> block(arguments, true);
  sum_weight_gradients(block, arguments);
}

template <typename T>
FSDINO_KERNEL(kThreads)
fused_weight_hopper_kernel(FSDINO_PARAMETER FeatureMap query, FSDINO_PARAMETER FeatureMap support,
                           const FusedArguments<T> arguments) {
  if constexpr (kHopper) {
    HopperBlock<T> block(arguments, query, support, true);
    sum_weight_gradients(block, arguments);
  }
}

}  // namespace

FusedPlan fused_plan(const Volume& volume, int batches, int kernel_query, int kernel_support,
                     int stride, int element_bytes, bool backward, bool hopper,
                     int64_t shared_limit) {
  constexpr int kKept[][2] = {{4, 4}, {2, 4}, {2, 2}, {1, 2}, {1, 1}};
  constexpr int kBlocks = 512;  // enough to fill a GPU several times
  FusedPlan plan{};
  for (const auto& [rows, columns] : kKept) {
    if (rows * columns > most_kept(element_bytes)) continue;
    plan.tile = {kernel_query, kernel_support, stride, rows, columns};
    plan.shared = Layout(plan.tile, element_bytes, backward, hopper).total();
    plan.hopper = hopper;
    if (plan.shared <= shared_limit && (!hopper || plan.tile.is_boxes())) break;
  }
  if (hopper && (plan.shared > shared_limit || !plan.tile.is_boxes())) {
    return fused_plan(volume, batches, kernel_query, kernel_support, stride, element_bytes, backward,
                      false, shared_limit);
  }
  if (plan.shared > shared_limit) {
    throw std::runtime_error("backend 'cuda': kernels of " + std::to_string(kernel_query) + " and " +
                             std::to_string(kernel_support) + " need " +
                             std::to_string(plan.shared) +
                             " bytes of shared memory, a block of this GPU has " +
                             std::to_string(shared_limit) + ": choose another backend");
  }
  plan.tile_rows = ceil_div(volume.query_rows, FusedTile::kSide);
  plan.tile_columns = ceil_div(volume.query_columns, FusedTile::kSide);
  plan.kept_tile_rows = ceil_div(ceil_div(volume.support_rows, stride), plan.tile.kept_rows);
  plan.kept_tile_columns =
      ceil_div(ceil_div(volume.support_columns, stride), plan.tile.kept_columns);
  const int64_t kept_tiles = int64_t(plan.kept_tile_rows) * plan.kept_tile_columns;
  const int64_t all = kept_tiles * plan.tile_rows * plan.tile_columns * batches;
  plan.tiles_in_block = int(std::max<int64_t>(1, std::min(kept_tiles, all / kBlocks)));
  return plan;
}

// Calls `run(query, support)` with the maps of the halo's and the window's boxes.
template <typename T, typename F>
void with_maps(const FusedArguments<T>& arguments, const F& run) {
  const auto& cosines = arguments.cosines;
  const FusedTile& tile = arguments.tile;
  const Volume& v = arguments.volume;
  run(feature_map(cosines, cosines.query, v.query_rows, v.query_columns, tile.halo_side(),
                  tile.halo_side()),
      feature_map(cosines, cosines.support, v.support_rows, v.support_columns, tile.window_rows(),
                  tile.window_columns()));
}

template <typename T>
void fused(const FusedArguments<T>& arguments, const FusedPlan& plan, Stream stream) {
  const int words = tap_words(plan.tile.taps(), sizeof(T));
  const int64_t blocks = int64_t(arguments.cosines.batches) * plan.blocks_of_sample();
  if constexpr (sizeof(T) == 2) {
    if (plan.hopper && blocks > 0) {
      with_maps(arguments, [&](const FeatureMap& query, const FeatureMap& support) {
        launch(fused_hopper_kernel<T>, blocks, kThreads, plan.shared, stream, query, support,
               arguments, words);
      });
      return;
    }
  }
  with_piece_bytes<T>(arguments.cosines.channels * sizeof(T), [&](auto bytes) {
    launch(fused_kernel<T, bytes()>, blocks, kThreads, plan.shared, stream, arguments, words);
  });
}

template <typename T>
void fused_weight_gradients(const FusedArguments<T>& arguments, const FusedPlan& plan,
                            Stream stream) {
  const int64_t blocks = int64_t(arguments.cosines.batches) * plan.blocks_of_sample();
  if constexpr (sizeof(T) == 2) {
    if (plan.hopper && blocks > 0) {
      with_maps(arguments, [&](const FeatureMap& query, const FeatureMap& support) {
        launch(fused_weight_hopper_kernel<T>, blocks, kThreads, plan.shared, stream, query, support,
               arguments);
      });
      return;
    }
  }
  with_piece_bytes<T>(arguments.cosines.channels * sizeof(T), [&](auto bytes) {
    launch(fused_weight_kernel<T, bytes()>, blocks, kThreads, plan.shared, stream, arguments);
  });
}

#define FSDINO_INSTANTIATE(T)                                                         \
  template void fused<T>(const FusedArguments<T>&, const FusedPlan&, Stream);         \
  template void fused_weight_gradients<T>(const FusedArguments<T>&, const FusedPlan&, Stream);
FSDINO_FOR_EACH_TYPE(FSDINO_INSTANTIATE)

}  // namespace fsdino::cuda
