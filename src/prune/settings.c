/* What may be asked of the pruners, and how it is named. */
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#include "base/number.h"
#include "prune/prune.h"
#include "prune/sparsegpt.h"

struct prune_settings prune_defaults(void) {
  return (struct prune_settings){.method = PRUNE_SPARSEGPT,
                                 .pattern = PRUNE_2_4,
                                 .keep = 2,
                                 .of = 4,
                                 .tile_rows = 128,
                                 .tile_cols = 128,
                                 .damping = 0.01,
                                 .block = SPARSEGPT_BLOCK};
}

static enum status check_group(const struct prune_settings *s, struct error *err) {
  if (s->of >= 2 && s->of <= SPARSE_GROUP_MAX && s->keep >= 1 && s->keep < s->of) return STATUS_OK;
  return error_set(
      err, STATUS_USAGE,
      "pattern %d:%d is not possible; n:m keeps n of every m weights, with n < m <= %d", s->keep,
      s->of, SPARSE_GROUP_MAX);
}

static enum status check_hybrid(const struct prune_settings *s, struct error *err) {
  const double most = 1 - (double)s->keep / s->of;
  enum status status = check_group(s, err);
  if (status) return status;
  if (s->tile_cols % s->of)
    return error_set(err, STATUS_USAGE, "--tile %lld is no multiple of the %d in --pattern",
                     (long long)s->tile_cols, s->of);
  if (s->sparsity >= 0 && s->sparsity <= most) return STATUS_OK;
  return error_set(err, STATUS_USAGE,
                   "a hybrid of %d:%d has a sparsity of 0 to %.4g, not %g; give --sparsity",
                   s->keep, s->of, most, s->sparsity);
}

static enum status check_pattern(const struct prune_settings *s, struct error *err) {
  switch (s->pattern) {
    case PRUNE_2_4:
      return STATUS_OK;
    case PRUNE_N_M:
      return check_group(s, err);
    case PRUNE_HYBRID:
      return check_hybrid(s, err);
    case PRUNE_UNSTRUCTURED:
      if (s->sparsity >= 0 && s->sparsity < 1) return STATUS_OK;
      return error_set(err, STATUS_USAGE,
                       "an unstructured sparsity is at least 0 and below 1, not %g; give "
                       "--sparsity",
                       s->sparsity);
  }
  return error_set(err, STATUS_USAGE, "unknown pattern");
}

enum status prune_pattern_parse(const char *text, struct prune_settings *s, struct error *err) {
  const char *at = text;
  int64_t keep, of;
  const bool hybrid = !strncmp(text, "hybrid", 6) && (!text[6] || text[6] == '-');
  if (hybrid && !text[6]) at = "2:4";
  if (hybrid && text[6]) at = text + 7;
  if (!strcmp(text, "unstructured")) {
    s->pattern = PRUNE_UNSTRUCTURED;
    return STATUS_OK;
  }
  if (!number_take(&at, 9999, &keep) || *at++ != ':' || !number_take(&at, 9999, &of) || *at)
    return error_set(err, STATUS_USAGE,
                     "pattern \"%s\": give 2:4, another n:m, unstructured, hybrid or hybrid-n:m",
                     text);
  s->keep = (int)keep;
  s->of = (int)of;
  s->pattern = hybrid ? PRUNE_HYBRID : s->keep == 2 && s->of == 4 ? PRUNE_2_4 : PRUNE_N_M;
  return STATUS_OK;
}

enum status prune_check(const struct prune_settings *s, struct error *err) {
  enum status status = check_pattern(s, err);
  if (status) return status;
  if (s->tile_rows < 1 || s->tile_cols < 4 || s->tile_cols % 4 || s->tile_rows > SPARSE_TILE_MAX ||
      s->tile_cols > SPARSE_TILE_MAX)
    return error_set(err, STATUS_USAGE, "a tile side of %lld is not a multiple of 4 from 4 to %d",
                     (long long)s->tile_cols, SPARSE_TILE_MAX);
  if (s->update_weights && s->method != PRUNE_SPARSEGPT)
    return error_set(err, STATUS_USAGE, "only sparsegpt updates weights; %s does not",
                     prune_method_name(s->method));
  if (prune_takes_gradients(s->method) && s->backend && !s->backend->is_host)
    return error_set(err, STATUS_USAGE, "%s takes its gradients on the CPU only, not on %s yet",
                     prune_method_name(s->method), s->backend->name);
  if (s->damping < 0 || s->block < 1 || s->skip_count > PRUNE_SKIP_MAX)
    return error_set(err, STATUS_USAGE, "damping, block or number of skips is out of range");
  return STATUS_OK;
}

bool prune_skips(const struct prune_settings *s, const char *name) {
  for (int i = 0; i < s->skip_count; i++)
    if (!fnmatch(s->skip[i], name, 0)) return true;
  return false;
}

const char *prune_method_name(enum prune_method method) {
  static const char *const names[] = {"magnitude", "wanda", "sparsegpt", "taylor", "fisher"};
  return names[method];
}

void prune_hybrid_name(int keep, int of, char text[16]) {
  if (keep == 2 && of == 4)
    snprintf(text, 16, "hybrid");
  else
    snprintf(text, 16, "hybrid-%d:%d", keep, of);
}

void prune_pattern_name(const struct prune_settings *s, char text[16]) {
  switch (s->pattern) {
    case PRUNE_2_4:
      snprintf(text, 16, "2:4");
      return;
    case PRUNE_N_M:
      snprintf(text, 16, "%d:%d", s->keep, s->of);
      return;
    case PRUNE_UNSTRUCTURED:
      snprintf(text, 16, "unstructured");
      return;
    case PRUNE_HYBRID:
      prune_hybrid_name(s->keep, s->of, text);
      return;
  }
}
