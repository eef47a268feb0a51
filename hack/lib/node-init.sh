#!/usr/bin/env bash
# node-init.sh RUN-FOLDER NODE KUBELET KUBERNETES-FOLDER: the first process in a node's process and mount namespaces.
set -euo pipefail
DIR=$1 NODE=$2 KUBELET=$3 KEEP=("$1" "$(dirname "$3")" "$4")

# /proc is the outer one still, and tells the pid by which the outer world knows us.
read -r pid stat </proc/self/stat
read -ra stat <<<"${stat##*) }"
echo "$pid ${stat[19]}" >"$DIR/node-init.pid"
mount -t proc proc /proc

# hide FOLDER: an empty one in its place, but for what we need that lies in there. containerd, CNI and kubelet have
# fixed paths in these that two nodes, or the machine's own containerd, would fight over. With /run also systemd is
# out of sight, which else would be asked to do kubelet's mounts, outside of our namespaces.
hide() {
  local shadow="$DIR/node$1" kept
  mkdir -p "$shadow"
  for kept in "${KEEP[@]}"; do
    [[ $kept != "$1"/* ]] || {
      mkdir -p "$shadow${kept#"$1"}"
      mount --bind "$kept" "$shadow${kept#"$1"}"
    }
  done
  mount --rbind "$shadow" "$1"
}
hide /run
hide /var/lib
hide /var/log

# kubelet demands these values of the kernel. They are the whole machine's, so it is shown files that have them.
demand() {
  mkdir -p "$DIR/node/sysctl"
  echo "$2" >"$DIR/node/sysctl/${1//\//.}"
  mount --bind "$DIR/node/sysctl/${1//\//.}" "/proc/sys/$1"
}
demand vm/overcommit_memory 1
demand vm/panic_on_oom 0
demand kernel/panic 10
demand kernel/panic_on_oops 1
demand kernel/keys/root_maxkeys 1000000
demand kernel/keys/root_maxbytes 25000000

containerd --config "$DIR/node/containerd.toml" >"$DIR/containerd.log" 2>&1 &
containerd=$!

# kubelet gives up when containerd is not there.
until [[ -S $DIR/node/containerd.sock ]] || ! kill -0 "$containerd" 2>/dev/null; do sleep 0.05; done

flags=()
version=$("$KUBELET" --version)
version=${version##*v1.}
((${version%%.*} >= 27)) || flags+=(--container-runtime=remote)
"$KUBELET" --config="$DIR/node/kubelet.yaml" --kubeconfig="$DIR/node/kubeconfig" --hostname-override="$NODE" \
  --node-ip="$(<"$DIR/host-ip")" --container-runtime-endpoint="unix://$DIR/node/containerd.sock" "${flags[@]}" \
  >"$DIR/kubelet.log" 2>&1 &
kubelet=$!

# Without either the node is none.
code=0
wait -n -p ended "$containerd" "$kubelet" || code=$?
part=kubelet
[[ $ended != "$containerd" ]] || part=containerd
echo "$part ended with exit code $code; the end of $part.log:"
tail -n 15 "$DIR/$part.log"
exit 1
