/* A dense Hugging Face directory, zeros and all. */
#include <stdlib.h>

#include "base/mem.h"
#include "convert/convert.h"
#include "convert/directory.h"
#include "convert/weights.h"

static enum status write_weights(const struct model *model, const struct mask_set *masks,
                                 enum dtype dtype, const char *directory, struct error *err) {
  const size_t count = (size_t)model_tensor_count(model);
  enum status status = STATUS_FAILED;
  struct weight_stream *streams = mem_alloc(count, sizeof *streams, err);
  struct tensor_source *sources = mem_alloc(count, sizeof *sources, err);
  json_t *metadata = json_pack("{s:s}", "format", "pt");
  char *path = path_join(directory, "model.safetensors");
  if (!streams || !sources) goto out;
  for (size_t i = 0; i < count; i++) {
    const char *name = model_tensor(model, (int)i)->name;
    streams[i] = (struct weight_stream){.model = model,
                                        .tensor = (int)i,
                                        .mask = masks ? mask_set_find(masks, name) : NULL,
                                        .dtype = dtype};
    sources[i] = weight_source(&streams[i], name);
  }
  status = safetensors_write(path, sources, count, metadata, err);
out:
  free(path);
  json_decref(metadata);
  mem_free(streams);
  mem_free(sources);
  return status;
}

static enum status write_directory(const struct model *model, const struct mask_set *masks,
                                   const char *note, enum dtype dtype, const char *directory,
                                   struct error *err) {
  struct strbuf text = {0};
  json_t *config = directory_config(model, weights_torch_name(dtype));
  strbuf_printf(&text,
                "Weights pruned with tessera: %.4f of the weights of the linear layers are kept, "
                "the others are stored as zeros.\n",
                weights_density(model, masks));
  const struct quant_matrix *integers = model_site(model, 0)->weight.integers;
  if (integers)
    strbuf_printf(
        &text,
        "They had been quantized to %s before: these are the quantized values, rounded to "
        "%s.\n",
        quant_type_name(integers->type), dtype_traits(dtype)->name);
  if (note) strbuf_printf(&text, "%s\n", note);
  enum status status = write_weights(model, masks, dtype, directory, err);
  if (!status) status = directory_write(model, config, strbuf_text(&text), directory, err);
  json_decref(config);
  strbuf_free(&text);
  return status;
}

enum status convert_to_hf(const struct model *model, const struct mask_set *masks, const char *out,
                          enum dtype dtype, bool replace, struct error *err) {
  return convert_to_hf_noted(model, masks, NULL, out, dtype, replace, err);
}

enum status convert_to_hf_noted(const struct model *model, const struct mask_set *masks,
                                const char *note, const char *out, enum dtype dtype, bool replace,
                                struct error *err) {
  struct dir_writer writer;
  enum status status = weights_check_masks(model, masks, err);
  if (!status) status = dir_writer_open(&writer, out, replace, err);
  if (status) return status;
  status = write_directory(model, masks, note, dtype, writer.temporary, err);
  if (!status) return dir_writer_commit(&writer, err);
  dir_writer_abort(&writer);
  return status;
}
