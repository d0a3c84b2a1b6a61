"""What a weight feature is: a documented function of an adapter's columns, with its version, unit and source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Literal, TypeVar

from scanner.weights.columns import Columns

__all__ = ["FULL", "Feature", "Gauge", "Source", "Table"]

FULL = "full"
T = TypeVar("T")


class Gauge(StrEnum):
    """What a feature is a function of, and hence what an uploader can change without changing the model."""

    UPDATE = "ΔW"
    """Of ΔW = s·B·A alone: nothing changes it but another model."""
    SHAPE = "ΔW up to its scale"
    """Of the direction of ΔW alone."""
    PRODUCT = "B·A"
    """Of B·A without s: dividing B by c and multiplying α by c changes it, the model stays."""
    FACTORS = "A and B"
    """Of the factors one by one: any A→GA, B→BG⁻¹ changes it, the model stays."""


class Source(StrEnum):
    """Where a definition is from."""

    OURS = "lorascope"
    PAPER = "arXiv:2605.30189, notebooks 10 and 15-17, 27"
    PAPER_LATER = "arXiv:2605.30189, notebooks 15-17, 27"
    PAPER_FIRST = "arXiv:2605.30189, notebook 10"
    FIVE = "arXiv:2602.15195"


@dataclass(frozen=True)
class Feature(Generic[T]):
    """One feature. Its formula and its reading are the docstring of `compute`."""

    name: str
    version: int
    unit: str
    gauge: Gauge
    source: Source
    features: Literal["default", "full"]
    compute: Callable[[Columns], T]
    """One value a module [m], or one of the adapter. NaN where there is none."""


class Table(Generic[T]):
    """Features of one kind, in order of definition. Calling it with the facts of a feature decorates its function."""

    def __init__(self) -> None:
        self.features: dict[str, Feature[T]] = {}

    def __call__(
        self,
        unit: str,
        gauge: Gauge,
        source: Source,
        *,
        version: int = 1,
        name: str = "",
        features: Literal["default", "full"] = "default",
    ) -> Callable[[Callable[[Columns], T]], Callable[[Columns], T]]:
        """Add the decorated function under its name (or `name`)."""

        def add(compute: Callable[[Columns], T]) -> Callable[[Columns], T]:
            self.put(Feature(name or compute.__name__, version, unit, gauge, source, features, compute))
            return compute

        return add

    def put(self, feature: Feature[T]) -> None:
        """Add a feature; a name counts once."""
        if feature.name in self.features:
            raise ValueError(f"the feature {feature.name} is defined twice")
        self.features[feature.name] = feature
