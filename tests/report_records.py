"""Records to report on, a hostile one among them, and a reader of pages."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image

from goodnet import record as rec
from goodnet.report import Part, render_report

HOSTILE = "<script>alert(1)</script>\"'&[bold red]x[/]\x1b[31m\u202e{{ 7*7 }}"


SHARE = rec.Share(value=0.95, low=0.888, high=0.978, n=100)


SHA = "9f2c" * 16


def environment(*command: str) -> rec.Environment:
    return rec.Environment(command=command, goodnet="0.1.0", torch="2.2.0", python="3.11.7", device="cpu", threads=2)


def model(name: str = "net.h5", *, refuses: bool = False) -> rec.ModelInfo:
    return rec.ModelInfo(name=name, sha256=SHA, arch="deepid", input="55x47x3, 0..1", classes=5, refuses=refuses)


DATA = rec.DataInfo(name="clean.h5", sha256="a1" * 32, n=115, labelled=True)


def label(number: int, **changes: Any) -> rec.LabelResult:
    given = {"status": "searched", "score": 0.1, "p_value": 0.4, "mask_norm": 300.0 + number, "norm_ratio": 1.0}
    return rec.LabelResult(label=number, **{**given, "fit_asr": 1.0, "held_out_asr": 0.8, **changes})


def backdoor(number: int) -> rec.LabelResult:
    found = {"score": 4.2, "p_value": 2.1e-9, "mask_norm": 41.3, "norm_ratio": 0.125, "held_out_asr": 0.983}
    return label(number, flagged=True, **found)


def scan(**changes: Any) -> rec.ScanRecord:
    given: dict[str, Any] = {
        "verdict": "suspect",
        "flagged_labels": (2,),
        "labels": tuple(backdoor(n) if n == 2 else label(n) for n in range(5)),
        "seconds": 200.0,
        "forward_passes": 12345,
        "reasons": ("label 2 stands out",),
        "decision": rec.Decision(
            false_alarm_rate=0.05, compared=4, median_norm=330.0, mad=64.0, threshold_norm=88.0,
            max_norm_ratio=0.5, min_held_out_asr=0.75,
        ),
        "method": rec.MethodInfo(name="nc", passed={"steps": 300}, resolved={"steps": 300, "lr": 0.1}, seed=7),
        "model": model(),
        "data": DATA,
        "n_fit": 77,
        "n_held_out": 38,
        "preflight_acc": SHARE,
        "tested": ("small patches",),
        "not_tested": ("triggers that warp the image",),
        "examples": (),
        "environment": environment("goodnet", "scan", "nets/net.h5", "--clean", "my data/clean.h5", "--arch", "deepid"),
    }  # fmt: skip
    return rec.ScanRecord(**{**given, **changes})


def measured(acc: rec.Share | None, fpr: rec.Share | None, **poisoned: Any) -> rec.Measured:
    given = {"name": "glasses.h5", "target": 0, "asr": SHARE, "ra": None, "detection": None, "der": None}
    return rec.Measured(acc=acc, fpr=fpr, poisoned=(rec.Poisoned(**{**given, **poisoned}),))


AFTER = measured(
    rec.Share(value=0.93, low=0.863, high=0.966, n=100),
    rec.Share(value=0.02, low=0.006, high=0.07, n=100),
    asr=rec.Share(value=0.03, low=0.01, high=0.085, n=100),
    detection=rec.Share(value=0.62, low=0.522, high=0.709, n=100),
    der=0.95,
)


def evaluation(**changes: Any) -> rec.EvaluateRecord:
    given: dict[str, Any] = {
        "acc": AFTER.acc, "fpr": AFTER.fpr, "poisoned": AFTER.poisoned, "before": measured(SHARE, None),
        "model": model("good.h5", refuses=True), "before_model": model(), "data": DATA, "seconds": 3.0,
        "environment": environment("goodnet", "evaluate", "good.h5"),
    }  # fmt: skip
    return rec.EvaluateRecord(**{**given, **changes})


def repair(**changes: Any) -> rec.RepairRecord:
    given: dict[str, Any] = {
        "accepted": True, "reasons": ("ASR fell",), "before": measured(SHARE, None), "after": AFTER,
        "method": rec.MethodInfo(name="fine_pruning", passed={}, resolved={"epochs": 10}, seed=0),
        "limits": {"max_asr": 0.1}, "again": (), "n_fit": 60, "n_choose": 25, "n_judge": 30,
        "curve": tuple(rec.CurvePoint(layer="conv_3", pruned=n, acc=0.9 - 0.1 * n) for n in range(5)),
        "pruned": (rec.PrunedLayer(layer="conv_3", channels=(4, 9)),), "rounds": ((2,),), "poisoned_data": (),
        "model": model(), "data": DATA, "goodnet_file": "good.h5", "goodnet_sha256": SHA, "seconds": 9.0,
        "environment": environment("goodnet", "repair", "net.h5"),
    }  # fmt: skip
    return rec.RepairRecord(**{**given, **changes})


def page(tmp_path: Path, **parts: Any) -> str:
    return render_report([Part(title="net", folder=tmp_path, **parts)])


class Reader(HTMLParser):
    """Text, tags and attributes of a page as a browser would read them."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))


