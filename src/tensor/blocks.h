/* Decoders of ggml's block types, one block at a time; used by dtype.c alone. */
#ifndef TSR_TENSOR_BLOCKS_H
#define TSR_TENSOR_BLOCKS_H

#include <stdint.h>

/* block (dtype_traits.block_bytes) -> out (dtype_traits.block_length) */
typedef void block_decode_fn(const uint8_t *block, float *out);

block_decode_fn block_decode_q4_0, block_decode_q4_1, block_decode_q5_0, block_decode_q5_1;
block_decode_fn block_decode_q8_0, block_decode_iq4_nl;
block_decode_fn block_decode_q2_k, block_decode_q3_k, block_decode_q4_k, block_decode_q5_k;
block_decode_fn block_decode_q6_k;

/* 32 floats -> a q8_0 block of 34 bytes, a q4_0 block of 18, as ggml's reference quantizers make
 * them. A NaN becomes 0. */
void block_encode_q8_0(const float *in, uint8_t *block);
void block_encode_q4_0(const float *in, uint8_t *block);

#endif
