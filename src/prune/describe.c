/* A mask's metadata: see describe.h. */
#include "prune/describe.h"

#include <stdarg.h>
#include <stdio.h>

static enum status set_meta(struct mask_set *set, struct error *err, const char *key,
                            const char *format, ...) __attribute__((format(printf, 4, 5)));
static enum status set_meta(struct mask_set *set, struct error *err, const char *key,
                            const char *format, ...) {
  char text[256];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  return mask_set_meta(set, key, text, err);
}

enum status prune_describe_kept(struct mask_set *set, const char *pattern, double sparsity,
                                int64_t total, struct error *err) {
  enum status status = set_meta(set, err, "pattern", "%s", pattern);
  if (!status) status = set_meta(set, err, "sparsity", "%.10g", sparsity);
  if (!status) status = set_meta(set, err, "density", "%.6f", mask_set_density(set, total));
  return status;
}

/* How one mask was made. */
static enum status describe(struct mask_set *set, const struct prune_settings *s,
                            const struct calibration *c, const char *pattern, double sparsity,
                            int64_t total, struct error *err) {
  enum status status = set_meta(set, err, "method", "%s", prune_method_name(s->method));
  if (!status) status = prune_describe_kept(set, pattern, sparsity, total, err);
  if (!status && c)
    status = set_meta(set, err, "calibration", "%lld windows of %lld tokens, seed %llu",
                      (long long)c->windows, (long long)c->length, (unsigned long long)c->seed);
  if (!status && s->method == PRUNE_SPARSEGPT)
    status = set_meta(set, err, "sparsegpt", "damping %g, blocks of %lld, weights %s", s->damping,
                      (long long)s->block, s->update_weights ? "updated" : "as they were");
  for (int i = 0; i < s->skip_count && !status; i++) {
    char key[16];
    snprintf(key, sizeof key, "skip %d", i);
    status = mask_set_meta(set, key, s->skip[i], err);
  }
  return status;
}

enum status prune_describe(struct mask_set *masks, struct mask_set *unstructured,
                           const struct prune_settings *s, const struct calibration *c,
                           int64_t total, struct error *err) {
  char pattern[16];
  prune_pattern_name(s, pattern);
  const double sparsity = s->pattern == PRUNE_2_4   ? 0.5
                          : s->pattern == PRUNE_N_M ? 1 - (double)s->keep / s->of
                                                    : s->sparsity;
  enum status status = describe(masks, s, c, pattern, sparsity, total, err);
  if (status || !unstructured) return status;
  return describe(unstructured, s, c, "unstructured", s->unstructured_sparsity, total, err);
}
