/* Kernels of one instruction set for trunks with residual blocks; a part of trunk_kernels.h.
 *
 * x passes through the layers (see trunk_role). Its array has a rim of zeros, which is written once, before all of this:
 * only what lies inside changes. A layer leaves two arrays of this shape: x itself, where a block will add to it, and
 * what the next layer reads, that is relu(x) before a block. The ReLU's gradient needs only the latter.
 */

/* Elements from one row to the next, and from the start to the first position inside the rim. */
#define RIM_ROW(w, n) ((size_t)((w) + 2) * (n))
#define INSIDE(w, n) (RIM_ROW(w, n) + (n))

/* Bytes of an observation -> [h][w][c] elements, around which is the rim of the first layer, if it has one. */
TARGET static void NAME(image)(const trunk_layer *l, const uint8_t *bytes, int planes, T *x) {
  const size_t h = l->h - 2 * l->pad, w = l->w - 2 * l->pad;
  if (!l->pad) NAME(interleave)(bytes, x, planes, l->c, h * w, h * w);
  for (size_t y = 0; l->pad && y < h; y++)
    NAME(interleave)(bytes + y * w, x + ((y + 1) * l->w + 1) * l->c, planes, l->c, h * w, w);
}

/* Integers in the order of the numbers: bits are a sign and a size; zeros of both signs are equal. And back again. */
TARGET static inline __attribute__((always_inline)) E NAME(order)(E e) {
  const E sign = e >> (8 * (int)sizeof(T) - 1);
  return (e ^ (sign & LARGEST)) - sign;
}

/* The largest of each 3x3 positions, 2 apart: [h][w][n], rows `in_row` apart -> [(h + 1) / 2][(w + 1) / 2][n], rows
 * `out_row` apart, into `raw` and, as it is or by a ReLU, into `out`; which of the 9 it is, of equal ones the first, row
 * by row, into `won`. `raw` and `won` may be NULL. */
TARGET static void NAME(pool3)(const T *in, size_t in_row, int h, int w, int n, T *raw, T *out, size_t out_row, int relu,
                               T *won) {
  for (int y = 0; y < (h + 1) / 2; y++)
    for (int x = 0; x < (w + 1) / 2; x++) {
      const int top = y ? -1 : 0, bottom = 2 * y + 1 < h ? 1 : 0, left = x ? -1 : 0, right = 2 * x + 1 < w ? 1 : 0;
      for (int i = 0; i < n; i += VL) {
        const T *middle = in + 2 * y * in_row + (size_t)2 * x * n + i;
        E best = {0}, first = NAME(order)(NAME(load_bits)(middle)), which = {0};
        for (int dy = top; !won && dy <= bottom; dy++)
          for (int dx = left; dx <= right; dx++)
            first = NAME(larger)(first, NAME(order)(NAME(load_bits)(middle + dy * (ptrdiff_t)in_row + dx * (ptrdiff_t)n)));
        if (!won) best = NAME(order)(first);
        for (int dy = top; won && dy <= bottom; dy++)
          for (int dx = left; dx <= right; dx++) {
            const E e = NAME(load_bits)(middle + dy * (ptrdiff_t)in_row + dx * (ptrdiff_t)n), key = NAME(order)(e);
            const E more = dy == top && dx == left ? ~(E){0} : (E)(key > first);
            const E place = (E){0} + (INT)(3 * dy + dx + 4);
            best = (e & more) | (best & ~more);
            first = (key & more) | (first & ~more);
            which = (place & more) | (which & ~more);
          }
        const size_t to = y * out_row + (size_t)x * n + i;
        if (raw) NAME(store_bits)(raw + to, best);
        NAME(store_bits)(out + to, relu ? best & (E)(best > 0) : best);
        if (won) NAME(store_bits)(won + ((size_t)y * ((w + 1) / 2) + x) * n + i, which);
      }
    }
}

/* The sum of the gradients of windows (y, x) and, with `down` and `right`, of those below and beside it, where they were
 * won by one position: in the first window it is `place`, in the one below 6 less, in the one beside 2 less. */
TARGET static inline __attribute__((always_inline)) V NAME(of_windows)(const T *won, const T *grad, size_t won_row,
                                                                       size_t grad_row, size_t n, int place, int down,
                                                                       int right) {
  V sum = ZERO;
  UNROLL(2) for (int y = 0; y <= down; y++) {
    UNROLL(2) for (int x = 0; x <= right; x++) {
      const E here = (E){0} + (INT)(place - 6 * y - 2 * x);
      sum += WIDEN(NAME(load_bits)(grad + y * grad_row + x * n) & (E)(NAME(load_bits)(won + y * won_row + x * n) == here));
    }
  }
  return sum;
}

/* Gradients of that pool: [(h + 1) / 2][(w + 1) / 2][n], rows `grad_row` apart -> [h][w][n], rows `out_row` apart. Each
 * goes to the position that won. */
