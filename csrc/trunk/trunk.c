/* The kernels of trunk_kernels.h, compiled for each instruction set, and how a job is shared among threads. */
#include "trunk.h"

#include <string.h>

#if defined(__clang__)
#define UNROLL(n) _Pragma("unroll")
#elif defined(__GNUC__)
#define UNROLL_TEXT(text) _Pragma(#text)
#define UNROLL(n) UNROLL_TEXT(GCC unroll n)
#else
#error "the trunk's kernels need GCC or Clang: their vector types"
#endif

/* Elements past the end of what is written, that a load of a whole register may touch. */
#define TRUNK_SLACK 64

/* How far gradients reach beyond the output on the left; zeros lie there, and on the right of rows of so many positions:
 * an even number, so that pairs of positions do not reach from one row into the next. */
#define LEFT(l) (((l)->k - 1) / (l)->s)
static inline int padded_row(const trunk_layer *l) {
  const int inputs = (l->w - 1) / l->s + 1, most = inputs > l->wo ? inputs : l->wo;
  return (most + LEFT(l) + 1) / 2 * 2;
}

/* Elements, at most, of a layer's gradients for `weight_layer`: pairs of positions, or tiles of rows `width` long. */
static inline size_t turned_size(const trunk_layer *l, size_t width) { return (size_t)(l->ho + 1) * (width + 32) * l->n; }

/* The bytes of a sample, of an image of so many positions. */
static inline const uint8_t *sample_bytes(const trunk_job *job, long i, size_t area) {
  return i < job->split ? job->obs[0] + i * area * job->planes : job->obs[1] + (i - job->split) * area * job->planes;
}

/* A part's gradients start at zero. */
static void clear_sums(const trunk_job *job, int part) {
  for (int j = 0; j < job->layers; j++) {
    const trunk_layer *l = &job->layer[j];
    const size_t weights = (size_t)l->k * l->k * l->c * l->n;
    memset(job->dweight[j] + part * weights, 0, sizeof(float) * weights);
    memset(job->dbias[j] + (size_t)part * l->n, 0, sizeof(float) * l->n);
  }
}

#define CAT_(a, b) a##_##b
#define CAT(a, b) CAT_(a, b)
#define NAME(x) CAT(x, SET)

/* --- float32, with the compiler's vectors ------------------------------------------------------------- */

#define T float
#define PAIR 1
#define ZERO ((V){0})
#define FROM_BYTE(b) ((float)(b))
#define TO_FLOAT(e) (e)
#define ROUND(f) (f)
#define LOAD(p) NAME(load)(p)
#define LOADF(p) NAME(load)(p)
#define STORE(p, v) NAME(store)(p, v)
#define STOREF(p, v) NAME(store)(p, v)
#define SPLAT(p) NAME(splat)(p)
#define MADD(acc, a, b) ((acc) + (a) * (b))
#define RELU(v) ((V)((v > ZERO) & (VI)(v)))
#define WHERE_POSITIVE(e, v) ((V)(((e) > 0) & (VI)(v)))
#define TILED 0

#define VECTOR                                                                                                 \
  typedef float NAME(vector) __attribute__((vector_size(VL * 4)));                                             \
  typedef int32_t NAME(ints) __attribute__((vector_size(VL * 4)));                                             \
  TARGET static inline __attribute__((always_inline)) NAME(vector) NAME(load)(const float *p) {                \
    NAME(vector) v;                                                                                            \
    memcpy(&v, p, sizeof v);                                                                                   \
    return v;                                                                                                  \
  }                                                                                                            \
  TARGET static inline __attribute__((always_inline)) void NAME(store)(float *p, NAME(vector) v) {             \
    memcpy(p, &v, sizeof v);                                                                                   \
  }
#define V NAME(vector)
#define VI NAME(ints)
#define E NAME(ints)
#define INT int32_t
#define LARGEST INT32_MAX
#define WIDEN(e) ((V)(e))

#define SET portable
#define TARGET
#define VL 4
VECTOR
TARGET static inline __attribute__((always_inline)) V NAME(splat)(const float *p) {
  const float e = *p;
  return (V){e, e, e, e};
}
#define FORWARD_TILES FORWARD_TILE(5, 2) FORWARD_TILE(4, 2) FORWARD_TILE(1, 2) FORWARD_TILE(1, 1)
#define FORWARD_ROWS2                                   \
  if (l->wo % 5 && l->wo % 4 == 0) { FORWARD_ROW(4, 2); } \
  FORWARD_ROW(5, 2); FORWARD_ROW(1, 2);
