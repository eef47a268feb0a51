#!/usr/bin/env bash
# Debian's Prometheus, for the tests: --help says what it prints.
set -euo pipefail

HACK="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=lib/common.sh
source "$HACK/lib/common.sh"
# shellcheck source-path=SCRIPTDIR source=lib/packages.sh
source "$HACK/lib/packages.sh"

[[ ${1-} != --help && ${1-} != -h ]] || {
  echo "usage: hack/prometheus.sh: installs Debian's prometheus where prometheus and promtool are missing"
  exit
}
need prometheus=promtool
