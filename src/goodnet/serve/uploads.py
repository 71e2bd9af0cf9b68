"""Forms and files as they come in: each part bounded while it streams, files written under names of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import parse_qs

import python_multipart
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from goodnet.errors import UsageError
from goodnet.report.figures import visible

MIB = 1 << 20
_MAX_FIELD = 4 << 10
_MAX_FORM = 16 << 10
_MAX_PARTS = 24
_MAX_NAME = 120
_MAX_HEADER = 8 << 10  # of a part


class TooLarge(UsageError):
    """More than was allowed; nothing of it is kept."""


class Refused(UsageError):
    """Not from one of our own forms."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A file that a form may bring: where it goes, what it is called in messages, and its size limit in bytes."""

    path: Path
    what: str
    limit: int


@dataclass(frozen=True, kw_only=True)
class Form:
    """The plain fields, and for each file that came the name that the user's machine has for it."""

    fields: Mapping[str, str]
    files: Mapping[str, str]


async def read_form(request: Request, allows: Callable[[str], bool]) -> Form:
    """The fields of a small form without files.

    Raises:
        Refused: without our CSRF token. TooLarge, UsageError: no such form.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM:
            raise TooLarge("this form is larger than any of ours")
    try:
        given = parse_qs(body.decode("utf-8"), keep_blank_values=True, max_num_fields=_MAX_PARTS)
    except ValueError as error:
        raise UsageError("expected a form, got something else") from error
    fields = {name: values[-1] for name, values in given.items()}
    if not allows(fields.get("csrf", "")):
        raise Refused("this form is out of date; load the page again")
    return Form(fields=fields, files={})


async def read_upload(request: Request, wanted: Mapping[str, Wanted], allows: Callable[[str], bool]) -> Form:
    """A multipart form with files, written while they come in. The CSRF token has to be its first field.

    Raises:
        Refused: without our CSRF token; nothing was written.
        TooLarge: a file or field over its limit; what was written is the caller's to remove.
        UsageError: no such form, or an empty file.
        OSError: of the disk.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UsageError("expected a form with files, got something else")
    most = sum(one.limit for one in wanted.values())
    if int(_digits(request.headers.get("content-length")) or 0) > most + _MAX_PARTS * _MAX_FIELD:
        raise TooLarge(f"expected at most {_mib(most)} in all, got more")
    parts = _Parts(wanted, allows)
    try:
        parser = python_multipart.MultipartParser(options[b"boundary"], parts.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise UsageError("expected a whole form, got a damaged one; send it again") from error
    finally:
        parts.close()
    if not parts.ended:
        raise UsageError("the form was cut off; send it again")
    return Form(fields=parts.fields, files=parts.files)


@dataclass(eq=False)
class _Parts:
    """What the parser calls; the state of the part that is being read."""

    wanted: Mapping[str, Wanted]
    allows: Callable[[str], bool]
    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    _headers: dict[str, bytes] = field(default_factory=dict)
    _name: bytes = b""
    _value: bytes = b""
    _head: int = 0
    _count: int = 0
    _field: str = ""
    _text: bytes = b""
    _open: BinaryIO | None = None
    _size: int = 0

    def callbacks(self) -> python_multipart.multipart.MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._start,
            "on_part_data": self._data,
            "on_part_end": self._finish,
            "on_end": self._end,
        }

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _begin(self) -> None:
        self._count += 1
        if self._count > _MAX_PARTS:
            raise TooLarge("this form has more fields than any of ours")
        self._headers, self._name, self._value, self._head = {}, b"", b"", 0

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._bound_headers(end - start)

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._bound_headers(end - start)

    def _bound_headers(self, more: int) -> None:
        self._head += more
        if self._head > _MAX_HEADER:
            raise TooLarge("this form has larger headers than any of ours")

    def _header_end(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value
        self._name, self._value = b"", b""

    def _start(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition"))
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        self._text, self._size = b"", 0
        if self._count == 1 and self._field != "csrf":
            raise Refused("this form is out of date; load the page again")
        if b"filename" not in options:
            return
        one = self.wanted.get(self._field)
        if one is None or self._field in self.files:
            raise UsageError("expected each file once, got another one")
        name = display_name(options[b"filename"].decode("utf-8", "replace"))
        if name:  # a field that was left empty comes without
            self.files[self._field] = name
            self._open = one.path.open("xb")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._open is None:
            self._text += data[start:end]
            if len(self._text) > _MAX_FIELD:
                raise TooLarge("this form has a larger field than any of ours")
            return
        one = self.wanted[self._field]
        if self._size > one.limit:
            raise TooLarge(
                f"{one.what}: expected at most {_mib(one.limit)}, got more (goodnet serve --help says how to raise it)"
            )
        self._open.write(data[start:end])

    def _finish(self) -> None:
        if self._open is not None:
            self.close()
            if self._size == 0:
                raise UsageError(
                    f"{self.wanted[self._field].what}: expected a file with something in it, got an empty one"
                )
            return
        self.fields[self._field] = self._text.decode("utf-8", "replace")
        if self._count == 1 and not self.allows(self.fields["csrf"]):
            raise Refused("this form is out of date; load the page again")

    def _end(self) -> None:
        self.ended = True


def display_name(given: str) -> str:
    """What a file is called on the page: the last part of its name, on one line, of at most 120 characters. Never a
    path of ours."""
    name = visible(PurePosixPath(given.replace("\\", "/")).name).strip()
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f} MB"


def _digits(text: str | None) -> str:
    return text if text and text.isascii() and text.isdigit() and len(text) < 19 else ""
