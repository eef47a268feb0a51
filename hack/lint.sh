#!/usr/bin/env bash
# Format, clippy, rustdoc, cargo deny, the word list, and shellcheck on every shell script: no warning is let through.
set -euo pipefail

HACK="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=lib/common.sh
source "$HACK/lib/common.sh"
# shellcheck source-path=SCRIPTDIR source=lib/packages.sh
source "$HACK/lib/packages.sh"
cd "$HACK/.."

log() { echo "lint: $*" >&2; }

components() {
  if cargo fmt --version && cargo clippy --version; then return; fi >/dev/null 2>&1
  log "installing rustfmt and clippy"
  rustup component add rustfmt clippy
}

DENY_VERSION=0.20.2
DENY="$CACHE/cargo-deny-$DENY_VERSION"

# Unoptimised: it takes a second here, and a third of the time to build.
install_cargo_deny() {
  [[ ! -d $DENY ]] || return 0
  log "building cargo-deny $DENY_VERSION, which takes about two minutes"
  local work="$CACHE/cargo-deny.new"
  rm -rf "$work"
  CARGO_TARGET_DIR="$work/target" CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug \
    --no-default-features --root "$work/root" --version "$DENY_VERSION" cargo-deny
  mv "$work/root" "$DENY"
  rm -rf "$work"
}

# By their first line.
scripts() {
  find . -path ./target -prune -o -path ./.git -prune -o -type f -print | while IFS= read -r file; do
    ! head -n 1 "$file" | grep -q -a -E '^#!.*\bbash|^# shellcheck shell=' || echo "$file"
  done
}

# Words of words.txt in text that users read: documentation, chart, manifests, help and descriptions of fields.
words() {
  local pattern instead found=0
  while IFS=$'\t' read -r pattern instead; do
    [[ -n $pattern && $pattern != \#* ]] || continue
    if grep -rnE -i --exclude-dir=contributing -- "$pattern" README.md CONTRIBUTING.md SECURITY.md CHANGELOG.md Makefile docs charts config crds examples/*.yaml; then
      log "instead of '$pattern' write: $instead"
      found=1
    fi
  done <hack/words.txt
  return "$found"
}

components
log "words"
words
log "cargo fmt"
cargo fmt --check
log "cargo clippy"
cargo clippy --all-targets --locked -- -D warnings
log "cargo clippy of the consumers' library alone"
cargo clippy --no-default-features --features client --locked -- -D warnings
log "cargo doc"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
log "cargo deny"
[[ -d $DENY ]] || with_cache_lock cargo-deny install_cargo_deny
"$DENY/bin/cargo-deny" --locked --log-level warn check licenses bans sources
log "shellcheck"
need shellcheck=shellcheck
mapfile -t files < <(scripts)
shellcheck --external-sources "${files[@]}"
log "${#files[@]} shell scripts, and all Rust code: no findings"
