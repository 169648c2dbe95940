from __future__ import annotations

import json

import pytest
from checkpoints import write_llama

from raymerge.checkpoint.open import open_checkpoint
from raymerge.errors import PlanError
from raymerge.output.builtin_templates import BUILTIN_TEMPLATES
from raymerge.output.chat_template import (
    apply_chat_template,
    check_template,
    choose_template,
    missing_template_warning,
    read_template,
    template_in,
)

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]

# The formats as their makers publish them, written out.
EXPECTED = {
    "alpaca": (
        "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello.</s>\n\n### Instruction:\nBye\n\n### Response:\n"
    ),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "mistral": "<s> [INST] Be brief.\n\nHi [/INST] Hello.</s> [INST] Bye [/INST]",
    "exaone": (
        "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello.[|endofturn|]\n[|user|]Bye\n[|assistant|]"
    ),
}


@pytest.mark.parametrize("name", BUILTIN_TEMPLATES)
def test_a_built_in_template_renders_the_published_format_in_transformers(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    folder = write_llama(tmp_path, layers=1)
    for file, content in apply_chat_template(read_all(folder), BUILTIN_TEMPLATES[name]).items():
        (folder / file).write_bytes(content)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == EXPECTED[name]


def read_all(folder):
    return {path.name: path.read_bytes() for path in folder.glob("token*.json")}


def test_alpaca_introduces_a_first_instruction_and_exaone_an_empty_system_turn():
    from jinja2 import Template

    chat = {"messages": CHAT[1:2], "eos_token": "</s>", "bos_token": "<s>", "add_generation_prompt": True}
    alpaca = Template(BUILTIN_TEMPLATES["alpaca"]).render(**chat)
    assert alpaca.startswith("Below is an instruction that describes a task.")
    assert Template(BUILTIN_TEMPLATES["exaone"]).render(**chat) == "[|system|][|endofturn|]\n[|user|]Hi\n[|assistant|]"


def test_every_file_that_is_read_says_the_same():
    files = {
        "tokenizer_config.json": json.dumps(
            {"a": 1, "chat_template": [{"name": "default", "template": "old"}]}
        ).encode(),
        "chat_template.json": b'{"chat_template": "old"}',
        "other": b"x",
    }
    changed = apply_chat_template(files, "{{ new }}")
    assert json.loads(changed["tokenizer_config.json"]) == {"a": 1, "chat_template": "{{ new }}"}
    assert changed["chat_template.jinja"] == b"{{ new }}"
    assert "chat_template.json" not in changed
    assert changed["other"] == b"x"
    assert template_in(changed, display="m") == "{{ new }}"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config.json": b"{}"}, None),
        ({"tokenizer_config.json": b'{"chat_template": "t"}'}, "t"),
        ({"tokenizer_config.json": b'{"chat_template": [{"name": "tool_use", "template": "u"}]}'}, None),
        ({"tokenizer_config.json": b'{"chat_template": [{"name": "default", "template": "d"}]}'}, "d"),
        ({"tokenizer_config.json": b'{"chat_template": "t"}', "chat_template.jinja": b"j"}, "j"),
        ({"chat_template.json": b'{"chat_template": "p"}'}, "p"),
    ],
)
def test_where_templates_are_found(files, expected):
    assert template_in(files, display="m") == expected


def test_auto_takes_the_most_common_and_among_equals_the_first():
    assert choose_template("auto", [None, "b", "a", "a"]) == "a"
    assert choose_template("auto", ["b", "a"]) == "b"
    assert choose_template("auto", [None, None]) is None


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("chatlm", "did you mean chatml"),
        ("Hello", "expected auto, alpaca, chatml, llama3, mistral, exaone or a Jinja2 template"),
        ("{% for m in messages %}", "does not compile"),
        ("{{ 1 + }}", "does not compile in line 1"),
        ("{% include_evil %}{{ x }}", "does not compile"),
        ("{{ " + "(" * 5000 + " }}", "does not compile"),
    ],
)
def test_what_is_no_template_is_refused(setting, expected):
    with pytest.raises(PlanError, match=expected) as caught:
        choose_template(setting, [])
    assert caught.value.problems[0].subject == "chat_template"


def test_what_published_templates_use_compiles_and_nothing_runs():
    check_template("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% break %}{% endfor %}")
    check_template("{% generation %}{{ m }}{% endgeneration %}{{ raise_exception('x') }}{{ strftime_now('%Y') }}")
    check_template("{% for i in range(10**18) %}{{ i }}{% endfor %}")
    setting = "{{ ''.__class__ }}"
    assert choose_template(setting, []) == setting


def opened(folder):
    return open_checkpoint(str(folder), revision=None, display=folder.name, cwd="/")


def test_a_donor_without_a_template_while_another_has_one_is_a_warning(tmp_path):
    plain = opened(write_llama(tmp_path / "plain", layers=1))
    chatty = opened(write_llama(tmp_path / "chatty", layers=1, chat_template="{{ messages }}"))
    assert read_template(chatty) == "{{ messages }}"
    assert missing_template_warning(chatty, [chatty, plain]) is None
    assert missing_template_warning(plain, [plain, plain]) is None
    warning = missing_template_warning(plain, [plain, chatty])
    assert "plain, which has no chat template; chatty has one" in warning.message
    assert warning.remedy == "chat_template: auto"
