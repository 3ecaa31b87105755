/* A lane's integers in shared memory, for multiply_quant_body.h and scaled_body.h: those of
 * fragment `fragment` of a row block whose weights begin at `values`, behind its metadata. int8:
 * two words; int4: one, and the second is zero. */
DEVICE struct words2 LOCAL(load_integers)(uint32_t values, int fragment) {
  const uint32_t at = values + (32 * fragment + thread_index() % 32) * QUANT_BITS;
#if QUANT_BITS == 8
  return shared_load8(at);
#else
  const struct words2 v = {{shared_load4(at), 0}};
  return v;
#endif
}
