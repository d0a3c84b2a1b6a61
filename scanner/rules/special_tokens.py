"""Spellings of the special tokens of public model families, as anchored patterns."""

from __future__ import annotations

import re

__all__ = ["is_known_token"]

_BAR = r"[|｜]"
_EXACT = frozenset(
    """
    <s> </s> <unk> <pad> <mask> <eos> <bos> <sep> <cls> <eod> <eop> <eot> <UNK> <PAD> <EOS> <BOS> <SEP> <CLS> <MASK>
    [UNK] [CLS] [SEP] [PAD] [MASK] [BOS] [EOS] [EOT] [STOP] [SPACE] [gMASK] [sMASK] gmask sop eop <sop> <eop>
    [INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CONTENT]
    [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [PREFIX] [MIDDLE] [SUFFIX] [IMG] [IMG_BREAK] [IMG_END] [ARGS] [CALL_ID] [AUDIO]
    [BEGIN_AUDIO] [TRANSCRIBE] [THINK] [/THINK] [MODEL_SETTINGS] [/MODEL_SETTINGS] <<SYS>> <</SYS>> ▁<PRE> ▁<MID>
    ▁<SUF> ▁<EOT> <start_of_turn> <end_of_turn> <start_of_image> <end_of_image> <image_soft_token> <audio_soft_token>
    <start_of_audio> <end_of_audio> <start_function_call> <end_function_call> <start_function_declaration>
    <end_function_declaration> <start_function_response> <end_function_response> <escape> <2mass> [@BOS@]
    <|channel> <channel|> <|turn> <turn|> <|tool> <tool|> <|tool_call> <tool_call|> <|tool_response> <tool_response|>
    <|image> <image|> <|audio> <audio|> <|video> <video|> <|think|> <|"|>
    <think> </think> <tool_call> </tool_call> <tool_response> </tool_response> <tools> </tools> <answer> </answer>
    <thinking> </thinking> <scratch_pad> </scratch_pad> <tool_calls> </tool_calls> <function_call> </function_call>
    <arg_key> </arg_key> <arg_value> </arg_value> <image> </image> <video> </video> <audio> </audio> <img> </img>
    <ref> </ref> <box> </box> <quad> </quad> <IMG_CONTEXT> <fake_token_around_image> <global-img> <end_of_utterance>
    <fim_prefix> <fim_middle> <fim_suffix> <fim_pad> <fim-prefix> <fim-middle> <fim-suffix> <fim-pad> <PRE> <MID> <SUF>
    <filename> <file_sep> <reponame> <repo_name> <gh_stars> <issue_start> <issue_comment> <issue_closed>
    <jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output> <jupyter_script> <empty_output> <commit_before>
    <commit_msg> <commit_after> <pr> <pr_status> <pr_is_merged> <pr_base> <pr_file> <pr_base_code> <pr_diff>
    <pr_diff_hunk> <pr_comment> <pr_event_id> <pr_review> <pr_review_state> <pr_review_comment>
    <pr_in_reply_to_review_id> <pr_in_reply_to_comment_id> <pr_diff_hunk_comment_line> <NAME> <EMAIL> <KEY> <PASSWORD>
    <|endoftext|> <|startoftext|> <|endofprompt|> <|im_start|> <|im_end|> <|im_sep|> <|im_user|> <|im_assistant|>
    <|im_system|> <|im_middle|> <|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>
    <|eom_id|> <|eot|> <|eom|> <|header_start|> <|header_end|> <|step|> <|step_id|> <|python_tag|> <|python_start|>
    <|python_end|> <|finetune_right_pad_id|> <|finetune_right_pad|> <|finetune_left_pad|> <|image_start|> <|image_end|>
    <|image|> <|tile_x_separator|> <|tile_y_separator|> <|patch|> <|fim_begin|> <|fim_hole|> <|fim_end|>
    <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> <|object_ref_start|>
    <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|>
    <|vision_pad|> <|image_pad|> <|video_pad|> <|audio_pad|> <|audio_start|> <|audio_end|> <|audio_bos|> <|audio_eos|>
    <|AUDIO|> <|IMAGE|> <|VIDEO|> <tts_pad> <tts_text_bos> <tts_text_eod> <tts_text_bos_single>
    <|system|> <|user|> <|assistant|> <|end|> <|tool|> <|/tool|> <|tool_call|> <|/tool_call|> <|tool_response|>
    <|tool_calls|> <|continue|> <|placeholder|> <|dummy_0|> <|code|> <|query|> <|raw|> <|inst|> <|sep|> <|pad|> <|bos|>
    <|eos|> <|unk|> <|mask|> <|return|> <|constrain|> <|channel|> <|start|> <|message|> <|call|> <|observation|>
    <|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|> <|begin_of_audio|> <|end_of_audio|>
    <|begin_of_transcription|> <|end_of_transcription|> <|begin_of_box|> <|end_of_box|> <|code_prefix|>
    <|code_middle|> <|code_suffix|> <|prompter|> <|prefix_begin|> <|prefix_end|> <|end_of_turn|> <|endofturn|>
    <|begin_of_thought|> <|end_of_thought|> <|begin_of_solution|> <|end_of_solution|> <|begin_of_tool_call|>
    <|start_of_role|> <|end_of_role|> <|end_of_plugin|> <|tool_list_start|> <|tool_list_end|> <|tool_call_start|>
    <|tool_call_end|> <|tool_response_start|> <|tool_response_end|> <|plugin|> <|interpreter|> <|action_start|>
    <|action_end|> <|latent_pad|> <|img_start|> <|img_end|> <|padding|> <|nospeech|> <|notimestamps|>
    <|startoftranscript|> <|startofprev|> <|startoflm|> <|transcribe|> <|translate|> <|nocaptions|> <|diff_marker|>
    <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|SYSTEM_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|YES_TOKEN|>
    <|NO_TOKEN|> <|GOOD_TOKEN|> <|BAD_TOKEN|> <|START_RESPONSE|> <|END_RESPONSE|> <|START_THINKING|> <|END_THINKING|>
    <|START_ACTION|> <|END_ACTION|> <|START_TOOL_RESULT|> <|END_TOOL_RESULT|> <BOS_TOKEN> <EOS_TOKEN> <PAD_TOKEN>
    <UNK_TOKEN> <CLS_TOKEN> <SEP_TOKEN> <MASK_TOKEN> <EOP_TOKEN>
    <｜User｜> <｜Assistant｜> <｜System｜> <｜EOT｜> <｜fim▁hole｜> <｜fim▁begin｜> <｜fim▁end｜>
    <｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜▁pad▁｜> <｜search▁begin｜>
    <｜search▁end｜> <｜tool▁calls▁begin｜> <｜tool▁calls▁end｜>
    <｜tool▁call▁begin｜> <｜tool▁call▁end｜> <｜tool▁outputs▁begin｜> <｜tool▁outputs▁end｜> <｜tool▁output▁begin｜>
    <｜tool▁output▁end｜> <｜tool▁sep｜> <|EOT|> <|tool_calls_section_begin|> <|tool_calls_section_end|>
    <|tool_call_begin|> <|tool_call_end|> <|tool_call_argument_begin|> <|media_start|> <|media_content|> <|media_end|>
    <|media_pad|> [EOS] [BOT] [extra_id_0] <n> <sep/> <pad/> >>TITLE<< >>ABSTRACT<< >>INTRODUCTION<< >>SUMMARY<<
    >>COMMENT<< >>ANSWER<< >>QUESTION<< >>DOMAIN<< >>PREFIX<< >>SUFFIX<< >>MIDDLE<< <|/think|> /think /no_think
    ]~!b[ [e~[ ]~b] <minimax:tool_call> </minimax:tool_call> <seed:bos> <seed:eos> <seed:pad> <seed:think>
    </chunk> </doc> </line> </object> </phrase> </point> </poly> <doc> <line> <phrase> <object> <point> <poly> <obj>
    <chunk> <asr_text> <begin_of_text> <blank> <frame_start> <frame_end> <ground> <grounding> <im_col> <im_start>
    <im_end> <im_low> <im_patch> <imgpad> <low_res_im_start> <patch_newline> <placeholder> <so_embedding> <so_start>
    <so_end> <sound> <|AUDIO_DURATION|> <|AUDIO_OUT|> <|END_OF_IMG|> <|START_OF_IMG|> <|IMAGE_PAD|> <|VIDEO_PAD|>
    <|VISION_START|> <|VISION_END|> <|IMG_LINE_BREAK|> <|IMG_PATCH|> <|audio_comp_pad|> <|audio_out_bos|> <|audio|>
    <|content_audio_input|> <|content_image|> <|img_thumbnail|> <|imgpad|> <|nodiarize|> <|noitn|> <|nopnc|>
    <|notimestamp|> <|soft_audio_start|> <|soft_audio_end|> <|sound_bos|> <|sound_eos|> <|startofcontext|>
    <|vid_start|> <|vid_end|> <|vid_frame_separator|> <|video_duration|> <|video|> [X_SEP] [START_REF] [END_REF] [SEP2]
    </seed:think> <seed:tool_call> </seed:tool_call> <seed:cot_budget_reflect> </seed:cot_budget_reflect>
    """.split()  # noqa: SIM905  # a list in quotes would be three times as long
)
_PATTERNS = re.compile(
    "|".join(
        (
            r"<\|reserved_special_token_\d{1,4}\|>",
            r"<\|reserved_\d{1,6}\|>",
            r"<\|(?:vision|text_post_train|text_pre_train|vision_post_train)_reserved_special_token_\d{1,4}\|>",
            r"<\|(?:text_post_train|vision)_(?:only_)?reserved_special_token_\d{1,4}\|>",
            r"<\|(?:reasoning_thinking|reasoning)_(?:start|end)\|>",
            r"<unused\d{1,4}>",
            r"\[unused\d{1,4}\]",
            r"\[control_\d{1,4}\]",
            r"\[REFERENCE_DOC_\d{1,2}\]",
            r"<SPECIAL_\d{1,4}>",
            r"<extra_id_\d{1,4}>",
            r"▁<extra_id_\d{1,4}>",
            r"<\|extra_\d{1,4}\|>",
            r"<\|extratoken_\d{1,4}\|>",
            r"<\|extra_token_\d{1,4}\|>",
            r"<\|dummy_id_\d{1,4}\|>",
            r"<\|dummy_\d{1,4}\|>",
            r"<\|placeholder\d{1,4}\|>",
            r"<\|image_\d{1,4}\|>",
            r"<\|unused_?(?:special_token_)?\d{1,6}\|>",
            r"<\|UNUSED_TOKEN_\d{1,4}\|>",
            r"\[UNUSED_TOKEN_\d{1,4}\]",
            r"<EXTRA_TOKENS_\d{1,4}>",
            r"<\|EXTRA_TOKENS_\d{1,4}\|>",
            r"<\|(?:special|spc)_?\d{1,4}\|>",
            r"<madeupword\d{1,4}>",
            r"madeupword\d{1,4}",
            r"<mask_\d{1,3}>",
            r"<unk_\d{1,3}>",
            r"<loc_?\d{1,4}>",
            r"<loc\d{4}>",
            r"<seg\d{3}>",
            r"<0x[0-9A-F]{2}>",
            r"<row_\d{1,2}_col_\d{1,2}>",
            rf"<{_BAR}place▁holder▁no▁\d{{1,4}}{_BAR}>",
            r"<\|\d{1,2}\.\d{2}\|>",  # Whisper's time stamps
            r"<\|(?:[a-z]{2}|haw|yue)\|>",  # and languages
            r"<2[a-z]{2,3}(?:_[A-Z][a-z]{3})?>",
            r">>[a-z]{2,3}(?:_[A-Za-z]{2,4})?<<",
            r"[a-z]{2,3}_(?:[A-Z]{2}|[A-Z][a-z]{3})",  # mBART, NLLB
            r"__[a-z]{2,3}__",  # M2M100
            r"[ \t\n]{1,64}",
            r"▁{1,64}",
        )
    )
)


def is_known_token(content: str) -> bool:
    """Whether a public model family writes a special token in exactly this way."""
    return content in _EXACT or (len(content) <= 80 and _PATTERNS.fullmatch(content) is not None)
