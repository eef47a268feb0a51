#!/usr/bin/env bash
# Makes the manifests of config/ from the chart, for those without helm: --help says how.
set -euo pipefail

HACK="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source-path=SCRIPTDIR source=lib/common.sh
source "$HACK/lib/common.sh"
# shellcheck source-path=SCRIPTDIR source=lib/packages.sh
source "$HACK/lib/packages.sh"
# shellcheck source-path=SCRIPTDIR source=lib/tools.sh
source "$HACK/lib/tools.sh"

usage() {
  cat <<'HELP'
usage: hack/manifests.sh [FOLDER [ARGUMENT…]]

Writes rbac.yaml, controller.yaml and policies.yaml, as the chart charts/tokencache makes them with its default values, and
policy-authors.yaml, which is off by default, into FOLDER, by default config/. A test fails when those in config/ are stale.

Arguments go to helm: hack/manifests.sh FOLDER --set features.jobs=true
HELP
}

# render HEADER TEMPLATE…: what those templates make, without what is of helm alone.
render() {
  local header=$1 shown=()
  shift
  for template in "$@"; do shown+=(--show-only "templates/$template.yaml"); done
  printf '# Generated from charts/tokencache by: make manifests\n%s\n' "$header"
  "$TOOLS/helm" template tokencache "$HACK/../charts/tokencache" --namespace tokencache-system \
    --set policies.authors=true "${ARGUMENTS[@]}" "${shown[@]}" |
    sed -e '/^# Source: /d' -e '/managed-by: "Helm"/d' -e '/helm\.sh\/chart: /d'
}

main() {
  [[ ${1-} != --help && ${1-} != -h ]] || {
    usage
    exit
  }
  local folder=${1:-$HACK/../config}
  ARGUMENTS=("${@:2}")
  ensure_tools
  render '# The permissions of the controller, in all namespaces.' serviceaccount rbac >"$folder/rbac.yaml"
  render '# The controller.' deployment service poddisruptionbudget networkpolicy >"$folder/controller.yaml"
  render '# ValidatingAdmissionPolicies, for Kubernetes 1.30 and later.' \
    policy-status policy-controller policy-guards >"$folder/policies.yaml"
  render '# Authors of TokenCaches need the permissions that their TokenCaches use. For Kubernetes 1.30 and later.' \
    policy-authors >"$folder/policy-authors.yaml"
}

main "$@"
