"""Real configs and adapters: what the rules say of files that real people published. False alarms are counted here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scanner.adapter import parse_config
from scanner.hub.sources import FolderFiles, folder_ref
from scanner.model import Outcome, ScanRecord, Severity
from scanner.pipeline.collect import collect_repo
from scanner.rules import StaticFacts, check_static
from scanner.settings import Settings

DESERVED = {
    # GLiNER2 is a library of its own: PEFT would import whatever package of that name is installed.
    ("Import-Saurabh+Gliner_Finetuning", "LS004"),
}
"""Findings above low among the 58 real configs, each with its reason."""
N_CONFIGS, N_ADAPTERS = 58, 15


def test_real_configs_raise_nothing_above_low(data_dir: Path) -> None:
    files = sorted((data_dir / "configs").glob("*.json"))
    assert len(files) == N_CONFIGS
    raised = set()
    for file in files:
        facts = StaticFacts("adapter_model.safetensors", ("adapter_model.safetensors",), format="safetensors")
        config = parse_config(json.loads(file.read_text(encoding="utf-8")))
        for finding in check_static(StaticFacts(facts.path, facts.siblings, config, format=facts.format)):
            if finding.severity.order > Severity.LOW.order:
                raised.add((file.name.rpartition("__")[0], finding.rule_id))
    assert raised == DESERVED


def real_folders(data_dir: Path) -> list[Path]:
    return sorted(path for path in (data_dir / "adapters").iterdir() if path.is_dir())


def scan(folder: Path) -> list[ScanRecord]:
    settings = Settings()
    return collect_repo(folder_ref(str(folder)), FolderFiles(folder, settings.max_files_per_repo), settings)


@pytest.fixture(scope="module")
def records(data_dir: Path) -> list[ScanRecord]:
    folders = real_folders(data_dir)
    assert len(folders) == N_ADAPTERS
    return [record for folder in folders for record in scan(folder)]


def test_real_adapters_are_read_completely(records: list[ScanRecord]) -> None:
    assert len(records) == N_ADAPTERS
    for record in records:
        assert (record.outcome, record.message) == (Outcome.PASS, "")
        assert record.info.coverage == 1.0
        assert record.info.modules > 0


def test_real_adapters_raise_nothing_above_low(records: list[ScanRecord]) -> None:
    raised = {(r.info.repo.target.rpartition("/")[2], f.rule_id) for r in records for f in r.findings
              if f.severity.order > Severity.LOW.order}  # fmt: skip
    assert raised == set()


def test_no_real_module_comes_near_the_thresholds(records: list[ScanRecord]) -> None:
    """LS028 and LS034 were set with these in view; the distance is kept."""
    for record in records:
        assert record.weights is not None
        energies = [m.features["top1_energy"] or 0.0 for m in record.weights.modules if m.rank >= 4]
        assert not energies or min(energies) < 0.7
        shares = [m.features["row_top8_energy"] or 0.0 for m in record.weights.modules if m.out_features >= 64]
        assert max(shares, default=0.0) < 0.45
