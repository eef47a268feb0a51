# shellcheck shell=bash
# What may happen to a part of the control plane: it is killed and started again, it is frozen and thaws.

# part NAME: sets PART, if the cluster has a process of that name.
part() {
  PART=$1
  [[ -s $DIR/$PART.command ]] || die "cluster $NAME has no part '$PART': $(cd "$DIR" 2>/dev/null && ls ./*.command)"
}

# By SIGKILL: it has no chance to tidy up.
kill_part() {
  part "$1"
  end_processes "$DIR/$PART.pid"
}

# As it was started first.
start_part() {
  part "$1"
  ! alive "$DIR/$PART.pid" || die "$PART of cluster $NAME runs already"
  local command
  mapfile -d '' -t command <"$DIR/$PART.command"
  spawn "$PART" "${command[@]}"
}

# signal_part SIGNAL NAME
signal_part() {
  local pid
  part "$2"
  alive "$DIR/$PART.pid" || die "$PART of cluster $NAME does not run"
  read -r pid _ <"$DIR/$PART.pid"
  kill "-$1" "$pid"
}
