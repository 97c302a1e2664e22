/* The kernels of one instruction set. trunk.c includes this once for each, and defines before:
 *   NAME(x)   x with the set's suffix
 *   TARGET    the attribute that lets a function use the set
 *   T, PAIR   an element, and how many of them are multiplied and summed at once
 *   VL, V     floats in a register, and its type
 *   E         VL elements, their bits as integers INT, of which LARGEST is the largest;  WIDEN(e)  V of them
 *   SPLAT(p)  V with PAIR elements at p in every lane;  LOAD(p)  V with VL * PAIR elements
 *   ZERO      V of zeros;  LOADF(p), STOREF(p, v)  floats
 *   MADD(acc, a, b)  acc + the sums over pairs of a b
 *   STORE(p, v)      round to elements;  RELU(v);  WHERE_POSITIVE(e, v)  v where elements with the bits e are, else 0
 *   FROM_BYTE(b), TO_FLOAT(e)
 *   TILED     1 where layers are tiles of AMX (tile_kernels.h); 0 where they are registers (register_kernels.h), for
 *             which there are FORWARD_TILES, WEIGHT_TILES, INPUT_TILES  which tiles of registers there are
 *             FORWARD_ROWS1, FORWARD_ROWS2, WEIGHT_ROWS1, WEIGHT_ROWS2, INPUT_ROWS  how they share a row
 */

/* `count` bytes of each plane, `area` apart, -> [count][c] elements; a channel beyond the planes is zero. */
TARGET static void NAME(interleave)(const uint8_t *restrict in, T *restrict out, int planes, int c, size_t area,
                                    size_t count) {
#ifdef INTERLEAVE4
  if (planes == 4 && c == 4 && count >= 16) {
    INTERLEAVE4(in, out, area, count);
    return;
  }
#endif
#if PAIR == 1
  if (planes == 4 && c == 4) { /* bytes first, some at a time: the compiler then converts whole registers of them */
    for (size_t start = 0; start < count; start += 64) {
      const size_t some = count - start < 64 ? count - start : 64;
      uint8_t beside[4 * 64];
      for (size_t i = 0; i < some; i++)
        for (int channel = 0; channel < 4; channel++) beside[4 * i + channel] = in[channel * area + start + i];
      for (size_t i = 0; i < 4 * some; i++) out[4 * start + i] = FROM_BYTE(beside[i]);
    }
    return;
  }
#endif
  for (int channel = 0; channel < c; channel++)
    for (size_t i = 0; i < count; i++) out[i * c + channel] = channel < planes ? FROM_BYTE(in[channel * area + i]) : (T)0;
}

/* Weights as a network holds them, [n][k][k][channels] floats, in the two orders in which the kernels read them; the
 * bytes of observations are numbers from 0 to 255 here, so the first layer's weights are divided by 255. */
TARGET static void NAME(pack)(const trunk_layer *l, const float *weight, int channels, float scale, void *to_forward,
                              void *to_back) {
  T *forward = to_forward, *back = to_back;
  const int k = l->k, c = l->c, n = l->n;
  for (int i = 0; i < n; i++)
    for (int yx = 0; yx < k * k; yx++)
      for (int j = 0; j < c; j++) {
        const T e = j < channels ? ROUND(weight[((size_t)i * k * k + yx) * channels + j] * scale) : (T)0;
        const size_t at = (size_t)yx * c + j;
        forward[(at / PAIR * n + i) * PAIR + at % PAIR] = e;
        const size_t turned = l->role == TRUNK_RELU ? yx : k * k - 1 - yx;
        if (back) back[((turned * (n / PAIR) + i / PAIR) * c + j) * PAIR + i % PAIR] = e;
      }
}

/* What becomes of a layer's sums v, and where: arrays of one shape, of which some may be NULL. */
typedef struct {
  const T *mask; /* v = 0 where this is not positive */
  const T *add;  /* v = v + this */
  T *raw;        /* v */
  T *out;        /* v, or relu(v) */
  int relu;
  size_t row; /* elements from one row to the next */
} NAME(ends);

TARGET static inline __attribute__((always_inline)) E NAME(load_bits)(const T *p) {
  E v;
  memcpy(&v, p, sizeof v);
  return v;
}

TARGET static inline __attribute__((always_inline)) void NAME(store_bits)(T *p, E v) { memcpy(p, &v, sizeof v); }

#if TILED
#include "tile_kernels.h"
#else
#include "register_kernels.h"
#endif

/* Bits of elements that are not negative, and no NaN, are in the order of the numbers. */
TARGET static inline __attribute__((always_inline)) E NAME(larger)(E a, E b) {
  const E left = (E)(a > b);
  return (a & left) | (b & ~left);
}