#define FORWARD_ROWS1 FORWARD_ROW(1, 1);
#define WEIGHT_TILES WEIGHT_TILE(4, 2) WEIGHT_TILE(2, 2) WEIGHT_TILE(2, 1)
#define WEIGHT_ROWS2 WEIGHT_BLOCKS(4, 2); WEIGHT_BLOCKS(2, 2);
#define WEIGHT_ROWS1 WEIGHT_BLOCKS(2, 1);
#define INPUT_TILES INPUT_TILE(5) INPUT_TILE(1)
#define INPUT_ROWS INPUT_ROW(5); INPUT_ROW(1);
#include "trunk_kernels.h"
#undef SET
#undef TARGET
#undef VL

#if defined(__x86_64__)
#define SET avx2
#define TARGET __attribute__((target("avx2,fma")))
#define VL 8
VECTOR
TARGET static inline __attribute__((always_inline)) V NAME(splat)(const float *p) {
  const float e = *p;
  return (V){e, e, e, e, e, e, e, e};
}
#undef FORWARD_TILES
#undef FORWARD_ROWS2
#undef WEIGHT_TILES
#undef WEIGHT_ROWS2
#undef INPUT_TILES
#undef INPUT_ROWS
#define FORWARD_TILES \
  FORWARD_TILE(6, 2) FORWARD_TILE(5, 2) FORWARD_TILE(4, 2) FORWARD_TILE(3, 2) FORWARD_TILE(1, 2) FORWARD_TILE(1, 1)
#define FORWARD_ROWS2                                   \
  if (l->wo % 6 && l->wo % 5 == 0) { FORWARD_ROW(5, 2); } \
  if (l->wo % 6 && l->wo % 4 == 0) { FORWARD_ROW(4, 2); } \
  FORWARD_ROW(6, 2); FORWARD_ROW(3, 2); FORWARD_ROW(1, 2);
#define WEIGHT_TILES WEIGHT_TILE(6, 2) WEIGHT_TILE(4, 2) WEIGHT_TILE(2, 2) WEIGHT_TILE(2, 1)
#define WEIGHT_ROWS2                                        \
  if (row % 6 && row % 4 == 0) { WEIGHT_BLOCKS(4, 2); }     \
  WEIGHT_BLOCKS(6, 2); WEIGHT_BLOCKS(4, 2); WEIGHT_BLOCKS(2, 2);
#define INPUT_TILES INPUT_TILE(10) INPUT_TILE(9) INPUT_TILE(4) INPUT_TILE(1)
#define INPUT_ROWS INPUT_ROW(10); INPUT_ROW(9); INPUT_ROW(4); INPUT_ROW(1);
#include "trunk_kernels.h"
#undef SET
#undef TARGET
#undef VL

#define SET avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")))
#define VL 16
VECTOR
TARGET static inline __attribute__((always_inline)) V NAME(splat)(const float *p) {
  const float e = *p;
  return (V){e, e, e, e, e, e, e, e, e, e, e, e, e, e, e, e};
}
#undef FORWARD_TILES
#undef FORWARD_ROWS2
#undef FORWARD_ROWS1
#undef WEIGHT_TILES
#undef WEIGHT_ROWS2
#undef WEIGHT_ROWS1
#define FORWARD_TILES                                                                                        \
  FORWARD_TILE(20, 1) FORWARD_TILE(8, 1) FORWARD_TILE(4, 1) FORWARD_TILE(1, 1)                               \
  FORWARD_TILE(10, 2) FORWARD_TILE(9, 2) FORWARD_TILE(8, 2) FORWARD_TILE(7, 2) FORWARD_TILE(4, 2) FORWARD_TILE(1, 2)
#define FORWARD_ROWS2                                                                                        \
  FORWARD_ROW(10, 2); FORWARD_ROW(9, 2); FORWARD_ROW(8, 2); FORWARD_ROW(7, 2); FORWARD_ROW(4, 2); FORWARD_ROW(1, 2);
#define FORWARD_ROWS1 FORWARD_ROW(20, 1); FORWARD_ROW(8, 1); FORWARD_ROW(4, 1); FORWARD_ROW(1, 1);
#define WEIGHT_TILES WEIGHT_TILE(16, 1) WEIGHT_TILE(2, 1) WEIGHT_TILE(12, 2) WEIGHT_TILE(8, 2) WEIGHT_TILE(2, 2)
#define WEIGHT_ROWS2                                        \
  if (row % 12 && row % 8 == 0) { WEIGHT_BLOCKS(8, 2); }    \
  WEIGHT_BLOCKS(12, 2); WEIGHT_BLOCKS(8, 2); WEIGHT_BLOCKS(2, 2);
