"""Versions of a registered model of MLflow's, downloaded as they are. The only import of mlflow.

Nothing of MLflow's that would load a model is called: it would unpickle, and import code that came with the model.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from goodnet.errors import ModelError, UsageError
from goodnet.fleet.nets import is_one_net, nets_in

SCHEME = "mlflow:"


class Registry:
    """What `mlflow:MODEL` or `mlflow:MODEL/VERSION` names.

    Attributes:
        versions: of the model, in their order.

    Raises:
        UsageError: mlflow is not installed, nothing says where the registry is, or it does not give the model.
    """

    def __init__(self, address: str):
        self.model, slash, version = address.removeprefix(SCHEME).partition("/")
        if not self.model or (slash and not version.isdecimal()) or "/" in version:
            raise UsageError(f"{address}: expected {SCHEME}MODEL or {SCHEME}MODEL/VERSION, a version as a number")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # which would be in the way of ours
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise UsageError(f"{address}: needs mlflow; pip install 'goodnet[mlflow]'") from error
        if not os.environ.get("MLFLOW_TRACKING_URI"):  # MLflow would make a database in the current folder
            raise UsageError(
                f"{address}: nothing says where the registry is; set MLFLOW_TRACKING_URI, as http://host:5000 or "
                "sqlite:///mlflow.db"
            )
        self._client: Any = MlflowClient()
        try:
            found = self._versions(version)
        except MlflowException as error:
            text = " ".join(str(error).split())[:300]
            raise UsageError(
                f"{address}: MLflow does not give it ({text}); check it and MLFLOW_TRACKING_URI"
            ) from error
        if not found:
            raise UsageError(f"{address}: the registry has no version of it; register one, or name another model")
        self.versions = found

    def _versions(self, version: str) -> list[str]:
        if version:
            return [str(self._client.get_model_version(self.model, version).version)]
        self._client.get_registered_model(self.model)  # which says so where there is none
        quote = '"' if "'" in self.model else "'"
        found: list[str] = []
        token = None
        while True:
            page = self._client.search_model_versions(f"name={quote}{self.model}{quote}", page_token=token)
            found += [str(one.version) for one in page]
            token = page.token
            if not token:
                return sorted(found, key=int)

    def uri(self, version: str) -> str:
        return f"models:/{self.model}/{version}"

    def fetch(self, version: str, folder: Path) -> Path:
        """Downloads a version's artifacts into `folder`, a new one, and gives the only net among them.

        Raises:
            ModelError: it cannot be downloaded, or holds no net or several.
        """
        from mlflow.artifacts import download_artifacts

        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            got = Path(download_artifacts(self.uri(version), dst_path=str(folder)))
        except Exception as error:  # of many stores, each with errors of its own
            text = " ".join(str(error).split())[:300]
            raise ModelError(f"{self.uri(version)}: could not be downloaded ({text})") from error
        if not got.resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{self.uri(version)}: its artifacts are not a copy of our own; refused")
        return only_net(got, self.uri(version))


def only_net(artifacts: Path, what: str) -> Path:
    """The one net among what a registry gave for `what`. Raises ModelError where there is none, or more."""
    if artifacts.is_file() or is_one_net(artifacts):
        return artifacts
    found, _ = nets_in(artifacts)
    if len(found) != 1:
        names = ", ".join(path.relative_to(artifacts).as_posix() for path in found[:5]) or "none"
        raise ModelError(f"{what}: expected one net among the artifacts, got {names}")
    return found[0]
