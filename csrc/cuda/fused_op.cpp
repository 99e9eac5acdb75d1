// correlation_center_pivot4d from tensors: a chunk of the correlation's query rows at a time is
// computed, used and forgotten; going back it is computed again.

#include "tensors.h"

namespace fsdino::cuda {

namespace {

constexpr int64_t kChunkBytes = 80 << 20;  // of the correlation that is held at a time

// Query rows first..last - 1, and with those that the convolution reads, low..high - 1.
struct Chunk {
  int64_t first, last, low, high;
};

// What the correlation is computed from. The support's tokens are prepared once, the query's a chunk
// at a time: in another memory order they are copied.
class Sides {
 public:
  Sides(const Tensor& query, const Tensor& support, const MaybeTensor& weight, double eps)
      : query_(query),
        support_(support, eps),
        weight_(plain_weight(weight)),
        eps_(eps),
        support_rows_(support.size(3)),
        support_columns_(support.size(4)) {}

  // All query rows, in order; the correlation of what a chunk reads has at most kChunkBytes, or
  // that of one row with its halo.
  std::vector<Chunk> chunks(int64_t halo) const {
    const int64_t rows = query_.size(3), bytes = bytes_of_row();
    const int64_t step = std::clamp<int64_t>(kChunkBytes / bytes - 2 * halo, 1, rows);
    std::vector<Chunk> all;
    for (int64_t first = 0; first < rows; first += step) {
      const int64_t last = std::min(first + step, rows);
      all.push_back({first, last, std::max<int64_t>(0, first - halo), std::min(rows, last + halo)});
    }
    return all;
  }
  // Of query rows first..last - 1.
  Pair rows(int64_t first, int64_t last) const {
    return {{query_.narrow(3, first, last - first), eps_}, support_, weight_, eps_};
  }
  Tensor empty(int64_t first, int64_t last) const {
    return empty_volume(query_, {query_.size(0), query_.size(1), last - first, query_.size(4),
                                 support_rows_, support_columns_});
  }
  Tensor correlation(int64_t first, int64_t last, Stream stream) const {
    Tensor out = empty(first, last);
    rows(first, last).correlate_into(out, stream);
    return out;
  }

 private:
  int64_t bytes_of_row() const {
    return std::max<int64_t>(1, query_.size(0)) * query_.size(1) * query_.size(4) * support_rows_ *
           support_columns_ * query_.element_size();
  }

  Tensor query_;
  Features support_;
  Tensor weight_;
  double eps_;
  int64_t support_rows_, support_columns_;
};

// Sums of the chunks' gradients, in float32 and in order; what is not needed is undefined.
void add(Tensor& total, const Tensor& part) {
  if (part.defined()) total = total.defined() ? total.add_(part) : part.to(at::kFloat);
}

}  // namespace

Tensor correlation_center_pivot4d(const Tensor& query, const Tensor& support,
                                  const MaybeTensor& support_weight, const Tensor& weight_query,
                                  const Tensor& weight_support, const MaybeTensor& bias,
                                  int64_t support_stride, double eps) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const OnDevice device(query);
  const Sides sides(query, support, support_weight, eps);
  const Tensor y = empty_volume(
      query, {query.size(0), weight_query.size(0), query.size(3), query.size(4),
              ceil_div(support.size(3), support_stride), ceil_div(support.size(4), support_stride)});
  const Tensor matrices = tap_matrices(weight_query, weight_support, false);
  for (const Chunk& chunk : sides.chunks(weight_query.size(2) / 2)) {
    const int64_t above = chunk.first - chunk.low;
    convolve(sides.correlation(chunk.low, chunk.high, device), matrices, bias,
             y.narrow(2, chunk.first, chunk.last - chunk.first),
             convolution_of(weight_query, weight_support, support_stride, above), device);
  }
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> correlation_center_pivot4d_backward(
    const Tensor& given, const Tensor& query, const Tensor& support,
    const MaybeTensor& support_weight, const Tensor& weight_query, const Tensor& weight_support,
    int64_t support_stride, double eps, Needs needs) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const OnDevice device(query);
  const Sides sides(query, support, support_weight, eps);
  const Tensor grad = to_volume(given);
  const std::array<bool, 3> wanted{needs[0], needs[1], support_weight && needs[2]};
  const bool to_features = wanted[0] || wanted[1] || wanted[2];
  const Tensor matrices =
      to_features ? tap_matrices(weight_query, weight_support, true) : Tensor();
  std::vector<Tensor> of_query;
  Tensor of_support, of_weight, of_weight_query, of_weight_support;
  for (const Chunk& chunk : sides.chunks(weight_query.size(2) / 2)) {
    const Convolution convolution = convolution_of(weight_query, weight_support, support_stride,
                                                   chunk.first - chunk.low);
    if (to_features) {
      const Tensor corr_grad = sides.empty(chunk.first, chunk.last);
      convolve_back(to_volume(grad.narrow(2, chunk.low, chunk.high - chunk.low)), matrices,
                    corr_grad, convolution, device);
      const auto [of_rows, of_chunk_support, of_chunk_weight] =
          sides.rows(chunk.first, chunk.last).back(corr_grad, wanted, device);
      if (of_rows.defined()) of_query.push_back(of_rows);
      add(of_support, of_chunk_support);
      add(of_weight, of_chunk_weight);
    }
    if (needs[3] || needs[4]) {
      const Tensor part = to_volume(grad.narrow(2, chunk.first, chunk.last - chunk.first));
      const auto [over_query, over_support] =
          weight_gradients_of(sides.correlation(chunk.low, chunk.high, device), part, weight_query,
                              weight_support, convolution, device);
      add(of_weight_query, over_query);
      add(of_weight_support, over_support);
    }
  }
  const auto type = grad.scalar_type();
  const auto result = [&](bool need, const auto& make) { return need ? make() : empty_of(grad); };
  return {result(wanted[0], [&] { return as_features(at::cat(of_query, 2), query); }),
          result(wanted[1], [&] { return as_features(of_support.to(type), support); }),
          result(wanted[2], [&] { return of_weight.to(type).view(support_weight->sizes()); }),
          result(needs[3], [&] { return of_weight_query.to(type); }),
          result(needs[4], [&] { return of_weight_support.to(type); }),
          result(needs[5], [&] { return bias_gradient(grad).to(type); })};
}

}  // namespace fsdino::cuda
