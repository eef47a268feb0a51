# shellcheck shell=bash disable=SC2034 # the other files use what seems unused here
# The demo itself: what is done to the token and its server, what must be seen, and the summary.

REQUEST=tokencache.dev/refresh_requested

play() {
  local begin outage healed value left returned
  start_following
  heading "act 1: a token that lives for 30 s is refreshed when half of that is left, and the pod follows"
  begin=$SECONDS
  until_seen 30 "a first token in the Secret" values 1
  until_seen 60 "the pod's first call" pod_reads 1
  until_seen 60 "two refreshes" values 3
  ((LEAST_LEFT > 0)) || die "a token was refreshed only after it had expired"

  heading "act 2: the token server fails; the token in the Secret is still valid, and stays"
  value=$VALUE_HASH NOT_READY=0
  switch_server fail
  # So that there is a failure at once, and not when the next refresh is due.
  say "a new value is asked for: kubectl annotate tokencache orders-api $REQUEST=now"
  run kubectl annotate tokencache orders-api "$REQUEST=now"
  # Not longer: the next attempt comes up to 2 s later, the pod's token has 15 s then, and the kubelet may take 9.
  until_seen 40 "two failed attempts, of the request and of the refresh" failures 2
  outage=$(now)
  left=$((EXPIRES_MS - outage))
  [[ $VALUE_HASH == "$value" ]] || die "the Secret was changed while the token server failed"
  [[ $REASON == RefreshFailing ]] || die "the reason was $REASON while the token server failed, not RefreshFailing"
  ((NOT_READY == 0 && left > 0)) || die "the TokenCache was not Ready while the token server failed"
  say "Ready is still True, the Secret still has value $(short "$value"), which is valid for $(tenths "$left") s more"
  switch_server heal
  until_seen 20 "a new token after the server came back" recovered
  healed=$((WRITTEN_AT[4] - HEALED_AT))
  ((LONGEST_GAP <= 0)) || die "for $LONGEST_GAP ms there was no valid token"
  until_seen 20 "the new token in the pod" pod_reads 4

  heading "act 3: the Secret is deleted, which clears the cache, and is there again with a new token"
  value=$VALUE_HASH
  run kubectl delete secret orders-api --wait=false
  until_seen 10 "the Secret with a new token" values 5
  returned=$LONGEST_GAP
  [[ $VALUE_HASH != "$value" ]] || die "the Secret came back with the old token"
  ((returned < 1000)) || die "the Secret was away for $returned ms"
  until_seen 20 "the new token in the pod" pod_reads 5
  ACTS_DONE=yes
  summary $((SECONDS - begin)) "$healed" "$returned"
}

values() { ((VALUES >= $1)); }
pod_reads() { ((POD_N >= $1)); }
failures() { ((FAILURES >= $1)); }
recovered() { ((VALUES >= 4)) && [[ $READY == True && $REASON == Fetched ]]; }

# switch_server fail|heal
switch_server() {
  request POST "$SERVER/admin/$1" >/dev/null
  if [[ $1 == fail ]]; then
    FAILING=yes
    say "the token server answers with 503 from now on (POST /admin/fail)" "$RED"
  else
    FAILING='' HEALED_AT=$(now)
    say "the token server works again (POST /admin/heal)" "$GREEN"
  fi
}

# summary SECONDS HEALED-MS RETURNED-MS: numbers, and whether the server's counts agree with what was seen here.
summary() {
  local stats requests issued at_once wrong=()
  clear_panel
  stats=$(request GET "$SERVER/stats")
  requests=$(count requests) issued=$(count issued) at_once=$(count insideMax)
  heading "what was seen in $1 s"
  cat <<SEEN
  $VALUES values in the Secret: the first, 2 by planned refreshes, 1 after the outage, 1 after the deletion
  $requests fetches at the token server: $issued tokens issued, $FAILED_RUNS attempts failed, at most $at_once at once
  refreshes: the old token had at least $(tenths "$LEAST_LEFT") s left each time
  outage: Ready stayed True and the Secret as it was; new token $(tenths "$2") s after the server came back
  deletion: the Secret was there again after $3 ms, with a new token
  pod: $CALLS calls with the mounted token, $CALLS_OK answered with 200; tokens n=${PODS_SEEN# }
  pod: a new token was in the mounted file at most $(tenths "$LONGEST_LAG") s after it was in the Secret (kubelet's sync)
  longest time without a valid token in the Secret: $LONGEST_GAP ms (while it was deleted), else 0 ms
SEEN
  ((issued == VALUES)) || wrong+=("the server issued $issued tokens, the Secret had $VALUES values")
  ((requests == issued + FAILED_RUNS)) || wrong+=("the server counts $requests requests, not $((issued + FAILED_RUNS))")
  ((at_once == 1)) || wrong+=("$at_once fetches went on at once")
  ((CALLS_OK == CALLS)) || wrong+=("$((CALLS - CALLS_OK)) calls of the pod were not answered with 200")
  [[ $PODS_SEEN == *' 3 4 5' ]] || wrong+=("the pod read the tokens n=${PODS_SEEN# } only")
  ! grep -q -F -f "$DIR/client-secret" "$DIR/controller.log" || wrong+=("the client's secret is in the controller's log")
  if ((${#wrong[@]} > 0)); then
    printf '  %swrong: %s%s\n' "$RED" "${wrong[0]}" "$PLAIN" "${wrong[@]:1}"
    die "not all was as it should be: ${wrong[0]}"
  fi
  printf '%sAll checks passed.%s\n' "$GREEN" "$PLAIN"
}

# count NAME: a number of the server's statistics.
count() { grep -o "\"$1\":[0-9]*" <<<"$stats" | grep -o '[0-9]*$'; }