#define WEIGHT_ROWS1 WEIGHT_BLOCKS(16, 1); WEIGHT_BLOCKS(2, 1);
#include "trunk_kernels.h"
#undef SET
#undef TARGET
#endif

#undef T
#undef PAIR
#undef ZERO
#undef FROM_BYTE
#undef TO_FLOAT
#undef ROUND
#undef LOAD
#undef LOADF
#undef STORE
#undef STOREF
#undef SPLAT
#undef MADD
#undef RELU
#undef WHERE_POSITIVE
#undef V
#undef VI
#undef E
#undef INT
#undef LARGEST
#undef WIDEN
#undef TILED

/* --- bfloat16, with AVX-512 --------------------------------------------------------------------------- */

#if defined(__x86_64__)
#include <immintrin.h>

typedef uint16_t bfloat16;
typedef int16_t bfloat16_bits __attribute__((vector_size(32)));
#define SET avx512_bf16
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")))
#define T bfloat16
#define PAIR 2
#define VL 16
#define V __m512
#define E bfloat16_bits
#define INT int16_t
#define LARGEST INT16_MAX
#define WIDEN(e) widened(e)
#define STORE_PAIRS(p, a, b) _mm512_storeu_si512(p, pairs_of(a, b))
#define ZERO _mm512_setzero_ps()
#define LOAD(p) _mm512_loadu_ps((const float *)(p))
#define LOADF(p) _mm512_loadu_ps(p)
#define STOREF(p, v) _mm512_storeu_ps(p, v)
#define STORE(p, v) _mm256_storeu_si256((__m256i *)(p), (__m256i)_mm512_cvtneps_pbh(v))
#define SPLAT(p) pair_of(p)
#define MADD(acc, a, b) _mm512_dpbf16_ps(acc, (__m512bh)(a), (__m512bh)(b))
#define RELU(v) _mm512_max_ps(v, ZERO)
#define WHERE_POSITIVE(e, v) where_positive(e, v)
#define TO_FLOAT(e) float_of_bfloat16(e)
#define ROUND(f) bfloat16_of_float(f)
#define FROM_BYTE(b) from_byte(b)
#define INTERLEAVE4 interleave4
#define TILED 0

TARGET static inline __attribute__((always_inline)) __m512 pair_of(const bfloat16 *p) {
  int32_t pair;
  memcpy(&pair, p, sizeof pair);
  return (__m512)_mm512_set1_epi32(pair);
}

static inline bfloat16 from_byte(uint8_t b) { /* exact: 8 bits fit into the 8 of the significand */
  const float f = b;
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  return (bfloat16)(bits >> 16);
}

TARGET static inline __attribute__((always_inline)) __m512 widened(bfloat16_bits e) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)e), 16));
}

TARGET static inline __attribute__((always_inline)) __m512 where_positive(bfloat16_bits e, __m512 v) {
  return _mm512_maskz_mov_ps(_mm256_cmpgt_epi16_mask((__m256i)e, _mm256_setzero_si256()), v);
}

/* Elements of a, each beside its like of b. */
TARGET static inline __attribute__((always_inline)) __m512i pairs_of(bfloat16_bits a, bfloat16_bits b) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)a), high = _mm512_cvtepu16_epi32((__m256i)b);
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

TARGET static void interleave4(const uint8_t *in, bfloat16 *out, size_t area, size_t count) {
  for (size_t start = 0; start < count; start += 16) {
    const size_t i = start + 16 <= count ? start : count - 16;
    const __m128i a = _mm_loadu_si128((const __m128i *)(in + i)), b = _mm_loadu_si128((const __m128i *)(in + area + i)),
                  c = _mm_loadu_si128((const __m128i *)(in + 2 * area + i)),
                  d = _mm_loadu_si128((const __m128i *)(in + 3 * area + i));
    const __m128i low_ab = _mm_unpacklo_epi8(a, b), high_ab = _mm_unpackhi_epi8(a, b);
    const __m128i low_cd = _mm_unpacklo_epi8(c, d), high_cd = _mm_unpackhi_epi8(c, d);
    const __m128i four[4] = {_mm_unpacklo_epi16(low_ab, low_cd), _mm_unpackhi_epi16(low_ab, low_cd),
                             _mm_unpacklo_epi16(high_ab, high_cd), _mm_unpackhi_epi16(high_ab, high_cd)};
    for (int k = 0; k < 4; k++) {
      const __m512 f = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(four[k]));
      const __m256i upper = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(f), 16));
      _mm256_storeu_si256((__m256i *)(out + 4 * i + 16 * k), upper);
    }
  }
}

