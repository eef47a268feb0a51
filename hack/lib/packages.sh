# shellcheck shell=bash
# Debian packages, by name, from the mirrors that this machine's own apt uses.

# need PACKAGE=COMMAND…: installs the packages whose command (a name or a path) is missing.
need() {
  local item missing=()
  for item in "$@"; do
    command -v "${item#*=}" >/dev/null || missing+=("${item%%=*}")
  done
  ((${#missing[@]} == 0)) || with_cache_lock packages install_packages "${missing[@]}"
}

install_packages() {
  [[ $EUID == 0 ]] || die "these Debian packages are missing: $* (only root can install them)"
  log "installing $*"
  # etcd-server and containerd start themselves when installed, on the machine's default ports and data folders.
  # An administrator's own policy stays as it is.
  if [[ ! -e /usr/sbin/policy-rc.d ]]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
  fi
  apt_get_install "$@" || {
    apt-get -qq update >&2 && apt_get_install "$@"
  } || die "could not install $*"
}

apt_get_install() {
  DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 install --no-install-recommends "$@" \
    </dev/null >"$CACHE/apt.log" 2>&1 || {
    tail -n 5 "$CACHE/apt.log" >&2
    return 1
  }
}

# debian_sources_as_src SUITE: this machine's Debian mirrors as deb-src lines, read from both of apt's formats.
# A mirror is told from other repositories by having this machine's release as a suite, in component main.
debian_sources_as_src() {
  python3 - "$1" "$(. /etc/os-release && printf %s "$VERSION_CODENAME")" <<'PY'
import glob, re, sys
suite, codename = sys.argv[1:]
found = {}

def add(uris, suites, components, signed_by):
    if codename in suites and "main" in components:
        for uri in uris:
            found.setdefault(uri, signed_by)

for path in ["/etc/apt/sources.list", *sorted(glob.glob("/etc/apt/sources.list.d/*.list"))]:
    try:
        lines = open(path).read().splitlines()
    except OSError:
        continue
    for line in lines:
        match = re.match(r"deb(?:-src)?\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line.strip())
        if match:
            options = dict(o.split("=", 1) for o in (match[1] or "").split() if "=" in o)
            add([match[2]], [match[3]], match[4].split(), options.get("signed-by"))

for path in sorted(glob.glob("/etc/apt/sources.list.d/*.sources")):
    for stanza in re.split(r"\n\s*\n", open(path).read()):
        fields, key = {}, None
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace() and key:
                fields[key] += "\n" + line
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.strip().lower()
                fields[key] = value
        if fields.get("enabled", "yes").strip().lower() == "no":
            continue
        signed_by = fields.get("signed-by", "").strip()
        add(fields.get("uris", "").split(), fields.get("suites", "").split(),
            fields.get("components", "").split(), signed_by if signed_by.startswith("/") else None)

for uri, signed_by in found.items():
    print("deb-src", *([f"[signed-by={signed_by}]"] if signed_by else []), uri, suite, "main")
PY
}
