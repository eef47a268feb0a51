#!/usr/bin/env bash
# Shows that hack/cluster.sh does what it says, on this machine: needs root, and a built cache to be quick.
# shellcheck disable=SC2016 # what stands in single quotes is for other shells
set -euo pipefail

HACK="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
PATH="$("$HACK/cluster.sh" tools):$PATH"
PREFIX=test-$$
FOLDER=$(mktemp -d)
: >"$FOLDER/left"
: >"$FOLDER/servers"
PASSED=0

# end_servers: those whose pids are in that file.
end_servers() {
  local pid
  while read -r pid; do kill "$pid"; done <"$FOLDER/servers"
  : >"$FOLDER/servers"
}

cleanup() {
  local code=$?
  "$HACK/cluster.sh" down --name "$PREFIX-a"
  "$HACK/cluster.sh" down --name "$PREFIX-b"
  "$HACK/cluster.sh" down --name "$PREFIX-c"
  end_servers
  ((code == 0)) || cat "$FOLDER/left" >&2
  rm -rf "$FOLDER"
  echo "$PASSED passed, $((code == 0 ? 0 : 1)) failed"
}
trap cleanup EXIT

passed() {
  echo "ok: $*"
  PASSED=$((PASSED + 1))
}

failed() {
  echo "FAILED: $*" >&2
  exit 1
}

# eventually SECONDS WHAT CMD…
eventually() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    ((SECONDS < deadline)) || failed "$what"
    sleep 0.1
  done
  passed "$what"
}

up() {
  local begin=${EPOCHREALTIME/[.,]/}
  KUBECONFIG=$("$HACK/cluster.sh" up "$@")
  export KUBECONFIG
  passed "up $*: after $(((${EPOCHREALTIME/[.,]/} - begin) / 1000)) ms"
}

# listen PORT: at all addresses, as another kubelet on this machine does. Fails if the port is taken.
listen() {
  python3 -c '
import socket, sys, time
one = socket.socket()
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
one.bind(("0.0.0.0", int(sys.argv[1])))
one.listen()
print("listening", flush=True)
time.sleep(600)
' "$1" >"$FOLDER/listener-$1" 2>/dev/null &
  while [[ ! -s $FOLDER/listener-$1 ]]; do
    kill -0 "$!" 2>/dev/null || return 1
    sleep 0.05
  done
  echo $! >>"$FOLDER/servers"
}

# does_not_come_up WORDS CMD…: `up --node` fails, and says why.
does_not_come_up() {
  local words=$1 said
  shift
  ! said=$("$@" "$HACK/cluster.sh" up --name "$PREFIX-c" --node 2>&1) || failed "it came up, but should not: $words"
  [[ $said == *"$words"* ]] || failed "it does not say '$words', but: $said"
  passed "a cluster that does not come up says why: $words"
}

# assets PART: a folder with all parts of a cluster, of which PART ends at once, with a last word.
assets() {
  local part folder="$FOLDER/assets-$1"
  mkdir "$folder"
  for part in kube-apiserver kube-controller-manager kube-scheduler kubelet; do
    ln -s "${XDG_CACHE_HOME:-$HOME/.cache}"/tokencache/kubernetes-*/"$part" "$folder/$part"
  done
  ln -s "$(command -v etcd)" "$folder/etcd"
  rm "$folder/$1"
  # Its version is asked for before it is started.
  printf '#!/bin/sh\n[ "$1" != --version ] || exec echo "Kubernetes v1.20.2"\necho "the last word of %s"\nexit 3\n' "$1" >"$folder/$1"
  chmod +x "$folder/$1"
  echo "$folder"
}

# pod NAME SCRIPT [MORE-OF-THE-SPEC]: runs to its end.
pod() {
  kubectl create --validate=false -f - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  restartPolicy: Never
  ${3-}
  volumes: [{name: secret, secret: {secretName: credential}}]
  containers:
  - name: main
    image: tokencache.test/busybox:1
    command: [sh, -c, '$2']
    volumeMounts: [{name: secret, mountPath: /secret}]
YAML
}

