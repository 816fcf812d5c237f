#!/bin/sh
# Install arpanet, and what it needs, on one machine: ./bootstrap.sh --help
#
# Works from a checkout and from a pipe. A second run changes and restarts nothing. What is downloaded is checked
# before anything changes. All of this file stands in one pair of braces: half a download runs nothing.
{
set -eu

BIN=/usr/local/bin/arpanet
ETC=/etc/arpanet
UNITS=/etc/systemd/system
CACHE=/var/cache/arpanet
DATA=/var/lib/arpanet
LOGS=/var/log/arpanet
# The directories in which services look for commands, so the Python that they find is the one to build for.
SERVICE_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# Settings, which options beat; usage() says what each does. sudo drops variables, but not those typed behind it.
role=${ARPANET_ROLE:-none}
peers=${ARPANET_PEERS:-}
masters=${ARPANET_MASTERS:-}
address=${ARPANET_IP:-}
certs=${ARPANET_CERT_PATH:-}
url=${ARPANET_URL:-}
version=${ARPANET_VERSION:-}
sum=${ARPANET_SHA256:-}
no_start=${ARPANET_NO_START:-0}
skip_packages=${ARPANET_SKIP_PACKAGES:-0}
dry_run=${ARPANET_DRY_RUN:-0}

usage() {
    cat <<'HELP'
Install arpanet, and what it needs, on one machine: Debian, Ubuntu, Fedora and their families.

  sudo ./bootstrap.sh --start                           arpanet on this machine alone: a master and a slave
  sudo ./bootstrap.sh master slave --peers 192.168.8.120     both, joining the arpanet that is there
  sudo ./bootstrap.sh slave --masters 192.168.8.120,192.168.8.121
  wget -qO- URL/bootstrap.sh | sudo ARPANET_URL=URL/ bash -s -- master slave --peers boot

The words master and slave are the roles to start now and at every boot; without one arpanet is only installed.
From a checkout arpanet.pex is built (needs a package index for pip); with a URL it is fetched.

Option            Variable                 What it does
                  ARPANET_ROLE             The same as the words: master, slave, both or none
--start                                    The same as: master slave --peers boot
--peers P         ARPANET_PEERS            For a master: boot if it is the first one, else addresses of masters
--masters IP,...  ARPANET_MASTERS          For a slave on a machine without a master: addresses of masters
--ip IP           ARPANET_IP               This machine's address for the others (default: its one private address)
--cert-path DIR   ARPANET_CERT_PATH        For TLS: where ca.pem, cert.pem and key.pem of this machine are (arpanet help tls)
--url URL         ARPANET_URL              Take arpanet.pex from there: https, file, a path; http with --sha256.
                                           With / at its end it is a place: URL/arpanet.pex, URL/VERSION/arpanet.pex
--version V       ARPANET_VERSION          The version to install; any other is refused
--sha256 HEX      ARPANET_SHA256           Its checksum (default: what URL.sha256 says)
--no-start        ARPANET_NO_START=1       Enable, but start nothing
--skip-packages   ARPANET_SKIP_PACKAGES=1  Install no package; what is needed must be there
--dry-run         ARPANET_DRY_RUN=1        Say what would be done, change nothing
--uninstall                                Remove arpanet; keep its settings, its data, Docker and etcd
--purge                                    With --uninstall: remove its settings and its data too
-h, --help                                 Show this

Settings go to /etc/arpanet/arpanet.env. What stands there is kept: change it there, and run this again.
HELP
}

say()  { echo "bootstrap.sh: $*"; }
warn() { echo "bootstrap.sh: warning: $*" >&2; }
die()  { echo "bootstrap.sh: $*" >&2; exit 1; }
usage_error() { echo "bootstrap.sh: $*; try: ./bootstrap.sh --help" >&2; exit 2; }
have() { command -v "$1" >/dev/null 2>&1; }
# Everything that is started gets no standard input (it may be this script) and not our lock (it may outlive us).
alone() { "$@" </dev/null 9>&-; }
quietly() { alone "$@" >/dev/null 2>&1; }
# run COMMAND...: what changes the machine goes through here, through put or through install_packages.
run()  { if [ "$dry_run" = 1 ]; then echo "would run: $*"; else alone "$@"; fi; }
systemd_runs() { [ -d /run/systemd/system ]; }
wants() { [ "$role" = "$1" ] || [ "$role" = both ]; }

# ---- before anything is changed ---------------------------------------------------------------------------------

parse() {
    words='' start=0 uninstall=0 purge=0
    while [ $# -gt 0 ]; do
        case $1 in
            master|slave) words="$words $1";;
            --url|--version|--sha256|--peers|--masters|--ip|--cert-path)
                [ $# -gt 1 ] || usage_error "$1 needs a value"
                case $1 in
                    --url) url=$2;; --version) version=$2;; --sha256) sum=$2;;
                    --peers) peers=$2;; --masters) masters=$2;; --ip) address=$2;;
                    --cert-path) certs=$2;;
                esac
                shift;;
            --start) start=1;;
            --no-start) no_start=1;;
            --skip-packages) skip_packages=1;;
            --dry-run) dry_run=1;;
            --uninstall) uninstall=1;;
            --purge) purge=1;;
            -h|--help) usage; exit 0;;
            -*) usage_error "unknown option $1";;
            *) usage_error "a role is master or slave, not $1";;
        esac
        shift
    done
    case $words in *master*slave*|*slave*master*) role=both;; ?*) role=${words##* };; esac
    [ "$start" = 0 ] || { [ "$role" != none ] || role=both; [ -n "$peers" ] || peers=boot; }
    check_options
    case $url in */) url=$url${version:+$version/}arpanet.pex;; esac
}

