#!/usr/bin/env python3
"""load: what the benchmarks send through a link, and what answers (Linux, standard library).

    load.py serve PORT               answer on PORT (echo), send on PORT + 1 (source)
    load.py bulk HOST:PORT N SECONDS     bytes per second from the source, over N streams
    load.py ping HOST:PORT N SECONDS     64 bytes there and back on N connections: rate and median
    load.py connect HOST:PORT N SECONDS  a connection for each 64 bytes, N at once: rate
    load.py hold HOST:PORT N             open N connections and keep them until stdin ends
    load.py fetch ADDRESS N SECONDS PATH     GETs on N kept connections: rate and median
    load.py create ADDRESS N             create N containers bench-I
    load.py fill ADDRESS                 write the rows of stdin, lines of KEY JSON, into an etcd

An ADDRESS is HOST:PORT, or the path of a unix socket.

It prints one line of JSON. It runs in the network namespace of a container of the lab, one
process for all connections: a load that is cheap leaves the processors to what is measured.
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any

MESSAGE = b"x" * 64
ONCE = b"q" * 64  # the one who sends this wants one answer, and then the end
BLOCK = 1 << 20
Address = tuple[str, int] | str  # a str is the path of a unix socket
Figures = dict[str, float]


def say(figures: Figures) -> None:
    """Print the result."""
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def median(values: list[float]) -> float:
    """Return the middle value."""
    return sorted(values)[len(values) // 2]


def connect(address: Address) -> socket.socket:
    """Return a blocking connection that sends small messages at once."""
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(30)
        sock.connect(address)
        return sock
    sock = socket.create_connection(address, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """Return that many bytes. Raises EOFError."""
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise EOFError("the other side ended early")
        data += part
    return data


# ---- the server


def listen(port: int) -> socket.socket:
    """Return a listener on all addresses."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.bind(("", port))
    sock.listen(4096)
    sock.setblocking(False)
    return sock


class Server:
    """Echoes on port; on port + 1 sends to whoever says a word, until he goes."""

    def __init__(self, port: int) -> None:
        self.epoll = select.epoll()
        self.buffer = bytearray(BLOCK)
        self.view = memoryview(self.buffer)
        self.memory = os.memfd_create("bulk")
        os.truncate(self.memory, BLOCK)
        self.socks: dict[int, socket.socket] = {}
        self.echo, self.source = listen(port), listen(port + 1)
        self.run_of: dict[int, Callable[[socket.socket], None]] = {}
        for sock in (self.echo, self.source):
            self.watch(sock, self.accept)

    def watch(self, sock: socket.socket, run: Callable[[socket.socket], None]) -> None:
        self.socks[sock.fileno()], self.run_of[sock.fileno()] = sock, run
        self.epoll.register(sock.fileno(), select.EPOLLIN)

    def run(self) -> None:
        """Serve until killed."""
        while True:
            for fd, _events in self.epoll.poll(-1, 256):
                sock = self.socks[fd]
                try:
                    self.run_of[fd](sock)
                except BlockingIOError:
                    continue
                except OSError:
                    self.close(sock)

    def accept(self, listener: socket.socket) -> None:
        for _ in range(64):
            sock, _peer = listener.accept()
            sock.setblocking(False)
            self.watch(sock, self.answer if listener is self.echo else self.begin)

    def answer(self, sock: socket.socket) -> None:
        size = sock.recv_into(self.buffer)
        if size:
            sock.send(self.view[:size])
        if not size or self.buffer[0] == ONCE[0]:
            self.close(sock)

    def begin(self, sock: socket.socket) -> None:
        if sock.recv(len(MESSAGE)):
            self.run_of[sock.fileno()] = self.send
            self.epoll.modify(sock.fileno(), select.EPOLLOUT)
        else:
            self.close(sock)

    def send(self, sock: socket.socket) -> None:
        os.sendfile(sock.fileno(), self.memory, 0, BLOCK)  # from memory, without a copy

    def close(self, sock: socket.socket) -> None:
        del self.socks[sock.fileno()]
        sock.close()


