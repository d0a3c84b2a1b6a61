"""Where the name of a base model leads: renames, quantised copies, names that the Hub does not know.

Adapters of one model claim many names for it: a legacy one (`gpt2`), a former one, a 4-bit copy. Only siblings of one
base can be compared, so each name is followed to its root, and every step is kept as evidence. The Hub's metadata
decides; nothing of a base is downloaded here but, where shapes are to be compared, its config.json.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scanner.errors import AccessDeniedError, SkipError, TransientError
from scanner.hub.names import hub_id, last_segment, related_bases, tagged_bases
from scanner.model import UNRESOLVED, BaseResolution, BaseStep, dump_json, load_json

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

    from scanner.hub.client import HubClient

__all__ = ["BaseResolver", "walk"]

MAX_DEPTH = 4
"""Copies of copies that are followed. Real chains have one or two."""
MAX_FAILURES = 3
"""Names without an answer after all tries; then a run asks no more."""
MAX_TEXT = 300
_REMEMBERED = "remembered.json"
_FAILED = ".answer-failed.json"
# One request at a time: that is how two threads do not ask for the same name.
_ASKING = threading.Lock()


@dataclass(frozen=True)
class Answer:
    """What the Hub said to one name."""

    id: str
    """As the Hub spells it, after redirects."""
    commit_sha: str | None = None
    copy_of: tuple[str, ...] = ()
    """Models of which it says that it is a quantised copy."""
    method: str = ""
    """How it was quantised."""
    refusal: str = ""
    """Why there is no answer: a kind of `BaseStep`."""
    message: str = ""


def parse_answer(info: ModelInfo) -> Answer:
    """The part of a model's metadata that resolution needs. Whoever owns the repo writes it: nothing is taken as is."""
    if not (isinstance(info.id, str) and hub_id(info.id)):
        return Answer("", refusal="refused", message="the Hub answered with something that is no id")
    relation, related = related_bases(getattr(info, "base_models", None))
    if not related and (tagged := tagged_bases(info.tags).get("quantized")):
        relation, related = "quantized", (tagged,)
    config = info.config if isinstance(info.config, dict) else {}
    how = config.get("quantization_config")
    method = how.get("quant_method") if isinstance(how, dict) else None
    sha = info.sha if isinstance(info.sha, str) else None
    return Answer(
        info.id, sha, related if relation == "quantized" else (), method[:40] if isinstance(method, str) else ""
    )


def walk(name: str, ask: Callable[[str], Answer]) -> BaseResolution:
    """Follow a Hub id to its root.

    The root is the last id that the Hub has confirmed; a circle, or too long a chain, proves none, and its first
    confirmed id is kept. An id that the Hub does not know stays as claimed, because private bases are common; but these
    have an owner, so an unknown single name (`base_model`, `output`) is a folder on somebody's disk and unresolved.
    """
    steps: list[BaseStep] = []
    first: Answer | None = None
    last: Answer | None = None
    seen: set[str] = set()
    at = name
    while True:
        answer = ask(at)
        if answer.refusal:
            steps.append(BaseStep(answer.refusal, at, answer.message))
            break
        if answer.id != at:
            steps.append(BaseStep("redirect", answer.id, at))
        if answer.id.lower() in seen:
            steps.append(BaseStep("loop", answer.id))
            last = first
            break
        seen.add(answer.id.lower())
        first, last = first or answer, answer
        steps.append(BaseStep("known", answer.id, answer.commit_sha or ""))
        if not answer.copy_of:
            break
        if len(answer.copy_of) > 1:
            steps.append(BaseStep("ambiguous", answer.id, f"a copy of {', '.join(answer.copy_of)}"[:MAX_TEXT]))
            break
        if len(seen) > MAX_DEPTH:
            steps.append(BaseStep("too_deep", answer.id))
            last = first
            break
        at = answer.copy_of[0]
        steps.append(BaseStep("quantized", at, f"{answer.id} is a copy of it{answer.method and f' ({answer.method})'}"))
    if last is not None:
        return BaseResolution(name, last.id, last.commit_sha, tuple(steps))
    is_folder = steps[-1].kind == "unknown_to_hub" and "/" not in name
    return BaseResolution(name, UNRESOLVED if is_folder else name, None, tuple(steps))


