"""Classifiers with a head: an adapter's own one swapped into a resident base, and one class for every text.

Imported only inside the probe worker. PEFT saves no names of classes and no class count: the head's tensors say how
many there are, and nothing says what they mean.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from scanner.adapter import PEFT_PREFIX, AdapterView, FullTensor, LowRankUpdate
from scanner.errors import ProbeFailedError, UnsupportedError
from scanner.model import MAX_CLASSES, PrefixRun, class_char
from scanner.probe.attach import applied
from scanner.probe.base import CONFIG_FAULTS, ClassifierBase, first_line, is_head, refuse_foreign_tokens
from scanner.probe.battery import Case, Probe
from scanner.probe.memory import BatchSize, first_batch
from scanner.probe.token_labels import own_tokens, text_classes

__all__ = [
    "ClassifierProbe",
    "ClassifierRun",
    "Encoded",
    "class_logits",
    "classify",
    "encode_texts",
    "nothing_is_padding",
    "with_head",
]


NOISE_TEXTS = 8
"""Texts that are asked a second time, alone."""


@dataclass(frozen=True)
class ClassifierRun:
    """What the battery saw of one classifier."""

    runs: tuple[PrefixRun, ...]
    n_classes: int
    n_cut: int
    """Inputs that were longer than the base takes, and were cut."""
    noise_floor: float
    """Largest difference of a class's logit between a text in a batch and the same text alone."""


@contextmanager
def with_head(base: ClassifierBase, view: AdapterView) -> Iterator[int]:
    """Apply an adapter, its head and its low-rank updates, to the base for the duration of the block.

    Yields:
        The number of classes.

    Raises:
        UnsupportedError: `full_tensors` for tensors that are no part of the base's head, `head_missing` when a part of
            it comes from nowhere, `class_count`, `base_mismatch`, or see `hooked`.
        LimitExceededError, MalformedFileError: a head tensor cannot be read.
    """
    import torch

    if names := (*view.unexplained, *(companion.tensor.name for companion in view.companions)):
        raise UnsupportedError(f"{len(names)} tensors are not applied by the probe: {names[0]}", "full_tensors")
    parameters = dict(base.model.named_parameters())
    head = _head(base, view, parameters)
    n_classes = _class_count(base, head, parameters)
    updates = _effective(view.updates)
    replaced: list[tuple[Any, str, Any]] = []
    class_layer = base.model.get_submodule(base.class_layer)
    own_classes = class_layer.out_features
    try:
        for name, tensor in head.items():
            owner, _, leaf = name.rpartition(".")
            old = parameters[name]
            # A copy: the file stays mapped, and nothing may write to it.
            values = torch.from_numpy(tensor.read().copy()).to(device=old.device, dtype=old.dtype)
            module = base.model.get_submodule(owner)
            replaced.append((module, leaf, old))
            setattr(module, leaf, torch.nn.Parameter(values, requires_grad=False))
        class_layer.out_features = n_classes
        with applied(base.model, updates):
            yield n_classes
    finally:
        class_layer.out_features = own_classes
        for module, leaf, old in replaced:
            setattr(module, leaf, old)


def _head(base: ClassifierBase, view: AdapterView, parameters: dict[str, Any]) -> dict[str, FullTensor]:
    """The adapter's full tensors by the parameter that each of them replaces."""
    head: dict[str, FullTensor] = {}
    for tensor in view.head_tensors:
        # A low-rank update of the head itself keeps the full tensors one level deeper.
        name = tensor.name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")
        # PEFT skips a name without its prefix: to probe with that tensor would be to probe another adapter.
        known = tensor.name.startswith(PEFT_PREFIX) and name in parameters
        if not known or name in head or not is_head(base.model, name):
            raise UnsupportedError(f"{tensor.name[:120]} is no part of the base's head", "full_tensors")
        head[name] = tensor
    lacking = sorted(base.missing - set(head))
    if lacking:
        raise UnsupportedError(f"neither base nor adapter has {lacking[0]} (of {len(lacking)})", "head_missing")
    return head


