"""The house style, as far as a machine can see it in the syntax tree."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import symtable
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import SLOW

import arpanet

ROOT = Path(__file__).parent.parent.parent
SOURCE = (ROOT / "arpanet.py").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
TREE = ast.parse(SOURCE)
DOCSTRING = ast.get_docstring(TREE) or ""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> Iterator[Function]:
    """Yield every function and method."""
    yield from (node for node in ast.walk(TREE) if isinstance(node, Function))


SCOPES = [node for node in ast.walk(TREE) if isinstance(node, (ast.ClassDef, Function))]


def qualified(node: ast.AST) -> str:
    """Return the names of the classes and functions around a node, with dots."""
    line = getattr(node, "lineno", 0)
    around = [scope for scope in SCOPES if scope.lineno <= line <= (scope.end_lineno or 0)]
    return ".".join(scope.name for scope in sorted(around, key=lambda scope: scope.lineno))


def lines_of(node: ast.ClassDef | Function) -> int:
    """Return how many lines it has, without its decorators."""
    return (node.end_lineno or 0) - node.lineno + 1


# ---- size


def test_no_function_has_more_than_40_lines() -> None:
    assert {qualified(f): lines_of(f) for f in functions() if lines_of(f) > 40} == {}


def test_most_functions_have_less_than_25_lines() -> None:
    sizes = sorted(lines_of(f) for f in functions())
    assert sizes[len(sizes) * 9 // 10] < 25


def test_no_class_has_more_than_300_lines() -> None:
    classes = [node for node in ast.walk(TREE) if isinstance(node, ast.ClassDef)]
    assert {c.name: lines_of(c) for c in classes if lines_of(c) > 300} == {}


def test_no_function_inside_another_has_more_than_10_lines() -> None:
    inner = [
        node
        for outer in functions()
        for node in ast.walk(outer)
        if isinstance(node, Function) and node is not outer
    ]
    assert {qualified(f): lines_of(f) for f in inner if lines_of(f) > 10} == {}


# ---- floor plan


def test_the_sections_are_those_of_the_floor_plan_in_its_order() -> None:
    told = re.search(r"Floor plan[^\n]*\n((?:    [^\n]+\n?)+)", DOCSTRING)
    assert told
    plan = [name.strip() for name in told[1].replace("\n", " ").split(",")]
    assert re.findall(r"(?m)^# ==== (.+?) =", SOURCE) == plan


def test_every_banner_is_79_columns_and_says_what_its_section_holds() -> None:
    lines = SOURCE.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("# ===="):
            assert len(line) == 79, line
            said = [text.startswith("# ") for text in lines[number + 1 : number + 9]]
            assert 2 <= said.index(False) <= 8, line


BANNERS = [n for n, line in enumerate(SOURCE.splitlines(), 1) if line.startswith("# ====")]


def section(line: int) -> int:
    """Return the number of the section that a line is in, 0 before the first."""
    return sum(banner < line for banner in BANNERS)


def uses(table: symtable.SymbolTable) -> Iterator[tuple[str, int]]:
    """Yield each name of the module that a function uses, and the line where that function is."""
    for symbol in table.get_symbols():
        if symbol.is_global():
            yield symbol.get_name(), table.get_lineno()
    for child in table.get_children():
        yield from uses(child)


def annotated() -> Iterator[tuple[str, int]]:
    """Yield each name in an annotation, which counts as use, and its line."""
    for node in ast.walk(TREE):
        found = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        for tree in filter(None, found):
            for name in ast.walk(tree):
                if isinstance(name, ast.Name):
                    yield name.id, name.lineno


def test_a_section_uses_only_the_sections_before_it() -> None:
    where = {
        node.name: section(node.lineno)
        for node in TREE.body
        if isinstance(node, (ast.ClassDef, Function))
    }
    module = symtable.symtable(SOURCE, "arpanet.py", "exec")
    used = {use for child in module.get_children() for use in uses(child)} | {*annotated()}
    early = {f"{name} in line {n}" for name, n in used if where.get(name, 0) > section(n)}
    assert early == set()


# ---- state


def test_nothing_is_global() -> None:
    assert [n.lineno for n in ast.walk(TREE) if isinstance(n, (ast.Global, ast.Nonlocal))] == []


def values_at_rest() -> Iterator[tuple[str, ast.expr | None, ast.expr]]:
    """Yield name, annotation and value of each assignment in the module and its classes."""
    bodies: list[ast.Module | ast.ClassDef] = [TREE]
    bodies += [node for node in ast.walk(TREE) if isinstance(node, ast.ClassDef)]
    for body in bodies:
        for node in body.body:
            if isinstance(node, ast.Assign):
                yield ast.unparse(node.targets[0]), None, node.value
            elif isinstance(node, ast.AnnAssign) and node.value:
                yield ast.unparse(node.target), node.annotation, node.value


def test_neither_module_nor_class_has_a_value_that_can_change() -> None:
    literals = (ast.List, ast.Set, ast.ListComp, ast.SetComp, ast.DictComp)
    makers = {"list", "set", "dict", "deque", "bytearray", "defaultdict", "count", "Lock", "Event"}
    bad = []
    for name, _, value in values_at_rest():
        called = ast.unparse(value.func).split(".")[-1] if isinstance(value, ast.Call) else ""
        if isinstance(value, literals) or called in makers:
            bad.append(name)
    assert bad == []


def test_no_constant_of_the_module_is_given_another_value() -> None:
    targets = [t for node in TREE.body if isinstance(node, ast.Assign) for t in node.targets]
    names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_a_table_is_a_constant() -> None:
    tables = {name: a for name, a, value in values_at_rest() if isinstance(value, ast.Dict)}
    assert {name for name in tables if not name.isupper()} == set()
    changed = [
        ast.unparse(target)
        for node in ast.walk(TREE)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Subscript) and ast.unparse(target.value) in tables
    ]
    assert changed == []


def test_importing_takes_no_environment_and_no_package_that_is_slow_to_load() -> None:
    # what the standard library reads while it is loaded is not ours: load that first
    stdlib = sorted({n.split(".")[0] for n in imported_names()} - {"arpanet"})
    code = (
        f"import {', '.join(stdlib)}\n"
        "class Nothing(dict):\n"
        "    def refuse(self, *_): raise SystemExit('importing reads the environment')\n"
        "    __getitem__ = get = __contains__ = __iter__ = keys = items = copy = refuse\n"
        "os.environ = Nothing()\n"
        "os.getenv = os.environ.refuse\n"
        "import arpanet\n"
        "slow = {'docker', 'google.protobuf', 'grpc', 'requests'} & set(sys.modules)\n"
        "sys.exit(f'importing loads {slow}' if slow else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60 * SLOW
    )
    assert done.returncode == 0, done.stderr


def imported_names() -> set[str]:
    """Return the modules that are imported with arpanet."""
    names: set[str] = set()
    for node in TREE.body:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
    return names


def test_only_the_standard_library_is_imported_at_the_top() -> None:
    top = {name.split(".")[0] for name in imported_names()}
    assert top - set(sys.stdlib_module_names) == set()
    assert "ssl" not in top


# ---- errors and threads

MAY_CATCH_ALL = {
    "spawn.guarded", "answer", "main", "start_role",
    # the guards of the pump: one connection's fault must not end the others'
    "LinkListener.process_request", "HeadReader._hand_over", "run_guarded",
    "Pump._begin.begin", "Pump._turn", "Pump._tick",
}  # fmt: skip


def test_only_a_few_places_catch_all_exceptions() -> None:
    handlers = [node for node in ast.walk(TREE) if isinstance(node, ast.ExceptHandler)]
    everything = [
        qualified(handler)
        for handler in handlers
        if handler.type is None or "Exception" in re.findall(r"\w+", ast.unparse(handler.type))
    ]
    assert set(everything) - MAY_CATCH_ALL == set()


def test_whoever_catches_even_an_exit_raises_it_again() -> None:
    for node in ast.walk(TREE):
        if not isinstance(node, ast.ExceptHandler):
            continue
        if node.type is None or "BaseException" in ast.unparse(node.type):
            assert isinstance(node.body[-1], ast.Raise), qualified(node)


def test_every_thread_starts_through_spawn() -> None:
    starters = [
        qualified(node)
        for node in ast.walk(TREE)
        if isinstance(node, ast.Call)
        and re.fullmatch(r"(\w+\.)*(Thread|Timer|\w*PoolExecutor|Process)", ast.unparse(node.func))
    ]
    assert starters == ["spawn"]


def spawned_names() -> set[str]:
    """Return the names that are given to spawn(), with N or NAME for what varies."""
    names = set()
    for node in ast.walk(TREE):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "spawn":
            text = ast.unparse(node.args[0])
            names.add(re.sub(r"-\{.*\}", "-", text.lstrip("f").strip("'\"")))
    return names


def test_the_thread_table_names_every_thread() -> None:
    table = DOCSTRING.partition("Threads")[2]
    rows = re.findall(r"(?m)^    (\S+)  ", table)
    told = {re.sub(r"-[A-Z]+$", "-", name) for name in rows}
    missing = (spawned_names() | {"main"}) - told
    assert not missing, f"the module's docstring has no row for the threads {sorted(missing)}"
    gone = told - spawned_names() - {"main"}
    assert not gone, f"the module's docstring has rows for threads that are not: {sorted(gone)}"


def test_the_clock_of_the_wall_decides_nothing() -> None:
    asked = [
        qualified(node)
        for node in ast.walk(TREE)
        if isinstance(node, ast.Attribute)
        and (ast.unparse(node) in ("time.time", "time.sleep") or node.attr in ("now", "utcnow"))
    ]
    assert asked == ["utc_now"]
    shown = [
        qualified(node)
        for node in ast.walk(TREE)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "utc_now"
    ]
    assert sorted(shown) == [
        "ApiConnection._send_head",  # Date
        "Ending.__init__",  # StartedAt
        "Ending._keep",  # FinishedAt
        "EventSources.__init__",  # since when events are wanted, in the engines' own terms
        "ask_facts",  # how far a clock is off
        "get_containers",  # "Up 2 hours"
        "new_meaning",  # compared only with what was named on an engine while its slave was away
        "own_facts",
        "prune_networks",  # older than "24h"
        "sign_certificate",  # until when it is good
        "start_awaited_since",  # what was just made keeps its room
    ]


# ---- names, README


def test_every_error_has_its_status_and_exit_code() -> None:
    errors = [e for e in vars(arpanet).values() if isinstance(e, type)]
    ours = [e for e in errors if issubclass(e, arpanet.ArpanetError)]
    assert len(ours) > 10
    for error in ours:
        assert 400 <= error.status < 600
        assert 1 <= error.exit_code < 64
        assert error.__doc__


def test_the_readme_has_the_table_of_settings() -> None:
    table = arpanet.settings_table()
    assert table in README, f"README.md lacks, as its section Settings:\n\n{table}"


def test_the_version_is_the_newest_of_the_changes() -> None:
    changes = README.partition("\n## Changes\n")[2]
    assert changes, "README.md has no section Changes"
    heading = re.search(r"(?m)^### v?(\S+)", changes)
    assert heading
    assert heading[1] == arpanet.__version__
    assert "\n## " not in changes, "Changes must be README.md's last section"


def test_every_relative_link_of_the_readme_leads_somewhere() -> None:
    slugs = {
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-")
        for h in re.findall(r"(?m)^#+ (.+)$", README)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in slugs, target
        elif "://" not in target:
            assert (ROOT / target).exists(), target


TOP = {
    "arpanet.py", "tests", "build_zipapp.sh", "bootstrap.sh", "README.md", "LICENSE",
    "requirements.txt", ".gitignore", ".ci", "findings",
}  # fmt: skip


def test_nothing_lies_at_the_top_that_is_not_of_the_plan() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {path.split(os.sep)[0] for path in listed.splitlines()} <= TOP


def test_the_readme_has_the_table_of_routes() -> None:
    assert arpanet.routes_table() in README
    assert {row.fate for row in arpanet.ROUTES} == set(arpanet.FATES)
