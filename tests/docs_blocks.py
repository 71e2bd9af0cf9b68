"""The code blocks of the pages: found, marked, and the command lines in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from goodnet.cli import goodnet

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(
    r"^(?:<!-- run(?P<how>[^>]*?) ?-->\n)?```(?P<kind>sh|console|python)\n(?P<body>.*?)^```$"
    r"(?:\s+(?:(?!```)[^\n]+\n)*\n*```text\n(?P<printed>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(r"`goodnet ([^`]+)`")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block. `how` is None where it is not marked to be run, else what stands behind `run`."""

    page: str
    line: int
    kind: str
    body: str
    how: str | None
    printed: str | None

    @property
    def slow(self) -> bool:
        return "slow" in (self.how or "")

    @property
    def exits(self) -> int:
        said = re.search(r"exits (\d)", self.how or "")
        return int(said[1]) if said else 0


def pages() -> list[str]:
    """Every page with text of ours, by its path in the checkout."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return sorted(str(file.relative_to(ROOT)) for file in files)


def blocks_of(text: str, page: str = "page") -> list[Block]:
    """The sh, console and python blocks of a page; `printed` is the text block behind one, at most a paragraph away."""
    return [
        Block(
            page=page,
            line=text.count("\n", 0, match.start("body")),
            kind=match["kind"],
            body=match["body"],
            how=match["how"],
            printed=match["printed"],
        )
        for match in _BLOCK.finditer(text)
    ]


def all_blocks() -> list[Block]:
    return [block for page in pages() for block in blocks_of((ROOT / page).read_text(encoding="utf-8"), page)]


def typed(block: Block) -> str:
    """What a user types: of a console block, the lines behind `$ ` and what continues them."""
    if block.kind != "console":
        return block.body
    lines, more = [], False
    for line in block.body.splitlines():
        if more or line.startswith("$ "):
            lines.append(line if more else line[2:])
            more = line.endswith("\\")
    return "\n".join(lines) + "\n"


def command_lines(script: str) -> Iterator[list[str]]:
    """The arguments of each call of goodnet in a script, up to the first redirection, pipe or other operator."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        for start in (i for i, word in enumerate(words) if word == "goodnet"):
            end = next((i for i in range(start, len(words)) if set(words[i]) <= set("();<>|&")), len(words))
            # `2>&1` is the words 2, >&, 1
            yield words[start + 1 : end - 1 if end < len(words) and words[end - 1] in ("1", "2") else end]


def resolve(arguments: list[str]) -> tuple[click.Command, click.Context, list[str]]:
    """The command that the arguments call, and what is left for it. Raises click.UsageError for one that is none."""
    command: click.Command = goodnet
    context = click.Context(goodnet, info_name="goodnet")
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        found = command.get_command(context, name)
        if found is None:
            raise click.UsageError(f"no command {name!r}")
        command, context = found, click.Context(found, parent=context, info_name=name)
    return command, context, arguments


def check_command_line(arguments: list[str]) -> None:
    """Raises click.UsageError unless click takes these arguments; what a placeholder stands for is not looked at."""
    command, context, rest = resolve(arguments)
    given, left, _ = command.make_parser(context).parse_args(list(rest))
    if left:
        raise click.UsageError(f"too many arguments: {left}")
    if given.keys() & {"help", "version"}:
        return
    for parameter in command.params:
        value = given.get(parameter.name or "")
        if parameter.required and (value is None or parameter.value_is_missing(value)):
            raise click.MissingParameter(ctx=context, param=parameter)
        if isinstance(parameter.type, click.Choice) and isinstance(value, str):
            parameter.type.convert(value, parameter, context)


def options_in_text(text: str) -> Iterator[tuple[str, str]]:
    """Each option named in code within the text, as `goodnet scan --plan`, that the command does not have."""
    for match in _INLINE.finditer(text):
        command, _, rest = resolve(re.findall(r"[^\s\[\],;]+", match[1]))
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for word in rest:
            option = word.partition("=")[0]
            if re.fullmatch(r"--[a-z][a-z-]+", option) and option not in {*known, "--help", "--version"}:
                yield match[0], option
