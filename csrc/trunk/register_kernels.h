/* Layers by registers of the processor; a part of trunk_kernels.h, as tile_kernels.h is where there are tiles. */

/* For each register of a tile, p and b, and the place of its elements. */
#define EACH(P, B, DO)                                                 \
  UNROLL(32) for (int p = 0; p < P; p++) {                             \
    UNROLL(8) for (int b = 0; b < B; b++) {                            \
      const size_t to = at_out + (size_t)p * filters + VL * b;         \
      DO;                                                              \
    }                                                                  \
  }

/* One tile of a layer's output: P positions of a row, B registers of filters. */
#define FORWARD_TILE(P, B)                                                                                            \
  TARGET static inline __attribute__((always_inline)) void NAME(forward_##P##_##B)(                                   \
      const trunk_layer *l, size_t across, size_t filters, const T *in, const T *weight, const float *bias,           \
      const NAME(ends) *e, size_t at_out) {                                                                           \
    const size_t row = (size_t)l->k * l->c;                                                                           \
    V acc[P][B];                                                                                                      \
    UNROLL(8) for (int b = 0; b < B; b++) {                                                                           \
      UNROLL(32) for (int p = 0; p < P; p++) acc[p][b] = LOADF(bias + VL * b);                                        \
    }                                                                                                                 \
    for (int y = 0; y < l->k; y++) {                                                                                  \
      const T *at = in + (size_t)y * l->w * l->c;                                                                     \
      for (size_t j = 0; j < row; j += PAIR) {                                                                        \
        V w[B];                                                                                                       \
        UNROLL(8) for (int b = 0; b < B; b++) w[b] = LOAD(weight + VL * PAIR * b);                                    \
        UNROLL(32) for (int p = 0; p < P; p++) {                                                                      \
          const V x = SPLAT(at + p * across + j);                                                                     \
          UNROLL(8) for (int b = 0; b < B; b++) acc[p][b] = MADD(acc[p][b], x, w[b]);                                 \
        }                                                                                                             \
        weight += filters * PAIR;                                                                                     \
      }                                                                                                               \
    }                                                                                                                 \
    if (e->mask) EACH(P, B, acc[p][b] = WHERE_POSITIVE(NAME(load_bits)(e->mask + to), acc[p][b]))                     \
    if (e->add) EACH(P, B, acc[p][b] += WIDEN(NAME(load_bits)(e->add + to)))                                          \
    if (e->raw) EACH(P, B, STORE(e->raw + to, acc[p][b]))                                                             \
    if (e->relu) EACH(P, B, STORE(e->out + to, RELU(acc[p][b])))                                                      \
    if (!e->relu) EACH(P, B, STORE(e->out + to, acc[p][b]))                                                                    \
  }

#define FORWARD_ROW(P, B)                                                                                             \
  for (; x + P <= l->wo; x += P)                                                                                      \
    NAME(forward_##P##_##B)(l, across, filters, at + x * across, weight + (size_t)n * PAIR, bias + n, e,              \
                            to + x * filters + n)

FORWARD_TILES

/* One layer of one sample: from one position of a row to the next it is `across` elements, and `filters`. */
TARGET static inline __attribute__((always_inline)) void NAME(forward_rows)(
    const trunk_layer *l, size_t across, size_t filters, const T *in, const T *weight, const float *bias,
    const NAME(ends) *e) {
  for (size_t n = 0; n < filters;) {
    const int two = filters - n >= 2 * VL;
    for (int y = 0; y < l->ho; y++) {
      const T *at = in + (size_t)y * l->s * l->w * l->c;
      const size_t to = y * e->row;
      int x = 0;
      if (two) {
        FORWARD_ROWS2
      } else {
        FORWARD_ROWS1
      }
    }
    n += two ? 2 * VL : VL;
  }
}

/* Where the compiler knows both, a tile's places need no registers: 20 of them do not fit. Each in a function of its own,
 * or GCC keeps sums in memory. */
