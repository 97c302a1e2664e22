/* Layers by AMX, whose tiles multiply 16 positions by 16 filters, 32 elements of each, at once; a part of trunk_kernels.h.
 *
 * A tile has 16 rows of 64 bytes at most; its rows may lie any stride apart, so a tile of positions is read straight from
 * a layer's input. Sums are tiles 0 to 3: rows of tiles 4 and 5 by columns of tiles 6 and 7. The columns hold pairs of
 * elements, as the weights are packed. A product takes as many cycles as the longer of its rows and its pairs, 16 at most,
 * and a load half of that, but three times as long where each row lies in two lines of the cache.
 */

/* The shape of tiles, as the processor reads it. */
typedef struct {
  uint8_t palette, start, zeros[14];
  uint16_t bytes[16];
  uint8_t rows[16];
} NAME(shape);

TARGET static void NAME(shape_tiles)(int rows, int pairs, int columns) {
  NAME(shape) shape = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    shape.bytes[i] = 4 * (i < 4 || i > 5 ? columns : pairs);
    shape.rows[i] = i < 6 ? rows : pairs;
  }
  __asm__ volatile("" : : "r"(&shape) : "memory"); /* GCC 12 takes it that only 8 bytes are read */
  _tile_loadconfig(&shape);
}

/* How many of `count` go into one piece, at most `most`, where all pieces have the same size and it is a multiple of `unit`. */
static inline int NAME(piece)(int count, int most, int unit) {
  int pieces = (count + most - 1) / most;
  while (count % (pieces * unit)) pieces++;
  return count / pieces;
}

/* Add one product to each of the sums: rows at `a` and `a1`, columns at `b` and `b1`, strides in bytes. */
TARGET static inline __attribute__((always_inline)) void NAME(multiply)(int rows, int columns, const T *a, const T *a1,
                                                                        size_t a_stride, const T *b, const T *b1,
                                                                        size_t b_stride) {
  _tile_loadd(6, b, b_stride);
  _tile_loadd(4, a, a_stride);
  _tile_dpbf16ps(0, 4, 6);
  if (columns == 2) {
    _tile_loadd(7, b1, b_stride);
    _tile_dpbf16ps(1, 4, 7);
  }
  if (rows == 2) {
    _tile_loadd(5, a1, a_stride);
    _tile_dpbf16ps(2, 5, 6);
    if (columns == 2) _tile_dpbf16ps(3, 5, 7);
  }
}

TARGET static inline __attribute__((always_inline)) void NAME(clear_tiles)(void) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

/* The four sums, a row of 16 floats behind the other; stores only what there is. */
TARGET static inline __attribute__((always_inline)) void NAME(store_tiles)(int rows, int columns, float *sums) {
  _tile_stored(0, sums, 64);
  if (columns == 2) _tile_stored(1, sums + 256, 64);
  if (rows == 2) _tile_stored(2, sums + 512, 64);
  if (rows == 2 && columns == 2) _tile_stored(3, sums + 768, 64);
}

/* Rows of a tile of sums, of positions one behind the other, become a layer's output; see EACH of the register kernels. */
TARGET static inline __attribute__((always_inline)) void NAME(finish_run)(const float *sums, const float *bias, int count,
                                                                          size_t filters, const NAME(ends) *e, size_t to) {
  const V b = LOADF(bias);
  for (int r = 0; r < count; r++, to += filters) {
    V v = LOADF(sums + 16 * r) + b;
    if (e->mask) v = WHERE_POSITIVE(NAME(load_bits)(e->mask + to), v);
    if (e->add) v += WIDEN(NAME(load_bits)(e->add + to));
    if (e->raw) STORE(e->raw + to, v);
    if (e->relu) v = RELU(v);
    STORE(e->out + to, v);
  }
}

/* The rows from `from` on of a tile of sums whose first position is `at`, in rows of `width` positions, of which the output
 * has the first `wo`. */
