"""LS029: config fields and PEFT types that nobody knows."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.adapter import PEFT_TYPES
from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import with_config

_FIELDS = """
ab_svd_init act_fn adapter_layers adapter_len adapters alora_invocation_tokens alpha alpha_pattern apply_GS
arrow_config asa_importance_beta asa_schedule_exponent asa_target_subspaces asa_uncertainty_beta auto_mapping
auxiliary_loss_weight base_model_name_or_path beta1 beta2 bias block_share block_size block_size_pattern
boft_block_num boft_block_size boft_dropout boft_n_butterfly_factor cayley_neumann_eps coft config_A_B config_C
config_D_E corda_config cpt_mask cpt_token_ids cpt_tokens_type_mask d_initial decompose_both decompose_factor
decomposition_method deft_dropout delora_lambda deltaT depth effective_rank enable_lora enable_softmax
enable_softmax_topk encoder_dropout encoder_hidden_size encoder_num_layers encoder_reparameterization_type
ensure_weight_tying eps eva_config exclude_modules fan_in_fan_out feedforward_modules final_warmup frod_dropout
generator_seed global_scaling_weight gralora_dropout gralora_k group_size hidden_size hira_dropout hybrid_r
inference_mode init_ia3_weights init_logits_std init_lora_weights init_r init_scale init_theta_d_bound init_v_bound
init_vector_bank_bound init_warmup init_weights kasa_config lambda_pattern layer_replication layers_pattern
layers_to_transform layerwise_scalings loftq_config lora_alpha lora_bias lora_dropout lora_ga_config mask_interval
mask_type megatron_config megatron_core merge_weights mini_r miss_dropout module_dropout modules_to_save
monteclora_config n_frequency n_frequency_pattern n_skills n_splits n_tasks num_B num_attention_heads
num_cayley_neumann_terms num_frozen_tokens num_layers num_ranks num_subspaces num_tasks num_transformer_submodules
num_vectors num_virtual_tokens oft_block_size opt_loss_decay_factor opt_projection_epsilon
opt_projection_format_epsilon opt_weighted_loss_type orth_reg_weight para peft_type peft_version poly_type
prefix_projection progressbar proj_seed projection_prng_key projection_seed prompt_tuning_init
prompt_tuning_init_state_dict_path prompt_tuning_init_task prompt_tuning_init_text proportional_parameters
psoft_alpha psoft_dropout psoft_mag_a psoft_mag_b psoft_orth psoft_svd psoft_svd_lowrank_niter pvera_dropout
qalora_group_size r randlora_alpha randlora_dropout random_loc_seed random_seed rank_dropout rank_dropout_scale
rank_pattern regularization_alpha revision runtime_config runtime_offload_base_weight sample_at_inference
save_indices save_only_topk_weights save_precomputed_indices save_projection scaling scaling_pass_value select_top
shadow_alpha shadow_dropout shadow_hidden_size shadow_intermediate_size shadow_model shadow_num_attention_heads
shadow_num_hidden_layers share_embeddings softmax_temperature sparse sparse_rate sparsity stride_A subspace_rank
svd_threshold target_modules target_parameters target_r target_svd_config task_type tfinal theta_d_length tinit
tinylora_dropout token_dim token_indices tokenizer_kwargs tokenizer_name_or_path top_k_lora topk total_step
trainable_token_indices u unilora_dropout unsloth_fixed update_hidden_size use_asa use_bdlora use_cayley_neumann
use_dora use_dynamic_rank use_effective_conv2d use_idwt use_qalora use_rslora use_trainable_adapters variant
vblora_dropout vector_length velora_config vera_dropout very_sparse wavelet_family weight_tying xlora_depth
xlora_dropout_p xlora_size
"""
"""Fields of all config classes of peft 0.21.2, of older versions, and what Unsloth adds."""
_KNOWN_FIELDS = frozenset(_FIELDS.split())


def check(facts: StaticFacts) -> Iterator[Hit]:
    config = facts.config
    if config is None or config.family is None:
        return  # MLX and others write what they like
    if config.family not in PEFT_TYPES:
        yield Hit("the config has a PEFT type that nobody knows", str(config.peft_type))
    unknown = sorted(set(config.raw) - _KNOWN_FIELDS)
    if unknown:
        yield Hit("the config has fields that no version of PEFT knows", ", ".join(unknown))


RULE = Rule(
    id="LS029",
    name="unknown-fields",
    severity=Severity.LOW,
    confidence=Confidence.MEDIUM,
    meaning="PEFT ignores such fields with a warning; another loader may act on them, so that the adapter does "
    "not run as declared (gating written by hand, for example).",
    remediation="Ask which program the field is for.",
    check=check,
    hostile=lambda: with_config(topk_gating=8),
    benign=with_config,
    scope=Scope.CONTENT,
)
