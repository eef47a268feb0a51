#!/usr/bin/env bash
# The program as the tests run it, optimised like the one that is shipped: --help says more.
set -euo pipefail

HACK="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=lib/common.sh
source "$HACK/lib/common.sh"

usage() {
  cat <<'HELP'
usage: hack/test-binary.sh

Builds tokencache with the profile test-release of Cargo.toml, and prints the path of the binary. Tests that find this path
in TOKENCACHE_TEST_BINARY run that binary instead of the debug build:

  export TOKENCACHE_TEST_BINARY="$(hack/test-binary.sh)"

Some faults of a compiler are only in optimised code. What is built is kept in ${XDG_CACHE_HOME:-~/.cache}/tokencache, outside
the checkout. The first build takes about 6 minutes on two cores, later ones about one.
HELP
}

# build: the binary as FOLDER/tokencache, which is this checkout's own. The build folder is shared by all checkouts, and
# the next build there replaces the binary.
build() {
  local built_from="$CACHE/target/test-release.checkout"
  # Cargo compares times only: files of this checkout may be older than a build of another one.
  [[ $(cat "$built_from" 2>/dev/null) == "$PWD" ]] || rm -rf "$CACHE"/target/test-release/.fingerprint/tokencache-*
  echo "$PWD" >"$built_from"
  CARGO_INCREMENTAL=0 CARGO_TARGET_DIR="$CACHE/target" \
    cargo build --locked --profile test-release --bin tokencache >&2 || return
  mkdir -p "$FOLDER"
  cp "$CACHE/target/test-release/tokencache" "$FOLDER/tokencache.new"
  mv "$FOLDER/tokencache.new" "$FOLDER/tokencache"
}

(($# == 0)) || {
  usage
  [[ $1 == --help || $1 == -h ]] || exit 2
  exit 0
}
cd "$HACK/.."
FOLDER="$CACHE/test-binary/$(printf %s "$PWD" | cksum | cut -d ' ' -f 1)"
with_cache_lock test-binary build
echo "$FOLDER/tokencache"
