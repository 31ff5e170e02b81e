"""Is a document what Kubernetes takes: its own schemas where there are some, else the shape written
down here.

The schemas are strict: a field that Kubernetes would drop in silence is an error.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema.validators import Draft202012Validator
from referencing import Registry, Resource

OLDEST, NEWEST = "1.30", "1.37"
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
SELECTOR = {"type": "object", "required": ["matchLabels"]}


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": items}


TEXT, NUMBER = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}
ENDPOINT = _object("port", port=TEXT, path=TEXT, interval=TEXT)
TRIGGER = _object(
    "type",
    "metadata",
    type={"const": "prometheus"},
    metricType={"enum": ["Value", "AverageValue"]},
    metadata=_object(
        "serverAddress",
        "query",
        "threshold",
        serverAddress=TEXT,
        query=TEXT,
        threshold=TEXT,
        ignoreNullValues=TEXT,
    ),
    authenticationRef=_object("name", name=TEXT),
)
RULE = {
    "type": "object",
    "required": ["expr"],
    "oneOf": [{"required": ["alert"]}, {"required": ["record"]}],
    "properties": {"expr": TEXT, "for": TEXT, "labels": LABELS, "annotations": LABELS},
}
CUSTOM = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _object(
        "selector", "endpoints", selector=SELECTOR, endpoints=_list(ENDPOINT)
    ),
    ("monitoring.coreos.com/v1", "PodMonitor"): _object(
        "selector",
        "podMetricsEndpoints",
        selector=SELECTOR,
        podTargetLabels=_list(TEXT),
        podMetricsEndpoints=_list(ENDPOINT),
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _object(
        "groups",
        groups=_list(_object("name", "rules", name=TEXT, interval=TEXT, rules=_list(RULE))),
    ),
    ("keda.sh/v1alpha1", "ScaledObject"): _object(
        "scaleTargetRef",
        "triggers",
        scaleTargetRef=_object("name", apiVersion=TEXT, kind=TEXT, name=TEXT),
        minReplicaCount=NUMBER,
        maxReplicaCount=NUMBER,
        pollingInterval=NUMBER,
        advanced=_object(
            horizontalPodAutoscalerConfig=_object("behavior", behavior={"type": "object"})
        ),
        triggers=_list(TRIGGER),
    ),
}


def problems(document: dict[str, Any], version: str = NEWEST) -> list[str]:
    """What this version of Kubernetes would not take, with where it stands."""
    checker = _checker(document["apiVersion"], document["kind"], version)
    return [f"{error.json_path}: {error.message}" for error in checker.iter_errors(document)]


@cache
def _checker(api_version: str, kind: str, version: str) -> Draft202012Validator:
    if (api_version, kind) in CUSTOM:
        metadata = _object("name", name=TEXT, labels=LABELS, annotations=LABELS)
        spec = CUSTOM[api_version, kind]
        return Draft202012Validator(
            _object("metadata", "spec", apiVersion=TEXT, kind=TEXT, metadata=metadata, spec=spec)
        )
    group, _, number = api_version.rpartition("/")
    name = "-".join(filter(None, [kind.lower(), group.split(".")[0], number]))
    return Draft202012Validator(_schema(f"{name}.json", version), registry=_definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    return Resource.from_contents(_schema("_definitions.json", version)) @ Registry()


def _schema(name: str, version: str) -> Any:
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    return json.loads((folder / name).read_text(encoding="utf-8"))
