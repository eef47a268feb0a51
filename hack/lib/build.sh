# shellcheck shell=bash
# Kubernetes from Debian's source package: the only complete source of it in a package registry.

KUBE_VERSION=v1.20.2
KUBE_BIN="$CACHE/kubernetes-$KUBE_VERSION"
KUBE_SUITE=bookworm

# ensure_kubernetes: the control plane's and the node's binaries are in $KUBE_BIN.
ensure_kubernetes() {
  [[ -x $KUBE_BIN/kubelet ]] || with_cache_lock kubernetes build_kubernetes
}

build_kubernetes() {
  [[ ! -x $KUBE_BIN/kubelet ]] || return 0
  log "building Kubernetes $KUBE_VERSION from Debian's source package: about 7 minutes on 2 cores, once per machine"
  # Older Debian Kubernetes does not build with any Go: bookworm's 1.19 is the one that was tried.
  need golang-1.19-go=/usr/lib/go-1.19/bin/go dpkg-dev=dpkg-source rsync=rsync jq=jq make=make gcc=gcc python3=python3
  # Whatever an interrupted build left is void. The lock is held, so nobody else works in there.
  local work="$CACHE/build"
  discard "$work"
  mkdir -p "$work"
  # Not in the system's own lists: they may have no deb-src, and they are not ours to change.
  debian_sources_as_src "$KUBE_SUITE" >"$work/sources.list"
  [[ -s $work/sources.list ]] || die "found no Debian mirror in this machine's apt sources"
  (cd "$work" && fetch_kubernetes_source && patch_reflect2 && make_kubernetes) 2>&1 |
    tee "$work/log" | say_steps || {
    tail -n 30 "$work/log" >&2
    die "the build of Kubernetes failed; its whole log is $work/log"
  }
  mkdir -p "$work/result"
  mv "$work"/tree/_output/local/go/bin/kube* "$work/result/"
  rm -rf "$KUBE_BIN"
  # The rename is the last step, so that what is in the cache is always whole.
  mv "$work/result" "$KUBE_BIN"
  discard "$work"
}

# Go's module cache is read-only, which rm alone cannot remove.
discard() {
  [[ ! -e $1 ]] || { chmod -R u+w "$1" && rm -rf "$1"; }
}

private_apt() {
  mkdir -p lists/partial cache/archives/partial
  apt-get -qq -o Dir::Etc::SourceList="$PWD/sources.list" -o Dir::Etc::SourceParts=- \
    -o Dir::State::Lists="$PWD/lists" -o Dir::Cache="$PWD/cache" -o APT::Sandbox::User=root "$@"
}

fetch_kubernetes_source() {
  echo "== fetching the source"
  private_apt update &&
    private_apt source --download-only kubernetes &&
    dpkg-source --no-check -x ./*.dsc tree
}

# reflect2 1.0.1, as vendored, built with Go 1.18 or newer crashes the API server at the first custom resource.
patch_reflect2() {
  local vendored=tree/vendor/github.com/modern-go/reflect2
  echo "== fetching reflect2"
  # The old files go first: 1.0.2 has dropped some, and what is in both would be declared twice.
  private_apt source --download-only golang-github-modern-go-reflect2 &&
    dpkg-source --no-check -x golang-github-modern-go-reflect2_*.dsc reflect2 &&
    rm "$vendored"/*.go "$vendored"/*.s &&
    cp reflect2/*.go reflect2/*.s "$vendored" &&
    rm -f "$vendored"/*_test.go
}

make_kubernetes() {
  mkdir -p gopath/src/k8s.io
  ln -s "$PWD/tree" gopath/src/k8s.io/kubernetes
  # Else the build asks git for a version, and there is no repository here, or a wrong one around us.
  cat >version <<VERSION
KUBE_GIT_COMMIT='0000000000000000000000000000000000000000'
KUBE_GIT_TREE_STATE='archive'
KUBE_GIT_VERSION='$KUBE_VERSION'
KUBE_GIT_MAJOR='1'
KUBE_GIT_MINOR='20'
VERSION
  local work=$PWD target
  # One at a time, so that progress can be told.
  for target in kube-apiserver kube-controller-manager kube-scheduler kubelet; do
    echo "== building $target"
    (
      # In a GOPATH: the build's own scripts look for the tree there.
      cd gopath/src/k8s.io/kubernetes &&
        nice env -u GOFLAGS PATH="/usr/lib/go-1.19/bin:$PATH" GOPATH="$work/gopath" GOCACHE="$work/gocache" \
          CGO_ENABLED=0 KUBE_GIT_VERSION_FILE="$work/version" make WHAT="cmd/$target"
    ) || return
  done
}

# Tells each step when it begins, of all that a build prints.
say_steps() {
  local line start=$SECONDS
  while IFS= read -r line; do
    [[ $line != '== '* ]] || log "  after $((SECONDS - start)) s: ${line#== }"
  done
}
