/* Time. Monotonic seconds for durations, and ISO 8601 UTC for records. */
#ifndef TSR_BASE_CLOCK_H
#define TSR_BASE_CLOCK_H

double clock_seconds(void);
/* "2026-01-31T09:05:00Z" into out[21]. */
void clock_iso(char out[21]);

#endif
