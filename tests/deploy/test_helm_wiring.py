"""What must be true between the documents of every release: who selects, refers to, scales and
hears whom."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.settings.settings import Settings
from tests.fixtures.deploy.charts import (
    CHART,
    EXTERNAL,
    POD_MAKERS,
    Document,
    Release,
    every_file,
    name_of,
    plain_env,
    release_of,
    render,
    role_containers,
    texts_at,
)


@every_file
def test_selectors_find_the_pods_they_mean(file: Path) -> None:
    release = release_of(file)
    makers = release.of(*POD_MAKERS)
    labels = {
        made["metadata"]["name"]: made["spec"]["template"]["metadata"]["labels"] for made in makers
    }
    for made in makers:
        own = made["spec"]["selector"]["matchLabels"]
        assert [name for name, given in labels.items() if own.items() <= given.items()] == [
            made["metadata"]["name"]
        ]
        for spread in made["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
            assert spread["labelSelector"]["matchLabels"] == own
    for service in release.of("Service"):
        (maker,) = [
            made
            for made in makers
            if service["spec"]["selector"].items() <= labels[name_of(made)].items()
        ]
        ports = {
            port["name"] for port in maker["spec"]["template"]["spec"]["containers"][0]["ports"]
        }
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for chooser in release.of("PodDisruptionBudget", "PodMonitor", "NetworkPolicy"):
        selector = chooser["spec"].get("podSelector") or chooser["spec"]["selector"]
        found = [name for name, given in labels.items() if _selects(selector, given)]
        assert found, name_of(chooser)
    for monitor in release.of("ServiceMonitor"):
        found = [
            made
            for made in release.of("Service")
            if _selects(monitor["spec"]["selector"], made["metadata"]["labels"])
        ]
        assert [port["name"] for made in found for port in made["spec"]["ports"]] == ["metrics"]


def _selects(selector: Document, labels: dict[str, str]) -> bool:
    chosen = [
        labels.get(choice["key"]) in choice["values"]
        for choice in selector.get("matchExpressions", [])
    ]
    return selector["matchLabels"].items() <= labels.items() and all(chosen)


@every_file
def test_what_is_referred_to_is_made_or_declared_to_be_somebody_elses(file: Path) -> None:
    release = release_of(file)
    made = {name_of(document) for document in release.documents} | {"default"}
    elsewhere = set(texts_at(release.values, EXTERNAL))
    for name, pod in release.pods():
        for referred in references(pod):
            assert referred in made | elsewhere, f"{name}: {referred}"
        volumes = {volume["name"] for volume in pod.get("volumes", [])} | claims_of(release, name)
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
    for rule in [rule for ingress in release.of("Ingress") for rule in ingress["spec"]["rules"]]:
        assert rule["http"]["paths"][0]["backend"]["service"]["name"] in made


@pytest.mark.parametrize(
    ("settings", "largest"),
    [
        ({}, Settings().max_upload_bytes),
        ({"max_upload_bytes": 1 << 20}, 1 << 20),
        ({"max_upload_bytes": 1 << 20, "max_body_bytes": 1 << 22}, 1 << 22),
        ({"max_upload_bytes": 5 << 30}, 5 << 30),
    ],
)
def test_the_ingress_lets_in_what_fronts_take(settings: dict[str, int], largest: int) -> None:
    release = render({"ingress": {"enabled": True, "hosts": ["a.example"]}, "settings": settings})
    annotations = release.one("Ingress", "-api")["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == str(largest)


def test_the_ingress_takes_the_prefix_and_fronts_keep_connections_longer_than_it() -> None:
    values = {
        "ingress": {"enabled": True, "hosts": ["a.example"]},
        "settings": {"root_path": "/hrm"},
    }
    release = render(values)
    (rule,) = release.one("Ingress", "-api")["spec"]["rules"]
    assert rule["http"]["paths"][0]["path"] == "/hrm"
    template = (CHART / "templates" / "api" / "ingress.yaml").read_text()
    assert f"default {Settings().keep_alive_s:.0f} $settings.keep_alive_s" in template
    assert Settings().keep_alive_s > 90, "nginx keeps its connections for 60 s, Traefik for 90 s"


def references(pod: Document) -> Iterator[str]:
    """Names of Secrets, ConfigMaps, claims and the account that a Pod needs."""
    yield pod["serviceAccountName"]
    yield from (secret["name"] for secret in pod.get("imagePullSecrets", []))
    for volume in pod.get("volumes", []):
        for kind, key in (
            ("configMap", "name"),
            ("secret", "secretName"),
            ("persistentVolumeClaim", "claimName"),
        ):
            if kind in volume:
                yield volume[kind][key]
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        for item in container.get("env", []):
            yield from (source["name"] for source in item.get("valueFrom", {}).values())


def claims_of(release: Release, name: str) -> set[str]:
    claims = [
        made["spec"].get("volumeClaimTemplates", [])
        for made in release.of("StatefulSet")
        if name_of(made) == name
    ]
    return {claim["metadata"]["name"] for group in claims for claim in group}


@every_file
def test_what_is_scaled_is_there_once_and_has_no_number_of_its_own(file: Path) -> None:
    release = release_of(file)
    scalers = release.of("HorizontalPodAutoscaler", "ScaledObject")
    scaled = [scaler["spec"]["scaleTargetRef"]["name"] for scaler in scalers]
    for deployment in release.of("Deployment"):
        assert ("replicas" in deployment["spec"]) != (name_of(deployment) in scaled)
    assert sorted(scaled) == sorted(
        set(scaled) & {name_of(deployment) for deployment in release.of("Deployment")}
    )
    for spec in [scaler["spec"] for scaler in scalers]:
        least = spec.get("minReplicas", spec.get("minReplicaCount"))
        assert (
            int(file.stem != "from-zero")
            <= least
            <= spec.get("maxReplicas", spec.get("maxReplicaCount"))
        )
    # One that never lets a Pod go would stop a node's drain for ever.
    for budget in release.of("PodDisruptionBudget"):
        assert int(str(budget["spec"]["maxUnavailable"]).rstrip("%")) > 0


@every_file
def test_redis_keeps_what_it_is_given(file: Path) -> None:
    release = release_of(file)
    urls = {plain_env(container)["AIOS_REDIS_URL"] for _, container in role_containers(release)}
    assert len(urls) == 1
    for redis in release.of("StatefulSet"):
        args = redis["spec"]["template"]["spec"]["containers"][0]["args"]
        told = dict(zip(args[::2], args[1::2], strict=True))
        assert (told["--appendonly"], told["--maxmemory-policy"]) == ("yes", "noeviction")
        assert f"{redis['metadata']['name']}:6379" in urls.pop()


@every_file
def test_redis_hears_the_roles_alone(file: Path) -> None:
    release = release_of(file)
    if release.values["networkPolicy"]["enabled"] and release.values["redis"]["enabled"]:
        (rule,) = release.one("NetworkPolicy", "-redis")["spec"]["ingress"]
        (peer,) = rule["from"]
        pods = {
            made["metadata"]["name"]: made["spec"]["template"]["metadata"]["labels"]
            for made in release.of(*POD_MAKERS)
        }
        heard = {name for name, labels in pods.items() if _selects(peer["podSelector"], labels)}
        assert heard == {name for name in pods if not name.endswith("-redis")}


def test_fronts_are_called_by_those_who_may_and_scraped_by_others() -> None:
    release = release_of(CHART / "ci" / "ingress-tls.yaml")
    peers = release.values["networkPolicy"]
    (called,) = release.one("NetworkPolicy", "-api")["spec"]["ingress"]
    assert (called["from"][:-1], called["ports"]) == (peers["frontsFrom"], [{"port": "http"}])
    assert _selects(
        called["from"][-1]["podSelector"], release.one("Pod", "-test")["metadata"]["labels"]
    )
    (scraped,) = release.one("NetworkPolicy", "-metrics")["spec"]["ingress"]
    assert (scraped["from"], scraped["ports"]) == (peers["metricsFrom"], [{"port": "metrics"}])


def test_pools_are_scaled_by_the_metrics_that_fronts_export() -> None:
    seconds, running = release_of(CHART / "ci" / "keda.yaml").one("ScaledObject", "-maths")["spec"][
        "triggers"
    ]
    chosen = 'model=~"org/maths-1\\\\.5|maths-mini",cluster="east"'
    query = f"sum(max by (model, class) (aios_queue_work_seconds{{{chosen}}}))"
    assert (seconds["metricType"], seconds["metadata"]["query"]) == ("Value", query)
    assert (
        running["metadata"]["query"]
        == f'sum(max by (model) (aios_queue_depth{{state="running",{chosen}}}))'
    )
