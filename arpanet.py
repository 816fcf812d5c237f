#!/usr/bin/env python3
"""arpanet: many Docker hosts, one Docker API.

Floor plan (a section uses only the sections before it):
    Errors, Settings, Helpers, Model, Mesh, Engine, Node, API, Links, Supervisors, CLI
"""

from __future__ import annotations

import dataclasses
import http.client
import ipaddress
import json
import logging
import os
import random
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

__version__ = "0.1.0"

log = logging.getLogger("arpanet")


# ==== Errors ==================================================================
# Each failure is one type with its HTTP status, its exit code and its wording;
# answer() turns it into an HTTP body and main() into an exit code, nobody else.


class ArpanetError(Exception):
    """A failure that a person is told about in one sentence: what, on which thing, what to do."""

    status = 500
    exit_code = 1


class BadRequest(ArpanetError):
    """A parameter is wrong; nothing was done."""

    status, exit_code = 400, 2


class Usage(BadRequest):
    """A command line or a setting is wrong; nothing was done."""


class NotFound(ArpanetError):
    """What was asked for is not there."""

    status = 404


class Conflict(ArpanetError):
    """The state of the thing does not allow this."""

    status = 409


class NotSupported(ArpanetError):
    """arpanet does not offer this (yet)."""

    status = 501


class EngineError(ArpanetError):
    """An engine answered with an error; its words and status are passed on."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Unavailable(ArpanetError):
    """Something that is needed does not answer."""

    status = 503


class EngineDown(Unavailable):
    """A host or its engine does not answer."""

    exit_code = 4


class MeshDown(Unavailable):
    """etcd does not answer, or has no quorum."""

    exit_code = 3


class LostClaim(Unavailable):
    """A name was claimed, and somebody else has it now."""

    exit_code = 3


class NoRoom(Unavailable):
    """No host can take the container."""

    exit_code = 3


class Unsure(Unavailable):
    """A change was sent and its answer was lost: it may or may not have happened."""

    exit_code = 5


def no_such_container(name: str) -> NotFound:
    """Return Docker's own words for a container that is not there."""
    return NotFound(f"No such container: {name}")


def name_taken(name: str, container_id: str) -> Conflict:
    """Return Docker's own words for a name that is in use. Source: engine 20.10, POST create."""
    return Conflict(
        f'Conflict. The container name "/{name}" is already in use by container "{container_id}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )
