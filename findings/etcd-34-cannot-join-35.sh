#!/usr/bin/env bash
# etcd 3.5 may join a cluster of 3.4, never the other way round; and the refused one leaves its place behind.
#
# A learner of 3.4.23 is added, as its documentation says, to a healthy cluster of one member of 3.5. `member add` succeeds.
# Started, it ends at once: a warning tells both versions, the line that it ends with neither of them. The cluster
# goes on listing it, as a learner that was never started; since one learner is all that etcd allows, the next `member add
# --learner`, of a machine with 3.5 too, is refused until somebody removes it by hand. Who adds members from a program must
# compare versions first (GET /version of any member: "etcdcluster"), and take the learner out again when its start fails.
#
# Versions: etcd 3.4.23 (Debian 12, etcd-server 3.4.23-4+b4) and etcd 3.5.16 (Debian 13, etcd-server 3.5.16-4).
# The output that was seen is at the end; the script fails when it changes. Needs Debian's apt and curl, and the network
# for the two packages; as an ordinary user too. Everything is in a temporary folder, listening on 127.0.0.1 alone.
# shellcheck disable=SC2016  # $(SITE) is for apt-get
set -euo pipefail

OLD=3.4.23-4+b4
NEW=3.5.16-4

work=$(mktemp -d)
pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

# fetch SUITE PACKAGE VERSION DIR: unpack a package of Debian, from the mirror that this machine uses.
fetch() {
    local apt=$work/apt-$1 mirror
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep '/debian/\?$' | head -n 1)
    mkdir -p "$apt"/{lists/partial,cache,get} "$4"
    echo "deb $mirror $1 main" >"$apt/sources.list"
    local options=(-qq -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update
    (cd "$apt/get" && apt-get "${options[@]}" download "$2=$3" && dpkg-deb -x "$2"_*.deb "$4")
}
fetch bookworm etcd-server "$OLD" "$work/old"
fetch bookworm etcd-client "$OLD" "$work/old"
fetch trixie etcd-server "$NEW" "$work/new"

new=$work/new/usr/bin/etcd old=$work/old/usr/bin/etcd
ctl() { ETCDCTL_API=3 "$work/old/usr/bin/etcdctl" --endpoints 127.0.0.1:24379 "$@" 2>&1; }

"$new" --name first --data-dir "$work/first" --log-level error \
    --listen-client-urls http://127.0.0.1:24379 --advertise-client-urls http://127.0.0.1:24379 \
    --listen-peer-urls http://127.0.0.1:24380 --initial-advertise-peer-urls http://127.0.0.1:24380 \
    --initial-cluster first=http://127.0.0.1:24380 >"$work/first.log" 2>&1 &
pids+=($!)
until ctl endpoint health >/dev/null; do sleep 0.1; done

{
    curl -s http://127.0.0.1:24379/version; echo
    ctl member add second --learner --peer-urls http://127.0.0.1:24390 | sed -n '1s/ [0-9a-f]* added to cluster .*/ added/p'
    status=0
    timeout 60 "$old" --name second --data-dir "$work/second" --initial-cluster-state existing \
        --listen-client-urls http://127.0.0.1:24389 --advertise-client-urls http://127.0.0.1:24389 \
        --listen-peer-urls http://127.0.0.1:24390 --initial-advertise-peer-urls http://127.0.0.1:24390 \
        --initial-cluster first=http://127.0.0.1:24380,second=http://127.0.0.1:24390 >"$work/second.log" 2>&1 || status=$?
    echo "3.4 ended with status $status"
    tail -n 1 "$work/second.log" | sed 's/.* etcdmain: //'
    grep -o 'the running cluster version.*' "$work/second.log"
    ctl member list | grep -v first | sed 's/^[0-9a-f]*, //'
    { ctl member add third --learner --peer-urls http://127.0.0.1:24400 || true; } | tail -n 1 | sed 's/.*\(etcdserver: \)/\1/'
} >"$work/seen"

diff - "$work/seen" <<'SEEN' && echo "as stated"
{"etcdserver":"3.5.16","etcdcluster":"3.5.0"}
Member added
3.4 ended with status 1
incompatible with current running cluster
the running cluster version(3.5.0) is higher than the maximum cluster version(3.4.0) supported
unstarted, , http://127.0.0.1:24390, , true
etcdserver: too many learner members in cluster
SEEN