check_options() {
    case $role in master|slave|both|none) ;; *) usage_error "ARPANET_ROLE is master, slave, both or none, not $role";; esac
    case $peers in boot) ;; *[!0-9.,]*) usage_error "--peers is boot or addresses of masters, not $peers";; esac
    case $masters in *[!0-9.,]*) usage_error "--masters is addresses of masters, not $masters";; esac
    case $address in *[!0-9.]*) usage_error "--ip is an IPv4 address, not $address";; esac
    case $certs in ''|/*) ;; *) usage_error "--cert-path is a directory, like /etc/arpanet/tls, not $certs";; esac
    case $sum in *[!0-9a-f]*) usage_error "--sha256 is 64 digits of 0-9 and a-f, not $sum";; esac
    case $version in *[!0-9A-Za-z.]*) usage_error "--version is like 0.1.0, not $version";; esac
    [ "$purge" = 0 ] || [ "$uninstall" = 1 ] || usage_error "--purge goes with --uninstall"
}

require_root() {
    [ "$(id -u)" = 0 ] || [ "$dry_run" = 1 ] || die "this changes the machine and needs root: sudo ./bootstrap.sh, or piped: ... | sudo bash"
}

# Says what is wrong with this machine or this command line, and sets packages, address and the like.
preflight() {
    [ "$(uname -s)" = Linux ] || die "arpanet runs on Linux, and this is $(uname -s)"
    case $(uname -m) in x86_64|aarch64) ;; *) die "arpanet.pex is made for x86_64 and aarch64, and this is $(uname -m)";; esac
    require_root
    find_checkout
    check_system
    check_roles
    check_certificate
    check_url
    find_address
    list_packages
    check_packages
}

# Sets checkout: the directory of this script if arpanet is to be built from it, else empty.
find_checkout() {
    checkout=
    [ -z "$url" ] || return 0
    case $0 in */bootstrap.sh|bootstrap.sh) checkout=$(cd "$(dirname "$0")" && pwd);; esac
    if [ -z "$checkout" ] || [ ! -e "$checkout/build_zipapp.sh" ] || [ ! -e "$checkout/arpanet.py" ]; then
        die "this is no checkout to build arpanet.pex from; say where it is: --url URL"
    fi
}

# Sets os and family, which is the tool that installs packages here: apt, dnf or none.
check_system() {
    os=unknown os_like='' os_version=''
    if [ -r /etc/os-release ]; then
        # shellcheck disable=SC1091
        { os=$(. /etc/os-release; echo "${ID:-unknown}"); os_like=$(. /etc/os-release; echo "${ID_LIKE:-}")
          os_version=$(. /etc/os-release; echo "${VERSION_ID:-}"); }
    fi
    case " $os $os_like " in
        *" debian "*|*" ubuntu "*) family=apt;;
        *" fedora "*|*" rhel "*|*" centos "*) family=dnf;;
        *) family=none;;
    esac
    python=$(PATH=$SERVICE_PATH command -v python3 || true)
    [ -z "$python" ] || "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' </dev/null ||
        die "arpanet needs Python 3.10 or later, and $python is $("$python" -V 2>&1)"
    case $os-$os_version in debian-9|debian-10|debian-11|ubuntu-1?.*|ubuntu-20.*)
        [ -n "$python" ] || [ "$skip_packages" = 1 ] ||
            die "arpanet needs Python 3.10: Debian 12, Ubuntu 22.04 or later, and this is $os $os_version";;
    esac
}

