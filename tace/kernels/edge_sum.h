// What the passes of edge_sum.cpp share: vectors of channels, the arguments as they arrive, and loops.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace {

constexpr int kPad = 16;    // the columns of a coupling matrix come in multiples of this
constexpr int kEdges = 4;   // whose messages are added at once

using std::int64_t;

// The first n numbers of a vector; all of them if Full.
template <bool Full, class T>
inline typename Simd<T>::V load(const T* from, int n) {
  typename Simd<T>::V v = {};
  std::memcpy(&v, from, Full ? kBytes : n * sizeof(T));
  return v;
}

template <bool Full, class T>
inline void store(T* to, typename Simd<T>::V v, int n) {
  std::memcpy(to, &v, Full ? kBytes : n * sizeof(T));
}

// The sum of N numbers, by halves.
template <class T, int N>
inline T sum_of(const T* x) {
  if constexpr (N * sizeof(T) > 32) {
    typedef T Half __attribute__((vector_size(N / 2 * sizeof(T))));
    Half low, high;
    std::memcpy(&low, x, sizeof low);
    std::memcpy(&high, x + N / 2, sizeof high);
    low += high;
    T half[N / 2];
    std::memcpy(half, &low, sizeof low);
    return sum_of<T, N / 2>(half);
  } else if constexpr (N > 1) {
    return sum_of<T, N / 2>(x) + sum_of<T, N / 2>(x + N / 2);
  } else {
    return x[0];
  }
}

struct Path {
  int l1, l2, l3;
  int q;      // where its [2l1+1, 2l3+1] begins among the operators of an edge
  int place;  // among the paths into l3
};

template <class T>
struct Group {  // of paths with the same l2
  int rows, width;
  int q;  // where its operators begin
  const T* matrix;  // [2l2+1, width]
};

template <class T>
struct Entry {  // of a coupling, for dT/dY
  int q;
  T g;
};

// The arguments as tace/native.py packs them: sizes, paths, then addresses.
template <class T>
struct Task {
  int64_t atoms, slots, pairs, channels;
  int threads, width, ranks_in, ranks_out;
  std::vector<Path> paths;
  std::vector<Group<T>> groups;
  std::vector<std::vector<Entry<T>>> entries;  // of each component of Y
  int per_rank[kRanks] = {};                // paths into each l3
  int operators = 0;
  const int64_t *sender, *reverse, *pair, *first;
  const int64_t* rest;  // addresses that are different for each function

  explicit Task(const int64_t* a) {
    atoms = a[0], slots = a[1], pairs = a[2], channels = a[3], threads = static_cast<int>(a[4]);
    width = static_cast<int>(a[5]), ranks_in = static_cast<int>(a[6]), ranks_out = static_cast<int>(a[7]);
    const int n = static_cast<int>(a[8]);
    const int64_t* at = a + 9;
    for (int k = 0; k < n; ++k, at += 3) {
      Path p{static_cast<int>(at[0]), static_cast<int>(at[1]), static_cast<int>(at[2]), 0, 0};
      p.place = per_rank[p.l3]++;
      paths.push_back(p);
    }
    const T* matrix = reinterpret_cast<const T*>(*at++);
    sender = reinterpret_cast<const int64_t*>(*at++);
    reverse = reinterpret_cast<const int64_t*>(*at++);
    pair = reinterpret_cast<const int64_t*>(*at++);
    first = reinterpret_cast<const int64_t*>(*at++);
    rest = at;
    for (int l2 = 0; l2 * l2 < width; ++l2) matrix = add_group(l2, matrix);
  }

  const T* add_group(int l2, const T* matrix) {
    int size = 0;
    for (Path& p : paths)
      if (p.l2 == l2) {
        p.q = operators + size;
        size += (2 * p.l1 + 1) * (2 * p.l3 + 1);
      }
    size = (size + kPad - 1) / kPad * kPad;
    groups.push_back({2 * l2 + 1, size, operators, matrix});
    operators += size;
    return matrix + (2 * l2 + 1) * size;
  }

  void list_entries() {  // what `pull` needs
    for (const Group<T>& group : groups)
      for (int m = 0; m < group.rows; ++m) {
        entries.emplace_back();
        for (int k = 0; k < group.width; ++k) {
          const T g = group.matrix[m * group.width + k];
          if (g != T(0)) entries.back().push_back({group.q + k, g});
        }
      }
  }

  const T* input(int k) const { return reinterpret_cast<const T*>(rest[k]); }
  T* output(int k) const { return reinterpret_cast<T*>(rest[k]); }
};

// Q of an edge from its Y.
template <class T>
inline void contract(const Task<T>& task, const T* y, T* q) {
  typedef typename Simd<T>::V V;
  constexpr int n = Simd<T>::n;
  for (const Group<T>& group : task.groups) {
    for (int k = 0; k < group.width; k += n) {
      V sum = {};
      for (int m = 0; m < group.rows; ++m) sum += load<true>(group.matrix + m * group.width + k, n) * y[m];
      store<true>(q + group.q + k, sum, n);
    }
    y += group.rows;
  }
}

