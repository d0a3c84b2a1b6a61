"""What was measured on adapters, without the adapters: `python -m benchmarks.detection.measured pack minilm-fresh`.

Training, searching and asking take hours, and the cache comes and goes. `pack` writes what lies beside the adapters
whose name begins so, truth, searches and answers, into `results/measured/NAME.jsonl.gz`; `unpack` puts it back into a
cache, where a table can be made of it with other references or another policy. Weights are not in it: whoever wants
those builds again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.detection.search import built, default_cache

__all__ = ["MEASURED", "pack", "unpack"]

MEASURED = Path(__file__).with_name("results") / "measured"
_TRUTH = "truth.json"
_CONFIG = "adapter_config.json"  # belongs to the weights


def pack(cache: Path, name: str, out: Path) -> int:
    """Write one line for each adapter whose name begins with `name`: its folder and its JSON files.

    Returns:
        How many there are. The bytes depend on what was measured alone.
    """
    rows = [
        {
            "folder": folder.relative_to(cache).as_posix(),
            "files": {path.name: json.loads(path.read_text(encoding="utf-8")) for path in _measured(folder)},
        }
        for folder, _ in built(cache)
        if folder.name.startswith(name)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(gzip.compress(text.encode(), mtime=0))
    return len(rows)


def _measured(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("*.json")) if path.name != _CONFIG)


def unpack(path: Path, cache: Path) -> int:
    """Put packed files back; what a cache has already stays.

    Returns:
        How many adapters were not in the cache.

    Raises:
        ValueError: a file of the archive would lie outside of the cache.
    """
    rows: list[dict[str, Any]] = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    n = 0
    for row in rows:
        folder = (cache / row["folder"]).resolve()
        if not folder.is_relative_to(cache.resolve()) or any("/" in name for name in row["files"]):
            raise ValueError(f"{path.name} has a file outside of the cache: {row['folder']}")
        if (folder / _TRUTH).is_file():
            continue
        n += 1
        folder.mkdir(parents=True, exist_ok=True)
        # The truth last: with it the adapter counts as measured.
        for name, content in sorted(row["files"].items(), key=lambda item: item[0] == _TRUTH):
            (folder / name).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    return n


def main() -> None:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("name", help="what the adapters' names begin with")
    parser.add_argument("--cache", type=Path, default=default_cache())
    args = parser.parse_args()
    path = MEASURED / f"{args.name}.jsonl.gz"
    n = pack(args.cache, args.name, path) if args.what == "pack" else unpack(path, args.cache)
    print(f"{args.name}: {n} adapters {args.what}ed", file=sys.stderr)


if __name__ == "__main__":
    main()
