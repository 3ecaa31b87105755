/* What a learning run says at its start (its figures at the end: learn_report_figures in run.h). */
#ifndef TSR_LEARN_RUN_REPORT_H
#define TSR_LEARN_RUN_REPORT_H

#include "learn/run.h"

/* Settings, memory and time that the run will take; of a dry run, memory part by part. */
void run_say_plan(const struct learn_report *report);
/* What a budget of time became, or that a continued run ignores it; nothing where none was given.
 */
void run_say_budget(const struct learn_request *request, const struct learn_report *report);

#endif