TARGET static inline __attribute__((always_inline)) void NAME(finish_tile)(const trunk_layer *l, const float *sums,
                                                                           const float *bias, int from, int to, int at,
                                                                           int width, int y, int n, const NAME(ends) *e) {
  int x = at + from;
  y += x / width;
  x %= width;
  for (int r = from; r < to;) {
    int run = l->wo - x < to - r ? l->wo - x : to - r;
    if (run > 0) {
      NAME(finish_run)(sums + 16 * r, bias + n, run, l->n, e, y * e->row + (size_t)x * l->n + n);
      r += run;
      x += run;
    }
    if (x >= l->wo) { /* positions beyond the row's end */
      r += width - x;
      x = 0;
      y++;
    }
  }
}

/* One pair of tiles of positions and of filters. */
#define FORWARD_TILES_(R, C)                                                                                          \
  {                                                                                                                   \
    NAME(clear_tiles)();                                                                                              \
    const T *w = weight + (size_t)n * PAIR;                                                                           \
    for (int ky = 0; ky < l->k; ky++)                                                                                 \
      for (int j = 0; j < row; j += piece, w += piece * filters)                                                      \
        NAME(multiply)(R, C, at + ky * down + (size_t)p * across + j, at + ky * down + (size_t)p1 * across + j,       \
                       across * sizeof(T), w, w + VL * PAIR, filters * PAIR * sizeof(T));                             \
    NAME(store_tiles)(R, C, sums);                                                                                    \
    for (int c = 0; c < C; c++) {                                                                                     \
      NAME(finish_tile)(l, sums + 256 * c, bias, first, tile, p, width, y, n + VL * c, e);                            \
      if (R == 2) NAME(finish_tile)(l, sums + 512 + 256 * c, bias, p + tile - p1, tile, p1, width, y, n + VL * c, e); \
    }                                                                                                                 \
  }

/* One layer of one sample. With a stride of 1 all rows are one: what lies between them is worked out and dropped. */
TARGET static void NAME(forward_layer)(const trunk_layer *l, const T *in, const T *weight, const float *bias,
                                       const NAME(ends) *e) {
  const int linear = l->s == 1, width = linear ? l->w : l->wo, count = linear ? (l->ho - 1) * width + l->wo : l->wo;
  const int row = l->k * l->c, piece = NAME(piece)(row, 32, PAIR), tile = count < 16 ? count : 16;
  const size_t across = (size_t)l->s * l->c, down = (size_t)l->w * l->c, filters = l->n;
  float sums[1024] __attribute__((aligned(64)));
  NAME(shape_tiles)(tile, piece / PAIR, 16);
  for (int y = 0; y < (linear ? 1 : l->ho); y++) {
    const T *at = in + y * l->s * down;
    for (int next = 0; next < count; next += 2 * tile) { /* the last tiles end with the last position, whatever they repeat */
      const int p = next + tile <= count ? next : count - tile, first = next - p;
      const int p1 = next + 2 * tile <= count ? next + tile : count - tile, two = next + tile < count;
      for (int n = 0; n < (int)filters;) {
        const int both = (int)filters - n >= 2 * VL;
        if (two && both)
          FORWARD_TILES_(2, 2)
        else if (two)
          FORWARD_TILES_(2, 1)
        else if (both)
          FORWARD_TILES_(1, 2)
        else
          FORWARD_TILES_(1, 1)
        n += both ? 2 * VL : VL;
      }
    }
  }
}

/* --- gradients of the weights --------------------------------------------------------------------------- */

/* Which positions are summed up at once: all, as one row, or those of one row of the output after the other. */
typedef struct {
  int rows, positions; /* in a row */
  int pairs, steps;    /* pairs of positions in a product, and products in a row */
} NAME(sums);

static inline NAME(sums) NAME(sums_of)(const trunk_layer *l, int linear, int width) {
  const int positions = linear ? (l->ho - 1) * width + l->wo : l->wo, pairs = (positions + 1) / 2;
  const int steps = (pairs + 15) / 16;
  return (NAME(sums)){linear ? 1 : l->ho, positions, (pairs + steps - 1) / steps, steps};
}

