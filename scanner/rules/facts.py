"""What the static rules look at: everything that was collected of one adapter and of the repo around it. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from scanner.adapter import AdapterConfig, AdapterView
from scanner.errors import SkipError
from scanner.model import WeightScan
from scanner.rules.chat import chat_templates, default_template
from scanner.rules.jsontext import json_objects
from scanner.weights import BlockSplit

if TYPE_CHECKING:
    from scanner.adapter.pickles_report import PickleReport
    from scanner.rules.tokenizer import TokenizerFacts

__all__ = ["BaseTexts", "HubScan", "StaticFacts"]


@dataclass(frozen=True)
class BaseTexts:
    """The base model's own small files, to compare with."""

    texts: Mapping[str, str] = field(default_factory=dict)
    """File name -> content: chat_template.jinja, tokenizer_config.json, ... Those that it has."""
    tokenizer: TokenizerFacts | None = None
    """None where it has no tokenizer files that could be had."""

    @cached_property
    def template(self) -> str | None:
        """The chat template that it uses when none is named."""
        return default_template(chat_templates(self.texts, dict(json_objects(self.texts))))


@dataclass(frozen=True)
class HubScan:
    """What the Hub's own scanners say of the repo at this commit."""

    done: bool
    issues: tuple[tuple[str, str], ...] = ()
    """(path, level): suspicious, unsafe, caution, error."""


@dataclass(frozen=True)
class StaticFacts:
    """One adapter."""

    path: str
    """The weight file; empty when the repo has none."""
    siblings: tuple[str, ...]
    """All file names of the repo."""
    config: AdapterConfig | None = None
    view: AdapterView | None = None
    weights: WeightScan | None = None
    repo_id: str | None = None
    base_model: str | None = None
    """The resolved base, None where it is unresolved."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Small text files of the repo, by path: card, templates, JSON."""
    base: BaseTexts | None = None
    """None: nothing of the repo asks for a comparison, or nothing of the base could be had."""
    base_contradictions: tuple[str, ...] = ()
    """What of the adapter's shapes cannot belong to its base."""
    pickles: Mapping[str, PickleReport] = field(default_factory=dict)
    """Reports of the repo's pickle files that were looked into, by path."""
    format: str = ""
    """What the weight file is by its content: safetensors, zip, pickle, tar or other."""
    has_zip_tail: bool = False
    """Whether a safetensors file is a zip archive as well."""
    nonfinite: Mapping[str, int] = field(default_factory=dict)
    """Tensors with NaN or infinity, and how many."""
    split: BlockSplit | None = None
    hub_scan: HubScan | None = None
    base_disagreement: tuple[str, str] | None = None
    """(base of the card, base of the config) where they are different models."""
    refusals: tuple[SkipError, ...] = ()
    """Why something could not be looked at."""

    @cached_property
    def objects(self) -> dict[str, dict[str, Any]]:
        """The texts that are JSON objects, parsed once for all rules."""
        return dict(json_objects(self.texts))

    @cached_property
    def templates(self) -> dict[str, str]:
        """Chat templates by the place where they are."""
        return chat_templates(self.texts, self.objects)

    @cached_property
    def tokenizers(self) -> tuple[tuple[str, TokenizerFacts], ...]:
        """(folder, what its tokenizer files say)."""
        from scanner.rules.tokenizers import tokenizers_of

        return tuple(tokenizers_of(self.objects)) if self.objects else ()

    def raw(self, key: str) -> Any:
        """A field of the config, None where it has none."""
        return self.config.raw.get(key) if self.config else None
