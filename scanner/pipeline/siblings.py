"""References of the adapters that are judged, from what Hub crawls have put into the store."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from scanner.calibration import (
    CalibrationKey,
    Level,
    Policy,
    Reference,
    Sibling,
    WeightRank,
    build_reference,
    ladder,
    rank_weights,
)
from scanner.model import UNRESOLVED, Outcome
from scanner.pipeline.judged import JudgedFacts, weight_features
from scanner.store import Database, Row

__all__ = ["MAY_VOTE", "WeightReferences", "calibration_key"]

_COLUMNS = (
    "adapter_id", "owner", "repo_uid", "content_sha256", "base_model", "peft_type", "rank", "scaling",
    "target_modules", "task_type", "outcome",
)  # fmt: skip
_CRAWLED = (
    "adapter_id IN (SELECT f.adapter_id FROM raw_adapters f JOIN raw_runs r USING (shard_id) "
    "WHERE r.crawl_id LIKE 'crawl-%')"
)
"""SQL condition: whom a crawl found."""
MAY_VOTE = f"{_CRAWLED} AND adapter_id NOT IN (SELECT adapter_id FROM findings WHERE severity IN ('critical', 'high'))"
"""SQL condition: who may be a member of a reference, as far as static findings go."""
_VOTERS = 25
"""Owners of a base whose adapters say how large it is."""


def calibration_key(adapter: Row) -> CalibrationKey | None:
    """Whom an adapter can be compared with; None: with nobody. It was not read, or its base is not known."""
    if adapter["rank"] is None or adapter["outcome"] != Outcome.PASS or adapter["base_model"] == UNRESOLVED:
        return None
    return CalibrationKey(
        base_model=adapter["base_model"],
        peft_type=adapter["peft_type"] or "",
        rank=adapter["rank"],
        scaling=adapter["scaling"] or 0.0,
        target_modules=adapter["target_modules"] or "",
        task=adapter["task_type"] or "",
    )


def _sibling_of(adapter: Row, features: Mapping[str, float | None], kin: frozenset[str]) -> Sibling:
    return Sibling(
        adapter_id=adapter["adapter_id"],
        owner=adapter["owner"] or adapter["repo_uid"],
        content_sha256=adapter["content_sha256"] or adapter["adapter_id"],
        features=features,
        kin=kin,
    )


class WeightReferences:
    """The references of a store, each built when somebody needs it.

    Members come from Hub crawls only, never from folders, and are left out for other evidence than their weights:
    a critical or high static finding, or behaviour.
    """

    def __init__(
        self, database: Database, behaving_badly: set[str], kin: Mapping[str, frozenset[str]], policy: Policy
    ) -> None:
        """`behaving_badly`: adapters that battery or search flag now. `kin`: as of `find_kin`."""
        self._database, self._behaving_badly, self._kin, self._policy = database, behaving_badly, kin, policy
        self._pools: dict[str, dict[CalibrationKey, list[Sibling]]] = {}
        self._built: dict[CalibrationKey, Reference] = {}
        self._used: set[CalibrationKey] = set()
        self._features: dict[str, Mapping[str, float | None]] = {}
        self._judged: set[str] = set()

    def prepare(self, facts: Iterable[JudgedFacts]) -> None:
        """Read the siblings of all that will be judged at once.

        Raises:
            StoreError: a file of the store cannot be read.
        """
        bases = set()
        for fact in facts:
            self._features[fact.adapter["adapter_id"]] = fact.features
            self._judged.add(fact.adapter["adapter_id"])
            if key := calibration_key(fact.adapter):
                bases.add(key.base_model)
        self._read(bases)

    @property
    def used(self) -> dict[CalibrationKey, Reference]:
        """Those that judged somebody, and the exact ones of all that were judged."""
        return {
            key: reference
            for key, reference in self._built.items()
            if reference.n and (key.level == Level.EXACT or key in self._used)
        }

    def rank(self, fact: JudgedFacts) -> WeightRank:
        """Where an adapter stands among its siblings; see `rank_weights`.

        Raises:
            StoreError: a file of the store cannot be read.
        """
        key = calibration_key(fact.adapter)
        if key is None:
            return WeightRank()
        judged = _sibling_of(fact.adapter, fact.features, self._kin.get(fact.adapter["adapter_id"], frozenset()))
        found = rank_weights(judged, self._steps(key), self._policy)
        if found.reference is not None:
            self._used.add(found.reference.key)
        return found

    def _steps(self, key: CalibrationKey) -> Iterator[Reference]:
        for step in ladder(key, None):
            yield self._reference(step)
        if (architecture := self._architectures.get(key.base_model)) is not None:
            yield self._reference(ladder(key, architecture)[-1])

    def _reference(self, key: CalibrationKey) -> Reference:
        if key not in self._built:
            self._built[key] = build_reference(key, self._candidates(key), self._policy)
        return self._built[key]

    def _candidates(self, key: CalibrationKey) -> list[Sibling]:
        bases = {key.base_model}
        if key.level == Level.ARCHITECTURE:
            bases = {base for base, one in self._architectures.items() if one == key.base_model}
        self._read(bases)
        if key.level == Level.EXACT:
            return self._pools[key.base_model].get(key, [])
        return [
            sibling
            for base in sorted(bases)
            for exact, siblings in self._pools[base].items()
            if _belongs(exact, key)
            for sibling in siblings
        ]

    def _read(self, bases: set[str]) -> None:
        missing = sorted(bases - set(self._pools))
        if not missing:
            return
        self._pools |= {base: defaultdict(list) for base in missing}
        rows = self._database.rows(
            f"""
            SELECT {", ".join(_COLUMNS)} FROM adapters
            WHERE {MAY_VOTE} AND outcome = 'pass' AND base_model IN (SELECT unnest(?::VARCHAR[]))
              -- of those that are judged now battery and search are asked again: what they said does not count
              AND adapter_id NOT IN (
                SELECT adapter_id FROM current_verdicts WHERE verdict = 'flagged'
                  AND NOT (
                    coalesce(rule, '') IN ('battery', 'ranked_battery', 'search')
                    AND adapter_id IN (SELECT unnest(?::VARCHAR[]))
                  )
              )
            """,
            [missing, sorted(self._judged)],
        )
        unread = [row["adapter_id"] for row in rows if row["adapter_id"] not in self._features]
        self._features |= weight_features(self._database, unread, self._policy.features)
        for row in rows:
            adapter_id, key = row["adapter_id"], calibration_key(row)
            features = self._features.get(adapter_id)
            if key and features and adapter_id not in self._behaving_badly:
                sibling = _sibling_of(row, features, self._kin.get(adapter_id, frozenset()))
                self._pools[key.base_model][key].append(sibling)

    @cached_property
    def _architectures(self) -> dict[str, str]:
        """Base -> its number of layers and width, as most of its owners' adapters have them."""
        rows = self._database.rows(
            f"""
            SELECT base_model, adapter_id FROM (
              SELECT base_model, adapter_id, content_sha256 FROM adapters
              WHERE {_CRAWLED} AND outcome = 'pass' AND modules > 0 AND base_model <> ?
              -- of each owner the adapter with most modules: one of a few layers does not show them all
              QUALIFY row_number() OVER (
                PARTITION BY base_model, coalesce(owner, repo_uid) ORDER BY modules DESC, adapter_id
              ) = 1
            ) QUALIFY row_number() OVER (PARTITION BY base_model ORDER BY content_sha256, adapter_id) <= {_VOTERS}
            """,
            [UNRESOLVED],
        )
        bases = {row["adapter_id"]: row["base_model"] for row in rows}
        layers: dict[str, int] = defaultdict(int)
        widths: dict[str, Counter[int]] = defaultdict(Counter)
        for row in self._database.of_adapters("module_features", list(bases), ("adapter_id", "layer", "in_features")):
            if row["layer"] is not None and row["in_features"] is not None:
                layers[row["adapter_id"]] = max(layers[row["adapter_id"]], row["layer"] + 1)
                widths[row["adapter_id"]][row["in_features"]] += 1
        votes: dict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
        for adapter_id, counts in widths.items():
            # Most modules read the residual stream; those that do not have another width.
            width = max(counts, key=lambda w: (counts[w], -w))
            votes[bases[adapter_id]][layers[adapter_id], width] += 1
        found = {base: max(sizes, key=lambda size: (sizes[size], size)) for base, sizes in sorted(votes.items())}
        return {base: f"{n} layers of width {width}" for base, (n, width) in found.items()}


def _belongs(exact: CalibrationKey, key: CalibrationKey) -> bool:
    """Whether adapters of an exact key are members of a reference of a wider one, as far as it is not the base."""
    return (
        (exact.peft_type, exact.task) == (key.peft_type, key.task)
        and key.covers(exact.rank)
        and (key.level.is_scale_free or exact.scaling == key.scaling)
    )
