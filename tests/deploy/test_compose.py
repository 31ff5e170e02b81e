"""The compose files are valid by the specification, and agree with the settings, the images and
each other."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.cli.serve import KILL_AFTER_DRAIN_S, fleet_roles
from shared.settings.layers import env_name
from shared.settings.settings import FINISH_S, Settings, resolve
from tests.fixtures.deploy.compose_files import (
    FILES,
    PLACE,
    ROOT,
    env_example,
    health_port,
    services,
    variables,
)

CPU = services("compose.yaml")
ALL = services()
OURS = {"api", "worker", "jobs", "hrm"}
SCRAPES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yaml").read_text())[
    "scrape_configs"
]
HAPROXY = (PLACE / "haproxy.cfg").read_text()


@pytest.mark.parametrize("name", FILES)
def test_the_specification_allows_it(name: str) -> None:
    check = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        str(PLACE / name),
    ]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_example_of_an_environment_has_every_variable_with_its_default() -> None:
    text = ""
    for name in FILES:
        text += (PLACE / name).read_text()

    assert variables(text) == env_example()


@pytest.mark.parametrize("files", [FILES[:1], FILES])
@pytest.mark.parametrize("name", sorted(OURS))
def test_our_roles_are_given_settings_that_hold(name: str, files: tuple[str, ...]) -> None:
    environment = services(*files)[name]["environment"]

    known = {env_name(field) for field in Settings.model_fields}
    assert set(environment) <= known

    settings = resolve({}, environment, None).settings
    if name == "hrm":
        assert settings.redis_url is None
    else:
        assert settings.redis_url == "redis://redis:6379/0"
    if name in ("worker", "hrm"):
        assert settings.device == ("cpu" if len(files) == 1 else "cuda")


def test_without_a_file_of_variables_roles_have_the_fleet_s_defaults() -> None:
    """A role's environment changes only what a container needs: logs for machines, one thread a
    worker, the addresses of other services, and a volume that is the fleet's alone."""
    changed_for_containers = {
        "redis_url",
        "log_format",
        "threads",
        "device",
        "worker_port",
        "forwarded_allow_ips",
        "artifact_url",
        "remove_unknown_files",
    }
    for name in OURS:
        settings = resolve({}, CPU[name]["environment"], None).settings
        changed = set()
        for field in Settings.model_fields:
            if getattr(settings, field) != getattr(Settings(), field):
                changed.add(field)
        assert changed <= changed_for_containers, name


def test_images_are_built_by_their_own_target() -> None:
    for name in OURS:
        for fleet in (CPU, ALL):
            build = fleet[name]["build"]
            assert fleet[name]["image"] == f"aios/{build['target']}:local"
            assert (PLACE / build["context"]).resolve() == ROOT

    assert CPU["worker"]["build"]["target"] == "worker-cpu"
    assert ALL["worker"]["build"]["target"] == "worker-cuda"
    assert ALL["api"]["build"]["target"] == "api"
    assert ALL["jobs"]["build"]["target"] == "api"
    assert ALL["hrm"]["build"]["target"] == "hrm-serve"


def test_commands_are_the_entry_point_s() -> None:
    assert CPU["api"]["command"] == ["api"]
    assert CPU["worker"]["command"] == ["worker"]
    assert CPU["jobs"]["command"] == ["jobs", "--metrics-port", "9091"]
    assert CPU["hrm"].get("command") is None


def test_ports_are_those_of_the_guides() -> None:
    """The ports are those of A86, A88 and A90, and two that only this host may see."""
    ports = {}
    for name, service in ALL.items():
        if "ports" in service:
            ports[name] = service["ports"]
    assert ports == {
        "balancer": ["8000:8000"],
        "hrm": ["8000:8000"],
        "vllm": ["8001:8000"],
        "tgi": ["8002:80"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }

    assert "vllm" in ALL["vllm"]["profiles"]
    assert "tgi" in ALL["tgi"]["profiles"]
    assert "single" in ALL["hrm"]["profiles"]

    assert ALL["vllm"]["command"][:2] == ["--model", "/model"]
    assert ALL["tgi"]["command"] == ["--model-id", "/data"]


def test_hrm_has_the_shape_of_the_guide() -> None:
    """The service `hrm` is as A86 writes it."""
    environment = ALL["hrm"]["environment"]
    assert set(environment) == {"AIOS_MODEL_PATH", "AIOS_TOKENIZER_PATH", "AIOS_DEVICE"}

    for name in ("hrm", "worker", "vllm", "tgi"):
        [device] = ALL[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]

    assert "resources" not in CPU["worker"]["deploy"]
    assert "deploy" not in CPU["hrm"]


def test_what_is_mounted_is_in_the_repository() -> None:
    for name, service in CPU.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (PLACE / source).exists(), (name, source)
            else:
                assert source in (name, "artifacts"), (name, source)

    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    dashboards = yaml.safe_load((provisioning / "dashboards" / "aios.yaml").read_text())
    [provider] = dashboards["providers"]
    assert provider["options"]["path"] == "/etc/aios/dashboards", (
        "deploy/grafana is mounted at /etc/aios"
    )

    sources = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())
    [source] = sources["datasources"]
    assert source["url"] == f"http://prometheus:{health_port(CPU['prometheus'])}"