#define FORWARD_ROWS(NAMED, ACROSS, FILTERS)                                                                          \
  TARGET static __attribute__((noinline)) void NAME(forward_rows_##NAMED)(                                            \
      const trunk_layer *l, const T *in, const T *weight, const float *bias, const NAME(ends) *e) {                   \
    NAME(forward_rows)(l, ACROSS, FILTERS, in, weight, bias, e);                                                      \
  }

FORWARD_ROWS(16_16, 16, 16)
FORWARD_ROWS(16_32, 16, 32)
FORWARD_ROWS(32_16, 32, 16)
FORWARD_ROWS(32_32, 32, 32)
FORWARD_ROWS(any, (size_t)l->s * l->c, l->n)

TARGET static void NAME(forward_layer)(const trunk_layer *l, const T *in, const T *weight, const float *bias,
                                       const NAME(ends) *e) {
  const int across = l->s * l->c;
  if (across == 16 && l->n == 16)
    NAME(forward_rows_16_16)(l, in, weight, bias, e);
  else if (across == 16 && l->n == 32)
    NAME(forward_rows_16_32)(l, in, weight, bias, e);
  else if (across == 32 && l->n == 16)
    NAME(forward_rows_32_16)(l, in, weight, bias, e);
  else if (across == 32 && l->n == 32)
    NAME(forward_rows_32_32)(l, in, weight, bias, e);
  else
    NAME(forward_rows_any)(l, in, weight, bias, e);
}

/* Gradients of B registers of filters with respect to K weights in one row of the kernel.
 * in: [h][w][c][PAIR] elements, pairs of positions that lie `s` apart; grad: [ho][pairs of a row][n][PAIR]. */
#define WEIGHT_TILE(K, B)                                                                                             \
  TARGET static inline __attribute__((always_inline)) void NAME(weight_##K##_##B)(                                    \
      const trunk_layer *l, const T *in, const T *grad, float *dweight) {                                             \
    const int pairs = (l->wo + PAIR - 1) / PAIR;                                                                      \
    const size_t across = (size_t)PAIR * l->s * l->c * PAIR, down = (size_t)l->s * l->w * l->c * PAIR;                \
    V acc[K][B];                                                                                                      \
    UNROLL(32) for (int i = 0; i < K; i++) {                                                                          \
      UNROLL(8) for (int b = 0; b < B; b++) acc[i][b] = LOADF(dweight + (size_t)i * l->n + VL * b);                   \
    }                                                                                                                 \
    for (int y = 0; y < l->ho; y++) {                                                                                 \
      const T *at = in + y * down;                                                                                    \
      for (int q = 0; q < pairs; q++) {                                                                               \
        V g[B];                                                                                                       \
        UNROLL(8) for (int b = 0; b < B; b++) g[b] = LOAD(grad + VL * PAIR * b);                                      \
        UNROLL(32) for (int i = 0; i < K; i++) {                                                                      \
          const V x = SPLAT(at + (size_t)i * PAIR);                                                                   \
          UNROLL(8) for (int b = 0; b < B; b++) acc[i][b] = MADD(acc[i][b], x, g[b]);                                 \
        }                                                                                                             \
        at += across;                                                                                                 \
        grad += (size_t)l->n * PAIR;                                                                                  \
      }                                                                                                               \
    }                                                                                                                 \
    UNROLL(32) for (int i = 0; i < K; i++) {                                                                          \
      UNROLL(8) for (int b = 0; b < B; b++) STOREF(dweight + (size_t)i * l->n + VL * b, acc[i][b]);                   \
    }                                                                                                                 \
  }

