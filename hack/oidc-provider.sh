#!/usr/bin/env bash
# The OpenID provider of the scenarios: installs what tests/oidc-provider/package-lock.json names, by npm, into the cache
# folder, where it is missing, and prints where it is.
#
# The lock file names each package with its version and hash, but not where it comes from. After a change of package.json:
#   npm install --package-lock-only --omit-lockfile-registry-resolved
set -euo pipefail

HACK="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=lib/common.sh
source "$HACK/lib/common.sh"
# shellcheck source-path=SCRIPTDIR source=lib/packages.sh
source "$HACK/lib/packages.sh"

MANIFESTS=("$HACK"/../tests/oidc-provider/package{,-lock}.json)
# Another version is another folder.
FOLDER="$CACHE/oidc-provider-$(cat "${MANIFESTS[@]}" | sha256sum | cut -c -12)"

fetch_provider() {
  [[ ! -d $FOLDER ]] || return 0
  need npm=npm
  log "installing the OpenID provider (npm package oidc-provider, 9 MB)"
  local work="$CACHE/oidc-provider.new"
  rm -rf "$work"
  mkdir -p "$work"
  cp "${MANIFESTS[@]}" "$work/"
  (cd "$work" && npm ci --silent --no-audit --no-fund --ignore-scripts >npm.log 2>&1) || {
    cat "$work/npm.log" >&2
    die "could not install the npm package oidc-provider"
  }
  mv "$work" "$FOLDER"
}

[[ -d $FOLDER ]] || with_cache_lock oidc-provider fetch_provider
echo "$FOLDER"
