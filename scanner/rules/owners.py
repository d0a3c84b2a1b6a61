"""Owners of well-known base models, and names that only look like theirs."""

from __future__ import annotations

import re

__all__ = ["KNOWN_OWNERS", "copy_of", "look_alike"]

_OWNERS = """
01-ai ai21labs allenai apple baichuan-inc bigcode bigscience black-forest-labs codellama CohereForAI CohereLabs
cyberagent databricks deepseek-ai distilbert EleutherAI facebook FacebookAI google google-bert google-t5
HuggingFaceH4 HuggingFaceM4 HuggingFaceTB huggyllama ibm-granite intfloat internlm lmsys meta-llama microsoft
MiniMaxAI mistralai mlx-community moonshotai mosaicml NousResearch nvidia openai openai-community openbmb
openchat PowerInfer Qwen runwayml Salesforce sentence-transformers stabilityai stable-diffusion-v1-5 TheBloke
THUDM tiiuae TinyLlama togethercomputer unsloth upstage vikhyatk xai-org zai-org
"""
KNOWN_OWNERS = frozenset(_OWNERS.split())
_FAMILIES = (
    (re.compile(r"(meta-)?(code)?llama[-_.]?[234]", re.I), "meta-llama"),
    (re.compile(r"qwen[-_.]?\d|qwq-", re.I), "Qwen"),
    (re.compile(r"(mistral|mixtral|ministral|codestral)-", re.I), "mistralai"),
    (re.compile(r"gemma-?\d?-", re.I), "google"),
    (re.compile(r"phi-?\d", re.I), "microsoft"),
    (re.compile(r"deepseek-", re.I), "deepseek-ai"),
    (re.compile(r"falcon-?\d?-", re.I), "tiiuae"),
    (re.compile(r"flux\.\d", re.I), "black-forest-labs"),
)
_LOOKS = str.maketrans("01i5348", "ollseab", "-_.")
_WORDS = "official|real|the|hf|team|org|release|models?|inc|hub|verified|community"
_DECORATION = re.compile(rf"(?i)(^|[-_.])({_WORDS})(?=$|[-_.])")


def _skeleton(owner: str) -> str:
    """What a name looks like at a glance."""
    plain = _DECORATION.sub("", owner).lower().translate(_LOOKS)
    return plain.replace("rn", "m").replace("vv", "w").replace("cl", "d")


_SKELETONS = {_skeleton(owner): owner for owner in sorted(KNOWN_OWNERS)}
_LOWER = {owner.lower() for owner in KNOWN_OWNERS}


def look_alike(owner: str) -> str | None:
    """The known owner that `owner` is not but looks like, if any: other characters of the same look, added words, or
    one letter more, less or other in a name of at least six."""
    if owner.lower() in _LOWER:
        return None
    skeleton = _skeleton(owner)
    if skeleton in _SKELETONS:
        return _SKELETONS[skeleton]
    near = (
        known for seen, known in _SKELETONS.items() if min(len(seen), len(skeleton)) >= 6 and _one_edit(seen, skeleton)
    )
    return next(near, None)


def copy_of(repo_id: str) -> str | None:
    """The owner whose well-known model the name says it is, where it is somebody else's repo."""
    owner, _, name = repo_id.rpartition("/")
    if not owner or owner.lower() in _LOWER:
        return None
    return next((known for pattern, known in _FAMILIES if pattern.match(name)), None)


def _one_edit(one: str, other: str) -> bool:
    """Whether one insertion, deletion, substitution or swap of neighbours makes the two equal."""
    short, long = sorted((one, other), key=len)
    if len(long) - len(short) > 1:
        return False
    start = next((n for n, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if len(short) == len(long):
        swapped = short[:start] + short[start + 1 : start + 2] + short[start : start + 1] + short[start + 2 :]
        return short[start + 1 :] == long[start + 1 :] or swapped == long
    return short[start:] == long[start + 1 :]
