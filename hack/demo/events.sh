# shellcheck shell=bash disable=SC2034 # the other files use what seems unused here
# What is observed: by watches of the API server and from the pod's log. All numbers of the summary come from here.

# The TokenCache, as its status says.
READY='' REASON='' RUNS=0 FAILURES=0 EXPIRES_MS=0 REFRESH_MS=0 TABLE_HEAD='' TABLE_ROW=''
# The Secret: what is in it, when each value came, and for how long there was none that is valid.
VALUE_HASH='' VALUES=0 DELETED_AT=0 LONGEST_GAP=0 LEAST_LEFT=0
declare -A WRITTEN_AT=()
# The pod.
POD_N='' POD_EXP_MS=0 CALLS=0 CALLS_OK=0 LONGEST_LAG=0 PODS_SEEN=''
# The outage.
FAILING='' FAILED_RUNS=0 NOT_READY=0
FOLLOWERS=()
# The beginning of an event whose rest has not been read yet.
BEGUN=''

# follow KIND CMD…: each line that it prints becomes an event, with the time at which it came.
follow() {
  local kind=$1
  shift
  set -m
  {
    "$@" </dev/null 2>>"$DIR/watch-$kind.log" | while IFS= read -r line; do
      printf '%s|%s|%s\n' "${EPOCHREALTIME/[.,]/}" "$kind" "$line"
    done
  } >&"$EVENTS" &
  FOLLOWERS+=($!)
  set +m
  disown
}

end_followers() {
  local group
  for group in ${FOLLOWERS[@]+"${FOLLOWERS[@]}"}; do kill -KILL -- "-$group" 2>/dev/null || true; done
}

start_following() {
  mkfifo -m 600 "$DIR/events"
  exec {EVENTS}<>"$DIR/events"
  # The annotations only: the demo itself never sees a token.
  follow secret kubectl get secrets --field-selector metadata.name=orders-api --watch --output-watch-events \
    -o jsonpath='{.type}|{.object.metadata.annotations.tokencache\.dev/data_hash}|{.object.metadata.annotations.tokencache\.dev/expires_at}{"\n"}'
  follow cache kubectl get tokencaches --field-selector metadata.name=orders-api --watch --output-watch-events \
    -o jsonpath='{.object.status.runs}|{.object.status.failures}|{.object.status.conditions[?(@.type=="Ready")].status}|{.object.status.conditions[?(@.type=="Ready")].reason}|{.object.status.refreshAt}|{.object.status.lastFailure.message}{"\n"}'
  follow table get_again_and_again
  follow pod pod_log
}

get_again_and_again() {
  while kubectl get tokencache orders-api; do sleep 1; done
}

pod_log() {
  until kubectl logs consumer; do sleep 0.5; done >/dev/null
  kubectl logs --follow consumer
}

# milliseconds RFC3339
milliseconds() {
  if [[ -n $1 ]]; then echo "$(date -d "$1" +%s)000"; else echo 0; fi
}

# observe: takes in one event, if there is one.
observe() {
  local line
  if read -r -t 0.2 line <&"$EVENTS"; then
    line=$BEGUN$line BEGUN=''
    AT=$((${line%%|*} / 1000)) line=${line#*|}
    case ${line%%|*} in
      secret) on_secret "${line#*|}" ;;
      cache) on_cache "${line#*|}" ;;
      table) on_table "${line#*|}" ;;
      pod) on_pod "${line#*|}" ;;
    esac
    AT=''
  else
    # The time was up in the midst of a line.
    BEGUN+=$line
  fi
  alive "$DIR/controller.pid" || die "the controller ended"
  alive "$DIR/token-server.pid" || die "the token server ended"
  draw
}

on_secret() {
  local type hash expires
  IFS='|' read -r type hash expires <<<"$1"
  if [[ $type == DELETED ]]; then
    DELETED_AT=$AT
    say "the Secret is deleted" "$YELLOW"
    return
  fi
  [[ $hash != "$VALUE_HASH" ]] || return 0
  local since=$EXPIRES_MS left=$((EXPIRES_MS - AT)) how=''
  ((DELETED_AT == 0 || DELETED_AT > since)) || since=$DELETED_AT
  VALUES=$((VALUES + 1)) VALUE_HASH=$hash EXPIRES_MS=$(milliseconds "$expires")
  WRITTEN_AT[$VALUES]=$AT
  if ((VALUES > 1)); then
    ((AT - since <= LONGEST_GAP)) || LONGEST_GAP=$((AT - since))
    if ((DELETED_AT > 0)); then
      how=", $((AT - DELETED_AT)) ms after it was deleted"
    else
      how="; the old one had $(tenths "$left") s left"
      ((LEAST_LEFT > 0 && left >= LEAST_LEFT)) || LEAST_LEFT=$left
    fi
  fi
  DELETED_AT=0
  say "the Secret has value number $VALUES, $(short "$hash"), valid until $(date -d "$expires" +%T)$how" "$GREEN"
}

on_cache() {
  local runs failures ready reason refresh message
  IFS='|' read -r runs failures ready reason refresh message <<<"$1"
  [[ -n $ready ]] || return 0
  if ((failures > 0 && runs > RUNS)); then
    FAILED_RUNS=$((FAILED_RUNS + 1))
    say "attempt $failures failed: $message" "$YELLOW"
  fi
  [[ $ready == True || -z $READY ]] || NOT_READY=$((NOT_READY + 1))
  if [[ "$ready $reason" != "$READY $REASON" ]]; then
    if [[ $ready == True ]]; then say "Ready is True: $reason"; else say "Ready is $ready: $reason" "$RED"; fi
  fi
  RUNS=$runs FAILURES=$failures READY=$ready REASON=$reason REFRESH_MS=$(milliseconds "$refresh")
}

on_table() {
  if [[ $1 == NAME* ]]; then
    TABLE_HEAD=$1
    return
  fi
  # All but the age.
  if [[ -z $TERMINAL && ${1% *} != "${TABLE_ROW% *}" ]]; then
    say "$TABLE_HEAD"
    say "$1"
  fi
  TABLE_ROW=$1
}

# on_pod "n=… exp=… HTTP/1.1 200 OK"
on_pod() {
  local number expiry status
  read -r number expiry status <<<"$1"
  number=${number#n=}
  CALLS=$((CALLS + 1))
  if [[ $status == *' 200 '* ]]; then
    CALLS_OK=$((CALLS_OK + 1))
  else
    say "the pod's call with token n=$number was answered: $status" "$RED"
  fi
  [[ $number != "$POD_N" ]] || return 0
  POD_N=$number POD_EXP_MS="${expiry#exp=}000" PODS_SEEN+=" $number"
  # The server numbers its tokens, and each one went into the Secret.
  local lag=$((AT - ${WRITTEN_AT[$number]:-$AT}))
  ((VALUES == 1 || lag <= LONGEST_LAG)) || LONGEST_LAG=$lag
  local how=''
  ((VALUES == 1)) || how=", $(tenths "$lag") s after the Secret had it"
  say "the pod reads token n=$number from its mounted file$how; its call: $status"
}

# tenths MS: in seconds.
tenths() { printf '%d.%d' "$(($1 / 1000))" "$(($1 % 1000 / 100))"; }

# until_seen SECONDS WHAT CONDITION…: observes until the condition, an arithmetic expression or a command, holds.
until_seen() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    ((SECONDS < deadline)) || die "not seen within its time: $what"
    observe
  done
}
