/* The algorithm of Horowitz and Sahni (1974) in plain C, with which subset_sum.py is compared.
 *
 * The 2^(n/2) sums of each half are built in sorted order, by merging a sorted list with a shifted
 * copy. Then one pointer ascends the first list while another descends the second list. The program
 * uses float32 and one core, and returns the error but no mask. (A version without branches was a
 * quarter slower, since every step then waits for the previous comparison.)
 */
#include <math.h>
#include <stdlib.h>

/* Write the 2^count subset sums of samples[0], samples[stride], ... in increasing order.
 *
 * Returns the buffer that contains the sums: list or spare.
 */
static const float *sorted_sums(const float *samples, int count, int stride, float *list,
                                float *spare)
{
    long length = 1;
    list[0] = 0.0f;
    for (int k = 0; k < count; k++) {
        const float sample = samples[k * stride];
        /* `low` indexes whichever of the list and the shifted list has the lower first entry. */
        const float low_shift = sample < 0.0f ? sample : 0.0f;
        const float high_shift = sample < 0.0f ? 0.0f : sample;
        long low = 0, high = 0, out = 0;
        while (low < length) {
            const float from_low = list[low] + low_shift, from_high = list[high] + high_shift;
            if (from_low <= from_high) {
                spare[out++] = from_low;
                low++;
            } else {
                spare[out++] = from_high;
                high++;
            }
        }
        while (high < length)
            spare[out++] = list[high++] + high_shift;
        length *= 2;
        float *swap = list;
        list = spare;
        spare = swap;
    }
    return list;
}

/* Write to errors[i] the least |values[i] - sum of a subset of samples[i*n .. i*n + n)|. */
int two_pointer(const float *samples, const float *values, float *errors, long batch, int n)
{
    const int half = n / 2;
    const long first = 1L << (n - half), second = 1L << half;
    float *memory = malloc(sizeof(float) * 2 * (size_t)(first + second));
    if (!memory)
        return 1;
    for (long instance = 0; instance < batch; instance++, samples += n) {
        const float value = values[instance];
        const float *a = sorted_sums(samples, n - half, 2, memory, memory + first);
        const float *b =
            sorted_sums(samples + 1, half, 2, memory + 2 * first, memory + 2 * first + second);
        float best = INFINITY;
        long i = 0, j = second - 1;
        while (i < first && j >= 0) {
            const float sum = a[i] + b[j], distance = fabsf(sum - value);
            if (distance < best)
                best = distance;
            if (sum < value)
                i++;
            else
                j--;
        }
        errors[instance] = best;
    }
    free(memory);
    return 0;
}
