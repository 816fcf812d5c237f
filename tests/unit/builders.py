"""Values of the model for unit tests: only what a test is about has to be said."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import HealthCheck, settings

from arpanet import (
    Container,
    CreateWish,
    Declared,
    Host,
    HostPort,
    Link,
    MasterInfo,
    NameEntry,
    Needs,
    Order,
    View,
    VolumePin,
    parse_rule,
)

# the same examples on every run, and no files: a failure here is a failure everywhere
settings.register_profile(
    "arpanet", derandomize=True, database=None, max_examples=50,
    deadline=None, suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("arpanet")

HOSTS = ("h1", "h2", "h3")
ENGINE = {"version": "20.10.24", "api": "1.41", "min_api": "1.12", "arch": "amd64", "kernel": "6"}


def id_of(name: str) -> str:
    """Return the 64 digits that a container of that name has in these tests."""
    return hashlib.sha256(name.encode()).hexdigest()


def host(name: str = "h1", ip: str = "", **engine: Any) -> Host:
    """Return a host; h3 is at 127.9.0.3, where nobody listens."""
    address = ip or f"127.9.0.{name.removeprefix('h')}"
    labels = engine.pop("labels", {})
    return Host(name, address, 8792, f"machine-{name}", "0.1.0", {**ENGINE, **engine}, labels)


def container(
    name: str = "web",
    on: str = "h1",
    *,
    container_id: str = "",
    created: int = 1000,
    running: bool = True,
    ip: str = "172.17.0.2",
    expose: Sequence[str] = (),
    bindings: Sequence[str] = (),
    memory_bytes: int = 0,
    nano_cpus: int = 0,
    state: Mapping[str, Any] | None = None,
    **summary: Any,
) -> Container:
    """Return a container; summary: fields of the engine's list entry."""
    container_id = container_id or id_of(name)
    facts = {"Running": running, "Status": "running" if running else "exited", "ExitCode": 0}
    times = {"StartedAt": "2020-01-01T00:00:00Z", "FinishedAt": "2020-01-01T00:00:00Z"}
    networks = {"NetworkSettings": {"Networks": {"bridge": {"IPAddress": ip}}}}
    return Container(
        host=on,
        id=container_id,
        name=name,
        summary={"Id": container_id, "Created": created, **networks, **summary},
        state={**facts, **times, **(state or {})},
        expose=tuple(expose),
        needs=Needs(memory_bytes, nano_cpus, tuple(bindings)),
        created=f"{created:012}",
    )


def view(
    *containers: Container,
    hosts: Sequence[Host | str] = HOSTS,
    down: Sequence[str] = (),
    ailing: Mapping[str, str] | None = None,
    volumes: Mapping[str, str] | None = None,
    vips: Mapping[str, str] | None = None,
    names: Mapping[str, NameEntry] | None = None,
    orders: Mapping[str, Order] | None = None,
    links: Mapping[str, Sequence[Link]] | None = None,
) -> View:
    """Return a view with these containers, their names, and three hosts that are up.

    links: of containers, by name.
    """
    known = [host(h) if isinstance(h, str) else h for h in hosts]
    return View(
        revision=7,
        hosts={h.name: h for h in known},
        orders=dict(orders or {}),
        alive={h.name: (ailing or {}).get(h.name, "") for h in known if h.name not in down},
        masters={h.name: MasterInfo(h.name, h.ip, 8791, "0.1.0") for h in known},
        containers={c.id: c for c in containers},
        names={c.name: NameEntry(c.host, c.id) for c in containers} | dict(names or {}),
        volumes={v: VolumePin(h, settled=True) for v, h in (volumes or {}).items()},
        vips=dict(vips or {}),
        declared={id_of(n): Declared("h1", tuple(found)) for n, found in (links or {}).items()},
        addresses={ip: name for name, ip in (vips or {}).items()},
    )


def wish(name: str = "new", **fields: Any) -> CreateWish:
    """Return what a plain docker run asks for; rules as texts, needs by their names."""
    nothing: dict[str, Any] = {
        "image": "busybox", "env": (), "links": (), "binds": (), "volumes": (), "companions": (),
        "networks": (),
    }  # fmt: skip
    needs = Needs(**{key: fields.pop(key) for key in Needs._fields if key in fields})
    for kind in ("constraints", "affinities"):
        fields[kind] = tuple(parse_rule(text) for text in fields.get(kind, ()))
    return CreateWish(name=name, **{**nothing, "needs": needs, **fields})


def agent_of(name: str) -> HostPort:
    """Return where a host's agent listens."""
    return host(name).agent
