# shellcheck shell=bash
# What the demo plays with: the binaries, a cluster, a token server, the controller, and the manifests of examples/.

DEMOS="${XDG_RUNTIME_DIR:-/tmp}/tokencache-demo"

# step CMD…: in a process group of its own. A shell hears a signal only between its foreground commands, and a build
# takes minutes; like this it hears it at once, and ends the group.
step() {
  local code=0
  set -m
  env --default-signal=INT,QUIT "$@" </dev/null &
  STEP=$!
  set +m
  wait "$STEP" || code=$?
  STEP=''
  return "$code"
}

# note WHAT: what is done next, and after how long the last step was done.
note() {
  [[ -z ${NOTED-} ]] || printf '  %sdone after %d s%s\n' "$DIM" "$((SECONDS - NOTED))" "$PLAIN"
  NOTED=$SECONDS
  printf '%s%s%s\n' "$BOLD" "$1" "$PLAIN"
}

set_stage() {
  [[ $EUID == 0 ]] || die "it needs root, for a Kubernetes node with containerd: sudo make demo"
  command -v cargo >/dev/null || die "cargo is missing: install Rust 1.95 or newer"
  (umask 077 && mkdir -p "$DEMOS")
  [[ -O $DEMOS && ! -L $DEMOS ]] || die "$DEMOS belongs to another user"
  CLUSTER="demo-$$"
  DIR="$DEMOS/$CLUSTER"
  (umask 077 && mkdir "$DIR")
  # Who this folder belongs to: --end leaves the demos alone that still play.
  echo "$$ $(process_start $$)" >"$DIR/demo.owner"

  note "1/4  building the controller and the token server (debug build; 4 to 5 minutes the first time, then seconds)"
  cd "$HACK/.." || die "cannot enter the repository"
  step cargo build --locked --bin tokencache --example token-server || die "the build failed"
  BINARIES="$(cargo metadata --locked --no-deps --format-version 1 |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')/debug"

  note "2/4  bringing up a Kubernetes cluster with a node (builds Kubernetes the first time: 7 to 8 minutes; then 15 s)"
  step "$HACK/cluster.sh" up --node --name "$CLUSTER" >/dev/null || die "the cluster did not come up"
  TOOLS=$("$HACK/cluster.sh" tools)
  HOST=$("$HACK/cluster.sh" host-ip --name "$CLUSTER")
  export PATH="$TOOLS:$PATH" KUBECONFIG="$RUN_ROOT/$CLUSTER/kubeconfig"
  # This Kubernetes does not know the rules in the definition, which kubectl would refuse; the controller checks them.
  run kubectl create --validate=false -f crds/tokencache.yaml

  note "3/4  starting the token server and the controller"
  # The secret is in this file alone, from which the server reads it, and later in the source Secret.
  (umask 077 && head -c 24 /dev/urandom | base64 | tr -d '\n' >"$DIR/client-secret")
  # On the address at which both the pod and the controller reach this machine.
  spawn token-server "$BINARIES/examples/token-server" --listen "$HOST:0" \
    --client-secret-file "$DIR/client-secret" --lifetime 30s
  SERVER=$(await_line token-server 'listening on \(.*\)') || die "the token server did not start"
  # Private addresses, as the server's is, may be connected to by default; for 127.0.0.1 there is --allow-cidr.
  spawn controller "$BINARIES/tokencache" controller --kubeconfig "$KUBECONFIG" --metrics-address 127.0.0.1:0 \
    --probe-address 127.0.0.1:0
  ADMIN=$(await_line controller '.*serving metrics address=\(.*\)') || die "the controller did not start"
  local deadline=$((SECONDS + 30))
  until [[ "$(request GET "http://$ADMIN/readyz")" == ok ]]; do
    alive "$DIR/controller.pid" || die "the controller ended"
    ((SECONDS < deadline)) || die "the controller is not ready: $(request GET "http://$ADMIN/readyz")"
    sleep 0.1
  done

  note "4/4  creating the source Secret, the TokenCache and the pod (examples/oauth2.yaml, examples/consumer-pod.yaml)"
  # Into the examples go the server's real address and the real secret; by the shell itself, and a pipe, so that the
  # secret is on no command line.
  adapted examples/oauth2.yaml | run kubectl create -f -
  adapted examples/consumer-pod.yaml | run kubectl create -f -
}

# adapted FILE
adapted() {
  local text
  text=$(<"$1")
  text=${text//'https://id.example.com'/"$SERVER"}
  printf '%s\n' "${text//replace-me/"$(<"$DIR/client-secret")"}"
}

# run CMD…: quietly, unless it fails.
run() {
  "$@" >"$DIR/command.log" 2>&1 || {
    cat "$DIR/command.log" >&2
    # It may be in a pipe, where it cannot leave its words to finish.
    echo "demo: this failed: $*" >&2
    return 1
  }
}

# await_line COMPONENT PATTERN: what \(…\) matched in the first such line of its log.
await_line() {
  local found deadline=$((SECONDS + 20))
  while true; do
    found=$(sed -n "s/$2/\\1/p" "$DIR/$1.log" | head -n 1)
    [[ -z $found ]] || break
    if ! alive "$DIR/$1.pid" || ((SECONDS >= deadline)); then
      tail -n 5 "$DIR/$1.log" >&2
      return 1
    fi
    sleep 0.05
  done
  echo "$found"
}

# request METHOD URL: the body of the answer. By the shell, since curl need not be there.
request() {
  local address=${2#http://} connection
  exec {connection}<>"/dev/tcp/${address%%:*}/$(grep -o ':[0-9]*' <<<"$address" | tr -d :)"
  printf '%s /%s HTTP/1.0\r\nContent-Length: 0\r\n\r\n' "$1" "${address#*/}" >&"$connection"
  sed '1,/^\r$/d' <&"$connection"
  exec {connection}>&-
}

# end_stage FOLDER: the processes by their pids, then the cluster, then the files.
end_stage() {
  end_processes "$1"/*.pid
  "$HACK/cluster.sh" down --name "$(basename "$1")"
  rm -rf "$1"
}

end_kept() {
  local folder
  for folder in "$DEMOS"/demo-*/; do
    [[ -d $folder && -O $folder ]] || continue
    if alive "${folder}demo.owner"; then
      echo "demo: $(basename "$folder") still plays: left alone"
      continue
    fi
    end_stage "${folder%/}"
    echo "demo: $(basename "$folder") is ended"
  done
}

commands_to_try() {
  cat <<COMMANDS

It goes on running. To look around:

  export KUBECONFIG=$KUBECONFIG PATH=$TOOLS:\$PATH

  kubectl get tokencaches --watch
  kubectl describe tokencache orders-api
  kubectl logs -f consumer
  tail -f $DIR/controller.log

To ask for a new value, one way or the other:

  kubectl annotate tokencache orders-api --overwrite tokencache.dev/refresh_requested="\$(date +%s)"
  kubectl delete secret orders-api

To make the token server fail, and work again (modes: unavailable, ratelimit, reject, hang, close, garbage, …):

  curl -X POST '$SERVER/admin/fail?mode=ratelimit'
  curl -X POST '$SERVER/admin/heal'

To end it:

  hack/demo.sh --end
COMMANDS
}
