"""Chat templates that a recipe can name, written from the formats that the models' makers publish."""

from __future__ import annotations

# https://github.com/tatsu-lab/stanford_alpaca#data-release
_ALPACA = """\
{%- for message in messages %}
{%- if message['role'] == 'system' %}
{{- message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'user' %}
{%- if loop.first %}
{{- 'Below is an instruction that describes a task. Write a response that appropriately completes the request.\\n\\n' }}
{%- endif %}
{{- '### Instruction:\\n' + message['content'] + '\\n\\n' }}
{%- else %}
{{- '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '### Response:\\n' }}
{%- endif %}"""

# https://github.com/openai/openai-python/blob/release-v0.28.1/chatml.md
_CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

# https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/
_LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

# https://docs.mistral.ai/guides/tokenization/ (v1): instructions in [INST], a system text before the first of them
_MISTRAL = """\
{{- bos_token }}
{%- set state = namespace(system='') %}
{%- for message in messages %}
{%- if message['role'] == 'system' %}
{%- set state.system = message['content'] + '\\n\\n' %}
{%- elif message['role'] == 'user' %}
{{- ' [INST] ' + state.system + message['content'] + ' [/INST]' }}
{%- set state.system = '' %}
{%- else %}
{{- ' ' + message['content'] + eos_token }}
{%- endif %}
{%- endfor %}"""

# https://huggingface.co/LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct: every turn but the user's ends with [|endofturn|]
_EXAONE = """\
{%- for message in messages %}
{%- if loop.first and message['role'] != 'system' %}
{{- '[|system|][|endofturn|]\\n' }}
{%- endif %}
{{- '[|' + message['role'] + '|]' + message['content'] }}
{%- if message['role'] != 'user' %}
{{- '[|endofturn|]' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '[|assistant|]' }}
{%- endif %}"""

BUILTIN_TEMPLATES = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
    "exaone": _EXAONE,
}
