# shellcheck shell=bash
# Paths, messages, locks, and processes that are known by more than their number.

CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/tokencache"
# shellcheck disable=SC2034 # the others use it
RUN_ROOT="${XDG_RUNTIME_DIR:-/tmp}/tokencache"
# Debian keeps iptables and the like where only root's login shell looks.
PATH="$PATH:/usr/sbin:/sbin"
# A proxy could not reach the nodes' networks (see node.sh).
[[ -z ${HTTPS_PROXY-}${https_proxy-} ]] || {
  export NO_PROXY="${NO_PROXY:-${no_proxy-}},127.0.0.1,10.213.0.0/16,10.214.0.0/16"
  export no_proxy="$NO_PROXY"
}

log() { printf '%s\n' "cluster: $*" >&2; }
die() {
  log "$*"
  exit 1
}

# with_lock FILE CMD…: one invocation at a time on this machine; whoever comes second says that it waits.
with_lock() {
  local file=$1 what
  what=$(basename "$1" .lock)
  what=${what#.}
  shift
  (
    # The file may have been removed by its holder while we waited for it: a lock on that keeps nobody out.
    while true; do
      exec 9>"$file"
      flock -n 9 || {
        log "another invocation is busy with $what: waiting for it"
        flock 9
      }
      [[ ! $file -ef /dev/fd/9 ]] || break
    done
    "$@"
  )
}

with_cache_lock() {
  mkdir -p "$CACHE"
  with_lock "$CACHE/$1.lock" "${@:2}"
}

# process_start PID: when it started, in clock ticks since boot; nothing if it has ended. A pid alone can be reused.
process_start() {
  local stat
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 0
  # The name, in parentheses, may hold spaces.
  read -ra stat <<<"${stat##*) }"
  # It holds its ports until the last of its threads has ended.
  local threads=("/proc/$1/task/"*)
  [[ ${stat[0]} == Z ]] && ((${#threads[@]} < 2)) || echo "${stat[19]}"
}

# spawn COMPONENT CMD…: a daemon of the cluster in $DIR, in a session of its own so that it outlives us.
spawn() {
  local component=$1 pid
  shift
  printf '%s\0' "$@" >"$DIR/$component.command"
  # A shell's background processes ignore SIGINT, and what they start inherits it: hence default-signal.
  # A clean environment: no proxy between the parts, no credentials of ours, no cloud's metadata asked by kubelet.
  # Kubernetes is written in Go: here it may take memory rather than processors that the tests could use (GOGC).
  # Our own locks (9) and watchdog pipe (8) must not stay open in there.
  (cd / && umask 022 &&
    exec setsid env --default-signal -i PATH="$PATH" HOME="$DIR" AWS_EC2_METADATA_DISABLED=true GOGC=300 "$@") \
    </dev/null >>"$DIR/$component.log" 2>&1 8>&- 9>&- &
  pid=$!
  # Else the shell would tell of its end.
  disown "$pid"
  echo "$pid $(process_start "$pid")" >"$DIR/$component.pid"
}

# alive PIDFILE: the very process recorded there still runs.
alive() {
  local pid start
  [[ -s $1 ]] && read -r pid start <"$1" && [[ -n $start && $(process_start "$pid") == "$start" ]]
}

# end_processes PIDFILE…: by SIGKILL, for nothing of a cluster is kept that an orderly end would save.
end_processes() {
  local file pid
  for file in "$@"; do
    ! alive "$file" || { read -r pid _ <"$file" && kill -KILL "$pid"; }
  done
  for file in "$@"; do
    while alive "$file"; do sleep 0.02; done
    rm -f "$file"
  done
}

# wait_for SECONDS WHAT CMD…: until CMD succeeds. Fails early when a part has ended. A failure shows logs, and leaves in
# TROUBLE what went wrong.
wait_for() {
  local deadline=$((SECONDS + $1)) what=$2 file part
  shift 2
  until "$@"; do
    for file in "$DIR"/*.pid; do
      alive "$file" || {
        part=$(part_of "$file")
        TROUBLE="$part ended while waiting for $what"
        show_log "$part" ended
        return 1
      }
    done
    ((SECONDS < deadline)) || {
      TROUBLE="$what was not there in time"
      log "$TROUBLE"
      for file in "$DIR"/*.pid; do show_log "$(part_of "$file")" "still runs"; done
      return 1
    }
    sleep 0.1
  done
}

# part_of PIDFILE: whose log tells of that process. That of a node's first process is the node's.
part_of() {
  local part
  part=$(basename "$1" .pid)
  echo "${part%-init}"
}

show_log() {
  [[ -s $DIR/$1.log ]] || {
    log "$1 $2; its log is empty"
    return
  }
  log "$1 $2; the end of its log:"
  tail -n 20 "$DIR/$1.log" | cut -c -300 | sed 's/^/  /' >&2
}

# port_is_free ADDRESS PORT: nothing listens there, nor at that port of all addresses.
port_is_free() {
  python3 -c '
import socket, sys
with socket.socket() as one:
    # As servers do, so that connections of an earlier one are no hindrance.
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((sys.argv[1], int(sys.argv[2])))
    one.listen()
' "$1" "$2" 2>/dev/null
}

# free_ports N ADDRESS: N different ports that nothing listens on just now. Not of those that outgoing connections are
# given: one of these might have it when a part that was killed is to start again. Nor of a cluster's node ports.
free_ports() {
  python3 - "$@" <<'PY'
import random, socket, sys
with open('/proc/sys/net/ipv4/ip_local_port_range') as file:
    low, high = map(int, file.read().split())
others = [port for port in range(10000, 65536) if not low <= port <= high and not 30000 <= port < 32768]
random.shuffle(others)
ports = []
# Where all may be given to outgoing connections, whichever is free.
for port in others + [0] * int(sys.argv[1]):
    if len(ports) == int(sys.argv[1]):
        break
    try:
        one = socket.socket()
        one.bind((sys.argv[2], port))
        ports.append(one)
    except OSError:
        pass
print(*(one.getsockname()[1] for one in ports))
PY
}
