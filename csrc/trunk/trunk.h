/* The convolutions of a trunk on a CPU, and its pools: forward, and backward to the weights.
 *
 * One sample at a time passes through all layers, so that what one layer writes is still in the cache when the next
 * reads it. Channels come last inside; bytes of observations are planes, and become elements on the way in.
 * trunk_kernels.h holds the kernels, once for every instruction set that trunk.c compiles them for: of plain trunks,
 * whose layers follow each other, a ReLU after each, and what all trunks share. One layer's multiplications are in
 * register_kernels.h, or in tile_kernels.h where the processor has tiles. block_kernels.h has the trunks with residual
 * blocks. There all arrays between layers have a rim of zeros, one position wide, so that a padded
 * convolution needs no test for the border; and gradients pass back through it by the kernels of the way forward.
 *
 * An element is a float, or a bfloat16 in 16 bits. `pair` elements are multiplied and summed at once: 1 float, 2
 * bfloat16. Sums are float32.
 */
#ifndef FASTRL_TRUNK_H
#define FASTRL_TRUNK_H

#include <stddef.h>
#include <stdint.h>

#include "processor.h"

enum { TRUNK_LAYERS = 16, TRUNK_NETS = 2 };

/* What a layer makes of x, which passes through a trunk. */
enum trunk_role {
  TRUNK_RELU,   /* x = relu(conv(x)): all layers of a plain trunk, and no others */
  TRUNK_CONV,   /* x = conv(x) */
  TRUNK_POOL,   /* x = pool(conv(x)): the largest of 3x3 positions that lie 2 apart, beyond a rim of 1 */
  TRUNK_FIRST,  /* y = conv(relu(x)), of a residual block */
  TRUNK_SECOND, /* x = x + conv(relu(y)) */
};

/* A convolution: [h][w][c] elements, a rim of zeros included, -> [ho][wo][n]. */
typedef struct {
  int c, n, k, s, h, w, ho, wo; /* channels in (even), filters (a multiple of 16), kernel, stride, sizes */
  int role, pad;                /* rim of its input: of the first layer 0 or 1, of others 1, in a plain trunk 0 */
  /* with residual blocks: */
  int lh, lw;                   /* sizes of the x that it leaves: pooled, or ho and wo */
  size_t left;                  /* elements of that, its rim included */
  size_t areas, all;            /* where in the scratch, in elements: three areas for such x, one before it is pooled */
} trunk_layer;

/* A network, and which samples pass through it. */
typedef struct {
  int from, to;                       /* the first sample, and the one after the last */
  int keep;                           /* samples from `from` on whose activations are kept for `backward` */
  const void *weight[TRUNK_LAYERS];   /* [k k c / pair][n][pair] elements: what `forward` multiplies by */
  const float *bias[TRUNK_LAYERS];    /* [n] */
  /* [keep][ho][wo][n] elements: of the last layer features, where nothing pools. With residual blocks: what the next
   * layer reads, [lh + 2][lw + 2][n], its rim zeros, of all layers but the last; all of a sample lies together. */
  void *out[TRUNK_LAYERS];
  void *won[TRUNK_LAYERS];            /* [lh][lw][n]: which of its 9 positions each result of a 3x3 pool is; as elements */
  size_t apart;                       /* elements from one sample to the next in these, with residual blocks */
  void *features;                     /* [to - from][ho][wo][n] elements; pooled, if they are */
} trunk_net;

typedef struct {
  int layers, planes;                 /* planes: channels of an observation; the first layer may have one more */
  int pool;                           /* of the last layer: 0, 2 (of 2x2, of plain trunks; its ho and wo are even then), or
                                         3 (of 3x3, as TRUNK_POOL, with residual blocks) */
  int blocks;                         /* whether there are residual blocks */
  trunk_layer layer[TRUNK_LAYERS];
  const uint8_t *obs[2];              /* [.][planes][h][w] bytes: those of samples below `split`, and of the others */
  int split, count;
  /* forward */
  int nets;
  trunk_net net[TRUNK_NETS];
  /* backward, of the first `count` samples of net[0] */
  const void *grad;                   /* [count][features] elements: of the loss with respect to the features */
  /* [k][k][n / pair][c][pair] elements: what gradients pass back through; with residual blocks the kernel turned round */
  const void *back[TRUNK_LAYERS];
  const float *zeros;                 /* as many as the most channels */
  int by_filter;                      /* whether gradients of weights are [n][k k c] in each part */
  float *dweight[TRUNK_LAYERS];       /* [parts][k k c][n]: of each part of the samples, written */
  float *dbias[TRUNK_LAYERS];         /* [parts][n] */
  /* how the work is shared */
  int parts;
  char *scratch;                      /* [parts][trunk_scratch_bytes] */
  size_t scratch_bytes;
  size_t paired;                      /* with residual blocks: where in the scratch pairs of positions lie, in elements */
  int next, worker;                   /* counters of the workers */
} trunk_job;

typedef struct {
  const char *name;
  int pair;
  int (*supported)(void);
  void (*pack)(const trunk_layer *layer, const float *weight, int channels, float scale, void *forward, void *back);
  void (*forward)(void *job);         /* one worker's share */
  void (*backward)(void *job);
  void (*forward_blocks)(void *job);  /* the same of trunks with residual blocks */
  void (*backward_blocks)(void *job);
  int by_filter;                      /* as in the job */
} trunk_kernels;

extern const trunk_kernels trunk_all[];
extern const int trunk_all_count;

/* Say how much scratch a worker needs, in bytes; with residual blocks set where each layer's lies. */
size_t trunk_plan(trunk_job *job);

/* Add the parts of a layer's gradients up, in order: weight [n][k][k][channels], times scale, and bias [n]. */
void trunk_gradient(const trunk_job *job, int layer, int channels, float scale, float *weight, float *bias);

/* Run a job with as many workers as it has parts: in one thread where `parallel` is NULL. */
void trunk_run(void (*work)(void *), trunk_job *job, openmp_parallel parallel);

#endif
