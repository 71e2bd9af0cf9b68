"""What a record from a stranger cannot make the report do."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from rich.table import Table

from goodnet import record as rec
from goodnet import strict_json
from goodnet.errors import DataError
from goodnet.report import Part, render_report, terminal, words, write_report
from goodnet.report.pictures import MAX_SIDE, embed
from report_records import (
    HOSTILE,
    Reader,
    environment,
    evaluation,
    examples,
    hostile_parts,
    model,
    page,
    repair,
    save_png,
    scan,
)


def test_report_never_imports_torch() -> None:
    code = "import sys, goodnet.report, goodnet.report.terminal; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_hostile_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    source = render_report([Part(title=HOSTILE, folder=tmp_path / "<b>" / HOSTILE, **hostile_parts())] * 2)
    reader = Reader(source)
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert "alert" not in "".join(reader.scripts)
    assert "<script>alert(1)</script>" in reader.text
    assert "{{ 7*7 }}" in reader.text
    assert not any(character in source for character in "\x1b\u202e")
    assert not [
        name for _, attributes in reader.tags for name in attributes if name.startswith("on") or name == "style"
    ]


def test_lone_surrogate_in_a_name_does_not_stop_the_report(tmp_path: Path) -> None:
    strict_json.write_record(scan(), tmp_path / "scan.json")
    raw = json.loads((tmp_path / "scan.json").read_text())
    raw["model"]["name"] = "net\ud800.h5"
    (tmp_path / "scan.json").write_text(json.dumps(raw))
    assert "net\ufffd.h5" in write_report(tmp_path).read_text(encoding="utf-8")


def test_page_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    source = page(tmp_path, scan=scan(examples=examples(tmp_path)), repair=repair(), evaluate=evaluation())
    for tag, attributes in Reader(source).tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form", "video", "audio"}
        for name in ("src", "href", "action", "srcset", "data", "poster", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), (tag, name)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|XMLHttp|eval\(", source)


def test_policy_allows_only_the_style_and_script_of_the_page_itself(tmp_path: Path) -> None:
    source = page(tmp_path, scan=scan())
    policy = next(a["content"] for _, a in Reader(source).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        inline = re.search(f"<{tag}>(.*?)</{tag}>", source, re.DOTALL)
        assert inline is not None
        digest = base64.b64encode(hashlib.sha256(inline[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "a/../../secret.png", "link.png", ".", "a\0b.png"])
def test_pictures_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    save_png(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    bad = (rec.Example(label=4, kind="mask", file=name),)
    with pytest.raises(DataError, match="this folder"):
        page(folder, scan=scan(examples=bad))


def test_pictures_that_are_missing_or_no_modest_png_are_shown_as_missing(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_text("<svg onload=alert(1)>")
    Image.new("RGB", (8, 8)).save(tmp_path / "jpeg.png", "JPEG")
    save_png(tmp_path / "big.png", (MAX_SIDE + 1, 2))
    save_png(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    (tmp_path / "heavy.png").write_bytes((tmp_path / "good.png").read_bytes() + bytes(3 << 20))
    reasons = {name: embed(tmp_path, f"{name}.png").missing for name in ("page", "jpeg", "big", "cut", "heavy", "none")}
    assert reasons == {
        "page": "file cannot be read as PNG", "jpeg": "file cannot be read as PNG", "cut": "file cannot be read as PNG",
        "big": "picture larger than 1024 x 1024", "heavy": "file larger than 2 MiB", "none": "file not found",
    }  # fmt: skip
    assert embed(tmp_path, "good.png").missing is None
    bad = (rec.Example(label=2, kind="mask", file="none.png"),)
    text = Reader(page(tmp_path, scan=scan(examples=bad))).text
    assert "file not found" in text
    assert "not in the record" in text  # the pattern, which the record does not name


def test_bytes_behind_a_picture_do_not_reach_the_page(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png")
    with (tmp_path / "a.png").open("ab") as file:
        file.write(b"SMUGGLED")
    uri = embed(tmp_path, "a.png").uri
    assert uri is not None
    assert b"SMUGGLED" not in base64.b64decode(uri.split(",")[1])


def test_commands_are_quoted_and_names_cannot_become_options(tmp_path: Path) -> None:
    record = scan(
        model=model("--out=x; rm -rf ~"),
        environment=environment("goodnet", "scan", "--clean=$(id)", "--arch", "deepid"),
    )
    command = words.next_steps(record, tmp_path / "it's here")[0].command
    read = shlex.split(" ".join(command))
    assert read[:3] == ["goodnet", "repair", "./--out=x; rm -rf ~"]
    assert read[read.index("--clean") + 1] == "$(id)"
    assert read[read.index("--scan") + 1] == str(tmp_path / "it's here")
    assert read[read.index("--arch") + 1] == "deepid"


def printed(what: Table) -> str:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(what)
    return console.export_text()


def test_terminal_shows_hostile_names_as_text() -> None:
    parts = hostile_parts()
    texts = [
        terminal.scan_summary(parts["scan"]),
        printed(terminal.evaluate_table(parts["evaluate"])),
        printed(terminal.repair_table(parts["repair"])),
    ]
    joined = "".join(texts)
    assert "[bold red]x[/]" in texts[0]
    assert "alert(1)" in re.sub(r"\s", "", texts[1])
    assert not any(character in joined for character in "\x1b\u202e")
