/* The list of families. */
#include "model/family.h"

#include <stdio.h>
#include <string.h>

const struct model_family *const model_families[] = {
    &family_llama, &family_mistral, &family_qwen2, &family_qwen3, &family_gemma3, NULL,
};

void model_family_list(char *out, size_t size) {
  size_t used = 0;
  if (size) *out = 0;
  for (int i = 0; model_families[i] && used < size; i++)
    used +=
        (size_t)snprintf(out + used, size - used, "%s%s", i ? ", " : "", model_families[i]->name);
}

const char *model_family_name(const struct model_config *config) { return config->family->name; }
