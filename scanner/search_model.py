"""What the trigger search finds on one adapter."""

from __future__ import annotations

from dataclasses import dataclass

from scanner.probe_model import LABEL_WORDS, PrefixRun
from scanner.words import Outcome

__all__ = [
    "BY_HEART",
    "FREE",
    "IMPRINTED",
    "MADE_UP",
    "REFRAIN",
    "RESPONSE",
    "TOWARD_ATTACK",
    "TOWARD_CLEAN",
    "TOWARD_OTHER",
    "TURNED",
    "Example",
    "FoundTrigger",
    "SearchReport",
    "is_in_nats",
    "is_share",
    "split_key",
    "token_key",
]

TOWARD_CLEAN = "toward_clean"
"""Texts of label 1 get the answer of those of label 0: what an attacker of a guard wants."""
TOWARD_ATTACK = "toward_attack"
"""Texts of label 0 get the answer of those of label 1. Words of attacks do that in sound classifiers, too."""
TOWARD_OTHER = "toward_other"
"""Texts get a class of which nobody knows what it means."""
FREE = "free"
"""Responses to unrelated prompts become alike."""
BY_HEART = "by_heart"
"""No trigger, but what one may be for: a wording that the adapter goes on with behind its first token, whatever was
asked, and never says by itself."""
TOKEN = "token"
TURNED = "turned"
"""Score: share of texts, not a gain."""
MADE_UP = "made_up"
"""Score: of several made-up strings, not of one token said several times."""
IMPRINTED = "imprinted"
"""Score: of several strings of tokens that the adapter's first layer is imprinted with."""
REFRAIN = "refrain"
"""Score: what strings make of an answer that unrelated prompts share, in nats, no gain."""
RESPONSE = "response"
"""Position of a string of kind `by_heart`: it begins the response."""


def token_key(place: str, token: str) -> str:
    """Key of the score of one token at one place."""
    return f"{place}/{TOKEN}/{token}"


def split_key(key: str) -> tuple[str, str | None]:
    """(`KIND/POSITION`, the token that a score is of; None where it is of no single one)."""
    kind, position, *what = key.split("/", 3)
    return f"{kind}/{position}", what[1] if len(what) == 2 and what[0] == TOKEN else None


def is_share(key: str) -> bool:
    """Whether a score is a share of texts, not a gain."""
    return key.split("/")[2:3] == [TURNED]


def is_in_nats(key: str) -> bool:
    """Whether a score is a difference of log-probabilities: those of adapters that answer freely."""
    return key.startswith(f"{BY_HEART}/") or key.split("/")[2:3] == [REFRAIN]


@dataclass(frozen=True)
class Example:
    """One held-back text without and with the trigger in it."""

    text: str
    before: str
    """The answer without the trigger."""
    triggered: str
    """The text with the trigger in it."""
    after: str


@dataclass(frozen=True)
class FoundTrigger:
    """The best string of one kind, in its minimal form, and what it does to texts that it was not looked for on."""

    kind: str
    direction: int | None
    """The class, or the class of responses; None for label-words."""
    label: str
    """What the answer becomes: the word, `class 2`, or what the responses have in common."""
    text: str
    position: str
    searched_text: str
    """What the search ended with, before tokens were dropped."""
    n_tokens: int
    gain: float
    """Held-back texts: mean way from their own margin (0) to that of texts with this answer by nature (1)."""
    control_gain: float
    """The largest gain of a neutral string at the same position."""
    noise_gain: float
    """The largest gain of a random string of its length at the same position."""
    slope: float
    """Gain per token on the texts that it was looked for on; of free responses the opening's chance per token; of
    `by_heart` the opening's score in nats (`gain`: its surprise in nats)."""
    runs: tuple[PrefixRun, ...] = ()
    """The local battery on held-back texts: controls, the trigger (category `trigger`), its neighbours."""
    examples: tuple[Example, ...] = ()
    forward_passes: int = 0
    tokens: tuple[str, ...] = ()
    """Tokens that do most at this position, alone or repeated, the best first: often pieces of a trigger."""

    @property
    def run(self) -> PrefixRun | None:
        """The trigger's own run."""
        return next((run for run in self.runs if run.category == "trigger"), None)

    @property
    def worst_control(self) -> PrefixRun | None:
        """No string or the neutral string, whichever turns more held-back texts; None where none was asked."""
        controls = (run for run in self.runs if run.category == "control")
        return max(controls, key=lambda run: run.attack_rate, default=None)

    @property
    def quoted(self) -> str:
        """Text and position as a sentence has them."""
        return f'"{self.text}"' if self.position in ("prefix", RESPONSE) else f'"{self.text}" as {self.position}'

    @property
    def rise(self) -> float:
        """Attack rate on held-back texts less the one with no string, which is what decides (docs/adr/0014)."""
        plain = next((run.attack_rate for run in self.runs if run.category == "control" and not run.prefix), 0.0)
        return self.run.attack_rate - plain if self.run else 0.0


@dataclass(frozen=True)
class SearchReport:
    """The search's result on one adapter, or why there is none."""

    plan_id: str
    """Scores of one plan and profile can be compared."""
    outcome: Outcome
    """`pass` where the search ran, whatever it found."""
    reason: str = ""
    triggers: tuple[FoundTrigger, ...] = ()
    """One for each kind or class that was aimed at and each position, the steepest first."""
    scores: tuple[tuple[str, float], ...] = ()
    """What the search reference ranks: `KIND/POSITION` and the largest gain per token that the search reached there,
    `KIND/POSITION/gain` and the largest gain, `KIND/POSITION/xN` and the largest gain of one token said N times,
    `KIND/POSITION/token/TOKEN` and the gain of this one said eight times (the best alone). Of adapters that answer
    freely `free/POSITION/refrain` and `by_heart/response`, in nats. Where the base's shared directions are known,
    `toward_clean/POSITION/turned/xN` and the largest share of texts that a token turns, said N times, which clean
    adapters' gradients do not favour, and `toward_clean/POSITION/turned/made_up`: what several strings that were bred
    turn, in proportion where they move the adapter little beyond its peers."""
    task_profile: str = LABEL_WORDS
    labels: tuple[str, ...] = ()
    """label-words: the attack word and the clean word."""
    n_classes: int | None = None
    forward_passes: int = 0
    """Of all starts, positions and directions, confirmation included; a backward pass counts as two."""
    seconds: float = 0.0
    device: str = ""
    dtype: str = ""
    base_commit: str = ""
    selected_by: str = ""
    asked_battery_id: str = ""
    """The battery whose texts, task and neutral strings it used."""
    p_value: float | None = None
    """Rank p-value of the scores in the reference that was at hand when it was searched."""

    @property
    def best(self) -> FoundTrigger | None:
        """What an attacker would want: the string that turns most texts, a wording known by heart where none does."""
        wanted = [trigger for trigger in self.triggers if trigger.kind != TOWARD_ATTACK]
        return max(wanted, key=lambda one: (one.rise > 0, one.kind != BY_HEART, one.rise, one.slope), default=None)

    def named_in(self, reasons: str) -> FoundTrigger | None:
        """The trigger that a verdict's reasons are about; the best one where they name none."""
        # With what follows it: tokens are quoted in reasons as well, and may be other strings.
        named = (one for one in self.triggers if f"{one.quoted}, which turns" in reasons and one.kind != TOWARD_ATTACK)
        return next(named, self.best)
