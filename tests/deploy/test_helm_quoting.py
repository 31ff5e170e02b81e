"""Names stay texts in the chart's documents, even 123, true, null and others that YAML would read
as something else."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures.deploy.charts import CHART, helm, release_of, render

NAME = "a-name"
RELEASE = "a-release"
VALUES: dict[str, Any] = {
    "fullnameOverride": NAME,
    "nameOverride": NAME,
    "image": {"tag": NAME, "pullSecrets": [NAME]},
    "auth": {"existingSecret": NAME, "apiKeysKey": NAME, "adminKeysKey": NAME},
    "serviceAccount": {"create": True, "name": NAME, "annotations": {"a": NAME}},
    "api": {
        "priorityClassName": NAME,
        "nodeSelector": {"a": NAME},
        "podAnnotations": {"a": NAME},
        "service": {"annotations": {"a": NAME}},
        "extraEnv": [{"name": "A", "value": NAME}],
    },
    "workerPools": {
        NAME: {
            "models": [
                {
                    "id": NAME,
                    "path": NAME,
                    "tokenizer_path": NAME,
                    "condition": NAME,
                    "chat_template": NAME,
                }
            ],
            "priorityClassName": NAME,
            "runtimeClassName": NAME,
            "modelVolume": {"kind": "pvc", "existingClaim": NAME, "subPath": NAME},
            "autoscaling": {"kind": "keda"},
        },
        "external": {
            "models": [{"id": NAME, "path": NAME}],
            "modelVolume": {"kind": "copy", "image": NAME, "command": [NAME]},
            "autoscaling": {"kind": "external"},
        },
        "image": {
            "models": [{"id": NAME, "path": NAME}],
            "modelVolume": {"kind": "image", "image": NAME},
        },
    },
    "redis": {
        "image": NAME,
        "auth": {"existingSecret": NAME, "passwordKey": NAME},
        "persistence": {"storageClassName": NAME},
        "priorityClassName": NAME,
    },
    "ingress": {
        "enabled": True,
        "className": NAME,
        "hosts": [NAME],
        "tls": [{"secretName": NAME, "hosts": [NAME]}],
        "annotations": {"a": NAME},
    },
    "prometheus": {"address": "http://p", "authenticationRef": NAME, "queryLabels": {"a": NAME}},
    "monitoring": {"enabled": True, "labels": {"a": NAME}, "rules": {"enabled": True}},
}


def named(value: Any, name: str) -> Any:
    """Return the values with this name in place of NAME, in keys too."""
    if isinstance(value, dict):
        renamed = {}
        for key, inner in value.items():
            renamed[named(key, name)] = named(inner, name)
        return renamed
    if isinstance(value, list):
        return [named(inner, name) for inner in value]
    if value == NAME:
        return name
    return value


def not_texts(value: Any) -> Iterator[str]:
    """Yield everything in a document that is not a text, keys too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from not_texts(key)
            yield from not_texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from not_texts(inner)
    elif not isinstance(value, str):
        yield repr(value)


def count_not_texts(values: Any, release: str) -> Counter[str]:
    """Render the chart with these values, and count what is not a text in its documents."""
    count: Counter[str] = Counter()
    for document in render(values, name=release).documents:
        count.update(not_texts(document))
    return count


@pytest.mark.parametrize("name", ["true", "null", "on", "y"])
def test_a_word_stays_a_text(name: str) -> None:
    """Every name may be such a word, a pool's too."""
    count = count_not_texts(named(VALUES, name), RELEASE)
    assert count == count_not_texts(VALUES, RELEASE)


@pytest.mark.parametrize("name", ["123", "0x1f", "1e3", "1.5"])
def test_a_number_stays_a_text(name: str) -> None:
    values = named(VALUES, name)
    # A pool's name begins with a letter.
    values["workerPools"]["pool"] = values["workerPools"].pop(name)
    if "." in name:
        del values["nameOverride"], values["fullnameOverride"]

    count = count_not_texts(values, release=name.replace(".", ""))

    assert count == count_not_texts(VALUES, RELEASE)


def test_a_label_of_a_query_may_hold_quotes() -> None:
    """The label is quoted by PromQL's rules, and the query by YAML's."""
    values = {**release_of(CHART / "ci" / "keda.yaml").values}
    values["prometheus"] = {**values["prometheus"], "queryLabels": {"site": 'it\'s "so" \\ far'}}
    (scaled, *_) = render(values).of("ScaledObject")
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    assert r'site="it' + "'" + r's \"so\" \\ far"' in query


def test_a_name_that_the_schema_refuses_is_refused() -> None:
    with pytest.raises(helm.HelmError):
        render({"auth": {"existingSecret": "a: b"}})
