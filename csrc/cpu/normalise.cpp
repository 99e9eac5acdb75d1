#include "normalise.h"

#include <cmath>

namespace fsdino::cpu {

template <typename T>
std::vector<Affine<Compute<T>>> affines_of(const std::vector<Moments>& moments, int64_t groups,
                                           const Tensor& norm_weight, const Tensor& norm_bias,
                                           double eps) {
  using A = Compute<T>;
  const std::vector<A> gain = vector_of<T>(norm_weight), offset = vector_of<T>(norm_bias);
  const int64_t channels = static_cast<int64_t>(gain.size()), share = channels / groups;
  std::vector<Affine<A>> affines(moments.size() * share);
  for (size_t i = 0; i < affines.size(); ++i) {
    const Moments& group = moments[i / share];
    const size_t c = i % channels;
    const A mean = static_cast<A>(group.mean + group.low);
    const A low = static_cast<A>(group.mean - static_cast<double>(mean) + group.low);
    const A scale = static_cast<A>(static_cast<double>(gain[c]) / group.deviation(eps));
    affines[i] = {mean, low, scale, offset[c]};
  }
  return affines;
}

template <typename T>
Tensor normalise(const Tensor& raw, const std::vector<Affine<Compute<T>>>& affines, bool reduce,
                 bool in_place) {
  using A = Compute<T>;
  const Simd<T>& functions = simd<T>();
  const int64_t batch = raw.size(0), channels = raw.size(1), kept = raw.size(2) * raw.size(3);
  const int64_t query = raw.size(4) * raw.size(5);
  Tensor y = reduce     ? at::empty({batch, channels, raw.size(4), raw.size(5)}, raw.options())
             : in_place ? raw
                        : empty(raw.sizes(), raw.scalar_type());
  const T* from = raw.const_data_ptr<T>();
  T* to = y.mutable_data_ptr<T>();
  const Scratch<A> sums(query, at::get_num_threads());
  const int64_t planes = reduce ? kept : 1;  // of a task
  at::parallel_for(0, batch * channels * kept / planes, grain(query * planes / 4),
                   [&](int64_t begin, int64_t end) {
    A* sum = sums.mine();
    for (int64_t task = begin; task < end; ++task) {
      const Affine<A> affine = affines[task * planes / kept];
      const T* values = from + task * planes * query;
      if (reduce) std::fill_n(sum, query, A(0));
      for (int64_t plane = 0; plane < planes; ++plane, values += query) {
        if (reduce) {
          functions.add_affine_relu(values, affine, query, sum);
        } else {
          functions.affine_relu(values, affine, query, to + task * query);
        }
      }
      if (reduce) {
        for (int64_t n = 0; n < query; ++n) {
          to[task * query + n] = static_cast<T>(sum[n] / static_cast<A>(kept));
        }
      }
    }
  });
  return y;
}

#define FSDINO_INSTANTIATE(T)                                                                     \
  template std::vector<Affine<Compute<T>>> affines_of<T>(const std::vector<Moments>&, int64_t,    \
                                                         const Tensor&, const Tensor&, double);   \
  template Tensor normalise<T>(const Tensor&, const std::vector<Affine<Compute<T>>>&, bool, bool)
FSDINO_INSTANTIATE(float);
FSDINO_INSTANTIATE(double);
FSDINO_INSTANTIATE(at::Half);
FSDINO_INSTANTIATE(at::BFloat16);
#undef FSDINO_INSTANTIATE

}  // namespace fsdino::cpu
