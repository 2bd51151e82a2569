// The product basis and its derivatives (tace/product.py says what is computed).
//
// Of every atom and channel the basis is a list of numbers: first the components of A, then rows
//
//   v[t] = sum over terms of t of coefficient v[x] v[y],  x, y < t,
//
// of which some are read (`outputs`) and some only feed others. A row has a few terms out of thousands that
// are possible, so the terms are listed. With T(A, g) = sum over outputs of g[t] v[t] there are
//
//   the outputs v = dT/dg, the slope dT/dA, and the derivatives of <dT/dA, u> with respect to A and g.
//
// Slopes b[t] = dT/dv[t] come in the opposite order, from terms listed by what they are slopes of,
//
//   b[t] = g[t] + sum over terms that read t of coefficient b[row] v[other],
//
// and the last kind are derivatives of all of these along u, by the rules of products (dv, db below).
//
// All of this is done for a block of channels of one atom at a time, of a few vectors of whatever width the
// compiler was told the machine has, so that what is between A and the outputs stays in the nearest cache and
// is not stored. Atoms share nothing: results do not depend on the number of threads.

#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace product {
namespace {

using std::int32_t;
using std::int64_t;

constexpr int kVectors = 4;   // of a block at most
constexpr int kVectors2 = 4;  // where twice as much is kept

template <class T>
inline typename Simd<T>::V load(const T* from) {
  typename Simd<T>::V v;
  std::memcpy(&v, from, kBytes);
  return v;
}

template <class T>
inline void store(T* to, typename Simd<T>::V v) {
  std::memcpy(to, &v, kBytes);
}

struct Term {
  int32_t x, y;
};

template <class T>
struct Terms {  // of all rows, one after another
  const int32_t* start;
  const Term* term;
  const T* coefficient;
};

// Where a component or row is in its array by rank, [atoms, components, paths·channels].
struct Place {
  int32_t rank, component, path;
};

// The arguments as tace/product_kernel.py packs them.
template <class T>
struct Task {
  int ranks_in, ranks_out, inputs, nodes, inner;  // inner: first row of the highest order, which feeds none
  const Place *in, *out;                          // of inputs; of all, with rank -1 if not read
  const int32_t *width_in, *width_out, *paths_out;
  const int32_t *feeds;        // whether others are made of it
  const int32_t *middle;       // of a list of slopes: from here on rows feed others
  Terms<T> rows, slopes;
  int64_t atoms, channels;
  int threads;
  const int64_t* rest;  // addresses that are different for each function

  explicit Task(const int64_t* a) {
    const int32_t* at = reinterpret_cast<const int32_t*>(a[0]);
    const T* coefficient = reinterpret_cast<const T*>(a[1]);
    atoms = a[2], channels = a[3], threads = static_cast<int>(a[4]), rest = a + 5;
    ranks_in = *at++, ranks_out = *at++, inputs = *at++, nodes = *at++, inner = *at++;
    width_in = at, at += ranks_in;
    width_out = at, at += ranks_out;
    paths_out = at, at += ranks_out;
    in = reinterpret_cast<const Place*>(at), at += 3 * inputs;
    out = reinterpret_cast<const Place*>(at), at += 3 * nodes;
    feeds = at, at += nodes;
    middle = at, at += nodes;
    for (Terms<T>* list : {&rows, &slopes}) {
      list->start = at, at += nodes + 1;
      list->term = reinterpret_cast<const Term*>(at), at += 2 * list->start[nodes];
      list->coefficient = coefficient, coefficient += list->start[nodes];
    }
  }
};

// Adds coefficient x[.] y[.] of the terms from k to end.
template <int N, class T>
inline void add(
    typename Simd<T>::V (&sum)[N], const Terms<T>& list, int k, int end, const T* const* x, const T* const* y) {
  constexpr int n = Simd<T>::n;
  for (; k < end; ++k) {
    const T *p = x[list.term[k].x], *q = y[list.term[k].y], g = list.coefficient[k];
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) sum[v] += load(p + v * n) * g * load(q + v * n);
  }
}

// A, g, u or a result by rank, of one atom from one channel on.
template <class T>
struct Array {
  T* of[kRanks];
  int64_t size[kRanks], stride[kRanks];  // of an atom; from component to component
  int64_t channels;