check_roles() {
    if wants master; then
        [ -n "$peers" ] || setting ARPANET_PEERS || is_member ||
            usage_error "a master needs --peers: boot if it is the first one"
        if systemd_runs && { quietly systemctl is-active etcd.service || quietly systemctl is-enabled etcd.service; }; then
            die "this machine's own etcd.service has the port 2379 that a master needs: systemctl disable --now etcd"
        fi
    elif wants slave; then
        [ -n "$masters" ] || setting ARPANET_MASTERS || is_member || usage_error "a slave without a master needs --masters IP,..."
    fi
}

# setting NAME: whether arpanet.env has it.
setting() { grep -qs "^ *\(export \)\{0,1\}$1=." "$ETC/arpanet.env"; }

# Whether the master of this machine has begun, so that --peers is done with.
is_member() {
    state=$(sed -n 's/^ *\(export \)\{0,1\}ARPANET_STATE_DIR=//p' "$ETC/arpanet.env" 2>/dev/null) || true
    [ -d "${state:-$DATA}/etcd" ]
}

check_certificate() {
    [ -n "$certs" ] || return 0
    for file in ca.pem cert.pem key.pem; do
        [ -s "$certs/$file" ] || die "there is no $certs/$file; to make it, with arpanet on any machine: arpanet help tls"
    done
    ! is_member || setting ARPANET_CERT_PATH || setting ARPANET_TLS_VERIFY || setting ARPANET_TLS ||
        die "the master of this machine is without TLS; how to change that: arpanet help tls; nothing was changed"
}

check_url() {
    case $url in
        ''|https://*|file:///*|http://127.0.0.1[:/]*|http://localhost[:/]*) ;;
        http://*) [ -n "$sum" ] || die "what comes over plain http can be changed on its way: say its --sha256, or use https";;
        *://*) die "cannot fetch $url; give an https, http or file address, or a path";;
        *) [ -e "$url" ] || die "there is no file $url";;
    esac
}

# arpanet finds its address when the machine has one private one. A machine with none but the loopback can run alone.
find_address() {
    alone_here=0
    [ -z "$address" ] && [ "$role" != none ] && ! setting ARPANET_IP || return 0
    all=$(list_addresses)
    private=$(echo "$all" | grep -E '^(10\.|192\.168\.|172\.(1[6-9]|2[0-9]|3[01])\.)' || true)
    case $(echo "$private" | grep -c .) in
        1) return 0;;
        0)  [ -n "$all" ] || [ "$peers" != boot ] || { alone_here=1 address=127.0.0.1; return 0; }
            say_address "no private address" "$all";;
        *) say_address "several private addresses" "$private";;
    esac
}

say_address() {
    # shellcheck disable=SC2086
    set -- "$1" $2
    what=$1
    shift
    die "this machine has $what; say at which address the other machines reach it: --ip IP (it has: ${*:-none})"
}

# The addresses of this machine that are not Docker's and not loopback.
list_addresses() {
    if have ip; then
        ip -4 -o addr show scope global | awk '$2 !~ /^(docker[0-9]|br-[0-9a-f]+$|veth|virbr)/ { sub("/.*", "", $4); print $4 }'
    elif have hostname; then
        hostname -I | tr ' ' '\n' | grep -E '^[0-9.]+$' || true
    fi
}

# need APT DNF: this package is missing here; for dnf, names between | of which one will do.
need() { if [ "$family" = dnf ]; then packages="$packages $2"; else packages="$packages $1"; fi; }
python_has() { [ -n "$python" ] && quietly "$python" -c "import $1"; }