# Standard output is read once only: a pod's log may be asked for before the pod is there.
says() { [[ "$(kubectl logs "$1" 2>/dev/null)" == *"$2"* ]]; }

# Settings and folders of the machine that containerd, CNI or kubelet would write if they could.
machine() {
  cat /proc/sys/vm/{overcommit_memory,panic_on_oom} /proc/sys/kernel/{panic,panic_on_oops} /proc/sys/net/ipv4/ip_forward
  ls -d /var/lib/{kubelet,cni} /var/log/pods /run/{containerd,netns} 2>/dev/null || true
}

# left NAMESPACE BRIDGE CONTAINER…: prints what there still is of the clusters, or of the node with these.
left() {
  local namespace=$1 bridge=$2 id
  shift 2
  # In brackets, for grep not to find itself.
  grep -las "[${PREFIX:0:1}]${PREFIX:1}" /proc/[0-9]*/cmdline || true
  readlink /proc/[0-9]*/ns/pid | grep -F "$namespace" || true
  grep "$PREFIX" /proc/mounts || true
  ip -o link show "$bridge" 2>/dev/null || true
  ip -o link show type veth | grep "master $bridge" || true
  for id in "$@"; do find /sys/fs/cgroup -type d -name "$id"; done
  find "${XDG_RUNTIME_DIR:-/tmp}/tokencache" -mindepth 1 -maxdepth 1 -name "*$PREFIX*"
}

before=$(machine)

up --name "$PREFIX-a"
first=$KUBECONFIG
[[ "$("$HACK/cluster.sh" up --name "$PREFIX-a")" == "$first" ]] || failed "up again gives the same kubeconfig"
passed "up again gives the same kubeconfig"
[[ -n "$(kubectl create token default)" ]] || failed "TokenRequest"
passed "a token of the default service account is issued"

for part in etcd kube-apiserver kubelet; do
  does_not_come_up "the last word of $part" env "KUBEBUILDER_ASSETS=$(assets "$part")"
done
if listen 443; then
  does_not_come_up 'port 443 of all addresses' env
  end_servers
else
  echo "skipped, since another program has port 443: a cluster that needs it does not come up"
fi

# Beside another kubelet: this one, or another that has the port.
listen 10250 || true
up --name "$PREFIX-b" --node
[[ "$(kubectl --kubeconfig "$first" get nodes -o name)" == '' && "$(kubectl get nodes -o name)" == node/node ]] ||
  failed "two clusters side by side"
passed "two clusters side by side"

kubectl create secret generic credential --from-literal=token=one >/dev/null
address=$("$HACK/cluster.sh" host-ip --name "$PREFIX-b")
echo 'from the host' >"$FOLDER/page"
for bind in "$address" 127.0.0.1; do
  python3 - "$FOLDER" "$bind" 2>/dev/null <<'PY' &
import functools, http.server, sys
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
server = http.server.ThreadingHTTPServer((sys.argv[2], 0), handler)
open(sys.argv[1] + "/port-" + sys.argv[2], "w").write(str(server.server_port))
server.serve_forever()
PY
  echo $! >>"$FOLDER/servers"
  while [[ ! -s $FOLDER/port-$bind ]]; do sleep 0.05; done
done

pod reads "cat /secret/token"
eventually 20 "a pod reads a mounted Secret, and its log can be read" says reads one
pod reaches "wget -qO- http://$address:$(<"$FOLDER/port-$address")/page"
eventually 20 "a pod reaches the host at host-ip" says reaches 'from the host'
pod hostnet "wget -qO- http://127.0.0.1:$(<"$FOLDER/port-127.0.0.1")/page" 'hostNetwork: true'
eventually 20 "a pod on the host's network reaches 127.0.0.1" says hostnet 'from the host'
# Any answer will do: BusyBox cannot tell whom it trusts.
pod api 'nc $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null && echo reached'
eventually 20 "a pod reaches the API server at its service address" says api reached

