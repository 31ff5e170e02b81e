"""The chart renders, lints and makes what Kubernetes takes, for every values file in its `ci`
folder."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fixtures.deploy.charts import (
    CHART,
    POD_MAKERS,
    ROOT,
    VALUES,
    every_file,
    helm,
    name_of,
    names_of,
    release_of,
    render,
)
from tests.fixtures.deploy.kubernetes import CUSTOM, NEWEST, OLDEST, problems


def test_there_are_values_for_every_way_to_deploy() -> None:
    assert len(VALUES) >= 6

    kinds = set()
    for file in VALUES:
        for document in release_of(file).documents:
            kinds.add(document["kind"])

    assert {"Ingress", "HorizontalPodAutoscaler", "StatefulSet", "NetworkPolicy"} <= kinds
    for _, kind in CUSTOM:
        assert kind in kinds


@every_file
def test_lint_has_nothing_to_say(file: Path) -> None:
    values = release_of(file).values
    report = helm.lint(CHART, values, strict=True, kube_version=f"v{OLDEST}.0")
    severe = [message for message in report["messages"] if message["severity"] > 1]
    assert (severe, report["errors"]) == ([], [])


@every_file
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_takes_every_document(file: Path, version: str) -> None:
    for document in release_of(file).documents:
        if version != OLDEST or not _has_image_volume(document):
            assert problems(document, version) == [], name_of(document)


def _has_image_volume(document: dict[str, Any]) -> bool:
    """Return whether the Pods mount an image, which the oldest Kubernetes does not know."""
    if document["kind"] not in POD_MAKERS:
        return False
    for volume in document["spec"]["template"]["spec"]["volumes"]:
        if "image" in volume:
            return True
    return False


@every_file
def test_no_two_documents_have_one_name(file: Path) -> None:
    names = set()
    for document in release_of(file).documents:
        name = (document["kind"], name_of(document))
        assert name not in names
        names.add(name)


def test_the_checks_find_what_is_wrong() -> None:
    document = release_of(VALUES[0]).one("Deployment", "-api")
    wrong = document | {"spec": document["spec"] | {"replicsa": 2}}
    assert "replicsa" in problems(wrong)[0]
    monitor = release_of(CHART / "ci" / "keda.yaml").one("ScaledObject", "-maths")
    assert problems(monitor | {"spec": monitor["spec"] | {"triggers": []}})


def test_what_a_pool_says_outranks_the_defaults_even_when_it_is_nothing() -> None:
    pool = {
        "replicas": 0,
        "podDisruptionBudget": {"enabled": False},
        "gpu": {"count": 0},
        "sharedMemory": "",
    }
    defaults = {"gpu": {"count": 1}, "sharedMemory": "1Gi"}

    release = render({"workerDefaults": defaults, "workerPools": {"sample": pool}})

    deployment = release.one("Deployment", "-worker-sample")
    assert deployment["spec"]["replicas"] == 0
    assert "nvidia.com/gpu" not in str(deployment)
    assert "shm" not in str(deployment)
    (budget,) = release.of("PodDisruptionBudget")
    assert name_of(budget) == "demo-aios-fleet-api"


def test_a_change_of_one_pools_settings_starts_only_that_pool_again() -> None:
    before = config_digests({"max_batch_size": 8})
    after = config_digests({"max_batch_size": 9})

    assert before.keys() == after.keys()
    changed = [name for name in before if before[name] != after[name]]
    assert changed == ["demo-aios-fleet-worker-b"]


def config_digests(settings: dict[str, Any]) -> dict[str, str]:
    """Return the digest by which each Deployment starts its Pods again, of pools `a` and `b`."""
    release = render({"workerPools": {"a": {}, "b": {"settings": settings}}})
    digests = {}
    for deployment in release.of("Deployment"):
        annotations = deployment["spec"]["template"]["metadata"]["annotations"]
        digests[name_of(deployment)] = annotations["checksum/config"]
    return digests


def test_alerts_that_lie_in_the_chart_become_a_rule(tmp_path: Path) -> None:
    chart = Path(shutil.copytree(CHART, tmp_path / "aios-fleet"))
    alerts = tmp_path / "alerts.yaml"
    alerts.write_text(
        "groups:\n- name: ours\n  rules:\n"
        "  - {alert: Late, expr: 'up == 0', annotations: {summary: '{{ $labels.job }} is gone'}}\n"
    )
    (chart / "files" / "alerts.yaml").unlink(missing_ok=True)
    values = {"monitoring": {"rules": {"enabled": True}}}
    with pytest.raises(helm.HelmError, match=r"monitoring\.rules: no"):
        render(values, chart)

    (chart / "files" / "alerts.yaml").symlink_to(alerts)
    (rule,) = render(values, chart).of("PrometheusRule")

    assert problems(rule) == []
    assert rule["spec"]["groups"][0]["rules"][0]["annotations"] == {
        "summary": "{{ $labels.job }} is gone"
    }


@every_file
def test_the_notes_name_what_is_there(file: Path) -> None:
    release = release_of(file)
    names = names_of(release.documents)

    assert name_of(release.one("Service", "-api")) in release.notes
    for word in release.notes.replace(" service/", " deployment/").split():
        if word.startswith("deployment/"):
            assert word.removeprefix("deployment/") in names


def test_the_pages_example_is_the_fleet_it_speaks_of() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    example, *_ = [block for block in blocks if "workerPools" in block]

    release = render(yaml.safe_load(example), name="aios-fleet")

    names = set()
    for document in release.documents:
        names.add(f"{document['kind'].lower()}/{name_of(document)}")
    mentioned = set(re.findall(r"(?:deployment|service)/[a-z-]+", page))
    assert len(mentioned) >= 3
    assert mentioned <= names


@pytest.mark.parametrize(
    ("resource", "keys"),
    [
        ("nvidia.com/gpu", ["nvidia.com/gpu"]),
        ("nvidia.com/mig-1g.10gb", ["nvidia.com/mig-1g.10gb", "nvidia.com/gpu"]),
        ("amd.com/gpu", ["amd.com/gpu"]),
    ],
)
def test_a_pool_with_a_gpu_tolerates_the_taints_of_its_nodes(
    resource: str, keys: list[str]
) -> None:
    release = render({"workerPools": {"sample": {"gpu": {"count": 1, "resource": resource}}}})

    pod = release.one("Deployment", "-sample")["spec"]["template"]["spec"]
    assert [toleration["key"] for toleration in pod["tolerations"]] == keys
    assert pod["containers"][0]["resources"]["limits"][resource] == 1


def test_the_charts_version_is_the_projects() -> None:
    with helm.Chart.load(CHART) as chart:
        version = chart.metadata["appVersion"]
    assert f'\nversion = "{version}"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_nothing_is_rendered_for_a_pool_that_is_off() -> None:
    assert "spare" not in str(release_of(CHART / "ci" / "keda.yaml").documents)


def test_a_pool_may_start_from_nothing() -> None:
    """KEDA starts a worker when work waits, and fronts let work wait until it is there."""
    release = release_of(CHART / "ci" / "from-zero.yaml")

    scaled = release.one("ScaledObject", "-nightly")["spec"]
    assert scaled["minReplicaCount"] == 0
    assert "aios_queue_work_seconds" in scaled["triggers"][0]["metadata"]["query"]

    front = yaml.safe_load(release.one("ConfigMap", "-config")["data"]["api.yaml"])
    assert front["serve"]["hrm"]["absent_grace_s"] == 2_592_000
