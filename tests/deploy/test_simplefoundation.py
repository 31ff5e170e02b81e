"""The plain manifests keep SimpleFoundation's names, and have requests, probes and as few rights as
the chart's Pods."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.cli.aios import main
from scripts.cli.serve import fleet_roles
from shared.settings.settings import FINISH_S, resolve
from tests.fixtures.deploy.kubernetes import NEWEST, OLDEST, one_named, problems

FOLDER = Path(__file__).parents[2] / "deploy" / "examples" / "simplefoundation"
DEPLOYMENT = yaml.safe_load((FOLDER / "deployment.yaml").read_text())
SERVICE = yaml.safe_load((FOLDER / "service.yaml").read_text())
POD: dict[str, Any] = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_takes_them(version: str) -> None:
    assert problems(DEPLOYMENT, version) == []
    assert problems(SERVICE, version) == []


def test_the_deployment_has_the_names_it_is_known_by() -> None:
    assert DEPLOYMENT["metadata"]["name"] == "simplefoundation"
    assert DEPLOYMENT["spec"]["replicas"] == 1

    assert CONTAINER["name"] == "model-server"
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == 8000
    assert CONTAINER["env"] == [{"name": "MODEL_PATH", "value": "/app/model"}]

    volume = one_named(POD["volumes"], "model-volume")
    assert volume["persistentVolumeClaim"]["claimName"] == "model-pvc"
    mount = one_named(CONTAINER["volumeMounts"], "model-volume")
    assert mount["mountPath"] == "/app/model"

    assert CONTAINER["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_the_service_has_its_name_and_finds_the_pod() -> None:
    assert SERVICE["metadata"]["name"] == "simplefoundation-service"
    assert SERVICE["spec"]["type"] == "LoadBalancer"
    (port,) = SERVICE["spec"]["ports"]
    assert port["port"] == 80
    assert port["targetPort"] == 8000

    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"] == labels
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels


def test_it_has_requests_probes_and_no_rights() -> None:
    assert CONTAINER["resources"]["requests"].keys() == {"cpu", "memory"}
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert CONTAINER["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert CONTAINER["startupProbe"]["httpGet"]["path"] == "/readyz"

    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    assert CONTAINER["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert POD["securityContext"]["runAsUser"] == 10001


def test_its_command_is_real_and_its_grace_is_enough(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env = {}
    for variable in CONTAINER["env"]:
        env[variable["name"]] = variable["value"]
        monkeypatch.setenv(variable["name"], variable["value"])

    assert main([*CONTAINER["args"], "--print-config"]) == 0
    assert "/app/model" in capsys.readouterr().out

    settings = resolve({}, env, None).settings
    settings = settings.model_copy(update={"drain_timeout_s": FINISH_S})
    graces_s = [role.grace_s for role in fleet_roles(settings, [{}], redis_ends=True)]
    sleep = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["terminationGracePeriodSeconds"] >= sleep + sum(graces_s)