pod lasting 'while sleep 0.2; do :; done'
execute() { kubectl exec lasting -- true 2>/dev/null; }
eventually 20 "a command is run in a pod" execute
kubectl patch secret credential -p '{"stringData": {"token": "two"}}' >/dev/null
follows() { [[ "$(kubectl exec lasting -- cat /secret/token)" == two ]]; }
eventually 20 "a mounted Secret follows its change" follows

"$HACK/image.sh" tokencache.test/expr:1 "$FOLDER/expr.tar" --bin "$(command -v expr)" --arg 6 --arg '*' --arg 7
"$HACK/cluster.sh" load-image --name "$PREFIX-b" "$FOLDER/expr.tar"
kubectl create job product --image=tokencache.test/expr:1 >/dev/null
kubectl wait --for=condition=complete job/product --timeout=20s >/dev/null || failed "a Job completes"
[[ "$(kubectl logs -l job-name=product)" == 42 ]] || failed "an image made of a dynamic binary works"
passed "a Job completes, of an image made of a dynamic binary"

folder=$(dirname "$KUBECONFIG")
read -r init _ <"$folder/node-init.pid"
node=("$(readlink "/proc/$init/ns/pid")" "$(ip -o link | grep -F "alias $folder" | grep -o "tokencache[0-9]*" | head -n 1)")
while read -r id; do node+=("$id"); done < <(ls "$folder/node/var/lib/containerd/io.containerd.runtime.v2.task/k8s.io")
[[ -n "$(left "${node[@]}")" ]] || failed "the search for what is left finds what is there"
begin=${EPOCHREALTIME/[.,]/}
"$HACK/cluster.sh" down --name "$PREFIX-b"
"$HACK/cluster.sh" down --name "$PREFIX-a"
passed "down, of both: after $(((${EPOCHREALTIME/[.,]/} - begin) / 1000)) ms"
end_servers
# The kernel takes the pods' networks away in the background.
nothing_left() { [[ -z "$(left "${node[@]}" | tee "$FOLDER/left")" ]]; }
eventually 5 "down leaves nothing behind" nothing_left
[[ "$(machine)" == "$before" ]] || failed "the machine's own settings are as before"
passed "the machine's own settings are as before"

code=0
"$HACK/cluster.sh" run -- sh -c 'kubectl get namespaces >/dev/null && exit 7' || code=$?
[[ $code == 7 ]] || failed "run gives its command's exit code ($code)"
passed "run gives its command's exit code"
TOKENCACHE_TEST_KUBECONFIG=/given "$HACK/cluster.sh" run -- sh -c '[ "$KUBECONFIG" = /given ]' ||
  failed "run uses a given cluster"
passed "run uses a given cluster"

# What hack/test.sh says of suites: one that passes, one that fails, and one that does not come to its tests.
suites() (
  set +e
  # shellcheck source-path=SCRIPTDIR source=lib/suites.sh
  source "$HACK/lib/suites.sh"
  LOGS="$FOLDER/suites"
  mkdir "$LOGS"
  suite good echo 'test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out'
  suite bad sh -c 'echo "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out"; exit 101'
  suite lost sh -c 'echo "no cluster: the port is taken"; exit 1'
  suite silent true
  tell_not_run
  summary 5
  all_suites_passed || echo "code 1"
)
said=$(suites)
for words in '"lost" did not run (exit code 1)' '  no cluster: the port is taken' '"silent" did not run (exit code 0)' \
  'all tests: 4 passed, 4 failed, 1 ignored, in 5 s' 'each counted as a failure: 2' 'code 1'; do
  [[ $said == *"$words"* ]] || failed "the summary of suites says '$words': $said"
done
passed "a suite that does not run is a failure, with its reason"
