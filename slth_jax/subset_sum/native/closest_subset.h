/* The closest subset of W instances by meeting in the middle: meet_in_the_middle.py, bit for bit. */
#pragma once
#include <algorithm>
#include <cstddef>
#include "merges.h"

namespace {

/* Write the lower half of the sums of the nonnegative sizes[h], rising; totals[k] sums k + 1. */
void lower_sums(const I *sizes, int h, const I *totals, I *list)
{
    list[0] = all(0);
    long length = 1;
    for (int k = 1; k < h; k++, length *= 2) {
        const I total = totals[k - 1], size = sizes[k];
        /* The list rises; the new half, reversed, is bitonic. Its first stage is made here. */
        for (long i = 0; i < (length + 1) / 2; i++) {
            const long mirror = length - 1 - i;
            I low = list[i], high = list[mirror];
            I low_new = least(subtract(total, low), add(size, low));
            I high_new = least(subtract(total, high), add(size, high));
            exchange(low, high_new);
            exchange(high, low_new);
            list[i] = low;
            list[length + i] = high_new;
            if (mirror == i) continue;
            list[mirror] = high;
            list[length + mirror] = low_new;
        }
        merge(list, length);
        merge(list + length, length);
    }
}

/* Write the sums of q[h] by subset: bit k of the row's number stands for q[k]. */
INLINE void all_sums(const I *q, int h, I *sums)
{
    sums[0] = all(0);
    for (int k = 0; k < h; k++)
        for (long i = 0; i < 1L << k; i++) sums[(1L << k) + i] = add(sums[i], q[k]);
}

/* Return the subset of q[h], as bits, that sums to `total`; of several, the least number. */
I find_subset(const I *q, int h, I total, I *table)
{
    const int h_low = (h + 1) / 2, h_high = h - h_low;
    const long rows_low = 1L << h_low, rows_high = 1L << h_high;
    I *low = table, *high = table + rows_low;
    all_sums(q, h_low, low);
    all_sums(q + h_low, h_high, high);
    I number = all(0);
    for (long i = rows_high - 1; i >= 0; i--) {
        const I missing = subtract(total, high[i]);
        I here = all((int32_t)(i * rows_low + rows_low - 1));
        for (long j = rows_low - 1; j >= 0; j--, here -= 1)
            number = missing == low[j] ? here : number;
    }
    return number;
}

/* Vectors of workspace that `closest_subset` takes for n numbers. */
size_t workspace_exact(int n)
{
    const int h = std::max(n + n % 2, LEAST) / 2;
    return 7 * h + (6L << (h - 1)) + (2L << ((h + 1) / 2));
}

INLINE I spread(I bits)
{
    bits = (bits | bits << 8) & 0x00ff00ff;
    bits = (bits | bits << 4) & 0x0f0f0f0f;
    bits = (bits | bits << 2) & 0x33333333;
    return (bits | bits << 1) & 0x55555555;
}

/* Return the subset of q[n] (n even, at least LEAST) whose sum is closest to `value`, as bits. */
I closest_subset(const I *q, int n, I value, I *memory)
{
    const int h = n / 2;
    const long length = 1L << (h - 1);
    I *half[2], *sizes[2], *totals[2], below[2];
    for (int s = 0; s < 2; s++) {
        half[s] = memory, sizes[s] = memory + h, totals[s] = memory + 2 * h, memory += 3 * h;
        I total = below[s] = all(0);
        for (int k = 0; k < h; k++) {
            const I x = half[s][k] = q[2 * k + s];
            below[s] = add(below[s], twice(most(-x, all(0))));
            sizes[s][k] = twice(absolute(x));
            totals[s][k] = total = add(total, sizes[s][k]);
        }
    }
    I *a = memory, *b = a + length, *merged = b + length, *table = merged + 4 * length;
    const I target = add(add(twice(value), all(1)), add(below[0], below[1]));
    lower_sums(sizes[0], h, totals[0], a);
    lower_sums(sizes[1], h, totals[1], b);
    /* Rising: a and its mirror image. Falling: the target less b, and less b's mirror image. */
    const I total_a = totals[0][h - 1], rest = subtract(target, totals[1][h - 1]);
    for (long i = 0; i < length; i++) {
        I first = a[i], second = subtract(target, b[i]);
        exchange(first, second);
        I third = subtract(total_a, a[length - 1 - i]), fourth = add(rest, b[length - 1 - i]);
        exchange(third, fourth);
        merged[i] = first, merged[length + i] = third;
        merged[2 * length + i] = second, merged[3 * length + i] = fourth;
    }
    Seen seen = {all(0), (U)all(-1), all(0), 0};
    merge_and_look(merged, 2 * length, &seen);
    merge_and_look(merged + 2 * length, 2 * length, &seen);

    /* In the block: the least sum of a, its lowest bit set if the partner stands before it. The
     * pair may end in the row after the block, and equal sums of a may go on beyond it. */
    const int32_t last = (int32_t)(4 * length - 1);
    I pair = all(INT32_MAX);
    for (int s = 0; s < W; s++) {
        int32_t row = std::max(seen.block[s] - 1, 0);
        int32_t here = lane(merged, row, s);
        for (int i = 0; row < last; i++) {
            if (i > R && !((pair[s] & 1) && here == pair[s] - 1)) break;
            const int32_t next = lane(merged, ++row, s);
            const uint32_t gap = (uint32_t)next - (uint32_t)(here ^ 1);
            if (gap == seen.nearest[s]) pair[s] = std::min(pair[s], here & 1 ? next + 1 : here);
            here = next;
        }
    }
    const I gap = (I)seen.nearest, before = pair & 1, sum_a = subtract(pair, before);
    const I sum_b = subtract(subtract(subtract(target, all(1)), sum_a), before ? -gap : gap);
    const I bits_a = find_subset(half[0], h, subtract(sum_a, below[0]) >> 1, table);
    const I bits_b = find_subset(half[1], h, subtract(sum_b, below[1]) >> 1, table);
    return (spread(bits_a) | spread(bits_b) << 1) & (value != 0);
}

}  // namespace
