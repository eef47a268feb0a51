#!/usr/bin/env bash
# tokencache at work on this machine, from nothing to a pod that uses a token: --help says what it does.
set -euo pipefail

HACK="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=lib/common.sh
source "$HACK/lib/common.sh"
# shellcheck source-path=SCRIPTDIR source=demo/stage.sh
source "$HACK/demo/stage.sh"
# shellcheck source-path=SCRIPTDIR source=demo/screen.sh
source "$HACK/demo/screen.sh"
# shellcheck source-path=SCRIPTDIR source=demo/events.sh
source "$HACK/demo/events.sh"
# shellcheck source-path=SCRIPTDIR source=demo/acts.sh
source "$HACK/demo/acts.sh"

usage() {
  cat <<'HELP'
usage: hack/demo.sh [--keep]
       hack/demo.sh --end

Builds the controller, brings up a Kubernetes cluster with a node (hack/cluster.sh; it needs root), and shows a token
that lives for 30 s being kept fresh in a Secret that a pod mounts: its refreshes, a failure of the token server, and
the deletion of the Secret. That takes about 80 s, and the first time on a machine about 12 minutes more, for the
builds. The exit code is 0 only if all that it claims was seen.

--keep  Leaves everything running at the end, and prints commands to try.
--end   Ends what was kept.

On a terminal the lower part of the screen is redrawn; elsewhere there are plain lines with times. NO_COLOR is obeyed.
HELP
}

log() { say "$*"; }
die() {
  PROBLEM=$*
  exit 1
}

# finish: on every way out. Ends what was started, or reports where it still runs.
finish() {
  local code=$?
  trap '' INT TERM HUP
  # A signal may have come in the middle of a `read` with another one.
  IFS=$' \t\n'
  close_screen
  end_followers
  [[ -z ${STEP-} ]] || kill -TERM -- "-$STEP" 2>/dev/null || true
  [[ -z ${PROBLEM-} ]] || printf '\n%sdemo: %s%s\n' "$RED" "$PROBLEM" "$PLAIN" >&2
  [[ -n ${DIR-} ]] || exit "$code"
  if [[ -n $KEEP && -n ${ACTS_DONE-} ]]; then
    commands_to_try
    exit "$code"
  fi
  if ((code != 0)) && [[ -z ${SIGNAL-} ]]; then keep_logs; fi
  echo "demo: ending what was started"
  end_stage "$DIR"
  exit "$code"
}

interrupted() {
  SIGNAL=$1
  PROBLEM="ended by SIG$1"
  exit "$((128 + $(kill -l "$1")))"
}

# The logs are of use after a failure. The client's secret is not among them.
keep_logs() {
  local logs
  logs=$(mktemp -d "${TMPDIR:-/tmp}/tokencache-demo-logs.XXXXXX")
  cp "$DIR"/*.log "$RUN_ROOT/$CLUSTER"/*.log "$logs/" 2>/dev/null || true
  kubectl get tokencaches,secrets,pods,events >"$logs/kubectl-get.log" 2>&1 || true
  [[ ! -s $logs/controller.log ]] || {
    echo "demo: the end of the controller's log:"
    tail -n 8 "$logs/controller.log" | cut -c -300 | sed 's/^/  /'
  }
  echo "demo: all logs are in $logs"
}

main() {
  KEEP=''
  while (($#)); do
    case $1 in
      --keep) KEEP=yes ;;
      --end)
        end_kept
        return
        ;;
      --help | -h)
        usage
        return
        ;;
      *)
        echo "demo: unknown option $1: see --help" >&2
        return 2
        ;;
    esac
    shift
  done
  trap finish EXIT
  for signal in INT TERM HUP; do
    # shellcheck disable=SC2064 # the signal is known now
    trap "interrupted $signal" "$signal"
  done
  open_screen
  set_stage
  play
}

main "$@"
