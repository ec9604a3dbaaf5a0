/* Sums rounded once, and numbers in fixed point: tile.py's `_total` and `_enumerate`, bit for bit. */
#pragma once
#include "closest_subset.h"

namespace {

struct Pair { F total, lost; };

/* a + b rounded, and the rounding error (Knuth). */
INLINE Pair two_sum(F a, F b)
{
    const F total = a + b, part = total - a;
    return {total, (a - (total - part)) + (b - part)};
}

/* The sum of x(0), ..., x(n - 1), rounded nearly once: neighbours pairwise. Takes 2 n vectors. */
template <class X> INLINE F sum(int n, F *work, X x)
{
    F *high = work, *low = work + n + n % 2;
    for (int i = 0; i < n; i++) high[i] = x(i), low[i] = all(0.f);
    while (n > 1) {
        if (n % 2) high[n] = low[n] = all(0.f), n++;
        n /= 2;
        for (int i = 0; i < n; i++) {
            const Pair pair = two_sum(high[2 * i], high[2 * i + 1]);
            high[i] = pair.total;
            low[i] = low[2 * i] + low[2 * i + 1] + pair.lost;
        }
    }
    return high[0] + low[0];
}

INLINE I exponent(F x) { return ((I)x >> 23) - 127; }
INLINE F power_of_two(I by) { return (F)((by + 127) << 23); }
/* x 2^by in two factors: one alone may be out of the float's range. */
INLINE F scaled(F x, I by)
{
    const I half = by >> 1;
    return x * power_of_two(half) * power_of_two(by - half);
}
INLINE I rounded(F x)
{
    /* Halves to even, by the sum with a number whose unit is 1; larger numbers are whole. */
    const F size = absolute(x), whole = (size + 8388608.f) - 8388608.f;
    const I integer = __builtin_convertvector(size < 8388608.f ? whole : size, I);
    return x < 0.f ? -integer : integer;
}
INLINE I rounded_up(F size)
{
    const I integer = __builtin_convertvector(size, I);
    return integer - (__builtin_convertvector(integer, F) < size);
}

/* Return the subset of x[n] closest to value + low, as bits; x has space for LEAST vectors. */
I enumerate(F *x, int n, F value, F low, I *memory)
{
    while (n > 0 && !any(x[n - 1] != 0.f)) n--; /* zeros at the end change nothing */
    for (; n < LEAST || n % 2; n++) x[n] = all(0.f);
    F largest = all(0.f);
    for (int k = 0; k < n; k++) largest = most(largest, absolute(x[k]));
    const I scale = 19 - exponent(largest);
    I bound = all(1);
    for (int k = 0; k < n; k++) bound += rounded_up(scaled(absolute(x[k]), scale));
    /* The bound has fewer than 25 bits, so its exponent as a float is that of the integer. */
    const I shift = scale - (exponent(__builtin_convertvector(bound, F)) + 1) + 30;
    I *q = memory, lowest = all(0), highest = all(0), nonzero = all(0);
    for (int k = 0; k < n; k++) {
        q[k] = rounded(scaled(x[k], shift));
        lowest += least(q[k], all(0));
        highest += most(q[k], all(0));
        nonzero |= (x[k] != 0.f) & (1 << k);
    }
    const F limit = all(1073741824.f);
    I target = rounded(least(most(scaled(value, shift), -limit), limit)) +
               rounded(least(most(scaled(low, shift), -limit), limit));
    target = least(most(target, lowest), highest);
    if (!any(target != 0)) return all(0);
    return closest_subset(q, n, target, memory + n) & nonzero;
}

}  // namespace