/* Swap rows and columns of 16 registers of 16 numbers. */
TARGET static inline __attribute__((always_inline)) void NAME(transpose)(__m512i r[16], bfloat16 *out) {
  __m512i t[16];
  UNROLL(8) for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  UNROLL(4) for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  UNROLL(4) for (int i = 0; i < 4; i++) { /* r[4 j + i]: in each quarter q, column 4 q + i of rows 4 j to 4 j + 3 */
    const __m512i low = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88), high = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    const __m512i low1 = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd), high1 = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    _mm512_storeu_si512(out + 32 * i, _mm512_shuffle_i32x4(low, high, 0x88));
    _mm512_storeu_si512(out + 32 * (4 + i), _mm512_shuffle_i32x4(low1, high1, 0x88));
    _mm512_storeu_si512(out + 32 * (8 + i), _mm512_shuffle_i32x4(low, high, 0xdd));
    _mm512_storeu_si512(out + 32 * (12 + i), _mm512_shuffle_i32x4(low1, high1, 0xdd));
  }
}

/* Gradients, rows `row` elements apart -> a tile for each product and register of filters: [16 filters][16 pairs of
 * positions]; adds them up for the biases, unless `dbias` is NULL. */
TARGET static void NAME(turn)(const trunk_layer *l, const NAME(sums) *s, const T *grad, size_t row, T *turned, float *dbias) {
  const size_t n = l->n, tiles = n / VL;
  for (size_t i = 0; i < tiles; i++) {
    V sum = dbias ? LOADF(dbias + VL * i) : ZERO;
    for (int y = 0; y < s->rows; y++)
      for (int step = 0; step < s->steps; step++) {
        const int from = 2 * step * s->pairs;
        const T *g = grad + y * row + from * n + VL * i;
        __m512i r[16];
        if (s->pairs == 16 && from + 32 <= s->positions) {
          UNROLL(16) for (int p = 0; p < 16; p++) {
            const E one = NAME(load_bits)(g + 2 * p * n), other = NAME(load_bits)(g + (2 * p + 1) * n);
            sum += WIDEN(one) + WIDEN(other);
            r[p] = pairs_of(one, other);
          }
        } else {
          for (int p = 0; p < 16; p++) {
            const int at = from + 2 * p;
            const E one = p < s->pairs && at < s->positions ? NAME(load_bits)(g + 2 * p * n) : (E){0};
            const E other = p < s->pairs && at + 1 < s->positions ? NAME(load_bits)(g + (2 * p + 1) * n) : (E){0};
            sum += WIDEN(one) + WIDEN(other);
            r[p] = pairs_of(one, other);
          }
        }
        NAME(transpose)(r, turned + ((size_t)(y * s->steps + step) * tiles + i) * 512);
      }
    if (dbias) STOREF(dbias + VL * i, sum);
  }
}

/* Zeros behind the pairs of an input, at `end`, where products are taken that have no gradients any more. */
TARGET static void NAME(clear_end)(const trunk_layer *l, const NAME(sums) *s, T *end) {
  memset(end, 0, (size_t)(2 * s->pairs * s->steps - s->positions + 1) * l->s * l->c * PAIR * sizeof(T));
}

#define WEIGHT_TILES_(R, C)                                                                                           \
  {                                                                                                                   \
    float *to = dweight + (size_t)n * all + ky * row + j, *to1 = to + VL * all;                                       \
    const T *at = in + ((size_t)ky * width * l->c + j) * PAIR, *g = turned + (size_t)n / VL * 512;                    \
    _tile_loadd(0, to, all * 4);                                                                                      \
    if (C == 2) _tile_loadd(1, to + piece, all * 4);                                                                  \
    if (R == 2) _tile_loadd(2, to1, all * 4);                                                                         \
    if (R == 2 && C == 2) _tile_loadd(3, to1 + piece, all * 4);                                                       \
    for (int y = 0; y < s->rows; y++)                                                                                 \
      for (int step = 0; step < s->steps; step++, g += tiles * 512)                                                   \
        NAME(multiply)(R, C, g, g + 512, 64, at + y * down + step * across * s->pairs,                                \
                       at + y * down + step * across * s->pairs + piece * PAIR, across * sizeof(T));                  \
    _tile_stored(0, to, all * 4);                                                                                     \
    if (C == 2) _tile_stored(1, to + piece, all * 4);                                                                 \
    if (R == 2) _tile_stored(2, to1, all * 4);                                                                        \
    if (R == 2 && C == 2) _tile_stored(3, to1 + piece, all * 4);                                                      \
  }

