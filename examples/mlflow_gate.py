"""Vets a model version of an MLflow registry: scans it, logs record, report and figures, and tags the version.

    pip install goodnet mlflow-skinny
    MLFLOW_TRACKING_URI=http://127.0.0.1:5000 python mlflow_gate.py models:/faces/3 --clean clean.npz

The file goes to goodnet as it lies in the registry. MLflow's own load_model would unpickle it first, which runs what is
in it; nothing of that kind is called. Exit codes are those of `goodnet scan`: 0 clean, 1 suspect, 2 inconclusive, 3 for
what is refused, or wrong.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

import mlflow
from mlflow import MlflowClient

import goodnet
from goodnet.errors import GoodnetError, ModelError, UsageError

ENDINGS = (".pt", ".pth", ".safetensors", ".onnx", ".h5", ".keras", ".pt2")
CODES = {"clean": 0, "suspect": 1, "inconclusive": 2}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="models:/NAME/VERSION")
    parser.add_argument("--clean", required=True, type=Path, help="clean images of the model's task")
    parser.add_argument("--file", help="of the version's files, which one is the net; needed where there are several")
    parser.add_argument("--arch", help="architecture, where the file holds weights alone")
    parser.add_argument("--experiment", default="goodnet", help="where runs go (default: goodnet)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        return vet(given)
    except GoodnetError as error:
        print(f"goodnet: {error}", file=sys.stderr)
        return 3


def vet(given: argparse.Namespace) -> int:
    named = re.fullmatch(r"models:/([^/]+)/(\d+)", given.model)
    if named is None:
        raise UsageError(f"expected models:/NAME/VERSION, got {given.model!r}")
    name, version = named.groups()
    client = MlflowClient()
    mlflow.set_experiment(given.experiment)
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_name=f"{name} {version}") as run:
        tags = {"goodnet.run_id": run.info.run_id}
        path = fetched(client, name, version, given.file, Path(folder) / "model")
        try:
            net = goodnet.load(path, arch=given.arch)
        except UsageError:  # --arch
            raise
        except ModelError:
            tag(client, name, version, tags | {"goodnet.verdict": "refused"})
            raise
        out = Path(folder) / "scan"
        record = goodnet.scan(net, given.clean, seed=given.seed, out=out)
        goodnet.report(out)
        mlflow.log_artifacts(str(out))
        values = [label.p_value for label in record.labels if label.p_value is not None]
        mlflow.log_metrics(
            {"labels": len(record.labels), "flagged_labels": len(record.flagged_labels), "seconds": record.seconds}
            | ({"smallest_p_value": min(values)} if values else {})
        )
        tags |= {
            "goodnet.verdict": record.verdict,
            "goodnet.flagged_labels": ",".join(map(str, record.flagged_labels)),
            "goodnet.model_sha256": record.model.sha256,
            "goodnet.version": record.environment.goodnet,
        }
        tag(client, name, version, tags)
        print(f"{given.model}: {record.verdict}", *(f"label {label}" for label in record.flagged_labels))
        return CODES[record.verdict]


def fetched(client: MlflowClient, name: str, version: str, file: str | None, folder: Path) -> Path:
    """Downloads the version's files; the path of the one that is the net."""
    source = client.get_model_version_download_uri(name, version)
    folder.mkdir()
    got = Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(folder)))
    files = [got] if got.is_file() else sorted(path for path in got.rglob("*") if path.is_file())
    if file is not None:
        found = [path for path in files if path.relative_to(folder).as_posix().endswith(file)]
    else:
        found = [path for path in files if path.suffix in ENDINGS]
    if len(found) != 1:
        there = ", ".join(path.relative_to(folder).as_posix() for path in files)
        raise UsageError(f"expected one file that is a net, or --file to name it; the version has {there or 'none'}")
    return found[0]


def tag(client: MlflowClient, name: str, version: str, tags: dict[str, str]) -> None:
    """On the run and on the version."""
    mlflow.set_tags(tags)
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)


if __name__ == "__main__":
    sys.exit(main())
