#!/bin/sh
# Build dist/arpanet.pex, arpanet with its dependencies as one file, and dist/arpanet.pex.sha256.
#
#   ./build_zipapp.sh            for the Python and the CPU of this machine (14 MB)
#   ./build_zipapp.sh --all      one file for CPython 3.10 to 3.14 on x86_64 and aarch64 (83 MB)
#   ./build_zipapp.sh --check    build twice, and fail when the two files differ
#   ./build_zipapp.sh --lock     resolve the dependencies anew and write requirements.txt
#
# Needs python3, 3.10 or later, with venv (Debian, Ubuntu: python3-venv), and a package index for pip.
# pip is used with its own settings (pip.conf, PIP_*): a mirror or a proxy set there is used here.
# When nothing has changed since the last build, nothing is done. Downloads and tools are kept in .build/.
#
# Variables: PYTHON              the Python to build with, and for (default: python3)
#            ARPANET_BUILD_DIR   where downloads and tools are kept (default: .build)
set -eu
umask 022

# What arpanet imports. --lock resolves these; a build takes only what stands in requirements.txt.
# grpcio 1.80.1 has wheels for all our Pythons.
WANTED='docker==7.2.0 etcd3==0.12.0 protobuf==7.36.2 grpcio==1.80.1 cryptography==50.0.2'

# pex has two wheels; with only this hash every Python takes the same one, and the result is the same.
TOOLS='pex==2.105.2 --hash=sha256:5a4d73fbeab30ddf70e360971cb19b9fa80b2a29cfe83e786215fcdd5ef1af9d
setuptools==80.9.0 --hash=sha256:062d34222ad13e0cc312a4c02d73f059e86a4acbfbdea8f8f76b28c99f306922'

say() { echo "build_zipapp.sh: $*"; }
die() { echo "build_zipapp.sh: $*" >&2; exit 1; }
pip() { "$tools/bin/python" -I -m pip -qq --disable-pip-version-check "$@" </dev/null; }
hash_of() { sha256sum "$1" | cut -d' ' -f1; }

main() {
    parse "$@"
    cd "$(dirname "$0")"
    find_python
    lock_build
    if [ "$mode" = lock ]; then install_tools; write_lock; return; fi
    if is_fresh; then say "dist/arpanet.pex is up to date"; return; fi
    install_tools
    fetch_wheels
    pack "$build/arpanet.pex" "$build/pex-root"
    [ "$mode" != check ] || check_again
    publish
}

parse() {
    mode=one
    [ $# -le 1 ] || usage_error "one option at most"
    case ${1:-} in
        '') ;;
        --all) mode=all;;
        --check) mode=check;;
        --lock) mode=lock;;
        -h|--help) sed -n '2,/^set /s/^#\{1,\} \{0,1\}//p' "$0"; exit 0;;
        *) usage_error "unknown option $1";;
    esac
}

usage_error() { echo "build_zipapp.sh: $*; try: ./build_zipapp.sh --help" >&2; exit 2; }

# Sets python, its tag (cp311-x86_64) and build, the directory that is kept.
find_python() {
    python=${PYTHON:-python3}
    command -v "$python" >/dev/null || die "no $python here; on Debian and Ubuntu: apt-get install python3 python3-venv"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die "arpanet needs Python 3.10 or later, and $python is $("$python" -V 2>&1); set PYTHON to a later one"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python has no venv; on Debian and Ubuntu: apt-get install python3-venv"
    tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')-$(uname -m)
    mkdir -p "${ARPANET_BUILD_DIR:-.build}" dist
    build=$(cd "${ARPANET_BUILD_DIR:-.build}" && pwd)
    tools=$build/tools-$tag
}

# Two builds at once in one tree would take each other's files away.
lock_build() {
    command -v flock >/dev/null || return 0
    exec 9>"$build/lock"
    flock 9
}

# Everything the result depends on, in one word.
key() {
    case $mode in all) targets=all;; *) targets=$tag;; esac
    echo "$(cat arpanet.py requirements.txt build_zipapp.sh | sha256sum | cut -d' ' -f1)-$targets"
}

is_fresh() {
    [ "$mode" != check ] && [ -e dist/arpanet.pex ] &&
        [ "$(cat "$build/built" 2>/dev/null)" = "$(key) $(hash_of dist/arpanet.pex)" ] &&
        (cd dist && sha256sum --check --status arpanet.pex.sha256 2>/dev/null)
}

install_tools() {
    [ "$(cat "$tools/installed" 2>/dev/null)" != "$TOOLS" ] || return 0
    say "installing pex into $tools"
    rm -rf "$tools"
    "$python" -m venv "$tools"
    echo "$TOOLS" >"$build/tools.txt"
    pip install --require-hashes --only-binary :all: --requirement "$build/tools.txt"
    echo "$TOOLS" >"$tools/installed"
}