  Array(const Task<T>& task, int at, bool in) : channels(task.channels) {
    for (int l = 0; l < (in ? task.ranks_in : task.ranks_out); ++l) {
      of[l] = reinterpret_cast<T*>(task.rest[at + l]);
      stride[l] = channels * (in ? 1 : task.paths_out[l]);
      size[l] = stride[l] * (in ? task.width_in[l] : task.width_out[l]);
    }
  }
  explicit operator bool() const { return of[0] != nullptr; }
  T* at(const Place& p, int64_t c) const { return of[p.rank] + p.component * stride[p.rank] + p.path * channels + c; }
};

// A block of N vectors of channels; where it is not Whole, N is 1 and only `count` of them exist.
template <class T, int N, bool Whole>
struct Block {
  static constexpr int width = N * Simd<T>::n;
  int64_t c;
  int count;

  // Where the block can be read: in place, or in a copy.
  const T* read(const T* from, T* copy) const {
    if (Whole) return from;
    std::memset(copy, 0, width * sizeof(T));
    std::memcpy(copy, from, count * sizeof(T));
    return copy;
  }
  void write(T* to, const typename Simd<T>::V (&value)[N]) const {
    if (Whole)
      for (int v = 0; v < N; ++v) store(to + v * Simd<T>::n, value[v]);
    else
      std::memcpy(to, &value[0], count * sizeof(T));
  }
  void copy(T* to, const T* from) const { std::memcpy(to, from, (Whole ? width : count) * sizeof(T)); }
};

// What a thread needs besides the arrays: rows of a block, and where each is.
template <class T>
struct Room {
  std::vector<const T*> v, dv, b, db;
  std::unique_ptr<T[]> memory;
  T *own[4], *copies[2];

  Room(const Task<T>& task, int vectors, int kinds)
      : v(task.nodes), dv(kinds > 2 ? task.nodes : 0), b(kinds > 1 ? task.nodes : 0), db(dv.size()) {
    const int64_t n = Simd<T>::n, rows = task.inner * n * vectors, line = 64 / sizeof(T);
    memory.reset(new T[kinds * rows + 2 * task.nodes * n + line]);
    const int64_t off = -(reinterpret_cast<std::intptr_t>(memory.get()) / sizeof(T)) & (line - 1);
    for (int k = 0; k < kinds; ++k) own[k] = memory.get() + off + k * rows;
    for (int k = 0; k < 2; ++k) copies[k] = memory.get() + off + kinds * rows + k * task.nodes * n;
  }
};

// Calls body(atom, block, room) for all.
template <int N, class T, class Body>
void over_blocks(const Task<T>& task, int kinds, const Body& body) {
  constexpr int n = Simd<T>::n;
#pragma omp parallel num_threads(task.threads) if (task.threads > 1)
  {
    Room<T> room(task, N, kinds);
#pragma omp for schedule(static)
    for (int64_t atom = 0; atom < task.atoms; ++atom) {
      int64_t c = 0, end = task.channels;
      for (; c + N * n <= end; c += N * n) body(atom, Block<T, N, true>{c, 0}, room);
      if constexpr (N > 2)
        for (; c + 2 * n <= end; c += 2 * n) body(atom, Block<T, 2, true>{c, 0}, room);
      for (; c + n <= end; c += n) body(atom, Block<T, 1, true>{c, 0}, room);
      if (c < end) body(atom, Block<T, 1, false>{c, static_cast<int>(end - c)}, room);
    }
  }
}

// Components of A (or u) of a block.
template <class B, class T>
inline void begin(const Task<T>& task, const Array<T>& a, const B& block, const T** v, T* copies) {
  for (int t = 0; t < task.inputs; ++t) v[t] = block.read(a.at(task.in[t], block.c), copies + t * B::width);
}

template <class T>
inline Array<T> of_atom(Array<T> array, int64_t atom, int ranks) {
  for (int l = 0; l < ranks; ++l) array.of[l] += atom * array.size[l];
  return array;
}

// A -> outputs
template <class T>
void values(const Task<T>& task) {
  const Array<T> all_a(task, 0, true), all_out(task, task.ranks_in, false);
  over_blocks<kVectors>(task, 1, [&](int64_t atom, const auto& block, Room<T>& room) {
    typedef std::decay_t<decltype(block)> B;
    constexpr int N = B::width / Simd<T>::n;
    const Array<T> a = of_atom(all_a, atom, task.ranks_in), out = of_atom(all_out, atom, task.ranks_out);
    const T** v = room.v.data();
    begin(task, a, block, v, room.copies[0]);
    for (int t = 0; t < task.inputs; ++t)
      if (task.out[t].rank >= 0) block.copy(out.at(task.out[t], block.c), v[t]);
    for (int t = task.inputs; t < task.nodes; ++t) {
      typename Simd<T>::V sum[N] = {};
      add(sum, task.rows, task.rows.start[t], task.rows.start[t + 1], v, v);
      if (task.out[t].rank >= 0) block.write(out.at(task.out[t], block.c), sum);
      if (task.feeds[t]) {
        T* own = room.own[0] + t * B::width;
        for (int k = 0; k < N; ++k) store(own + k * Simd<T>::n, sum[k]);
        v[t] = own;
      }
    }
  });
}

