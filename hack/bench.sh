#!/usr/bin/env bash
# What the controller costs, measured beside bare calls: --help says what can be asked for.
set -euo pipefail

HACK="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cd "$HACK/.."

usage() {
  cat <<'HELP'
usage: hack/bench.sh

Builds the release binary, starts a cluster of its own (or takes that of TOKENCACHE_TEST_KUBECONFIG), measures what the
controller costs, and prints a table for docs/contributing/performance-diary.md. Exits with 0 when all is within reach, with 1 when not.

Environment, with what is taken where it is not set:
  ROWS         which rows: "new refresh idle lag replicas growth neighbours"
  NEW          TokenCaches that are created at once: 2000
  MANY         TokenCaches that are refreshed, and that are idle: 10000
  GROWTH       numbers of TokenCaches, growing: "1000 3000 10000 30000 100000"
  WINDOW       length of each measurement in seconds: 30
  ROUNDS       how often floor and controller take turns: 3
  CONCURRENCY  runs at once: 64
  PLOT         where the curve of growth is written: target/growth.svg

All of it takes about an hour on two cores. A quick look: ROWS="new refresh idle" NEW=200 MANY=500 ROUNDS=1 WINDOW=5 hack/bench.sh
HELP
}

if (($#)); then
  usage
  [[ $1 == --help || $1 == -h ]] || exit 2
  exit 0
fi
# Before the cluster is up, which the compiler would disturb.
cargo bench --locked --bench load --no-run
exec hack/cluster.sh run -- cargo bench --locked --quiet --bench load
