# shellcheck shell=bash
# etcd, kube-apiserver and kube-controller-manager (and, for a node, kube-scheduler), each with its certificate.

# binary NAME: from KUBEBUILDER_ASSETS if it is there, else from the cache, else the machine's own.
binary() {
  local folder
  for folder in ${KUBEBUILDER_ASSETS:+"$KUBEBUILDER_ASSETS"} "$KUBE_BIN" "$TOOLS"; do
    [[ ! -x $folder/$1 ]] || {
      echo "$folder/$1"
      return
    }
  done
  command -v "$1"
}

ensure_control_plane() {
  need openssl=openssl python3=python3
  if [[ -n ${KUBEBUILDER_ASSETS-} ]]; then
    [[ -x $KUBEBUILDER_ASSETS/kube-apiserver && -x $KUBEBUILDER_ASSETS/etcd ]] ||
      die "KUBEBUILDER_ASSETS ($KUBEBUILDER_ASSETS) holds no kube-apiserver or no etcd"
    [[ -x $KUBEBUILDER_ASSETS/kube-controller-manager ]] || ensure_kubernetes
    [[ -x $KUBEBUILDER_ASSETS/kubectl ]] || ensure_tools
  else
    ensure_kubernetes
    ensure_tools
    need etcd-server=etcd
  fi
}

