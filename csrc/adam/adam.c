/* The two passes, compiled for each instruction set: the compiler makes vectors of the plain loops. */
#include "adam.h"

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Two times eight sums side by side, whatever the instruction set: the result is always the same. */
enum { LANES = 8 };
typedef float lanes __attribute__((vector_size(LANES * 4)));
typedef uint32_t bits_of_lanes __attribute__((vector_size(LANES * 4)));
typedef uint16_t halves __attribute__((vector_size(LANES * 2)));

INLINE lanes load_bfloat16(const uint16_t *p) {
  halves half;
  memcpy(&half, p, sizeof half);
  return (lanes)(__builtin_convertvector(half, bits_of_lanes) << 16);
}

INLINE lanes load_float(const float *p) {
  lanes f;
  memcpy(&f, p, sizeof f);
  return f;
}

#define SQUARES(LOAD, NUMBER)                             \
  for (; i + 2 * LANES <= to; i += 2 * LANES) {           \
    const lanes a = LOAD(g + i), b = LOAD(g + i + LANES); \
    one += a * a;                                         \
    other += b * b;                                       \
  }                                                       \
  for (; i < to; i++) rest += NUMBER(g[i]) * NUMBER(g[i]);

INLINE double squares_of(const void *grad, int bfloat16, size_t from, size_t to) {
  lanes one = {0}, other = {0};
  float rest = 0;
  size_t i = from;
  if (bfloat16) {
    const uint16_t *g = grad;
    SQUARES(load_bfloat16, float_of_bfloat16)
  } else {
    const float *g = grad;
    SQUARES(load_float, )
  }
  double all = rest;
  for (int k = 0; k < LANES; k++) all += (double)one[k] + other[k];
  return all;
}

/* Kingma & Ba 2015, algorithm 1, in the order of its section 2's last paragraph. */
#define STEP_LOOP(GRAD, COPY)                               \
  for (size_t i = 0; i < count; i++) {                      \
    const float g = (GRAD)*scale;                           \
    const float m = mean[i] + (g - mean[i]) * less1;        \
    const float v = square[i] * beta2 + g * g * less2;      \
    const float p = value[i] - rate * m / (sqrtf(v) + eps); \
    mean[i] = m;                                            \
    square[i] = v;                                          \
    value[i] = p;                                           \
    COPY;                                                   \
  }

INLINE void step_block(const adam_job *job, const adam_piece *piece, size_t from, size_t to) {
  const size_t count = to - from;
  const float scale = job->scale, rate = job->rate, eps = job->eps, beta2 = job->beta2, less1 = job->less1,
              less2 = job->less2;
  float *restrict value = job->value + piece->start + from, *restrict mean = job->mean + piece->start + from,
                  *restrict square = job->square + piece->start + from;
  uint16_t *restrict copy = piece->copy ? piece->copy + from : NULL;
  if (piece->bfloat16) {
    const uint16_t *restrict grad = (const uint16_t *)piece->grad + from;
    if (copy) {
      STEP_LOOP(float_of_bfloat16(grad[i]), copy[i] = bfloat16_of_float(p))
    } else {
      STEP_LOOP(float_of_bfloat16(grad[i]), (void)0)
    }
  } else {
    const float *restrict grad = (const float *)piece->grad + from;
    if (copy) {
      STEP_LOOP(grad[i], copy[i] = bfloat16_of_float(p))
    } else {
      STEP_LOOP(grad[i], (void)0)
    }
  }
}

/* Take blocks until none is left; a block is numbered over all pieces. */
#define EACH_BLOCK(DO)                                                                  \
  adam_job *job = argument;                                                             \
  int piece = 0;                                                                        \
  long before = 0; /* blocks of the pieces before this one */                           \
  for (long block; (block = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)), 1;) { \
    for (long here; piece < job->pieces; before += here, piece++) {                     \
      here = (long)((job->piece[piece].count + ADAM_BLOCK - 1) / ADAM_BLOCK);           \
      if (block < before + here) break;                                                 \
    }                                                                                   \
    if (piece == job->pieces) break;                                                    \
    const adam_piece *at = &job->piece[piece];                                          \
    const size_t from = (size_t)(block - before) * ADAM_BLOCK;                          \
    const size_t to = from + ADAM_BLOCK < at->count ? from + ADAM_BLOCK : at->count;    \
    DO;                                                                                 \
  }

#define PASSES(SET, TARGET)                                                     \
  TARGET static void norm_##SET(void *argument) {                               \
    EACH_BLOCK(job->sums[block] = squares_of(at->grad, at->bfloat16, from, to)) \
  }                                                                             \
  TARGET static void step_##SET(void *argument) { EACH_BLOCK(step_block(job, at, from, to)) }

PASSES(portable, )
#if defined(__x86_64__)
PASSES(avx2, __attribute__((target("avx2"))))
PASSES(avx512, __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,prefer-vector-width=512"))))
#endif

const adam_kernels adam_all[] = {
    {"portable", has_portable, norm_portable, step_portable},
#if defined(__x86_64__)
    {"avx2", has_avx2, norm_avx2, step_avx2},
    {"avx512", has_avx512, norm_avx512, step_avx512},
#endif
};
const int adam_all_count = sizeof adam_all / sizeof *adam_all;

size_t adam_blocks(const adam_job *job) {
  size_t blocks = 0;
  for (int i = 0; i < job->pieces; i++) blocks += (job->piece[i].count + ADAM_BLOCK - 1) / ADAM_BLOCK;
  return blocks;
}

float adam_step(const adam_kernels *kernels, adam_job *job, float max_norm, unsigned threads, openmp_parallel parallel) {
  const size_t blocks = adam_blocks(job);
  job->next = 0;
  run_on_threads(kernels->norm, job, threads, parallel);
  double sum = 0;
  for (size_t i = 0; i < blocks; i++) sum += job->sums[i];
  const float norm = (float)sqrt(sum);
  job->scale = norm > max_norm ? max_norm / (norm + 1e-6f) : 1.0f;
  job->next = 0;
  run_on_threads(kernels->step, job, threads, parallel);
  return norm;
}
