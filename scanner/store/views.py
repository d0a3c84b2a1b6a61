"""The store as SQL: an in-memory DuckDB over the Parquet files of one moment.

The file list of every table is taken once per session; a missing table is an empty one with its full schema.
DuckDB gets Arrow datasets rather than globs: the schema is ours (an old file lacks a column -> NULL, never a changed
type), an empty table is no error, and S3 needs no extension. DuckDB is imported when a session is opened: a scan
that has nothing to ask starts in half the time without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scanner.errors import StoreError, UsageError
from scanner.model import MAX_TRIES
from scanner.store.files import StoreRoot
from scanner.store.schema import TABLES

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    import pyarrow.dataset as ds

__all__ = ["Database", "open_database"]

_VIEWS = f"""
CREATE VIEW repo_names AS  -- the name that each repo of a Hub was last known by
  SELECT repo_uid, arg_max(repo_id, told_at) AS repo_id FROM (
    SELECT repo_uid, repo_id, scanned_at AS told_at FROM adapters WHERE repo_id IS NOT NULL
    UNION ALL SELECT repo_uid, repo_id, seen_at FROM repo_events WHERE event = 'renamed'
  ) GROUP BY repo_uid;
CREATE VIEW quarantine AS  -- given up at this commit: every one of several crawls failed
  SELECT a.source, a.repo_uid, arg_max(a.repo_id, a.scanned_at) AS repo_id, a.commit_sha,
         arg_max(a.reason, a.scanned_at) AS reason, arg_max(a.message, a.scanned_at) AS message,
         count(DISTINCT r.crawl_id) AS tries, max(a.scanned_at) AS last_tried_at
  FROM raw_adapters a JOIN raw_runs r USING (shard_id)
  WHERE r.kind = 'shard' AND r.crawl_id LIKE 'crawl-%'
  GROUP BY a.source, a.repo_uid, a.commit_sha
  HAVING count(DISTINCT r.crawl_id) >= {MAX_TRIES} AND count(DISTINCT r.crawl_id) = count(DISTINCT r.crawl_id)
    FILTER (WHERE coalesce(a.unfinished, a.outcome = 'error'));
CREATE VIEW current_verdicts AS
  WITH latest AS (  -- the newest scan of the newest commit of each repo: what an earlier one saw is history
    SELECT repo_uid, commit_sha, scanned_at FROM adapters
    QUALIFY row_number() OVER (
      PARTITION BY repo_uid ORDER BY last_modified DESC NULLS LAST, scanned_at DESC, row_id
    ) = 1
  )
  SELECT v.* REPLACE (coalesce(n.repo_id, v.repo_id) AS repo_id) FROM verdicts v
  JOIN adapters a USING (adapter_id)
  LEFT JOIN repo_names n ON n.repo_uid = a.repo_uid
  JOIN latest ON latest.repo_uid = a.repo_uid AND latest.commit_sha IS NOT DISTINCT FROM a.commit_sha
    AND latest.scanned_at = a.scanned_at
  -- a name that could not be found once, and was found later
  WHERE NOT (a.repo_uid LIKE 'name:%' AND a.repo_id IN (SELECT repo_id FROM adapters WHERE repo_uid NOT LIKE 'name:%'))
  QUALIFY row_number() OVER (PARTITION BY v.adapter_id ORDER BY v.judged_at DESC, v.row_id) = 1;
CREATE VIEW flagged AS
  SELECT * FROM current_verdicts WHERE verdict = 'flagged';
CREATE VIEW layer_profiles AS  -- how the size of an update lies over the layers; modules without one have layer NULL
  SELECT adapter_id, layer,
         sum(energy_share) AS energy_share, sqrt(sum(delta_frob * delta_frob)) AS delta_frob, count(*) AS modules
  FROM (SELECT * FROM module_features QUALIFY row_number() OVER (
    PARTITION BY adapter_id, module ORDER BY scanned_at DESC, row_id) = 1)
  GROUP BY 1, 2;
