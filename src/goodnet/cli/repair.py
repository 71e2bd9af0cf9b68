"""`goodnet repair`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from goodnet.auto import auto
from goodnet.cli import progress
from goodnet.cli.options import (
    command_line,
    data_range_option,
    model_options,
    print_json,
    read_clean,
    remark_on_poisoned,
    run_options,
    take_model_options,
)
from goodnet.cli.output import note, print_table, print_text, write_curve, write_page
from goodnet.cli.views import Views, view_options
from goodnet.data.images import Images
from goodnet.data.readers import read_images
from goodnet.errors import DataError, UsageError
from goodnet.found import Found
from goodnet.guard.combined import Combined
from goodnet.guard.disagreement import Disagreement
from goodnet.guard.strip import Strip
from goodnet.guard.ted import Ted
from goodnet.guard.watch import Watch
from goodnet.guarding import GUARDS, Guard
from goodnet.judging import Limits
from goodnet.keeping import Output
from goodnet.models.classifier import Classifier
from goodnet.outputs import claimed
from goodnet.progress import Progress
from goodnet.record import RepairRecord, ScanRecord
from goodnet.repairing import METHODS, Method, repair
from goodnet.report import words
from goodnet.report.figures import visible
from goodnet.report.terminal import next_step, repair_table
from goodnet.scan import scan
from goodnet.strict_json import to_json
from goodnet.triggers.files import read_triggers
from goodnet.triggers.trigger import Trigger


@click.command("repair")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--clean", required=True, type=click.Path(path_type=Path), help="HDF5, folder or npz of clean images.")
@click.option("--scan", "scan_folder", type=click.Path(path_type=Path),
              help="--out folder of a scan of MODEL: triggers to repair and to judge by, and the seed.")  # fmt: skip
@click.option("--triggers", "triggers_file", type=click.Path(path_type=Path),
              help="Instead of --scan: the triggers.npz that a scan or a repair has left.")  # fmt: skip
@click.option("--target", "targets", type=click.IntRange(0), multiple=True, metavar="LABEL",
              help="Repair this label, too: one that a scan doubts, say. May be repeated.")  # fmt: skip
@click.option("--poisoned", "poisoned_files", type=click.Path(path_type=Path), multiple=True,
              help="Known triggered images, labelled with the target; may be given more than once. "
              "retrain learns from a part of them; they judge every method.")  # fmt: skip
@click.option("--surrogate", type=click.Path(path_type=Path),
              help="Pictures of the same kind that need not be of the net's classes, such as strangers' faces; "
              "labels in it are not used as classes. watch and unlearn use them.")  # fmt: skip
@click.option("--method", type=click.Choice(["auto", *METHODS.values()]), default="auto", show_default=True,
              metavar="NAME",
              help="auto: scans where no --scan is given, tries repairs and keeps the first that keeps all limits. "
              "With clean images alone: fine-pruning, clp, anp, rnp, ft-sam, i-bau, nad. With --scan: watch, unlearn, "
              "nc-filter, nc-prune, nc-unlearn, gangsweep. With --poisoned: retrain.")  # fmt: skip
@click.option("--guard", type=click.Choice(list(GUARDS.values())), default=None,
              help="What decides on class N where the method does not: BadNet and repaired net answer differently "
              "(default); a detector for suspicious labels, behind which the repaired net answers (watch); both of "
              "these (combined); answers that stay when other images are blended in (strip; slow); "
              "answers that are come to by another way through the net than clean images take (ted).")  # fmt: skip
@click.option("--time-limit", type=click.FloatRange(1), default=300.0, show_default=True, metavar="SECONDS",
              help="auto: try nothing further after this.")  # fmt: skip
@click.option("-o", "--goodnet", type=click.Path(path_type=Path), help="Where the GoodNet goes.")
@click.option("--layer", "layers", multiple=True,
              help="fine-pruning, nc-prune: whose channels to prune; may be given more than once. "
              "Default: the last convolution; for nc-prune the second-last layer first.")  # fmt: skip
@click.option("--prune-only", is_flag=True, help="fine-pruning: do not tune.")
@click.option("--tune-only", is_flag=True, help="fine-pruning: do not prune.")
@click.option("--teach", type=click.Choice(["logits", "labels", "class-n"]), default=None,
              help="What a triggered image is to get. nc-unlearn: logits (default) or labels; "
              "gangsweep: class-n (default) or labels.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1, 16), default=1, show_default=True,
              help="nc-prune, nc-unlearn: scan the repaired net again, and repair what that flags, too, "
              "until nothing is flagged. A round takes as long as a scan.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), help="Of training. Default: the method's.")
@click.option("--learning-rate", type=float, help="Default: the method's.")
@click.option("--max-accuracy-drop", type=float, default=0.05, show_default=True,
              help="ACC may fall by this share: pruning stops there, and more is not accepted.")  # fmt: skip
@click.option("--max-asr", type=float, default=0.10, show_default=True,
              help="Accepted only if each trigger still works on at most this share of the images.")  # fmt: skip
@click.option("--min-detection", type=float, default=0.0, show_default=True,
              help="Accepted only if each trigger is sent to class N on at least this share.")  # fmt: skip
@click.option("--max-fpr", type=float, help="Class N may take at most this share of the clean images that set it. "
              "Default: 0.01 for nc-filter and combined, 0.02 for ted, 0.05 for strip; else no bound.")  # fmt: skip
@click.option("--keep-rejected", is_flag=True, help="Write the GoodNet even if it is not accepted.")
@view_options
@data_range_option
@model_options
@run_options
def repair_command(model: Path, clean: Path, **options: Any) -> int:
    """Turns MODEL into a GoodNet whose class N means "this input is triggered".

    The clean images are split in three: to fit, to choose, to judge. The labels
    that a scan flags are repaired, and their triggers judge the repair.
    Exits with 0 if accepted, 1 if not, 2 if there was nothing to judge the
    backdoor with, 3 on wrong input.
    """
    model_opts = take_model_options(options)
    limits = Limits(**{name: options[name] for name in ("max_accuracy_drop", "max_asr", "min_detection")})
    automatic = options["method"] == "auto"
    if automatic:
        _check_auto(options)
    method = None if automatic else _method(options)
    output = Output(
        goodnet=options["goodnet"],
        folder=options["out"],
        overwrite=options["overwrite"],
        keep_rejected=options["keep_rejected"],
        arch_name=model_opts.arch,
    )
    if output.goodnet is not None and output.goodnet.resolve() == model.resolve():
        raise UsageError(f"-o: expected another file than the net itself, {model}, which a GoodNet does not replace")
    views = Views.of(options, out=options["out"], keep=_given(model, clean, options))
    guard = _guard(options)
    classifier = model_opts.load(model)
    images = read_clean(clean, classifier, options["data_range"])
    poisoned = [read_clean(path, classifier, options["data_range"]) for path in options["poisoned_files"]]
    surrogate = None
    if options["surrogate"] is not None:  # its labels are of people, or things, that the net need not know
        surrogate = read_images(options["surrogate"], data_range=options["data_range"])
    with progress.shown(options["as_json"]) as shown, claimed(options["out"]):
        report = shown if output.goodnet is not None or options["as_json"] else _told_first(shown)
        given = (options["scan_folder"], options["triggers_file"]) != (None, None)
        found, seed, scanned = (
            _scanned(classifier, images, options, report) if automatic and not given else _found(classifier, options)
        )
        found = _with_targets(found, options["targets"], classifier)
        if automatic and not found.targets:
            return _nothing_to_repair(scanned, options, views)
        shared: dict[str, Any] = {
            "found": found,
            "surrogate": surrogate,
            "poisoned": poisoned,
            "limits": limits,
            "output": output,
            "seed": seed,
            "command": command_line(),
            "progress": report,
        }
        if method is None:
            record, _ = auto(classifier, images, time_limit=options["time_limit"], say=_remark(options), **shared)
        else:
            record, _ = repair(classifier, images, method=method, guard=guard, rounds=options["rounds"], **shared)
    remark_on_poisoned(poisoned)
    write_curve(record, options["out"])
    write_page(options["out"])
    with views.written_after(record):
        if options["as_json"]:
            click.echo(to_json(record), nl=False)
        else:
            _say(record, asked=output.goodnet is not None)
    return words.exit_code(record)


def _told_first(report: Progress) -> Progress:
    """Says, once all input is known to be right and work begins, that nothing will be kept."""
    told = False

    def moved(stage: str, done: int, total: int) -> None:
        nonlocal told
        if not told:
            told = True
            note("no -o FILE: the repaired net will be measured and not be kept")
        report(stage, done, total)

    return moved


def _given(model: Path, clean: Path, options: dict[str, Any]) -> list[Path]:
    """The user's files, and the GoodNet's."""
    others = (options["surrogate"], options["triggers_file"], options["goodnet"])
    scanned = () if options["scan_folder"] is None else (options["scan_folder"] / "scan.json",)
    return [model, clean, *options["poisoned_files"], *scanned, *(path for path in others if path is not None)]


def _guard(options: dict[str, Any]) -> Guard:
    if options["guard"] == "watch":
        return Watch()
    max_fpr = options["max_fpr"]
    if options["guard"] == "strip":
        return Strip() if max_fpr is None else Strip(max_fpr=max_fpr)
    if options["guard"] == "ted":
        return Ted() if max_fpr is None else Ted(max_fpr=max_fpr)
    if options["guard"] == "combined":
        return Combined() if max_fpr is None else Combined(max_fpr=max_fpr)
    return Disagreement(max_fpr=max_fpr)


def _remark(options: dict[str, Any]) -> Callable[[str], None]:
    """What says a line about how far things are: nothing under --json."""
    return (lambda text: None) if options["as_json"] else note


def _check_auto(options: dict[str, Any]) -> None:
    """Raises UsageError for what a user sets that `auto` decides by itself."""
    given = {
        "--guard": options["guard"],
        "--rounds": options["rounds"] != 1,
        "--max-fpr": options["max_fpr"],
        "--layer": options["layers"],
        "--prune-only and --tune-only": options["prune_only"] or options["tune_only"],
        "--teach": options["teach"],
        "--epochs": options["epochs"],
        "--learning-rate": options["learning_rate"],
    }
    for option, value in given.items():
        if value:
            raise UsageError(f"{option}: expected with a --method of your own, got --method auto, which decides itself")


def _scanned(
    classifier: Classifier, images: Images, options: dict[str, Any], report: Progress
) -> tuple[Found, int, ScanRecord | None]:
    """A scan with the defaults, kept in the folder `scan` of --out."""
    with ExitStack() as stack:
        folder = options["out"]
        folder = Path(stack.enter_context(TemporaryDirectory())) if folder is None else folder / "scan"
        say = _remark(options)
        say("no --scan: scanning first")
        record = scan(
            classifier,
            images,
            seed=options["seed"],
            out=folder,
            overwrite=options["overwrite"],
            command=command_line(),
            progress=report,
        )
        write_page(folder if options["out"] is not None else None)
        say(f"scan: {record.verdict} {list(record.flagged_labels)}, {record.seconds:.0f} s")
        found, _ = Found.in_folder(folder)
    return found, options["seed"], record


def _nothing_to_repair(scanned: ScanRecord | None, options: dict[str, Any], views: Views) -> int:
    """What `auto` says where a scan has flagged no label: 0 after a clean scan, else 2."""
    verdict = "" if scanned is None else scanned.verdict
    clean = verdict == "clean"
    text = (
        "Nothing to repair: the scan finds the net clean. Use it as it is."
        if clean
        else f"Nothing to repair by: the scan ended as {verdict} and flags no label. See its report; --target LABEL "
        "repairs one that it doubts."
    )
    with views.written_after(*(() if scanned is None else (scanned,))):
        if options["as_json"]:
            print_json({"accepted": None, "verdict": verdict, "reasons": [text]})
        else:
            print_text(text)
    return 0 if clean else 2


def _with_targets(found: Found, targets: tuple[int, ...], classifier: Classifier) -> Found:
    """What was found, and the labels that the user names."""
    wrong = [label for label in targets if label >= classifier.classes]
    if wrong:
        raise UsageError(f"--target: expected labels from 0 to {classifier.classes - 1}, got {wrong[0]}")
    more = tuple(label for label in dict.fromkeys(targets) if label not in found.targets)
    further = tuple(label for label in found.further if label not in more)
    return replace(found, labels=(*found.labels, *more), further=further)


def _found(classifier: Classifier, options: dict[str, Any]) -> tuple[Found, int, ScanRecord | None]:
    """What was found, the seed that keeps the judging split new to it, and the scan, None where not known."""
    seed: int = options["seed"]
    folder, file = options["scan_folder"], options["triggers_file"]
    if folder is not None and file is not None:
        raise UsageError("--triggers: expected either --scan or --triggers, got both")
    if file is not None:
        return Found(triggers=_flagged_triggers(file)), seed, None
    if folder is None:
        return Found(), seed, None
    found, scanned = Found.in_folder(folder)
    if scanned.model.sha256 != classifier.sha256:
        raise DataError(f"--scan: expected a scan of this net, but {folder} is of another")
    return found, scanned.method.seed, scanned


def _flagged_triggers(file: Path) -> tuple[Trigger, ...]:
    if file.is_dir():
        raise UsageError(f"--triggers: expected a triggers.npz, got the folder {file}; pass the file, or --scan FOLDER")
    triggers = read_triggers(file, flagged_only=True)
    if not triggers:
        raise UsageError(
            f"--triggers: expected triggers of flagged labels, but the scan that wrote {file} flagged none"
        )
    return triggers


# which of the command's options each method takes, as its own settings
_OPTIONS: dict[str, tuple[str, ...]] = {
    "watch": (),
    "unlearn": ("learning_rate",),
    "fine-pruning": ("layers", "mode", "epochs", "learning_rate"),
    "clp": (),
    "anp": (),
    "rnp": (),
    "ft-sam": ("epochs", "learning_rate"),
    "i-bau": ("learning_rate",),
    "nad": ("epochs", "learning_rate"),
    "nc-filter": ("max_fpr",),
    "nc-prune": ("layers",),
    "nc-unlearn": ("teach", "epochs", "learning_rate"),
    "gangsweep": ("teach", "epochs", "learning_rate"),
    "retrain": ("epochs", "learning_rate"),
}
_FOR_METHODS = {
    "layers": "--layer",
    "mode": "--prune-only and --tune-only",
    "teach": "--teach",
    "epochs": "--epochs",
    "learning_rate": "--learning-rate",
}


def _method(options: dict[str, Any]) -> Method:
    if options["prune_only"] and options["tune_only"]:
        raise UsageError("--prune-only: expected either --prune-only or --tune-only, got both")
    mode = "prune" if options["prune_only"] else "tune" if options["tune_only"] else None
    renamed = {"mode": mode, "layers": tuple(options["layers"]) or None}
    given = {
        name: value
        for name, value in {**options, **renamed}.items()
        if name in (*_FOR_METHODS, "max_fpr") and value is not None
    }
    name = options["method"]
    takes = _OPTIONS[name]
    for option in given:
        if option in _FOR_METHODS and option not in takes:
            others = ", ".join(method for method, known in _OPTIONS.items() if option in known)
            raise UsageError(f"{_FOR_METHODS[option]}: expected with --method {others}, got --method {name}")
    kind: Any = next(kind for kind, own in METHODS.items() if own == name)
    settings = {option: value for option, value in given.items() if option in takes}
    if "max_accuracy_drop" in kind.__dataclass_fields__:
        settings["max_accuracy_drop"] = options["max_accuracy_drop"]
    method: Method = kind(**settings)
    return method


def _say(record: RepairRecord, *, asked: bool) -> None:
    print_table(repair_table(record))
    print_text(words.FIGURES.format(classes=record.model.classes))
    verdict = {True: "Accepted", False: "Not accepted", None: "Not judged"}[record.accepted]
    print_text(f"{verdict}: {'; '.join(record.reasons)}.")
    for row in record.tried:
        print_text(f"- tried {row.name}: {words.tried(row)}")
    for line in words.costs(record):
        print_text(line)
    if record.goodnet_file is not None:
        click.echo(f"GoodNet: {visible(record.goodnet_file)}")
        if record.accepted:
            click.echo(next_step(words.after_repair(record)))
    elif asked:
        print_text("No GoodNet was written; --keep-rejected writes it all the same.")
    else:
        print_text("No GoodNet was written; -o FILE says where it goes.")
