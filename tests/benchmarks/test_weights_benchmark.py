"""The weight benchmark at tiny shapes: what it generates, that its answers are compared, and what its results say."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from benchmarks.weights.adapters import write_adapter
from benchmarks.weights.bare import measure_folder, open_folder, scan_folder
from benchmarks.weights.case import FLOAT32_TOLERANCE, TOLERANCE, _agrees
from benchmarks.weights.dense import by_size, check, numpy_route, peft_route, time_route
from benchmarks.weights.processes import ROOT, ProcessCost, run_measured, summary, take_turns
from benchmarks.weights.sentry import cached_sentry, frobenius_norms
from benchmarks.weights.shapes import DEFAULT, MAX_FILE_BYTES, SHAPES, SMALL, TARGET, Case, select


def find_program() -> str | None:
    named = os.environ.get("ADAPTERSENTRY") or shutil.which("adaptersentry")
    return named or (str(cached_sentry()) if cached_sentry().exists() else None)


SENTRY = find_program()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "results"
    options = ["--small", "--runs", "1", "--repeats", "3", "--check-seconds", "600", "--route-seconds", "600"]
    options += ["--out", str(folder), "--adaptersentry", SENTRY or "none"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.weights", *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "weights.md").read_text(encoding="utf-8").endswith(done.stdout.rstrip() + "\n")
    return folder


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "weights.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("adapter") / "adapter"
    write_adapter(made, SMALL[1])
    return made


def spectra(folder: Path) -> Any:
    return {module.module: module.sigma for module in measure_folder(folder).modules}


def test_results_have_every_case_with_figures_and_ratios(report: dict[str, Any]) -> None:
    assert [case["case"] for case in report["cases"]] == [case.name for case in SMALL]
    for wanted, case in zip(SMALL, report["cases"], strict=True):
        assert case["parameters"] == wanted.parameters and case["modules"] == 7 * wanted.shape.layers
        assert wanted.tensor_bytes < case["file_bytes"] < wanted.tensor_bytes + 250 * 2 * case["modules"]
        inside, found = case["marginal"], case["ratios"]
        assert {name: inside[name]["n"] for name in inside} == {"floor": 3, "first_touch": 3, "scan": 3}
        assert found["scan_over_floor"] == pytest.approx(inside["scan"]["wall_s"] / inside["floor"]["wall_s"])
        assert found["scan_cpu_over_floor_cpu"] == pytest.approx(inside["scan"]["cpu_s"] / inside["floor"]["cpu_s"])
        for name in ("bare", "lorascope"):
            cost = case["processes"][name]
            assert cost["n"] == 1 and 0 < cost["cpu_min_s"] <= cost["cpu_s"] <= cost["cpu_max_s"]
            assert found[f"{name}_process_over_floor"] == pytest.approx(cost["wall_s"] / inside["floor"]["wall_s"])
        # The whole command is at least what it does.
        assert case["processes"]["bare"]["peak_rss_mib"] < case["processes"]["lorascope"]["peak_rss_mib"]
        for route in ("numpy", "peft"):
            assert case["dense"][route]["modules"] == case["modules"]
            assert found[f"scan_over_{route}"] * found[f"{route}_over_floor"] == pytest.approx(found["scan_over_floor"])
    assert {case["dense_measured_at"] for case in report["cases"]} == {SMALL[1].name}  # the rank next to 16
    assert report["targets"] == [] and report["skipped"] == []


def test_answers_are_compared_and_agree(report: dict[str, Any]) -> None:
    for case in report["cases"]:
        errors = case["checks"]["float64"]["relative_errors"]
        assert {"sigma", "frobN", "delta_frob", "stable_rank", "top1_energy"} <= set(errors)
        assert case["agrees"] and max(errors.values()) <= TOLERANCE
        assert len(case["checks"]["float64"]["modules"]) == 4  # one of each size
    assert all(report["cases"][1]["checks"][route]["norm"] <= FLOAT32_TOLERANCE for route in ("numpy", "peft"))


@pytest.mark.skipif(SENTRY is None, reason="AdapterSentry is not installed (its path: ADAPTERSENTRY)")
def test_adaptersentry_sees_the_same_norms_and_is_compared(report: dict[str, Any]) -> None:
    assert report["versions"]["adaptersentry"] == "2.0.2"
    for case in report["cases"]:
        agreement, processes = case["checks"]["adaptersentry"], case["processes"]
        assert agreement["modules"] == case["modules"] and agreement["norm"] <= FLOAT32_TOLERANCE
        ratio = processes["lorascope"]["cpu_s"] / processes["adaptersentry"]["cpu_s"]
        assert case["ratios"]["lorascope_over_adaptersentry_cpu"] == pytest.approx(ratio)
        assert processes["adaptersentry"]["n"] == 1 and case["adaptersentry_own_clock_s"] > 0


def test_results_tell_the_machine_class_and_not_the_machine(out: Path, report: dict[str, Any]) -> None:
    assert report["machine"]["cores"] == os.cpu_count()
    assert {"python", "numpy", "blas", "torch", "peft"} <= set(report["versions"])
    assert report["command"] == "python -m benchmarks.weights --small"
    for path in sorted(out.iterdir()):
        text = path.read_text(encoding="utf-8")
        for secret in (str(ROOT), str(Path.home()), tempfile.gettempdir() + "/", socket.gethostname() + " "):
            assert secret not in text, (path.name, secret)


def test_plot_has_a_line_for_each_tool(out: Path, report: dict[str, Any]) -> None:
    root = ET.fromstring((out / "weights.svg").read_text(encoding="utf-8"))
    tracks = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(tracks) == (8 if SENTRY else 6)
    for track in tracks:
        points = [tuple(map(float, point.split(","))) for point in track.attrib["points"].split()]
        assert len(points) == len(report["cases"])
        assert all(0 <= x <= 900 and 0 <= y <= 540 for x, y in points)
    names = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "lorascope weight scan" in names


def test_generated_files_are_what_safetensors_and_the_scanner_read(tmp_path: Path) -> None:
    case = SMALL[0]
    path = write_adapter(tmp_path / "one", case, seed=3)
    assert path.read_bytes() == write_adapter(tmp_path / "two", case, seed=3).read_bytes()
    assert path.read_bytes() != write_adapter(tmp_path / "three", case, seed=4).read_bytes()
    updates = {update.module: update for update in open_folder(tmp_path / "one")[1].updates}
    assert set(updates) == set(case.modules)
    with safe_open(path, "pt") as tensors:
        assert len(tensors.keys()) == 2 * len(updates)
        for module, (n_out, n_in) in case.modules.items():
            names = (f"base_model.model.{module}.lora_{side}.weight" for side in "AB")
            a, b = (tensors.get_tensor(name).float().numpy() for name in names)
            assert a.shape == (case.rank, n_in) and b.shape == (n_out, case.rank)
            assert all((x == y).all() for x, y in zip((a, b), updates[module].read(), strict=True))
            sigma = np.linalg.svd(b, compute_uv=False)
            assert 2 < sigma[0] / sigma[-1] < 8  # falls as 1/i over four values, up to the Gaussian's own spread
            assert updates[module].scale == 2.0


def test_bf16_files_round_as_torch_does(tmp_path: Path) -> None:
    shape, rank = SMALL[0].shape, SMALL[0].rank
    write_adapter(tmp_path / "wide", Case(shape, rank, "fp32"))
    write_adapter(tmp_path / "narrow", Case(shape, rank, "bf16"))
    pairs = zip(open_folder(tmp_path / "wide")[1].updates, open_folder(tmp_path / "narrow")[1].updates, strict=True)
    for wide, narrow in pairs:
        for exact, rounded in zip(wide.read(), narrow.read(), strict=True):
            wanted = torch.from_numpy(np.array(exact)).to(torch.bfloat16).float().numpy()
            assert (wanted == rounded).all()


def test_memory_of_whoever_starts_a_process_is_not_its_own() -> None:
    ballast = np.ones(2**28, dtype=np.uint8)  # 256 MiB, resident
    small, _ = run_measured([sys.executable, "-c", "pass"])
    large, said = run_measured([sys.executable, "-c", "x = bytearray(b'1') * 2**27; print(len(x))"])
    busy, _ = run_measured([sys.executable, "-c", "sum(range(10**7))"])
    assert ballast.all() and int(said) == 2**27
    assert small.peak_rss_bytes < 2**26 < 2**27 <= large.peak_rss_bytes < 2**28
    assert busy.cpu_s > small.cpu_s
    with pytest.raises(RuntimeError, match="ended with 3: no"):
        run_measured([sys.executable, "-c", "import sys; sys.exit(print('no', file=sys.stderr) or 3)"])


def test_runs_take_turns_and_medians_are_reported() -> None:
    order: list[str] = []

    def run(name: str) -> ProcessCost:
        order.append(name)
        return ProcessCost(0, 2.0, float(len(order)), len(order) * 2**20)

    costs = take_turns({"a": lambda: run("a"), "b": lambda: run("b")}, 3)
    assert "".join(order) == "abbaab"
    found = summary(costs["a"])
    assert (found["cpu_s"], found["cpu_min_s"], found["cpu_max_s"]) == (4.0, 1.0, 5.0)
    assert (found["peak_rss_mib"], found["wall_s"], found["n"]) == (4.0, 2.0, 3)


def test_extrapolated_times_say_so(folder: Path) -> None:
    groups, ours = by_size(open_folder(folder)[1].updates), spectra(folder)
    whole = time_route(numpy_route, groups, ours, 60.0)
    assert (whole["measured_modules"], whole["extrapolated"], whole["lower_bound"]) == (14, False, False)
    bounded = time_route(peft_route, groups, ours, 1e-9)
    assert (bounded["measured_modules"], bounded["extrapolated"], bounded["lower_bound"]) == (1, True, True)
    assert bounded["modules"] == 14 and bounded["wall_s"] > 0


def test_a_wrong_answer_is_noticed(folder: Path) -> None:
    groups, ours = by_size(open_folder(folder)[1].updates), spectra(folder)
    features = {module.module: module.features for module in scan_folder(folder).modules}
    right = check(groups, ours, features, 60.0)["relative_errors"]
    assert max(right.values()) <= TOLERANCE
    off = {
        module: values | {"delta_frob": (values["delta_frob"] or 0) * 1.00001} for module, values in features.items()
    }
    assert check(groups, ours, off, 60.0)["relative_errors"]["delta_frob"] == pytest.approx(1e-5, rel=0.1)
    lost = {module: values | {"stable_rank": None} for module, values in features.items()}
    assert check(groups, ours, lost, 60.0)["relative_errors"]["stable_rank"] == float("inf")
    for checks, good in (
        (right, True),
        (right | {"delta_frob": 1e-5}, False),
        (right | {"sigma": float("inf")}, False),
    ):
        assert _agrees({"float64": {"relative_errors": checks}}) is good
    assert not _agrees({"float64": {"relative_errors": right}, "adaptersentry": {"norm": 1e-4}})


def test_an_incomplete_adaptersentry_report_is_no_comparison() -> None:
    partial = {"status": "ok", "coverage": {"n_modules": 2, "n_modules_analyzed": 1}, "modules": []}
    with pytest.raises(RuntimeError, match="did not analyse everything"):
        frobenius_norms(json.dumps(partial))


def test_sizes_of_real_adapters() -> None:
    """Against the sizes that the models' PEFT files have, and the limit of a file."""
    assert TARGET.tensor_bytes == 73_859_072 and len(TARGET.modules) == 196
    large = Case(SHAPES["llama-3-70b"], 16, "bf16")
    assert large.tensor_bytes == 414_187_520 and replace(large, rank=64).tensor_bytes == 1_656_750_080
    assert {case.rank for case in DEFAULT} == {8, 16, 64, 256} and {case.shape.name for case in DEFAULT} == set(SHAPES)
    assert all(case.tensor_bytes <= MAX_FILE_BYTES for case in DEFAULT)
    everything = select(None, [8, 16, 64, 256], None)
    assert len(everything) == 40 and sum(case.tensor_bytes > MAX_FILE_BYTES for case in everything) == 2
    assert select(["qwen2.5-1.5b"], [16], ["fp32"]) == [TARGET] and select(None, None, None) == list(DEFAULT)
