// The widest vectors of the machine that this is compiled for.
#pragma once

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

constexpr int kRanks = 16;  // more than a model has

template <class T>
struct Simd {
  static constexpr int n = kBytes / static_cast<int>(sizeof(T));
  typedef T V __attribute__((vector_size(kBytes)));
};
