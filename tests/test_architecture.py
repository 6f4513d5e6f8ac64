"""The layout stays: no circle of imports, nothing pure that reaches up, and the documented rooms are those that there are."""

import re
from functools import cache
from graphlib import TopologicalSorter
from itertools import product
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("flexlora_server", "flexlora_client", "flexlora_shared", "flexlora_simulation")
DOCUMENT = (ROOT / "docs" / "architecture.md").read_text()
# one module a resource, a thing: named like the routes and the tables, not in the document
UNLISTED = {"flexlora_server.api", "flexlora_server.database.queries"}


@cache
def graph(package: str) -> grimp.ImportGraph:
    """Who imports whom, imports inside functions too; those for type checkers alone left out."""
    return grimp.build_graph(package, exclude_type_checking_imports=True, cache_dir=None)


@cache
def rooms(package: str) -> tuple[str, ...]:
    """The package and all packages in it."""
    return tuple(
        sorted(module for module in {package, *graph(package).modules} if graph(package).find_children(module))
    )


def siblings(package: str, room: str) -> dict[str, set[str]]:
    """Of everything in a room: what of the same room it imports, with all that lies in each."""
    found = dict[str, set[str]]()
    for child in graph(package).find_children(room):
        inside = {child, *graph(package).find_descendants(child)}
        imported = {name for module in inside for name in graph(package).find_modules_directly_imported_by(module)}
        heads = {".".join(name.split(".")[: room.count(".") + 2]) for name in imported if name.startswith(f"{room}.")}
        found[child] = heads - {child}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_rooms_import_each_other_in_a_circle(package: str) -> None:
    for room in rooms(package):
        TopologicalSorter(siblings(package, room)).prepare()  # raises CycleError, which names the circle


def test_what_is_below_imports_nothing_above() -> None:
    below, above = ("database", "storage", "adapter_files", "aggregation"), ("api", "console", "worker", "app", "cli")
    found = graph("flexlora_server")
    reaching = [
        (low, high)
        for low, high in product(below, above)
        if found.chain_exists(f"flexlora_server.{low}", f"flexlora_server.{high}", as_packages=True)
    ]
    assert reaching == []


def test_few_modules_lie_on_the_top_level() -> None:
    for package, most in (("flexlora_server", 5), ("flexlora_client", 3), ("flexlora_simulation", 5)):
        modules = {name for name in graph(package).find_children(package) if name not in rooms(package)}
        assert len(modules) <= most, modules


@pytest.mark.parametrize(
    ("package", "heading"),
    [
        ("flexlora_server", "The coordinator"),
        ("flexlora_client", "The agent"),
        ("flexlora_simulation", "The simulation"),
    ],
)
def test_the_document_names_every_room_and_every_module_once(package: str, heading: str) -> None:
    section = DOCUMENT.split(f"## {heading}", 1)[1].split("\n## ", 1)[0]
    top, table = section.split("| room |", 1)
    listed = {package: re.findall(r"`([a-z_0-9]+)`", top.split("\n\n")[1])}
    for room, modules in re.findall(r"^\| `([a-z_/]+)` \|[^|]*\|([^|]*)\|$", table, re.MULTILINE):
        listed[f"{package}.{room.replace('/', '.')}"] = re.findall(r"`([a-z_0-9]+)`", modules)
    assert set(listed) == set(rooms(package))
    for room, modules in listed.items():
        there = {name.rpartition(".")[2] for name in graph(package).find_children(room) if name not in rooms(package)}
        named = set(modules) & there if room == package else set(modules)  # the top level is told in sentences
        assert named <= there if room in UNLISTED else named == there, room
    names = [name for room, modules in listed.items() if room != package for name in modules]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)
