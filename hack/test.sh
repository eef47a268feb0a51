#!/usr/bin/env bash
# All tests, first those that need no cluster, then the scenarios on a real API server of their own, and at last chaos.
#
# TOKENCACHE_TEST_KUBECONFIG names a cluster to run the scenarios on instead (see hack/cluster.sh --help).
# Arguments go to the scenarios: hack/test.sh a_deleted_secret
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=lib/suites.sh
source hack/lib/suites.sh

started=$SECONDS
LOGS=$(mktemp -d) fuzzing=
trap '[[ -z $fuzzing ]] || kill "$fuzzing" 2>/dev/null || true; rm -rf "$LOGS"' EXIT

# cargo_suite NAME ARGUMENT…: on what `runner` brings up.
cargo_suite() { suite "$1" "${runner[@]}" cargo test --locked --no-fail-fast "${@:2}"; }

# Those that watch for a time watch for as long as the promise says.
export TOKENCACHE_LONG=${TOKENCACHE_LONG:-1}

runner=()
(($# > 0)) || cargo_suite unit --lib --bins --examples
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
cargo_suite scenarios --test scenarios -- --test-threads=8 "$@"
# Random input, a minute each, in what the waiting for pods leaves of the processors.
if (($# == 0)); then
  TOKENCACHE_FUZZ=60 nice -n 19 cargo test --locked --lib fuzz_tests >"$LOGS/fuzz" 2>&1 &
  fuzzing=$!
fi
# Jobs run on a node, which takes root; without one each of these says that it is skipped.
((EUID != 0)) || runner=(hack/cluster.sh run --node --)
cargo_suite node --test node -- --test-threads=2 "$@"
if [[ -n $fuzzing ]]; then
  code=0
  wait "$fuzzing" || code=$?
  fuzzing=
  cat "$LOGS/fuzz"
  judge fuzz "$code"
fi
# A node of its own, for what is installed there looks after all namespaces.
cargo_suite chart --test chart -- --test-threads=2 "$@"
(($# > 0)) || suite chaos hack/chaos.sh --short

tell_not_run >&2
# In CI the last lines are the test runner's own.
[[ ${CI-} == true ]] || summary "$((SECONDS - started))"
all_suites_passed
