// The edge sum of an interaction layer and its derivatives (tace/edge_sum.py says what is computed).
//
//   T(Y, W, s, g) = sum over edges e = (receiver i, sender j), paths p = (l1, l2, l3), components, channels c of
//                   G_p[m1,m2,m3] Y[e,m2] W[pair(e),p,c] s[j,l1,m1,c] g[i,l3,m3,p,c]
//
// is linear in each of its four arguments, so that the sum (dT/dg), its gradients (dT/dY, dT/dW, dT/ds) and
// their gradients are one and the same contraction with the arguments in other places.
//
// Of every edge Q_p[m1,m3] = sum_m2 G_p Y comes first: it is shared by all channels. The rest runs over
// channels, in vectors of whatever width the compiler was told the machine has. Nothing of the size
// edges x channels is ever stored.
//
// Results do not depend on the number of threads: the sum belongs to its receiver, dT/ds to its sender. The
// two edges of a pair share a row of dT/dW; edges that the pair's first slot holds are all done before the
// others, so that the row is written once and added to once.

#include "edge_sum.h"

namespace {

// out[m3] += sum over N terms of Q[m1,m3] x[m1].
template <class Whole, int N, int A, class T>
inline void accumulate(
    T* out, int64_t stride, int m3s, const typename Simd<T>::V (&x)[N][A], const T* const (&q)[N], int n) {
  typedef typename Simd<T>::V V;
  constexpr bool whole = Whole::value;
  for (int m3 = 0; m3 < m3s; ++m3) {
    V sum[2] = {load<whole>(out + m3 * stride, n), V{}};  // two, so that one need not wait for the other
#pragma GCC unroll 8
    for (int e = 0; e < N; ++e)
#pragma GCC unroll 8
      for (int m1 = 0; m1 < A; ++m1) sum[e % 2] += x[e][m1] * q[e][m1 * m3s + m3];
    store<whole>(out + m3 * stride, sum[0] + sum[1], n);
  }
}

// E edges of a receiver into its sum.
template <int E, class T>
inline void receive(
    const Task<T>& task, const Arguments<T>& one, const int64_t* slot, T* const* out, int64_t atom, T* room) {
  typedef typename Simd<T>::V V;
  const T* q[E];
  for (int e = 0; e < E; ++e) {
    contract(task, one.y + slot[e] * one.y_step, room + e * task.operators);
    q[e] = room + e * task.operators;
  }
  for (size_t k = 0; k < task.paths.size(); ++k) {
    const Path& p = task.paths[k];
    const Place<T> place(task, p);
    T* to = out[p.l3] + place.at(p, atom, task.channels);
    const T *w[E], *s[E], *own[E];
    for (int e = 0; e < E; ++e) {
      w[e] = one.w + task.pair[slot[e]] * one.w_step + k * task.channels;
      s[e] = one.s.row(p.l1, task.sender[slot[e]]);
      own[e] = q[e] + p.q;
    }
    by_rank(p.l1, [&](auto components) {
      constexpr int A = decltype(components)::value;
      over_channels<T>(task.channels, [&](int64_t c, int n, auto whole) {
        V x[E][A];
        for (int e = 0; e < E; ++e)
          for (int m = 0; m < A; ++m)
            x[e][m] = load<whole.value>(w[e] + c, n) * load<whole.value>(s[e] + m * task.channels + c, n);
        accumulate<decltype(whole)>(to + c, place.stride, 2 * p.l3 + 1, x, own, n);
      });
    });
  }
}

// The same for T(uY,W,s) + T(Y,uW,s) + T(Y,W,us), with one = (Y,W,s) and two = (uY,uW,us).
template <int E, class T>
inline void receive_twice(
    const Task<T>& task, const Arguments<T>& one, const Arguments<T>& two, const int64_t* slot, T* const* out,
    int64_t atom, T* room) {
  typedef typename Simd<T>::V V;
  const int64_t channels = task.channels;
  for (int e = 0; e < E; ++e) {
    contract(task, two.y + slot[e] * two.y_step, room + 2 * e * task.operators);
    contract(task, one.y + slot[e] * one.y_step, room + (2 * e + 1) * task.operators);
  }
  for (size_t k = 0; k < task.paths.size(); ++k) {
    const Path& p = task.paths[k];
    const Place<T> place(task, p);
    T* to = out[p.l3] + place.at(p, atom, channels);
    const T *w[E], *s[E], *uw[E], *us[E], *own[2 * E];
    for (int e = 0; e < E; ++e) {
      const int64_t pair = task.pair[slot[e]], sender = task.sender[slot[e]];
      w[e] = one.w + pair * one.w_step + k * (one.w_step ? channels : 0);
      uw[e] = two.w + pair * two.w_step + k * (two.w_step ? channels : 0);
      s[e] = one.s.row(p.l1, sender), us[e] = two.s.row(p.l1, sender);
      own[2 * e] = room + 2 * e * task.operators + p.q;
      own[2 * e + 1] = room + (2 * e + 1) * task.operators + p.q;
    }
    by_rank(p.l1, [&](auto components) {
      constexpr int A = decltype(components)::value;
      over_channels<T>(channels, [&](int64_t c, int n, auto whole) {
        V x[2 * E][A];
        for (int e = 0; e < E; ++e) {
          const V we = load<whole.value>(w[e] + c, n), ue = load<whole.value>(uw[e] + c, n);
          for (int m = 0; m < A; ++m) {
            const V se = load<whole.value>(s[e] + m * channels + c, n);
            x[2 * e][m] = we * se;
            x[2 * e + 1][m] = ue * se + we * load<whole.value>(us[e] + m * channels + c, n);
          }
        }
        accumulate<decltype(whole)>(to + c, place.stride, 2 * p.l3 + 1, x, own, n);
      });
    });
  }
}

// Y, W, s_l -> out_l
template <class T>
void edge_sum(Task<T>& task) {
  const std::vector<T> zeros = zero_rows(task);
  const Arguments<T> one(task, 0, zeros.data());
  T* out[kRanks];
  outputs(task, 2 + task.ranks_in, out);
  over_atoms(task, kEdges * task.operators, [&](int64_t atom, T* room, int64_t* list) {
    clear(task, out, atom);
    const int n = real_slots(task, atom, list);
    int k = 0;
    for (; k + kEdges <= n; k += kEdges) receive<kEdges>(task, one, list + k, out, atom, room);
    for (; k < n; ++k) receive<1>(task, one, list + k, out, atom, room);
  });
}

// What an edge takes and gives in a pass over senders.
template <class T>
struct Sent {
  int64_t slot, pair, receiver;  // of the edge that the atom sends
  bool add;                      // to the pair's row, which the other edge has written
};

// Calls body for the edges that an atom sends, those in the first slots of their pairs or the others.
template <class T, class Body>
void over_sent(const Task<T>& task, int64_t atom, bool second, const Body& body) {
  for (int64_t own = atom * task.slots; own < (atom + 1) * task.slots; ++own) {
    const int64_t pair = task.pair[own], slot = task.reverse[own];
    if (pair < task.pairs && (task.first[pair] != slot) == second)
      body(Sent<T>{slot, pair, task.sender[own], second});
  }
}

// Where a pass over senders writes; null is not asked for.
template <class T>
struct Gradients {
  T *y, *w, *s[kRanks];

