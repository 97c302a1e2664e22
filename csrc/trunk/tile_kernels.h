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

/* Rows of a tile, where so many are shared by as few as can be. */
static inline int NAME(tile_of)(int count) {
  const int tiles = (count + 15) / 16;
  return (count + tiles - 1) / tiles;
}

/* Add one product to each of the sums, rows at a[0], a[1], ... by columns at `b` and `b1`; strides in bytes. A sum waits 52
 * cycles for the one before: four in turns keep the processor busy, of two by two tiles, or of four by one. */
TARGET static inline __attribute__((always_inline)) void NAME(multiply)(int rows, int columns, const T *const *a, size_t a_at,
                                                                        size_t a_stride, const T *b, const T *b1,
                                                                        size_t b_stride) {
  _tile_loadd(6, b, b_stride);
  _tile_loadd(4, a[0] + a_at, a_stride);
  _tile_dpbf16ps(0, 4, 6);
  if (columns == 2) {
    _tile_loadd(7, b1, b_stride);
    _tile_dpbf16ps(1, 4, 7);
  }
  if (rows >= 2) {
    _tile_loadd(5, a[1] + a_at, a_stride);
    if (columns == 2) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    } else {
      _tile_dpbf16ps(1, 5, 6);
    }
  }
  if (rows >= 3) {
    _tile_loadd(4, a[2] + a_at, a_stride);
    _tile_dpbf16ps(2, 4, 6);
  }
  if (rows >= 4) {
    _tile_loadd(5, a[3] + a_at, a_stride);
    _tile_dpbf16ps(3, 5, 6);
  }
}

TARGET static inline __attribute__((always_inline)) void NAME(clear_tiles)(void) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

/* The sums, 16 rows of 16 floats each; stores only what there is. */
TARGET static inline __attribute__((always_inline)) void NAME(store_tiles)(int count, float *sums) {
  _tile_stored(0, sums, 64);
  if (count >= 2) _tile_stored(1, sums + 256, 64);
  if (count >= 3) _tile_stored(2, sums + 512, 64);
  if (count >= 4) _tile_stored(3, sums + 768, 64);
}

/* Let DO(R, C) work on `rows` tiles of rows, four at most and two where `both` tiles of columns are there. */
#define CHOOSE(rows, both, DO) \
  switch (both ? 4 + rows : rows) { \
    case 1: DO(1, 1) break; \
    case 2: DO(2, 1) break; \
    case 3: DO(3, 1) break; \
    case 4: DO(4, 1) break; \
    case 5: DO(1, 2) break; \
    default: DO(2, 2) \
  }

/* What becomes of a layer's sums; see `ends`. */
enum ends_kind {
  ENDS_PLAIN,
  ENDS_RELU,
  ENDS_RAW_RELU,
  ENDS_ADD_RELU,
  ENDS_ADD_RAW_RELU,
  ENDS_MASK,
  ENDS_MASK_ADD,
  ENDS_OTHERS
};

static inline enum ends_kind NAME(kind_of)(const NAME(ends) *e) {
  if (e->mask) return e->raw || e->relu ? ENDS_OTHERS : e->add ? ENDS_MASK_ADD : ENDS_MASK;
  if (!e->relu) return e->add || e->raw ? ENDS_OTHERS : ENDS_PLAIN;
  return e->add ? e->raw ? ENDS_ADD_RAW_RELU : ENDS_ADD_RELU : e->raw ? ENDS_RAW_RELU : ENDS_RELU;
}

/* Rows of a tile of sums, of positions one behind the other from x on, in rows of `width`: those from `wo` on become zeros. */
TARGET static inline __attribute__((always_inline)) void NAME(finish_rows)(const float *sums, const float *bias, int count, int x,
                                                                           int width, int wo, size_t filters, int mask, int add,
                                                                           int raw, int relu, const NAME(ends) *e, size_t to) {
  const V b = LOADF(bias);
  for (int r = 0; r < count; r++, to += filters) {
    V v = LOADF(sums + 16 * r) + b;
    if (mask) v = WHERE_POSITIVE(NAME(load_bits)(e->mask + to), v);
    if (add) v += WIDEN(NAME(load_bits)(e->add + to));
    v = _mm512_maskz_mov_ps(x < wo ? 0xffff : 0, v);
    if (raw) STORE(e->raw + to, v);
    if (relu) v = RELU(v);
    STORE(e->out + to, v);
    x = x + 1 < width ? x + 1 : 0;
  }
}