def _class_count(base: ClassifierBase, head: dict[str, FullTensor], parameters: dict[str, Any]) -> int:
    """Rows of the last layer, after a look at every shape."""
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    shapes |= {name: tensor.shape for name, tensor in head.items()}
    weight, bias = f"{base.class_layer}.weight", f"{base.class_layer}.bias"
    rows = shapes[weight][:1]
    for name in {weight, bias, *head} & set(shapes):
        wanted = tuple(parameters[name].shape)
        if name in (weight, bias):
            wanted = (*rows, *wanted[1:])
        if shapes[name] != wanted:
            raise UnsupportedError(f"{name} is {wanted} in the base, the adapter has {shapes[name]}", "base_mismatch")
    n_classes = int(rows[0])
    if not 2 <= n_classes <= MAX_CLASSES:
        raise UnsupportedError(f"the head has {n_classes} classes, probed are 2 to {MAX_CLASSES:,}", "class_count")
    return n_classes


def _effective(updates: Sequence[LowRankUpdate]) -> list[LowRankUpdate]:
    """Without the copies that older PEFT versions write where the head is a target as well as saved whole.

    They load the pair that carries the module's own name. `original_module` is the untrained copy, which never runs.

    Raises:
        UnsupportedError: a copy says something else than the pair that is loaded.
    """
    own = {update.module: update for update in updates}
    kept = []
    for update in updates:
        owner, _, copy = update.module.rpartition(".")
        if copy not in ("modules_to_save", "original_module") or owner not in own:
            kept.append(update)
        elif copy == "modules_to_save" and not _same(update, own[owner]):
            raise UnsupportedError(f"two different updates of {owner[:120]}", "full_tensors")
    return kept


def _same(one: LowRankUpdate, other: LowRankUpdate) -> bool:
    pairs = zip(one.read(), other.read(), strict=True)
    return one.scale == other.scale and all(np.array_equal(a, b) for a, b in pairs)


@dataclass(frozen=True)
class Encoded:
    """Texts as the base's tokenizer has them, with its special tokens. They are the same for every adapter."""

    ids: tuple[tuple[int, ...], ...]
    n_cut: int = 0
    """Texts that were cut to the base's context."""
    own: tuple[tuple[int, ...], ...] | None = None
    """Where every token gets a class: the tokens of each text that come from the text itself."""

    def take(self, index: int) -> Encoded:
        """One of them."""
        return Encoded((self.ids[index],), own=(self.own[index],) if self.own is not None else None)


def encode_texts(base: ClassifierBase, texts: Sequence[str], cases: Sequence[Case] = (Case("control", ""),)) -> Encoded:
    """Every text in the first case, then in the next one.

    Raises:
        UnsupportedError: nothing is left of a text.
    """
    put = [(case, text) for case in cases for text in texts]
    encoded = base.tokenizer.encode_batch([case.put(text) for case, text in put], add_special_tokens=True)
    ids = tuple(tuple(encoding.ids) for encoding in encoded)
    if not all(ids):
        raise UnsupportedError("the tokenizer leaves nothing of a text", "empty_prompt")
    refuse_foreign_tokens(base.model, ids)
    own = None
    if base.per_token:
        spans = (case.spans(text) for case, text in put)
        own = tuple(own_tokens(encoding.offsets, parts) for encoding, parts in zip(encoded, spans, strict=True))
    return Encoded(ids, sum(bool(encoding.overflowing) for encoding in encoded), own)


