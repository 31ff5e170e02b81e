"""The chart renders, lints and is what Kubernetes takes, for every values file in its `ci` folder."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from shared.setting_models import ModelEntry
from tests.deploy.charts import CHART, POD_MAKERS, ROOT, VALUES, every_file, helm, name_of, release_of, render
from tests.deploy.kubernetes import CUSTOM, NEWEST, OLDEST, problems


def test_there_are_values_for_every_way_to_deploy() -> None:
    assert len(VALUES) >= 6
    kinds = {document["kind"] for file in VALUES for document in release_of(file).documents}
    assert kinds >= {kind for _, kind in CUSTOM} | {
        "Ingress",
        "HorizontalPodAutoscaler",
        "StatefulSet",
        "NetworkPolicy",
    }


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
    """Which the oldest Kubernetes that the chart names does not know."""
    volumes = document["spec"]["template"]["spec"]["volumes"] if document["kind"] in POD_MAKERS else []
    return any("image" in volume for volume in volumes)


@every_file
def test_no_two_documents_have_one_name(file: Path) -> None:
    names = [(document["kind"], name_of(document)) for document in release_of(file).documents]
    assert len(set(names)) == len(names)


def test_the_checks_find_what_is_wrong() -> None:
    document = release_of(VALUES[0]).one("Deployment", "-api")
    wrong = document | {"spec": document["spec"] | {"replicsa": 2}}
    assert "replicsa" in problems(wrong)[0]
    monitor = release_of(CHART / "ci" / "keda.yaml").one("ScaledObject", "-maths")
    assert problems(monitor | {"spec": monitor["spec"] | {"triggers": []}})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"worker": {}}, "worker"),
        ({"api": {"replicas": -1}}, "replicas"),
        ({"api": {"replica": 2}}, "replica"),
        ({"api": {"resources": {"requests": {"memory": "1 GB"}}}}, "memory"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"settings": {"port": 9000}}, "port"),
        ({"settings": {"drain_timeout_s": 0}}, "drain_timeout_s"),
        ({"api": {"settings": {"api_keys": "secret"}}}, "api_keys"),
        ({"workerPools": {"Sample": {}}}, "Sample"),
        ({"workerPools": {"sample": None}}, "workerPools"),
        ({"workerPools": {"sample": {"gpu": {"count": 2}}}}, "count"),
        ({"workerPools": {"sample": {"models": [{"id": "maths"}]}}}, "path"),
        ({"workerPools": {"sample": {"models": [{"id": "maths", "path": "echo", "runer": "echo"}]}}}, "runer"),
        ({"workerPools": {"sample": {"modelVolume": {"kind": "nfs"}}}}, "kind"),
        ({"workerPools": {"sample": {"modelVolume": {"kind": "pvc"}}}}, "existingClaim"),
        ({"workerPools": {"sample": {"modelVolume": {"kind": "image"}}}}, "modelVolume.image"),
        ({"workerPools": {"sample": {"modelVolume": {"kind": "copy", "image": "a"}}}}, "modelVolume.command"),
        ({"workerPools": {"sample": {"autoscaling": {"kind": "hpa"}}}}, "kind"),
        ({"workerPools": {"sample": {"autoscaling": {"minReplicas": 0}}}}, "minReplicas"),
        ({"workerPools": {"sample": {"autoscaling": {"kind": "external"}}}}, "needs the pool's models"),
        (
            {
                "workerPools": {
                    "sample": {
                        "models": [{"id": "maths", "path": "echo"}],
                        "autoscaling": {"kind": "external", "minReplicas": 9},
                    }
                }
            },
            "minReplicas is above maxReplicas",
        ),
        (
            {"workerPools": {"sample": {"models": [{"id": "maths", "path": "echo"}], "autoscaling": {"kind": "keda"}}}},
            "prometheus.address",
        ),
        ({"api": {"autoscaling": {"minReplicas": 11}}}, "minReplicas is above maxReplicas"),
        ({"defaultModel": "maths"}, "defaultModel"),
        ({"redis": {"enabled": False}}, "externalRedis"),
        ({"redis": {"maxmemory": "lots"}}, "maxmemory"),
        ({"externalRedis": {"url": "redis://:secret@redis:6379"}}, "url"),
        ({"ingress": {"enabled": True}}, "hosts"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm.HelmError) as refused:
        render(values)
    assert named in str(refused.value)


def test_the_schema_knows_what_a_model_may_have() -> None:
    with helm.Chart.load(CHART) as chart:
        schema = chart.schema
    assert schema is not None
    assert set(schema["definitions"]["model"]["properties"]) == set(ModelEntry.model_fields)


def test_every_value_has_a_place_in_the_schema_and_a_default() -> None:
    """All objects are closed, and every property of theirs that has properties is in values.yaml."""
    with helm.Chart.load(CHART) as chart:
        schema, values = chart.schema, chart.values
    assert schema is not None
    _same_keys(schema, values, schema["definitions"], "values")


def _same_keys(schema: Any, value: Any, definitions: dict[str, Any], where: str) -> None:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name in ("settings", "model"):
            return
        schema = definitions[name]
    if "properties" not in schema:
        return
    assert schema["additionalProperties"] is False, where
    assert set(schema["properties"]) - {"global"} >= set(value), where
    for key, inner in schema["properties"].items():
        if key in value and isinstance(value[key], dict):
            _same_keys(inner, value[key], definitions, f"{where}.{key}")


def test_what_a_pool_says_outranks_the_defaults_even_when_it_is_nothing() -> None:
    pool = {"replicas": 0, "podDisruptionBudget": {"enabled": False}, "gpu": {"count": 0}, "sharedMemory": ""}
    defaults = {"gpu": {"count": 1}, "sharedMemory": "1Gi"}
    made = render({"workerDefaults": defaults, "workerPools": {"sample": pool}})
    deployment = made.one("Deployment", "-worker-sample")
    assert deployment["spec"]["replicas"] == 0
    assert "nvidia.com/gpu" not in str(deployment)
    assert "shm" not in str(deployment)
    assert [budget["metadata"]["name"] for budget in made.of("PodDisruptionBudget")] == ["demo-aios-fleet-api"]


def test_a_change_of_one_pools_settings_starts_only_that_pool_again() -> None:
    def digests(settings: dict[str, Any]) -> dict[str, str]:
        made = render({"workerPools": {"a": {}, "b": {"settings": settings}}})
        return {
            name_of(document): document["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
            for document in made.of("Deployment")
        }

    before, after = digests({"max_batch_size": 8}), digests({"max_batch_size": 9})
    assert {name for name in before if before[name] != after[name]} == {"demo-aios-fleet-worker-b"}


def test_alerts_that_lie_in_the_chart_become_a_rule(tmp_path: Path) -> None:
    chart = Path(shutil.copytree(CHART, tmp_path / "aios-fleet"))
    alerts = tmp_path / "alerts.yaml"
    alerts.write_text(
        "groups:\n- name: ours\n  rules:\n"
        "  - {alert: Late, expr: 'up == 0', annotations: {summary: '{{ $labels.job }} is gone'}}\n"
    )
    (chart / "files" / "alerts.yaml").unlink(missing_ok=True)
    wanted = {"monitoring": {"rules": {"enabled": True}}}
    with pytest.raises(helm.HelmError, match=r"monitoring\.rules: no"):
        render(wanted, chart)
    (chart / "files" / "alerts.yaml").symlink_to(alerts)
    (rule,) = render(wanted, chart).of("PrometheusRule")
    assert problems(rule) == []
    assert rule["spec"]["groups"][0]["rules"][0]["annotations"] == {"summary": "{{ $labels.job }} is gone"}


@every_file
def test_the_notes_name_what_is_there(file: Path) -> None:
    made = release_of(file)
    names = {name_of(document) for document in made.documents}
    assert made.one("Service", "-api")["metadata"]["name"] in made.notes
    for word in made.notes.replace(" service/", " deployment/").split():
        if word.startswith("deployment/"):
            assert word.removeprefix("deployment/") in names


def test_the_charts_version_is_the_projects() -> None:
    with helm.Chart.load(CHART) as chart:
        version = chart.metadata["appVersion"]
    assert f'\nversion = "{version}"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_nothing_is_rendered_for_a_pool_that_is_off() -> None:
    assert "spare" not in str(release_of(CHART / "ci" / "keda.yaml").documents)
