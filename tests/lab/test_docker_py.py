"""docker-py, high and low level, over every resource on three hosts.

Each check runs on the lab's client: this file is the test here, and the program there.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import os
import socket
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from conftest import HOSTS
from docker.errors import APIError, ImageNotFound, NotFound
from lab import Lab
from reach import end_sending, reach, receive

ADDRESSES = {name: f"192.168.8.{120 + number}" for number, name in enumerate(HOSTS)}
CHECKS: dict[str, Callable[[], None]] = {}
SLEEP = ["sleep", "1000"]


def on_client(check: Callable[[], None]) -> Callable[[Lab], None]:
    """Return the test that runs a check on the lab's client."""
    CHECKS[check.__name__] = check

    def test(net: Lab) -> None:
        run_check(net, check.__name__)

    return test


def run_check(lab: Lab, name: str) -> None:
    path = os.pathsep.join(str(Path(__file__).parents[up]) for up in (1, 2))
    lab.client.run([sys.executable, __file__, name], env={"PYTHONPATH": path}, timeout=120)


@functools.cache
def via(host: str) -> Any:
    """Return a client of the master on that host: Any, for what it returns depends on values."""
    url, path = f"tcp://{ADDRESSES[host]}:8791", os.environ.get("ARPANET_CERT_PATH")
    pair = f"{path}/cert.pem", f"{path}/key.pem"
    tls = bool(path) and docker.tls.TLSConfig(pair, f"{path}/ca.pem", verify=True)
    return docker.DockerClient(base_url=url, version="auto", timeout=60, tls=tls)


def make(name: str, *command: str, image: str = "busybox", **options: Any) -> Any:
    """Return a running container."""
    words = list(command) or SLEEP
    return via("h1").containers.run(image, words, name=name, detach=True, init=True, **options)


def host_of(container: Any) -> str:
    return str(container.name.partition("@")[2])


def outputs(image: str, *command: str) -> dict[str, bytes]:
    """Return what a command of an image says on each of the three hosts."""
    said = {}
    for number in range(3):
        made = make(f"output{number}", *command, image=image)
        made.wait()
        said[host_of(made)] = made.logs()
    for number in range(3):
        via("h2").containers.get(f"output{number}").remove()
    return said


