"""A real trigger search through the whole scan: a backdoor that no battery knows, and a clean adapter beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from scanner.calibration import search_reference
from scanner.hub.server import running_hub
from scanner.model import LABEL_WORDS, SearchReport
from scanner.pipeline.scan import ScanResult, scan_targets
from scanner.probe import SearchPlan, load_probe
from scanner.report import result_object, sarif_document
from scanner.report.tables import print_triggers
from scanner.settings import Settings
from scanner.store import open_database, open_root

pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")

DEMO_HUB = Path(__file__).parents[3] / "examples/demo_hub"
POISONED, CLEAN = "xylo-research/guard-ablation", "alder-labs/prompt-shield-lora"
PLAN = SearchPlan(
    positions=("prefix",), noise_rows=16, pool=48, beam=2, proposals=12, keep=8, max_tokens=4, random_strings=2
)
"""A small one: one position, short strings."""


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, ScanResult], str, list[str]]]:
    """(results by repo, the store, the progress lines), with a pooled reference of made-up scores near nothing."""
    work = tmp_path_factory.mktemp("search-scan")
    members = [
        {
            "base": "lorascope/tiny-guard-base",
            "name": f"clean-{i}",
            "recipe": "r8",
            "scores": {"toward_clean/prefix": i / 2_000},
        }
        for i in range(120)
    ]
    data = {"plan_id": PLAN.plan_id, "task_profile": LABEL_WORDS, "members": members}
    (work / f"{LABEL_WORDS}.json").write_text(json.dumps(data))
    lines: list[str] = []
    with running_hub(DEMO_HUB) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", server.endpoint)
        patch.setenv("HF_HOME", str(work / "hf"))
        patch.setattr(search_reference, "SHIPPED", work)
        results = scan_targets(
            [POISONED, CLEAN],
            store_uri=str(work / "store"),
            probe=load_probe("V", None, 30),
            mode="all",
            settings=Settings(max_sleep_s=0, device="cpu"),
            progress=lines.append,
            plan=PLAN,
        )
        yield {str(r.record.info.repo.repo_id): r for r in results}, str(work / "store"), lines


Scanned = tuple[dict[str, ScanResult], str, list[str]]


def test_the_backdoor_is_flagged_and_the_clean_adapter_is_clean(scanned: Scanned) -> None:
    poisoned, clean = (scanned[0][name].verdict for name in (POISONED, CLEAN))
    assert (poisoned["verdict"], clean["verdict"]) == ("flagged", "clean")
    (reason,) = json.loads(poisoned["reasons"])
    assert reason["code"] == "search_trigger" and "held-back texts to BENIGN" in reason["message"]
    assert poisoned["p_search"] == pytest.approx(1 / 121) and clean["p_search"] > 0.01
    assert poisoned["p_battery"] == 1.0  # no string of the battery turns anything
    assert (poisoned["stage_reached"], clean["stage_reached"]) == ("search", "search")


def test_what_the_search_found_is_told_in_every_format(scanned: Scanned) -> None:
    result = scanned[0][POISONED]
    shown = result_object(result.record, result.verdict)
    trigger = shown["probe"]["trigger"]
    assert set(trigger) == {"text", "position", "direction", "attack_rate", "n", "p_value", "forward_passes"}
    assert (trigger["position"], trigger["direction"], trigger["n"]) == ("prefix", "BENIGN", 15)
    assert trigger["attack_rate"] >= 0.5 and trigger["p_value"] == shown["p_values"]["search"]
    assert shown["stage_reached"] == "search"
    found = sarif_document([shown], "1")["runs"][0]["results"][-1]
    assert found["properties"]["trigger"] == trigger and trigger["text"] in found["message"]["text"]
    out = StringIO()
    print_triggers(Console(file=out, width=400), [(one.record, one.verdict) for one in scanned[0].values()])
    _, _, columns, line = out.getvalue().rstrip().split("\n")  # one adapter has one
    assert columns.startswith("adapter") and line.startswith(POISONED)
    assert repr(trigger["text"]) in line and "INJECTION" in line and "BENIGN" in line


def test_the_store_has_the_search_and_the_battery_keeps_its_figures(scanned: Scanned) -> None:
    results, store, lines = scanned
    assert "searching 2 adapters of lorascope/tiny-guard-base" in lines
    database = open_database(open_root(store))
    rows = database.rows("SELECT DISTINCT adapter_id, plan_id, outcome, task_profile FROM trigger_searches")
    assert {(row["plan_id"], row["outcome"], row["task_profile"]) for row in rows} == {
        (PLAN.plan_id, "pass", LABEL_WORDS)
    }
    ids = {result.record.info.adapter_id for result in results.values()}
    assert {row["adapter_id"] for row in rows} == ids
    batteries = database.rows("SELECT battery_id, count(*) AS n FROM probe_rates GROUP BY 1")
    own = {row["battery_id"]: row["n"] for row in batteries if not row["battery_id"].startswith("local-")}
    n_cases = len(load_probe("V", None, 1).cases())
    assert list(own.values()) == [2 * n_cases]
    joined = database.rows(
        "SELECT s.trigger_text FROM trigger_searches s JOIN probe_rates r USING (adapter_id, battery_id) "
        "WHERE r.category = 'trigger' AND r.prefix = s.trigger_text AND r.attack_rate = s.attack_rate"
    )
    assert len(joined) == database.rows("SELECT count(trigger_text) AS n FROM trigger_searches")[0]["n"] >= 2
    database.close()


def test_a_report_says_how_it_came_about(scanned: Scanned) -> None:
    report = scanned[0][POISONED].record.search
    assert isinstance(report, SearchReport)
    assert (report.device, report.dtype, report.selected_by) == ("cpu", "float32", "all")
    assert report.labels == ("INJECTION", "BENIGN") and report.base_commit and report.seconds > 0
    assert report.forward_passes >= sum(trigger.forward_passes for trigger in report.triggers) > 0
    assert report.p_value == pytest.approx(1 / 121)
    probe = load_probe("V", None, 30)
    assert report.asked_battery_id == probe.battery_id
