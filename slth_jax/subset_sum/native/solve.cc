/* The closest subsets on CPUs: the program of tile.py and meet_in_the_middle.py, bit for bit.
 *
 * W instances are solved side by side, one per vector lane; their lists stay in the caches. The two
 * Python files explain the method. To be compiled with -ffp-contract=off: fused products and sums
 * would change bits.
 */
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "reach_and_resolve.h"
#include "xla/ffi/api/ffi.h"
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace ffi = xla::ffi;

namespace {

struct Batch {
    const float *samples, *value;
    bool *mask;
    float *total, *error;
    bool *optimal;
    long size;
    int n, max_exact;
};

size_t workspace(int n, int max_exact)
{
    const int even = max_exact + max_exact % 2, m = std::min(std::max(n, LEAST), even);
    return 2 * std::max(n, LEAST) + 2 * (n + 2) + LEAST + m + workspace_exact(std::max(m, LEAST)) +
           (n > max_exact ? workspace_settled(n, even) : 0) + 64;
}

/* Solve the instances start, ..., start + W - 1, or fewer at the end of the batch. */
void solve_vector(const Batch &batch, long start, I *memory)
{
    const int n = batch.n, lanes = (int)std::min<long>(W, batch.size - start);
    const int columns = std::max(n, LEAST) + 1;
    F *x = (F *)memory, value = all(0.f), *work = x + columns;
    I *mask = (I *)(work + 2 * (n + 2));
    memory = mask + columns;
    if (lanes < W) memset(x, 0, n * sizeof(F));
    for (int s = 0; s < lanes; s++) {
        value[s] = batch.value[start + s];
        const float *row = batch.samples + (start + s) * n;
        for (int k = 0; k < n; k++) ((float *)(x + k))[s] = row[k];
    }
    I count = all(0);
    F largest = absolute(value);
    for (int k = 0; k < n; k++) {
        x[k] = kept(absolute(x[k]) >= 1.17549435e-38f, x[k]); /* subnormal numbers are zeros */
        count -= x[k] != 0.f;
        largest = most(largest, absolute(x[k]));
    }
    if (n > batch.max_exact) {
        reach_and_resolve(x, n, batch.max_exact + batch.max_exact % 2, value, mask, memory);
    } else {
        const I bits = enumerate(x, n, value, all(0.f), memory);
        for (int k = 0; k < n; k++) mask[k] = -(bits >> k & 1);
    }
    const F top = sum(n, work, [&](int k) { return most(x[k], all(0.f)); });
    const F bottom = sum(n, work, [&](int k) { return least(x[k], all(0.f)); });
    const I above = value >= top, below = value <= bottom;
    for (int k = 0; k < n; k++)
        mask[k] = above ? x[k] > 0.f : below ? x[k] < 0.f : mask[k];
    const F total = sum(n, work, [&](int k) { return kept(mask[k], x[k]); });
    const F error = absolute(value - total);
    const I optimal = above | below | (error <= 1.1920929e-07f * largest) | (count <= batch.max_exact);
    for (int s = 0; s < lanes; s++) {
        const long at = start + s;
        batch.total[at] = total[s], batch.error[at] = error[s], batch.optimal[at] = optimal[s] != 0;
        for (int k = 0; k < n; k++) batch.mask[at * n + k] = lane(mask, k, s) != 0;
    }
}

/* Subnormal results become zeros, as in XLA's programs. */
struct FlushSubnormals {
#if defined(__SSE2__)
    unsigned before = _mm_getcsr();
    FlushSubnormals() { _mm_setcsr(before | 0x8040); }
    ~FlushSubnormals() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    uint64_t before;
    FlushSubnormals()
    {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        asm volatile("msr fpcr, %0" ::"r"(before | 1u << 24));
    }
    ~FlushSubnormals() { asm volatile("msr fpcr, %0" ::"r"(before)); }
#endif
};

/* Solve vectors first, ..., last - 1; false if there is no memory. */
bool solve_vectors(const Batch &batch, long first, long last)
{
    const size_t bytes = (workspace(batch.n, batch.max_exact) * sizeof(I) + 63) / 64 * 64;
    I *memory = (I *)std::aligned_alloc(64, bytes);
    if (!memory) return false;
    FlushSubnormals flush;
    for (long v = first; v < last; v++) solve_vector(batch, v * W, memory);
    std::free(memory);
    return true;
}

struct Job {
    Batch batch;
    ffi::Promise promise;
    std::atomic<long> left;
    std::atomic<bool> failed;
    void finish(bool solved)
    {
        if (!solved) failed = true;
        if (left.fetch_sub(1) != 1) return;
        if (failed)
            promise.SetError(ffi::Error(ffi::ErrorCode::kResourceExhausted, "subset sums: no memory"));
        else
            promise.SetAvailable();
        delete this;
    }
};

ffi::Future solve(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> samples, ffi::Buffer<ffi::F32> value,
                  ffi::ResultBuffer<ffi::PRED> mask, ffi::ResultBuffer<ffi::F32> total,
                  ffi::ResultBuffer<ffi::F32> error, ffi::ResultBuffer<ffi::PRED> optimal,
                  int64_t max_exact)
{
    const int n = (int)samples.dimensions().back();
    const Batch batch = {samples.typed_data(), value.typed_data(), mask->typed_data(),
                         total->typed_data(), error->typed_data(), optimal->typed_data(),
                         (long)value.element_count(), n, (int)max_exact};
    const long vectors = (batch.size + W - 1) / W;
    /* All threads of the process share one pool, whatever the number of devices. A thread gets
     * several tasks, since another program may take threads; a task takes at least microseconds. */
    const long exact = std::min<long>(n, max_exact), work = vectors * ((exact + 2L) << (exact / 2));
    const long most_tasks = std::min(vectors, work >> 13);
    const long tasks = std::max(1L, std::min<long>(4 * pool.num_threads(), most_tasks));
    ffi::Promise promise;
    ffi::Future future(promise);
    Job *job = new Job{batch, std::move(promise), {tasks}, {false}};
    for (long t = 0; t < tasks; t++) {
        const long first = vectors * t / tasks, last = vectors * (t + 1) / tasks;
        auto task = [=] { job->finish(solve_vectors(job->batch, first, last)); };
        if (tasks == 1) task();
        else pool.Schedule(std::move(task));
    }
    return future;
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(ClosestSubsets, solve,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::PRED>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::PRED>>()
                                  .Attr<int64_t>("max_exact"));