TARGET static void NAME(unpool3)(const T *won, const T *grad, size_t grad_row, int h, int w, size_t n, T *out,
                                 size_t out_row) {
  const size_t won_row = (w + 1) / 2 * n;
  for (size_t i = 0; i < n; i += VL)
    for (int y = 0; y < h; y++) {
      const T *g = grad + y / 2 * grad_row + i, *m = won + y / 2 * won_row + i;
      T *to = out + y * out_row + i;
      const int row = y % 2 ? 6 : 3, down = y % 2 && y + 1 < h;
      for (int x = 0; x < w; x += 2, g += n, m += n, to += 2 * n) {
        const int beside = x + 2 < w;
        if (down) {
          STORE(to, NAME(of_windows)(m, g, won_row, grad_row, n, row + 1, 1, 0));
          if (beside)
            STORE(to + n, NAME(of_windows)(m, g, won_row, grad_row, n, row + 2, 1, 1));
          else if (x + 1 < w)
            STORE(to + n, NAME(of_windows)(m, g, won_row, grad_row, n, row + 2, 1, 0));
        } else {
          STORE(to, NAME(of_windows)(m, g, won_row, grad_row, n, row + 1, 0, 0));
          if (beside)
            STORE(to + n, NAME(of_windows)(m, g, won_row, grad_row, n, row + 2, 0, 1));
          else if (x + 1 < w)
            STORE(to + n, NAME(of_windows)(m, g, won_row, grad_row, n, row + 2, 0, 0));
        }
      }
    }
}