#define WEIGHT_BLOCKS(K, B)                                                                                           \
  for (; j + K <= row; j += K)                                                                                        \
    NAME(weight_##K##_##B)(l, at + (size_t)j * PAIR, grad + (size_t)n * PAIR, to + (size_t)j * l->n + n)

WEIGHT_TILES

TARGET static void NAME(weight_layer)(const trunk_layer *l, const T *in, const T *grad, float *dweight) {
  const int row = l->k * l->c;
  for (int n = 0; n < l->n;) {
    const int two = l->n - n >= 2 * VL;
    for (int y = 0; y < l->k; y++) {
      const T *at = in + (size_t)y * l->w * l->c * PAIR;
      float *to = dweight + (size_t)y * row * l->n;
      int j = 0;
      if (two) {
        WEIGHT_ROWS2
      } else {
        WEIGHT_ROWS1
      }
    }
    n += two ? 2 * VL : VL;
  }
}

/* Gradients [ho][wo][n], rows `row` apart, as pairs of positions for `weight_layer`; adds them up for the biases. */
TARGET static void NAME(pair_gradients)(const trunk_layer *l, const T *grad, size_t row, T *pairs, float *dbias) {
  const size_t n = l->n, wo = l->wo, in_row = (wo + PAIR - 1) / PAIR;
  for (size_t i = 0; i < n; i += VL) {
    V sum = LOADF(dbias + i);
    for (int y = 0; y < l->ho; y++) {
      const T *g = grad + y * row + i;
      T *pair = pairs + (y * in_row * n + i) * PAIR;
      for (size_t x = 0; x < wo; x += PAIR, g += PAIR * n, pair += PAIR * n) {
        const E one = NAME(load_bits)(g);
        sum += WIDEN(one);
#if PAIR == 2
        E other = {0};
        if (x + 1 < wo) {
          other = NAME(load_bits)(g + n);
          sum += WIDEN(other);
        }
        STORE_PAIRS(pair, one, other);
#else
        NAME(store_bits)(pair, one);
#endif
      }
    }
    STOREF(dbias + i, sum);
  }
}

/* Gradients of P positions of a row, s apart, and one register of channels, with respect to a layer's input. */
#define INPUT_TILE(P)                                                                                                 \
  TARGET static inline __attribute__((always_inline)) void NAME(input_##P)(                                           \
      const trunk_layer *l, const T *grad, const T *weight, int y, int x, T *out) {                                   \
    const size_t padded = padded_row(l);                                                                                  \
    V acc[P];                                                                                                         \
    UNROLL(32) for (int p = 0; p < P; p++) acc[p] = ZERO;                                                             \
    for (int ky = y % l->s; ky < l->k && ky <= y; ky += l->s) {                                                       \
      const int oy = (y - ky) / l->s;                                                                                 \
      if (oy >= l->ho) continue;                                                                                      \
      for (int kx = x % l->s; kx < l->k; kx += l->s) {                                                                \
        const T *g = grad + (oy * padded + LEFT(l) + x / l->s - kx / l->s) * l->n;                                    \
        const T *w = weight + (size_t)(ky * l->k + kx) * l->n * l->c;                                                 \
        for (int j = 0; j < l->n; j += PAIR) {                                                                        \
          const V v = LOAD(w);                                                                                        \
          UNROLL(32) for (int p = 0; p < P; p++) acc[p] = MADD(acc[p], SPLAT(g + (size_t)p * l->n + j), v);           \
          w += (size_t)l->c * PAIR;                                                                                   \
        }                                                                                                             \
      }                                                                                                               \
    }                                                                                                                 \
    UNROLL(32) for (int p = 0; p < P; p++) STORE(out + (size_t)p * l->s * l->c, acc[p]);                              \
  }

#define INPUT_ROW(P)                                                                                                  \
  for (; x + (P - 1) * l->s < l->w; x += P * l->s)                                                                    \
    NAME(input_##P)(l, grad, weight + (size_t)c * PAIR, y, x, out + ((size_t)y * l->w + x) * l->c + c)

INPUT_TILES

/* grad: [ho][padded_row][n] elements; out: [h][w][c]. */
TARGET static void NAME(input_layer)(const trunk_layer *l, const T *grad, const T *weight, T *out) {
  for (int y = 0; y < l->h; y++)
    for (int first = 0; first < l->s && first < l->w; first++)
      for (int c = 0; c < l->c; c += VL) {
        int x = first;
        INPUT_ROWS
      }
}

/* What a worker does at its end. */
TARGET static void NAME(leave)(void) {}