def tar_of(**files: bytes) -> bytes:
    """Return a tar of those files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def refused(kind: type[APIError], status: int, words: str, call: Callable[[], Any]) -> None:
    """Check that a call raises that error with that status, and these words in its explanation."""
    try:
        call()
    except APIError as error:
        assert type(error) is kind, repr(error)
        assert error.status_code == status, repr(error)
        assert words in str(error.explanation), error.explanation
        return
    raise AssertionError(f"nothing was raised; expected {kind.__name__}: {words}")


# ---- containers


@on_client
def test_a_container_run_through_one_master_is_listed_and_got_through_the_others() -> None:
    for host in HOSTS:
        make(f"seen-{host}")
    for master in HOSTS:
        listed = via(master).containers.list(filters={"name": "seen-"})
        assert {c.name.partition("@")[0] for c in listed} == {f"seen-{h}" for h in HOSTS}, listed
        assert {host_of(c) for c in listed} == set(HOSTS), listed
        for container in listed:
            got = via(master).containers.get(container.name)
            assert got.id == container.id
            assert got.status == "running"
            got.reload()
            assert via(master).containers.get(container.short_id).id == container.id
    newest = via("h3").containers.list(all=True, limit=1)
    assert [c.name.partition("@")[0] for c in newest] == ["seen-h3"], newest
    before = via("h2").containers.list(filters={"before": "seen-h3"})
    assert {c.name.partition("@")[0] for c in before} == {"seen-h1", "seen-h2"}, before
    sparse = via("h2").containers.list(sparse=True, filters={"name": "seen-h2"})
    assert sparse[0].attrs["State"] == "running", sparse[0].attrs


@on_client
def test_a_run_in_the_foreground_returns_the_output_and_raises_with_the_exit_code() -> None:
    assert via("h2").containers.run("busybox", "echo hi", name="front", remove=True) == b"hi\n"
    try:
        via("h2").containers.run("busybox", ["sh", "-c", "echo bad >&2; exit 3"], name="front2")
    except docker.errors.ContainerError as error:
        assert error.exit_status == 3, error
        assert str(error.stderr) == str(b"bad\n"), error
    else:
        raise AssertionError("an exit code of 3 raised nothing")
    via("h3").containers.get("front2").remove()
    refused(NotFound, 404, "No such container: front2", lambda: via("h1").containers.get("front2"))


@on_client
def test_states_change_through_any_master() -> None:
    container = via("h1").containers.create("busybox", SLEEP, name="states", init=True)
    assert container.status == "created"
    via("h2").containers.get("states").start()
    steps: list[tuple[str, Callable[[Any], Any], str]] = [
        ("h3", lambda c: c.pause(), "paused"),
        ("h1", lambda c: c.unpause(), "running"),
        ("h2", lambda c: c.restart(timeout=1), "running"),
        ("h3", lambda c: c.stop(timeout=1), "exited"),
        ("h1", lambda c: c.start(), "running"),
        ("h2", lambda c: c.kill(), "exited"),
    ]
    for master, step, state in steps:
        step(via(master).containers.get("states"))
        for other in HOSTS:
            assert via(other).containers.get("states").status == state, (master, other, state)
            listed = via(other).containers.list(all=True, filters={"name": "^/?states$"})
            assert listed[0].attrs["State"]["Status"] == state
    container.update(mem_limit="64m", memswap_limit="64m")
    assert via("h3").api.inspect_container("states")["HostConfig"]["Memory"] == 64 << 20
    container.remove()


@on_client
def test_wait_returns_the_exit_code_and_rename_moves_the_name() -> None:
    make("waited", "sh", "-c", "exit 7")
    assert via("h2").containers.get("waited").wait()["StatusCode"] == 7
    via("h3").containers.get("waited").rename("waited2")
    renamed = via("h1").containers.get("waited2")
    assert renamed.name.partition("@")[0] == "waited2"
    refused(NotFound, 404, "No such container: waited", lambda: via("h1").containers.get("waited"))
    make("other")
    conflict = 'Conflict. The container name "/other" is already in use by container'
    refused(APIError, 409, conflict, lambda: renamed.rename("other"))
    refused(APIError, 409, conflict, lambda: make("other"))
    again = via("h2").containers.create("busybox", "true", name="waited")  # the name is free again
    for container in (again, renamed):
        container.remove()


@on_client
def test_logs_come_whole_or_as_a_stream_split_by_kind() -> None:
    script = "echo one; echo two >&2; until [ -e /go ]; do sleep 0.1; done; echo three"
    made = make("logged", "sh", "-c", f"{script}; exec sleep 1000")
    stream = via("h2").containers.get("logged").logs(stream=True, follow=True)
    lines = [next(stream) for _ in range(2)]
    assert sorted(lines) == [b"one\n", b"two\n"], lines
    made.exec_run("touch /go")
    assert next(stream) == b"three\n"
    stream.close()
    again = via("h3").containers.get("logged")
    assert again.logs(stdout=True, stderr=False) == b"one\nthree\n"
    assert again.logs(stdout=False, stderr=True) == b"two\n"
    assert again.logs(tail=1) == b"three\n"
    assert again.logs(tail=1, timestamps=True).startswith(b"20")
    made.remove(force=True)


@on_client
def test_exec_runs_in_a_container_of_any_host() -> None:
    for number, container in enumerate(make(f"exec{n}") for n in range(3)):
        got = via(HOSTS[number]).containers.get(container.id)
        code, output = got.exec_run(["sh", "-c", "echo out; echo err >&2; exit 5"], demux=True)
        assert (code, output) == (5, (b"out\n", b"err\n"))
        code, output = got.exec_run("env", environment={"A": "b c"}, user="nobody")
        assert code == 0
        assert b"A=b c\n" in output
        stream = got.exec_run(["sh", "-c", "echo 1; echo 2"], stream=True).output
        assert b"".join(stream) == b"1\n2\n"
        low = via("h2").api
        made = low.exec_create(container.id, ["cat"], stdin=True)
        sock = low.exec_start(made["Id"], socket=True)
        raw(sock).sendall(b"through\n")
        end_sending(raw(sock))
        assert read_all(raw(sock))[8:] == b"through\n"
        assert low.exec_inspect(made["Id"])["ExitCode"] == 0
        container.remove(force=True)
    refused(NotFound, 404, "No such exec instance: 12ab", lambda: low.exec_inspect("12ab"))


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: receive(sock), b""))


def raw(stream: Any) -> Any:
    """Return the socket that docker-py has below: with TLS it gives that itself."""
    return getattr(stream, "_sock", stream)


def repeat(sock: Any, line: bytes) -> bytes:
    """Send a line to a container that repeats it; return the frame that comes back."""
    sock.sendall(line)
    frame = b""
    while len(frame) < 8 + len(line):
        frame += sock.recv(8 + len(line) - len(frame))
    return frame


@on_client
def test_attach_carries_both_directions() -> None:
    low = via("h1").api
    made = low.create_container("busybox", "cat", name="attached", stdin_open=True)
    sock = via("h2").api.attach_socket(
        made["Id"], params={"stdin": 1, "stdout": 1, "stream": 1, "logs": 1}
    )
    via("h3").api.start(made["Id"])
    assert repeat(raw(sock), b"hello\n") == b"\x01\0\0\0\0\0\0\x06hello\n"
    live = via("h3").containers.get("attached").attach(stream=True)
    repeat(raw(sock), b"again\n")
    low.kill("attached")
    # not before: with TLS docker-py waits at the socket for bytes that it has decrypted already
    assert list(live) == [b"again\n"]
    assert via("h2").containers.get("attached").attach(logs=True) == b"hello\nagain\n"
    low.remove_container("attached")


@on_client
def test_attach_by_websocket_carries_both_directions() -> None:
    low = via("h1").api
    made = low.create_container("busybox", "cat", name="webbed", stdin_open=True, tty=True)
    low.start(made["Id"])
    sock = reach(ADDRESSES["h3"])
    key = base64.b64encode(b"sixteen bytes 16").decode()
    path = "/v1.41/containers/webbed/attach/ws?stream=1&stdin=1&stdout=1"
    lines = [f"GET {path} HTTP/1.1", "Host: h3:8791", "Upgrade: websocket", "Connection: Upgrade",
             f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "Origin: http://h3:8791",
             "", ""]  # fmt: skip
    sock.sendall("\r\n".join(lines).encode())
    stream = sock.makefile("rb")
    assert b" 101 " in (status := stream.readline()), status
    head = dict(line.strip().split(b": ") for line in iter(stream.readline, b"\r\n"))
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    assert base64.b64decode(head[b"Sec-WebSocket-Accept"]) == digest, head
    assert head[b"Upgrade"].lower() == b"websocket"
    words, mask = b"over web\n", b"\1\2\3\4"
    masked = bytes(c ^ mask[i % 4] for i, c in enumerate(words))
    sock.sendall(bytes([0x81, 0x80 | len(words)]) + mask + masked)  # a text frame, RFC 6455
    said = b""
    while said.count(b"over web\r\n") < 2:  # the terminal's echo, and cat
        opcode, length = stream.read(2)
        assert opcode & 15 in (1, 2), opcode
        said += stream.read(length)
    sock.close()
    low.remove_container("webbed", force=True)


@on_client
def test_files_go_into_a_container_and_come_back() -> None:
    content = os.urandom(3 << 20)
    made = make("archive")
    assert via("h2").containers.get("archive").put_archive("/tmp", tar_of(file=content))
    blocks, stat = via("h3").containers.get("archive").get_archive("/tmp/file")
    assert (stat["name"], stat["size"]) == ("file", len(content)), stat
    with tarfile.open(fileobj=io.BytesIO(b"".join(blocks))) as tar:
        entry = tar.extractfile("file")
        assert entry is not None
        assert entry.read() == content
    lost = functools.partial(made.get_archive, "/nowhere")
    refused(NotFound, 404, "Could not find the file /nowhere in container", lost)
    changes = {c["Path"]: c["Kind"] for c in via("h3").containers.get("archive").diff()}
    assert changes["/tmp/file"] == 1, changes
    with tarfile.open(fileobj=io.BytesIO(b"".join(made.export()))) as tar:
        assert tar.getmember("tmp/file").size == len(content)
    made.remove(force=True)


@on_client
def test_stats_and_top_show_a_container_of_another_host() -> None:
    names = {host_of(c): c for c in (make(f"busy{n}") for n in range(3))}
    assert set(names) == set(HOSTS), names
    for master, container in zip(HOSTS, names.values(), strict=True):
        got = via(master).containers.get(container.id)
        figures = got.stats(stream=False)
        assert figures["name"] == f"/{container.name}", figures["name"]
        assert "memory_stats" in figures
        stream = got.stats(stream=True, decode=True)
        assert [next(stream)["id"] for _ in range(2)] == [container.id] * 2
        stream.close()
        top = got.top()
        assert any(row[-1].endswith("sleep 1000") for row in top["Processes"]), top
        container.remove(force=True)


@on_client
def test_commit_makes_an_image_that_runs_on_every_host() -> None:
    made = make("base")
    made.exec_run(["sh", "-c", "echo kept >/kept"])
    image = made.commit("committed", "v1", changes='CMD ["cat", "/kept"]')
    assert via("h2").images.get("committed:v1").id == image.id
    made.remove(force=True)
    assert outputs("committed:v1", "cat", "/kept") == dict.fromkeys(HOSTS, b"kept\n")
    via("h2").images.remove("committed:v1")
    refused(
        ImageNotFound, 404, "No such image: committed:v1",
        lambda: via("h1").images.get("committed:v1"),
    )  # fmt: skip


@on_client
def test_prune_removes_stopped_containers_of_all_hosts() -> None:
    made = [make(f"old{n}", "true", labels={"kind": "old"}) for n in range(3)]
    for container in made:
        container.wait()
    assert {host_of(c) for c in made} == set(HOSTS)
    gone = via("h2").containers.prune(filters={"label": "kind=old"})
    assert set(gone["ContainersDeleted"]) == {c.id for c in made}, gone
    for host in HOSTS:
        assert via(host).containers.list(all=True, filters={"label": "kind=old"}) == []
    make("old0", "true").remove(force=True)  # the names are free


# ---- images


@on_client
def test_an_image_is_built_tagged_saved_removed_loaded_and_run() -> None:
    images = via("h1").images
    dockerfile = b"FROM busybox\nLABEL of=test\nRUN echo built >/built\nCMD cat /built\n"
    image, log = images.build(fileobj=io.BytesIO(dockerfile), tag="built:v1", rm=True)
    assert any("Successfully built" in line.get("stream", "") for line in log)
    assert via("h2").images.get("built:v1").id == image.id
    assert image.tag("again", "v2")
    assert sorted(via("h3").images.get(image.id).tags) == ["again:v2", "built:v1"]
    assert image.history()[0]["CreatedBy"].endswith('["/bin/sh" "-c" "cat /built"]')
    listed = via("h3").images.list(filters={"label": "of=test"})
    assert [i.id for i in listed] == [image.id], listed
    saved = b"".join(image.save(named="built:v1"))
    via("h2").images.remove("again:v2")
    via("h2").images.remove("built:v1")
    for host in HOSTS:
        missing = functools.partial(via(host).images.get, "built:v1")
        refused(ImageNotFound, 404, "No such image: built:v1", missing)
    loaded = via("h3").images.load(saved)
    assert [i.id for i in loaded] == [image.id]
    assert outputs("built:v1", "cat", "/built") == dict.fromkeys(HOSTS, b"built\n")
    via("h1").images.remove("built:v1", force=True)
    assert via("h2").images.list("built") == []


@on_client
def test_a_build_takes_a_context_and_says_where_it_failed() -> None:
    low = via("h2").api
    context = io.BytesIO(
        tar_of(Dockerfile=b"FROM busybox\nCOPY data /\n", data=os.urandom(2 << 20))
    )
    lines = list(low.build(fileobj=context, custom_context=True, tag="context", decode=True))
    assert any("Successfully tagged" in line.get("stream", "") for line in lines), lines
    low.remove_image("context")
    try:
        via("h3").images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN exit 9\n"))
    except docker.errors.BuildError as error:
        assert "non-zero code: 9" in error.msg, error
    else:
        raise AssertionError("a build that fails raised nothing")


@on_client
def test_an_imported_image_runs_on_every_host_and_prune_removes_it_on_all() -> None:
    base = make("base2")
    root = b"".join(base.export())
    base.remove(force=True)
    low = via("h1").api
    answer = low.import_image_from_data(
        root, repository="imported", tag="v1", changes=["LABEL of=import"]
    )
    image_id = json.loads(answer.strip().splitlines()[-1])["status"]
    assert outputs("imported:v1", "echo", "hi") == dict.fromkeys(HOSTS, b"hi\n")
    gone = via("h3").images.prune(filters={"dangling": False, "label": "of=import"})
    deleted = {line.get("Deleted") for line in gone["ImagesDeleted"]}
    assert image_id in deleted, gone
    refused(ImageNotFound, 404, "No such image", lambda: via("h1").images.get(image_id))


# ---- networks


@on_client
def test_a_network_is_made_listed_joined_left_and_removed() -> None:
    made = via("h1").networks.create("net1", driver="bridge", labels={"of": "test"})
    for host in HOSTS:
        listed = via(host).networks.list(filters={"label": "of=test"})
        assert [n.name for n in listed] == ["net1"], listed
        assert via(host).networks.get("net1").name == "net1"
        assert via(host).networks.get(made.id).name == "net1"
    containers = [make(f"netted{n}") for n in range(3)]
    for container in containers:
        via("h2").networks.get("net1").connect(container, aliases=["web"])
        container.reload()
        assert set(container.attrs["NetworkSettings"]["Networks"]) == {"bridge", "net1"}
    joined = via("h3").networks.get("net1").attrs["Containers"]
    assert set(joined) == {c.id for c in containers}, joined
    refused(APIError, 403, "has active endpoints", made.remove)
    for container in containers:
        via("h3").networks.get(made.id).disconnect(container)
        container.remove(force=True)
    by_id = [make(f"by-id{n}", network=made.id) for n in range(3)]  # it is the id on one host
    assert {host_of(c) for c in by_id} == set(HOSTS)
    for container in by_id:
        assert set(container.attrs["NetworkSettings"]["Networks"]) == {"net1"}
        container.remove(force=True)
    refused(APIError, 409, "already exists", lambda: via("h2").networks.create("net1"))
    via("h2").networks.get("net1").remove()
    for host in HOSTS:
        refused(NotFound, 404, "net1", functools.partial(via(host).networks.get, "net1"))
    via("h2").networks.create("net2", labels={"of": "test"})
    pruned = via("h3").networks.prune(filters={"label": "of=test"})
    assert pruned["NetworksDeleted"] == ["net2"], pruned


@on_client
def test_a_link_of_a_network_is_a_name_across_hosts() -> None:
    """The kind that docker-py and compose ask for with an endpoint of a network."""
    low = via("h1").api
    made = via("h1").networks.create("net1")
    make("upstream", network="net1")
    endpoint = low.create_networking_config(
        {"net1": low.create_endpoint_config(links={"upstream": "bar"})}
    )
    for n in range(3):  # one for each host
        on_net = low.create_host_config(network_mode="net1")
        low.create_container(
            "busybox", SLEEP, name=f"down{n}", host_config=on_net, networking_config=endpoint
        )
        low.start(f"down{n}")
        found = via("h2").containers.get(f"down{n}").exec_run("nslookup bar")
        assert found.exit_code == 0, found.output
    for name in ("upstream", "down0", "down1", "down2"):
        low.remove_container(name, force=True)
    made.remove()


# ---- volumes


@on_client
def test_a_volume_is_made_used_listed_and_removed() -> None:
    made = via("h1").volumes.create("vol1", labels={"of": "test"})
    assert made.attrs["Labels"] == {"of": "test"}
    assert via("h2").volumes.get("vol1").attrs == made.attrs
    assert made.attrs in via("h3").api.volumes()["Volumes"]
    run = functools.partial(via("h2").containers.run, "busybox", remove=True)
    run(
        ["sh", "-c", "echo kept >/data/f"],
        name="writer",
        volumes={"vol1": {"bind": "/data", "mode": "rw"}},
    )
    assert run(["cat", "/data/f"], name="reader", volumes=["vol1:/data:ro"]) == b"kept\n"
    assert [v.name for v in via("h3").volumes.list(filters={"label": "of=test"})] == ["vol1"]
    user = make("user", volumes=["vol1:/data"])
    volume = via("h3").volumes.get("vol1")
    refused(APIError, 409, "volume is in use", volume.remove)
    user.remove(force=True)
    volume.remove()
    refused(NotFound, 404, "no such volume", lambda: via("h1").volumes.get("vol1"))
    via("h1").volumes.create("vol2", labels={"of": "test"})
    pruned = via("h2").volumes.prune(filters={"label": "of=test"})
    assert pruned["VolumesDeleted"] == ["vol2"], pruned
    assert via("h3").volumes.list(filters={"label": "of=test"}) == []


# ---- the whole


@on_client
def test_events_of_all_hosts_come_in_one_stream_in_order() -> None:
    stream = via("h2").events(
        decode=True, filters={"type": "container", "event": ["create", "die"]}
    )
    arrived: list[dict[str, Any]] = []
    enough = threading.Event()

    def read(events: Iterator[dict[str, Any]]) -> None:
        for event in events:
            arrived.append(event)
            if len(arrived) == 6:
                enough.set()

    threading.Thread(target=read, args=(stream,), daemon=True).start()
    made = [make(f"ev{n}", "true") for n in range(3)]
    assert enough.wait(60), arrived
    stream.close()
    for container in made:
        mine = [e for e in arrived if e["id"] == container.id]
        assert [e["status"] for e in mine] == ["create", "die"], arrived
        assert {e["Actor"]["Attributes"]["name"] for e in mine} == {container.name}, mine
        assert {e["Actor"]["Attributes"]["host"] for e in mine} == {host_of(container)}, mine
    times = [e["timeNano"] for e in arrived]
    since, until = min(times) // 10**9, max(times) // 10**9 + 1
    again = via("h3").events(since=since, until=until, decode=True, filters={"event": "die"})
    died = [e["id"] for e in again if e["Actor"]["Attributes"]["name"].startswith("ev")]
    assert sorted(died) == sorted(e["id"] for e in arrived if e["status"] == "die"), died
    for container in made:
        container.remove(force=True)


@on_client
def test_info_version_df_and_ping_speak_for_all_hosts() -> None:
    container = make("counted")
    for host in HOSTS:
        assert via(host).ping()
        version = via(host).version()
        assert version["GoVersion"].startswith("go"), version
        assert {c["Name"] for c in version["Components"]} >= {
            "Engine",
            *(f"Host {h}" for h in HOSTS),
        }
        info = via(host).info()
        assert info["ContainersRunning"] == len(via(host).containers.list()), info
        assert info["NCPU"] == 3 * (os.cpu_count() or 0), info["NCPU"]
        assert info["Warnings"] == [w for w in info["Warnings"] if "down" not in w]
        usage = via(host).df()
        assert [f"/{container.name}"] in [c["Names"] for c in usage["Containers"]], usage
        tags = [tag for image in usage["Images"] for tag in image["RepoTags"] or ()]
        assert sorted(set(tags)) == sorted(tags), tags
    container.remove(force=True)


def check_errors(client: Any) -> None:
    low = client.api
    gone = "No such container: nosuch"
    refused(NotFound, 404, gone, lambda: client.containers.get("nosuch"))
    refused(NotFound, 404, gone, lambda: low.start("nosuch"))
    refused(NotFound, 404, gone, lambda: low.logs("nosuch"))
    refused(NotFound, 404, gone, lambda: low.exec_create("nosuch", "true"))
    refused(ImageNotFound, 404, "No such image: nosuch:latest",
            lambda: client.images.get("nosuch"))  # fmt: skip
    refused(ImageNotFound, 404, "No such image: nosuch:latest",
            lambda: low.create_container("nosuch", "true", name="never"))  # fmt: skip
    refused(ImageNotFound, 404, "No such image: nosuch:latest",
            lambda: client.images.remove("nosuch"))  # fmt: skip
    refused(NotFound, 404, "nosuch", lambda: client.networks.get("nosuch"))
    refused(NotFound, 404, "no such volume", lambda: client.volumes.get("nosuch"))
    refused(APIError, 400, "name", lambda: low.create_container("busybox", "true"))
    refused(APIError, 400, "Invalid container name (a b)",
            lambda: low.create_container("busybox", "true", name="a b"))  # fmt: skip
    refused(APIError, 501, "not supported", lambda: client.swarm.init())
    assert low.leave_swarm(force=True)  # it is in none, as any engine that stands alone
    refused(APIError, 400, "Invalid filter 'nosuch'",
            lambda: client.containers.list(filters={"nosuch": "x"}))  # fmt: skip


@on_client
def test_errors_have_the_class_the_status_and_the_words_of_docker() -> None:
    for master in HOSTS:
        check_errors(via(master))
    made = via("h2").containers.create("busybox", ["nosuchprogram"], name="unstartable")
    refused(APIError, 400, "executable file not found", made.start)
    made.remove()


@on_client
def test_what_ends_at_once_and_removes_itself_is_heard_all_the_same() -> None:
    for number in range(20):
        here, there = via(HOSTS[number % 3]), via(HOSTS[(number + 1) % 3])
        words = ["sh", "-c", "echo out; echo err >&2; exit 3"]
        for ask in ("run", "id", "name"):
            name = f"brief-{ask}-{number}"
            if ask == "run":
                said = here.containers.run("busybox", "echo hi", name=name, auto_remove=True)
                assert said == b"hi\n"
                continue
            made = here.containers.create("busybox", words, name=name, auto_remove=True)
            made.start()
            reference = made.id if ask == "id" else name
            assert there.api.wait(reference)["StatusCode"] == 3
            assert here.api.logs(reference, stderr=False) == b"out\n"
            assert there.api.logs(reference, stdout=False) == b"err\n"
            assert here.api.wait(reference, condition="removed")["StatusCode"] == 3
            assert not here.containers.list(all=True, filters={"id": made.id})


def auto_name() -> None:
    names = set()
    for master in HOSTS:
        made = via(master).containers.create("busybox", "true")
        names.add(made.name.partition("@")[0])
        other = via(master).containers.run("busybox", ["echo", "hi"], remove=True)
        assert other == b"hi\n"
        made.remove()
    assert len(names) == 3, names
    assert all(len(name) > 3 for name in names), names


CHECKS["auto_name"] = auto_name


@pytest.fixture(scope="module")
def naming_net(net: Lab) -> Lab:
    """Return the lab with masters that give names to containers."""
    for name in HOSTS:
        net[name].run(["arpanet", "master", "stop"])
        net[name].run(["arpanet", "master", "start"], env={"ARPANET_AUTO_NAME": "1"})
    return net


def test_a_master_told_to_gives_names_to_containers_that_have_none(naming_net: Lab) -> None:
    run_check(naming_net, "auto_name")


if __name__ == "__main__":
    CHECKS[sys.argv[1]]()
    for left in via("h1").containers.list(all=True):
        left.remove(force=True)
