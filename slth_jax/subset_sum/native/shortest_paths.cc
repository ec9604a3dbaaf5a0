/* Shortest closed walks through a trellis: construction/trellis.py, bit for bit.
 *
 * One row at a time, a vector of states after the step side by side. Products of two numbers of 12
 * binary digits are exact, so fused products and sums would give the same bits.
 */
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

struct Rows {
    const float *left, *right, *goal; /* [batch, p, r, M], [batch, r, M, L], [batch, p, r] */
    const int32_t *usable;            /* [batch]: the first digits that a step may choose */
    int32_t *digits;                  /* [batch, p, r] */
    long p, r, m, window, settle;
    long states() const { long s = 1; for (long t = 1; t < window; t++) s *= m; return s; }
};

/* x with 12 binary digits, halves to even. */
INLINE float rounded(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = (bits + 0x7ff + (bits >> 12 & 1)) & 0xfffff000u;
    memcpy(&x, &bits, 4);
    return x;
}

INLINE F load(const float *x) { F v; memcpy(&v, x, sizeof v); return v; }
INLINE void store(float *x, F v) { memcpy(x, &v, sizeof v); }

/* The input of a step: so_far[o, g] and twice[o, g] by the digit o that it drops and the later digits
 * g, and term[d] and its square by the digit d that it chooses. */
struct Step { const float *so_far, *twice, *term, *square; long m, groups; };

/* best[g, d] = least over o of so_far[o, g] - twice[o, g] term[d] + square[d], for blocks of G by V
 * vectors. Returns the least of all. */
template <int G, int V> F least_wide(const Step &step, float *best)
{
    const long m = step.m, groups = step.groups;
    F lowest = all(INFINITY);
    for (long g = 0; g < groups; g += G)
        for (long d = 0; d < m; d += V * W) {
            F t[V], least_yet[G][V];
            for (int v = 0; v < V; v++) t[v] = load(step.term + d + v * W);
            for (int i = 0; i < G; i++)
                for (int v = 0; v < V; v++) least_yet[i][v] = all(INFINITY);
            for (long o = 0; o < m; o++) {
                const float *a = step.so_far + o * groups + g, *b = step.twice + o * groups + g;
#pragma GCC unroll 8
                for (int i = 0; i < G; i++)
#pragma GCC unroll 8
                    for (int v = 0; v < V; v++)
                        least_yet[i][v] = least(all(a[i]) - all(b[i]) * t[v], least_yet[i][v]);
            }
            for (int i = 0; i < G; i++)
                for (int v = 0; v < V; v++) {
                    const F x = least_yet[i][v] + load(step.square + d + v * W);
                    store(best + (g + i) * m + d + v * W, x);
                    lowest = least(x, lowest);
                }
        }
    return lowest;
}

/* The same for fewer digits than a vector has lanes: W / m groups per vector. Lists have space for
 * W numbers more, which are read or written and not used. */
F least_narrow(const Step &step, float *best)
{
    const long m = step.m, groups = step.groups;
    I repeat;
    F t, square, lowest = all(INFINITY);
    for (int i = 0; i < W; i++)
        repeat[i] = (int)(i / m), t[i] = step.term[i % m], square[i] = step.square[i % m];
    for (long g = 0; g < groups; g += W / m) {
        F least_yet = all(INFINITY);
        for (long o = 0; o < m; o++) {
            const F a = __builtin_shuffle(load(step.so_far + o * groups + g), repeat);
            const F b = __builtin_shuffle(load(step.twice + o * groups + g), repeat);
            least_yet = least(a - b * t, least_yet);
        }
        const F x = least_yet + square;
        store(best + g * m, x);
        for (int i = 0; i < W && g * m + i < groups * m; i++) lowest[i] = std::min(lowest[i], x[i]);
    }
    return lowest;
}

/* The trellis of one row. */
struct Walk {
    const Rows &rows;
    const float *left, *right, *goal;
    long r, m, window, states, groups, usable;
    float *terms;                    /* [r, L, M]: by the column at which a unit starts */
    float *left_over, *scratch;      /* [S / M] */
    float *so_far, *twice, *square;  /* [S], [S], [M] */
    float *costs, *shift;            /* [r + 1, S], [r + 1]: the cost is costs[k] - shift[k] */

    static size_t floats(const Rows &rows)
    {
        const size_t s = rows.states();
        return rows.r * rows.window * rows.m + 4 * (s + W) + rows.m + W + (rows.r + 1) * (s + 1) + W;
    }

    Walk(const Rows &rows, long batch, long row, float *memory)
        : rows(rows), left(rows.left + (batch * rows.p + row) * rows.r * rows.m),
          right(rows.right + batch * rows.r * rows.m * rows.window),
          goal(rows.goal + (batch * rows.p + row) * rows.r), r(rows.r), m(rows.m),
          window(rows.window), states(rows.states()), groups(states / std::min(m, states)),
          usable(rows.usable[batch])
    {
        terms = memory, memory += r * window * m;
        left_over = memory, memory += states + W;
        scratch = memory, memory += states + W;
        so_far = memory, memory += states + W;
        twice = memory, memory += states + W;
        square = memory, memory += m + W;
        shift = memory, memory += r + 1;
        costs = memory;
        for (long j = 0; j < r; j++)
            for (long t = 0; t < window; t++)
                for (long d = 0; d < m; d++)
                    terms[(j * window + t) * m + d] =
                        rounded(left[j * m + d] * right[(j * m + d) * window + t]);
    }

    const float *terms_of(long j, long t) const
    {
        return terms + ((j - t + r) % r * window + t) * m;
    }

