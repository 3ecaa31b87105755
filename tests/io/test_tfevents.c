/* TensorBoard files: the checksum against its standard value, and every record taken apart again.
 */
#include "io/tfevents.h"

#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "support/support.h"

static void checksum_of_the_standard_text(void **state) {
  (void)state;
  assert_int_equal(crc32c("123456789", 9), 0xe3069283u);
  uint8_t zeros[32] = {0};
  assert_int_equal(crc32c(zeros, 32), 0x8a9136aau); /* RFC 3720, B.4 */
}

static uint32_t unmask(uint32_t masked) {
  uint32_t rotated = masked - 0xa282ead8u;
  return rotated >> 17 | rotated << 15;
}

/* Checks one record's frame; returns its message and moves *at behind it. */
static const uint8_t *next_record(const char *data, size_t size, size_t *at, size_t *length) {
  uint64_t bytes;
  uint32_t sums[2];
  assert_true(*at + 12 <= size);
  memcpy(&bytes, data + *at, 8);
  memcpy(&sums[0], data + *at + 8, 4);
  assert_true(bytes < 1000 && *at + 16 + bytes <= size);
  memcpy(&sums[1], data + *at + 12 + bytes, 4);
  assert_int_equal(unmask(sums[0]), crc32c(data + *at, 8));
  assert_int_equal(unmask(sums[1]), crc32c(data + *at + 12, bytes));
  const uint8_t *message = (const uint8_t *)data + *at + 12;
  *at += 16 + bytes;
  *length = bytes;
  return message;
}

static void records_are_framed_and_hold_the_point(void **state) {
  (void)state;
  struct error err = {0};
  struct tfevents t;
  must(tfevents_open(&t, scratch_path("events"), 3, &err), err);
  must(tfevents_scalar(&t, "loss/lm", 300, 2.5, &err), err);
  char *data;
  size_t size, at = 0, length;
  must(file_read(t.path, 1 << 16, &data, &size, &err), err);
  tfevents_close(&t);
  tfevents_close(&t);
  assert_non_null(memmem(next_record(data, size, &at, &length), 24 + 2, "brain.Event:2", 13));
  /* session start at step 3: field 2 varint 3, field 7 { field 1 varint 1 } */
  const uint8_t *start = next_record(data, size, &at, &length);
  assert_int_equal(length, 15);
  assert_memory_equal(start + 9, "\x10\x03\x3a\x02\x08\x01", 6);
  /* step 300 = varint ac 02; summary { value { tag, simple_value 2.5f } } */
  const uint8_t *point = next_record(data, size, &at, &length);
  static const char expected[] = "\x10\xac\x02\x2a\x10\x0a\x0e\x0a\x07loss/lm\x15\x00\x00\x20\x40";
  assert_int_equal(length, 9 + sizeof expected - 1);
  assert_int_equal(point[0], 0x09);
  assert_memory_equal(point + 9, expected, sizeof expected - 1);
  assert_int_equal(at, size);
  free(data);
}

static void says_where_it_cannot_write(void **state) {
  (void)state;
  struct error err = {0};
  struct tfevents t;
  assert_int_equal(tfevents_open(&t, "/proc/none/events", 0, &err), STATUS_FAILED);
  assert_non_null(strstr(err.text, "/proc/none/events"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(checksum_of_the_standard_text),
      cmocka_unit_test(records_are_framed_and_hold_the_point),
      cmocka_unit_test(says_where_it_cannot_write),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