# Sets packages: those that bring what is missing here, and brings_etcd.
list_packages() {
    packages='' brings_etcd=0
    python_has json || need python3 python3
    [ -z "$checkout" ] || python_has 'ensurepip, venv' || need python3-venv python3
    [ "$role" = master ] || have dockerd || need docker.io 'moby-engine|docker-ce|docker'
    # Debian's etcd package starts an etcd of its own on 2379; one that we bring is switched off
    [ "$role" = slave ] || have etcd || { brings_etcd=1; need etcd-server etcd; }
    [ "$role" = slave ] || have etcdctl || need etcd-client etcd
    have ip || need iproute2 iproute
    [ "$role" = master ] || have iptables || need iptables 'iptables-nft|iptables'
    have setpriv || need util-linux util-linux
    [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -d /etc/pki/tls/certs ] || need ca-certificates ca-certificates
    # without its parser dockerd starts no container on a kernel with AppArmor
    [ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" != Y ] || have apparmor_parser ||
        [ "$family" = dnf ] || [ "$role" = master ] || need apparmor ''
    packages=$(echo "$packages" | tr ' ' '\n' | awk 'NF && !seen[$1]++' | tr '\n' ' ')
    packages=${packages% }
}

check_packages() {
    [ -n "$packages" ] || return 0
    [ "$skip_packages" = 0 ] || die "these packages, or what they bring, are missing: $packages"
    [ "$family" != none ] ||
        die "packages can be installed on Debian, Ubuntu, Fedora and the like, and this is $os; install what brings these, then run this again: $packages"
    case $family in apt) tool=apt-get;; *) tool=dnf;; esac
    have "$tool" || die "there is no $tool; install these: $packages"
    case $packages in *docker.io*)
        ! have dpkg-query || ! quietly dpkg-query -W docker-ce-cli containerd.io ||
            die "Docker's own packages are here without the engine: apt-get install docker-ce";;
    esac
    free=$(df -Pk /var | awk 'NR == 2 { print $4 }')
    [ "$free" -gt 700000 ] || die "packages need 700 MB free in /var, and $((free / 1000)) MB are"
}

lock() {
    tmp=$(mktemp -d)
    trap cleanup EXIT
    trap 'exit 130' INT TERM HUP
    [ "$dry_run" = 0 ] || return 0
    mkdir -p /run
    exec 9>/run/arpanet-bootstrap.lock
    ! have flock || flock -n 9 || die "another bootstrap.sh is running"
}

# shellcheck disable=SC2317,SC2329  # called by trap
cleanup() {
    code=$?
    [ "$dry_run" = 1 ] || unmask_etcd
    rm -rf "$tmp"
    exit "$code"
}

fetch() {  # fetch URL FILE
    case $1 in
        http://*|https://*)
            if have curl; then alone curl -fsSL --retry 3 --connect-timeout 15 --proto '=http,https' -o "$2" "$1"
            elif have wget; then alone wget -q --tries=3 --timeout=30 -O "$2" "$1"
            else die "neither curl nor wget is here to fetch $1; nothing was changed"; fi;;
        *) cp "${1#file://}" "$2";;
    esac
}

# What is installed already is not fetched again.
fetch_pex() {
    [ -n "$url" ] || return 0
    if [ "$dry_run" = 1 ]; then echo "would fetch $url and check its sha256"; return; fi
    if [ -z "$sum" ]; then
        fetch "$url.sha256" "$tmp/sha256" || die "cannot fetch $url.sha256, say --sha256; nothing was changed"
        sum=$(awk 'NR == 1 { print $1 }' "$tmp/sha256")
    fi
    if [ -e "$BIN" ] && [ "$(hash_of "$BIN")" = "$sum" ]; then cp "$BIN" "$tmp/arpanet.pex"; return; fi
    say "fetching $url"
    fetch "$url" "$tmp/arpanet.pex" || die "cannot fetch $url; nothing was changed"
    real=$(hash_of "$tmp/arpanet.pex")
    [ "$sum" = "$real" ] || die "$url is not what it should be: sha256 $real instead of $sum; nothing was changed"
}

hash_of() { sha256sum "$1" | cut -d' ' -f1; }

# ---- changes ----------------------------------------------------------------------------------------------------

install_packages() {
    [ -n "$packages" ] || return 0
    if [ "$dry_run" = 1 ]; then echo "would install: $packages"; return; fi
    case $tool in apt-get) prepare_apt;; *) prepare_dnf;; esac
    say "installing $packages"
    [ "$brings_etcd" = 0 ] || mask_etcd
    # shellcheck disable=SC2086
    install $packages || { tail -20 "$tmp/packages.log" >&2; die "$tool could not install: $packages"; }
    [ "$brings_etcd" = 0 ] || systemd_runs || ! have service ||
        { quietly service etcd stop; quietly update-rc.d etcd disable; } || true
    python=$(PATH=$SERVICE_PATH command -v python3) || die "there is still no python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' </dev/null ||
        die "arpanet needs Python 3.10 or later, and $tool has brought $("$python" -V 2>&1)"
}

