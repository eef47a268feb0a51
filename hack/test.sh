#!/usr/bin/env bash
# All tests, first those that need no cluster, then the scenarios on a real API server of their own, and at last chaos.
# Scenarios, node tests, chart tests and chaos run an optimised binary (see hack/test-binary.sh --help).
#
# TOKENCACHE_TEST_KUBECONFIG names a cluster to run the scenarios on instead (see hack/cluster.sh --help).
# TOKENCACHE_TEST_BINARY names a binary to test instead.
# Arguments go to the scenarios: hack/test.sh a_deleted_secret
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=lib/suites.sh
source hack/lib/suites.sh

started=$SECONDS
work=$(mktemp -d) building='' fuzzing=''
LOGS=$work/logs
mkdir "$LOGS"
finish() {
  local pid
  for pid in $building $fuzzing; do kill "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap finish EXIT

# cargo_suite NAME ARGUMENT…: on what `runner` brings up.
cargo_suite() { suite "$1" "${runner[@]}" cargo test --locked --no-fail-fast "${@:2}"; }

# Those that watch for a time watch for as long as the promise says.
export TOKENCACHE_LONG=${TOKENCACHE_LONG:-1}

# Beside the builds of the tests, each of which keeps one processor busy for a good part of its time.
if [[ -z ${TOKENCACHE_TEST_BINARY-} ]]; then
  hack/test-binary.sh >"$work/binary" 2>"$work/build" &
  building=$!
fi
runner=()
(($# > 0)) || cargo_suite unit --lib --bins --examples
# So that no scenario waits for npm.
hack/oidc-provider.sh >/dev/null
# Compiled before the cluster is there: a compiler next to it would take its processors.
cargo test --locked --no-run --test scenarios --test node --test chart --test chaos
if [[ -n $building ]]; then
  echo "waiting for the optimised binary"
  wait "$building" || {
    cat "$work/build" >&2
    exit 1
  }
  building=''
  TOKENCACHE_TEST_BINARY=$(<"$work/binary")
fi
export TOKENCACHE_TEST_BINARY
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
# Unoptimised tests of jobs need more than the 2 MiB that a test's thread has.
RUST_MIN_STACK=$((16 << 20)) cargo_suite node --test node -- --test-threads=2 "$@"
if [[ -n $fuzzing ]]; then
  code=0
  wait "$fuzzing" || code=$?
  fuzzing=
  cat "$LOGS/fuzz"
  judge fuzz "$code"
fi
# A node of its own, because the chart installed there manages all namespaces.
cargo_suite chart --test chart -- --test-threads=2 "$@"
(($# > 0)) || suite chaos hack/chaos.sh --short

tell_not_run >&2
# In CI the last lines are the test runner's own.
[[ ${CI-} == true ]] || summary "$((SECONDS - started))"
all_suites_passed
