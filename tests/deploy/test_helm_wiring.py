"""Relations between the documents of every release: selectors, references, scaling and network
policies."""

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
    names_of,
    plain_env,
    release_of,
    render,
    role_containers,
    texts_at,
)
from tests.fixtures.deploy.kubernetes import names


@every_file
def test_selectors_find_the_pods_they_mean(file: Path) -> None:
    release = release_of(file)
    makers = {name_of(maker): maker for maker in release.of(*POD_MAKERS)}
    labels = pod_labels(release)

    for name, maker in makers.items():
        selector = maker["spec"]["selector"]
        assert selected(selector, labels) == [name]
        for spread in maker["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
            assert spread["labelSelector"]["matchLabels"] == selector["matchLabels"]

    for service in release.of("Service"):
        (name,) = selected({"matchLabels": service["spec"]["selector"]}, labels)
        container = makers[name]["spec"]["template"]["spec"]["containers"][0]
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in names(container["ports"])

    for chooser in release.of("PodDisruptionBudget", "PodMonitor", "NetworkPolicy"):
        selector = chooser["spec"].get("podSelector") or chooser["spec"]["selector"]
        assert selected(selector, labels), name_of(chooser)

    for monitor in release.of("ServiceMonitor"):
        scraped = []
        for service in release.of("Service"):
            if selects(monitor["spec"]["selector"], service["metadata"]["labels"]):
                scraped += service["spec"]["ports"]
        assert names(scraped) == ["metrics"]


def pod_labels(release: Release) -> dict[str, dict[str, str]]:
    """Return the labels of the Pods that each Deployment or StatefulSet makes, by its name."""
    labels = {}
    for maker in release.of(*POD_MAKERS):
        labels[name_of(maker)] = maker["spec"]["template"]["metadata"]["labels"]
    return labels


def selected(selector: Document, labels: dict[str, dict[str, str]]) -> list[str]:
    """Return the names whose labels the selector matches."""
    return [name for name in labels if selects(selector, labels[name])]


def selects(selector: Document, labels: dict[str, str]) -> bool:
    for choice in selector.get("matchExpressions", []):
        if labels.get(choice["key"]) not in choice["values"]:
            return False
    return selector["matchLabels"].items() <= labels.items()


@every_file
def test_what_is_referred_to_is_made_or_declared_to_be_somebody_elses(file: Path) -> None:
    release = release_of(file)
    rendered = names_of(release.documents) | {"default"}
    external = set(texts_at(release.values, EXTERNAL))

    for name, pod in release.pods():
        for reference in references(pod):
            assert reference in rendered | external, f"{name}: {reference}"

        volumes = claims_of(release, name) | set(names(pod.get("volumes", [])))
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert set(names(container.get("volumeMounts", []))) <= volumes

    for ingress in release.of("Ingress"):
        for rule in ingress["spec"]["rules"]:
            assert rule["http"]["paths"][0]["backend"]["service"]["name"] in rendered


@pytest.mark.parametrize(
    ("settings", "largest"),
    [
        ({}, Settings().max_upload_bytes),
        ({"max_upload_bytes": 1 << 20}, Settings().max_inline_bytes),
        ({"max_upload_bytes": 1 << 20, "max_inline_bytes": 1 << 21}, 1 << 21),
        ({"max_upload_bytes": 1 << 20, "max_body_bytes": 1 << 25}, 1 << 25),
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
    """Yield the names of the account, Secrets, ConfigMaps and claims that a Pod needs."""
    yield pod["serviceAccountName"]
    for secret in pod.get("imagePullSecrets", []):
        yield secret["name"]

    for volume in pod.get("volumes", []):
        for kind, key in (
            ("configMap", "name"),
            ("secret", "secretName"),
            ("persistentVolumeClaim", "claimName"),
        ):
            if kind in volume:
                yield volume[kind][key]

    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        for variable in container.get("env", []):
            for source in variable.get("valueFrom", {}).values():
                yield source["name"]


def claims_of(release: Release, name: str) -> set[str]:
    """Return the volumes that the StatefulSet of this name, if there is one, claims."""
    for maker in release.of("StatefulSet"):
        if name_of(maker) == name:
            return names_of(maker["spec"].get("volumeClaimTemplates", []))
    return set()


@every_file
def test_what_is_scaled_is_there_once_and_has_no_number_of_its_own(file: Path) -> None:
    release = release_of(file)
    scalers = release.of("HorizontalPodAutoscaler", "ScaledObject")
    scaled = [scaler["spec"]["scaleTargetRef"]["name"] for scaler in scalers]
    deployments = release.of("Deployment")

    for deployment in deployments:
        assert ("replicas" in deployment["spec"]) != (name_of(deployment) in scaled)

    assert len(scaled) == len(set(scaled)), "each is scaled by one"
    assert set(scaled) <= names_of(deployments)

    for scaler in scalers:
        spec = scaler["spec"]
        least = spec.get("minReplicas", spec.get("minReplicaCount"))
        most = spec.get("maxReplicas", spec.get("maxReplicaCount"))
        floor = 0 if file.stem in ("from-zero", "cloud-google") else 1
        assert floor <= least <= most

    # One that never lets a Pod go would stop a node's drain for ever.
    for budget in release.of("PodDisruptionBudget"):
        assert int(str(budget["spec"]["maxUnavailable"]).rstrip("%")) > 0


@every_file
def test_redis_keeps_what_it_is_given(file: Path) -> None:
    release = release_of(file)

    urls = {plain_env(container)["AIOS_REDIS_URL"] for _, container in role_containers(release)}
    (url,) = urls
    assert len(release.of("StatefulSet")) <= 1
    for redis in release.of("StatefulSet"):
        args = redis["spec"]["template"]["spec"]["containers"][0]["args"]
        options = dict(zip(args[::2], args[1::2], strict=True))
        assert options["--appendonly"] == "yes"
        assert options["--maxmemory-policy"] == "noeviction"
        assert f"{name_of(redis)}:6379" in url


@every_file
def test_redis_hears_the_roles_alone(file: Path) -> None:
    release = release_of(file)
    if release.values["networkPolicy"]["enabled"] and release.values["redis"]["enabled"]:
        (rule,) = release.one("NetworkPolicy", "-redis")["spec"]["ingress"]
        (peer,) = rule["from"]

        labels = pod_labels(release)
        heard = selected(peer["podSelector"], labels)
        for name in labels:
            assert (name in heard) != name.endswith("-redis")


def test_fronts_are_called_by_those_who_may_and_scraped_by_others() -> None:
    release = release_of(CHART / "ci" / "ingress-tls.yaml")
    peers = release.values["networkPolicy"]

    (calls,) = release.one("NetworkPolicy", "-api")["spec"]["ingress"]
    *callers, test_pod = calls["from"]
    assert callers == peers["frontsFrom"]
    assert calls["ports"] == [{"port": "http"}]
    test_labels = release.one("Pod", "-test")["metadata"]["labels"]
    assert selects(test_pod["podSelector"], test_labels)

    (scrapes,) = release.one("NetworkPolicy", "-metrics")["spec"]["ingress"]
    assert scrapes["from"] == peers["metricsFrom"]
    assert scrapes["ports"] == [{"port": "metrics"}]


def test_pools_are_scaled_by_the_metrics_that_fronts_export() -> None:
    release = release_of(CHART / "ci" / "keda.yaml")

    work, running = release.one("ScaledObject", "-maths")["spec"]["triggers"]

    labels = 'model=~"org/maths-1\\\\.5|maths-mini",cluster="east"'
    assert work["metricType"] == "Value"
    assert work["metadata"]["query"] == (
        f"sum(max by (model, class) (aios_queue_work_seconds{{{labels}}}))"
    )
    assert running["metadata"]["query"] == (
        f'sum(max by (model) (aios_queue_depth{{state="running",{labels}}}))'
    )
