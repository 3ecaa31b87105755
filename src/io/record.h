/* Records: one JSON object per line, appended while work goes on, read back after kills.
 *
 * A process killed while it appends leaves a torn last line. The next append ends it first, so
 * that damage never spreads to a second line, and reading counts such lines and goes on. */
#ifndef TSR_IO_RECORD_H
#define TSR_IO_RECORD_H

#include "io/json.h"

enum { RECORD_LINE_BYTES_MAX = 16 << 20 };
#define RECORD_FILE_BYTES_MAX ((size_t)1 << 30)

/* Appends `line` (an object) in one write, and has it reach the disk. Makes the file if needed. */
enum status record_append(const char *path, const json_t *line, struct error *err);

/* All whole lines of a file, as a JSON array (new reference); `damaged` gets the number of lines
 * that are no JSON object (may be NULL). NULL and a filled error when the file cannot be read. */
json_t *record_read(const char *path, size_t *damaged, struct error *err);

#endif