#include "trunk_kernels.h"
#undef SET

/* The same, with tiles of AMX for the layers. */
#if AMX
#define SET amx
#undef TARGET
#define TARGET \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,amx-tile,amx-bf16")))
#undef TILED
#define TILED 1
#undef INTERLEAVE4
#define INTERLEAVE4 interleave4_by_table

/* Elements that are the numbers 0 to 255: the lower bytes, and the upper ones. */
#define POWER(b) ((b) > 127 ? 7 : (b) > 63 ? 6 : (b) > 31 ? 5 : (b) > 15 ? 4 : (b) > 7 ? 3 : (b) > 3 ? 2 : (b) > 1)
#define ELEMENT(b) ((b) ? (127 + POWER(b)) << 7 | ((b) << (7 - POWER(b)) & 127) : 0)
#define LOWER(b) ELEMENT(b) & 255
#define UPPER(b) ELEMENT(b) >> 8
#define FOUR(F, b) F(b), F(b + 1), F(b + 2), F(b + 3)
#define SIXTEEN(F, b) FOUR(F, b), FOUR(F, b + 4), FOUR(F, b + 8), FOUR(F, b + 12)
#define OF_64(F, b) SIXTEEN(F, b), SIXTEEN(F, b + 16), SIXTEEN(F, b + 32), SIXTEEN(F, b + 48)
#define ALL(F) OF_64(F, 0), OF_64(F, 64), OF_64(F, 128), OF_64(F, 192)
static const uint8_t element_bytes[2][256] = {{ALL(LOWER)}, {ALL(UPPER)}};
/* Where 16 positions of four planes, plane by plane, go: so that `unpack` leaves them in order. */
#define SOURCE(o) ((o) % 4 * 16 + ((o) / 16 * 8 + (o) % 16 % 8 + (o) % 16 / 8 * 32) / 4)
static const uint8_t interleaved[64] = {OF_64(SOURCE, 0)};

/* The same as `interleave4`, by tables. */
TARGET static void interleave4_by_table(const uint8_t *in, bfloat16 *out, size_t area, size_t count) {
  const __m512i order = _mm512_loadu_si512(interleaved);
  __m512i table[2][4];
  UNROLL(8) for (int i = 0; i < 8; i++) table[i / 4][i % 4] = _mm512_loadu_si512(&element_bytes[i / 4][i % 4 * 64]);
  for (size_t start = 0; start < count; start += 16) {
    const size_t i = start + 16 <= count ? start : count - 16;
    __m512i all = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(in + i)));
    all = _mm512_inserti32x4(all, _mm_loadu_si128((const __m128i *)(in + area + i)), 1);
    all = _mm512_inserti32x4(all, _mm_loadu_si128((const __m128i *)(in + 2 * area + i)), 2);
    all = _mm512_inserti32x4(all, _mm_loadu_si128((const __m128i *)(in + 3 * area + i)), 3);
    all = _mm512_permutexvar_epi8(order, all);
    const __mmask64 large = _mm512_movepi8_mask(all); /* 128 to 255 */
    __m512i byte[2];
    UNROLL(2) for (int k = 0; k < 2; k++)
      byte[k] = _mm512_mask_blend_epi8(large, _mm512_permutex2var_epi8(table[k][0], all, table[k][1]),
                                       _mm512_permutex2var_epi8(table[k][2], all, table[k][3]));
    _mm512_storeu_si512(out + 4 * i, _mm512_unpacklo_epi8(byte[0], byte[1]));
    _mm512_storeu_si512(out + 4 * i + 32, _mm512_unpackhi_epi8(byte[0], byte[1]));
  }
}

#include "trunk_kernels.h"
#undef SET
#endif
#undef TARGET
#undef TILED
#endif

/* --- which there are ------------------------------------------------------------------------------------ */

