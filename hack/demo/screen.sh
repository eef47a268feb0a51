# shellcheck shell=bash
# What is shown: lines with a time for what happens and, on a terminal, below them a panel that is redrawn.

TERMINAL='' PANEL=0 DRAWN=0 LAST_SAID=0
BOLD='' DIM='' RED='' GREEN='' YELLOW='' PLAIN=''

open_screen() {
  # As Kubernetes writes times.
  export TZ=UTC
  [[ -t 1 && ${TERM:-dumb} != dumb ]] || return 0
  TERMINAL=yes
  [[ -z ${NO_COLOR-} ]] || return 0
  BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' GREEN=$'\e[32m' YELLOW=$'\e[33m' PLAIN=$'\e[0m'
}

close_screen() {
  clear_panel
  [[ -z $TERMINAL ]] || printf '\e[?25h'
}

# Milliseconds since 1970.
now() { echo "$((${EPOCHREALTIME/[.,]/} / 1000))"; }

clear_panel() {
  ((PANEL == 0)) || printf '\e[%dA\e[J' "$PANEL"
  PANEL=0
}

# say TEXT [COLOUR]: a line for what happened, at AT (in ms; now by default), above the panel.
say() {
  local at=${AT:-$(now)}
  clear_panel
  printf '%s%(%H:%M:%S)T.%01d%s  %s%s%s\n' "$DIM" "$((at / 1000))" "$((at % 1000 / 100))" "$PLAIN" "${2-}" "$1" "$PLAIN"
  LAST_SAID=$(now)
}

heading() {
  clear_panel
  printf '\n%s%s%s\n' "$BOLD" "$1" "$PLAIN"
}

# in_seconds EPOCH-MS: how far away that is.
in_seconds() {
  local left=$((($1 - $(now) + 999) / 1000))
  if (($1 == 0)); then echo "-"; elif ((left > 0)); then echo "in $left s"; else echo "$((-left)) s ago"; fi
}

# bar MS: how much of 30 s is left, as a bar.
bar() {
  local width=30 filled
  filled=$((($1 - $(now)) * width / 30000))
  ((filled >= 0)) || filled=0
  ((filled <= width)) || filled=$width
  printf '%*s' "$filled" '' | tr ' ' '#'
  printf '%*s' "$((width - filled))" '' | tr ' ' '.'
}

# draw: the panel at most 4 times a second; without a terminal, the state in one line after 5 s of silence.
draw() {
  local time
  [[ -n $TABLE_ROW && -n $VALUE_HASH ]] || return 0
  time=$(now)
  if [[ -z $TERMINAL ]]; then
    ((time - LAST_SAID < 5000)) || say "$(state_in_a_line)"
    return
  fi
  ((time - DRAWN >= 250)) || return 0
  DRAWN=$time
  local colour=$GREEN
  [[ $REASON == Fetched ]] || colour=$YELLOW
  [[ $READY == True ]] || colour=$RED
  local lines=(
    ""
    "$DIM\$ kubectl get tokencache orders-api$PLAIN"
    "$TABLE_HEAD"
    "$colour$TABLE_ROW$PLAIN"
    ""
    "Secret   value $(short "$VALUE_HASH"), [$(bar "$EXPIRES_MS")] expires $(in_seconds "$EXPIRES_MS"), refresh $(in_seconds "$REFRESH_MS")"
    "pod      reads token n=${POD_N:--}, which expires $(in_seconds "$POD_EXP_MS"); $(calls_in_words)"
    "         ${DIM}The kubelet brings a new value into the mounted file when it next looks at the pod: here up to 9 s later.$PLAIN"
    "server   $(server_in_words)"
  )
  clear_panel
  # Without wrapping, so that the number of lines is known; without a cursor that jumps about.
  printf '\e[?25l\e[?7l'
  printf '%s\n' "${lines[@]}"
  printf '\e[?7h'
  PANEL=${#lines[@]}
}

state_in_a_line() {
  echo "Ready $READY ($REASON); value $(short "$VALUE_HASH") expires $(in_seconds "$EXPIRES_MS"), refresh" \
    "$(in_seconds "$REFRESH_MS"); the pod reads n=${POD_N:--}, $(calls_in_words)"
}

calls_in_words() { echo "$CALLS calls of /api/whoami, $CALLS_OK answered with 200"; }

server_in_words() {
  if [[ -n $FAILING ]]; then echo "${RED}answers /token with 503$PLAIN"; else echo "issues tokens that live for 30 s"; fi
}

# short HASH: enough to tell one from another.
short() { echo "${1:0:8}"; }