# ---- the clients


def bulk(address: Address, count: int, seconds: float) -> Figures:
    """Receive over count streams; the kernel drops what comes, and copies nothing."""
    epoll = select.epoll()
    socks = {}
    for _ in range(count):
        sock = connect(address)
        sock.send(MESSAGE)
        sock.setblocking(False)
        socks[sock.fileno()] = sock
        epoll.register(sock.fileno(), select.EPOLLIN)
    buffer, got = bytearray(BLOCK), 0
    began = time.perf_counter()
    while time.perf_counter() < began + seconds:
        for fd, _events in epoll.poll(5, 256):
            size = socks[fd].recv_into(buffer, BLOCK, socket.MSG_TRUNC)  # Source: tcp(7)
            if not size:
                raise EOFError("the other side ended early")
            got += size
    return {"bytes": got, "bytes_s": got / (time.perf_counter() - began)}


def ping(address: Address, count: int, seconds: float) -> Figures:
    """Send a message on each connection as soon as its echo is there."""
    socks = {}
    epoll = select.epoll()
    for _ in range(count):
        sock = connect(address)
        sock.send(MESSAGE)
        read_exactly(sock, len(MESSAGE))  # the way is there
        socks[sock.fileno()] = sock
        epoll.register(sock.fileno(), select.EPOLLIN)
    took: list[float] = []
    clock = time.perf_counter
    sent = dict.fromkeys(socks, clock())
    began = clock()
    for sock in socks.values():
        sock.send(MESSAGE)
    while clock() < began + seconds:
        for fd, _events in epoll.poll(5, 256):
            if not socks[fd].recv(len(MESSAGE)):
                raise EOFError("the other side ended early")
            now = clock()
            took.append(now - sent[fd])
            sent[fd] = now
            socks[fd].send(MESSAGE)
    return {"rate_s": len(took) / (clock() - began), "median_s": median(took)}


def ping_one(address: Address, seconds: float) -> Figures:
    """Do as ping() on one connection, where no epoll stands in between."""
    sock = connect(address)
    sock.settimeout(None)
    took: list[float] = []
    clock = time.perf_counter
    began = clock()
    while clock() < began + seconds:
        sent = clock()
        sock.send(MESSAGE)
        if not sock.recv(len(MESSAGE)):
            raise EOFError("the other side ended early")
        took.append(clock() - sent)
    return {"rate_s": len(took) / (clock() - began), "median_s": median(took)}


def connect_often(address: Address, count: int, seconds: float) -> Figures:
    """Connect, get one echo, and see the server end it, count at once."""
    epoll = select.epoll()
    socks: dict[int, socket.socket] = {}
    done = failed = 0

    def begin() -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect_ex(address)
        socks[sock.fileno()] = sock
        epoll.register(sock.fileno(), select.EPOLLOUT)

    began = time.perf_counter()
    for _ in range(count):
        begin()
    while time.perf_counter() < began + seconds:
        for fd, events in epoll.poll(5, 256):
            sock = socks[fd]
            try:
                if events & select.EPOLLOUT:
                    sock.send(ONCE)
                    epoll.modify(fd, select.EPOLLIN)
                    continue
                if sock.recv(256):
                    continue
                done += 1
            except OSError:
                failed += 1
            del socks[fd]
            sock.close()
            begin()
    return {"rate_s": done / (time.perf_counter() - began), "failed": failed}