apt() {
    alone env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l apt-get -y -qq -o DPkg::Lock::Timeout=300 \
        -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 "$@" >"$tmp/packages.log" 2>&1
}

prepare_apt() {
    apt update || warn "apt-get update failed, going on with what it knew: $(tail -1 "$tmp/packages.log")"
    # in Debian 13 the docker command is a package of its own
    [ "$role" = master ] || have docker || ! quietly apt-cache show docker-cli || packages="$packages docker-cli"
}

install() {
    case $tool in
        apt-get) apt install --no-install-recommends --no-remove "$@";;
        *) alone dnf -y -q install "$@" >"$tmp/packages.log" 2>&1;;
    esac
}

# Chooses, of the names between |, the first that dnf knows; what it does not know at all is said before anything changes.
prepare_dnf() {
    chosen='' unknown=''
    [ "$role" = master ] || have docker || ! knows docker-cli || chosen=docker-cli
    for names in $packages; do
        found=
        for name in $(echo "$names" | tr '|' ' '); do
            ! knows "$name" || { found=$name; break; }
        done
        if [ -n "$found" ]; then chosen="$chosen $found"; else unknown="$unknown $names"; fi
    done
    [ -z "$unknown" ] || die "dnf does not know:$unknown; install what brings these, then run this again; nothing was changed"
    packages=${chosen# }
}

knows() { quietly dnf -q list "$1"; }

# A service that is masked before its package comes is never started, not even for a moment.
mask_etcd() {
    [ ! -e "$UNITS/etcd.service" ] && have systemctl || return 0
    mkdir -p "$CACHE"
    touch "$CACHE/masked"
    quietly systemctl mask etcd.service || rm -f "$CACHE/masked"
}

# Whenever this script ends, also after one that was killed.
unmask_etcd() {
    [ -e "$CACHE/masked" ] || return 0
    quietly systemctl unmask etcd.service || true
    quietly systemctl disable etcd.service || true
    rm -f "$CACHE/masked"
}

# Builds in a copy: nothing of root's is left in the checkout.
build_pex() {
    [ -n "$checkout" ] || return 0
    if [ "$dry_run" = 1 ]; then echo "would build arpanet.pex from $checkout"; return; fi
    say "building arpanet.pex from $checkout"
    mkdir -p "$CACHE/build"
    (cd "$checkout" && cp arpanet.py requirements.txt build_zipapp.sh "$CACHE/build/")
    alone env PYTHON="$python" sh "$CACHE/build/build_zipapp.sh" >"$tmp/build.log" 2>&1 ||
        { tail -20 "$tmp/build.log" >&2; die "arpanet.pex could not be built; arpanet was not installed"; }
    cp "$CACHE/build/dist/arpanet.pex" "$tmp/arpanet.pex"
}

# put MODE FILE: standard input becomes FILE, whole and at once. If that is news, what runs is to be started anew: the
# mark of it stays until that is done, also when this script is killed before.
put() {
    if [ "$dry_run" = 1 ]; then echo "would write $2"; cat >/dev/null; return; fi
    mkdir -p "$(dirname "$2")"
    if ! cat >"$2.arpanet-new"; then rm -f "$2.arpanet-new"; die "cannot write $2; it is as it was"; fi
    chmod "$1" "$2.arpanet-new"
    if cmp -s "$2.arpanet-new" "$2"; then rm -f "$2.arpanet-new"; return; fi
    touch "$CACHE/changed"
    mv -f "$2.arpanet-new" "$2"
}

changed() { [ -e "$CACHE/changed" ]; }

install_files() {
    if [ "$dry_run" = 1 ]; then echo "would write $BIN"; else install_pex; fi
    env_file >"$tmp/env"
    put "$(stat -Lc %a "$ETC/arpanet.env" 2>/dev/null || echo 644)" "$ETC/arpanet.env" <"$tmp/env"
    for r in master slave; do
        unit "$r" >"$tmp/unit" || true
        put 644 "$UNITS/arpanet-$r.service" <"$tmp/unit"
    done
}

# The new file must run here before it replaces anything; this also unpacks it, so that the services start fast.
install_pex() {
    mkdir -p "$CACHE"
    if ! { said=$(try_pex 0 --version) && try_pex 1 -c 'import docker, cryptography.x509, arpanet; arpanet.load_etcd3()'; }; then
        ! grep -q 'compatible interpreter' "$tmp/error" ||
            die "this arpanet.pex is for another Python than $("$python" -V); nothing was replaced; one for all is made by: ./build_zipapp.sh --all"
        tail -n 1 "$tmp/error" >&2
        die "this arpanet.pex does not run with $("$python" -V) on $(uname -m); nothing was replaced"
    fi
    [ -z "$version" ] || [ "$said" = "arpanet $version" ] ||
        die "this is $said, and arpanet $version is wanted; nothing was replaced"
    put 755 "$BIN" <"$tmp/arpanet.pex"
    say "$said is in $BIN"
}

# try_pex 0 WORDS... runs arpanet, try_pex 1 WORDS... the Python that it has.
try_pex() {
    as_python=$1
    shift
    alone env PEX_ROOT="$CACHE/pex" PEX_INTERPRETER="$as_python" "$python" "$tmp/arpanet.pex" "$@" 2>"$tmp/error"
}

# What is there, and at its end what it lacks.
env_file() {
    if [ -e "$ETC/arpanet.env" ]; then awk 1 "$ETC/arpanet.env"; else
        echo "# Settings of arpanet on this machine, for all its roles. What stands here is kept by bootstrap.sh: change it here."
        echo "# What there is to set: arpanet help settings. The next start reads what is changed here."
    fi
    add_setting ARPANET_IP "$address"
    # whom to join is asked once
    is_member || add_setting ARPANET_PEERS "$peers"
    add_setting ARPANET_MASTERS "$masters"
    add_setting ARPANET_CERT_PATH "$certs"
}

add_setting() {
    if [ -z "$2" ] || grep -qs "^ *\(export \)\{0,1\}$1=[\"']\{0,1\}$2[\"']\{0,1\} *\$" "$ETC/arpanet.env"; then return; fi
    if setting "$1"; then warn "$ETC/arpanet.env has another $1, which is kept; change it there"; else echo "$1=$2"; fi
}

# unit ROLE. ProtectSystem=full and not strict: /etc/arpanet/arpanet.env may put the data wherever it likes.
# The slave may set the links' route, listen at port 53 for names, and open a socket of the engine that is not root's.
unit() {
    case $1 in
        master) after='docker.service' abilities=CAP_NET_BIND_SERVICE home=yes;;
        slave) after='docker.service arpanet-master.service' home=read-only
            abilities='CAP_NET_ADMIN CAP_NET_BIND_SERVICE CAP_DAC_OVERRIDE';;
    esac
    cat <<UNIT
