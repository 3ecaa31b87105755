/* Names of tasks to items with token ids: the first half of zeroshot.h. */
#ifndef TSR_EVAL_ZEROSHOT_LOAD_H
#define TSR_EVAL_ZEROSHOT_LOAD_H

#include "eval/zeroshot.h"

/* Fills in the tasks of a zeroed result: items, texts ready to be scored. */
enum status zeroshot_load(struct zeroshot_result *result, const struct zeroshot_request *request,
                          struct error *err);

#endif