/* Ask for elements that are needed soon: the multiplications of a layer take as long as their way from memory. */
TARGET static void NAME(fetch)(const T *p, size_t count) {
  for (size_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(p + i, 0, 2);
}

/* The areas behind layer j: for what the next one reads, by turns, or for gradients; and for x. */
#define AREA(j, which) (base + job->layer[j].areas + (which) * (job->layer[j].left + TRUNK_SLACK))

TARGET static void NAME(forward_blocks)(void *argument) {
  trunk_job *job = argument;
  const trunk_layer *first = &job->layer[0];
  const size_t area = (size_t)(first->h - 2 * first->pad) * (first->w - 2 * first->pad);
  T *image = (T *)(job->scratch + job->scratch_bytes * __atomic_fetch_add(&job->worker, 1, __ATOMIC_RELAXED));
  T *base = image + (size_t)first->h * first->w * first->c + TRUNK_SLACK;
  for (int i; (i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->count;) {
    const uint8_t *bytes = sample_bytes(job, i, area);
    NAME(image)(first, bytes, job->planes, image);
    for (int k = 0; k < job->nets; k++) {
      const trunk_net *net = &job->net[k];
      if (i < net->from || i >= net->to) continue;
      const size_t at = i - net->from;
      const int keep = (int)at < net->keep;
      const T *in = image;
      for (int j = 0; j < job->layers; j++) {
        const trunk_layer *l = &job->layer[j];
        const int ends = j + 1 == job->layers, block = !ends && l[1].role == TRUNK_FIRST;
        const size_t inside = INSIDE(l->lw, l->n), row = RIM_ROW(l->lw, l->n);
        T *out = keep && !ends ? (T *)net->out[j] + at * net->apart : AREA(j, j % 2), *x = AREA(j, 2) + inside;
        NAME(ends) e = {.add = l->role == TRUNK_SECOND ? x : NULL, .raw = block ? x : NULL, .out = out + inside,
                        .relu = block || ends || l->role == TRUNK_FIRST, .row = row};
        if (l->role == TRUNK_POOL) {
          const size_t all = INSIDE(l->wo, l->n);
          e = (NAME(ends)){.out = base + l->all + all, .row = RIM_ROW(l->wo, l->n)};
        }
        NAME(forward_layer)(l, in, net->weight[j], net->bias[j], &e);
        if (l->role == TRUNK_POOL)
          NAME(pool3)(e.out, e.row, l->ho, l->wo, l->n, block ? x : NULL, out + inside, row, block,
                      keep ? (T *)net->won[j] + at * net->apart : NULL);
        in = out;
      }
      const int end = job->layers - 1, ph = job->pool ? 2 : 1;
      const trunk_layer *l = &job->layer[end];
      const size_t fw = (l->lw + ph - 1) / ph * l->n, size = (l->lh + ph - 1) / ph * fw, row = RIM_ROW(l->lw, l->n);
      T *features = (T *)net->features + at * size;
      in += INSIDE(l->lw, l->n);
      if (job->pool)
        NAME(pool3)(in, row, l->lh, l->lw, l->n, NULL, features, fw, 0, keep ? (T *)net->won[end] + at * net->apart : NULL);
      for (int y = 0; !job->pool && y < l->lh; y++) memcpy(features + y * fw, in + y * row, fw * sizeof(T));
    }
  }
  NAME(leave)();
}

TARGET static void NAME(backward_blocks)(void *argument) {
  trunk_job *job = argument;
  const trunk_net *net = &job->net[0];
  const trunk_layer *first = &job->layer[0];
  const size_t area = (size_t)(first->h - 2 * first->pad) * (first->w - 2 * first->pad);
  for (int part; (part = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->parts;) {
    T *image = (T *)(job->scratch + job->scratch_bytes * part);
    T *base = image + (size_t)first->h * first->w * first->c + TRUNK_SLACK;
    clear_sums(job, part);
    const long begin = (long)job->count * part / job->parts, end = (long)job->count * (part + 1) / job->parts;
    for (long i = begin; i < end; i++) {
      const uint8_t *bytes = sample_bytes(job, i, area);
      NAME(image)(first, bytes, job->planes, image);
      const int last = job->layers - 1, ph = job->pool ? 2 : 1;
      const trunk_layer *l = &job->layer[last];
      const size_t fw = (l->lw + ph - 1) / ph * l->n, size = (l->lh + ph - 1) / ph * fw;
      const T *grad = (const T *)job->grad + i * size, *features = (const T *)net->features + i * size;
      /* The last ReLU's gradient, whether before the pool or not: where no feature is positive, nothing passes. */
      const size_t inside = INSIDE(l->lw, l->n), row = RIM_ROW(l->lw, l->n);
      T *whole = AREA(last, 0) + inside, *passed = job->pool ? base + job->paired : whole;
      for (size_t y = 0; y < size / fw; y++)
        for (size_t x = 0; x < fw; x += VL) {
          const size_t at = y * fw + x;
          NAME(store_bits)(passed + (job->pool ? at : y * row + x),
                           NAME(load_bits)(grad + at) & (E)(NAME(load_bits)(features + at) > 0));
        }
      if (job->pool)
        NAME(unpool3)((const T *)net->won[last] + i * net->apart, passed, fw, l->lh, l->lw, l->n, whole, row);
      /* In area 0 are the gradients of x, in area 1, inside a block, those of y. */
      for (int j = last; j >= 0; j--) {
        l = &job->layer[j];
        const T *g = AREA(j, l->role == TRUNK_FIRST);
        if (l->role == TRUNK_POOL) {
          T *all = base + l->all;
          NAME(unpool3)((const T *)net->won[j] + i * net->apart, g + INSIDE(l->lw, l->n), RIM_ROW(l->lw, l->n), l->ho,
                        l->wo, l->n, all + INSIDE(l->wo, l->n), RIM_ROW(l->wo, l->n));
          g = all;
        }
        T *pairs = base + job->paired;
        float *dweight = job->dweight[j] + (size_t)part * l->k * l->k * l->c * l->n, *dbias = job->dbias[j] + (size_t)part * l->n;
        const T *in = j ? (const T *)net->out[j - 1] + i * net->apart : image;
#if PAIR == 2
        /* For tiles all rows are one, where the gradients' rows and the input's are of one length. */
        const int linear = TILED && l->s == 1 && l->w == l->wo + 2;
#endif
#if TILED
        const NAME(sums) sums = NAME(sums_of)(l, linear, l->w);
        NAME(turn)(l, &sums, g + INSIDE(l->wo, l->n), RIM_ROW(l->wo, l->n), pairs, dbias);
#else
        NAME(pair_gradients)(l, g + INSIDE(l->wo, l->n), RIM_ROW(l->wo, l->n), pairs, dbias);
#endif
        const T *paired = in;
#if PAIR == 2
        const size_t rows = linear ? 1 : l->h, row = (size_t)l->h * l->w * l->c / rows;
        T *to = pairs + turned_size(l, l->wo + 2) + TRUNK_SLACK;
        for (size_t y = 0; y < rows; y++) NAME(pair_row)(in + y * row, to + 2 * y * row, row, (size_t)l->s * l->c);
        paired = to;
#endif
        if (j > 1) NAME(fetch)((const T *)net->out[j - 2] + i * net->apart, l[-2].left);
        if (j == 1 && i + 1 < end)
          NAME(fetch)((const T *)net->out[last - 1] + (i + 1) * net->apart, job->layer[last - 1].left);
#if TILED
        NAME(clear_end)(l, &sums, to + 2 * rows * row);
        NAME(weight_layer)(l, &sums, paired, l->w, pairs, dweight);
#else
        NAME(weight_layer)(l, paired, pairs, dweight);
#endif
        if (!j) break;
        /* A convolution of the gradients, in their rim, with the kernel turned round. */
        const trunk_layer turned = {.c = l->n, .n = l->c, .k = 3, .s = 1, .h = l->ho + 2, .w = l->wo + 2, .ho = l->ho,
                                    .wo = l->wo};
        const size_t inside = INSIDE(l->wo, l->c);
        T *x = AREA(j - 1, 0) + inside, *y = AREA(j - 1, 1) + inside;
        const int block = l->role == TRUNK_FIRST || l->role == TRUNK_SECOND;
        const NAME(ends) e = {.mask = block ? in + inside : NULL, .add = l->role == TRUNK_FIRST ? x : NULL,
                              .out = l->role == TRUNK_SECOND ? y : x, .row = RIM_ROW(l->wo, l->c)};
        NAME(forward_layer)(&turned, g, job->back[j], job->zeros, &e);
      }
    }
  }
  NAME(leave)();
}

#undef AREA
#undef RIM_ROW
#undef INSIDE
