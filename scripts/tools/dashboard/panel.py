"""A panel, and the expressions that panels have in common."""

from dataclasses import dataclass

from shared.telemetry.metrics import PROBES

OF_MODEL = 'model=~"$model"'
NOT_PROBES = f'route!~"{"|".join(PROBES)}"'
_I = "$__rate_interval"


@dataclass(frozen=True)
class Panel:
    """`unit` is Grafana's name of one; `queries` are by legend."""

    title: str
    unit: str
    description: str
    queries: dict[str, str]
    is_stacked: bool = False


def rate(name: str, by: str = "", labels: str = "") -> str:
    of = f"rate({name}{{{labels}}}[{_I}])" if labels else f"rate({name}[{_I}])"
    return f"sum by ({by}) ({of})" if by else f"sum({of})"


def quantiles(name: str, by: str = "model", labels: str = OF_MODEL) -> dict[str, str]:
    """The median and what one in twenty and one in a hundred exceeds."""
    buckets = rate(f"{name}_bucket", f"le, {by}", labels)
    return {
        f"p{share} {{{{{by}}}}}": f"histogram_quantile(0.{share}, {buckets})"
        for share in (50, 95, 99)
    }


def mean(name: str, labels: str = OF_MODEL) -> str:
    return f"{rate(f'{name}_sum', 'model', labels)} / {rate(f'{name}_count', 'model', labels)}"


def share(part: str, whole: str) -> str:
    return f"{rate(part, 'model', OF_MODEL)} / {rate(whole, 'model', OF_MODEL)}"


def latency(title: str, name: str, description: str) -> Panel:
    return Panel(title, "s", description, quantiles(name))
