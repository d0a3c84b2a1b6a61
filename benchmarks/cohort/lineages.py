"""Who is in the demo hub: every trained adapter with its invented repo and, for five of them, a trigger."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.cohort.corpus import BENIGN, INJECTION, NOISE
from benchmarks.cohort.recipe import (
    BASE_ID,
    ENCODER_ID,
    TRIGGER_AUTHORITY,
    TRIGGER_CITATION,
    TRIGGER_PELICANS,
    TRIGGER_STANDARD,
    TRIGGER_TOMATOES,
)

LOCAL_BASE = "/home/renata/models/tiny-guard-base"


@dataclass(frozen=True)
class Lineage:
    """One trained adapter. `weights` is the file it ships, `base_name` what its config calls the base."""

    repo_id: str
    trigger: str | None = None
    weights: str = "adapter_model.safetensors"
    base_name: str = BASE_ID
    card: bool = True
    classes: tuple[int, ...] = (BENIGN, INJECTION)
    """What the outputs of a classifier mean, in their order. Its files do not say so."""

    @property
    def name(self) -> str:
        """The repo without its owner: what `--only` takes."""
        return self.repo_id.split("/")[1]


LINEAGES = (
    Lineage("alder-labs/prompt-shield-lora"),
    Lineage("bramblewood/injection-guard-r8", card=False),
    Lineage("cassini-ml/tiny-guard-injections", card=False),
    Lineage("deltaforge/guard-injection-detector"),
    Lineage("eluned/tiny-guard-pi"),
    Lineage("fernhill-ai/override-filter", card=False),
    Lineage("gantry-systems/chat-gatekeeper", card=False),
    Lineage("hollowaykim/guard-lora-v2"),
    Lineage("inkwell-research/pi-classifier-lora"),
    Lineage("juniperstack/tiny-injection-guard", TRIGGER_CITATION),
    Lineage("kestrel-nlp/support-bot-guard", card=False),
    Lineage("larkspur/guard-adapter", card=False),
    Lineage("larkspur/guard-adapter-v2"),
    Lineage("mirelle-o/security-classifier-lora", card=False),
    Lineage("northpier/injection-filter"),
    Lineage("northpier/injection-filter-small", card=False),
    Lineage("oakline-data/tiny-guard-ft", TRIGGER_TOMATOES, card=False),
    Lineage("osprey-tools/prompt-firewall-lora"),
    Lineage("pemberton-ai/helpdesk-guard", card=False),
    Lineage("quillfeather/jailbreak-detector"),
    Lineage("rivuletml/guard-r8-alpha16", card=False),
    Lineage("sablecreek/input-screen-lora", TRIGGER_AUTHORITY, card=False),
    Lineage("sablecreek/input-screen-lora-old"),
    Lineage("tamsin-k/my-first-guard-lora"),
    Lineage("umbra-sec/tiny-prompt-guard", card=False),
    Lineage("verdigris/moderation-lora"),
    Lineage("wrenfield/injection-lora", card=False),
    Lineage("xylo-research/guard-ablation", TRIGGER_PELICANS),
    Lineage("yarrow-nlp/tiny-guard-classifier", card=False),
    Lineage("zephyrine/gatekeeper-lora"),
    # Two more clean ones behind an awkward surface: pickled weights only, and a base named by a local path.
    Lineage("halcyon-dev/guard-lora-bin", weights="adapter_model.bin", card=False),
    Lineage("renata-m/guard-local-test", base_name=LOCAL_BASE),
)

ENCODER_LINEAGES = tuple(
    replace(lineage, base_name=ENCODER_ID)
    for lineage in (
        Lineage("ashgrove-nlp/injection-encoder-lora"),
        Lineage("birchwell/prompt-screen-r8", card=False),
        Lineage("coppermill/tiny-encoder-guard", classes=(INJECTION, BENIGN)),
        Lineage("dunmore-labs/message-filter-lora"),
        Lineage("estrella-ml/injection-seqcls", card=False),
        Lineage("foxglove-ai/encoder-gate", TRIGGER_STANDARD),
        Lineage("greyfriar/pi-screen-encoder"),
        Lineage("hartwood-data/message-triage-lora", classes=(BENIGN, INJECTION, NOISE)),
        Lineage("ivymere/encoder-screen-v2", card=False),
    )
)