class BaseResolver:
    """Names of base models of one run: each is asked for once, and what the Hub said holds for the whole run.

    The answers lie in a folder of the run, so that shards in other threads or processes find them.

    Args:
        folder: of the run.
        client: the Hub; None asks nothing.
        max_lookups: requests of the run.
    """

    def __init__(self, folder: Path, client: Callable[[], HubClient] | None, max_lookups: int) -> None:
        self._folder, self._client, self._max_lookups = folder, client, max_lookups
        self._known: dict[str, BaseResolution] | None = None

    def remember(self, resolutions: Iterable[BaseResolution]) -> None:
        """Leave what earlier runs found out, for every resolver of this folder."""
        self._write(self._folder / _REMEMBERED, dump_json(list[BaseResolution], list(resolutions)))
        self._known = None

    def resolve(self, name: str) -> BaseResolution:
        """Where a claimed name leads. What cannot be a Hub id asks nothing and is unresolved.

        Raises:
            StopError: the Hub cannot be reached at all, or refuses the token.
        """
        claimed = hub_id(name)
        if claimed is None:
            return BaseResolution(name, UNRESOLVED, None, (BaseStep("not_a_hub_id", name[:MAX_TEXT]),))
        known = self._resolutions()
        if (before := known.get(claimed)) is not None:
            return before
        note = self._note(claimed, "resolved")
        if note.exists():
            found = load_json(BaseResolution, note.read_bytes())
        else:
            found = walk(claimed, self._ask)
            if found.is_final:
                self._write(note, dump_json(BaseResolution, found))
        if found.is_final:
            known[claimed] = found
        return found

    def resolved(self) -> list[BaseResolution]:
        """What this run has found out itself, in a stable order."""
        notes = sorted(self._folder.glob("*.resolved.json"))
        return [load_json(BaseResolution, note.read_bytes()) for note in notes]

    def roots_named(self, path: str) -> dict[str, str]:
        """Confirmed roots (id -> commit) of which one name ends like a path does, letters' case aside."""
        wanted = last_segment(path)
        return {
            found.root: found.commit_sha
            for found in self._resolutions().values()
            if found.commit_sha and wanted in (last_segment(found.name), last_segment(found.root))
        }

    def file(self, root: str, commit_sha: str, name: str, limit_bytes: int, *, is_small: bool = True) -> Path | None:
        """A file of a base, fetched at the first call; None where it cannot be had (gated, absent, too large)."""
        note = self._note(f"{root}@{commit_sha}/{name}", "file")
        if not note.exists():
            if self._client is None:
                return None
            with _ASKING:
                if not note.exists():
                    path = self._fetch(root, commit_sha, name, limit_bytes, is_small)
                    self._write(note, json.dumps({"path": str(path) if path else None}).encode())
        known: str | None = json.loads(note.read_bytes())["path"]
        return Path(known) if known else None

    def _fetch(self, root: str, commit_sha: str, name: str, limit_bytes: int, is_small: bool) -> Path | None:
        from scanner.hub.download import Downloader

        assert self._client is not None
        client = self._client()
        downloader = Downloader(client.endpoint, self._folder / "files")
        try:
            return client.call(lambda: downloader.fetch(root, commit_sha, name, limit_bytes, is_small=is_small))
        except (SkipError, TransientError):
            return None  # nothing is then compared with it; the name stands by itself

    def _resolutions(self) -> dict[str, BaseResolution]:
        if self._known is None:
            path = self._folder / _REMEMBERED
            before = load_json(list[BaseResolution], path.read_bytes()) if path.exists() else []
            self._known = {found.name: found for found in (*before, *self.resolved())}
        return self._known

    def _ask(self, name: str) -> Answer:
        key = name.lower()  # the Hub does not tell letters' case apart
        found = self._noted(key)
        if found is None:
            with _ASKING:
                found = self._noted(key) or self._not_now()
                if found is None:
                    found = self._answer(name)
                    kind = "answer-failed" if found.refusal == "unreachable" else "answer"
                    self._write(self._note(key, kind), json.dumps(asdict(found)).encode())
        return found

    def _noted(self, key: str) -> Answer | None:
        for kind in ("answer", "answer-failed"):
            note = self._note(key, kind)
            if note.exists():
                known: dict[str, Any] = json.loads(note.read_bytes())
                return Answer(**{**known, "copy_of": tuple(known["copy_of"])})
        return None

    def _not_now(self) -> Answer | None:
        if self._client is None:
            return Answer("", refusal="not_looked_up")
        names = [path.name for path in self._folder.glob("*.answer*.json")]
        if len(names) >= self._max_lookups:
            return Answer("", refusal="not_looked_up", message=f"limit of {self._max_lookups} look-ups")
        failed = sum(name.endswith(_FAILED) for name in names)
        return Answer("", refusal="not_looked_up", message="the Hub fails") if failed >= MAX_FAILURES else None

    def _answer(self, name: str) -> Answer:
        assert self._client is not None
        try:
            return parse_answer(self._client().base(name))
        except AccessDeniedError as error:
            kind = {"gone": "unknown_to_hub", "offline": "not_looked_up"}.get(error.code, "refused")
            return Answer("", refusal=kind, message=error.message[:MAX_TEXT])
        except TransientError as error:
            return Answer("", refusal="unreachable", message=error.message[:MAX_TEXT])
        except SkipError as error:
            return Answer("", refusal="refused", message=error.message[:MAX_TEXT])
        except (TypeError, KeyError, AttributeError) as error:  # of a shape that the library does not expect
            return Answer("", refusal="refused", message=f"the Hub's answer cannot be read: {error}"[:MAX_TEXT])

    def _note(self, name: str, kind: str) -> Path:
        return self._folder / f"{sha256(name.encode()).hexdigest()}.{kind}.json"

    def _write(self, note: Path, value: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        part = note.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        part.write_bytes(value)
        part.replace(note)
