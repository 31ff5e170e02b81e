"""A PromQL expression held against what is exported: names, labels, values of labels, and functions
that fit them."""

import re
from collections.abc import Mapping

import promql_parser as promql

from tests.deploy.exported import FREE, Series, values

_OF_COUNTERS = {"rate", "increase", "irate", "resets"}
_OF_GAUGES = {"changes", "delta", "deriv", "avg_over_time", "max_over_time", "min_over_time"}
_OF_ANY = {"count_over_time", "present_over_time"}
_OF_VALUES = {"abs", "ceil", "clamp_min", "clamp_max", "round"}
_SETS = {"and", "or", "unless"}

Labels = frozenset[str] | None
"""Of what an expression gives; None is a number."""


class Misfit(ValueError):
    """The expression would never tell what it is there for."""


class Checker:
    def __init__(self, known: Mapping[str, Series]) -> None:
        self._known = known
        self.used: set[str] = set()
        """Names that the expressions so far have asked for."""

    def check(self, text: str) -> Labels:
        """The labels of what it gives. Raises Misfit."""
        try:
            parsed = promql.parse(text)
        except ValueError as error:
            raise Misfit(f"{text}: {error}") from error
        return self._labels(parsed)

    def _labels(self, expr: promql.Expr) -> Labels:
        match expr:
            case promql.NumberLiteral():
                return None
            case promql.ParenExpr() | promql.UnaryExpr():
                return self._labels(expr.expr)
            case promql.VectorSelector():
                series = self._series(expr)
                if series.kind == "counter":
                    raise Misfit(f"{expr}: a counter is only seen through {sorted(_OF_COUNTERS)}")
                return series.labels
            case promql.Call():
                return self._call(expr)
            case promql.AggregateExpr():
                return self._aggregate(expr)
            case promql.BinaryExpr():
                return self._binary(expr)
        raise Misfit(f"{expr}: {type(expr).__name__} is not checked, so not used")

    def _series(self, selector: promql.VectorSelector) -> Series:
        name = selector.name
        if name is None or name not in self._known:
            raise Misfit(f"{selector}: no such metric")
        series = self._known[name]
        self.used.add(name)
        for matcher in selector.matchers.matchers:
            if matcher.name not in series.labels:
                raise Misfit(f"{selector}: it has no label {matcher.name}")
            _check_value(name, matcher)
        return series

    def _call(self, call: promql.Call) -> Labels:
        name, args = call.func.name, call.args
        if name in _OF_COUNTERS | _OF_GAUGES | _OF_ANY:
            series = self._series(args[0].vector_selector)
            if name not in _OF_ANY and (name in _OF_COUNTERS) != (series.kind == "counter"):
                raise Misfit(f"{call}: {name} of a {series.kind}")
            return series.labels
        if name == "histogram_quantile":
            labels = self._labels(args[1])
            if labels is None or "le" not in labels:
                raise Misfit(f"{call}: a quantile needs le")
            return labels - {"le"}
        if name == "absent":
            self._series(args[0])
            return frozenset()
        if name == "vector":
            return frozenset()
        if name == "time":
            return None
        if name in _OF_VALUES:
            return self._labels(args[0])
        raise Misfit(f"{call}: {name} is not checked, so not used")

    def _aggregate(self, expr: promql.AggregateExpr) -> Labels:
        inner = self._labels(expr.expr)
        if inner is None:
            raise Misfit(f"{expr}: of a number")
        if expr.modifier is None:
            return frozenset()
        named = frozenset(expr.modifier.labels)
        if not named <= inner:
            raise Misfit(f"{expr}: there is no {sorted(named - inner)}, only {sorted(inner)}")
        return named if expr.modifier.type == promql.AggModifierType.By else inner - named

    def _binary(self, expr: promql.BinaryExpr) -> Labels:
        left, right = self._labels(expr.lhs), self._labels(expr.rhs)
        if left is None or right is None:
            return right if left is None else left
        matching, of_set = expr.modifier and expr.modifier.matching, str(expr.op) in _SETS
        if str(expr.op) == "or" and not matching:
            return left | right
        if not matching:
            if left != right:
                raise Misfit(f"{expr}: {sorted(left)} never match {sorted(right)}")
            return left
        named = frozenset(matching.labels)
        if not named <= left & right:
            raise Misfit(f"{expr}: {sorted(named)} are not on both sides")
        if matching.type == promql.LabelModifierType.Exclude:
            raise Misfit(f"{expr}: say what matches, by on")
        return left if of_set or expr.modifier.group_labels is not None else named


def _check_value(series: str, matcher: promql.Matcher) -> None:
    """Each alternative of a regular expression must be there, or match something that is."""
    if matcher.name in FREE or matcher.name in ("alertname", "severity"):
        return
    possible = values(series, matcher.name)
    if possible is None:
        raise Misfit(f"{series}: what {matcher.name} can be is not known")
    exact = matcher.op in (promql.MatchOp.Equal, promql.MatchOp.NotEqual)
    for wanted in [matcher.value] if exact else matcher.value.split("|"):
        if not any(value == wanted if exact else re.fullmatch(wanted, value) for value in possible):
            raise Misfit(f"{series}: {matcher.name} is never {wanted}")
