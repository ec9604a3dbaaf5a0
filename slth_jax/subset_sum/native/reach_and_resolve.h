/* Too many samples to enumerate: decide all but m greedily, as `_reach_and_resolve` in tile.py. */
#pragma once
#include <cstring>
#include "fixed_point.h"

namespace {

INLINE F settle(F rest, F &low, F step)
{
    Pair pair = two_sum(rest, -step);
    pair = two_sum(pair.total, low + pair.lost);
    low = pair.lost;
    return pair.total;
}

/* Vectors of workspace that `reach_and_resolve` takes besides that of `enumerate`. */
size_t workspace_settled(int n, int m) { return 8L * (n + 2) + 2 * m + LEAST; }

/* Write the mask (0 or -1) of each of x[n] to mask[n]: tile.py's `_reach_and_resolve`. */
void reach_and_resolve(const F *x, int n, int m, F value, I *mask, I *memory)
{
    I *order = memory, *free = order + n, *settled = free + n, *greedy = settled + n, *chosen = greedy + n;
    F *part = (F *)(chosen + m), *work = part + m + LEAST;
    I *exact = (I *)(work + 2 * (n + 2));
    I count = all(0);
    memset(free, 0, n * sizeof(I));
    for (int s = 0; s < W; s++) {
        uint32_t keys[4096];
        for (int k = 0; k < n; k++) {
            const bool zero = x[k][s] == 0.f;
            count[s] += !zero;
            const uint32_t bits = ((const uint32_t *)(x + k))[s] & 0x7fffffffu;
            keys[k] = (zero ? (1u << 19) - 1 : bits >> 12) << 12 | k;
        }
        std::sort(keys, keys + n);
        for (int k = 0; k < n; k++) lane(order, k, s) = keys[k] & 4095;
        int32_t picked[64];
        for (int j = 0; j < m; j++) {
            const int rank = j + std::max(count[s] * 3 / 4 - m, 0) * (j * j) / (m * m);
            lane(free, rank, s) = -1;
            picked[j] = lane(order, rank, s);
        }
        std::sort(picked, picked + m);
        for (int j = 0; j < m; j++) {
            lane(chosen, j, s) = picked[j];
            ((float *)(part + j))[s] = x[picked[j]][s];
        }
    }
    const F centre = 0.5f * sum(m, work, [&](int k) { return part[k]; });
    const Pair middle = two_sum(value, -0.5f * sum(n, work, [&](int k) { return x[k]; }));
    F rest = middle.total, low = middle.lost, rest_greedy = value, low_greedy = all(0.f);
    for (int k = n - 1; k >= 0; k--) {
        F sample;
        for (int s = 0; s < W; s++) sample[s] = x[lane(order, k, s)][s];
        const I keep = sample > 0.f ? rest > 0.f : rest < 0.f, set_aside = free[k];
        const F half = 0.5f * sample;
        rest = settle(rest, low, kept(~set_aside, keep ? half : -half));
        const I nearer = absolute(rest_greedy - sample) < absolute(rest_greedy);
        rest_greedy = settle(rest_greedy, low_greedy, kept(nearer, sample));
        for (int s = 0; s < W; s++) {
            const int at = lane(order, k, s);
            lane(settled, at, s) = keep[s] & ~set_aside[s] & -(sample[s] != 0.f);
            lane(greedy, at, s) = nearer[s];
        }
    }
    const Pair goal = two_sum(rest, centre), target = two_sum(goal.total, low + goal.lost);
    const I bits = enumerate(part, m, target.total, target.lost, exact);
    for (int j = 0; j < m; j++)
        for (int s = 0; s < W; s++) lane(settled, lane(chosen, j, s), s) |= -(bits[s] >> j & 1);
    const F error = absolute(value - sum(n, work, [&](int k) { return kept(settled[k], x[k]); }));
    const F error_greedy =
        absolute(value - sum(n, work, [&](int k) { return kept(greedy[k], x[k]); }));
    const I better = (error <= error_greedy) | (count <= m);
    for (int k = 0; k < n; k++) mask[k] = better ? settled[k] : greedy[k];
}

}  // namespace