/* The largest of each 2x2 positions: [ho][wo][n] -> [ho / 2][wo / 2][n]. */
TARGET static void NAME(pool)(const trunk_layer *l, const T *act, T *out) {
  const size_t row = (size_t)l->wo * l->n;
  for (int y = 0; y < l->ho; y += 2, act += row) /* the inner loop takes one row, this the other */
    for (int x = 0; x < l->wo; x += 2, act += 2 * l->n, out += l->n)
      for (int i = 0; i < l->n; i += VL) {
        const T *a = act + i, *right = a + l->n;
        const E above = NAME(larger)(NAME(load_bits)(a), NAME(load_bits)(right));
        const E below = NAME(larger)(NAME(load_bits)(a + row), NAME(load_bits)(right + row));
        NAME(store_bits)(out + i, NAME(larger)(above, below));
      }
}

/* Gradients of the pool: each goes to the position that won, of equal ones to the first, row by row. */
TARGET static void NAME(unpool)(const trunk_layer *l, const T *act, const T *grad, T *out) {
  const size_t row = (size_t)l->wo * l->n;
  for (int y = 0; y < l->ho; y += 2, act += row, out += row)
    for (int x = 0; x < l->wo; x += 2, act += 2 * l->n, out += 2 * l->n, grad += l->n)
      for (int i = 0; i < l->n; i += VL) {
        const size_t at[4] = {i, i + l->n, i + row, i + row + l->n};
        E a[4];
        UNROLL(4) for (int p = 0; p < 4; p++) a[p] = NAME(load_bits)(act + at[p]);
        const E most = NAME(larger)(NAME(larger)(a[0], a[1]), NAME(larger)(a[2], a[3]));
        E left = NAME(load_bits)(grad + i); /* to give away */
        UNROLL(4) for (int p = 0; p < 4; p++) {
          const E won = (E)(a[p] == most);
          NAME(store_bits)(out + at[p], left & won);
          left &= ~won;
        }
      }
}

/* Where the activation is not positive the gradient is zero. Writes it twice: rows with zeros on both sides for
 * `input_layer`, if `padded` is not NULL, and pairs of positions for `weight_layer`, unless there are tiles; and adds it up
 * for the biases. */
TARGET static void NAME(mask)(const trunk_layer *l, const T *grad, const T *act, T *padded, T *pairs, float *dbias) {
  const size_t n = l->n, wo = l->wo, in_row = (wo + PAIR - 1) / PAIR, left = LEFT(l), width = padded_row(l);
  for (int y = 0; padded && y < l->ho; y++) {
    memset(padded + y * width * n, 0, left * n * sizeof(T));
    memset(padded + (y * width + left + wo) * n, 0, (width - left - wo) * n * sizeof(T));
  }
  for (size_t i = 0; i < n; i += VL) { /* VL filters at a time, so that their sum stays in a register */
    V sum = LOADF(dbias + i);
    for (int y = 0; y < l->ho; y++) {
      const T *g = grad + y * wo * n + i, *a = act + y * wo * n + i;
      T *to = padded ? padded + (y * width + left) * n + i : NULL, *pair = pairs + (y * in_row * n + i) * PAIR;
      for (size_t x = 0; x < wo; x += PAIR, g += PAIR * n, a += PAIR * n, pair += PAIR * n) {
        /* bits of an element are positive if it is; an activation is no NaN */
        const E one = NAME(load_bits)(g) & (E)(NAME(load_bits)(a) > 0);
        sum += WIDEN(one);
        if (to) NAME(store_bits)(to + x * n, one);
#if PAIR == 2
        E other = {0};
        if (x + 1 < wo) {
          other = NAME(load_bits)(g + n) & (E)(NAME(load_bits)(a + n) > 0);
          sum += WIDEN(other);
          if (to) NAME(store_bits)(to + (x + 1) * n, other);
        }
#if !TILED
        STORE_PAIRS(pair, one, other);
#endif
#else
        NAME(store_bits)(pair, one);
#endif
      }
    }
    STOREF(dbias + i, sum);
  }
}

#if PAIR == 2
/* A row of elements -> [row][2]: each beside the one of the next position of an output row, `apart` behind it. */
TARGET static void NAME(pair_row)(const T *restrict in, T *restrict out, size_t row, size_t apart) {
  size_t i = 0;
  for (; i + VL + apart <= row; i += VL) STORE_PAIRS(out + 2 * i, NAME(load_bits)(in + i), NAME(load_bits)(in + i + apart));
  for (; i < row; i++) {
    out[2 * i] = in[i];
    out[2 * i + 1] = i + apart < row ? in[i + apart] : 0;
  }
}
#endif