/* in: pairs of positions `s` apart, in rows of `width`; dweight: [n][k k c]. */
TARGET static void NAME(weight_layer)(const trunk_layer *l, const NAME(sums) *s, const T *in, size_t width, const T *turned,
                                      float *dweight) {
  const int row = l->k * l->c, piece = NAME(piece)(row, 16, 1);
  const size_t all = (size_t)l->k * row, tiles = l->n / VL;
  const size_t across = (size_t)PAIR * l->s * l->c * PAIR, down = (size_t)l->s * width * l->c * PAIR;
  NAME(shape_tiles)(16, s->pairs, piece);
  for (int n = 0; n < l->n;) {
    const int both = l->n - n >= 2 * VL;
    for (int ky = 0; ky < l->k; ky++)
      for (int j = 0; j < row;) {
        const int two = row - j >= 2 * piece;
        if (both && two)
          WEIGHT_TILES_(2, 2)
        else if (both)
          WEIGHT_TILES_(2, 1)
        else if (two)
          WEIGHT_TILES_(1, 2)
        else
          WEIGHT_TILES_(1, 1)
        j += two ? 2 * piece : piece;
      }
    n += both ? 2 * VL : VL;
  }
}

/* --- gradients of the input ------------------------------------------------------------------------------- */

#define INPUT_TILES_(R, C)                                                                                            \
  {                                                                                                                   \
    NAME(clear_tiles)();                                                                                              \
    for (int ky = y % l->s; ky < l->k && ky <= y; ky += l->s) {                                                       \
      const int oy = (y - ky) / l->s;                                                                                 \
      if (oy >= l->ho) continue;                                                                                      \
      for (int kx = first; kx < l->k; kx += l->s) {                                                                   \
        const T *g = grad + (oy * padded + LEFT(l) - kx / l->s) * l->n;                                               \
        const T *w = weight + ((size_t)(ky * l->k + kx) * l->n * l->c) + (size_t)c * PAIR;                            \
        for (int j = 0; j < l->n; j += piece, w += (size_t)piece * l->c)                                              \
          NAME(multiply)(R, C, g + (size_t)p * l->n + j, g + (size_t)p1 * l->n + j, l->n * sizeof(T), w,              \
                         w + VL * PAIR, l->c * PAIR * sizeof(T));                                                     \
      }                                                                                                               \
    }                                                                                                                 \
    NAME(store_tiles)(R, C, sums);                                                                                    \
    for (int i = 0; i < R; i++)                                                                                       \
      for (int b = 0; b < C; b++)                                                                                     \
        for (int r = 0; r < tile; r++)                                                                                \
          STORE(to + (size_t)((i ? p1 : p) + r) * l->s * l->c + c + VL * b, LOADF(sums + 512 * i + 256 * b + 16 * r)); \
  }

/* grad: [ho][padded_row][n] elements; out: [h][w][c]. */
TARGET static void NAME(input_layer)(const trunk_layer *l, const T *grad, const T *weight, T *out) {
  const int padded = padded_row(l), piece = NAME(piece)(l->n, 32, PAIR);
  float sums[1024] __attribute__((aligned(64)));
  for (int first = 0; first < l->s && first < l->w; first++) {
    const int count = (l->w - 1 - first) / l->s + 1, tile = count < 16 ? count : 16;
    NAME(shape_tiles)(tile, piece / PAIR, 16);
    for (int y = 0; y < l->h; y++) {
      T *to = out + ((size_t)y * l->w + first) * l->c;
      for (int next = 0; next < count; next += 2 * tile) {
        const int p = next + tile <= count ? next : count - tile;
        const int p1 = next + 2 * tile <= count ? next + tile : count - tile, two = next + tile < count;
        for (int c = 0; c < l->c;) {
          const int both = l->c - c >= 2 * VL;
          if (two && both)
            INPUT_TILES_(2, 2)
          else if (two)
            INPUT_TILES_(2, 1)
          else if (both)
            INPUT_TILES_(1, 2)
          else
            INPUT_TILES_(1, 1)
          c += both ? 2 * VL : VL;
        }
      }
    }
  }
}

/* Let go of the tiles, which every switch of threads would have to save. */
TARGET static void NAME(leave)(void) { _tile_release(); }

#undef FORWARD_TILES_
#undef WEIGHT_TILES_
#undef INPUT_TILES_
