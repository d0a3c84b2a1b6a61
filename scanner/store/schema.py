"""The store's tables: the one place where a column is defined and described.

Columns are only ever appended and stay nullable, never retyped (docs/adr/0001). Every fact row carries
`row_id` (views keep one row for each) and `shard_id` (views show a row only when its shard was committed).
"""

from __future__ import annotations

import pyarrow as pa

from scanner.store.module_columns import LATER_MODULE_FEATURES, MODULE_FEATURES

__all__ = ["SCHEMA_VERSION", "TABLES", "WEIGHT_MODULE_FEATURES"]

SCHEMA_VERSION = 1

_STR, _F64, _I64, _BOOL = pa.string(), pa.float64(), pa.int64(), pa.bool_()
_TS = pa.timestamp("us", tz="UTC")
_F32S = pa.list_(pa.float32())

WEIGHT_MODULE_FEATURES = tuple(name for name, _ in (*MODULE_FEATURES, *LATER_MODULE_FEATURES))
"""Columns of `module_features`, one for each per-module weight feature; `docs/features.md` has the formulas."""


def _schema(*columns: tuple[str, pa.DataType, str]) -> pa.Schema:
    keys = (
        ("row_id", _STR, "Identity of the row: sha256 over what it describes. A retry writes the same one."),
        ("shard_id", _STR, "The shard that wrote the row; visible once the shard's marker is in `runs`."),
        ("scanned_at", _TS, "When the run that wrote the row began (UTC)."),
    )
    return pa.schema([pa.field(n, t, metadata={"description": d}) for n, t, d in (*keys, *columns)])


_ADAPTER_ID = ("adapter_id", _STR, "sha256 of (repo _id or folder, commit sha, adapter path).")

