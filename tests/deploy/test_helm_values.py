"""Values that make no sense are refused by the schema or by a template, which names the wrong
one."""

from typing import Any

import pytest

from shared.settings.models import ModelEntry
from tests.fixtures.deploy.charts import CHART, helm, render


def _from_zero(kind: str) -> dict[str, Any]:
    scaling = {"kind": kind, "minReplicas": 0}
    pool = {"models": [{"id": "maths", "path": "echo"}], "autoscaling": scaling}
    return {"workerPools": {"sample": pool}, "prometheus": {"address": "http://prometheus:9090"}}


def _with_options(options: dict[str, Any]) -> dict[str, Any]:
    model = {"id": "brain", "path": "/models/brain", "runner": "hrm-act", "options": options}
    return {"workerPools": {"sample": {"models": [model]}}}


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
        (
            {
                "workerPools": {
                    "sample": {"models": [{"id": "maths", "path": "echo", "runer": "echo"}]}
                }
            },
            "runer",
        ),
        (_with_options({"segments": "fast"}), "segments"),
        (_with_options({"segmens": "max"}), "segmens"),
        ({"settings": {"options": ["segments=max"]}}, "options"),
        ({"workerPools": {"sample": {"modelVolume": {"kind": "nfs"}}}}, "kind"),
        ({"workerPools": {"sample": {"modelVolume": {"kind": "pvc"}}}}, "existingClaim"),
        ({"workerPools": {"sample": {"modelVolume": {"kind": "image"}}}}, "modelVolume.image"),
        (
            {"workerPools": {"sample": {"modelVolume": {"kind": "copy", "image": "a"}}}},
            "modelVolume.command",
        ),
        ({"workerPools": {"sample": {"autoscaling": {"kind": "hpa"}}}}, "kind"),
        ({"workerPools": {"sample": {"autoscaling": {"minReplicas": -1}}}}, "minReplicas"),
        (_from_zero("external"), "minReplicas 0 needs kind keda"),
        (_from_zero("keda"), "minReplicas 0 needs api.settings.absent_grace_s"),
        (
            _from_zero("keda") | {"settings": {"absent_grace_s": 60}},
            "minReplicas 0 needs api.settings.absent_grace_s",
        ),
        (
            {"workerPools": {"sample": {"autoscaling": {"kind": "external"}}}},
            "needs the pool's models",
        ),
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
            {
                "workerPools": {
                    "sample": {
                        "models": [{"id": "maths", "path": "echo"}],
                        "autoscaling": {"kind": "keda"},
                    }
                }
            },
            "prometheus.address",
        ),
        ({"api": {"autoscaling": {"minReplicas": 11}}}, "minReplicas is above maxReplicas"),
        ({"defaultModel": "maths"}, "defaultModel"),
        ({"redis": {"enabled": False}}, "externalRedis"),
        ({"redis": {"maxmemory": "lots"}}, "maxmemory"),
        ({"externalRedis": {"url": "redis://:secret@redis:6379"}}, "url"),
        ({"ingress": {"enabled": True}}, "hosts"),
        (
            {
                "ingress": {"enabled": True, "hosts": ["a.example"]},
                "api": {"settings": {"keep_alive_s": 60}},
            },
            "keep_alive_s",
        ),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm.HelmError) as refused:
        render(values)
    assert named in str(refused.value)


def test_options_of_a_model_reach_its_workers() -> None:
    release = render(_with_options({"segments": "q_halt"}))
    assert "segments: q_halt" in str(release.documents)


def test_the_schema_knows_what_a_model_may_have() -> None:
    with helm.Chart.load(CHART) as chart:
        schema = chart.schema
    assert schema is not None
    assert set(schema["definitions"]["model"]["properties"]) == set(ModelEntry.model_fields)


def test_every_value_has_a_place_in_the_schema_and_a_default() -> None:
    """All objects of the schema are closed, and values.yaml has every property that is an object
    itself."""
    with helm.Chart.load(CHART) as chart:
        schema = chart.schema
        values = chart.values
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
