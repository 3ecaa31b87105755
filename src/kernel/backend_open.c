/* From a device's name to its backend. */
#include <stdlib.h>
#include <string.h>

#include "kernel/backend.h"
#include "kernel/cuda/open.h"

static enum status open_card(const struct backend **out, int card, struct error *err) {
#ifdef TSR_HAVE_CUDA
  return cuda_backend_open(out, card, err);
#else
  (void)out;
  return error_set(
      err, STATUS_REFUSED,
      "this tessera was built without CUDA, so that there is no GPU %d for it: build it "
      "again with make CMAKE_ARGS=-DTSR_CUDA=ON, or leave --device away",
      card);
#endif
}

enum status backend_open(const struct backend **out, const char *device, struct error *err) {
  static const char cuda[] = "cuda";
  const size_t length = strlen(cuda);
  if (!strcmp(device, "cpu")) {
    *out = backend_cpu();
    return STATUS_OK;
  }
  char *end = NULL;
  const bool numbered = !strncmp(device, cuda, length) && device[length] == ':';
  const long card = numbered ? strtol(device + length + 1, &end, 10) : 0;
  if (strcmp(device, cuda) != 0 &&
      (!numbered || end == device + length + 1 || *end || card < 0 || card > 1000))
    return error_set(err, STATUS_USAGE, "\"%s\" is no device: cpu, cuda or cuda:1 are", device);
  return open_card(out, (int)card, err);
}

void backend_close(const struct backend *backend) {
#ifdef TSR_HAVE_CUDA
  if (backend && !backend->is_host) cuda_backend_close();
#else
  (void)backend;
#endif
}
