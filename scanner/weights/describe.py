"""docs/features.md, from the features themselves: `python -m scanner.weights.describe > docs/features.md`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from typing import Any

from scanner.weights.definition import Feature, Gauge
from scanner.weights.features import FEATURE_VERSION
from scanner.weights.per_adapter import ADAPTER
from scanner.weights.per_module import MODULE

__all__ = ["features_page"]

_HEAD = f"""\
# Weight features

Generated from `scanner/weights/per_module.py` and `per_adapter.py` by `python -m scanner.weights.describe >
docs/features.md`; set `{FEATURE_VERSION}`.

An adapter changes a base model's matrix W to W + ΔW with ΔW = s·B·A, A [r, in], B [out, r], s = α/r (α/√r for
rsLoRA). The features are computed from the factors; ΔW itself is never built. σ are the singular values of B·A,
falling; p = σ/Σσ are their amplitudes, e = σ²/Σσ² their energies. All values are float64. A value is null where it is
undefined (0/0, modules that the adapter does not have) and everywhere where a factor is not finite.

**Depends on** says what an uploader can change without changing the model. *{Gauge.UPDATE}*: nothing but another
model. *{Gauge.SHAPE}*: the same, and the size of ΔW does not matter either. *{Gauge.PRODUCT}*: the scale can be moved
between B and α. *{Gauge.FACTORS}*: any A→GA, B→BG⁻¹ moves it. A property test checks each of these claims. What the
scanner decides by (`scanner/calibration/policy.py`) is triage: weights alone give at most `review`.

**Precision**: every value agrees with a float64 SVD of the dense ΔW to a relative 1e-6, for singular values above
1e-4 of the largest. Gram matrices are float64, and a factor whose condition would cost digits goes through a QR
instead (`scanner/weights/gram.py`); sums over rows run in float32 only where the condition is small.

**Sets**: `default` is computed for every adapter. `full` (`--features full`) adds what has to look at every entry of
ΔW.

A version is that of the feature's definition: 1 until it changes. Tables: `weight_scans` has the features of an
adapter as rows of (feature, value); `module_features` those of modules, a column each; `layer_profiles` is a view of
the latter. The latest scan of an adapter counts: after one with the default set, what only the full one has is null
again.

```sql
SELECT feature, value FROM weight_scans WHERE adapter_id = '...' ORDER BY 1;
SELECT module, delta_frob, energy_share FROM module_features WHERE adapter_id = '...' ORDER BY 3 DESC LIMIT 5;
SELECT layer, energy_share FROM layer_profiles WHERE adapter_id = '...' ORDER BY layer;
```

## What the studies call them

- arXiv:2605.30189 never applies α/r, and its notebooks differ: 10 divides the entropy by ln r and takes ln for the
  asymmetry, the later ones do neither. Names without a prefix are the later notebooks', `nb10_` marks what notebook
  10 defines differently. Notebooks 16 and 17 keep all min(in, out) singular values of a dense float32 product: the
  ones beyond r are rounding noise, which is not imitated.
- arXiv:2602.15195, for any layer and module: σ₁ is `sv_max`, ‖·‖_F is `frobN`·√(in·out), E is `top1_energy`, H is
  `entropy`, κ is `kurtosis_five`.

"""


def features_page() -> str:
    """The page as Markdown."""
    return "".join(
        (
            _HEAD,
            "## Features of an adapter\n\n",
            _table(ADAPTER.features.values()),
            "\n## Features of a module\n\n",
            _table(MODULE.features.values()),
        )
    )


def _table(features: Iterable[Feature[Any]]) -> str:
    lines = ["| feature | formula | unit | depends on | source | set | version |", "|---|---|---|---|---|---|---|"]
    for f in features:
        formula = " ".join((inspect.getdoc(f.compute) or "").split()).replace("|", "\\|")
        cells = (f"`{f.name}`", formula, f.unit, str(f.gauge), str(f.source), f.features, str(f.version))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(features_page())