CREATE VIEW near_duplicates AS
  SELECT r.adapter_id, coalesce(n.repo_id, a.repo_id) AS repo_id, a.adapter_path, a.owner,
         r.other_adapter_id, coalesce(m.repo_id, b.repo_id) AS other_repo_id, b.adapter_path AS other_adapter_path,
         b.owner AS other_owner, coalesce(a.owner <> b.owner, false) AS across_owners, r.base_model, r.kind,
         r.cosine, r.cosine_low, r.cosine_high, r.coefficient, r.is_exact
  FROM relations r
  JOIN adapters a ON a.adapter_id = r.adapter_id LEFT JOIN repo_names n ON n.repo_uid = a.repo_uid
  JOIN adapters b ON b.adapter_id = r.other_adapter_id LEFT JOIN repo_names m ON m.repo_uid = b.repo_uid
  WHERE r.kind <> 'merge_part';
CREATE VIEW triage_misses AS
  -- What the triage of `auto` lets pass, from the control sample: adapters that nothing pointed to, each standing for
  -- 1 / inclusion_probability of its like. The interval is Wilson's with the effective size (Kish) of the sample.
  WITH sample AS (
    SELECT 1 / p.inclusion_probability AS weight, (v.verdict = 'flagged')::INT AS bad
    FROM (  -- as a crawl drew it: a later scan of the same adapter takes nobody out of the sample
      SELECT adapter_id, inclusion_probability FROM raw_probe_scans
      WHERE shard_id IN (SELECT shard_id FROM raw_runs WHERE kind = 'shard' AND crawl_id LIKE 'crawl-%')
        AND selected_by = 'control_sample' AND outcome = 'pass' AND inclusion_probability > 0
      QUALIFY row_number() OVER (PARTITION BY adapter_id ORDER BY scanned_at, row_id) = 1
    ) p JOIN current_verdicts v USING (adapter_id)
  ), total AS (
    SELECT count(*) AS sampled, sum(weight) AS stands_for, sum(bad) AS flagged, sum(weight * bad) / sum(weight) AS rate,
           sum(weight) ** 2 / sum(weight * weight) AS n, 1.959964 ** 2 AS z2
    FROM sample
  )
  SELECT sampled, flagged, stands_for, n AS effective_sample, 1000 * rate AS missed_per_1000,
         1000 * greatest(0, (middle - half) / (1 + z2 / n)) AS missed_per_1000_low,
         1000 * least(1, (middle + half) / (1 + z2 / n)) AS missed_per_1000_high
  FROM (SELECT *, rate + z2 / (2 * n) AS middle,
               sqrt(z2 * (greatest(rate * (1 - rate), 0) / n + z2 / (4 * n * n))) AS half FROM total) WHERE sampled > 0;
CREATE VIEW verdict_changes AS  -- of two verdicts on one adapter in a row, those that differ
  SELECT * FROM (
    SELECT adapter_id, repo_id, adapter_path, base_model,
           lag(verdict) OVER history AS before, verdict AS after,
           lag(rule) OVER history AS rule_before, rule AS rule_after,
           lag(reasons) OVER history AS reasons_before, reasons AS reasons_after,
           lag(policy_version) OVER history AS policy_before, policy_version AS policy_after,
           lag(reference_id) OVER history AS reference_before, reference_id AS reference_after,
           lag(search_reference_id) OVER history AS search_reference_before,
           search_reference_id AS search_reference_after,
           lag(battery_reference_id) OVER history AS battery_reference_before,
           battery_reference_id AS battery_reference_after, judged_at, crawl_id
    FROM verdicts WINDOW history AS (PARTITION BY adapter_id ORDER BY judged_at, row_id)
  ) WHERE before <> after;
CREATE VIEW reference_drift AS  -- how the references of a key moved from version to version, in spreads of the former
  SELECT calibration_key, feature, reference_id, frozen_at, n, center, spread,
         lag(reference_id) OVER history AS before, lag(n) OVER history AS n_before,
         (center - lag(center) OVER history) / lag(spread) OVER history AS shift,
         spread / lag(spread) OVER history AS spread_ratio,
         len(list_intersect(members::JSON::VARCHAR[], (lag(members) OVER history)::JSON::VARCHAR[])) AS members_kept
  FROM reference_profiles WHERE reference_id LIKE 'ref-%'
  WINDOW history AS (PARTITION BY calibration_key, feature ORDER BY frozen_at, reference_id);
