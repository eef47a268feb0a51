#!/usr/bin/env bash
# A container image without a container engine: a docker-archive tar of one layer. The Dockerfile takes its contents from
# here too, so that there is one list of what is in the image.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: hack/image.sh NAME:TAG OUT.tar --bin PATH [--bin PATH…] [--folder PATH…] [--entrypoint PATH-IN-IMAGE]
                     [--arg ARG…] [--user UID]
       hack/image.sh busybox OUT.tar
       hack/image.sh root FOLDER --bin PATH [--bin PATH…]

Each binary is put into /bin of the image, with the libraries that ldd names, the CA bundle of this machine and a
user nonroot (65532), as which the image runs if no --user is given. Each folder is put where it is on this machine. The entrypoint is the first binary, if no other
is given; its default arguments are each --arg. `busybox` is tokencache.test/busybox:1, with a shell and the usual tools, run as root.
HELP
}

die() {
  echo "image: $*" >&2
  exit 1
}

main() {
  local name=${1---help} out=${2-} user=65532 folder entrypoint='' binaries=() folders=() arguments=()
  [[ $name != --help && $name != -h ]] || {
    usage
    exit
  }
  [[ -n $out && $out != -* ]] || die "no output file given: see --help"
  shift 2
  while (($#)); do
    [[ -n ${2-} ]] || die "$1 needs a value"
    case $1 in
      --bin) binaries+=("$2") ;;
      --folder) folders+=("$2") ;;
      --entrypoint) entrypoint=$2 ;;
      --arg) arguments+=("$2") ;;
      --user) user=$2 ;;
      *) die "unknown option $1: see --help" ;;
    esac
    shift 2
  done
  if [[ $name == busybox ]]; then
    name=tokencache.test/busybox:1 user=0 entrypoint=${entrypoint:-/bin/sh}
    binaries=("$(command -v busybox)") || die "busybox is missing (Debian: busybox-static)"
  fi
  if [[ $name == root ]]; then
    ((${#binaries[@]} > 0)) || die "no --bin given: see --help"
    fill_root "$out" "${binaries[@]}"
    # The same input gives the same image.
    find "$out" -exec touch --no-dereference --date=@0 {} +
    return
  fi
  [[ $name =~ ^[a-z0-9./_-]+:[A-Za-z0-9._-]+$ ]] || die "not an image's name and tag: $name"
  [[ $user =~ ^[0-9]+$ ]] || die "not a number of a user: $user"
  ((${#binaries[@]} > 0)) || die "no --bin given: see --help"
  entrypoint=${entrypoint:-/bin/$(basename "${binaries[0]}")}

  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  fill_root "$work/root" "${binaries[@]}"
  for folder in "${folders[@]}"; do
    mkdir -p "$work/root$folder"
    cp -RL "$folder/." "$work/root$folder/" || die "cannot read $folder"
  done
  # The same input gives the same image.
  tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$work/root" -cf "$work/layer.tar" .
  pack "$name" "$user" "$entrypoint" "${arguments[@]}"
  mv "$work/image.tar" "$out"
}

# fill_root FOLDER BINARY…
fill_root() {
  local root=$1 binary library applet kind
  shift
  mkdir -p "$root"/{bin,etc,proc,sys,dev,tmp}
  chmod 755 "$root"
  chmod 1777 "$root/tmp"
  printf '%s\n' root:x:0:0:root:/:/bin/sh nonroot:x:65532:65532:nonroot:/:/bin/false >"$root/etc/passwd"
  printf '%s\n' root:x:0: nonroot:x:65532: >"$root/etc/group"
  # Names of /etc/hosts, which the kubelet writes, come before DNS.
  echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
  for binary in "$@"; do
    install -m 755 "$binary" "$root/bin/" || die "cannot read $binary"
    # ldd would say of it what it says of a static one.
    kind=$(machine "$binary")
    [[ -z $kind || $kind == "$(machine "$BASH")" ]] || die "$binary is a program for another kind of machine"
    while read -r library; do
      [[ -e $root$library ]] || install -D -m 755 "$library" "$root$library"
    done < <(libraries "$binary")
    [[ $(basename "$binary") != busybox ]] || while read -r applet; do
      [[ -e $root/bin/$applet ]] || ln -s busybox "$root/bin/$applet"
    done < <("$binary" --list)
  done
  [[ ! -e /etc/ssl/certs/ca-certificates.crt ]] ||
    install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
}

# machine FILE: the kind of machine that a program is for, a number in its header: `ELF 3e00`. Nothing of a script.
machine() {
  local header
  header=$(od -An -v -t x1 -N 20 "$1" | tr -d ' \n')
  [[ $header != 7f454c46* ]] || echo "ELF ${header:36}"
}

# libraries BINARY: absolute paths, the dynamic loader among them; none for a static one, for which ldd fails.
libraries() {
  local list
  list=$(ldd "$1" 2>/dev/null) || return 0
  [[ $list != *'not found'* ]] || die "$1 needs libraries that are not here: $list"
  grep -o '/[^ ]* (0x' <<<"$list" | cut -d ' ' -f 1
}

# json STRING…: as a list.
json() {
  local list='' item
  for item in "$@"; do
    item=${item//\\/\\\\}
    list+="${list:+, }\"${item//\"/\\\"}\""
  done
  echo "[$list]"
}

# pack NAME USER ENTRYPOINT [ARGUMENT…]: layer.tar and its description, as image.tar.
pack() {
  local layer config architecture
  layer=$(sha256sum <"$work/layer.tar")
  architecture=$(uname -m)
  case $architecture in
    x86_64) architecture=amd64 ;;
    aarch64) architecture=arm64 ;;
  esac
  cat >"$work/config.json" <<JSON
{"architecture": "$architecture", "os": "linux", "created": "1970-01-01T00:00:00Z",
 "config": {"Entrypoint": $(json "$3"), "Cmd": $(json "${@:4}"), "User": "$2", "WorkingDir": "/",
            "Env": ["PATH=/bin"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:${layer%% *}"]}}
JSON
  config=$(sha256sum <"$work/config.json")
  mv "$work/config.json" "$work/${config%% *}.json"
  printf '[{"Config": "%s.json", "RepoTags": ["%s"], "Layers": ["layer.tar"]}]\n' \
    "${config%% *}" "$1" >"$work/manifest.json"
  tar -C "$work" -cf "$work/image.tar" manifest.json "${config%% *}.json" layer.tar
}

main "$@"
