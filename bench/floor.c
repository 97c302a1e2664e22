/* What no replay can go below: the copies of frames, and a bare sum tree, eight children to a node.
 *
 * Nothing is checked, nothing is allocated. The tree's levels lie in one array, leaves first; offsets[k] is where
 * level k begins, and child c of node p is node 8 p + c one level below.
 */

#include <stdint.h>
#include <string.h>

/* Both stacks of count transitions; a frame of both is copied twice while it is in the caches. */
void gather(const uint8_t *ring, const int64_t *places, int64_t count, int64_t stack, int64_t size, uint8_t *out,
            int64_t threads)
{
    const int64_t *next_places = places + count * stack;
    uint8_t *next_out = out + count * stack * size;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < count; i++) {
        int64_t next = i * stack;
        for (int64_t k = i * stack; k < (i + 1) * stack; k++) {
            memcpy(out + k * size, ring + places[k] * size, size);
            for (; next < (i + 1) * stack && next_places[next] == places[k]; next++)
                memcpy(next_out + next * size, ring + places[k] * size, size);
        }
        for (; next < (i + 1) * stack; next++)
            memcpy(next_out + next * size, ring + next_places[next] * size, size);
    }
}

void scatter(uint8_t *ring, const int64_t *places, int64_t count, int64_t size, const uint8_t *frames)
{
    for (int64_t i = 0; i < count; i++)
        memcpy(ring + places[i] * size, frames + i * size, size);
}

void tree_find(const double *nodes, const int64_t *offsets, int64_t levels, const double *targets, double *rest,
               int64_t *leaves, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        rest[i] = targets[i];
        leaves[i] = 0;
    }
    /* Level by level, so that the loads of a whole batch are in flight at once. */
    for (int64_t level = levels - 2; level >= 0; level--)
        for (int64_t i = 0; i < count; i++) {
            const double *c = nodes + offsets[level] + 8 * leaves[i];
            double sum = 0.0, before = 0.0;
            int64_t child = 0;
            for (int k = 0; k < 7; k++) { /* the first child whose running sum exceeds the target, else the last */
                sum += c[k];
                int past = rest[i] >= sum;
                child += past;
                before = past ? sum : before;
            }
            rest[i] -= before;
            leaves[i] = 8 * leaves[i] + child;
        }
}

void tree_write(double *nodes, const int64_t *offsets, int64_t levels, const int64_t *leaves, const double *weights,
                int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        nodes[leaves[i]] = weights[i];
    for (int64_t level = 1; level < levels; level++) {
        int64_t last = -1;
        for (int64_t i = 0; i < count; i++) {
            int64_t parent = leaves[i] >> (3 * level);
            if (parent == last) /* leaves come in order: their parents were summed just now */
                continue;
            const double *c = nodes + offsets[level - 1] + 8 * parent;
            nodes[offsets[level] + parent] = ((c[0] + c[1]) + (c[2] + c[3])) + ((c[4] + c[5]) + (c[6] + c[7]));
            last = parent;
        }
    }
}