CREATE VIEW reference_members AS  -- who votes in a reference, with what strata are made of
  SELECT r.reference_id, r.calibration_key, a.adapter_id, coalesce(n.repo_id, a.repo_id) AS repo_id, a.owner,
         a.base_model, a.created_at, date_diff('day', try_cast(a.created_at AS TIMESTAMPTZ), r.frozen_at) AS age_days,
         a.downloads, a.likes
  FROM (SELECT reference_id, any_value(calibration_key) AS calibration_key, min(frozen_at) AS frozen_at,
               unnest(any_value(members)::JSON::VARCHAR[]) AS adapter_id
        FROM reference_profiles WHERE reference_id LIKE 'ref-%' GROUP BY reference_id) r
  JOIN adapters a USING (adapter_id) LEFT JOIN repo_names n ON n.repo_uid = a.repo_uid;
CREATE VIEW base_models AS
  SELECT base_model, count(*) AS adapters, count(DISTINCT repo_uid) AS repos,
         count(*) FILTER (WHERE verdict = 'flagged') AS flagged,
         count(*) FILTER (WHERE verdict = 'review') AS review,
         count(*) FILTER (WHERE verdict = 'clean') AS clean,
         count(*) FILTER (WHERE verdict = 'inconclusive') AS inconclusive,
         count(*) FILTER (WHERE verdict IN ('unsupported', 'error')) AS unread,
         max(judged_at) AS judged_at
  FROM current_verdicts GROUP BY base_model;
"""


_MARKERS = {
    "repo_events": "('crawl')",
    "base_resolutions": "('crawl', 'scan')",
    "relations": "('relate')",
}
"""Kinds of `runs` rows that commit a table's shards, where they are not `shard` and `judge`."""