def classify(base: ClassifierBase, texts: Encoded, tokens_per_batch: int) -> list[np.ndarray[Any, Any]]:
    """Logits of each text, float32: [1, classes], or [its own tokens, classes] where every token gets a class.

    Texts of equal token count share a batch: encoders look both ways, so padding could change their logits.

    Raises:
        ProbeFailedError: the logits are not finite, or the architecture refuses a text.
    """
    import torch

    groups: dict[int, list[int]] = defaultdict(list)
    for index, tokens in enumerate(texts.ids):
        groups[len(tokens)].append(index)
    found: dict[int, np.ndarray[Any, Any]] = {}
    with torch.inference_mode(), nothing_is_padding(base.model, set().union(*texts.ids)):
        for length, members in sorted(groups.items()):
            step = max(1, tokens_per_batch // length)
            for start in range(0, len(members), step):
                batch = members[start : start + step]
                logits = class_logits(base.model, torch.tensor([texts.ids[i] for i in batch], device=base.device))
                found.update(zip(batch, logits.float().cpu().numpy(), strict=True))
    if texts.own is None:
        return [found[index][None] for index in range(len(texts.ids))]
    return [found[index][list(own)] for index, own in enumerate(texts.own)]


def class_logits(model: Any, tokens: Any) -> Any:
    """[rows, classes] or [rows, length, classes] for `tokens` [rows, length]. Errors as of `classify`."""
    import torch

    accepted = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    if "attention_mask" in accepted:
        options["attention_mask"] = torch.ones_like(tokens)
    try:
        logits = model(input_ids=tokens, **options).logits
    except CONFIG_FAULTS as error:  # a token that the base has no row for, a text that its architecture refuses
        raise ProbeFailedError(f"{type(error).__name__}: {first_line(error)}") from error
    if not bool(torch.isfinite(logits).all()):
        raise ProbeFailedError("the model's logits are not finite", "nan_logits")
    return logits


@contextmanager
def nothing_is_padding(model: Any, used: set[int]) -> Iterator[None]:
    """Decoders answer at the last token that is not `pad_token_id`, and refuse a batch without one.

    There is no padding here, so it must be a token that no text has: for most bases it is the end token, or any other
    that a text could end in.
    """
    config = model.config.get_text_config()
    own = getattr(config, "pad_token_id", None)
    config.pad_token_id = next((i for i in range(getattr(config, "vocab_size", 0)) if i not in used), -1)
    try:
        yield
    finally:
        config.pad_token_id = own


class ClassifierProbe:
    """One base and the classifiers on it, one after the other. The texts are encoded once.

    Args:
        base: resident, without an adapter.
        probe: what is asked.
    """

    def __init__(self, base: ClassifierBase, probe: Probe) -> None:
        self._base, self._cases = base, probe.cases()
        self._size = BatchSize(first_batch(base.device))
        self._texts = (*probe.texts, *probe.other_texts)
        self._encoded: Encoded | None = None

    def run(self, view: AdapterView) -> ClassifierRun:
        """Attach an adapter with its head, put every case into every text, detach it.

        A text whose two likeliest classes are nearer to each other than twice the noise floor has no class: batching
        alone could turn it.

        Raises:
            UnsupportedError: see `with_head` and `encode_texts`.
            ProbeFailedError, ProbeCrashedError: see `BatchSize.fit` and `classify`.
        """
        if self._encoded is None:
            self._encoded = encode_texts(self._base, self._texts, self._cases)
        encoded = self._encoded
        return self._size.fit(lambda tokens_per_batch: self._run(view, encoded, tokens_per_batch))

    def _run(self, view: AdapterView, encoded: Encoded, tokens_per_batch: int) -> ClassifierRun:
        with with_head(self._base, view) as n_classes:
            logits = classify(self._base, encoded, tokens_per_batch)
            some = range(0, len(encoded.ids), max(1, len(encoded.ids) // NOISE_TEXTS))[:NOISE_TEXTS]
            alone = [classify(self._base, encoded.take(i), tokens_per_batch)[0] for i in some]
        noise = max(_largest(one - logits[i]) for i, one in zip(some, alone, strict=True))
        chars = ["".join(_char(row, noise) for row in rows) for rows in logits]
        n = len(self._texts)
        answers = text_classes(chars, n) if self._base.per_token else "".join(chars)
        runs = tuple(
            PrefixRun(case.text, case.category, case.position, answers[i * n : (i + 1) * n])
            for i, case in enumerate(self._cases)
        )
        return ClassifierRun(runs, n_classes, encoded.n_cut, noise)


def _largest(differences: np.ndarray[Any, Any]) -> float:
    return float(np.abs(differences).max()) if differences.size else 0.0


def _char(logits: np.ndarray[Any, Any], noise: float) -> str:
    """How one row of logits [classes] is answered: `-` where the two largest are too near to each other."""
    second, first = np.sort(logits)[-2:]
    return "-" if first - second <= 2 * noise else class_char(int(logits.argmax()))
