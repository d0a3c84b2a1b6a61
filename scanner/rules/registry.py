"""All built-in rules, in the order of their ids, and those of other packages."""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module

from scanner.plugins import load_plugins
from scanner.rules.rule import Rule, Scope

__all__ = ["CONTENT_RULES", "GROUP", "RULES", "rule_plugins"]

log = logging.getLogger(__name__)

GROUP = "lorascope.rules"
_MODULES = """
ls001_pickle_weights
ls002_pickle_siblings
ls003_code_siblings
ls004_foreign_import
ls005_base_path
ls006_unexplained_tensors
ls007_rank_mismatch
ls008_too_large
ls009_malformed
ls010_not_finite
ls011_dangerous_pickle
ls012_remote_code
ls013_megatron_import
ls014_base_revision
ls015_look_alike
ls016_path_fields
ls017_archives
ls018_template_walk
ls019_template_trigger
ls020_template_differs
ls021_added_tokens
ls022_tokenizer_differs
ls023_invisible
ls024_full_matrices
ls026_scaling
ls027_near_zero
ls028_all_rank_one
ls029_unknown_fields
ls030_merged
ls031_hub_scan
ls032_disguised
ls033_base_mismatch
ls034_concentrated
ls035_pickle_structure
ls036_base_disagreement
ls037_missing_shards
"""
RULES: tuple[Rule, ...] = tuple(import_module(f"scanner.rules.{name}").RULE for name in _MODULES.split())
CONTENT_RULES = frozenset(rule.id for rule in RULES if rule.scope == Scope.CONTENT)
"""Rules that look at weights and config alone: what they found once holds for every copy."""


@cache
def rule_plugins() -> tuple[Rule, ...]:
    """Rules of other packages. One whose id is taken already is left out, with a warning."""
    taken = {rule.id for rule in RULES}
    kept = []
    for rule in load_plugins(GROUP, Rule):
        if rule.id in taken or rule.id.startswith("LS"):
            log.warning("rule %s of a plugin has an id that is taken", rule.id)
        else:
            taken.add(rule.id)
            kept.append(rule)
    return tuple(kept)