# older_than MINOR BINARY: flags came and went between the Kubernetes that is built here and the newest.
older_than() {
  local version=$KUBE_VERSION
  [[ $2 == "$KUBE_BIN"/* ]] || version=$("$2" --version)
  version=${version##*v1.}
  ((${version%%.*} < $1))
}

make_authority() {
  mkdir -p "$DIR/pki"
  # Without extensions openssl writes X.509 v1, which rustls refuses.
  cat >"$DIR/pki/openssl.cnf" <<'CNF'
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = clientAuth, serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $ENV::SAN
CNF
  certificate authority authority '/CN=tokencache test authority'
}

# make_certificates: those of the API server, the admin and kube-controller-manager, and the service accounts' signing key.
make_certificates() {
  local names=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc
  certificate apiserver leaf '/CN=kube-apiserver' \
    "IP:127.0.0.1,IP:$SERVICE_ADDRESS,$names,DNS:kubernetes.default.svc.cluster.local"
  certificate admin leaf '/O=system:masters/CN=admin'
  certificate controller-manager leaf '/O=system:masters/CN=system:kube-controller-manager'
  openssl genrsa -out "$DIR/pki/service-accounts.key" 2048 2>/dev/null
}

# certificate NAME SECTION SUBJECT [SAN]
certificate() {
  local authority=()
  [[ $1 == authority ]] || authority=(-CA "$DIR/pki/authority.crt" -CAkey "$DIR/pki/authority.key")
  SAN=${4:-DNS:unused.invalid} openssl req -x509 -config "$DIR/pki/openssl.cnf" -extensions "$2" -subj "$3" -days 3650 \
    -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$DIR/pki/$1.key" -out "$DIR/pki/$1.crt" \
    "${authority[@]}" 2>"$DIR/pki/openssl.log" || {
    cat "$DIR/pki/openssl.log" >&2
    die "openssl could not make a certificate"
  }
}

# kubeconfig USER URL: all in one file, so that it can be copied anywhere.
kubeconfig() {
  cat <<CONFIG
apiVersion: v1
kind: Config
current-context: $NAME
contexts:
- name: $NAME
  context: {cluster: $NAME, user: $1}
clusters:
- name: $NAME
  cluster:
    server: $2
    certificate-authority-data: $(base64 -w 0 "$DIR/pki/authority.crt")
users:
- name: $1
  user:
    client-certificate-data: $(base64 -w 0 "$DIR/pki/$1.crt")
    client-key-data: $(base64 -w 0 "$DIR/pki/$1.key")
CONFIG
}

# start_control_plane ADDRESS [PORT]: the API server listens there; a port of its own choice, if none is given.
start_control_plane() {
  local attempt ports
  [[ -z ${2-} ]] || port_is_free "$1" "$2" ||
    die "the API server needs port $2 of $1, but another program on this machine listens on port $2 of all addresses"
  for attempt in 1 2 3; do
    read -ra ports <<<"$(free_ports 3 127.0.0.1)"
    [[ -z ${2-} ]] || ports[2]=$2
    start_etcd "${ports[0]}" "${ports[1]}"
    ((attempt > 1)) || make_certificates
    kubeconfig admin "https://$1:${ports[2]}" >"$DIR/kubeconfig"
    kubeconfig controller-manager "https://$1:${ports[2]}" >"$DIR/controller-manager.kubeconfig"
    start_apiserver "$1" "${ports[2]}" "${ports[0]}"
    if wait_for 120 "the API server" ready; then
      # Not before: it gives up when the API server takes more than 10 s, and alone it takes a third of one.
      start_controller_manager
      wait_for 60 "the default service account" default_service_account || break
      return
    fi
    # Between the question for a free port and its use, somebody else may have taken it.
    grep -qs 'address already in use' "$DIR/etcd.log" "$DIR/kube-apiserver.log" || break
    log "a port was taken meanwhile: once more, with others"
    end_processes "$DIR/etcd.pid" "$DIR/kube-apiserver.pid"
    rm -rf "$DIR/etcd"
  done
  die "the control plane did not start: $TROUBLE"
}

start_etcd() {
  local flags=(--quota-backend-bytes="$((8 << 30))")
  # Without it an etcd that is killed may lose what it had confirmed: it keeps its log in its own memory then.
  [[ -n ${TOKENCACHE_DURABLE-} ]] || flags+=(--unsafe-no-fsync)
  spawn etcd "$(binary etcd)" --name test --data-dir "$DIR/etcd" --log-level warn "${flags[@]}" \
    --listen-client-urls "http://127.0.0.1:$1" --advertise-client-urls "http://127.0.0.1:$1" \
    --listen-peer-urls "http://127.0.0.1:$2" --initial-advertise-peer-urls "http://127.0.0.1:$2" \
    --initial-cluster "test=http://127.0.0.1:$2"
}

# start_apiserver ADDRESS PORT ETCD_PORT
start_apiserver() {
  local flags=()
  # Nobody can follow the endpoint of a loopback address, and writing one is refused again and again.
  [[ $1 != 127.* ]] || flags+=(--endpoint-reconciler-type=none)
  [[ ! -e $DIR/pki/kubelet-client.crt ]] || flags+=(
    --kubelet-certificate-authority="$DIR/pki/authority.crt"
    --kubelet-client-certificate="$DIR/pki/kubelet-client.crt"
    --kubelet-client-key="$DIR/pki/kubelet-client.key"
    # The name of a node is in no DNS here.
    --kubelet-preferred-address-types=InternalIP
  )
  spawn kube-apiserver "$(binary kube-apiserver)" \
    --bind-address="$1" --secure-port="$2" --advertise-address="$1" \
    --etcd-servers="http://127.0.0.1:$3" \
    --tls-cert-file="$DIR/pki/apiserver.crt" --tls-private-key-file="$DIR/pki/apiserver.key" \
    --client-ca-file="$DIR/pki/authority.crt" \
    --authorization-mode=Node,RBAC --allow-privileged=true \
    --enable-admission-plugins=OwnerReferencesPermissionEnforcement \
    --service-cluster-ip-range="$SERVICE_CIDR" \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file="$DIR/pki/service-accounts.key" \
    --service-account-signing-key-file="$DIR/pki/service-accounts.key" \
    --max-requests-inflight=4000 --max-mutating-requests-inflight=4000 \
    --profiling=false "${flags[@]}"
}

start_controller_manager() {
  local program flags=()
  program=$(binary kube-controller-manager)
  ! older_than 24 "$program" || flags+=(--port=0)
  # One identity for all controllers, with an admin's permissions: an identity for each takes longer to start.
  spawn kube-controller-manager "$program" --kubeconfig="$DIR/controller-manager.kubeconfig" --leader-elect=false --secure-port=0 \
    --use-service-account-credentials=false --controllers='*' --node-monitor-period=1s \
    --service-account-private-key-file="$DIR/pki/service-accounts.key" --root-ca-file="$DIR/pki/authority.crt" \
    --kube-api-qps=1000 --kube-api-burst=2000 "${flags[@]}"
}

start_scheduler() {
  local program flags=()
  program=$(binary kube-scheduler)
  ! older_than 24 "$program" || flags+=(--port=0)
  spawn kube-scheduler "$program" --kubeconfig="$DIR/kubeconfig" --leader-elect=false --secure-port=0 "${flags[@]}"
}

kube() { "$(binary kubectl)" --kubeconfig="$DIR/kubeconfig" --request-timeout=5s "$@"; }

ready() { [[ "$(kube get --raw /readyz 2>/dev/null)" == ok ]]; }

# Before 1.24 a service account has its token as a Secret, and pods are refused until it is there.
default_service_account() {
  local account
  account=$(kube get --raw /api/v1/namespaces/default/serviceaccounts/default 2>/dev/null) || return
  ! older_than 24 "$(binary kube-apiserver)" || [[ $account == *'"secrets"'* ]]
}
