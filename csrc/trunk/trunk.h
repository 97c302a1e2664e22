/* The convolutions of a plain trunk on a CPU, and a 2x2 max-pool behind them: forward, and backward to the weights.
 *
 * One sample at a time passes through all layers, so that what one layer writes is still in the cache when the next
 * reads it. Channels come last inside; bytes of observations are planes, and become elements on the way in.
 * trunk_kernels.h holds the kernels, once for every instruction set that trunk.c compiles them for.
 *
 * An element is a float, or a bfloat16 in 16 bits. `pair` elements are multiplied and summed at once: 1 float, 2
 * bfloat16. Sums are float32.
 */
#ifndef FASTRL_TRUNK_H
#define FASTRL_TRUNK_H

#include <stddef.h>
#include <stdint.h>

#include "processor.h"

enum { TRUNK_LAYERS = 4, TRUNK_NETS = 2 };

/* A convolution without padding, and a ReLU: [h][w][c] elements -> [ho][wo][n]. */
typedef struct {
  int c, n, k, s, h, w, ho, wo; /* channels in (even), filters (a multiple of 16), kernel, stride, sizes */
} trunk_layer;

/* A network, and which samples pass through it. */
typedef struct {
  int from, to;                       /* the first sample, and the one after the last */
  int keep;                           /* samples from `from` on whose activations are kept for `backward` */
  const void *weight[TRUNK_LAYERS];   /* [k k c / pair][n][pair] elements: what `forward` multiplies by */
  const float *bias[TRUNK_LAYERS];    /* [n] */
  void *out[TRUNK_LAYERS];            /* [keep][ho][wo][n] elements: of the last layer features, where nothing pools */
  void *features;                     /* [to - from][ho][wo][n] elements; with a pool [ho / 2][wo / 2] */
} trunk_net;

typedef struct {
  int layers, planes;                 /* planes: channels of an observation; the first layer may have one more */
  int pool;                           /* whether the last layer is pooled: its ho and wo are even then */
  trunk_layer layer[TRUNK_LAYERS];
  const uint8_t *obs[2];              /* [.][planes][h][w] bytes: those of samples below `split`, and of the others */
  int split, count;
  /* forward */
  int nets;
  trunk_net net[TRUNK_NETS];
  /* backward, of the first `count` samples of net[0] */
  const void *grad;                   /* [count][features] elements: of the loss with respect to the features */
  const void *back[TRUNK_LAYERS];     /* [k][k][n / pair][c][pair] elements: what gradients pass back through */
  float *dweight[TRUNK_LAYERS];       /* [parts][k k c][n]: of each part of the samples, written */
  float *dbias[TRUNK_LAYERS];         /* [parts][n] */
  /* how the work is shared */
  int parts;
  char *scratch;                      /* [parts][trunk_scratch_bytes] */
  size_t scratch_bytes;
  int next, worker;                   /* counters of the workers */
} trunk_job;

typedef struct {
  const char *name;
  int pair;
  int (*supported)(void);
  void (*pack)(const trunk_layer *layer, const float *weight, int channels, float scale, void *forward, void *back);
  void (*forward)(void *job);         /* one worker's share */
  void (*backward)(void *job);
} trunk_kernels;

extern const trunk_kernels trunk_all[];
extern const int trunk_all_count;

size_t trunk_scratch_bytes(const trunk_job *job);

/* Add the parts of a layer's gradients up, in order: weight [n][k][k][channels], times scale, and bias [n]. */
void trunk_gradient(const trunk_job *job, int layer, int channels, float scale, float *weight, float *bias);

/* Run a job with as many workers as it has parts: in one thread where `parallel` is NULL. */
void trunk_run(void (*work)(void *), trunk_job *job, openmp_parallel parallel);

#endif
