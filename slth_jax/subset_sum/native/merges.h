/* Bitonic lists of 2^k vectors, sorted by minimum and maximum (Batcher 1968). */
#pragma once
#include "vectors.h"

namespace {

INLINE void exchange(I &a, I &b) { I low = least(a, b); b = most(a, b); a = low; }

template <int N> INLINE void network(I *rows)
{
#pragma GCC unroll 4
    for (int stride = N / 2; stride; stride >>= 1)
#pragma GCC unroll 16
        for (int i = 0; i < N; i++)
            if (!(i & stride)) exchange(rows[i], rows[i + stride]);
}

/* Make log2(N) merge stages of `list`, reading and writing it once. */
template <int N> INLINE void stages(I *list, long length)
{
    const long stride = length / N;
    for (long k = 0; k < stride; k++) {
        I rows[N];
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) rows[i] = list[k + i * stride];
        network<N>(rows);
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) list[k + i * stride] = rows[i];
    }
}

/* Make 1 to 4 stages, so that a multiple of 4 is left; return the number of sorted parts. */
INLINE long first_stages(I *list, long length)
{
    switch (__builtin_ctzl(length) % 4) {
    case 1: stages<2>(list, length); return 2;
    case 2: stages<4>(list, length); return 4;
    case 3: stages<8>(list, length); return 8;
    default: stages<16>(list, length); return 16;
    }
}

/* Sort a bitonic list depth first, so that a part which fits a cache stays in it. */
void merge(I *list, long length)
{
    if (length == 1) return;
    const long parts = first_stages(list, length), part = length / parts;
    if (part > 1)
        for (long i = 0; i < parts; i++) merge(list + i * part, part);
}

/* The distance of two neighbours in a sorted list of even sums of one half and odd sums of the other.
 * It is even if they come from different halves; if not, its sign bit is set (unsigned: large). */
INLINE U distance(I first, I second)
{
    const U even = (U)subtract(second, first ^ 1);
    return even | even << 31;
}

/* The state of `merge_and_look`: the last row of the sorted list so far, the least distance, and the
 * number of the first row of the block of R rows in which that distance occurred first. */
struct Seen {
    I last;
    U nearest;
    I block;
    int32_t rows;
};

void merge_and_look(I *list, long length, Seen *seen)
{
    if (length == R) {
        I rows[R];
#pragma GCC unroll 16
        for (int i = 0; i < R; i++) rows[i] = list[i];
        network<R>(rows);
        U nearest = distance(seen->rows ? seen->last : rows[0], rows[0]);
#pragma GCC unroll 16
        for (int i = 0; i < R; i++) {
            list[i] = rows[i];
            if (i) {
                const U here = distance(rows[i - 1], rows[i]);
                nearest = here < nearest ? here : nearest;
            }
        }
        const I nearer = nearest < seen->nearest;
        seen->block = nearer ? all(seen->rows) : seen->block;
        seen->nearest = nearer ? nearest : seen->nearest;
        seen->last = rows[R - 1];
        seen->rows += R;
        return;
    }
    const long parts = first_stages(list, length), part = length / parts;
    for (long i = 0; i < parts; i++) merge_and_look(list + i * part, part, seen);
}

}  // namespace