/* The rows from `from` on of a tile of sums whose first position is `at`, in rows of `width` positions, of which the output
 * has the first `wo`. Where it has room for all of them, `whole`, they are one run, and zeros between its rows; otherwise
 * each run in a row is one. */
TARGET static inline __attribute__((always_inline)) void NAME(finish_tile)(const trunk_layer *l, const float *sums,
                                                                           const float *bias, int from, int to, int at,
                                                                           int width, int y, int n, int whole, enum ends_kind kind,
                                                                           const NAME(ends) *e) {
  int x = at + from;
  y += x / width;
  x %= width;
  for (int r = from; r < to;) {
    const int left = whole ? to - r : l->wo - x, run = left < to - r ? left : to - r;
    const size_t place = y * e->row + (size_t)x * l->n + n;
#define FINISH(...) NAME(finish_rows)(sums + 16 * r, bias + n, run, x, width, l->wo, l->n, __VA_ARGS__, e, place); break;
    if (run > 0) switch (kind) {
      case ENDS_PLAIN: FINISH(0, 0, 0, 0)
      case ENDS_RELU: FINISH(0, 0, 0, 1)
      case ENDS_RAW_RELU: FINISH(0, 0, 1, 1)
      case ENDS_ADD_RELU: FINISH(0, 1, 0, 1)
      case ENDS_ADD_RAW_RELU: FINISH(0, 1, 1, 1)
      case ENDS_MASK: FINISH(1, 0, 0, 0)
      case ENDS_MASK_ADD: FINISH(1, 1, 0, 0)
      default: FINISH(e->mask != NULL, e->add != NULL, e->raw != NULL, e->relu)
    }
#undef FINISH
    if (whole) break;
    if (run > 0) r += run, x += run;
    if (x >= l->wo) r += width - x, x = 0, y++; /* past the positions between two rows */
  }
}

/* Some tiles of positions, from number t on, by one or two of filters. */
#define FORWARD_SUMS(R, C)                                                                                            \
  {                                                                                                                   \
    NAME(clear_tiles)();                                                                                              \
    const T *w = weight + (size_t)n * PAIR;                                                                           \
    for (int ky = 0; ky < l->k; ky++)                                                                                 \
      for (int j = 0; j < row; j += piece, w += piece * filters)                                                      \
        NAME(multiply)(R, C, at, ky * down + j, across * sizeof(T), w, w + VL * PAIR, filters * PAIR * sizeof(T));    \
    NAME(store_tiles)(R * C, sums);                                                                                   \
    for (int i = 0; i < R * C; i++)                                                                                   \
      NAME(finish_tile)(l, sums + 256 * i, bias, first[i / C], tile, place[i / C], width, line[i / C],                \
                        n + VL * (i % C), whole, kind, e);                                                            \
  }

