"""The chart rendered by Helm itself, as a library, and what may be asked of the documents it
makes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

helm = pytest.importorskip(
    "helm_python", reason="Helm as a library is not installed"
)  # it has wheels for Linux on x86

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "aios-fleet"
VALUES = sorted((CHART / "ci").glob("*.yaml"))
POD_MAKERS = ("Deployment", "StatefulSet")
ROLES = ("api", "worker", "jobs")
EXTERNAL = {"existingSecret", "existingClaim", "pullSecrets", "extraVolumes"}
"""Keys of values under which somebody else's objects are named."""

Document = dict[str, Any]

every_file = pytest.mark.parametrize("file", VALUES, ids=[file.stem for file in VALUES])
"""A test of each values file in the chart."""


@dataclass(frozen=True)
class Release:
    """What one set of values makes of the chart; `values` are merged with the chart's own."""

    values: Document
    documents: tuple[Document, ...]
    notes: str

    def of(self, *kinds: str) -> list[Document]:
        return [document for document in self.documents if document["kind"] in kinds]

    def one(self, kind: str, name: str) -> Document:
        """The only document of this kind whose name ends so."""
        (found,) = [document for document in self.of(kind) if name_of(document).endswith(name)]
        return found

    def pods(self) -> Iterator[tuple[str, Document]]:
        """Name and `spec` of every Pod that the release makes, its test's too."""
        for document in self.of(*POD_MAKERS):
            yield name_of(document), document["spec"]["template"]["spec"]
        for document in self.of("Pod"):
            yield name_of(document), document["spec"]

    def config(self, pod: Document) -> str:
        """The file that the Pod has for its AIOS_CONFIG."""
        (volume,) = [volume["configMap"] for volume in pod["volumes"] if volume["name"] == "config"]
        (item,) = volume["items"]
        assert item["path"] == "config.yaml"
        (data,) = [made["data"] for made in self.of("ConfigMap") if name_of(made) == volume["name"]]
        return str(data[item["key"]])


def render(values: Document, chart: Path = CHART, name: str = "demo") -> Release:
    """Raises helm.HelmError for values that the schema or a template refuses."""
    with helm.Chart.load(chart) as loaded:
        merged = loaded.merge_values(values)
        files = loaded.render(values, name=name, namespace="ns")
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    documents = tuple(
        document for text in texts for document in yaml.safe_load_all(text) if document
    )
    (notes,) = [text for name, text in files.items() if name.endswith("NOTES.txt")]
    return Release(merged, documents, notes)


@cache
def release_of(file: Path) -> Release:
    return render(yaml.safe_load(file.read_text(encoding="utf-8")))


def texts_at(value: Any, keys: set[str], is_inside: bool = False) -> Iterator[str]:
    """All texts that lie somewhere under one of `keys`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from texts_at(inner, keys, is_inside or key in keys)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_at(inner, keys, is_inside)
    elif is_inside and isinstance(value, str):
        yield value


def name_of(document: Document) -> str:
    return str(document["metadata"]["name"])


def role_containers(release: Release) -> Iterator[tuple[Document, Document]]:
    """Pod and container of each role of ours."""
    for _, pod in release.pods():
        yield from (
            (pod, container) for container in pod["containers"] if container["name"] in ROLES
        )


def plain_env(container: Document) -> dict[str, str]:
    """The variables, with a stand-in for what a Secret holds."""
    stand_ins = {
        "AIOS_REDIS_URL": "redis://secret:6379/0",
        "AIOS_API_KEYS": "ops:secret",
        "AIOS_ADMIN_KEYS": "secret",
    }
    return {
        item["name"]: item.get("value", stand_ins.get(item["name"], "secret"))
        for item in container["env"]
    }