def test_roles_share_the_place_of_artifacts() -> None:
    for name in ("api", "worker", "jobs"):
        assert "artifacts:/artifacts" in CPU[name]["volumes"]
        assert CPU[name]["environment"]["AIOS_ARTIFACT_URL"] == "/artifacts"
    assert "--owner=aios --group=aios --mode=0700 /artifacts" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("name", CPU)
def test_containers_are_confined_watched_and_given_time(name: str) -> None:
    service = CPU[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]

    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    assert service["restart"] == "unless-stopped"
    assert {"test", "interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"])
    assert seconds(service["stop_grace_period"]) >= Settings().drain_s + KILL_AFTER_DRAIN_S


def test_a_whole_fleet_in_one_container_has_time_to_finish_what_is_in_flight() -> None:
    settings = Settings(drain_timeout_s=FINISH_S)
    graces_s = [role.grace_s for role in fleet_roles(settings, [{}], redis_ends=True)]
    assert seconds(ALL["hrm"]["stop_grace_period"]) >= sum(graces_s)


def test_nothing_starts_before_what_it_needs() -> None:
    needs = {}
    for name, service in CPU.items():
        if "depends_on" in service:
            needs[name] = service["depends_on"]

    healthy = {"condition": "service_healthy"}
    assert needs == {
        "balancer": {"api": healthy},
        "api": {"redis": healthy},
        "worker": {"redis": healthy},
        "jobs": {"redis": healthy},
        "grafana": {"prometheus": healthy},
    }


def test_the_balancer_finds_the_fronts_and_is_gone_in_time() -> None:
    ports = re.findall(r"^    server-template .* api:(\d+) ", HAPROXY, re.MULTILINE)
    assert set(ports) == {CPU["api"]["environment"]["AIOS_PORT"]}
    assert set(ports) == {str(health_port(CPU["api"]))}

    binds = re.findall(r"bind \*:(\d+)", HAPROXY)
    assert set(binds) == {"8000", str(health_port(CPU["balancer"]))}

    [stop] = re.findall(r"hard-stop-after (\w+)", HAPROXY)
    assert seconds(stop) < seconds(CPU["balancer"]["stop_grace_period"])
    [server] = re.findall(r"timeout server (\w+)", HAPROXY)
    assert seconds(server) > Settings().request_timeout_s


def test_a_connection_is_kept_longer_by_whoever_stands_further_back() -> None:
    """Each hop keeps an idle connection longer than the hop before it.

    Cloud balancers and nginx keep idle connections for 60 s. A connection that is closed behind
    them loses a request."""
    [balancer] = re.findall(r"timeout http-keep-alive (\w+)", HAPROXY)
    front = resolve({}, CPU["api"]["environment"], None).settings.keep_alive_s
    nginx = re.findall(r"keepalive_timeout (\w+);", (ROOT / "docs" / "compose.md").read_text())
    assert [seconds(text) for text in nginx] == [60]
    assert 60 < seconds(balancer) < front


def test_prometheus_asks_every_role_once() -> None:
    """Prometheus finds every role by its service's name, at the port of its health check."""
    ports: dict[str, Any] = {}
    for scrape in SCRAPES:
        [names] = scrape["dns_sd_configs"]
        [service] = names["names"]
        assert names["type"] == "A"
        assert service == scrape["job_name"]
        assert names["port"] == health_port(CPU[service])
        ports[service] = names["port"]

        # A second shared network would be a second address, so a second target.
        shared = set(CPU[service]["networks"]) & set(CPU["prometheus"]["networks"])
        assert len(shared) == 1
    assert ports == {"api": 8000, "worker": 9090, "jobs": 9091, "balancer": 8404}

    config = Path(CPU["prometheus"]["command"][0].partition("=")[2])
    assert config.parent == Path("/etc/prometheus")
    assert (ROOT / "deploy" / "prometheus" / config.name).is_file()


def test_callers_reach_neither_redis_nor_workers() -> None:
    networks = yaml.safe_load((PLACE / "compose.yaml").read_text())["networks"]
    assert networks["fleet"] == {"internal": True}
    for name in ("redis", "worker", "jobs"):
        assert list(CPU[name]["networks"]) == ["fleet"]


def seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text[:-1])
