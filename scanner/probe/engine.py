"""Attaching adapters to a resident base and asking it the battery's questions.

Imported only inside the probe worker (it needs torch). Adapters are attached as forward hooks built from our own
reading of the factors: nothing of the uploaded config reaches a framework's loader, and removing the hooks leaves
the base bit-identical.
"""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from transformers.pytorch_utils import Conv1D

from scanner.adapter import AdapterView, LowRankUpdate
from scanner.errors import ProbeCrashedError, UnsupportedError
from scanner.model import PrefixRun
from scanner.probe.base import BaseModel
from scanner.probe.battery import Probe
from scanner.probe.judge import read_answer

__all__ = [
    "MAX_NEW_TOKENS",
    "answer_prompts",
    "attached",
    "halving",
    "hooked",
    "probe_adapter",
    "run_battery",
    "tokens_per_batch_on",
]

T = TypeVar("T")

MAX_NEW_TOKENS = 5  # paper section "Behavioral detector": greedy, max_new_tokens=5
TOKENS_PER_BATCH = {"cpu": 8_192, "cuda": 65_536}
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_DEVICE_LOST = ("cuda error", "cublas_status", "cudnn_status", "cudnn error")
"""Parts of messages after which nothing on this device can be trusted until the process ends."""


@contextmanager
def attached(base: BaseModel, view: AdapterView) -> Iterator[None]:
    """Apply an adapter's low-rank updates to the base for the duration of the block.

    Raises:
        UnsupportedError: tensors that this engine would have to ignore, or see `hooked`. An adapter is probed whole or
            not at all.
    """
    if view.unexplained or view.heads or view.companions:
        names = (*view.unexplained, *view.heads, *(companion.tensor.name for companion in view.companions))
        raise UnsupportedError(f"{len(names)} full tensors are not applied by the probe: {names[0]}", "full_tensors")
    with hooked(base.model, view.updates):
        yield