// A, g -> dT/dA
template <class T>
void slopes(const Task<T>& task) {
  const Array<T> all_a(task, 0, true), all_g(task, task.ranks_in, false);
  const Array<T> all_out(task, task.ranks_in + task.ranks_out, true);
  over_blocks<kVectors>(task, 2, [&](int64_t atom, const auto& block, Room<T>& room) {
    typedef std::decay_t<decltype(block)> B;
    constexpr int n = Simd<T>::n, N = B::width / n;
    typedef typename Simd<T>::V V;
    const Array<T> a = of_atom(all_a, atom, task.ranks_in), g = of_atom(all_g, atom, task.ranks_out);
    const Array<T> out = of_atom(all_out, atom, task.ranks_in);
    const T **v = room.v.data(), **b = room.b.data();
    begin(task, a, block, v, room.copies[0]);
    for (int t = task.inputs; t < task.inner; ++t) {
      if (!task.feeds[t]) continue;
      V sum[N] = {};
      add(sum, task.rows, task.rows.start[t], task.rows.start[t + 1], v, v);
      T* own = room.own[0] + t * B::width;
      for (int k = 0; k < N; ++k) store(own + k * n, sum[k]);
      v[t] = own;
    }
    for (int t = task.nodes - 1; t >= 0; --t) {
      const bool read = task.out[t].rank >= 0;
      const T* seed = read ? block.read(g.at(task.out[t], block.c), room.copies[1] + t * B::width) : nullptr;
      if (t >= task.inputs && !task.feeds[t]) {
        b[t] = seed;
        continue;
      }
      V sum[N] = {};
      if (read)
        for (int k = 0; k < N; ++k) sum[k] = load(seed + k * n);
      add(sum, task.slopes, task.slopes.start[t], task.slopes.start[t + 1], b, v);
      if (t < task.inputs) {
        block.write(out.at(task.in[t], block.c), sum);
      } else {
        T* own = room.own[1] + t * B::width;
        for (int k = 0; k < N; ++k) store(own + k * n, sum[k]);
        b[t] = own;
      }
    }
  });
}

// Rows along u, which are derivatives for g, and what feeds others of the rows themselves.
template <class B, class T>
void along(const Task<T>& task, const B& block, Room<T>& room, const Array<T>* for_g) {
  constexpr int n = Simd<T>::n, N = B::width / n;
  typedef typename Simd<T>::V V;
  const T **v = room.v.data(), **dv = room.dv.data();
  if (for_g)
    for (int t = 0; t < task.inputs; ++t)
      if (task.out[t].rank >= 0) block.copy(for_g->at(task.out[t], block.c), dv[t]);
  for (int t = task.inputs; t < (for_g ? task.nodes : task.inner); ++t) {
    const int start = task.rows.start[t], end = task.rows.start[t + 1];
    V sum[N] = {}, dsum[N] = {};
    if (task.feeds[t]) {
      for (int k = start; k < end; ++k) {
        const Term& term = task.rows.term[k];
        const T *x = v[term.x], *y = v[term.y], *dx = dv[term.x], *dy = dv[term.y];
        const T c = task.rows.coefficient[k];
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) {
          const V xc = load(x + i * n) * c, yi = load(y + i * n);
          sum[i] += xc * yi;
          dsum[i] += xc * load(dy + i * n) + load(dx + i * n) * c * yi;
        }
      }
      T *own = room.own[0] + t * B::width, *down = room.own[1] + t * B::width;
      for (int k = 0; k < N; ++k) store(own + k * n, sum[k]), store(down + k * n, dsum[k]);
      v[t] = own, dv[t] = down;
    } else if (for_g) {
      for (int k = start; k < end; ++k) {
        const Term& term = task.rows.term[k];
        const T *x = v[term.x], *y = v[term.y], *dx = dv[term.x], *dy = dv[term.y];
        const T c = task.rows.coefficient[k];
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i)
          dsum[i] += (load(x + i * n) * load(dy + i * n) + load(dx + i * n) * load(y + i * n)) * c;
      }
    }
    if (for_g && task.out[t].rank >= 0) block.write(for_g->at(task.out[t], block.c), dsum);
  }
}

