# shellcheck shell=bash
# Suites of tests: each is run, its output is shown and kept in $LOGS, and a summary counts all of them.

# For a suite that ended with an error, its name; for one without any result, why.
FAILED=()
declare -A NOT_RUN=()

# suite NAME CMD…: runs a suite. Needs `set -o pipefail`.
suite() {
  local name=$1 code=0
  shift
  "$@" 2>&1 | tee "$LOGS/$name" || code=$?
  judge "$name" "$code"
}

# judge NAME EXIT-CODE: of a suite whose output is in $LOGS/NAME. One that prints no result is a failure, whatever its
# exit code is.
judge() {
  if ! grep -q '^test result:' "$LOGS/$1"; then
    NOT_RUN[$1]="exit code $2"
  elif (($2 != 0)); then
    FAILED+=("$1")
  fi
}

all_suites_passed() { ((${#FAILED[@]} + ${#NOT_RUN[@]} == 0)); }

# tell_not_run: for each suite that did not run, the end of its output, where the reason is.
tell_not_run() {
  local name
  for name in "${!NOT_RUN[@]}"; do
    printf '\ntests: the suite "%s" did not run (%s). The end of its output:\n' "$name" "${NOT_RUN[$name]}"
    tail -n 25 "$LOGS/$name" | cut -c -300 | sed 's/^/  /'
  done
}

# summary SECONDS: a suite that did not run counts as a failure.
summary() {
  cat "$LOGS"/* | awk -v seconds="$1" -v lost="${#NOT_RUN[@]}" '
    /^test result:/ { passed += $4; failed += $6; ignored += $8 }
    END {
      printf "\nall tests: %d passed, %d failed, %d ignored, in %d s\n", passed, failed + lost, ignored, seconds
      if (lost) printf "suites that did not run, each counted as a failure: %d\n", lost
    }'
}
