#!/usr/bin/env bash
# Calls an API with a token from tokencache, and again with another token if the first one is rejected.
#
#   examples/call-api.sh orders-api https://orders.example.com/v1/orders
#
# The Role for it: `fetch` in docs/consuming.md. Whatever it is told about the cluster by KUBECONFIG or by the context
# holds; TOKENCACHE_NAMESPACE_OF_CALL chooses another namespace.
set -euo pipefail

name=$1 url=$2
where=(${TOKENCACHE_NAMESPACE_OF_CALL:+--namespace "$TOKENCACHE_NAMESPACE_OF_CALL"})

# call: prints the status; the body goes to a file. The token is handed to curl by a pipe, where no list of processes
# shows it.
call() {
  printf 'header = "Authorization: Bearer %s"' "$TOKENCACHE_TOKEN" |
    curl --silent --show-error --config - --output "$body" --write-out '%{http_code}' "$url"
}

# take_token: sets TOKENCACHE_TOKEN, and a variable for each other key of the Secret.
take_token() {
  local variables
  variables=$(tokencache fetch "$name" "${where[@]}" -o env)
  eval "$variables"
}

body=$(mktemp)
trap 'rm -f "$body"' EXIT

# When the token that is used was fetched, known before the token itself: a later one is not requested unnecessarily.
fetched_at=$(tokencache fetch "$name" "${where[@]}" -o json | sed -n 's/.*"fetchedAt":"\([^"]*\)".*/\1/p')
take_token
status=$(call)
if [[ $status == 401 ]]; then
  # Many scripts that saw the same token refused cause one fetch.
  tokencache refresh "$name" "${where[@]}" --if-fetched-at "$fetched_at" >&2
  take_token
  status=$(call)
fi
cat "$body"
[[ $status == 2* ]] || {
  echo "$url answered $status" >&2
  exit 1
}