// dT/dY of an edge from dT/dQ, of which every number is still spread over a vector.
template <class T>
inline void pull(const Task<T>& task, const T* spread, T* dy) {
  typedef typename Simd<T>::V V;
  constexpr int n = Simd<T>::n;
  for (const std::vector<Entry<T>>& list : task.entries) {
    V sum[2] = {};
    const Entry<T>*e = list.data(), *end = e + list.size();
    for (; e + 1 < end; e += 2) {
      sum[0] += load<true>(spread + e[0].q * n, n) * e[0].g;
      sum[1] += load<true>(spread + e[1].q * n, n) * e[1].g;
    }
    if (e < end) sum[0] += load<true>(spread + e->q * n, n) * e->g;
    T each[n];
    store<true>(each, sum[0] + sum[1], n);
    *dy++ = sum_of<T, n>(each);
  }
}

// Calls body(first channel, how many, whether that is a whole vector) for all channels.
template <class T, class Body>
inline void over_channels(int64_t channels, const Body& body) {
  constexpr int n = Simd<T>::n;
  int64_t c = 0;
  for (; c + n <= channels; c += n) body(c, n, std::true_type());
  if (c < channels) body(c, static_cast<int>(channels - c), std::false_type());
}

// Calls body(2l+1) with a constant.
template <class Body>
inline void by_rank(int l, const Body& body) {
  switch (l) {
    case 0: return body(std::integral_constant<int, 1>());
    case 1: return body(std::integral_constant<int, 3>());
    case 2: return body(std::integral_constant<int, 5>());
    default: return body(std::integral_constant<int, 7>());
  }
}

// Arrays by rank, one block of an atom after another; absent ones read as zero.
template <class T>
struct Features {
  const T* of[kRanks] = {};
  int64_t step[kRanks] = {};  // from atom to atom

  Features(const Task<T>& task, int at, const T* zeros) {
    for (int l = 0; l < task.ranks_in; ++l) {
      const T* given = task.input(at + l);
      of[l] = given ? given : zeros;
      step[l] = given ? (2 * l + 1) * task.channels : 0;
    }
  }
  const T* row(int l, int64_t atom) const { return of[l] + atom * step[l]; }
};

// One argument set (Y, W, s) of the form.
template <class T>
struct Arguments {
  const T *y, *w;
  int64_t y_step, w_step;
  Features<T> s;

  Arguments(const Task<T>& task, int at_y, const T* zeros)
      : y(task.input(at_y)), w(task.input(at_y + 1)), s(task, at_y + 2, zeros) {
    y_step = y ? task.width : 0;
    w_step = w ? static_cast<int64_t>(task.paths.size()) * task.channels : 0;
    if (!y) y = zeros;
    if (!w) w = zeros;
  }
};

// Enough zeros for a row of any argument.
template <class T>
std::vector<T> zero_rows(const Task<T>& task) {
  const int64_t rows = std::max<int64_t>(task.paths.size(), 2 * kRanks);
  return std::vector<T>(std::max<int64_t>(rows * task.channels, task.width));
}

template <class T>
struct Place {  // of a path in its array of rank l3
  int64_t step, stride;
  int64_t at(const Path& p, int64_t atom, int64_t channels) const { return atom * step + p.place * channels; }
  Place(const Task<T>& task, const Path& p)
      : step((2 * p.l3 + 1) * task.per_rank[p.l3] * task.channels),
        stride(task.per_rank[p.l3] * task.channels) {}
};

// Slots of an atom that hold an edge.
template <class T>
int real_slots(const Task<T>& task, int64_t atom, int64_t* found) {
  int n = 0;
  for (int64_t slot = atom * task.slots; slot < (atom + 1) * task.slots; ++slot)
    if (task.pair[slot] < task.pairs) found[n++] = slot;
  return n;
}

// Calls body(room, list) for every atom, with slots for a list of its edges, on `threads` threads.
template <class T, class Body>
void over_atoms(const Task<T>& task, int64_t room, const Body& body) {
#pragma omp parallel num_threads(task.threads) if (task.threads > 1)
  {
    std::vector<T> own(room + kPad);
    std::vector<int64_t> list(task.slots);
    // whole vectors are read fastest where lines of the cache begin
    const int64_t off = -(reinterpret_cast<std::intptr_t>(own.data()) / sizeof(T)) & (kPad - 1);
#pragma omp for schedule(dynamic, 4)
    for (int64_t atom = 0; atom < task.atoms; ++atom) body(atom, own.data() + off, list.data());
  }
}

template <class T>
void outputs(const Task<T>& task, int at, T** out) {
  for (int l = 0; l < task.ranks_out; ++l) out[l] = task.output(at + l);
}

template <class T>
void clear(const Task<T>& task, T* const* out, int64_t atom) {
  for (int l = 0; l < task.ranks_out; ++l) {
    const int64_t size = (2 * l + 1) * task.per_rank[l] * task.channels;
    std::fill_n(out[l] + atom * size, size, T(0));
  }
}

}  // namespace
