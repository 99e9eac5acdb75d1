// The kernels' index arithmetic against the definition, exhaustively on small grids.

#include <cstdio>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "index.h"

using namespace fsdino::cuda;

namespace {

int failures = 0, checks = 0;

void expect(bool holds, const char* what) {
  ++checks;
  if (!holds && ++failures < 20) printf("wrong: %s\n", what);
}

// A pair of positions that the definition multiplies, and the matrix: see the op's docstring.
using Term = std::tuple<int64_t, int64_t, int>;  // offset in x, offset in y, matrix

// Terms of the convolution, by its definition.
std::multiset<Term> definition(const Volume& x, const Volume& y, const Convolution& c) {
  std::multiset<Term> terms;
  for (int64_t out = 0; out < y.positions(); ++out) {
    const Position p = y.at(out);
    const Position centre{p.query_row + c.first_query_row, p.query_column,
                          p.support_row * c.stride, p.support_column * c.stride};
    for (int i = 0; i < c.kernel_query; ++i) {
      for (int j = 0; j < c.kernel_query; ++j) {
        Position from = centre;
        from.query_row += i - c.kernel_query / 2;
        from.query_column += j - c.kernel_query / 2;
        if (x.holds(from)) terms.insert({x.offset(from), out, i * c.kernel_query + j});
      }
    }
    for (int i = 0; i < c.kernel_support; ++i) {
      for (int j = 0; j < c.kernel_support; ++j) {
        Position from = centre;
        from.support_row += i - c.kernel_support / 2;
        from.support_column += j - c.kernel_support / 2;
        const int matrix = c.kernel_query * c.kernel_query + i * c.kernel_support + j;
        if (x.holds(from)) terms.insert({x.offset(from), out, matrix});
      }
    }
  }
  return terms;
}

// Adds the terms of a walk; also checks that moves are linear in memory.
void collect(const Walk& walk, std::multiset<Term>& terms, std::multiset<int64_t>& written) {
  for (int64_t row = 0; row < walk.walked.positions(); ++row) {
    const Position position = walk.walked.at(row);
    expect(walk.walked.offset(position) == row, "a position of a row");
    const Position output = walk.in_output(position);
    expect(walk.output.holds(output), "a row writes inside of the output");
    const int64_t to = walk.output.offset(output);
    written.insert(to);
    for (int i = 0; i < walk.taps(); ++i) {
      const Tap tap = walk.tap(i);
      const Position source = walk.in_source(position), from = moved(source, tap.move);
      if (!walk.source.holds(from)) continue;
      const int64_t at = walk.source.offset(source) + walk.source.offset(tap.move);
      expect(at == walk.source.offset(from), "a move is a fixed distance");
      if (walk.direction == 1) {
        terms.insert({at, to, tap.matrix});
      } else {
        terms.insert({to, at, tap.matrix});
      }
    }
  }
}

void check_walks(const Volume& x, const Convolution& c) {
  const Volume y{x.query_rows - c.first_query_row, x.query_columns,
                 ceil_div(x.support_rows, c.stride), ceil_div(x.support_columns, c.stride)};
  std::multiset<Term> forward;
  std::multiset<int64_t> written;
  collect(walk_forward(x, y, c), forward, written);
  expect(forward == definition(x, y, c), "the walk's terms");
  expect(int64_t(written.size()) == y.positions(), "each output once");
}

// The transpose writes x's gradient; y may have query rows above and below.
void check_walks_back(const Volume& x, const Convolution& c) {
  const Volume y{x.query_rows, x.query_columns, ceil_div(x.support_rows, c.stride),
                 ceil_div(x.support_columns, c.stride)};
  std::multiset<Term> back;
  std::multiset<int64_t> written;
  for (int row = 0; row < smaller(c.stride, x.support_rows); ++row) {
    for (int column = 0; column < smaller(c.stride, x.support_columns); ++column) {
      collect(walk_back(y, x, c, row, column), back, written);
    }
  }
  expect(back == definition(x, y, c), "the transpose's terms");
  expect(int64_t(written.size()) == x.positions(), "each input once");
  expect(std::set<int64_t>(written.begin(), written.end()).size() == written.size(), "no input twice");
}

// The fused op's tiles: every output has exactly the definition's terms in its rectangle.
void check_fused(const Volume& x, const FusedTile& tile) {
  const Volume y{x.query_rows, x.query_columns, ceil_div(x.support_rows, tile.stride),
                 ceil_div(x.support_columns, tile.stride)};
  std::set<int> places;
  for (int slot = 0; slot < tile.halo(); ++slot) places.insert(tile.halo_place(slot));
  expect(int(places.size()) == tile.halo() && *places.begin() == 0 &&
             *places.rbegin() == tile.halo() - 1, "halo slots are all places");
  int kept = 0;
  for (int place = 0; place < tile.window(); ++place) kept += tile.is_kept(place);
  expect(kept == tile.kept(), "kept places of the window");

  std::multiset<Term> terms;
  for (int row = 0; row < ceil_div(x.query_rows, FusedTile::kSide); ++row) {
    for (int column = 0; column < ceil_div(x.query_columns, FusedTile::kSide); ++column) {
      for (int kept_row = 0; kept_row < ceil_div(y.support_rows, tile.kept_rows); ++kept_row) {
        for (int kept_column = 0; kept_column < ceil_div(y.support_columns, tile.kept_columns);
             ++kept_column) {
          for (int query = 0; query < FusedTile::kTile; ++query) {
            for (int k = 0; k < tile.kept(); ++k) {
              const Position out{row * FusedTile::kSide + query / FusedTile::kSide,
                                 column * FusedTile::kSide + query % FusedTile::kSide,
                                 kept_row * tile.kept_rows + k / tile.kept_columns,
                                 kept_column * tile.kept_columns + k % tile.kept_columns};
              if (!y.holds(out)) continue;
              for (int tap = 0; tap < tile.taps(); ++tap) {
                const int at = tile.centre(query, k) + tile.tap_offset(tap);
                const int halo = at / tile.pitch(), window = at % tile.pitch();
                expect(at >= 0 && halo < tile.halo() && window < tile.window(),
                       "a tap stays in the rectangle");
                const Position from{tile.query_row(row, halo), tile.query_column(column, halo),
                                    tile.support_row(kept_row, window),
                                    tile.support_column(kept_column, window)};
                if (x.holds(from)) terms.insert({x.offset(from), y.offset(out), tap});
              }
            }
          }
        }
      }
    }
  }
  const Convolution c{tile.kernel_query, tile.kernel_support, tile.stride, 0};
  expect(terms == definition(x, y, c), "the fused tiles' terms");
}

}  // namespace

int main() {
  const std::vector<Volume> volumes{{1, 1, 1, 1}, {3, 2, 4, 5}, {1, 4, 5, 1}, {4, 3, 2, 7}};
  for (const Volume& x : volumes) {
    for (const int kernel_query : {1, 3, 5}) {
      for (const int kernel_support : {1, 3, 5, 7}) {
        for (const int stride : {1, 2, 3, 4}) {
          for (int first = 0; first < smaller(2, x.query_rows); ++first) {
            check_walks(x, {kernel_query, kernel_support, stride, first});
          }
          check_walks_back(x, {kernel_query, kernel_support, stride, 0});
        }
      }
    }
  }
  for (const int kernel_query : {1, 3, 7}) {
    for (const int kernel_support : {1, 3, 5}) {
      for (const int stride : {1, 2, 3, 4}) {
        for (const auto& [rows, columns] : {std::pair{4, 8}, {2, 4}, {1, 1}}) {
          check_fused({9, 3, 5, 6}, {kernel_query, kernel_support, stride, rows, columns});
        }
      }
    }
  }
  printf("%d checks, %d wrong\n", checks, failures);
  return failures != 0;
}
