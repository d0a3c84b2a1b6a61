"""Texts that templates of public model families look for in messages, told apart from words."""

from __future__ import annotations

import re

__all__ = ["is_natural"]

_USUAL_WORDS = """
user users assistant system tool tools function functions developer model human ai bot ipython environment role
roles name type types id content contents text texts message messages image images image_url audio audio_url
input_audio video video_url file input output input_text output_text json python xml none null true false yes no
thinking think thought thoughts reasoning reasoning_content redacted_thinking analysis commentary final channel
tool_call tool_calls tool_call_id tool_result tool_results tool_response tool_responses tool_use tool_plan
function_call function_calls function_name arguments parameters parameter properties required description value
response responses result results answer observation call calls documents document search citation citations
refusal detailed on off no_think nothink system_override start end begin of in to the
title snippet url continue_final_message_tag effort strength
"""
_STEMS = re.compile(
    r"think|thought|reason|reflect|tool|function|call|respon|result|answer|inst|sys|user|assistant|model|human|image|img"
    r"|vision|video|audio|start|end|begin|turn|eot|eos|bos|pad|sep|eom|channel|message|observ|search|docu|context|file"
    r"|final|output|input|solution|json|xml|param|arg|python|code|box|media|cite|quer|prompt|header|role|plan|action",
    re.IGNORECASE,
)
_TAG = re.compile(
    r"<[|｜]?/?[\w:|｜▁. -]{1,48}[|｜]?>|<<?/?[A-Z_]{2,24}>>?|\[/?[A-Z_]{2,32}\]"
    r"|</?[\w:-]{1,48}[|｜]?|[|｜][\w▁]{1,32}[|｜]>"
)
"""A tag, or the beginning of one."""
_WORDS = frozenset(_USUAL_WORDS.split())
_WORD = re.compile(r"[^\W_]+(?:_[^\W_]+)*")


def is_natural(literal: str) -> bool:
    """Whether a text is more than markup: a word, a number, a phrase, or a character that nobody types by chance."""
    rest = _TAG.sub(lambda tag: " " if _STEMS.search(tag.group()) else tag.group(), literal)
    for character in rest:
        if ord(character) > 0x7F and not character.isspace() and character not in "｜▁“”‘’…–—":
            return True
    words = [word for word in _WORD.findall(rest) if word.lower() not in _WORDS]
    return sum(len(word) for word in words) >= 2