[Unit]
Description=arpanet $1
Wants=network-online.target
After=network-online.target $after
StartLimitIntervalSec=0

[Service]
Type=notify
Environment=HOME=/root PEX_ROOT=$CACHE/pex
ExecStart=$BIN $1 start --foreground
Restart=on-failure
RestartSec=2
TimeoutStartSec=120
TimeoutStopSec=30
KillMode=mixed
LimitNOFILE=65536
TasksMax=infinity
StateDirectory=arpanet
StateDirectoryMode=0700
CacheDirectory=arpanet
LogsDirectory=arpanet
LogsDirectoryMode=0750
RuntimeDirectory=arpanet
RuntimeDirectoryPreserve=yes
CapabilityBoundingSet=$abilities
NoNewPrivileges=yes
ProtectSystem=full
ProtectHome=$home
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
UNIT
}

start_docker() {
    if quietly docker version; then return; fi
    if [ "$dry_run" = 1 ]; then echo "would start Docker"; return; fi
    say "starting Docker"
    if systemd_runs; then
        quietly systemctl enable --now docker.service || true
    elif ! { [ -x /etc/init.d/docker ] && quietly sh /etc/init.d/docker start && wait_for_docker 10; }; then
        mkdir -p "$LOGS"
        # not through alone: the shell that waits for a function would keep our standard output open
        setsid dockerd </dev/null >>"$LOGS/dockerd.log" 2>&1 9>&- &
    fi
    wait_for_docker 60 || die "Docker does not start; see: $(systemd_runs && echo journalctl -u docker || echo "$LOGS/dockerd.log")"
}

