// Quintic Hermite splines of many functions over one variable (tace/spline.py says what is computed).
//
// The table holds, for each of n + 1 knots, value, first and second derivative of every function, the
// latter two in units of the step. Of an argument x in interval k, t = (x - start)/step - k, a function is
//
//   w(x) = sum over b < 6 of H_b(t) table[k, b],
//
// where rows 0 to 2 are those of knot k and rows 3 to 5 those of knot k + 1, which come next. Derivatives take
// those of the polynomials H_b. From the last knot on w is zero; before the first the first interval goes on.
// Arguments share nothing: results do not depend on the number of threads.

#include <cmath>
#include <cstdint>
#include <limits>

namespace spline {
namespace {

using std::int64_t;

constexpr double kHermite[6][6] = {
    {1, 0, 0, -10, 15, -6}, {0, 1, 0, -6, 8, -3},   {0, 0, 0.5, -1.5, 1.5, -0.5},
    {0, 0, 0, 10, -15, 6},  {0, 0, 0, -4, 7, -3},   {0, 0, 0, 0.5, -1, 0.5}};

template <class T>
struct Task {
  explicit Task(const int64_t* a)
      : points(a[0]), width(a[1]), intervals(a[2]), order(static_cast<int>(a[3])),
        threads(static_cast<int>(a[4])), grid(reinterpret_cast<const double*>(a[5])),
        x(reinterpret_cast<const T*>(a[6])), table(reinterpret_cast<const T*>(a[7])),
        g(reinterpret_cast<const T*>(a[8])), out(reinterpret_cast<T*>(a[9])) {}
  int64_t points, width, intervals;
  int order, threads;
  const double* grid;  // start, step
  const T *x, *table, *g;
  T* out;
};

// Weights of the six rows of an argument, and the first of these; null where the spline is zero
template <class T>
const T* rows(const Task<T>& task, int64_t point, T* weight) {
  const double step = task.grid[1], place = (static_cast<double>(task.x[point]) - task.grid[0]) / step;
  if (place >= static_cast<double>(task.intervals)) return nullptr;
  const bool number = place == place;
  const int64_t k = number && place > 0 ? static_cast<int64_t>(place) : 0;
  const double t = number ? place - static_cast<double>(k) : std::numeric_limits<double>::quiet_NaN();
  const double scale = std::pow(step, -task.order);
  for (int b = 0; b < 6; ++b) {
    double value = 0;
    for (int power = 5; power >= task.order; --power) {
      double factor = kHermite[b][power];
      for (int d = 0; d < task.order; ++d) factor *= power - d;
      value = value * t + factor;
    }
    weight[b] = static_cast<T>(value * scale);
  }
  return task.table + 3 * k * task.width;
}

// x -> the derivative of every function, [points, width]
template <class T>
void values(const Task<T>& task) {
  const int64_t width = task.width;
#pragma omp parallel for num_threads(task.threads) schedule(static)
  for (int64_t point = 0; point < task.points; ++point) {
    T w[6];
    const T* from = rows(task, point, w);
    T* to = task.out + point * width;
    if (from == nullptr) {
      for (int64_t c = 0; c < width; ++c) to[c] = 0;
      continue;
    }
    const T *r0 = from, *r1 = r0 + width, *r2 = r1 + width, *r3 = r2 + width, *r4 = r3 + width, *r5 = r4 + width;
#pragma GCC ivdep
    for (int64_t c = 0; c < width; ++c)
      to[c] = w[0] * r0[c] + w[1] * r1[c] + w[2] * r2[c] + w[3] * r3[c] + w[4] * r4[c] + w[5] * r5[c];
  }
}

// x, g [points, width] -> the sum over functions of g times the derivative, [points]
template <class T>
void dots(const Task<T>& task) {
  constexpr int kLanes = 16;  // partial sums, so that the order of additions is the same on every machine
  const int64_t width = task.width, whole = width - width % kLanes;
#pragma omp parallel for num_threads(task.threads) schedule(static)
  for (int64_t point = 0; point < task.points; ++point) {
    T w[6], lanes[kLanes] = {}, sum = 0;
    const T* from = rows(task, point, w);
    if (from == nullptr) {
      task.out[point] = 0;
      continue;
    }
    const T *g = task.g + point * width, *r0 = from, *r1 = r0 + width, *r2 = r1 + width, *r3 = r2 + width,
            *r4 = r3 + width, *r5 = r4 + width;
    for (int64_t c = 0; c < whole; c += kLanes)
      for (int i = 0; i < kLanes; ++i)
        lanes[i] += g[c + i] * (w[0] * r0[c + i] + w[1] * r1[c + i] + w[2] * r2[c + i] + w[3] * r3[c + i] +
                                w[4] * r4[c + i] + w[5] * r5[c + i]);
    for (int i = 0; i < kLanes; ++i) sum += lanes[i];
    for (int64_t c = whole; c < width; ++c)
      sum += g[c] * (w[0] * r0[c] + w[1] * r1[c] + w[2] * r2[c] + w[3] * r3[c] + w[4] * r4[c] + w[5] * r5[c]);
    task.out[point] = sum;
  }
}

}  // namespace
}  // namespace spline

#define TACE_SPLINE(name, type, function) \
  extern "C" int name(const int64_t* arguments) { \
    spline::function(spline::Task<type>(arguments)); \
    return 0; \
  }

TACE_SPLINE(tace_spline_f32, float, values)
TACE_SPLINE(tace_spline_f64, double, values)
TACE_SPLINE(tace_spline_dot_f32, float, dots)
TACE_SPLINE(tace_spline_dot_f64, double, dots)
