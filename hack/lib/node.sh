# shellcheck shell=bash
# A node: containerd and kubelet in namespaces of their own, on a bridge of the cluster's own.

NODE=node

ensure_node() {
  [[ $EUID == 0 ]] || die "a node needs root"
  [[ -n ${KUBEBUILDER_ASSETS-} && -x $KUBEBUILDER_ASSETS/kubelet && -x $KUBEBUILDER_ASSETS/kube-scheduler ]] ||
    ensure_kubernetes
  need containerd=containerd runc=runc containernetworking-plugins=/usr/lib/cni/bridge busybox-static=busybox \
    iproute2=ip util-linux=unshare
}

start_with_node() {
  claim_network
  # shellcheck disable=SC2034 # it is for the control plane
  SERVICE_CIDR=10.214.$NETWORK.0/24 SERVICE_ADDRESS=10.214.$NETWORK.1
  # The API server listens on its own service's address, so that pods reach it with neither kube-proxy nor DNAT.
  ip address add "$SERVICE_ADDRESS/32" dev "$BRIDGE"
  prepare_node
  # At once: kubelet looks for a Docker for 5 s before it looks for us.
  spawn node unshare --pid --fork --kill-child --mount --propagation slave "$HACK/lib/node-init.sh" \
    "$DIR" "$NODE" "$(binary kubelet)" "$KUBE_BIN"
  start_control_plane "$SERVICE_ADDRESS" 443
  start_scheduler
  wait_for 60 containerd containerd_ready || die "the node did not start: $TROUBLE"
  import_image "$DIR/node/busybox.tar"
  import_image "$DIR/node/pause.tar"
  wait_for 90 "the node" node_ready || die "the node did not start: $TROUBLE"
}

# A bridge's name is its claim: of two clusters that want the same, the kernel gives it to one.
claim_network() {
  for NETWORK in {1..250}; do
    BRIDGE=tokencache$NETWORK GATEWAY=10.213.$NETWORK.1
    # Else a bridge's hardware address would change with the first pods, and be wrong in the others' tables.
    ip link add name "$BRIDGE" address "$(printf '02:74:63:00:00:%02x' "$NETWORK")" type bridge 2>/dev/null || continue
    ip link set "$BRIDGE" alias "$DIR"
    echo "$GATEWAY" >"$DIR/host-ip"
    ip address add "$GATEWAY/24" dev "$BRIDGE"
    ip link set "$BRIDGE" up
    return
  done
  die "could not make a network bridge"
}

# Whose a bridge is stands on the bridge: a folder that outlived a reboot must not claim another cluster's.
remove_network() {
  local bridge
  for bridge in /sys/class/net/tokencache*; do
    [[ "$(cat "$bridge/ifalias" 2>/dev/null)" != "$DIR" ]] || ip link delete "${bridge##*/}"
  done
}

host_ip() {
  [[ -s $DIR/host-ip ]] || die "cluster $NAME has no node"
  cat "$DIR/host-ip"
}

# What containerd and kubelet find when they start.
prepare_node() {
  mkdir -p "$DIR/node/cni"
  make_authority
  certificate kubelet-client leaf '/O=system:masters/CN=kube-apiserver'
  certificate kubelet leaf "/O=system:nodes/CN=system:node:$NODE" "DNS:$NODE,IP:$GATEWAY"
  kubeconfig kubelet "https://$SERVICE_ADDRESS:443" >"$DIR/node/kubeconfig"
  "$HACK/image.sh" busybox "$DIR/node/busybox.tar"
  "$HACK/image.sh" tokencache.test/pause:1 "$DIR/node/pause.tar" --bin "$(command -v busybox)" \
    --entrypoint /bin/sleep --arg infinity
  : >"$DIR/node/resolv.conf"
  # No isGateway and no ipMasq: they would switch on forwarding for the whole machine, and write iptables rules.
  cat >"$DIR/node/cni/pods.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "$BRIDGE", "hairpinMode": true, "ipam": {
    "type": "host-local", "dataDir": "$DIR/node/addresses", "routes": [{"dst": "0.0.0.0/0"}],
    "ranges": [[{"subnet": "10.213.$NETWORK.0/24", "gateway": "$GATEWAY"}]]}}]}
JSON
  local snapshotter=overlayfs
  # An overlay cannot lie on another, as the root of most containers is.
  [[ "$(stat -f -c %T "$DIR")" != overlayfs ]] || snapshotter=native
  # restrict_oom_score_adj: without CAP_SYS_RESOURCE, and it is not always there, each sandbox would fail to start.
  cat >"$DIR/node/containerd.toml" <<TOML
version = 2
[grpc]
  address = "$DIR/node/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "tokencache.test/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "$snapshotter"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$DIR/node/cni"
TOML
  # From 1.31 on kubelet refuses control groups of version 1, if it is not told to bear with them.
  local cgroup_v1=''
  older_than 31 "$(binary kubelet)" || cgroup_v1='failCgroupV1: false'
  # protectKernelDefaults: kubelet else writes kernel settings of the whole machine (see node-init.sh).
  # The eviction thresholds and the image collector are off: a full disk is the machine's matter, not the test's.
  cat >"$DIR/node/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $GATEWAY
port: $(free_ports 1 "$GATEWAY")
healthzPort: 0
$cgroup_v1
tlsCertFile: $DIR/pki/kubelet.crt
tlsPrivateKeyFile: $DIR/pki/kubelet.key
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: false}
  x509: {clientCAFile: $DIR/pki/authority.crt}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failSwapOn: false
protectKernelDefaults: true
makeIPTablesUtilChains: false
syncFrequency: 5s
nodeStatusUpdateFrequency: 1s
nodeStatusReportFrequency: 1m
resolvConf: $DIR/node/resolv.conf
imageGCHighThresholdPercent: 100
evictionHard:
  memory.available: 0%
  nodefs.available: 0%
  nodefs.inodesFree: 0%
  imagefs.available: 0%
YAML
}

containerd_ready() { ctr -a "$DIR/node/containerd.sock" version >/dev/null 2>&1; }

import_image() {
  ctr -a "$DIR/node/containerd.sock" -n k8s.io images import "$1" >"$DIR/node/import.log" 2>&1 || {
    cat "$DIR/node/import.log" >&2
    die "could not import $1"
  }
}

# Ready, and the taint that keeps pods away until then is off.
node_ready() {
  local node
  node=$(kube get --raw "/api/v1/nodes/$NODE" 2>/dev/null) || return
  [[ $node == *'"type":"Ready","status":"True"'* && $node != *'"taints"'* ]]
}

# Its init is the first process of the node's own process namespace: with it the kernel ends all the others, and with
# the last of these go the node's mounts, the pods' networks and their interfaces.
stop_node() {
  local id group turns=100
  end_processes "$DIR/node-init.pid"
  # Its parent reaps it, and ends then by itself.
  while alive "$DIR/node.pid" && ((turns-- > 0)); do sleep 0.02; done
  end_processes "$DIR/node.pid"
  # Control groups do not go by themselves. In k8s.io are other nodes' as well.
  for id in "$DIR"/node/var/lib/containerd/io.containerd.runtime.v2.task/k8s.io/*; do
    for group in /sys/fs/cgroup{,/*}/k8s.io/"${id##*/}"; do
      [[ ! -d $group ]] || find "$group" -depth -type d -exec rmdir {} +
    done
  done
  rmdir /sys/fs/cgroup{,/*}/k8s.io 2>/dev/null || true
}
