#!/usr/bin/env bash
# Debian's faketime, for the tests: --help says what it does.
set -euo pipefail

HACK="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=lib/common.sh
source "$HACK/lib/common.sh"
# shellcheck source-path=SCRIPTDIR source=lib/packages.sh
source "$HACK/lib/packages.sh"

[[ ${1-} != --help && ${1-} != -h ]] || {
  echo "usage: hack/faketime.sh: installs Debian's faketime where it is missing, with which a process sees another time"
  exit
}
need faketime=faketime
