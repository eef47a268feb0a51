#!/usr/bin/env bash
# Chaos around three controllers on a cluster of its own, and the soak: --help tells more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'HELP'
usage: hack/chaos.sh [--short | --soak]

Three controllers, hundreds of TokenCaches with tokens of 5 s, and everything that may go wrong, at random: what happens
is told as it happens, and at the end what was counted. Exit code 0: all counts are as they should be.

            10 minutes, 300 TokenCaches, a release build
--short     2 minutes, 20 TokenCaches, the optimised binary of hack/test-binary.sh
--soak      an hour of steady load on one controller, of which memory and file descriptors are measured

Environment:
  TOKENCACHE_CHAOS_SECONDS  how long
  TOKENCACHE_CHAOS_CACHES   how many TokenCaches
  TOKENCACHE_CHAOS_SEED     the number that an earlier run printed first, for the same faults at the same times
  TOKENCACHE_TEST_BINARY    with --short: a binary to test instead
HELP
}

seconds=600 caches=300 arguments=() profile=(--release)
case ${1-} in
  '') ;;
  --short) seconds=120 caches=20 profile=() ;;
  --soak) seconds=3600 caches=50 arguments=(--ignored) ;;
  *)
    usage
    exit
    ;;
esac
export TOKENCACHE_CHAOS_SECONDS=${TOKENCACHE_CHAOS_SECONDS:-$seconds}
export TOKENCACHE_CHAOS_CACHES=${TOKENCACHE_CHAOS_CACHES:-$caches}
# etcd is killed as well, and must not lose what it has confirmed. That is kept in memory where there is room: what
# survives a process need not survive the machine, and a disk takes longer to confirm than all the rest.
export TOKENCACHE_DURABLE=1
room=$(df --output=avail -B 1G /dev/shm 2>/dev/null | tail -n 1) || room=0
((room < 4)) || export XDG_RUNTIME_DIR=/dev/shm
# It kills parts of the cluster, so it never uses an existing one.
unset TOKENCACHE_TEST_KUBECONFIG

((EUID != 0)) || hack/faketime.sh
# Compiled before the cluster is there: a compiler next to it would take its processors.
cargo test --locked --no-run "${profile[@]}" --test chaos
if ((${#profile[@]} > 0)); then
  # Cargo has built it beside the test, optimised as it is.
  unset TOKENCACHE_TEST_BINARY
else
  [[ -n ${TOKENCACHE_TEST_BINARY-} ]] || TOKENCACHE_TEST_BINARY=$(hack/test-binary.sh)
  export TOKENCACHE_TEST_BINARY
fi
exec hack/cluster.sh run -- cargo test --locked "${profile[@]}" --test chaos -- --nocapture "${arguments[@]}"
