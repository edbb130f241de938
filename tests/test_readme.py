"""What the README shows works: its Python runs, and its command lines are understood."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import typer

from wdm_runtime import bundle

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`((?:wdm-run|wdm-export) [^`]+)`")
CONTROL = {"&&", "||", "|", ";", ">"}
PROGRAMS = {"wdm-run": "wdm_runtime.cli", "wdm-export": "wdm_export.cli"}


def python_blocks():
    """Each with as many lines before it as in the README, so that tracebacks name the line."""
    for match in FENCE.finditer(README):
        if match[1] == "python":
            line = README.count("\n", 0, match.start(2))
            yield pytest.param("\n" * line + match[2], id=f"line {line + 1}")


def code_lines():
    """Lines of shell in fenced and indented blocks, and spans that begin with a program."""
    for match in FENCE.finditer(README):
        if match[1] != "python":
            yield from match[2].replace("\\\n", " ").splitlines()
    prose = FENCE.sub("", README)
    indented = re.findall(r"^(?: {4}|\t)(.*(?:\\\n.*)*)", prose, re.MULTILINE)
    yield from (line.replace("\\\n", " ") for line in indented)
    yield from SPAN.findall(prose)


def commands():
    """The tokens of every call of one of the programs, each once."""
    found = {}
    for line in code_lines():
        call = []
        for token in [*shlex.split(line, comments=True), ";"]:
            if token not in CONTROL:
                call.append(token)
                continue
            if call and call[0] in PROGRAMS:
                found[shlex.join(call)] = call
            call = []
    return [pytest.param(call, id=text) for text, call in found.items()]


def parse(tokens):
    """Read a command line with the program's own parser; what it asks for is not done."""
    program, *arguments = tokens
    command = typer.main.get_command(import_module(PROGRAMS[program]).app)
    for one in (command, *command.commands.values()):
        one.callback = None
    command.main(list(arguments), program, standalone_mode=False)


@pytest.mark.parametrize("block", list(python_blocks()))
def test_python(block, tiny, tmp_path, monkeypatch):
    if "xarray" in block:
        pytest.importorskip("xarray")
    # The small bundle stands in for the shipped one: the same calls, in a second.
    monkeypatch.setattr(bundle, "default_bundle", lambda: tiny)
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("tokens", commands())
def test_command_line(tokens):
    parse(tokens)


def test_both_kinds_were_found():
    assert len(list(python_blocks())) >= 1
    names = {call.values[0][0] for call in commands()}
    assert names == set(PROGRAMS)
    assert any("--members" in call.values[0] for call in commands())


@pytest.mark.parametrize(
    "line",
    ["wdm-run infer in.nc --membres 4", "wdm-run downscale in.nc", "wdm-run infer --members 4"],
)
def test_what_is_no_command_line_is_noticed(line):
    with pytest.raises(Exception, match=r"No such|Missing"):
        parse(shlex.split(line))
