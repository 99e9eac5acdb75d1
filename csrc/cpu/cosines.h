// The product behind the correlation, for its result and for its gradients.

#pragma once

#include <vector>

#include "correlation.h"

namespace fsdino::cpu {

constexpr int64_t kPanelBytes = 768 << 10;  // of query features that stay in the second cache

// A map's tokens at chosen positions, in blocks of rows as `multiply` reads them.
template <typename T>
void pack_tokens(const Features<T>& features, int64_t b, int64_t layer,
                 const std::vector<int64_t>& positions, Compute<T>* packed) {
  using A = Compute<T>;
  const Simd<T>& functions = simd<T>();
  const int64_t count = static_cast<int64_t>(positions.size()), channels = features.channels();
  const int64_t steps = functions.steps(channels), stride = features.tokens();
  const T* map = features.map(b, layer);
  const A* factors = features.factors(b, layer);
  // A line of the map is read once for all blocks of a span, a multiple of every block.
  constexpr int64_t kSpan = 128, kBlock = 32, kBytes = 1 << 20;
  const int64_t fit = kBytes / (steps * static_cast<int64_t>(sizeof(A))) / kBlock * kBlock;
  const int64_t span = std::clamp(fit, kBlock, kSpan);
  const int64_t width = ceil_div(span, functions.tile) * functions.tile;
  at::parallel_for(0, ceil_div(count, span), grain(channels * span), [&](int64_t begin, int64_t end) {
    const Scratch<A> words(steps * width);
    std::vector<T> chosen;
    std::vector<A> chosen_factors(span);
    for (int64_t first = begin * span; first < std::min(end * span, count); first += span) {
      const int64_t rows = std::min(span, count - first);
      const int64_t* places = positions.data() + first;
      const T* from = map + places[0];
      const A* scale = factors ? factors + places[0] : nullptr;
      int64_t row = stride;
      bool dense = true;
      for (int64_t i = 1; i < rows; ++i) dense = dense && places[i] == places[0] + i;
      if (!dense) {
        chosen.resize(channels * span);
        for (int64_t c = 0; c < channels; ++c) {
          for (int64_t i = 0; i < rows; ++i) chosen[c * rows + i] = map[c * stride + places[i]];
        }
        for (int64_t i = 0; factors && i < rows; ++i) chosen_factors[i] = factors[places[i]];
        from = chosen.data();
        if (factors) scale = chosen_factors.data();
        row = rows;
      }
      functions.pack_scaled(from, row, channels, scale, rows, functions.tile, width, words.data());
      for (int64_t r = 0; r < rows;) {
        const int64_t block = functions.block_rows(rows - r);
        functions.arrange(words.data() + r, width, steps, block, packed + (first + r) * steps);
        r += block;
      }
    }
  });
}

// Cosines of chosen support positions with all query positions, in tiles: calls
// sink(first position, positions, first query, queries, tile, its stride).
template <typename T, typename Sink>
void cosines(const Features<T>& query, const Features<T>& support, int64_t b, int64_t layer,
             const std::vector<int64_t>& positions, const Sink& sink) {
  using A = Compute<T>;
  const Simd<T>& functions = simd<T>();
  const int64_t count = static_cast<int64_t>(positions.size()), channels = query.channels();
  const int64_t tokens = query.tokens(), tile = functions.tile, steps = functions.steps(channels);
  if (count == 0) return;
  const Scratch<A> packed(functions.room(count) * steps);
  pack_tokens(support, b, layer, positions, packed.data());

  const T* map = query.map(b, layer);
  const A *factors = query.factors(b, layer), *rest = query.rest(b, layer);
  const A* support_rest = support.rest(b, layer);
  // A block of support positions is multiplied by some tiles while it is in the first cache.
  const int64_t tiles = ceil_div(tokens, tile);
  const int64_t fit = kPanelBytes / (steps * tile * static_cast<int64_t>(sizeof(A)));
  const int64_t group = std::clamp<int64_t>(std::min(fit, ceil_div(tiles, at::get_num_threads())), 1, 16);
  at::parallel_for(0, ceil_div(tiles, group), grain(channels * count * tile * group),
                   [&](int64_t begin, int64_t end) {
    const Products<T> products;
    const Scratch<A> panel(steps * tile * group);
    const Scratch<A> result(functions.block * tile);
    for (int64_t run = begin; run < end; ++run) {
      const int64_t first = run * tile * group, columns = std::min(tile * group, tokens - first);
      functions.pack_scaled(map + first, tokens, channels, factors ? factors + first : nullptr,
                            columns, steps * tile, tile, panel.data());
      for (int64_t row = 0; row < count;) {
        const int64_t rows = functions.block_rows(count - row);
        const A* left = packed.data() + row * steps;
        for (int64_t c = 0; c < columns; c += tile) {
          const int64_t width = std::min(tile, columns - c);
          functions.multiply(&left, 1, steps, panel.data() + c * steps, nullptr, rows, width,
                             result.data(), tile);
          for (int64_t r = 0; rest && r < rows; ++r) {
            functions.scale(result.data() + r * tile, support_rest[positions[row + r]],
                            rest + first + c, width);
          }
          sink(row, rows, first + c, width, result.data(), tile);
        }
        row += rows;
      }
    }
  });
}

}  // namespace fsdino::cpu
