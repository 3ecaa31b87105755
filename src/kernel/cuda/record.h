/* A runtime (column.h) that gathers what it is asked to queue and replays what repeats.
 *
 * A learning step queues the same few thousand small operations each time, with other numbers in
 * some of them: rates, counters of noise, annealed factors. Operations are gathered into segments
 * of up to RECORD_OPERATIONS, each ended early by a wait. A segment whose shape (which kernels and
 * products, on how many blocks, over which memory of products and copies) was seen before becomes a
 * graph of the runtime's; from then on its arguments are compared with those that the graph holds,
 * those that differ are handed over, and the graph is started as one. So a replay does what was
 * asked for, whatever changed: nothing depends on which arguments are thought to stay the same.
 *
 * What is uploaded in a segment is copied at once, as the host may reuse its side; large uploads
 * end the segment and pass. Errors of what was gathered are those of the call that ended it. */
#ifndef TSR_KERNEL_CUDA_RECORD_H
#define TSR_KERNEL_CUDA_RECORD_H

#include "kernel/cuda/column.h"

enum {
  RECORD_OPERATIONS = 256,
  RECORD_ARGUMENT_BYTES = 320,   /* of one kernel, at most */
  RECORD_UPLOAD_BYTES = 1 << 18, /* of one segment: what is larger is not gathered */
  RECORD_GRAPHS = 1024           /* kept; shapes beyond are queued as they come */
};

enum record_kind { RECORD_LAUNCH, RECORD_MULTIPLY, RECORD_COPY, RECORD_CLEAR, RECORD_UPLOAD };
struct record_operation {
  enum record_kind kind;
  bool changed; /* its arguments, since the graph has run before */
  union {
    struct {
      enum learn_kernel kernel;
      uint32_t blocks, threads, shared_bytes;
    } launch;
    struct dense_product product;
    struct {
      void *to;
      const void *from; /* RECORD_COPY */
      size_t bytes;
      size_t at; /* RECORD_UPLOAD: in the segment's staging */
    } copy;      /* and RECORD_CLEAR, of `to` */
  };
  _Alignas(8) unsigned char arguments[RECORD_ARGUMENT_BYTES]; /* of a launch */
};

struct record_counts {
  uint64_t plain, replayed; /* operations queued as they came, and in graphs */
  uint64_t changed;         /* of the replayed: handed over again */
  uint64_t graphs;
};

/* The recording runtime over `runtime`, which must have graphs and stay until it is closed. One at
 * a time. */
enum status record_open(const struct cuda_runtime **out, const struct cuda_runtime *runtime,
                        struct error *err);
/* After a last wait; NULL is fine. */
void record_close(void);
struct record_counts record_counts(void);

#endif
