#!/bin/sh
# Runs every test program of a build and counts what they report. Usage: tests/run.sh BUILD [NAME..]
# TSR_EMULATOR is a command that runs programs built for another processor; TSR_VALGRIND=1 runs the
# test programs (not what they start) under valgrind.
# TSR_SHARED names the folder with evaluation data (default ../shared); tests that need it skip
# aloud when it is absent.
set -u
build=$1
shift
export TSR_PROGRAM="${TSR_EMULATOR:+$TSR_EMULATOR }$PWD/$build/tessera"
export TSR_SOURCE="$PWD"
export TSR_SHARED="${TSR_SHARED:-$PWD/../shared}"
passed=0 failed=0 skipped=0 broken=""
log=$(mktemp)
trap 'rm -f "$log"' EXIT
[ -d "$TSR_SHARED/data" ] || echo "note: no evaluation data at $TSR_SHARED; tests that need it are skipped"
under="${TSR_EMULATOR:-}"
[ -n "${TSR_VALGRIND:-}" ] && \
  under="valgrind -q --error-exitcode=99 --leak-check=full --suppressions=tests/valgrind.supp"
names="$*"
[ -n "$names" ] || names=$(cd "$build/tests" && ls | grep '^test_')
for name in $names; do
  start=$(date +%s)
  $under "$build/tests/$name" >"$log" 2>&1
  status=$?
  # cmocka names failed and skipped tests a second time behind its closing line
  count() { sed '/test(s) run/q' "$log" | grep -c "^\[ *$1 *\]"; }
  ok=$(count OK) bad=$(count FAILED) skip=$(count SKIPPED)
  [ "$status" -ne 0 ] && [ "$bad" -eq 0 ] && bad=1
  passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
  printf '%-32s %4d passed %3d failed %3d skipped  %3ds\n' "$name" "$ok" "$bad" "$skip" \
    $(($(date +%s) - start))
  grep '^skip:' "$log"
  if [ "$bad" -gt 0 ]; then
    broken="$broken $name"
    cat "$log"
  fi
done
[ -z "$broken" ] || echo "failed:$broken"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
