"""docs/cloud.md and the chart's values for clouds and rented machines belong together (C42)."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.deploy.charts import ROOT, VALUES, Release, release_of

PAGE = (ROOT / "docs" / "cloud.md").read_text(encoding="utf-8")
FILES = [file for file in VALUES if file.stem.startswith("cloud-") or file.stem == "rented-gpus"]
CLOUDS = [file for file in FILES if file.stem.startswith("cloud-")]
IDLE_S = {"cloud-aws": 310, "cloud-google": 600, "cloud-azure": 60}
"""The seconds for which the load balancer of each keeps an idle connection to a front."""

each_file = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
each_cloud = pytest.mark.parametrize("file", CLOUDS, ids=[file.stem for file in CLOUDS])


def worker_pod(release: Release) -> dict[str, Any]:
    pod: dict[str, Any] = release.one("Deployment", "-worker-maths")["spec"]["template"]["spec"]
    return pod


def test_the_page_names_every_file() -> None:
    row = r"^\| [^|]+ \| `deploy/helm/aios-fleet/ci/(\S+)\.yaml`"
    named = set(re.findall(row, PAGE, re.MULTILINE))
    assert named == {file.stem for file in FILES}
    assert len(CLOUDS) == 3


@each_file
def test_a_worker_gets_one_gpu_and_tolerates_its_taint(file: Path) -> None:
    pod = worker_pod(release_of(file))
    [worker] = pod["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "/aios/worker-cuda:" in worker["image"]
    tolerated = {toleration["key"]: toleration["operator"] for toleration in pod["tolerations"]}
    assert tolerated["nvidia.com/gpu"] == "Exists"


@each_cloud
def test_redis_is_the_clouds_and_fronts_outlast_its_load_balancer(file: Path) -> None:
    release = release_of(file)
    assert release.of("StatefulSet") == []
    keep_alive_s = release.values["api"]["settings"].get("keep_alive_s", 100)
    assert keep_alive_s > IDLE_S[file.stem]
    if "keep_alive_s" in release.values["api"]["settings"]:
        assert f"`keep_alive_s: {keep_alive_s}`" in PAGE


def test_a_pool_that_may_be_empty_is_waited_for() -> None:
    release = release_of(next(file for file in FILES if file.stem == "cloud-google"))
    [scaler] = release.of("ScaledObject")
    assert scaler["spec"]["minReplicaCount"] == 0
    settings = release.values["api"]["settings"]
    start_s = release.values["workerPools"]["maths"]["startupSeconds"]
    assert settings["absent_grace_s"] > settings["request_timeout_s"]
    assert settings["request_timeout_s"] > settings["queue_timeout_s"] > start_s


def test_callers_of_all_of_them_need_a_key() -> None:
    for file in FILES:
        assert release_of(file).values["auth"]["existingSecret"], file.stem
