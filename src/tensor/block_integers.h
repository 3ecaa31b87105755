/* The integers inside ggml's blocks, for those who compute with them or store them otherwise: a
 * block that has one scale for 32 weights is taken apart without loss.
 *
 *   q8_0, q5_0          w = scale * q, q two's complement           (int8)
 *   q4_0                w = scale * (q - 8), q 0 .. 15              (int4)
 *   q4_1                w = scale * q + min, q 0 .. 15              (int4 with mins)
 *   q4_k                the same; its scale d * sc and its minimum -dmin * m are products of f16
 *                       and 6-bit integers, here rounded to f16: the only loss, 2^-11 of each */
#ifndef TSR_TENSOR_BLOCK_INTEGERS_H
#define TSR_TENSOR_BLOCK_INTEGERS_H

#include "tensor/dtype.h"

enum { BLOCK_INTEGERS_GROUP = 32 };
enum block_integers_kind { BLOCK_INTEGERS_NONE, BLOCK_INTEGERS_I8, BLOCK_INTEGERS_I4 };

/* What the integers of a type are; NONE for types that are not of this kind. */
enum block_integers_kind block_integers_kind(enum dtype dtype);
bool block_integers_mins(enum dtype dtype);

/* `count` weights, a multiple of the type's block: integers (count), one a byte; scales (count /
 * 32) f16; mins (count / 32) f16, left alone where the type has none. */
void block_integers(enum dtype dtype, const void *blocks, int64_t count, uint8_t *integers,
                    uint16_t *scales, uint16_t *mins);

#endif