  Gradients(const Task<T>& task, int at) : y(task.output(at)), w(task.output(at + 1)) {
    for (int l = 0; l < task.ranks_in; ++l) s[l] = task.output(at + 2 + l);
  }

  // Zeros before the first phase: of an atom's features, and of its slots without an edge.
  void clear(const Task<T>& task, int64_t atom) const {
    for (int l = 0; l < task.ranks_in; ++l) {
      const int64_t size = (2 * l + 1) * task.channels;
      if (s[l]) std::fill_n(s[l] + atom * size, size, T(0));
    }
    for (int64_t slot = atom * task.slots; y && slot < (atom + 1) * task.slots; ++slot)
      if (task.pair[slot] >= task.pairs) std::fill_n(y + slot * task.width, task.width, T(0));
  }

  void clear_dummy(const Task<T>& task) const {
    const int64_t size = task.paths.size() * task.channels;
    if (w) std::fill_n(w + task.pairs * size, size, T(0));
  }
};

// Both phases of a pass over senders.
template <class T, class Body>
void over_senders(Task<T>& task, const Gradients<T>& to, int64_t room, const Body& body) {
  if (to.y) task.list_entries();
  to.clear_dummy(task);
  for (const bool second : {false, true})
    over_atoms(task, room, [&](int64_t atom, T* own, int64_t*) {
      if (!second) to.clear(task, atom);
      over_sent(task, atom, second, [&](const Sent<T>& edge) { body(atom, edge, own); });
    });
}

// A path of an edge that is sent: where its gradients go, and how they are added.
template <class T>
struct Slope {
  T *w, *s, *spread;
  bool add;
  int64_t channels;
};

template <class T>
Slope<T> slope(const Task<T>& task, const Gradients<T>& to, const Sent<T>& edge, size_t k, int64_t atom, T* spread) {
  const Path& p = task.paths[k];
  const int64_t c = task.channels;
  return {
      to.w ? to.w + (edge.pair * task.paths.size() + k) * c : nullptr,
      to.s[p.l1] ? to.s[p.l1] + atom * (2 * p.l1 + 1) * c : nullptr,
      spread + p.q * Simd<T>::n, edge.add, c};
}

// N vectors of channels of a path: gradients of T(Y,W,s,g).
template <int A, int N, class Whole, class T>
inline void send(
    const Slope<T>& to, const T* w, const T* s, const T* q, const T* g, int64_t stride, int m3s, int64_t c, int n) {
  typedef typename Simd<T>::V V;
  constexpr bool whole = Whole::value;
  constexpr int v = Simd<T>::n;
  V x[A][N], d[A][N];
  for (int b = 0; b < N; ++b) {
    const V we = load<whole>(w + c + b * v, n);
    for (int m = 0; m < A; ++m) {
      x[m][b] = we * load<whole>(s + m * to.channels + c + b * v, n);
      d[m][b] = V{};
    }
  }
  for (int m3 = 0; m3 < m3s; ++m3) {
    V ge[N];
    for (int b = 0; b < N; ++b) ge[b] = load<whole>(g + m3 * stride + c + b * v, n);
#pragma GCC unroll 8
    for (int m = 0; m < A; ++m) {
      const T qe = q[m * m3s + m3];
      T* at = to.spread + (m * m3s + m3) * v;
      V sum = c ? load<true>(at, v) : V{};
#pragma GCC unroll 4
      for (int b = 0; b < N; ++b) {
        d[m][b] += ge[b] * qe;
        sum += x[m][b] * ge[b];
      }
      store<true>(at, sum, v);
    }
  }
  for (int b = 0; b < N; ++b) {
    const int64_t at = c + b * v;
    const V we = load<whole>(w + at, n);
    V sum = to.add && to.w ? load<whole>(to.w + at, n) : V{};
    for (int m = 0; m < A; ++m) {
      sum += d[m][b] * load<whole>(s + m * to.channels + at, n);
      T* ds = to.s + m * to.channels + at;
      if (to.s) store<whole>(ds, load<whole>(ds, n) + d[m][b] * we, n);
    }
    if (to.w) store<whole>(to.w + at, sum, n);
  }
}

// Y, W, s_l, g_l -> dT/dY, dT/dW, dT/ds_l
template <class T>
void edge_sum_grad(Task<T>& task) {
  constexpr int v = Simd<T>::n;
  const std::vector<T> zeros = zero_rows(task);
  const Arguments<T> one(task, 0, zeros.data());
  const int at = 2 + task.ranks_in;
  const Gradients<T> to(task, at + task.ranks_out);
  over_senders(task, to, (1 + v) * task.operators, [&](int64_t atom, const Sent<T>& edge, T* room) {
    T *q = room, *spread = room + task.operators;
    contract(task, one.y + edge.slot * one.y_step, q);
    for (size_t k = 0; k < task.paths.size(); ++k) {
      const Path& p = task.paths[k];
      const Place<T> place(task, p);
      const T* g = task.input(at + p.l3) + place.at(p, edge.receiver, task.channels);
      const T* w = one.w + edge.pair * one.w_step + k * task.channels;
      const T* s = one.s.row(p.l1, atom);
      const Slope<T> slopes = slope(task, to, edge, k, atom, spread);
      by_rank(p.l1, [&](auto components) {
        constexpr int A = decltype(components)::value;
        constexpr int N = A == 1 ? 4 : 2;
        int64_t c = 0;
        for (; c + N * v <= task.channels; c += N * v)
          send<A, N, std::true_type>(slopes, w, s, q + p.q, g, place.stride, 2 * p.l3 + 1, c, v);
        for (; c < task.channels; c += v) {
          const int n = static_cast<int>(std::min<int64_t>(v, task.channels - c));
          if (n == v) send<A, 1, std::true_type>(slopes, w, s, q + p.q, g, place.stride, 2 * p.l3 + 1, c, n);
          else send<A, 1, std::false_type>(slopes, w, s, q + p.q, g, place.stride, 2 * p.l3 + 1, c, n);
        }
      });
    }
    if (to.y) pull(task, spread, to.y + edge.slot * task.width);
  });
}

// What the second derivative reads of an edge and a path.
template <class T>
struct Both {
  const T *w, *s, *uw, *us, *q, *uq, *g;
  int64_t stride;
  int m3s;
};

// A vector of channels of a path: gradients of T(uY,W,s,g) + T(Y,uW,s,g) + T(Y,W,us,g) for Y, W and s.
template <int A, class Whole, class T>
inline void send_twice(const Slope<T>& to, const Both<T>& in, int64_t c, int n) {
  typedef typename Simd<T>::V V;
  constexpr bool whole = Whole::value;
  constexpr int v = Simd<T>::n;
  const V w = load<whole>(in.w + c, n), uw = load<whole>(in.uw + c, n);
  V x[A], d[A], ud[A];
  for (int m = 0; m < A; ++m) {
    const int64_t at = m * to.channels + c;
    x[m] = uw * load<whole>(in.s + at, n) + w * load<whole>(in.us + at, n);
    d[m] = ud[m] = V{};
  }
  for (int m3 = 0; m3 < in.m3s; ++m3) {
    const V g = load<whole>(in.g + m3 * in.stride + c, n);
#pragma GCC unroll 8
    for (int m = 0; m < A; ++m) {
      const int k = m * in.m3s + m3;
      d[m] += g * in.q[k];
      ud[m] += g * in.uq[k];
      T* at = to.spread + k * v;
      store<true>(at, (c ? load<true>(at, v) : V{}) + x[m] * g, v);
    }
  }
  V sum = to.add && to.w ? load<whole>(to.w + c, n) : V{};
  for (int m = 0; m < A; ++m) {
    const int64_t at = m * to.channels + c;
    sum += ud[m] * load<whole>(in.s + at, n) + d[m] * load<whole>(in.us + at, n);
    if (to.s) store<whole>(to.s + at, load<whole>(to.s + at, n) + w * ud[m] + uw * d[m], n);
  }
  if (to.w) store<whole>(to.w + c, sum, n);
}

template <class T>
void second_of_senders(Task<T>& task, const Arguments<T>& one, const Arguments<T>& two, int at_g, int at_out) {
  constexpr int v = Simd<T>::n;
  const Gradients<T> to(task, at_out);
  over_senders(task, to, (2 + v) * task.operators, [&](int64_t atom, const Sent<T>& edge, T* room) {
    T *q = room, *uq = q + task.operators, *spread = uq + task.operators;
    contract(task, one.y + edge.slot * one.y_step, q);
    contract(task, two.y + edge.slot * two.y_step, uq);
    for (size_t k = 0; k < task.paths.size(); ++k) {
      const Path& p = task.paths[k];
      const Place<T> place(task, p);
      const Both<T> in{
          one.w + edge.pair * one.w_step + k * (one.w_step ? task.channels : 0), one.s.row(p.l1, atom),
          two.w + edge.pair * two.w_step + k * (two.w_step ? task.channels : 0), two.s.row(p.l1, atom),
          q + p.q, uq + p.q,
          task.input(at_g + p.l3) + place.at(p, edge.receiver, task.channels), place.stride, 2 * p.l3 + 1};
      const Slope<T> slopes = slope(task, to, edge, k, atom, spread);
      by_rank(p.l1, [&](auto components) {
        over_channels<T>(task.channels, [&](int64_t c, int n, auto whole) {
          send_twice<decltype(components)::value, decltype(whole)>(slopes, in, c, n);
        });
      });
    }
    if (to.y) pull(task, spread, to.y + edge.slot * task.width);
  });
}

// Y, W, s_l, g_l, uY, uW, us_l -> gradients for Y, W, s_l, g_l of T(uY,W,s,g) + T(Y,uW,s,g) + T(Y,W,us,g)
template <class T>
void edge_sum_grad2(Task<T>& task) {
  const std::vector<T> zeros = zero_rows(task);
  const int at_g = 2 + task.ranks_in, at_u = at_g + task.ranks_out, at_out = at_u + 2 + task.ranks_in;
  const Arguments<T> one(task, 0, zeros.data()), two(task, at_u, zeros.data());
  second_of_senders(task, one, two, at_g, at_out);
  T* out[kRanks];
  outputs(task, at_out + 2 + task.ranks_in, out);
  if (!out[0]) return;
  constexpr int E = kEdges / 2;
  over_atoms(task, 2 * E * task.operators, [&](int64_t atom, T* room, int64_t* list) {
    clear(task, out, atom);
    const int n = real_slots(task, atom, list);
    int k = 0;
    for (; k + E <= n; k += E) receive_twice<E>(task, one, two, list + k, out, atom, room);
    for (; k < n; ++k) receive_twice<1>(task, one, two, list + k, out, atom, room);
  });
}

}  // namespace

#define TACE_EXPORT(name, type, function) \
  extern "C" int name(const int64_t* arguments) { \
    Task<type> task(arguments); \
    function(task); \
    return 0; \
  }

TACE_EXPORT(tace_edge_sum_f32, float, edge_sum)
TACE_EXPORT(tace_edge_sum_f64, double, edge_sum)
TACE_EXPORT(tace_edge_sum_grad_f32, float, edge_sum_grad)
TACE_EXPORT(tace_edge_sum_grad_f64, double, edge_sum_grad)
TACE_EXPORT(tace_edge_sum_grad2_f32, float, edge_sum_grad2)
TACE_EXPORT(tace_edge_sum_grad2_f64, double, edge_sum_grad2)
