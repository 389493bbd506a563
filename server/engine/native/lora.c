/* LoRA deltas of small steps on a CPU: y[row] += scale * B[slot] (A[slot] x[row]), every row with its own slot.

   All slices of a packed layer (q, k, v) in one call. A is (slots, ranks, in), B transposed (slots, ranks,
   outs), and rank r belongs to slice r % count; what lies beside a slice in B is zero and never read. Only the
   ranks that an adapter fills are read. Sums are in float32, in an order that depends on neither the other
   rows nor the threads, and a delta is rounded to y's type once.

   Built by native_lora.py without a header of torch, and without an OpenMP library of its own: the symbols are
   those of the one that torch has loaded. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 8
#define ROWS 4 /* rows of one slot that share every load of its weights */
#define WIDE 4 /* vectors of outputs that are summed at a time */

typedef uint16_t bf16;
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t half_bits __attribute__((vector_size(2 * LANES), aligned(2)));

static inline float one_f32(const float *p) { return *p; }
static inline vec load_f32(const float *p) { return *(const vec *)p; }
static inline float one_bf16(const bf16 *p) {
  uint32_t wide = (uint32_t)*p << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}
static inline vec load_bf16(const bf16 *p) {
  return (vec)(__builtin_convertvector(*(const half_bits *)p, bits) << 16);
}
static inline float rounded_f32(float value) { return value; }
static inline bf16 rounded_bf16(float value) {
  uint32_t wide;
  memcpy(&wide, &value, 4);
  if (value != value) return 0x7fc0;
  return (bf16)((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
}
static inline float sum_of(vec v) {
  return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

#define INLINE static inline __attribute__((always_inline))

/* For one kind of numbers: shrink, expand, a block of rows, and the call. */
#define DEFINE(T)                                                                                          \
  INLINE void shrink_##T(const int rows, int ranks, const float *x, int64_t in, const T *a, float *h) {      \
    for (int r = 0; r < ranks; r += 2) {                                                                    \
      /* The last of an odd number is summed twice, and kept once. */                                       \
      const T *a0 = a + r * in, *a1 = r + 1 < ranks ? a0 + in : a0;                                         \
      vec sums[ROWS][2] = {{{0}}};                                                                          \
      int64_t k = 0;                                                                                        \
      for (; k + LANES <= in; k += LANES) {                                                                 \
        vec w0 = load_##T(a0 + k), w1 = load_##T(a1 + k);                                                   \
        for (int i = 0; i < rows; i++) {                                                                    \
          vec given = *(const vec *)(x + i * in + k);                                                       \
          sums[i][0] += given * w0;                                                                         \
          sums[i][1] += given * w1;                                                                         \
        }                                                                                                   \
      }                                                                                                     \
      for (int i = 0; i < rows; i++) {                                                                      \
        float s0 = sum_of(sums[i][0]), s1 = sum_of(sums[i][1]);                                             \
        for (int64_t j = k; j < in; j++) {                                                                  \
          s0 += x[i * in + j] * one_##T(a0 + j);                                                            \
          s1 += x[i * in + j] * one_##T(a1 + j);                                                            \
        }                                                                                                   \
        h[i * ranks + r] = s0;                                                                              \
        if (r + 1 < ranks) h[i * ranks + r + 1] = s1;                                                       \
      }                                                                                                     \
    }                                                                                                       \
  }                                                                                                         \
  INLINE void expand_##T(const int rows, int ranks, int first, int step, const float *h, const T *b,         \
                         int64_t b_rank, int64_t out, float scale, T *const *y) {                           \
    int64_t o = 0;                                                                                          \
    for (; o + LANES * WIDE <= out; o += LANES * WIDE) {                                                    \
      vec sums[ROWS][WIDE] = {{{0}}};                                                                       \
      for (int r = first; r < ranks; r += step)                                                             \
        for (int v = 0; v < WIDE; v++) {                                                                    \
          vec weights = load_##T(b + r * b_rank + o + v * LANES);                                           \
          for (int i = 0; i < rows; i++) sums[i][v] += h[i * ranks + r] * weights;                          \
        }                                                                                                   \
      for (int i = 0; i < rows; i++)                                                                        \
        for (int v = 0; v < WIDE; v++)                                                                      \
          for (int lane = 0; lane < LANES; lane++) {                                                        \
            T *at = y[i] + o + v * LANES + lane;                                                            \
            *at = rounded_##T(one_##T(at) + scale * sums[i][v][lane]);                                      \
          }                                                                                                 \
    }                                                                                                       \
    for (; o < out; o++)                                                                                    \
      for (int i = 0; i < rows; i++) {                                                                      \
        float sum = 0;                                                                                      \
        for (int r = first; r < ranks; r += step) sum += h[i * ranks + r] * one_##T(b + r * b_rank + o);    \
        y[i][o] = rounded_##T(one_##T(y[i] + o) + scale * sum);                                             \
      }                                                                                                     \
  }                                                                                                         \
  INLINE void block_##T(const int rows, const layer *given, const T *a, const T *b, int ranks,               \
                        const float *x, float *h, T *const *y) {                                            \
    shrink_##T(rows, ranks, x, given->in, a, h);                                                            \
    int64_t begin = 0;                                                                                      \
    for (int slice = 0; slice < given->slices; begin += given->outs[slice++]) {                             \
      T *from[ROWS];                                                                                        \
      for (int i = 0; i < rows; i++) from[i] = y[i] + begin;                                                \
      expand_##T(rows, ranks, slice, given->slices, h, b + begin, given->b_rank, given->outs[slice],        \
                 given->scale, from);                                                                       \
    }                                                                                                       \
  }                                                                                                         \
  int km_lora_##T(const layer *given, T *y, int64_t y_row, const T *x, int64_t x_row,                        \
                  const int32_t *widths, const int32_t *rows, const int32_t *blocks, int32_t count) {       \
    int failed = 0;                                                                                         \
    _Pragma("omp parallel for schedule(static) if (count > 1)")                                            \
    for (int32_t n = 0; n < count; n++) {                                                                   \
      const int32_t *block = blocks + 3 * n, *which = rows + block[0];                                      \
      const int ranks = widths[block[2]], size = block[1];                                                  \
      const T *a = (const T *)given->a + block[2] * given->a_slot;                                          \
      const T *b = (const T *)given->b + block[2] * given->b_slot;                                          \
      float *held = malloc(sizeof(float) * ROWS * (given->in + ranks));                                     \
      if (!held) {                                                                                          \
        failed = 1;                                                                                         \
        continue;                                                                                           \
      }                                                                                                     \
      T *into[ROWS];                                                                                        \
      for (int i = 0; i < size; i++) {                                                                      \
        into[i] = y + which[i] * y_row;                                                                     \
        for (int64_t k = 0; k < given->in; k++) held[i * given->in + k] = one_##T(x + which[i] * x_row + k); \
      }                                                                                                     \
      float *h = held + ROWS * given->in;                                                                   \
      switch (size) {                                                                                       \
        case 1: block_##T(1, given, a, b, ranks, held, h, into); break;                                     \
        case 2: block_##T(2, given, a, b, ranks, held, h, into); break;                                     \
        case 3: block_##T(3, given, a, b, ranks, held, h, into); break;                                     \
        default: block_##T(4, given, a, b, ranks, held, h, into);                                           \
      }                                                                                                     \
      free(held);                                                                                           \
    }                                                                                                       \
    return failed;                                                                                          \
  }

/* A layer's weights, with strides in numbers, not bytes. */
typedef struct {
  const void *a, *b;
  int64_t a_slot, b_slot, b_rank, in;
  const int64_t *outs;
  int32_t slices;
  float scale;
} layer;

typedef float f32;
DEFINE(f32)
DEFINE(bf16)