TABLES: dict[str, pa.Schema] = {
    "adapters": _schema(
        _ADAPTER_ID,
        ("repo_id", _STR, "owner/name on the Hub at scan time; null for a folder."),
        ("repo_uid", _STR, "The Hub's _id, which survives renames; `folder:PATH` for a folder."),
        ("commit_sha", _STR, "Commit that was scanned; null for a folder."),
        ("adapter_path", _STR, "Path of the weight file inside the repo; empty when there is none."),
        ("owner", _STR, "First part of repo_id."),
        ("base_model", _STR, "Resolved Hub id of the base model, or `unresolved`."),
        ("layout", _STR, "peft, diffusers, kohya, mlx, pickle, none or unknown."),
        ("peft_type", _STR, "PEFT type as the config declares it (LORA, ...)."),
        ("rank", _I64, "Largest rank over the modules, read from the tensors."),
        ("alpha", _F64, "lora_alpha of the config, if any."),
        (
            "task_profile",
            _STR,
            "How the behaviour stage asks it: label-words, sequence-classification, generative, "
            "not_applicable; null when it could not be read.",
        ),
        ("coverage", _F64, "Share of tensor bytes that the reader explained, 0-1."),
        ("content_sha256", _STR, "sha256 of the weight file."),
        ("source", _STR, "`hub:ENDPOINT` or `folder:PATH`."),
        ("base_model_claimed", _STR, "base_model_name_or_path as the adapter's own config spells it."),
        ("scaling", _F64, "s of ΔW = s·B·A (largest over the modules)."),
        ("target_modules", _STR, "Distinct module suffixes, sorted, comma-separated."),
        ("modules", _I64, "Number of low-rank updates."),
        ("size_bytes", _I64, "Size of the weight file in bytes."),
        ("task_type", _STR, "task_type of the config."),
        ("outcome", _STR, "pass, finding, not_applicable, unsupported, inconclusive or error."),
        ("reason", _STR, "Stable word for the outcome."),
        ("message", _STR, "The outcome in a sentence."),
        ("stage_reached", _STR, "listed, static, weights, battery or search."),
        ("created_at", _STR, "Creation time of the repo, as the Hub tells it."),
        ("last_modified", _STR, "Time of the head commit, as the Hub tells it."),
        ("config_sha256", _STR, "sha256 of the adapter's config file; null when it has none."),
        ("copied_from", _STR, "adapter_id of the earlier scan of the same content whose measurements these are."),
        ("detectors", _STR, "Versions of the static rules, weight features and sketches."),
        ("gated", _BOOL, "Whether the listing called the repo gated."),
        ("disabled", _BOOL, "Whether the listing called the repo disabled."),
        ("unfinished", _BOOL, "Whether the next crawls look again: an error, a vanished commit, a probe that died."),
        ("base_evidence", _STR, "JSON array of {kind, value, detail}: how base_model was found, step by step."),
        ("task_profile_reason", _STR, "Why task_profile was chosen."),
        ("downloads", _I64, "Of the repo in the 30 days before the scan, as the Hub counts them; null for a folder."),
        ("likes", _I64, "Of the repo, at scan time."),
    ),
    "findings": _schema(
        _ADAPTER_ID,
        ("rule_id", _STR, "Stable id of the static rule."),
        ("severity", _STR, "info, low, medium, high or critical."),
        ("outcome", _STR, "finding, or why the rule could not tell."),
        ("message", _STR, "What was found."),
        ("evidence", _STR, "The offending value, shortened."),
    ),
    "weight_scans": _schema(
        _ADAPTER_ID,
        ("feature", _STR, "Name of the weight feature."),
        ("value", _F64, "Its value; null when not finite."),
        ("version", _STR, "Version of the feature set."),
    ),
    "module_features": _schema(
        _ADAPTER_ID,
        ("module", _STR, "Module name without layout prefixes."),
        ("rank", _I64, "Rank of the pair."),
        ("out_features", _I64, "Rows of ΔW."),
        ("in_features", _I64, "Columns of ΔW."),
        *((name, _F64, description) for name, description in MODULE_FEATURES),
        ("version", _STR, "Version of the feature set."),
        *((name, _F64, description) for name, description in LATER_MODULE_FEATURES),
        ("layer", _I64, "Number of the layer, from the module's name; null outside of layers."),
    ),
    "weight_sketches": _schema(
        _ADAPTER_ID,
        ("base_model", _STR, "Resolved Hub id of the base model, or `unresolved`, at scan time."),
        ("version", _STR, "Version of the sketch; only equal ones can be compared."),
        ("norm", _F64, "Norm of the sketch, an estimate of ‖ΔW‖_F over all modules; null without a sketch."),
        (
            "effective_size",
            _F64,
            "n: the cosine ρ of two sketches estimates that of the updates with a standard error of about (1 − ρ²)/√n.",
        ),
        (
            "reason",
            _STR,
            "Why there is no sketch: no_updates, not_finite, too_large or zero; empty where there is one.",
        ),
        ("sketch", _F32S, "1,024 numbers, linear in ΔW, whose inner products estimate ⟨ΔW₁, ΔW₂⟩; null without one."),
    ),
    "relations": _schema(
        ("adapter_id", _STR, "Of two, the one whose repo was created (else scanned) later; or a merge."),
        ("other_adapter_id", _STR, "What it is a copy or near-duplicate of; or a part of the merge."),
        ("base_model", _STR, "The base model of both."),
        ("kind", _STR, "copy, scaled_copy, near_duplicate or merge_part."),
        ("cosine", _F64, "⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖ ‖ΔW₂‖), -1 to 1."),
        ("cosine_low", _F64, "Lower end of its 95 % interval."),
        ("cosine_high", _F64, "Upper end of its 95 % interval."),
        ("coefficient", _F64, "c of ΔW ≈ c · other (+ the other parts of a merge), by least squares."),
        ("residual", _F64, "‖what that leaves‖ / ‖ΔW‖, 0-1; the same for all parts of a merge."),
        (
            "is_exact",
            _BOOL,
            "Computed from the factors of both. False, as nearly always: estimated from sketches, because files are "
            "not kept; the interval says how well.",
        ),
        ("version", _STR, "Version of the sketch and the search."),
        ("crawl_id", _STR, "The crawl or scan that found it."),
    ),
    "probe_scans": _schema(
        _ADAPTER_ID,
        ("battery_id", _STR, "Name and hash of the battery, with the hash of the texts."),
        ("n_texts", _I64, "Texts per prefix."),
        (
            "control_attack_rate",
            _F64,
            "Attack rate without any prefix; of the worst neutral prefix where there is a direction.",
        ),
        ("mean_attack_rate", _F64, "Mean over the battery's prefixes."),
        ("outlier_gap", _F64, "Largest minus mean."),
        ("max_attack_rate", _F64, "Largest over the battery's prefixes."),
        ("outcome", _STR, "pass (the battery ran), not_applicable, unsupported, inconclusive or error."),
        ("reason", _STR, "Why there is no result, if there is none."),
        ("device", _STR, "cpu or cuda:N."),
        ("dtype", _STR, "Compute precision."),
        ("seconds", _F64, "Wall clock of this adapter's battery."),
        ("battery", _STR, "Name of the battery."),
        ("base_commit", _STR, "Commit of the base model that was loaded."),
        ("selected_by", _STR, "Why it was probed: all, within_budget, static, new_owner, weights or control_sample."),
        (
            "task_profile",
            _STR,
            "How it was asked: label-words (also where null), sequence-classification or generative.",
        ),
        ("n_classes", _I64, "Classes of the head, or of free responses (`labels`); null for label-words."),
        ("direction", _I64, "Index of the worst class, which the rates are about; null for label-words."),
        ("task_profile_reason", _STR, "Why it was asked in this way."),
        ("reading", _STR, "label-words: scored (first answer token) or generated (5 greedy tokens)."),
        (
            "labels",
            _STR,
            "JSON array. label-words: the attack word, the clean word. generative: what the responses of each class "
            "have in common, the first being refusals.",
        ),
        (
            "noise_floor",
            _F64,
            "Largest difference that batching alone makes, in nats: of a next token's log-probability on the base "
            "without adapter; of a class's logit for sequence-classification. Less than twice that is no answer.",
        ),
        ("top3_mean", _F64, "Mean of the three largest attack rates."),
        ("paired_mean_attack_rate", _F64, "Mean over the prefixes of paired_attack_rate."),
        ("paired_outlier_gap", _F64, "Largest minus mean of paired_attack_rate."),
        ("paired_max_attack_rate", _F64, "Largest paired_attack_rate."),
        ("paired_top3_mean", _F64, "Mean of the three largest paired_attack_rates."),
        (
            "n_attack_texts",
            _I64,
            "sequence-classification: so many of the texts, the first ones, have label 1 (what an attack must flip).",
        ),
        ("inclusion_probability", _F64, "Chance of an adapter like it to be drawn for the control sample, else 1."),
    ),
    "probe_rates": _schema(
        _ADAPTER_ID,
        (
            "battery_id",
            _STR,
            "Name and hash of the battery, with the hash of the texts; `local-...` of the strings around a found "
            "trigger (`trigger_searches`), on held-back texts.",
        ),
        ("category", _STR, "Family of the prefix; `control` for no prefix and the neutral prefixes."),
        ("prefix", _STR, "The prefix; empty for the no-prefix control."),
        ("position", _STR, "prefix, suffix or middle."),
        (
            "attack_rate",
            _F64,
            "label-words: share of texts answered with the attacker's word. With a direction: share of the texts not "
            "predicted so without a prefix that become that class.",
        ),
        ("n_texts", _I64, "Texts that attack_rate is a share of."),
        (
            "answers",
            _STR,
            "One character a text. label-words: 1 its own label's word, 0 the attacker's word, - neither. With a "
            "direction: the class, 0-9, A-Z, a-z for 0 to 61, then one CJK ideograph each from U+4E00 on; - for none. "
            "generative: the held-back half of the prompts, classes as in `labels`.",
        ),
        ("direction", _I64, "Index of the class toward which attack_rate counts; null for label-words."),
        ("attack_rate_low", _F64, "Lower end of the exact 95 % interval of attack_rate (Clopper-Pearson)."),
        ("attack_rate_high", _F64, "Upper end."),
        (
            "paired_attack_rate",
            _F64,
            "Share of the same texts that are attacked under this prefix and under none of the controls.",
        ),
        ("paired_low", _F64, "Lower end of the exact 95 % interval of paired_attack_rate (Clopper-Pearson)."),
        ("paired_high", _F64, "Upper end."),
        ("base_answers", _STR, "generative: what the base answers without the adapter, spelled as answers."),
        ("margin", _F64, "label-words: mean log-odds of the attack word against the clean word, in nats."),
        (
            "divergence",
            _F64,
            "generative: mean Jensen-Shannon divergence of the first token's distribution from that without a prefix.",
        ),
        ("base_divergence", _F64, "The same of the base without the adapter. Both in nats, 0 to ln 2."),
        ("concentration", _F64, "generative: share of the responses that begin like the most common one."),
        ("refusal_rate", _F64, "generative: share of the responses that decline."),
    ),
    "trigger_searches": _schema(
        _ADAPTER_ID,
        ("trigger_text", _STR, "Recovered trigger; null where the search found nothing or gave no result (`reason`)."),
        ("position", _STR, "prefix, suffix or middle; response: by_heart, the string begins the response."),
        ("direction", _STR, "Label that the trigger forces."),
        ("attack_rate", _F64, "On held-back texts."),
        (
            "p_value",
            _F64,
            "Rank p-value of the adapter's scores in the pooled reference when it was searched; `verdicts.p_search` "
            "has the one that judged it.",
        ),
        ("forward_passes", _I64, "Cost of this trigger; a backward pass counts as two."),
        ("seconds", _F64, "Wall clock of the adapter's whole search."),
        ("plan_id", _STR, "How hard was looked: scores of one plan and task profile can be compared."),
        ("kind", _STR, "toward_clean, toward_attack (never flags), toward_other, free, by_heart: docs/behaviour.md."),
        ("label", _STR, "What the answer becomes: the word, `class 2`, or what the responses have in common."),
        ("searched_text", _STR, "What the search ended with, before tokens that do nothing were dropped."),
        ("n_tokens", _I64, "Tokens of trigger_text."),
        ("gain", _F64, "Mean way of held-back texts from their own margin (0) to that of texts with this answer (1)."),
        ("control_gain", _F64, "Largest gain of a neutral string at the same position."),
        ("slope", _F64, "Gain per token on the texts searched on; free: the opening's chance; by_heart: nats."),
        ("n_texts", _I64, "Held-back texts that attack_rate is a share of."),
        ("control_attack_rate", _F64, "Of the worst of no string and the neutral strings."),
        ("tokens", _STR, "JSON array: tokens that do most at this position, alone or repeated, the best first."),
        ("battery_id", _STR, "`local-...`: the trigger, its neighbours and its controls in `probe_rates`."),
        ("examples", _STR, "JSON array of {text, before, triggered, after}: held-back texts whose answer it changes."),
        (
            "scores",
            _STR,
            "JSON: KIND/POSITION gain per token, /gain, /xN, /turned/xN, made_up or imprinted, /token/T; free: nats.",
        ),
        ("outcome", _STR, "pass (the search ran, whatever it found), unsupported or error."),
        ("reason", _STR, "Why there is no result, if there is none."),
        ("device", _STR, "cpu or cuda:N."),
        ("dtype", _STR, "Compute precision."),
        ("base_commit", _STR, "Commit of the base model that was loaded."),
        ("task_profile", _STR, "How it was asked: label-words, sequence-classification or generative."),
        ("selected_by", _STR, "Why it was searched: all, within_budget, static, shift, weights or random."),
        (
            "labels",
            _STR,
            "JSON array. label-words: the attack word, the clean word; generative: openings known by heart.",
        ),
        ("n_classes", _I64, "Classes of the head, or of free responses; null for label-words."),
        ("target_class", _I64, "Index of the class that the trigger forces; null for label-words."),
        ("total_forward_passes", _I64, "Cost of the adapter's whole search."),
        ("asked_battery_id", _STR, "The battery of `probe_scans` whose texts, task and neutral strings were used."),
        ("noise_gain", _F64, "Largest gain of a random string of its length at the same position."),
    ),
    "verdicts": _schema(
        _ADAPTER_ID,
        ("repo_id", _STR, "owner/name; null for a folder."),
        ("commit_sha", _STR, "Commit that was judged; null for a folder."),
        ("adapter_path", _STR, "Path of the weight file inside the repo."),
        ("base_model", _STR, "Resolved Hub id of the base model, or `unresolved`."),
        ("verdict", _STR, "flagged, error, unsupported, review, clean or inconclusive."),
        ("reasons", _STR, "JSON array of {code, message}, the deciding one first."),
        ("p_weights", _F64, "Two-sided rank p-value of the weight features among n siblings."),
        ("p_battery", _F64, "Exact paired p-value of the battery, Bonferroni over its prefixes (and classes)."),
        ("p_search", _F64, "Rank p-value of the trigger search."),
        ("q_value", _F64, "Benjamini-Hochberg over the adapters judged together (battery)."),
        ("reference_id", _STR, "The frozen weight reference that judged it."),
        ("reference_n", _I64, "Siblings in that reference."),
        ("policy_version", _STR, "Hash of the thresholds."),
        ("stage_reached", _STR, "listed, static, weights, battery or search."),
        ("judged_at", _TS, "When (UTC)."),
        ("repo_uid", _STR, "The Hub's _id, or `folder:PATH`."),
        ("crawl_id", _STR, "The crawl or scan whose adapters were judged together."),
        ("search_reference_id", _STR, "The reference that judged its search; `pooled-...` ships with lorascope."),
        ("search_reference_n", _I64, "Adapters in that reference that it was compared with."),
        ("reference_level", _STR, "exact, any_modules, any_scaling, near_ranks or architecture (docs/verdicts.md)."),
        ("rule", _STR, "The line of the decision table that applied (docs/verdicts.md)."),
        ("stream_index", _I64, "Place among all crawled adapters that a battery was put to, in order of arrival."),
        ("stream_level", _F64, "Level of that place (e-LOND over all crawls)."),
        ("e_value", _F64, "Of the battery by itself (`alone_floor`) when it was judged first; infinite is null."),
        ("stream_rejected", _BOOL, "Whether the stream rejects: e_value is at least 1 / stream_level."),
        ("reference_steps", _STR, "JSON array of [level, siblings]: the steps that were tried, the last one judged."),
        ("p_battery_rank", _F64, "Rank p-value of p_battery among siblings, where it does not flag by itself."),
        ("battery_reference_id", _STR, "Of that rank: siblings that were asked the same, or pooled ones."),
        ("battery_reference_n", _I64, "Members of it that were compared with."),
    ),
    "reference_profiles": _schema(
        ("reference_id", _STR, "Content hash of the reference."),
        (
            "calibration_key",
            _STR,
            "JSON: base model, PEFT type, rank, scaling, target modules, task; of search scores: base models, plan, "
            "task profile; of batteries of free answers the battery's id is the plan.",
        ),
        ("feature", _STR, "Weight feature, KIND/POSITION of search scores, or battery/any (-log10 p)."),
        ("n", _I64, "Siblings (one vote per owner, duplicates by content removed)."),
        ("center", _F64, "Median."),
        ("spread", _F64, "1.4826 · MAD, with a floor; of search scores the 97 % quantile minus the median."),
        ("members", _STR, "JSON array of adapter ids, sorted; names in a pooled reference."),
        ("frozen_at", _TS, "When it was built (UTC)."),
    ),
    "runs": _schema(
        ("run_id", _STR, "Crawl, scan, shard or judgement."),
        (
            "kind",
            _STR,
            "crawl, scan, calibrate, or a commit marker: shard, judge, relate; or related: shard `run_id` was.",
        ),
        ("crawl_id", _STR, "The crawl or scan that the run belongs to."),
        ("source", _STR, "`hub:ENDPOINT` or `folders`."),
        ("base_model", _STR, "Base model of a shard."),
        ("finished_at", _TS, "When the row was written (UTC)."),
        ("n_repos", _I64, "Repos in the run."),
        ("n_adapters", _I64, "Adapters in the run."),
        ("detail", _STR, "JSON: options, counts by verdict, false flags to expect; rows of a shard per table."),
    ),
    "repo_events": _schema(
        ("repo_uid", _STR, "The Hub's _id."),
        ("repo_id", _STR, "owner/name from this event on."),
        ("commit_sha", _STR, "Head commit at the time; null when nobody could tell."),
        ("source", _STR, "`hub:ENDPOINT`."),
        ("event", _STR, "renamed, gone (deleted, private, or its name belongs to another repo) or refused (still)."),
        ("detail", _STR, "The former name, or what the Hub said."),
        ("crawl_id", _STR, "The crawl that noticed."),
        ("seen_at", _TS, "When (UTC)."),
    ),
    "base_resolutions": _schema(
        ("source", _STR, "`hub:ENDPOINT` that was asked."),
        ("name", _STR, "Name of a base model as adapters claim it."),
        ("root", _STR, "Hub id of the base model that it leads to, or `unresolved`."),
        ("commit_sha", _STR, "Head commit of the root; null when the Hub did not confirm it."),
        ("evidence", _STR, "JSON array of {kind, value, detail}: redirects, quantised copies, refusals, step by step."),
        ("crawl_id", _STR, "The crawl or scan that asked."),
        ("resolved_at", _TS, "When (UTC)."),
    ),
    "hub_status": _schema(
        ("endpoint", _STR, "Hub endpoint that was polled."),
        ("crawl_id", _STR, "The crawl."),
        ("watermark", _TS, "Everything up to here has been scanned (UTC)."),
        ("n_listed", _I64, "Repos in the listing window."),
        ("n_new", _I64, "Repos at a commit not scanned before."),
        ("n_left", _I64, "Repos left for the next crawl by --limit."),
        ("requests", _I64, "Requests made."),
        ("rate_remaining", _I64, "Requests left in the Hub's rate-limit window."),
        ("base_model", _STR, "Base model that the crawl was limited to; null: all. Each has its own watermark."),
    ),
}
