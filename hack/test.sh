#!/usr/bin/env bash
# All tests, first those that need no cluster, then the scenarios on a real API server of their own, and at last chaos.
#
# TOKENCACHE_TEST_KUBECONFIG names a cluster to run the scenarios on instead (see hack/cluster.sh --help).
# Arguments go to the scenarios: hack/test.sh a_deleted_secret
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

started=$SECONDS
log=$(mktemp) fuzz_log=$(mktemp) fuzzing=
trap 'rm -f "$log" "$fuzz_log"; [[ -z $fuzzing ]] || kill "$fuzzing" 2>/dev/null || true' EXIT

# cargo_test ARGUMENT…: shown, and kept for the summary.
cargo_test() { "${runner[@]}" cargo test --locked --no-fail-fast "$@" 2>&1 | tee -a "$log"; }

# Those that watch for a time watch for as long as the promise says.
export TOKENCACHE_LONG=${TOKENCACHE_LONG:-1}

code=0
runner=()
(($# > 0)) || cargo_test --lib --bins --examples || code=$?
# So that no scenario waits for npm.
hack/oidc-provider.sh >/dev/null
# Compiled before the cluster is there: a compiler next to it would take its processors.
cargo test --locked --no-run --test scenarios --test node --test chart --test chaos
# Only root can install it; without it, what needs it says that it is skipped.
if ((EUID == 0)); then
  hack/prometheus.sh
  hack/faketime.sh
fi
runner=(hack/cluster.sh run --)
# More at once than there are processors: most of a scenario is waiting.
cargo_test --test scenarios -- --test-threads=8 "$@" || code=$?
# Random input, a minute each, in what the waiting for pods leaves of the processors.
if (($# == 0)); then
  TOKENCACHE_FUZZ=60 nice -n 19 cargo test --locked --lib fuzz_tests >"$fuzz_log" 2>&1 &
  fuzzing=$!
fi
# Jobs run on a node, which takes root; without one each of these says that it is skipped.
((EUID != 0)) || runner=(hack/cluster.sh run --node --)
cargo_test --test node -- --test-threads=2 "$@" || code=$?
if [[ -n $fuzzing ]]; then
  wait "$fuzzing" || code=$?
  fuzzing=
  tee -a "$log" <"$fuzz_log"
fi
# A node of its own, for what is installed there looks after all namespaces.
cargo_test --test chart -- --test-threads=2 "$@" || code=$?
(($# > 0)) || hack/chaos.sh --short 2>&1 | tee -a "$log" || code=$?

# In CI the last lines are the test runner's own.
if [[ ${CI-} != true ]]; then
  awk -v seconds="$((SECONDS - started))" '
    /^test result:/ { passed += $4; failed += $6; ignored += $8 }
    END { printf "\nall tests: %d passed, %d failed, %d ignored, in %d s\n", passed, failed, ignored, seconds }' "$log"
fi
exit "$code"