# Fills $wheels with exactly the wheels that go into the file, each checked against requirements.txt.
fetch_wheels() {
    case $mode in all) wheels=$build/wheels-all;; *) wheels=$build/wheels-$tag;; esac
    lock_key=$(cat requirements.txt build_zipapp.sh | sha256sum | cut -d' ' -f1)
    [ "$(cat "$wheels.of" 2>/dev/null)" != "$lock_key" ] || return 0
    say "fetching the wheels of requirements.txt"
    rm -rf "$wheels" "$wheels.of"
    mkdir -p "$wheels"
    if [ "$mode" = all ]; then
        for cpu in x86_64 aarch64; do
            for version in 310 311 312 313 314; do
                fetch_binaries --platform "manylinux2014_$cpu" --implementation cp --python-version "$version" --abi "cp$version"
            done
        done
    else
        fetch_binaries
    fi
    build_etcd3
    echo "$lock_key" >"$wheels.of"
}

fetch_binaries() {
    sed '/^etcd3==/,/[^\\]$/d' requirements.txt >"$build/binaries.txt"
    pip download --require-hashes --only-binary :all: --no-deps --dest "$wheels" --requirement "$build/binaries.txt" "$@"
}

# etcd3 is published as source only. The pinned setuptools and a fixed date make the same wheel of it everywhere.
build_etcd3() {
    sed -n '/^etcd3==/,/[^\\]$/p' requirements.txt >"$build/sources.txt"
    SOURCE_DATE_EPOCH=315532800 pip wheel --require-hashes --no-binary :all: --no-build-isolation --no-cache-dir --no-deps \
        --wheel-dir "$wheels" --requirement "$build/sources.txt"
}

# pack FILE PEX_ROOT. The wheels are all there and checked: pex only packs them, and asks no index.
# No --interpreter-constraint: the unpacked copy is then kept per Python, and survives an upgrade of python3.
pack() {
    sed -n 's/^\([^ #]*==[^ ]*\).*/\1/p' requirements.txt >"$build/names.txt"
    set -- "$@" --module arpanet --entry-point arpanet:main --requirement "$build/names.txt" --pre-resolved-dists "$wheels"
    if [ "$mode" = all ]; then
        for cpu in x86_64 aarch64; do
            for version in 310 311 312 313 314; do
                set -- "$@" --platform "manylinux2014_$cpu-cp-$version-cp$version"
            done
        done
    fi
    out=$1 root=$2
    shift 2
    PEX_ROOT=$root "$tools/bin/pex" --venv --python-shebang '/usr/bin/env python3' --no-compile --no-use-system-time \
        --no-emit-warnings --output-file "$out" "$@" </dev/null >/dev/null
}

check_again() {
    rm -rf "$build/again"
    pack "$build/again/arpanet.pex" "$build/again/pex-root"
    cmp "$build/arpanet.pex" "$build/again/arpanet.pex" || die "two builds gave two different files"
    rm -rf "$build/again"
    say "two builds gave the same file"
}

try() { PEX_ROOT=$build/pex-root "$python" "$build/arpanet.pex" "$@" </dev/null; }

publish() {
    version=$(try --version) || die "the built file does not run; dist/ is as it was"
    PEX_INTERPRETER=1 try -c 'import docker, cryptography.x509, arpanet; arpanet.load_etcd3()' || die "the built file lacks what it needs; dist/ is as it was"
    built=$(key)
    mv -f "$build/arpanet.pex" dist/arpanet.pex
    (cd dist && sha256sum arpanet.pex >arpanet.pex.sha256)
    echo "$built $(hash_of dist/arpanet.pex)" >"$build/built"
    say "dist/arpanet.pex is $version, $(wc -c <dist/arpanet.pex) bytes, sha256 $(hash_of dist/arpanet.pex)"
}

# A lock of every wheel that exists, of which requirements.txt keeps those that a build takes: one for each CPU and all
# Pythons if there is that, else the pure one, else those for our Pythons and CPUs, else the source.
write_lock() {
    # shellcheck disable=SC2086
    PEX_ROOT=$build/pex-root "$tools/bin/pex3" lock create --use-pip-config --style universal --target-system linux \
        --interpreter-constraint 'CPython>=3.10,<3.15' --output "$build/lock.json" $WANTED </dev/null
    "$tools/bin/python" -I - "$build/lock.json" >"$build/lock.txt" <<'PYTHON'
import json, re, sys

# a wheel for abi3 serves all our Pythons: the oldest is enough
ABI3 = re.compile(r"-cp3(?:9|10)-abi3-\S*manylinux2014_(x86_64|aarch64)\S*\.whl$")
OURS = re.compile(r"-cp31[0-4]-cp31[0-4]-\S*manylinux2014_(x86_64|aarch64)\S*\.whl$")


def wheels_we_take(artifacts):
    names = {a["url"].rsplit("/", 1)[1]: a["hash"] for a in artifacts}
    pure = [name for name in names if name.endswith("-none-any.whl")]
    abi3, ours = (list(filter(rule.search, names)) for rule in (ABI3, OURS))
    return sorted(names[name] for name in abi3 or pure or ours or names)


print("# What goes into arpanet.pex, with the hash of each file. Written by: ./build_zipapp.sh --lock")
(resolve,) = json.load(open(sys.argv[1]))["locked_resolves"]
for item in resolve["locked_requirements"]:
    hashes = [f"--hash=sha256:{h}" for h in wheels_we_take(item["artifacts"])]
    print(" \\\n    ".join([f"{item['project_name']}=={item['version']}", *hashes]))
PYTHON
    mv -f "$build/lock.txt" requirements.txt
    say "requirements.txt is written; git diff shows what changed"
}

main "$@"