/* One layer of one sample. With a stride of 1 all rows are one: what lies between them is worked out and dropped. */
TARGET static void NAME(forward_layer)(const trunk_layer *l, const T *in, const T *weight, const float *bias,
                                       const NAME(ends) *e) {
  const int linear = l->s == 1, width = linear ? l->w : l->wo, count = linear ? (l->ho - 1) * width + l->wo : l->wo;
  const int row = l->k * l->c, piece = NAME(piece)(row, 32, PAIR), tile = NAME(tile_of)(count);
  const int in_row = (count + tile - 1) / tile, tiles = in_row * (linear ? 1 : l->ho);
  const int whole = e->row == (size_t)width * l->n;
  const enum ends_kind kind = NAME(kind_of)(e);
  const size_t across = (size_t)l->s * l->c, down = (size_t)l->w * l->c, filters = l->n;
  float sums[1024] __attribute__((aligned(64)));
  NAME(shape_tiles)(tile, piece / PAIR, 16);
  for (int n = 0; n < (int)filters;) {
    const int both = (int)filters - n >= 2 * VL, most = both ? 2 : 4;
    for (int t = 0, y = 0, next = 0; t < tiles; t += most) {
      const int some = tiles - t < most ? tiles - t : most;
      const T *at[4];
      int first[4], place[4], line[4];
      for (int i = 0; i < some; i++) {
        line[i] = y;
        place[i] = next + tile <= count ? next : count - tile; /* the last of a row ends with it, whatever it repeats */
        first[i] = next - place[i];
        at[i] = in + y * l->s * down + place[i] * across;
        next += tile;
        if (next >= count) next = 0, y++;
      }
      CHOOSE(some, both, FORWARD_SUMS)
    }
    n += both ? 2 * VL : VL;
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

/* Add one product to each of the sums: rows of one or two tiles of filters, at `g`, by columns at `b[0]`, `b[1]`, ... */
TARGET static inline __attribute__((always_inline)) void NAME(multiply_weights)(int columns, int rows, const T *g,
                                                                                const T *const *b, size_t b_at,
                                                                                size_t b_stride) {
  _tile_loadd(4, g, 64);
  _tile_loadd(6, b[0] + b_at, b_stride);
  _tile_dpbf16ps(0, 4, 6);
  if (rows == 2) {
    _tile_loadd(5, g + 512, 64);
    _tile_dpbf16ps(1, 5, 6);
  }
  if (columns >= 2) {
    _tile_loadd(7, b[1] + b_at, b_stride);
    if (rows == 2) {
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    } else {
      _tile_dpbf16ps(1, 4, 7);
    }
  }
  if (columns >= 3) {
    _tile_loadd(6, b[2] + b_at, b_stride);
    _tile_dpbf16ps(2, 4, 6);
  }
  if (columns >= 4) {
    _tile_loadd(7, b[3] + b_at, b_stride);
    _tile_dpbf16ps(3, 4, 7);
  }
}

/* Some tiles of the weights of one or two tiles of filters. */
#define WEIGHT_SUMS(C, R)                                                                                             \
  {                                                                                                                   \
    float *to[4];                                                                                                     \
    for (int i = 0; i < R * C; i++) to[i] = of_filter + weight[i / R] + (i % R) * VL * all;                            \
    _tile_loadd(0, to[0], all * sizeof(float));                                                                       \
    if (R * C >= 2) _tile_loadd(1, to[1], all * sizeof(float));                                                       \
    if (R * C >= 3) _tile_loadd(2, to[2], all * sizeof(float));                                                       \
    if (R * C >= 4) _tile_loadd(3, to[3], all * sizeof(float));                                                       \
    const T *g = turned + (size_t)n / VL * 512;                                                                       \
    for (int y = 0; y < s->rows; y++)                                                                                 \
      for (int step = 0; step < s->steps; step++, g += tiles * 512)                                                   \
        NAME(multiply_weights)(C, R, g, at, y * down + step * across * s->pairs, across * sizeof(T));                 \
    _tile_stored(0, to[0], all * sizeof(float));                                                                      \
    if (R * C >= 2) _tile_stored(1, to[1], all * sizeof(float));                                                      \
    if (R * C >= 3) _tile_stored(2, to[2], all * sizeof(float));                                                      \
    if (R * C >= 4) _tile_stored(3, to[3], all * sizeof(float));                                                      \
  }

/* in: pairs of positions `s` apart, in rows of `width`; dweight: [n][k k c]. */
TARGET static void NAME(weight_layer)(const trunk_layer *l, const NAME(sums) *s, const T *in, size_t width, const T *turned,
                                      float *dweight) {
  const int row = l->k * l->c, piece = NAME(piece)(row, 16, 1), in_row = row / piece, pieces = l->k * in_row;
  const size_t all = (size_t)l->k * row, tiles = l->n / VL;
  const size_t across = (size_t)PAIR * l->s * l->c * PAIR, down = (size_t)l->s * width * l->c * PAIR;
  NAME(shape_tiles)(16, s->pairs, piece);
  for (int n = 0; n < l->n;) {
    const int both = l->n - n >= 2 * VL, most = both ? 2 : 4;
    float *of_filter = dweight + n * all;
    for (int t = 0; t < pieces; t += most) {
      const int some = pieces - t < most ? pieces - t : most;
      const T *at[4];
      size_t weight[4];
      for (int i = 0; i < some; i++) {
        const size_t ky = (t + i) / in_row, j = (t + i) % in_row * piece;
        at[i] = in + (ky * width * l->c + j) * PAIR;
        weight[i] = ky * row + j;
      }
      CHOOSE(some, both, WEIGHT_SUMS)
    }
    n += both ? 2 * VL : VL;
  }
}

/* --- gradients of the input ------------------------------------------------------------------------------- */

#define INPUT_SUMS(R, C)                                                                                              \
  {                                                                                                                   \
    NAME(clear_tiles)();                                                                                              \
    for (int ky = y % l->s; ky < l->k && ky <= y; ky += l->s) {                                                       \
      const int oy = (y - ky) / l->s;                                                                                 \
      if (oy >= l->ho) continue;                                                                                      \
      for (int kx = first; kx < l->k; kx += l->s) {                                                                   \
        const T *w = weight + ((size_t)(ky * l->k + kx) * l->n * l->c) + (size_t)c * PAIR;                            \
        for (int j = 0; j < l->n; j += piece, w += (size_t)piece * l->c)                                              \
          NAME(multiply)(R, C, at, (size_t)(oy * padded + LEFT(l) - kx / l->s) * l->n + j, l->n * sizeof(T), w,       \
                         w + VL * PAIR, l->c * PAIR * sizeof(T));                                                     \
      }                                                                                                               \
    }                                                                                                                 \
    NAME(store_tiles)(R * C, sums);                                                                                   \
    for (int i = 0; i < R * C; i++)                                                                                   \
      for (int r = 0; r < tile; r++)                                                                                  \
        STORE(to + (size_t)(place[i / C] + r) * l->s * l->c + c + VL * (i % C), LOADF(sums + 256 * i + 16 * r));       \
  }

/* grad: [ho][padded_row][n] elements; out: [h][w][c]. */
TARGET static void NAME(input_layer)(const trunk_layer *l, const T *grad, const T *weight, T *out) {
  const int padded = padded_row(l), piece = NAME(piece)(l->n, 32, PAIR);
  float sums[1024] __attribute__((aligned(64)));
  for (int first = 0; first < l->s && first < l->w; first++) {
    const int count = (l->w - 1 - first) / l->s + 1, tile = NAME(tile_of)(count), tiles = (count + tile - 1) / tile;
    NAME(shape_tiles)(tile, piece / PAIR, 16);
    for (int y = 0; y < l->h; y++) {
      T *to = out + ((size_t)y * l->w + first) * l->c;
      for (int c = 0; c < l->c;) {
        const int both = l->c - c >= 2 * VL, most = both ? 2 : 4;
        for (int t = 0; t < tiles; t += most) {
          const int some = tiles - t < most ? tiles - t : most;
          const T *at[4];
          int place[4];
          for (int i = 0; i < some; i++) {
            place[i] = (t + i + 1) * tile <= count ? (t + i) * tile : count - tile;
            at[i] = grad + (size_t)place[i] * l->n;
          }
          CHOOSE(some, both, INPUT_SUMS)
        }
        c += both ? 2 * VL : VL;
      }
    }
  }
}

/* Let go of the tiles, which every switch of threads would have to save. */
TARGET static void NAME(leave)(void) { _tile_release(); }

#undef CHOOSE
#undef FORWARD_SUMS
#undef WEIGHT_SUMS
#undef INPUT_SUMS