    /* Step through column j: costs[k] to costs[k + 1]. */
    void step(long j, long k)
    {
        /* Target of entry j minus chosen terms, by the digits of columns j - L + 1 .. j - 1. */
        long size = 1;
        left_over[0] = goal[j];
        for (long t = window - 1; t > 1; t--, size *= m, std::swap(left_over, scratch)) {
            const float *__restrict x = terms_of(j, t), *__restrict rest = left_over;
            float *__restrict longer = scratch;
            for (long i = 0; i < size; i++)
                for (long d = 0; d < m; d++) longer[i * m + d] = rest[i] - x[d];
        }
        {
            const float *__restrict x = terms_of(j, 1), *__restrict rest = left_over;
            const float *__restrict cost = costs + k * states, before = shift[k];
            float *__restrict sum = so_far, *__restrict slope = twice;
            for (long i = 0; i < size; i++)
                for (long d = 0; d < m; d++) {
                    const float y = rounded(rest[i] - x[d]);
                    sum[i * m + d] = (cost[i * m + d] - before) + y * y;
                    slope[i * m + d] = 2 * y;
                }
        }
        const float *term = terms_of(j, 0);
        for (long d = 0; d < m; d++) square[d] = d < usable ? term[d] * term[d] : INFINITY;
        const Step step = {so_far, twice, term, square, m, groups};
        float *best = costs + (k + 1) * states;
        const F lowest = m < W                           ? least_narrow(step, best)
                         : m >= 2 * W && groups >= 4     ? least_wide<4, 2>(step, best)
                         : groups >= 4                   ? least_wide<4, 1>(step, best)
                         : m >= 8 * W                    ? least_wide<1, 8>(step, best)
                                                         : least_wide<1, 1>(step, best);
        shift[k + 1] = *std::min_element((const float *)&lowest, (const float *)&lowest + W);
    }

    /* The digit that the best step through column j, to `state`, drops; `state` becomes the one
     * before the step. */
    void step_back(long j, long k, long &state)
    {
        const long group = state / m;
        const float *cost = costs + k * states, x = terms_of(j, 0)[state % m];
        float least_yet = INFINITY;
        long dropped = 0;
        for (long o = 0; o < m; o++) {
            const long from = o * groups + group;
            float rest = goal[j];
            long later = states;
            for (long t = window - 1; t > 0; t--) {
                later /= m;
                rest = rest - terms_of(j, t)[from / later % m];
            }
            rest = rounded(rest);
            const float length = ((cost[from] - shift[k]) + rest * rest) - 2 * rest * x;
            if (length < least_yet) least_yet = length, dropped = o;
        }
        state = dropped * groups + group;
    }

    long closest(long k) const
    {
        return std::min_element(costs + k * states, costs + (k + 1) * states) - costs - k * states;
    }

    void solve(int32_t *digits)
    {
        /* The state at the seam is that of the shortest open walk around it. */
        const long settle = rows.settle;
        std::fill(costs, costs + states, 0.f);
        shift[0] = 0;
        for (long i = 0; i < settle; i++) {
            step(r - settle + i, 0);
            memcpy(costs, costs + states, states * sizeof(float));
            shift[0] = shift[1];
        }
        for (long j = 0; j < settle; j++) step(j, j);
        long state = closest(settle);
        for (long j = settle - 1; j >= 0; j--) step_back(j, j, state);
        const long seam = state;
        std::fill(costs, costs + states, INFINITY);
        costs[seam] = shift[0] = 0;
        for (long j = 0; j < r; j++) step(j, j);
        for (long j = r - 1; j >= 0; j--) {
            digits[j] = (int32_t)(state % m);
            step_back(j, j, state);
        }
    }
};

struct Job {
    Rows rows;
    ffi::Promise promise;
    std::atomic<long> next, left;
    std::atomic<bool> failed;
    /* Solve rows until none is left: rows take equal times, but threads need not. */
    void run(long all_rows)
    {
        float *memory = (float *)std::malloc(Walk::floats(rows) * sizeof(float));
        if (!memory) failed = true;
        for (long i; memory && (i = next.fetch_add(1)) < all_rows;)
            Walk(rows, i / rows.p, i % rows.p, memory).solve(rows.digits + i * rows.r);
        std::free(memory);
        if (left.fetch_sub(1) != 1) return;
        if (failed)
            promise.SetError(ffi::Error(ffi::ErrorCode::kResourceExhausted, "bands: no memory"));
        else
            promise.SetAvailable();
        delete this;
    }
};

ffi::Future shortest_walks(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> left,
                           ffi::Buffer<ffi::F32> right, ffi::Buffer<ffi::F32> goal,
                           ffi::Buffer<ffi::S32> usable, ffi::ResultBuffer<ffi::S32> digits,
                           int64_t settle)
{
    /* Axes in front of these are a batch of problems. */
    const auto shape = left.dimensions();
    const size_t axes = shape.size();
    const Rows rows = {left.typed_data(), right.typed_data(), goal.typed_data(),
                       usable.typed_data(), digits->typed_data(),
                       (long)shape[axes - 3], (long)shape[axes - 2], (long)shape[axes - 1],
                       (long)right.dimensions().back(), (long)settle};
    const long all_rows = (long)goal.element_count() / std::max(1L, rows.r);
    const long tasks = std::max(1L, std::min<long>(pool.num_threads(), all_rows));
    ffi::Promise promise;
    ffi::Future future(promise);
    Job *job = new Job{rows, std::move(promise), {0}, {tasks}, {false}};
    for (long t = 0; t < tasks; t++) {
        if (tasks == 1) job->run(all_rows);
        else pool.Schedule([=] { job->run(all_rows); });
    }
    return future;
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(ShortestWalks, shortest_walks,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Attr<int64_t>("settle"));
