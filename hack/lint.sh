#!/usr/bin/env bash
# Format, clippy, rustdoc, and shellcheck on every shell script: no warning is let through.
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

# By their first line.
scripts() {
  find . -path ./target -prune -o -path ./.git -prune -o -type f -print | while IFS= read -r file; do
    ! head -n 1 "$file" | grep -q -a -E '^#!.*\bbash|^# shellcheck shell=' || echo "$file"
  done
}

components
log "cargo fmt"
cargo fmt --check
log "cargo clippy"
cargo clippy --all-targets --locked -- -D warnings
log "cargo clippy of the consumers' library alone"
cargo clippy --no-default-features --features client --locked -- -D warnings
log "cargo doc"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
log "shellcheck"
need shellcheck=shellcheck
mapfile -t files < <(scripts)
shellcheck --external-sources "${files[@]}"
log "${#files[@]} shell scripts, and all Rust code: no findings"
