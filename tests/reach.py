"""How a program on a lab's host reaches a master: by TLS where the host has a certificate."""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import socket
import ssl


@functools.cache
def secure() -> ssl.SSLContext | None:
    """Return the context of this host's certificate, None in the clear."""
    path = os.environ.get("ARPANET_CERT_PATH")
    if not path:
        return None
    context = ssl.create_default_context(cafile=f"{path}/ca.pem")
    context.load_cert_chain(f"{path}/cert.pem", f"{path}/key.pem")
    return context


def reach(host: str, port: int = 8791, timeout_s: float = 20) -> socket.socket:
    """Return a connection to a port of arpanet's."""
    sock, context = socket.create_connection((host, port), timeout_s), secure()
    return context.wrap_socket(sock, server_hostname=host) if context else sock


def reach_http(host: str, timeout_s: float = 30) -> http.client.HTTPConnection:
    """Return a connection to the Docker API, not made yet."""
    context = secure()
    if context is None:
        return http.client.HTTPConnection(host, 8791, timeout=timeout_s)
    return http.client.HTTPSConnection(host, 8791, timeout=timeout_s, context=context)


def receive(sock: socket.socket) -> bytes:
    """Return what is there, b"" at the end."""
    try:
        return sock.recv(65536)
    except ssl.SSLZeroReturnError:  # what a TLS socket calls it once we have said our last
        return b""


def end_sending(sock: socket.socket) -> None:
    """Close one direction of a connection."""
    if not isinstance(sock, ssl.SSLSocket):
        sock.shutdown(socket.SHUT_WR)
        return
    timeout_s = sock.gettimeout()
    sock.setblocking(False)
    with contextlib.suppress(ssl.SSLError):  # our close_notify is sent; theirs comes later
        sock.unwrap()
    sock.settimeout(timeout_s)
