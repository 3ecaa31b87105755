/* Reference kernels of the row-wise operations: see kernel/ops.h for the formulas. Sums are fp64.
 */
#include <math.h>

#include "kernel/ref/ref.h"

static float factor(const float *weight, bool plus_one, int64_t i) {
  return weight[i] + (plus_one ? 1.0f : 0.0f);
}

static void rmsnorm(const float *x, const float *weight, bool plus_one, double eps, int64_t rows,
                    int64_t n, float *y, float *inverse) {
  for (int64_t r = 0; r < rows; r++, x += n, y += n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    float scale = (float)(1.0 / sqrt(sum / (double)n + eps));
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * factor(weight, plus_one, i);
    if (inverse) inverse[r] = scale;
  }
}

/* With g = dy * weight and s the inverse: dx = s g - x s^3 mean(g x). */
static void rmsnorm_backward(const float *dy, const float *x, const float *weight, bool plus_one,
                             const float *inverse, int64_t rows, int64_t n, float *dx,
                             bool accumulate) {
  for (int64_t r = 0; r < rows; r++, dy += n, x += n, dx += n) {
    double sum = 0, s = inverse[r];
    for (int64_t i = 0; i < n; i++) sum += (double)dy[i] * factor(weight, plus_one, i) * x[i];
    double mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++) {
      double d = s * (dy[i] * factor(weight, plus_one, i) - x[i] * s * s * mean);
      dx[i] = (float)(accumulate ? dx[i] + d : d);
    }
  }
}

static void rope(float *x, int64_t heads, int64_t head_dim, const float *cos, const float *sin,
                 int direction) {
  int64_t half = head_dim / 2;
  for (int64_t h = 0; h < heads; h++, x += head_dim)
    for (int64_t i = 0; i < half; i++) {
      float c = cos[i], s = direction < 0 ? -sin[i] : sin[i], a = x[i], b = x[i + half];
      x[i] = a * c - b * s;
      x[i + half] = b * c + a * s;
    }
}

static const double GELU_SCALE = 0.7978845608028654 /* sqrt(2/pi) */, GELU_CUBIC = 0.044715;

/* The activation and its derivative at x. */
static double activation(bool gelu, double x, double *slope) {
  if (!gelu) {
    double s = 1 / (1 + exp(-x));
    *slope = s * (1 + x * (1 - s));
    return x * s;
  }
  double t = tanh(GELU_SCALE * (x + GELU_CUBIC * x * x * x));
  *slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * GELU_SCALE * (1 + 3 * GELU_CUBIC * x * x);
  return 0.5 * x * (1 + t);
}

static void glu(bool gelu, const float *gate, const float *up, int64_t n, float *out) {
  double slope;
  for (int64_t i = 0; i < n; i++) out[i] = (float)(activation(gelu, gate[i], &slope) * up[i]);
}

static void glu_backward_range(bool gelu, const float *gate, const float *up, const float *dout,
                               int64_t n, float *dgate, float *dup) {
  for (int64_t i = 0; i < n; i++) {
    double slope, value = activation(gelu, gate[i], &slope), u = up[i], d = dout[i];
    dgate[i] = (float)(d * u * slope);
    dup[i] = (float)(d * value);
  }
}

struct softmax {
  double max, log_sum; /* log_sum counts from max */
  int64_t argmax;
};

static struct softmax softmax_of(const float *x, int64_t n) {
  struct softmax s = {x[0], 0, 0};
  for (int64_t i = 1; i < n; i++)
    if (x[i] > s.max) {
      s.max = x[i];
      s.argmax = i;
    }
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += exp(x[i] - s.max);
  INVARIANT(n > 0);
  s.log_sum = log(sum);
  return s;
}

static float cross_entropy_row(const float *logits, int64_t vocab, int32_t target, float scale,
                               float *dlogits) {
  struct softmax s = softmax_of(logits, vocab);
  float nll = (float)(s.max + s.log_sum - logits[target]);
  if (dlogits)
    for (int64_t i = 0; i < vocab; i++)
      dlogits[i] = (float)(scale * (exp(logits[i] - s.max - s.log_sum) - (i == target)));
  return nll;
}

static float softmax_kl_row(const float *reference, const float *model, int64_t vocab,
                            uint8_t *agree) {
  struct softmax p = softmax_of(reference, vocab), q = softmax_of(model, vocab);
  double kl = 0;
  for (int64_t i = 0; i < vocab; i++) {
    double log_p = reference[i] - p.max - p.log_sum;
    kl += exp(log_p) * (log_p - (model[i] - q.max - q.log_sum));
  }
  *agree = p.argmax == q.argmax;
  return (float)kl;
}

static void add(float *x, const float *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

static double sum_squares_of(const float *x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
  return sum;
}

void ref_fill_row(struct kernel_table *table) {
  table->rmsnorm = rmsnorm;
  table->rmsnorm_backward = rmsnorm_backward;
  table->rope = rope;
  table->glu = glu;
  table->glu_backward = glu_backward_range;
  table->cross_entropy = cross_entropy_row;
  table->softmax_kl = softmax_kl_row;
  table->add = add;
  table->sum_squares = sum_squares_of;
}
