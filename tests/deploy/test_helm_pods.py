"""Rules that hold for every Pod, whatever the values: its rights, its probes, its grace period and
its settings."""

import math
import re
from pathlib import Path

import pytest

from scripts.cli.aios import main
from scripts.cli.serve import KILL_AFTER_DRAIN_S
from shared.settings.command_line import CONFIG_ENV
from shared.settings.layers import ENV_ALIASES, env_name
from shared.settings.settings import Settings, model_entries, resolve
from tests.fixtures.deploy.charts import (
    POD_MAKERS,
    Document,
    Release,
    every_file,
    plain_env,
    release_of,
    role_containers,
)
from tests.fixtures.deploy.kubernetes import names, one_named


@every_file
def test_every_container_is_locked_up(file: Path) -> None:
    for _, pod in release_of(file).pods():
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False

        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == 10001
        assert context["fsGroup"] == 10001
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}

        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@every_file
def test_every_container_has_resources_and_an_image_with_a_tag(file: Path) -> None:
    for _, pod in release_of(file).pods():
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            resources = container["resources"]
            assert resources["requests"].keys() >= {"cpu", "memory"}
            assert "memory" in resources["limits"]
            assert re.fullmatch(r"[\w.\-/:]+:[\w.\-]+", container["image"])


@every_file
def test_every_container_that_stays_is_probed_at_a_port_of_its_own(file: Path) -> None:
    for document in release_of(file).of(*POD_MAKERS):
        for container in document["spec"]["template"]["spec"]["containers"]:
            ports = names(container["ports"])
            for name in ("startupProbe", "livenessProbe", "readinessProbe"):
                probe = container[name]
                target = probe.get("httpGet") or probe.get("tcpSocket")
                if target:
                    assert target["port"] in ports
                else:
                    assert probe["exec"]["command"]


@every_file
def test_roles_are_asked_where_they_answer(file: Path) -> None:
    paths = {
        "api": ["/healthz", "/readyz"],
        "worker": ["/healthz", "/readyz"],
        "jobs": ["/metrics", "/metrics"],
    }
    ports = {"api": [8000, 9090], "worker": [9090], "jobs": [9091]}

    for _, container in role_containers(release_of(file)):
        role = container["name"]
        liveness = container["livenessProbe"]["httpGet"]["path"]
        readiness = container["readinessProbe"]["httpGet"]["path"]
        assert [liveness, readiness] == paths[role]
        assert [port["containerPort"] for port in container["ports"]] == ports[role]

        if role == "api":
            assert plain_env(container)["AIOS_METRICS_PORT"] == "9090"
        if role == "worker":
            assert plain_env(container)["AIOS_WORKER_PORT"] == "9090"
        if role == "jobs":
            assert container["args"][1:] == ["--metrics-port", "9091"]


@every_file
def test_a_worker_is_given_the_time_its_pool_grants_to_start(file: Path) -> None:
    release = release_of(file)
    for name, pool in release.values["workerPools"].items():
        merged = release.values["workerDefaults"] | pool
        if merged["enabled"]:
            deployment = release.one("Deployment", f"-worker-{name}")
            (container,) = deployment["spec"]["template"]["spec"]["containers"]
            probe = container["startupProbe"]
            assert probe["periodSeconds"] * probe["failureThreshold"] >= merged["startupSeconds"]
            assert deployment["spec"]["progressDeadlineSeconds"] > merged["startupSeconds"]


@every_file
def test_settings_and_arguments_are_real_ones(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each role's own parser takes its container's arguments, variables and file."""
    known = {CONFIG_ENV}
    for field in Settings.model_fields:
        known.add(env_name(field))
    for aliases in ENV_ALIASES.values():
        known.update(aliases)

    for pod, container in role_containers(release_of(file)):
        env = plain_env(container)
        for name in env:
            assert name in known or not name.startswith("AIOS_")

        mount = one_named(container["volumeMounts"], "config")
        assert env[CONFIG_ENV] == f"{mount['mountPath']}/config.yaml"

        config = tmp_path / "config.yaml"
        config.write_text(release_of(file).config(pod), encoding="utf-8")
        with monkeypatch.context() as patch:
            for name, value in (env | {CONFIG_ENV: str(config)}).items():
                patch.setenv(name, value)
            assert main([*container["args"], "--print-config"]) == 0


@every_file
def test_a_pods_grace_is_longer_than_its_sleep_and_drain(file: Path, tmp_path: Path) -> None:
    for pod, container in role_containers(release_of(file)):
        sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        drain = settings_of(release_of(file), pod, container, tmp_path).drain_s
        assert pod["terminationGracePeriodSeconds"] == sleep + math.ceil(drain) + KILL_AFTER_DRAIN_S


@every_file
def test_workers_serve_their_pools_models_and_a_gpu_is_not_missed_in_silence(
    file: Path, tmp_path: Path
) -> None:
    release = release_of(file)
    for pod, container in role_containers(release):
        if container["name"] != "worker":
            continue
        settings = settings_of(release, pod, container, tmp_path)

        pool = release.values["workerPools"][pool_of(release, pod)]
        models = (release.values["workerDefaults"] | pool)["models"]
        model_ids = [model["id"] for model in models]
        served = [entry.id for entry in model_entries(settings)]
        assert served in (model_ids, ["hrm-text-math", "hrm-text-code", "sample-trm-sudoku-9x9"])

        # Only an extended resource, such as nvidia.com/gpu, has a slash in its name.
        has_gpu = "/" in "".join(container["resources"]["limits"])
        assert (settings.device == "cuda") == has_gpu
        assert ("cuda" in container["image"]) == has_gpu


def settings_of(release: Release, pod: Document, container: Document, folder: Path) -> Settings:
    config = folder / "config.yaml"
    config.write_text(release.config(pod), encoding="utf-8")
    return resolve({}, plain_env(container), config).settings


def pool_of(release: Release, pod: Document) -> str:
    """Return the name of the pool whose Deployment makes this Pod."""
    for deployment in release.of("Deployment"):
        if deployment["spec"]["template"]["spec"] is pod:
            return str(deployment["metadata"]["labels"]["aios-fleet/pool"])
    raise AssertionError("no Deployment makes this Pod")


@every_file
def test_only_the_front_is_given_keys(file: Path) -> None:
    for _, container in role_containers(release_of(file)):
        if container["name"] != "api":
            assert not plain_env(container).keys() & {"AIOS_API_KEYS", "AIOS_ADMIN_KEYS"}
