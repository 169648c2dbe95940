"""What an output takes over from its donor, and what is written beside it."""

from __future__ import annotations

import dataclasses
import json

from checkpoints import write_llama
from outputs import plan_folders, two_model_plan

from raymerge.checkpoint.open import open_checkpoint
from raymerge.output.side_files import side_files
from raymerge.output.tokenizer import copied_files

COPIED = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "generation_config.json",
    "preprocessor_config.json", "processor_config.json", "qwen.tiktoken",
)  # fmt: skip
NOT_COPIED = (
    "README.md", "training_args.bin", "optimizer.pt", "trainer_state.json", "model.onnx", "run.py", "config.json",
    "adapter_config.json", ".gitattributes", "LICENSE",
)  # fmt: skip


def opened(folder):
    return open_checkpoint(str(folder), revision=None, display=folder.name, cwd="/")


def test_tokenizer_and_processor_files_are_copied_byte_for_byte_and_nothing_else(tmp_path):
    folder = write_llama(tmp_path, layers=1, tokenizer=False)
    for name in (*COPIED, *NOT_COPIED):
        if name != "config.json":
            (folder / name).write_bytes(b"{}" if name.endswith(".json") else name.encode())
    (folder / "tokenizer.json").write_bytes(b'{"odd":\n  "spacing"}')
    files = copied_files(opened(folder))
    assert sorted(files) == sorted(COPIED)
    assert files["tokenizer.json"] == b'{"odd":\n  "spacing"}'
    assert all(content == (folder / name).read_bytes() for name, content in files.items())


def test_without_the_tokenizer_the_other_configs_stay(tmp_path):
    assert sorted(copied_files(opened(write_llama(tmp_path, layers=1)), copy_tokenizer=False)) == [
        "generation_config.json"
    ]


def test_code_named_in_auto_map_is_copied_with_what_it_imports_and_never_run(tmp_path):
    auto_map = {"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.X", "Other": "org/repo--far.Away"}
    folder = write_llama(tmp_path, layers=1, config={"auto_map": auto_map})
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_x.Slow", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    code = {
        "configuration_x.py": "raise SystemExit('this code ran')",
        "modeling_x.py": "from .kernels import fast\nfrom . import helpers as h, more\nfrom .. import up\nimport run",
        "kernels.py": "from .modeling_x import cycle\n    from .deep import x\nfrom .absent import y",
        "helpers.py": "",
        "more.py": "",
        "deep.py": "",
        "tokenization_x.py": "",
        "run.py": "",
        "far.py": "",
    }
    for name, text in code.items():
        (folder / name).write_text(text)
    files = copied_files(opened(folder))
    assert {name for name in files if name.endswith(".py")} == set(code) - {"run.py", "far.py"}
    assert all(files[name] == text.encode() for name, text in code.items() if name in files)


def test_auto_takes_the_template_of_another_input(tmp_path):
    donor = opened(write_llama(tmp_path / "donor", layers=1))
    other = opened(write_llama(tmp_path / "other", layers=1, chat_template="{{ x }}"))
    files = copied_files(donor, models=[donor, other], chat_template="auto")
    assert files["chat_template.jinja"] == b"{{ x }}"
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == "{{ x }}"
    alone = copied_files(donor, models=[donor], chat_template="auto")
    assert alone == copied_files(donor)


def test_the_same_plan_gives_the_same_files(tmp_path):
    plan = two_model_plan(tmp_path)
    files = side_files(plan)
    assert sorted(files) == [
        "README.md", "config.json", "generation_config.json", "mergekit_config.yml", "special_tokens_map.json",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert side_files(two_model_plan(tmp_path)) == files
    assert "README.md" not in side_files(plan, write_model_card=False)
    config = json.loads(files["config.json"])
    assert config["torch_dtype"] == "bfloat16"
    assert config == json.loads((tmp_path / "a" / "config.json").read_text())
    assert files["mergekit_config.yml"].decode() == plan.recipe_text


def test_the_recipe_is_written_as_it_was_but_for_credentials(tmp_path):
    plan = two_model_plan(tmp_path)
    secret = "s3://user:hunter2@bucket/model"
    model = dataclasses.replace(plan.models[0], reference=secret)
    text = f"# kept\nmodels: [{{model: {secret}}}]\n"
    files = side_files(dataclasses.replace(plan, models=(model,), recipe_text=text), write_model_card=False)
    assert files["mergekit_config.yml"] == b"# kept\nmodels: [{model: s3://bucket/model}]\n"


def test_layers_are_counted_in_the_config_of_a_stack(tmp_path):
    write_llama(tmp_path / "m", layers=3)
    recipe = f"""
merge_method: passthrough
slices:
  - sources: [{{model: {tmp_path}/m, layer_range: [0, 2]}}]
  - sources: [{{model: {tmp_path}/m, layer_range: [1, 3]}}]
"""
    config = json.loads(side_files(plan_folders(recipe))["config.json"])
    assert config["num_hidden_layers"] == 4


def test_a_sentence_model_keeps_the_modules_behind_its_encoder(tmp_path):
    """modules.json is a list, names folders, and says nothing of code."""
    folder = write_llama(tmp_path, layers=1, tokenizer=False)
    paths = ["", "1_Pooling", "2_Normalize", "../up", "/etc", "a/b", None]
    (folder / "modules.json").write_text(json.dumps([{"path": path} for path in paths] + ["odd"]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    files = copied_files(opened(folder))
    assert sorted(files) == ["1_Pooling/config.json", "generation_config.json", "modules.json"]
    assert files["1_Pooling/config.json"] == b'{"pooling_mode_mean_tokens": true}'
