"""docs/features.md says what the code says."""

from __future__ import annotations

import inspect
from pathlib import Path

from scanner.store.schema import WEIGHT_MODULE_FEATURES
from scanner.weights import MODULE_FEATURES
from scanner.weights.describe import features_page
from scanner.weights.per_adapter import ADAPTER
from scanner.weights.per_module import MODULE

PAGE = Path(__file__).parents[3] / "docs" / "features.md"


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == features_page(), "run: python -m scanner.weights.describe > docs/features.md"


def test_every_feature_has_a_formula() -> None:
    for feature in (*MODULE.features.values(), *ADAPTER.features.values()):
        assert inspect.getdoc(feature.compute), feature.name


def test_the_store_has_a_column_for_every_module_feature() -> None:
    assert set(WEIGHT_MODULE_FEATURES) == set(MODULE_FEATURES)