#if defined(__x86_64__)
static int has_avx512_bf16(void) { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#if AMX
static int has_amx(void) { return has_avx512_bf16() && __builtin_cpu_supports("avx512vbmi") && has_tiles(); }
#endif
#endif

const trunk_kernels trunk_all[] = {
    {"portable", 1, has_portable, pack_portable, forward_portable, backward_portable, forward_blocks_portable,
     backward_blocks_portable},
#if defined(__x86_64__)
    {"avx2", 1, has_avx2, pack_avx2, forward_avx2, backward_avx2, forward_blocks_avx2,
     backward_blocks_avx2},
    {"avx512", 1, has_avx512, pack_avx512, forward_avx512, backward_avx512, forward_blocks_avx512,
     backward_blocks_avx512},
    {"avx512_bf16", 2, has_avx512_bf16, pack_avx512_bf16, forward_avx512_bf16, backward_avx512_bf16, forward_blocks_avx512_bf16,
     backward_blocks_avx512_bf16},
#if AMX
    {"amx", 2, has_amx, pack_amx, forward_amx, backward_amx, forward_blocks_amx, backward_blocks_amx, .by_filter = 1},
#endif
#endif
};
const int trunk_all_count = sizeof trunk_all / sizeof *trunk_all;

static size_t plan_plain(const trunk_job *job) {
  size_t forward = 0, backward = 0;
  for (int j = 0; j < job->layers; j++) {
    const trunk_layer *l = &job->layer[j];
    const size_t padded = (size_t)l->ho * padded_row(l) * l->n, pairs = turned_size(l, padded_row(l)) + (size_t)32 * l->s * l->c;
    const size_t inside = (size_t)l->h * l->w * l->c, outside = (size_t)l->ho * l->wo * l->n;
    const size_t all = padded + pairs + 3 * inside + outside;
    forward += outside;
    backward = all > backward ? all : backward;
  }
  return forward > backward ? forward : backward;
}

/* Behind the image lie the areas of the layers, whose rims stay zero, and then what `backward_blocks` pairs. */
static size_t plan_blocks(trunk_job *job) {
  size_t next = 0, paired = 0;
  for (int j = 0; j < job->layers; j++) {
    trunk_layer *l = &job->layer[j];
    const int pooled = l->role == TRUNK_POOL;
    l->lh = pooled ? (l->ho + 1) / 2 : l->ho;
    l->lw = pooled ? (l->wo + 1) / 2 : l->wo;
    l->left = (size_t)(l->lh + 2) * (l->lw + 2) * l->n;
    if (l->role == TRUNK_FIRST || l->role == TRUNK_SECOND) { /* as many positions and filters as the layer before */
      l->areas = job->layer[j - 1].areas;
    } else {
      l->areas = next;
      next += 3 * (l->left + TRUNK_SLACK);
    }
    l->all = next;
    if (pooled) next += (size_t)(l->ho + 2) * (l->wo + 2) * l->n + TRUNK_SLACK;
    const size_t pairs = turned_size(l, l->wo + 2), in = 2 * ((size_t)l->h * l->w + 32 * l->s) * l->c;
    paired = pairs + in + 2 * TRUNK_SLACK > paired ? pairs + in + 2 * TRUNK_SLACK : paired;
  }
  job->paired = next;
  return next + paired;
}

size_t trunk_plan(trunk_job *job) {
  const trunk_layer *first = &job->layer[0];
  const size_t most = job->blocks ? plan_blocks(job) : plan_plain(job);
  const size_t bytes = sizeof(float) * ((size_t)first->h * first->w * first->c + most + 8 * TRUNK_SLACK);
  return (bytes + 4095) / 4096 * 4096;
}

void trunk_run(void (*work)(void *), trunk_job *job, openmp_parallel parallel) {
  job->next = job->worker = 0;
  run_on_threads(work, job, (unsigned)job->parts, parallel);
}

void trunk_gradient(const trunk_job *job, int j, int channels, float scale, float *weight, float *bias) {
  const trunk_layer *l = &job->layer[j];
  const int kk = l->k * l->k, c = l->c, n = l->n;
  for (int i = 0; i < n; i++) {
    bias[i] = 0;
    for (int part = 0; part < job->parts; part++) bias[i] += job->dbias[j][(size_t)part * n + i];
  }
  for (int i = 0; i < n; i++)
    for (int yx = 0; yx < kk; yx++)
      for (int from = 0; from < channels; from++) {
        const size_t at = (size_t)yx * c + from, place = job->by_filter ? at + (size_t)i * kk * c : at * n + i;
        float sum = 0;
        for (int part = 0; part < job->parts; part++) sum += job->dweight[j][(size_t)part * kk * c * n + place];
        weight[((size_t)i * kk + yx) * channels + from] = sum * scale;
      }
}