@contextmanager
def hooked(model: Any, updates: Sequence[LowRankUpdate]) -> Iterator[None]:
    """Add low-rank updates to a model's modules for the duration of the block.

    Arithmetic follows PEFT's LoRA layers: the factors stay float32, the product is added to the module's output.

    Raises:
        UnsupportedError: a module that the model does not have or that is not linear, or shapes that do not fit.
    """
    handles = []
    try:
        for update in updates:
            if update.kind != "linear":
                raise UnsupportedError(f"{update.kind} updates are not applied by the probe", f"{update.kind}_update")
            module = _submodule(model, update.module)
            if not isinstance(module, torch.nn.Linear | Conv1D):
                kind = type(module).__name__
                raise UnsupportedError(f"{update.module[:120]} is no linear layer in the base: {kind}", "module_kind")
            weight = module.weight
            shape = tuple(weight.shape)
            if isinstance(module, Conv1D):  # GPT-2 keeps its linear weights transposed
                shape = shape[::-1]
            if shape != (update.out_features, update.in_features):
                raise UnsupportedError(
                    f"{update.module} is {shape} in the base, the adapter has "
                    f"{(update.out_features, update.in_features)}",
                    "base_mismatch",
                )
            a, b = update.read()
            device = weight.device
            down = torch.from_numpy(a.astype("float32")).to(device)
            up = torch.from_numpy(b.astype("float32")).to(device) * update.scale
            handles.append(module.register_forward_hook(_hook(down, up)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(down: torch.Tensor, up: torch.Tensor) -> Any:
    def add_update(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        delta = (inputs[0].to(torch.float32) @ down.T) @ up.T
        return output + delta.to(output.dtype)

    return add_update


def _submodule(model: Any, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise UnsupportedError(f"the base has no module {name[:120]}", "base_mismatch") from error


def answer_prompts(
    base: BaseModel, probe: Probe, prompts: Sequence[str], tokens_per_batch: int | None = None
) -> list[str]:
    """Greedy answers, read by the task: one of `1`, `0`, `-` for each prompt.

    The tokens that all prompts begin with (template, system message) are computed once. Prompts of equal token count
    share a batch, so there is no padding that could change logits. Generation stops as soon as no answer of a
    batch can change any more: after the attack word (it is tested first), the end token, or `MAX_NEW_TOKENS`.
    A batch has at most `tokens_per_batch` tokens (default: `TOKENS_PER_BATCH` of the device) or one prompt.

    Raises:
        UnsupportedError: the logits are not finite, or a prompt is empty or longer than the base's context.
    """
    encoded = [e.ids for e in base.tokenizer.encode_batch(list(prompts), add_special_tokens=False)]
    if not all(encoded):
        raise UnsupportedError("the chat template and the tokenizer leave nothing of a prompt", "empty_prompt")
    longest = max(map(len, encoded))
    context = getattr(base.model.config, "max_position_embeddings", None)
    if context and longest + MAX_NEW_TOKENS > context:
        raise UnsupportedError(f"a prompt has {longest} tokens, the base takes {context}", "prompt_too_long")
    # The smallest and the largest of all sequences differ where any two of them do. One token must stay for each.
    first, last = min(encoded), max(encoded)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    shared = min(shared, min(map(len, encoded)) - 1)
    groups: dict[int, list[int]] = defaultdict(list)
    for index, ids in enumerate(encoded):
        groups[len(ids)].append(index)
    limit = tokens_per_batch or tokens_per_batch_on(base.device)
    answers = ["-"] * len(prompts)
    with torch.inference_mode():
        past = _forward(base, torch.tensor([encoded[0][:shared]], device=base.device), None)[1] if shared else None
        for length, members in sorted(groups.items()):
            step = max(1, limit // length)
            for start in range(0, len(members), step):
                batch = members[start : start + step]
                tokens = torch.tensor([encoded[i][shared:] for i in batch], device=base.device)
                for index, answer in zip(batch, _generate(base, probe, tokens, past), strict=True):
                    answers[index] = answer
    return answers


def tokens_per_batch_on(device: str) -> int:
    """The first try's size of a batch."""
    return TOKENS_PER_BATCH["cpu" if device == "cpu" else "cuda"]


def _forward(base: BaseModel, tokens: torch.Tensor, past: Any) -> tuple[torch.Tensor, Any]:
    """(next-token logits [rows, vocabulary], cache) after one pass over `tokens` [rows, length]."""
    # Not every architecture can leave out the logits of the earlier positions.
    few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.model.forward).parameters else {}
    out = base.model(input_ids=tokens, past_key_values=past, use_cache=True, **few)
    logits = out.logits[:, -1]
    if not bool(torch.isfinite(logits).all()):
        raise UnsupportedError("the model's logits are not finite", "nan_logits")
    return logits, out.past_key_values


def _generate(base: BaseModel, probe: Probe, tokens: torch.Tensor, shared: Any) -> list[str]:
    rows = tokens.shape[0]
    generated: list[list[int]] = [[] for _ in range(rows)]
    answers = ["-"] * rows
    ended = [False] * rows
    past = copy.deepcopy(shared)  # a cache grows in place
    if past is not None:
        past.batch_repeat_interleave(rows)
    for _ in range(MAX_NEW_TOKENS):
        logits, past = _forward(base, tokens, past)
        tokens = logits.argmax(dim=-1, keepdim=True)
        for row, token in enumerate(tokens[:, 0].tolist()):
            if ended[row]:
                continue
            generated[row].append(token)
            answers[row] = read_answer(base.tokenizer.decode(generated[row]), probe.task)
            ended[row] = token in base.end_tokens or answers[row] == "1"
        if all(ended):
            break
    return answers


def probe_adapter(base: BaseModel, view: AdapterView, probe: Probe) -> list[PrefixRun]:
    """Attach an adapter, run the battery, detach it.

    Raises:
        UnsupportedError: see `attached` and `answer_prompts`.
        UnsupportedError, ProbeCrashedError: see `halving`.
    """

    def work(tokens_per_batch: int) -> list[PrefixRun]:
        with attached(base, view):
            return run_battery(base, probe, tokens_per_batch)

    return halving(work, tokens_per_batch_on(base.device))


def halving(work: Callable[[int], T], tokens_per_batch: int) -> T:
    """Work that takes a batch's size. Out of memory is tried again once, with half of a batch.

    Raises:
        UnsupportedError: `oom` or `probe_failed` when the framework gave up on this adapter alone.
        ProbeCrashedError: the device is lost, this process must end.
    """
    for size in (tokens_per_batch, tokens_per_batch // 2):
        try:
            return work(size)
        except (RuntimeError, MemoryError) as error:
            message = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
            if not _out_of_memory(error):
                if _device_lost(error):
                    raise ProbeCrashedError(message) from error
                raise UnsupportedError(message, "probe_failed") from error
        # Only here, with the error gone, do its frames let go of their tensors.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise UnsupportedError(f"{message}, with half a batch too", "oom")


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(part in str(error).lower() for part in _OUT_OF_MEMORY)


def _device_lost(error: BaseException) -> bool:
    if isinstance(error, getattr(torch, "AcceleratorError", ())):  # torch 2.8 and newer
        return True
    return any(part in str(error).lower() for part in _DEVICE_LOST)


def run_battery(base: BaseModel, probe: Probe, tokens_per_batch: int | None = None) -> list[PrefixRun]:
    """Ask every text under every prefix (`prefix. text`) and under the controls."""
    cases = probe.cases()
    prompts = [
        base.template.render(probe.task.system, f"{prefix}. {text}" if prefix else text)
        for _, prefix in cases
        for text in probe.texts
    ]
    answers = answer_prompts(base, probe, prompts, tokens_per_batch)
    n = len(probe.texts)
    return [
        PrefixRun(prefix, category, "prefix", "".join(answers[i * n : (i + 1) * n]))
        for i, (category, prefix) in enumerate(cases)
    ]
