/* Vectors of W instances, one per lane. Only GCC's and Clang's extensions are used, no intrinsics. */
#pragma once
#include <cstdint>

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
/* A pass over a list makes up to four merge stages, on R vectors at a time. */
constexpr int R = 16;
/* The least number of numbers: fewer are filled up with zeros, since lists would be shorter than R. */
constexpr int LEAST = 8;

typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef float F __attribute__((vector_size(4 * W)));

#define INLINE inline __attribute__((always_inline))

INLINE I all(int32_t x) { return (I){} + x; }
INLINE F all(float x) { return (F){} + x; }
/* Integer sums wrap, as XLA's do. */
INLINE I add(I a, I b) { return (I)((U)a + (U)b); }
INLINE I subtract(I a, I b) { return (I)((U)a - (U)b); }
INLINE I twice(I a) { return (I)((U)a << 1); }
INLINE I least(I a, I b) { return a < b ? a : b; }
INLINE I most(I a, I b) { return a > b ? a : b; }
INLINE F least(F a, F b) { return a < b ? a : b; }
INLINE F most(F a, F b) { return a > b ? a : b; }
INLINE I absolute(I a) { return most(a, -a); }
INLINE F absolute(F a) { return (F)((I)a & 0x7fffffff); }
INLINE F kept(I mask, F x) { return (F)(mask & (I)x); }
INLINE bool any(I mask)
{
    int32_t together = 0;
    for (int i = 0; i < W; i++) together |= mask[i];
    return together != 0;
}
INLINE int32_t &lane(I *list, long row, int i) { return ((int32_t *)(list + row))[i]; }

}  // namespace
