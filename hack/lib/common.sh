# shellcheck shell=bash
# Paths, messages, and processes that are known by more than their number.

CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/tokencache"
RUN_ROOT="${XDG_RUNTIME_DIR:-/tmp}/tokencache"
KUBE_VERSION=v1.20.2

log() { printf '%s\n' "cluster: $*" >&2; }
die() {
  log "$*"
  exit 1
}

# with_lock NAME CMD…: one invocation at a time on this machine; whoever comes second says that it waits.
# The lock's descriptor is closed for CMD's children by being opened in a subshell of its own.
with_lock() {
  local name=$1
  shift
  mkdir -p "$CACHE"
  (
    exec 9>"$CACHE/$name.lock"
    if ! flock -n 9; then
      log "another invocation is busy with $name: waiting for it"
      flock 9
    fi
    "$@"
  )
}