// Slopes along u.
template <class B, class T>
void back_along(const Task<T>& task, const B& block, Room<T>& room, const Array<T>& g, const Array<T>& for_a) {
  constexpr int n = Simd<T>::n, N = B::width / n;
  typedef typename Simd<T>::V V;
  const T **v = room.v.data(), **dv = room.dv.data(), **b = room.b.data(), **db = room.db.data();
  for (int t = task.nodes - 1; t >= 0; --t) {
    const bool read = task.out[t].rank >= 0 && t >= task.inputs;
    const T* seed = read ? block.read(g.at(task.out[t], block.c), room.copies[1] + t * B::width) : nullptr;
    if (t >= task.inputs && !task.feeds[t]) {
      b[t] = seed;
      continue;
    }
    const int start = task.slopes.start[t], middle = task.middle[t], end = task.slopes.start[t + 1];
    V dsum[N] = {};
    add(dsum, task.slopes, start, middle, b, dv);  // slopes of rows that feed none are g, whatever A is
    if (t < task.inputs) {
      for (int k = middle; k < end; ++k) {
        const Term& term = task.slopes.term[k];
        const T *x = b[term.x], *y = v[term.y], *dx = db[term.x], *dy = dv[term.y];
        const T c = task.slopes.coefficient[k];
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i)
          dsum[i] += (load(x + i * n) * load(dy + i * n) + load(dx + i * n) * load(y + i * n)) * c;
      }
      block.write(for_a.at(task.in[t], block.c), dsum);
      continue;
    }
    V sum[N] = {};
    if (read)
      for (int k = 0; k < N; ++k) sum[k] = load(seed + k * n);
    add(sum, task.slopes, start, middle, b, v);
    for (int k = middle; k < end; ++k) {
      const Term& term = task.slopes.term[k];
      const T *x = b[term.x], *y = v[term.y], *dx = db[term.x], *dy = dv[term.y];
      const T c = task.slopes.coefficient[k];
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        const V xc = load(x + i * n) * c, yi = load(y + i * n);
        sum[i] += xc * yi;
        dsum[i] += xc * load(dy + i * n) + load(dx + i * n) * c * yi;
      }
    }
    T *own = room.own[2] + t * B::width, *down = room.own[3] + t * B::width;
    for (int k = 0; k < N; ++k) store(own + k * n, sum[k]), store(down + k * n, dsum[k]);
    b[t] = own, db[t] = down;
  }
}

// A, g, u -> derivatives of <dT/dA, u> with respect to A and to g, where there is room for them
template <class T>
void second(const Task<T>& task) {
  const int in = task.ranks_in, out = task.ranks_out;
  const Array<T> all_a(task, 0, true), all_g(task, in, false), all_u(task, in + out, true);
  const Array<T> all_for_a(task, 2 * in + out, true), all_for_g(task, 3 * in + out, false);
  over_blocks<kVectors2>(task, 4, [&](int64_t atom, const auto& block, Room<T>& room) {
    begin(task, of_atom(all_a, atom, in), block, room.v.data(), room.copies[0]);
    // behind the copies of A; those of g are of rows, which come behind the components
    begin(task, of_atom(all_u, atom, in), block, room.dv.data(), room.copies[1]);
    const Array<T> for_g = of_atom(all_for_g, atom, all_for_g ? out : 0);
    along(task, block, room, all_for_g ? &for_g : nullptr);
    if (all_for_a) {
      const Array<T> for_a = of_atom(all_for_a, atom, in), g = of_atom(all_g, atom, out);
      back_along(task, block, room, g, for_a);
    }
  });
}

}  // namespace
}  // namespace product

#define TACE_PRODUCT(name, type, function) \
  extern "C" int name(const int64_t* arguments) { \
    product::function(product::Task<type>(arguments)); \
    return 0; \
  }

TACE_PRODUCT(tace_product_f32, float, values)
TACE_PRODUCT(tace_product_f64, double, values)
TACE_PRODUCT(tace_product_grad_f32, float, slopes)
TACE_PRODUCT(tace_product_grad_f64, double, slopes)
TACE_PRODUCT(tace_product_grad2_f32, float, second)
TACE_PRODUCT(tace_product_grad2_f64, double, second)
