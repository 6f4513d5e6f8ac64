"""A package that offers plug-ins by entry points, installed into a folder of sys.path: its modules and its metadata."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest


def install(
    monkeypatch: pytest.MonkeyPatch, folder: Path, package: str, group: str, offers: Mapping[str, str], **modules: str
) -> None:
    """`offers`: entry points, `name = "module:object"`. `modules`: the source of each by its name."""
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in offers.items())
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{lines}")
    if str(folder) not in sys.path:
        monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
