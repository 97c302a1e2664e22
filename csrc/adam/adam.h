/* One step of Adam on a CPU over all parameters of a network: the norm of the gradients, clipping and the update.
 *
 * Parameters and moments lie in one array each; gradients lie wherever autograd left them, as floats or bfloat16, so
 * that nothing is copied before. A piece is one parameter. The work is cut into blocks of ADAM_BLOCK elements, always
 * the same ones: the result does not depend on who takes which.
 */
#ifndef FASTRL_ADAM_H
#define FASTRL_ADAM_H

#include <stddef.h>
#include <stdint.h>

#include "processor.h"

enum { ADAM_BLOCK = 8192 };

typedef struct {
  const void *grad;                   /* [count] floats, or bfloat16 in 16 bits */
  int bfloat16;
  size_t start, count;                /* where the parameter lies in the arrays of all */
  uint16_t *copy;                     /* [count] bfloat16, a rounded copy that is kept up to date; or NULL */
} adam_piece;

typedef struct {
  int pieces;
  adam_piece *piece;
  float *value, *mean, *square;       /* parameters, moments */
  double *sums;                       /* [blocks] sums of squares of the gradients */
  float scale;                        /* of the gradients: below 1 where they are clipped */
  float rate, eps;                    /* of the step, the bias corrected already */
  float beta2, less1, less2;          /* less: 1 - beta, rounded once */
  int next;                           /* counter of the workers */
} adam_job;

typedef struct {
  const char *name;
  int (*supported)(void);
  void (*norm)(void *job);            /* one worker's share: fills sums */
  void (*step)(void *job);
} adam_kernels;

extern const adam_kernels adam_all[];
extern const int adam_all_count;

size_t adam_blocks(const adam_job *job);

/* Take a step and return the norm that the gradients had before they were scaled down to max_norm. */
float adam_step(const adam_kernels *kernels, adam_job *job, float max_norm, unsigned threads, openmp_parallel parallel);

#endif
