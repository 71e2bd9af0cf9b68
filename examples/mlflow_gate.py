"""Gates a model version of an MLflow registry: scans its file, logs what was found to a run, tags the version.

    pip install goodnet mlflow-skinny
    export MLFLOW_TRACKING_URI=http://127.0.0.1:5000
    python examples/mlflow_gate.py models:/NAME/VERSION --clean clean.npz

Exit codes are those of `goodnet scan`: 0 clean, 1 suspect, 2 inconclusive or not finished, 3 wrong or unsafe input.

Nothing of the model runs. `mlflow.pytorch.load_model` and its like would run it: they unpickle, and import code that
came with the model. This calls none of them. It downloads the version's artifacts as they are and hands one file to
goodnet, which reads it as data, in a process of its own. Whatever else the version holds (code, pickles, an environment
to install) was not looked at; the tag `goodnet.model_sha256` says which file the verdict is about.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Metric, Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

import goodnet
from goodnet.data.images import Images
from goodnet.data.readers import read_images
from goodnet.errors import GoodnetError, ModelError, UsageError
from goodnet.fleet.registry import only_net
from goodnet.record import ScanRecord

CODES = {"clean": 0, "suspect": 1, "inconclusive": 2}
NOT_FINISHED, WRONG_INPUT = 2, 3
NOT_SCANNED = "not-scanned"
PER_LABEL = ("p_value", "mask_norm", "norm_ratio", "margin", "held_out_asr")
AT_ONCE = 1000  # metrics that MLflow takes in one call


def main(given: Sequence[str] | None = None) -> int:
    """Never 0 or 1 but as a verdict: a traceback of Python's own would exit with 1."""
    try:
        options = arguments(given)
        client = MlflowClient()
        version = looked_up(client, options.model)
        clean = read_images(options.clean)
        return gate(client, version, clean, options)
    except SystemExit as done:  # argparse: after --help with 0, of a mistake with 2
        return WRONG_INPUT if done.code else 0
    except GoodnetError as error:
        print(f"mlflow_gate: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("mlflow_gate: interrupted; the version stays without a verdict", file=sys.stderr)
    except Exception:
        traceback.print_exc()
    return NOT_FINISHED


def gate(client: MlflowClient, version: ModelVersion, clean: Images, options: argparse.Namespace) -> int:
    """Scans the version in a run of its own. Its verdict is the last thing that is written, once all else is."""
    for name in (name for name in version.tags if name.startswith("goodnet.")):  # of an earlier scan
        client.delete_model_version_tag(version.name, version.version, name)
    run = new_run(client, version, options.experiment)
    tag(client, version, verdict=NOT_SCANNED, run_id=run)
    status = "FAILED"
    try:
        with TemporaryDirectory() as folder:
            artifacts, out = Path(folder, "artifacts"), Path(folder, "scan")
            artifacts.mkdir()
            file = net_file(Path(download_artifacts(version_uri(version), dst_path=str(artifacts))), options.file)
            how = {name: getattr(options, name) for name in ("arch", "input_range", "mean", "std")}
            net = goodnet.load(file, **how)
            record = goodnet.scan(net, clean, seed=options.seed, out=out)
            goodnet.report(out)
            log(client, run, record, out)
            record_sha256 = hashlib.sha256((out / "scan.json").read_bytes()).hexdigest()
        labels = ",".join(map(str, record.flagged_labels))
        tag(client, version, flagged_labels=labels, record_sha256=record_sha256, model_sha256=record.model.sha256)
        tag(client, version, verdict=record.verdict)
        status = "FINISHED"
    finally:
        client.set_terminated(run, status)
    print(f"{version_uri(version)}: {record.verdict}, labels {list(record.flagged_labels)}, run {run}")
    return CODES[record.verdict]


def looked_up(client: MlflowClient, uri: str) -> ModelVersion:
    """The version that `models:/NAME/VERSION` names."""
    name, _, number = uri.removeprefix("models:/").rpartition("/")
    if not (uri.startswith("models:/") and name and number.isdecimal()):
        raise UsageError(f"model: expected models:/NAME/VERSION, got {uri}")
    try:
        return client.get_model_version(name, number)
    except MlflowException as error:
        raise UsageError(f"model: MLflow does not give {uri} ({error}); check it and MLFLOW_TRACKING_URI") from error


def version_uri(version: ModelVersion) -> str:
    return f"models:/{version.name}/{version.version}"


def net_file(artifacts: Path, named: str | None) -> Path:
    """The file to scan: the one that was named, or the only net there."""
    if named is not None:
        return artifacts / named
    try:
        return only_net(artifacts, "model")
    except ModelError as error:
        raise UsageError(f"{error}; say which with --file") from error


def new_run(client: MlflowClient, version: ModelVersion, experiment: str) -> str:
    """A run's id; the experiment is made where there is none of that name."""
    found = client.get_experiment_by_name(experiment)
    number = client.create_experiment(experiment) if found is None else found.experiment_id
    return str(client.create_run(number, run_name=f"{version.name} {version.version}").info.run_id)


def tag(client: MlflowClient, version: ModelVersion, **values: str) -> None:
    for name, value in values.items():
        client.set_model_version_tag(version.name, version.version, f"goodnet.{name}", value)


def log(client: MlflowClient, run: str, record: ScanRecord, out: Path) -> None:
    """Record, report and triggers as artifacts; figures of the whole scan, and of each label, its number as step."""
    client.log_artifacts(run, str(out))
    about = {
        "model_sha256": record.model.sha256,
        "data_sha256": record.data.sha256,
        "seed": record.method.seed,
        "goodnet": record.environment.goodnet,
        "torch": record.environment.torch,
    }
    client.log_batch(run, params=[Param(name, str(value)) for name, value in about.items()])
    p_values = [row.p_value for row in record.labels if row.p_value is not None]
    whole = {
        "labels": len(record.labels),
        "flagged": len(record.flagged_labels),
        "smallest_p_value": min(p_values, default=None),
        "seconds": record.seconds,
        "forward_passes": record.forward_passes,
    }
    figures = [(name, 0, value) for name, value in whole.items()]
    figures += [(f"label.{name}", row.label, getattr(row, name)) for name in PER_LABEL for row in record.labels]
    now = int(time.time() * 1000)
    # what does not exist is not logged: zero would be a figure
    metrics = [Metric(name, float(value), now, step) for name, step, value in figures if value is not None]
    for start in range(0, len(metrics), AT_ONCE):
        client.log_batch(run, metrics=metrics[start : start + AT_ONCE])


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Scan a registered model version, log the scan, tag the version.")
    parser.add_argument("model", help="models:/NAME/VERSION")
    parser.add_argument("--clean", type=Path, required=True, help="HDF5, folder or npz of clean images")
    parser.add_argument("--file", help="the net's file, or folder, among the artifacts; default: the only one there")
    parser.add_argument("--arch", help="as of `goodnet scan`, and so are the next three")
    parser.add_argument("--input-range", default="0..1")
    parser.add_argument("--mean", type=numbers, default=())
    parser.add_argument("--std", type=numbers, default=())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--experiment", default="goodnet", help="where runs go; default: %(default)s")
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())