def save_png(path: Path, size: tuple[int, int] = (47, 55), colour: str = "purple") -> None:
    Image.new("RGB", size, colour).save(path, "PNG")


def examples(tmp_path: Path, number: int = 2) -> tuple[rec.Example, ...]:
    for kind in ("mask", "pattern", "clean", "triggered"):
        save_png(tmp_path / f"{kind}.png")
    return (
        rec.Example(label=number, kind="mask", file="mask.png"),
        rec.Example(label=number, kind="pattern", file="pattern.png"),
        rec.Example(label=number, kind="clean", file="clean.png", index=3, answer=1),
        rec.Example(label=number, kind="triggered", file="triggered.png", index=3, answer=2),
    )


def many_labels(count: int = 1283) -> tuple[rec.LabelResult, ...]:
    statuses = itertools.cycle(("searched", "screened", "failed"))
    found = []
    for number, status in zip(range(count), statuses):
        if status == "searched":
            found.append(label(number, score=math.sin(number), mask_norm=300 + 100 * math.sin(number)))
        else:
            nothing = {"score": None, "p_value": None, "mask_norm": None, "norm_ratio": None, "held_out_asr": None}
            found.append(label(number, status=status, **nothing, fit_asr=None, screen_norm=400.0 + number % 90))
    found[2] = backdoor(2)
    return tuple(found)


def hostile_parts() -> dict[str, Any]:
    bad_model = dataclasses.replace(model(HOSTILE), arch=HOSTILE, input=HOSTILE, notes=(HOSTILE,), sha256=HOSTILE)
    bad_data = dataclasses.replace(DATA, name=HOSTILE, sha256=HOSTILE)
    method = rec.MethodInfo(name=HOSTILE, passed={HOSTILE: HOSTILE}, resolved={HOSTILE: [HOSTILE]}, seed=0)
    bad = {"model": bad_model, "data": bad_data, "environment": environment("goodnet", HOSTILE)}
    net = measured(SHARE, None, name=HOSTILE)
    return {
        "scan": scan(**bad, reasons=(HOSTILE,), tested=(HOSTILE,), not_tested=(HOSTILE,), method=method,
                     labels=(backdoor(2), label(1, status=HOSTILE))),
        "repair": repair(**bad, reasons=(HOSTILE,), method=method, before=net, after=net, goodnet_file=HOSTILE,
                         goodnet_sha256=HOSTILE, limits={HOSTILE: HOSTILE}, guard=method,
                         tried=(rec.Tried(name=HOSTILE, accepted=False, reasons=(HOSTILE,), acc=SHARE),)),
        "evaluate": evaluation(**bad, before_model=bad_model, before=net, poisoned=net.poisoned),
    }  # fmt: skip
