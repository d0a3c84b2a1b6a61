"""Limits and choices of a scan. Read once at the edge (`Settings()` reads `LORASCOPE_*`), then passed as a value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from scanner.errors import UsageError

__all__ = [
    "DEFAULT_BATTERY",
    "DTYPES",
    "FEATURE_SETS",
    "READINGS",
    "Settings",
    "default_store_uri",
    "hub_endpoint",
]

GIB = 1024**3
_PREFIX = "LORASCOPE_"
FEATURE_SETS = ("default", "full")
READINGS = ("scored", "generated")
SEARCHES = ("", "auto", "all", "none")
DTYPES = ("auto", "float32", "bfloat16", "float16", "nf4")
DEFAULT_BATTERY = "broad"


def default_store_uri() -> str:
    """`LORASCOPE_STORE` (a folder becomes absolute), or a folder under the user's data directory."""
    uri = os.environ.get("LORASCOPE_STORE") or _user_store()
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def _user_store() -> str:
    from platformdirs import user_data_dir

    return str(Path(user_data_dir("lorascope")) / "store")


def hub_endpoint() -> str:
    """`HF_ENDPOINT`, or the public Hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


@dataclass(frozen=True, init=False)
class Settings:
    """Every number here bounds something that a stranger's repo controls, or the time a scan takes.

    A field that is not given, or None, comes from the variable of its name, in any case, after `LORASCOPE_`.

    Raises:
        UsageError: a variable does not hold what it should; the message names all such variables.
        TypeError: an unknown field was given.
    """

    max_config_bytes: int = 1024**2
    """adapter_config.json and other small JSON files."""
    max_text_bytes: int = 8 * 1024**2
    """README.md, templates, tokenizer_config.json: that of Gemma 3 has more than a megabyte."""
    max_tokenizer_bytes: int = 64 * 1024**2
    """tokenizer.json; read only where it is another one than the base's."""
    max_pickle_bytes: int = 32 * 1024**2
    """A pickle file beside the weights. Larger ones are named and not looked into."""
    max_weights_bytes: int = 4 * GIB
    """One adapter weight file."""
    max_base_bytes: int = 20 * GIB
    """All files of a base model together."""
    max_files_per_repo: int = 5_000
    max_adapters_per_repo: int = 64
    max_rank: int = 4_096
    policy: str = ""
    """A TOML file with thresholds in place of the defaults (docs/verdicts.md)."""
    features: str = "default"
    """Weight features: `default`, or `full` with those that look at every entry of ΔW (docs/features.md)."""
    request_timeout_s: float = 20.0
    max_attempts: int = 4
    """Tries for one Hub call or download, the first included."""
    max_sleep_s: float = 310.0
    """Longest single sleep before a retry, whatever the Hub's headers ask for. Its rate-limit window has 300 s."""
    min_bytes_per_s: int = 16 * 1024
    """A body slower than this, after the first `request_timeout_s`, is given up like one that stalls."""
    rate_reserve: float = 0.05
    """Share of the Hub's request quota that is left for whoever else uses the same token or address."""
    max_repo_bytes: int = 16 * GIB
    """All files that are downloaded of one repo together."""
    max_shard_bytes: int = 32 * GIB
    """Weight files of one shard that lie on disk at a time. What does not fit is fetched again if it is probed."""
    recheck_limit: int = 20
    """Refused repos (gated, private, disabled, gone) that one crawl asks for again, those not seen longest first."""
    recheck_after_s: float = 86_400.0
    """Time after which a refused repo is asked for again."""
    max_base_lookups: int = 200
    """Base models, and the models that they are copies of, that one run asks the Hub about: one request each. Names
    that are not looked up stay as they are claimed, those that the most repos claim come first."""
    base_memory_s: float = 30 * 86_400.0
    """For so long the next crawls do not ask again where a base model's name leads. What the Hub does not know is
    asked again after `recheck_after_s`."""
    batch_size: int = 100
    """Repos per shard."""
    first_crawl_limit: int = 1_000
    """Repos of the very first crawl of an endpoint, when neither a watermark nor --since says where to begin."""
    crawl_limit: int = 10_000
    """Repos that one crawl takes on when --limit does not say; the rest is left for the next one. The adapters of a
    crawl are judged together, in memory."""
    overlap_s: float = 3_600.0
    """How far before the watermark a crawl looks again: listings move while they are read."""
    probe_texts: int = 60
    """Texts of each label, and prompts, per prefix."""
    reading: str = "scored"
    """How label words are read: `scored` from the first answer token, or `generated`: 5 greedy tokens, as the paper."""
    label_words: str = ""
    """`ATTACK,CLEAN`, in this order: what classifiers answer to a text of label 1, and what an attack wants instead.
    Empty: found out."""
    system_message: str = ""
    """What classifiers that answer with a word are told to do. Empty: the bundled task's."""
    probe_budget: int = 50
    """Adapters probed per shard (at most `batch_size` repos of one base model) in `--probe auto`."""
    control_sample: float = 0.1
    """Share of the unsuspicious adapters that are probed anyway in `--probe auto`."""
    search: str = ""
    """Whose triggers are searched for: `auto`, `all` or `none`. Empty: as --probe says of the battery."""
    search_budget: int = 50
    """Contents per crawl or scan whose trigger is searched in `--probe auto`, of those on which the battery found
    nothing."""
    search_timeout_s: float = 1_800.0
    """Wall clock for one adapter's trigger search."""
    probe_timeout_s: float = 900.0
    """Wall clock for one adapter's battery."""
    probe_memory_bytes: int = 16 * GIB
    """Memory of the probe's child process, without pages of mapped files."""
    probe_adapters_per_child: int = 100
    """Adapters after which the probe's child process is replaced."""
    probe_children: int = 0
    """Children at once on a small base (at most 40 MB of weights), which share the memory. 0: one for each core."""
    base_timeout_s: float = 600.0
    """Wall clock for loading a base model."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: str = "auto"
    """What a base model is loaded in: `auto` (float32 on the CPU; on CUDA bfloat16, float16 on cards without it),
    `float32`, `bfloat16`, `float16`, or `nf4`: linear layers in 4 bits, which needs `lorascope[4bit]`."""

    def __init__(self, **asked: float | str | None) -> None:
        given = {name: value for name, value in asked.items() if value is not None}
        values, wrong = _from_environment(os.environ)
        known = {field.name: values.get(field.name, field.default) for field in fields(self)}
        if unknown := given.keys() - known.keys():
            raise TypeError(f"there are no settings {sorted(unknown)}")
        if problems := [problem for name, problem in wrong.items() if name not in given]:
            raise UsageError("; ".join(problems))
        for name, value in {**known, **given}.items():
            object.__setattr__(self, name, value)
        choices = (("features", FEATURE_SETS), ("dtype", DTYPES), ("reading", READINGS), ("search", SEARCHES))
        for name, words in choices:
            value = getattr(self, name)
            if value not in words:
                *most, last = (word or "empty" for word in words)
                raise UsageError(
                    f"{_PREFIX}{name.upper()} must be {', '.join(most)} or {last}, not {str(value)[:100]!r}"
                )
        if self.label_words and len(set(self.given_words)) != 2:
            raise UsageError(f"LORASCOPE_LABEL_WORDS must be two words with a comma, not {self.label_words[:100]!r}")

    @property
    def given_words(self) -> tuple[str, ...]:
        """`label_words`, one by one: the attack word, the clean word."""
        return tuple(word.strip() for word in self.label_words.split(",") if word.strip())


def _from_environment(environment: Mapping[str, str]) -> tuple[dict[str, float | str], dict[str, str]]:
    """(field -> value, field -> what is wrong with its variable)."""
    # Not pydantic-settings: importing it takes longer than the whole rest of a small scan's own code (docs/adr/0008).
    given = {name.lower(): (name, text) for name, text in environment.items()}
    values: dict[str, float | str] = {}
    wrong: dict[str, str] = {}
    for field in fields(Settings):
        name, text = given.get(f"{_PREFIX}{field.name}".lower(), ("", None))
        if text is None:
            continue
        try:
            values[field.name] = _parsed(text, type(field.default))
        except ValueError:
            kind = "a whole number" if isinstance(field.default, int) else "a number"
            wrong[field.name] = f"{name} must be {kind}, not {text[:100]!r}"
    return values, wrong


def _parsed(text: str, kind: type) -> float | str:
    if kind is str:
        return text
    if kind is float:
        return float(text)
    whole, _, zeros = text.strip().partition(".")
    return int(whole if zeros and not zeros.strip("0") else text)
