"""The demo model's text: the standard library of the Python that runs this.

Gives modules, the split by module name, and functions as (prompt, body) pairs. Knows neither
tokens nor tensors.

A module whose file carries a permission notice of its own is left out, so that all of the text is
under one licence: the Python Software Foundation License Version 2 (SPDX ``PSF-2.0``), which the
interpreter prints with ``license()`` and keeps in ``LICENSE.txt`` of its library directory.
"""

import ast
import hashlib
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

Part = Literal["train", "validation", "held_out"]
PARTS: tuple[Part, ...] = ("train", "validation", "held_out")

# Installed packages, build records with local paths, character tables, and one file of HTML text.
_SKIPPED = {"site-packages", "dist-packages", "lib-dynload", "encodings", "pydoc_data"}
_TEST_FOLDERS = {"test", "tests", "idle_test"}
_OWN_NOTICE = (
    "Permission to use, copy, modify",
    "Permission is hereby granted",
    "Redistribution and use in source",
    "Licensed under the Apache",
    "Licensed under the MIT",
    "This software is provided 'as-is'",
)
_MAX_FUNCTION_CHARS = 2500


class Module(NamedTuple):
    """A module of the standard library: its dotted name and its source."""

    name: str
    source: str
    is_test: bool


class Function(NamedTuple):
    """A function with a docstring, dedented; ``prompt + body`` is its whole source.

    ``prompt`` ends with the docstring's closing quotes; ``body`` starts with a newline;
    ``summary`` is the docstring's first paragraph on one line.
    """

    prompt: str
    body: str
    summary: str


def modules() -> Iterator[Module]:
    """Yield every module that can be used, in the order of their paths."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if _SKIPPED & set(parts) or parts[0].startswith(("_sysconfigdata", "config-")):
            continue
        source = _read(path)
        if source is not None:
            name = ".".join(part for part in parts if part != "__init__")
            yield Module(name, source, bool(_TEST_FOLDERS & set(parts)))


def part_of(name: str) -> Part:
    """Say which part of the split a module belongs to; depends on nothing but its name."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 25
    return "held_out" if bucket == 0 else "validation" if bucket == 1 else "train"


def functions(module: Module) -> list[Function]:
    """Give the module's documented functions and methods that are short enough to show."""
    lines = module.source.splitlines(keepends=True)
    found = []
    for node in ast.walk(ast.parse(module.source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(node.body) > 1:
            doc = ast.get_docstring(node)
            function = _cut(lines, node, doc) if doc else None
            if function:
                found.append(function)
    return found


def _cut(
    lines: list[str], node: ast.FunctionDef | ast.AsyncFunctionDef, doc: str
) -> Function | None:
    doc_end = node.body[0].end_lineno or 0
    if node.body[1].lineno <= doc_end:
        return None
    source = textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno])).rstrip()
    split = len("".join(source.splitlines(keepends=True)[: doc_end - node.lineno + 1])) - 1
    if len(source) > _MAX_FUNCTION_CHARS or not _parses(source):
        return None
    return Function(source[:split], source[split:], " ".join(doc.split("\n\n")[0].split()))


def _read(path: Path) -> str | None:
    try:
        source = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return None
    usable = source.strip() and _parses(source) and not any(n in source for n in _OWN_NOTICE)
    return source if usable else None


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return True