# wait_for_docker SECONDS
wait_for_docker() {
    left=$1
    until quietly docker version; do
        [ "$left" -gt 0 ] || return 1
        left=$((left - 1))
        sleep 1
    done
}

services() {
    if systemd_runs; then run systemctl daemon-reload; fi
    if systemd_runs; then
        for r in master slave; do ! wants "$r" || run systemctl enable -q "arpanet-$r.service"; done
    fi
    [ "$no_start" = 0 ] || return 0
    ! wants slave || start_docker
    # what runs goes on with the new version, also where it is not asked for
    for r in master slave; do if wants "$r" || role_runs "$r"; then start_role "$r"; fi; done
    ! wants master || forget_boot
    run rm -f "$CACHE/changed"
}

# The first master is booted once: should its data be lost, it must not quietly begin another, empty arpanet.
forget_boot() { ! grep -qsx 'ARPANET_PEERS=boot' "$ETC/arpanet.env" || run sed -i '/^ARPANET_PEERS=boot$/d' "$ETC/arpanet.env"; }

role_runs() { if systemd_runs; then quietly systemctl is-active "arpanet-$1.service"; else daemon_runs "$1"; fi; }

# start_role ROLE: it runs, with what is installed now, when this returns.
start_role() {
    changed || ! role_runs "$1" || return 0
    if systemd_runs; then
        say "starting arpanet-$1.service"
        run systemctl restart "arpanet-$1.service" || {
            alone journalctl -q -n 10 -o cat -u "arpanet-$1.service" >&2
            die "the $1 does not start; see: journalctl -u arpanet-$1"
        }
    else
        ! daemon_runs "$1" || daemon stop "$1"
        daemon start "$1" || die "the $1 does not start"
    fi
}

# daemon VERB ROLE: with the environment of a service, where there are no services.
daemon() { run env PATH="$SERVICE_PATH" PEX_ROOT="$CACHE/pex" "$BIN" "$2" "$1"; }

# daemon_runs ROLE. A daemon holds its pid file locked; the number in it is not to be trusted.
daemon_runs() { [ -e "/run/arpanet/$1.pid" ] && ! quietly flock -n "/run/arpanet/$1.pid" true; }

say_next() {
    if [ "$role" = none ] || [ "$no_start" = 1 ]; then
        say "done; next: arpanet help"
        return
    fi
    [ "$alone_here" = 0 ] || say "this machine has no address but 127.0.0.1, so no other machine can join (--ip IP changes that)"
    systemd_runs || say "there is no systemd here; at each boot: arpanet master start, arpanet slave start"
    ! quietly firewall-cmd --state ||
        say "firewalld runs here; if others cannot join: firewall-cmd --permanent --add-port={8791,8792,2379,2380}/tcp && firewall-cmd --reload"
    say "done; next:"
    if wants master && ! setting ARPANET_CERT_PATH; then echo "    docker -H tcp://127.0.0.1:8791 run --name hello busybox echo hi"
    else echo "    arpanet docker info"; fi
}

remove() {
    if systemd_runs; then
        run systemctl disable --now arpanet-slave.service arpanet-master.service 2>/dev/null || true
    fi
    for r in slave master; do ! daemon_runs "$r" || daemon stop "$r" || true; done
    run rm -f "$BIN" "$BIN.arpanet-new" "$UNITS/arpanet-master.service" "$UNITS/arpanet-slave.service"
    [ "$dry_run" = 1 ] || unmask_etcd
    run rm -rf "$CACHE"
    if systemd_runs; then run systemctl daemon-reload; fi
    [ "$purge" = 0 ] || run rm -rf "$ETC" "$DATA" "$LOGS" /run/arpanet
    [ "$dry_run" = 0 ] || return 0
    # shellcheck disable=SC2012
    kept=$(ls -d "$ETC" "$DATA" "$LOGS" 2>/dev/null | tr '\n' ' ')
    [ -z "$kept" ] || say "kept: $kept(--purge removes them)"
    say "removed; containers, Docker and etcd stay"
}

main() {
    parse "$@"
    if [ "$uninstall" = 1 ]; then require_root; remove; return; fi
    preflight
    lock
    fetch_pex
    install_packages
    build_pex
    install_files
    services
    say_next
}

main "$@"
exit
}