TARGET static void NAME(forward)(void *argument) {
  trunk_job *job = argument;
  const trunk_layer *first = &job->layer[0], *last = &job->layer[job->layers - 1];
  const size_t area = (size_t)first->h * first->w;
  T *x = (T *)(job->scratch + job->scratch_bytes * __atomic_fetch_add(&job->worker, 1, __ATOMIC_RELAXED));
  T *spare = x + area * first->c + TRUNK_SLACK;
  for (int i; (i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->count;) {
    const uint8_t *bytes = sample_bytes(job, i, area);
    NAME(interleave)(bytes, x, job->planes, first->c, area, area);
    for (int k = 0; k < job->nets; k++) {
      const trunk_net *net = &job->net[k];
      if (i < net->from || i >= net->to) continue;
      const size_t at = i - net->from;
      const T *in = x;
      T *free = spare;
      for (int j = 0; j < job->layers; j++) {
        const trunk_layer *l = &job->layer[j];
        const size_t size = (size_t)l->ho * l->wo * l->n;
        T *out = (int)at < net->keep || (l == last && !job->pool) ? (T *)net->out[j] + at * size : free;
        const NAME(ends) ends = {.out = out, .relu = 1, .row = (size_t)l->wo * l->n};
        NAME(forward_layer)(l, in, net->weight[j], net->bias[j], &ends);
        in = out;
        free += size;
      }
      if (job->pool) NAME(pool)(last, in, (T *)net->features + at * (last->ho / 2) * (last->wo / 2) * last->n);
    }
  }
  NAME(leave)();
}

TARGET static void NAME(backward)(void *argument) {
  trunk_job *job = argument;
  const trunk_layer *first = &job->layer[0];
  const size_t area = (size_t)first->h * first->w;
  /* Each part has the same samples and sums of its own, whichever worker takes it: the result is always the same. */
  for (int part; (part = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->parts;) {
    T *x = (T *)(job->scratch + job->scratch_bytes * part);
    clear_sums(job, part);
    const long begin = (long)job->count * part / job->parts, end = (long)job->count * (part + 1) / job->parts;
    for (long i = begin; i < end; i++) {
      const uint8_t *bytes = sample_bytes(job, i, area);
#if PAIR == 1
      NAME(interleave)(bytes, x, job->planes, first->c, area, area);
#endif
      const trunk_layer *l = &job->layer[job->layers - 1];
      const size_t features = (size_t)l->ho * l->wo * l->n;
      const T *grad = (const T *)job->grad + i * (job->pool ? features / 4 : features);
      if (job->pool) {
        T *all = x + job->scratch_bytes / sizeof(T) - TRUNK_SLACK - features;
        NAME(unpool)(l, (const T *)job->net[0].out[job->layers - 1] + i * features, grad, all);
        grad = all;
      }
      for (int j = job->layers - 1; j >= 0; j--) {
        l = &job->layer[j];
        const size_t size = (size_t)l->ho * l->wo * l->n, inside = (size_t)l->h * l->w * l->c;
        T *padded = x + area * first->c + TRUNK_SLACK;
        T *pairs = padded + (size_t)l->ho * padded_row(l) * l->n + TRUNK_SLACK;
        T *passed = x + job->scratch_bytes / sizeof(T) - TRUNK_SLACK - inside; /* at the end: the next layer reads it */
        float *dweight = job->dweight[j] + (size_t)part * l->k * l->k * l->c * l->n;
        NAME(mask)(l, grad, (const T *)job->net[0].out[j] + i * size, j || TILED ? padded : NULL, pairs,
                   job->dbias[j] + (size_t)part * l->n);
        const T *in = j ? (const T *)job->net[0].out[j - 1] + i * inside : x;
#if PAIR == 2
        const size_t row = (size_t)l->w * l->c, width = TILED && l->s == 1 ? padded_row(l) : l->w;
#if TILED
        const NAME(sums) sums = NAME(sums_of)(l, l->s == 1, width);
        NAME(turn)(l, &sums, padded + LEFT(l) * l->n, padded_row(l) * l->n, pairs, NULL);
        T *paired = pairs + turned_size(l, padded_row(l)) + TRUNK_SLACK;
        NAME(clear_end)(l, &sums, paired + 2 * l->h * width * l->c);
#else
        T *paired = pairs + PAIR * (size_t)l->ho * ((l->wo + 1) / PAIR) * l->n + TRUNK_SLACK;
#endif
        for (int y = 0; y < l->h; y++) {
          T *to = paired + 2 * y * width * l->c;
          if (!j) NAME(interleave)(bytes + (size_t)y * l->w, x, job->planes, l->c, area, l->w);
          NAME(pair_row)(j ? in + y * row : x, to, row, (size_t)l->s * l->c);
          memset(to + 2 * row, 0, 2 * (width - l->w) * l->c * sizeof(T));
        }
        in = paired;
#endif
#if TILED
        NAME(weight_layer)(l, &sums, in, width, pairs, dweight);
#else
        NAME(weight_layer)(l, in, pairs, dweight);
#endif
        if (j) NAME(input_layer)(l, padded, job->back[j], passed);
        grad = passed;
      }
    }
  }
  NAME(leave)();
}

#include "block_kernels.h"
