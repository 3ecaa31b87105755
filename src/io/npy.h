/* The header of a .npy file, shared by npy.c and npz_write.c. */
#ifndef TSR_IO_NPY_H
#define TSR_IO_NPY_H

#include "io/npz.h"

enum { NPY_ALIGNMENT = 64 };

/* NumPy's name of a type ("<f4"); NULL where it has none. */
const char *npy_descr(enum dtype dtype);
/* Appends magic, version and header for `descr` and the shape. */
void npy_format_header(struct strbuf *out, const char *descr, int rank, const int64_t *shape);

#endif
