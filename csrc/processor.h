/* What the kernels in C share: which instruction sets there are, numbers in bfloat16, and PyTorch's threads. */
#ifndef FASTRL_PROCESSOR_H
#define FASTRL_PROCESSOR_H

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 10
#error "fastrl needs GCC 10 or newer, or Clang: set CC to one"
#endif

#include <stdint.h>
#include <string.h>

/* Whether there may be tiles of AMX: on Linux, which a process has to ask for them, and with a compiler that knows them. */
#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define AMX 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define AMX 0
#endif

/* OpenMP's GOMP_parallel of the library that the process has loaded already, so that its threads are shared. */
typedef void (*openmp_parallel)(void (*work)(void *), void *job, unsigned threads, unsigned flags);

/* Let `threads` threads work on a job, or one where `parallel` is NULL. */
static inline void run_on_threads(void (*work)(void *), void *job, unsigned threads, openmp_parallel parallel) {
  if (parallel && threads > 1)
    parallel(work, job, threads, 0);
  else
    work(job);
}

static inline int has_portable(void) { return 1; }
#if defined(__x86_64__)
static inline int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static inline int has_avx512(void) {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif
#if AMX
/* Whether processor and system have tiles of bfloat16; the system is asked to give this process room for them. */
static inline int has_tiles(void) {
  enum { BFLOAT16 = 1 << 22, TILE = 1 << 24, REQUEST = 0x1023, TILE_DATA = 18, TILES_SAVED = 3 << 17 };
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & BFLOAT16) == 0 || (d & TILE) == 0) return 0;
  __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return (a & TILES_SAVED) == TILES_SAVED && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}
#endif

static inline float float_of_bfloat16(uint16_t e) {
  const uint32_t bits = (uint32_t)e << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

/* To nearest, ties to even, as the processor's instruction does; NaN stays. */
static inline uint16_t bfloat16_of_float(float f) {
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  const uint32_t near = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return (uint16_t)(f != f ? bits >> 16 | 0x40 : near);
}

#endif