class Database:
    """A read-only SQL session over one store."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def rows(self, sql: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
        """Run one of lorascope's own queries; one dict per row. Errors as of `table`."""
        return self.table(sql, parameters)[1]

    def table(self, sql: str, parameters: list[Any] | None = None) -> tuple[list[str], list[dict[str, Any]]]:
        """Run one of lorascope's own queries: (column names, one dict per row).

        Raises:
            StoreError: a file of the store cannot be read.
        """
        import duckdb
        import pyarrow as pa

        try:
            cursor = self._connection.execute(sql, parameters or [])
            names = [column[0] for column in cursor.description or []]
            return names, [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        except (duckdb.IOException, duckdb.InvalidInputException, pa.ArrowInvalid, OSError) as error:
            raise StoreError(f"cannot read the store: {_first_line(error)}") from error

    def of_adapters(
        self,
        table: str,
        adapter_ids: Sequence[str],
        columns: Sequence[str] = ("*",),
        where: str = "true",
        newest_by: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """Rows of one table about some adapters; the same as of its view, and without reading those of all others.

        Args:
            table: of the store, with an adapter_id.
            adapter_ids: whose.
            columns: which.
            where: a further condition on columns that decide a row's identity.
            newest_by: of the rows that agree in these columns the newest alone.

        Raises:
            StoreError: a file of the store cannot be read.
        """
        wanted = f"adapter_id IN (SELECT unnest(?::VARCHAR[])) AND {where}"
        newest = f"PARTITION BY {', '.join(newest_by)} ORDER BY scanned_at DESC, row_id"
        only = f"QUALIFY row_number() OVER ({newest}) = 1" if newest_by else ""
        return self.rows(f"SELECT {', '.join(columns)} FROM ({_visible(table, wanted)}) {only}", [list(adapter_ids)])

    def module_sizes(self, members: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
        """How large the modules of some groups of adapters are.

        Args:
            members: reference_id -> adapter ids.

        Returns:
            Rows of reference_id, module, center and mad (median and median deviation of ln ‖ΔW‖_F), n (siblings).

        Raises:
            StoreError: a file of the store cannot be read.
        """
        pairs = [(group, adapter_id) for group, ids in members.items() for adapter_id in ids]
        groups, ids = [list(column) for column in zip(*pairs, strict=True)] if pairs else ([], [])
        wanted = "adapter_id IN (SELECT unnest(?::VARCHAR[]))"
        return self.rows(
            f"""
            WITH sizes AS (
              SELECT adapter_id, module, ln(delta_frob) AS size FROM ({_visible("module_features", wanted)})
              WHERE delta_frob > 0  -- of a module that two versions measured, the later value counts
              QUALIFY row_number() OVER (PARTITION BY adapter_id, module ORDER BY scanned_at DESC, row_id) = 1
            ), groups AS (SELECT unnest(?::VARCHAR[]) AS reference_id, unnest(?::VARCHAR[]) AS adapter_id)
            SELECT reference_id, module, median(size) AS center, mad(size) AS mad, count(*) AS n
            FROM groups JOIN sizes USING (adapter_id) GROUP BY ALL
            """,
            [sorted(set(ids)), groups, ids],
        )

    def arrow(self, sql: str, parameters: list[Any] | None = None) -> pa.Table:
        """Run one of lorascope's own queries whose answer is large: an Arrow table. Errors as of `table`."""
        import duckdb
        import pyarrow as pa

        try:
            return self._connection.sql(sql, params=parameters or []).to_arrow_table()
        except (duckdb.IOException, duckdb.InvalidInputException, pa.ArrowInvalid, OSError) as error:
            raise StoreError(f"cannot read the store: {_first_line(error)}") from error

    def query(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Run a user's statement; (column names, rows).

        Raises:
            UsageError: not exactly one reading statement, or DuckDB refuses it.
        """
        import duckdb

        readers = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}
        try:
            statements = duckdb.extract_statements(sql)
            if len(statements) != 1 or statements[0].type not in readers:
                raise UsageError("the store is read-only: give one SELECT, DESCRIBE, SHOW or EXPLAIN statement")
            cursor = self._connection.execute(statements[0])
            return [column[0] for column in cursor.description or []], cursor.fetchall()
        except duckdb.Error as error:
            raise UsageError(f"SQL: {_first_line(error)}") from error

    def close(self) -> None:
        """Free the session."""
        self._connection.close()


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _dataset(root: StoreRoot, table: str) -> ds.Dataset:
    import pyarrow.dataset as ds

    files = root.list_parquet(table)
    schema = TABLES[table]
    if not files:
        return ds.dataset(schema.empty_table())
    return ds.FileSystemDataset.from_paths(
        files, schema=schema, format=ds.ParquetFileFormat(), filesystem=root.filesystem
    )


def _visible(table: str, where: str = "true") -> str:
    """The rows of a table that count, one for each `row_id`, as a query.

    Args:
        table: of `TABLES`.
        where: on columns that a row's identity decides alone, such as adapter_id. It is applied before rows are told
            apart, which DuckDB may not do by itself: one adapter of a large store costs what one adapter costs.
    """
    # What a crawl (or scan) itself says counts with its own row, everything else with its shard's marker.
    kinds = _MARKERS.get(table, "('shard', 'judge')")
    committed = f"shard_id IN (SELECT shard_id FROM raw_runs WHERE kind IN {kinds})"
    rows = (
        f"SELECT * FROM raw_{table} WHERE {'true' if table in ('runs', 'hub_status') else committed} AND {where} "
        "QUALIFY row_number() OVER (PARTITION BY row_id ORDER BY scanned_at DESC) = 1"
    )
    if table == "findings":
        # A finding of an earlier scan that the latest one did not make again is gone.
        newer = "f.adapter_id = a.adapter_id AND f.scanned_at < a.scanned_at"
        rows = f"SELECT f.* FROM ({rows}) f ANTI JOIN adapters a ON {newer}"
    return rows


def open_database(root: StoreRoot) -> Database:
    """Open the tables and views of DESIGN section 4 over the files that exist now.

    `runs` and `hub_status` rows are facts by themselves; the rows of every other table show only once their shard's
    marker is in `runs`, one for each `row_id` (the newest: a later scan of the same adapter replaces the earlier).

    Raises:
        StoreError: the store cannot be listed.
    """
    import duckdb

    connection = duckdb.connect(":memory:")
    connection.execute("SET TimeZone = 'UTC'")
    for table in TABLES:
        connection.register(f"raw_{table}", _dataset(root, table))
    for table in TABLES:
        connection.execute(f"CREATE VIEW {table} AS {_visible(table)}")
    connection.execute(_VIEWS)
    # A user's SQL must reach the store and nothing else: no files, no Python variables, no way to switch it back.
    connection.execute("SET enable_external_access = false")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET lock_configuration = true")
    return Database(connection)