def fetch(address: Address, count: int, seconds: float, path: str) -> Figures:
    """Ask for path on each connection as soon as the whole answer is there."""
    request = f"GET {path} HTTP/1.1\r\nHost: docker\r\n\r\n".encode()
    took: list[float] = []
    sizes: list[int] = []
    deadline = time.perf_counter() + seconds

    def ask() -> None:
        with connect(address) as sock, sock.makefile("rb", BLOCK) as reader:
            while time.perf_counter() < deadline:
                began = time.perf_counter()
                sock.sendall(request)
                sizes.append(read_answer(reader, 200))
                took.append(time.perf_counter() - began)

    began = time.perf_counter()
    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    return {"rate_s": len(took) / elapsed, "median_s": median(took), "bytes": max(sizes)}


def read_answer(reader: Any, status: int) -> int:
    """Return how many bytes an HTTP answer's body has. Raises EOFError unless status is right."""
    readline, read = reader.readline, reader.read
    if b" %d " % status not in (line := readline()):
        raise EOFError(f"the answer is {line!r}")
    length, chunked = 0, False
    while line := readline().strip().lower():
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
        chunked = chunked or line == b"transfer-encoding: chunked"
    size = len(read(length))
    while chunked and (part := int(readline(), 16)):
        size += len(read(part))
        readline()
    if chunked:
        readline()
    return size


def post_all(
    address: Address, status: int, requests: Sequence[tuple[str, bytes]], at_once: int = 4
) -> None:
    """Post bodies to paths, over a few kept connections."""

    def post(mine: Sequence[tuple[str, bytes]]) -> None:
        with connect(address) as sock, sock.makefile("rb", BLOCK) as reader:
            for path, body in mine:
                head = f"POST {path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n"
                sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                read_answer(reader, status)
                done.append(path)

    done: list[str] = []
    threads = [
        threading.Thread(target=post, args=(requests[number::at_once],))
        for number in range(at_once)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(done) < len(requests):
        raise EOFError("not all was done")


def create(address: Address, count: int) -> None:
    """Create containers."""
    body = json.dumps({"Image": "busybox", "Cmd": ["true"]}).encode()
    paths = [f"/containers/create?name=bench-{number}" for number in range(count)]
    post_all(address, 201, [(path, body) for path in paths])


def fill(address: Address) -> None:
    """Write rows by etcd's gateway, 100 in a transaction. Source: etcd 3.4, api_grpc_gateway."""

    def put(line: str) -> dict[str, dict[str, str]]:
        key, _, value = line.rstrip("\n").partition(" ")
        row = {"key": key, "value": value}
        return {"requestPut": {k: b64encode(v.encode()).decode() for k, v in row.items()}}

    puts = [put(line) for line in sys.stdin]
    bodies = [
        json.dumps({"success": puts[at : at + 100]}).encode() for at in range(0, len(puts), 100)
    ]
    post_all(address, 200, [("/v3/kv/txn", body) for body in bodies], 2)


def hold(address: Address, count: int) -> None:
    """Open count connections, each proven by an echo, and keep them until stdin ends."""
    resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1:] * 2)
    socks = []
    for _ in range(count):
        sock = connect(address)
        sock.sendall(MESSAGE)
        read_exactly(sock, len(MESSAGE))
        socks.append(sock)
    say({"ready": len(socks)})
    sys.stdin.read()


def main() -> None:
    """Run the command line."""
    mode, where, *rest = sys.argv[1:]
    if mode == "serve":
        resource.setrlimit(
            resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1:] * 2
        )
        server = Server(int(where))
        say({"ready": 1})
        return server.run()
    host, _, port = where.rpartition(":")
    address: Address = where if where.startswith("/") else (host, int(port))
    if mode == "fill":
        return fill(address)
    count = int(rest[0])
    if mode in ("hold", "create"):
        return {"hold": hold, "create": create}[mode](address, count)
    seconds = float(rest[1])
    if mode == "bulk":
        say(bulk(address, count, seconds))
    elif mode == "ping":
        say(ping_one(address, seconds) if count == 1 else ping(address, count, seconds))
    elif mode == "connect":
        say(connect_often(address, count, seconds))
    else:
        say(fetch(address, count, seconds, rest[2]))
    return None


if __name__ == "__main__":
    main()
