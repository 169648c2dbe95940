"""Screens are pure: values in, text out. Widths are those of a pipe (100 columns) and of a narrow terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from raymerge.checkpoint.nouns import Checkpoint, SourceFile, TensorRef, TensorSpec
from raymerge.cli.screens.methods import example_recipe, method_page, method_table
from raymerge.cli.screens.plan import Surroundings, fate_counts, plan_screen, plan_values, sample_layers
from raymerge.cli.screens.problems import headline, problem_list
from raymerge.cli.screens.progress import Progress, advance, live_view, progress_line, retry_line
from raymerge.cli.screens.text import duration, element_count
from raymerge.dtypes import DType
from raymerge.errors import ExecutionError, PlanError, Problem, StorageError
from raymerge.events import Event, Message, RunStarted, TaskFinished, TaskRetried, TaskStarted
from raymerge.methods import all_methods
from raymerge.methods.declaration import Base, Method
from raymerge.planning.nouns import JobInput, LedgerLine, MemoryProjection, ParameterRow, Plan, ShardTask, TensorJob
from raymerge.recipe.load import load_recipe


def shown(renderable: RenderableType, *, width: int = 100) -> str:
    console = Console(file=StringIO(), width=width, highlight=False, markup=False, emoji=False)
    console.print(renderable)
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    return text


def checkpoint(reference: str, *, layers: int = 2, **facts: Any) -> Checkpoint:
    file = SourceFile(url=f"/models/{reference}/model.safetensors", nbytes=10**9, version="v", identity="i")
    specs = [TensorSpec(name=f"model.layers.{i}.w", dtype=DType.BF16, shape=(1000, 1000)) for i in range(layers)]
    return Checkpoint(
        reference=reference,
        url=f"/models/{reference}",
        origin="local folder",
        config={},
        tensors={spec.name: TensorRef(spec=spec, file=file, offset=0) for spec in specs},
        files=(file,),
        side_files=(),
        **facts,
    )


def plan_of_two() -> Plan:
    base, other = checkpoint("org/base", commit="1f2e3d4c5b6a", hub_id="org/base"), checkpoint("other")
    memory = MemoryProjection(inputs_bytes=10**9, prefetch_bytes=10**8, scratch_bytes=0, output_bytes=0, upload_bytes=0)
    jobs = tuple(
        TensorJob(
            output=ref.spec,
            method="slerp",
            inputs=(JobInput(ref=ref), JobInput(ref=other.tensors[name])),
            parameters={"t": 0.5},
        )
        for name, ref in base.tensors.items()
    )
    shard = ShardTask(file_name="model.safetensors", jobs=jobs, plan_digest="7f3a91c2" * 8, memory=memory)
    names = tuple(base.tensors)
    return Plan(
        digest="7f3a91c2" * 8,
        shards=(shard,),
        ledger=(
            LedgerLine(model="org/base", fate="merged", rule="slerp", tensors=names),
            LedgerLine(model="other", fate="merged", rule="slerp", tensors=names),
            LedgerLine(model="other", fate="dropped", rule="layer past the end", tensors=("a", "b", "c", "d", "e")),
        ),
        output_config={"model_type": "llama"},
        models=(base, other),
        base=base,
        donor=base,
        methods=("slerp",),
        layer_count=32,
        parameters_by_layer=(
            ParameterRow(name="t", subject="self_attn", model="", values=tuple(i / 31 for i in range(32))),
            ParameterRow(name="t", subject="", model="", values=(0.5,)),
            ParameterRow(name="weight", subject="", model="other", values=(0.25,)),
            ParameterRow(name="normalize", subject="", model="", values=(True,)),
            ParameterRow(name="eps", subject="mlp", model="", values=(1e-5,)),
            ParameterRow(name="eps", subject="", model="", values=(1e-3,)),
        ),
        warnings=(Problem(line=7, subject="int8_mask", message="no parameter of slerp", remedy="remove it"),),
    )


AROUND = Surroundings(
    seconds=1.6, out="merge/", free_bytes=61 * 10**9, host_bytes=127 * 10**8, task_count=2, resume="nothing there yet"
)


@pytest.mark.parametrize(
    "expected",
    [
        "slerp, 2 models, 32 layers -> 2 M parameters, bfloat16",
        "plan 7f3a91c2   1.6 s",
        "A (base)  org/base@1f2e3d4",
        "4.0 MB  local folder",
        "t  *self_attn*",
        "0     7    15    23    31",
        "t  everything else  0.5  0.5  0.5  0.5  0.5",
        "weight  B 0.25",
        "shared  normalize true, eps *mlp* 1e-05, eps 0.001",
        "4 merged, 0 copied, 5 dropped",
        "merge/  1 shard, 4.0 MB",
        "1.1 GB x 2 tasks of 12.7 GB",
        "4.0 MB needed, 61.0 GB free",
        "nothing there yet",
        "dropped  5 of B: layer past the end (a, b, c, 2 more)",
        "line 7: int8_mask: no parameter of slerp",
        "-> remove it",
    ],
)
def test_the_plan_says(expected: str) -> None:
    text = shown(plan_screen(plan_of_two(), AROUND))
    assert " ".join(expected.split()) in " ".join(text.split())


@pytest.mark.parametrize("width", [40, 60, 200])
def test_the_plan_fits_any_width(width: int) -> None:
    shown(plan_screen(plan_of_two(), AROUND), width=width)


def test_a_plan_as_json_holds_the_screens_figures() -> None:
    values = json.loads(json.dumps(plan_values(plan_of_two(), AROUND)))
    assert values["digest"] == "7f3a91c2" * 8
    assert [len(line["tensors"]) for line in values["ledger"]] == [2, 2, 5]
    assert values["shards"][0]["projected_bytes"] == 1_100_000_000
    assert values["models"][0]["commit"] == "1f2e3d4c5b6a"


def test_a_plan_without_parameters_warnings_or_base_is_shown() -> None:
    plan = replace(plan_of_two(), parameters_by_layer=(), warnings=(), ledger=(), base=None, layer_count=0)
    text = shown(plan_screen(plan, Surroundings(seconds=0.1)))
    assert "(base)" not in text
    assert "0 merged" in text


@given(st.integers(0, 200))
def test_sampled_layers_are_a_spread_with_both_ends(count: int) -> None:
    layers = sample_layers(count)
    assert list(layers) == sorted(set(layers))
    assert len(layers) == min(count, 5)
    assert count == 0 or (layers[0], layers[-1]) == (0, count - 1)


def test_every_tensor_is_counted_once() -> None:
    assert sum(fate_counts(plan_of_two().ledger).values()) == 9


@pytest.mark.parametrize(
    ("error", "started", "expected"),
    [
        (PlanError("x"), False, "c cannot run: 1 problem, no weights read, nothing written"),
        (PlanError("x", "y"), False, "c cannot run: 2 problems, no weights read, nothing written"),
        (StorageError("x"), False, "c failed: 1 problem, nothing written"),
        (ExecutionError("x"), True, "c failed: 1 problem; finished shards stay, the same command continues"),
    ],
)
def test_headlines(error: Any, started: bool, expected: str) -> None:
    assert headline(error, "c", started=started) == expected


TENSOR = "model.language_model.layers.31.self_attn.k_proj.weight"


def test_each_problem_shows_place_subject_message_and_remedy() -> None:
    problems = [
        Problem(line=4, subject="models[1]", message="is gated", remedy="accept its terms"),
        Problem(subject=TENSOR, message="'b' has shape (5632, 2048), the base (5504, 2048)", remedy="drop 'b'"),
        Problem(message="alone"),
    ]
    lines = shown(problem_list(problems)).splitlines()
    assert lines[0].split() == ["line", "4", "models[1]", "is", "gated"]
    assert lines[1].strip() == "-> accept its terms"
    assert lines[1].index("->") == lines[0].index("is gated")
    assert lines[2].strip() == TENSOR
    assert "(5632, 2048)" in lines[3]
    assert lines[-1].strip() == "alone"


def test_a_long_message_is_kept_whole() -> None:
    words = [f"word{i}" for i in range(100)]
    text = shown(problem_list([Problem(line=1, subject="s", message=" ".join(words))]))
    assert [word for word in text.split() if word.startswith("word")] == words


STARTED = RunStarted(
    plan_digest="d", out="o", shard_count=8, kept_count=1, read_bytes=24 * 10**9, write_bytes=5 * 10**9
)


def finished(task: str, gigabytes: int) -> TaskFinished:
    return TaskFinished(task=task, read_bytes=gigabytes * 10**9, written_bytes=0, seconds=1)


def retried(task: str, cause: Any = "storage", **facts: Any) -> TaskRetried:
    values = {"detail": "the hub said 429", "attempt": 1, "limit": 8, "wait_seconds": 12.0} | facts
    return TaskRetried(task=task, cause=cause, **values)


def after(*events: tuple[float, Event]) -> Progress:
    progress = Progress(started_at=0)
    for now, event in events:
        progress = advance(progress, event, now)
    return progress


def test_progress_counts_kept_and_done_shards_bytes_and_time() -> None:
    progress = after((100.0, STARTED), (100.0, TaskStarted(task="shard 2")), (110.0, finished("shard 2", 1)))
    assert progress_line(progress, 110.0) == "2/8 shards   1.0 GB of 29.0 GB   100 MB/s   4m40s left"


def test_progress_before_anything_is_done() -> None:
    assert progress_line(after((5.0, STARTED)), 5.0).endswith("0 B of 29.0 GB   0 B/s   starting")


def test_more_than_was_planned_leaves_no_time_below_zero() -> None:
    assert progress_line(after((0.0, STARTED), (9.0, finished("a", 30))), 9.0).endswith("   0.0 s left")


def test_retries_are_counted_by_cause_and_their_task_runs_no_more() -> None:
    progress = after(
        (0.0, STARTED), (0.0, TaskStarted(task="a", node="n1")), (1.0, retried("a")), (2.0, retried("a")),
        (3.0, retried("b", "node lost", limit=None)),
    )  # fmt: skip
    assert progress.running == {}
    assert progress_line(progress, 3.0).endswith("retried 3: node lost 1, storage 2")


def test_the_live_view_names_nodes_and_the_slowest() -> None:
    progress = after(
        (0.0, STARTED), (0.0, TaskStarted(task="shard 1", node="10.0.0.1")),
        (30.0, TaskStarted(task="shard 2", node="10.0.0.2")), (38.0, Message(text="m")),
    )  # fmt: skip
    text = shown(live_view(progress, 38.0, name="tie70"), width=120)
    assert "tie70" in text
    assert "2 running on 2 nodes" in text
    assert "slowest: shard 1, 38 s, 10.0.0.1" in text


def test_the_live_view_has_a_line_for_each_of_several_nodes() -> None:
    nodes = [f"10.0.0.{number}" for number in range(1, 13)]
    progress = after(
        (0.0, STARTED), *((0.0, TaskStarted(task=f"shard {node}", node=node)) for node in nodes),
        (10.0, replace(finished("shard 10.0.0.2", 2), node="10.0.0.2")),
        (10.0, retried("shard 10.0.0.3", "node lost", node="10.0.0.3")),
    )  # fmt: skip
    lines = shown(live_view(progress, 10.0, name="tie70"), width=120).splitlines()
    assert [line.split()[0] for line in lines[2:10]] == [*nodes[:1], *nodes[3:10]]  # those at work come first
    assert "10 on 10 nodes" in lines[1].replace(" running", "")
    assert lines[10].strip() == "and 4 more nodes"
    few = shown(live_view(after(*_two_nodes()), 10.0, name="tie70"), width=120).splitlines()
    assert [" ".join(line.split()) for line in few[2:]] == [
        "10.0.0.2 1 running 1 done 2.0 GB 200 MB/s", "10.0.0.1 0 running 0 done 0 B 0 B/s 1 failed",
    ]  # fmt: skip


def _two_nodes() -> list[tuple[float, Event]]:
    return [
        (0.0, STARTED), (0.0, TaskStarted(task="a", node="10.0.0.1")), (0.0, TaskStarted(task="b", node="10.0.0.2")),
        (5.0, retried("a", "node lost", node="10.0.0.1")), (9.0, replace(finished("b", 2), node="10.0.0.2")),
        (9.0, TaskStarted(task="c", node="10.0.0.2")),
    ]  # fmt: skip


@given(st.lists(st.sampled_from(["start", "finish", "retry"]), max_size=12), st.integers(20, 120))
def test_the_live_view_is_two_lines_at_any_time_and_width(steps: list[str], width: int) -> None:
    events: dict[str, Event] = {
        "start": TaskStarted(task="t", node="n"), "finish": finished("t", 30), "retry": retried("t"),
    }  # fmt: skip
    progress = after((0.0, STARTED), *((float(i), events[step]) for i, step in enumerate(steps)))
    assert len(shown(live_view(progress, 99.0, name="n" * 50), width=width).splitlines()) == 2


def test_a_retry_says_cause_wait_and_tries() -> None:
    assert retry_line(retried("shard 5")) == "shard 5: storage: the hub said 429, waiting 12 s (try 2 of 8)"
    lost = retried("shard 5", "node lost", detail="10.0.0.3", limit=None, wait_seconds=0.0)
    assert retry_line(lost) == "shard 5: node lost: 10.0.0.3 (try 2)"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (38, "38 s"),
        (59.6, "1m00s"),
        (234, "3m54s"),
        (7500, "2h05m"),
        (3599.9, "1h00m"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(4096, "4,096"), (7_241_732_096, "7.24 B"), (110_000_000, "110 M"), (70_553_706_496, "70.6 B")]
)
def test_element_counts(count: int, text: str) -> None:
    assert element_count(count) == text


def test_the_table_names_every_method_and_parameter() -> None:
    text = shown(method_table(all_methods().values()))
    for name, method in all_methods().items():
        assert name in text
        for parameter in method.parameters:
            assert parameter.name in text


@pytest.mark.parametrize("method", all_methods().values(), ids=lambda method: method.name)
def test_a_methods_page_gives_parameters_formula_and_source(method: Method) -> None:
    text = " ".join(shown(method_page(method)).split())
    assert method.summary in text
    assert " ".join(method.formula.split()) in text
    assert " ".join(method.source.split()) in text
    for parameter in method.parameters:
        assert f"{parameter.name} {'per model' if parameter.per_input else 'shared'}" in text


@pytest.mark.parametrize("method", all_methods().values(), ids=lambda method: method.name)
def test_an_example_is_a_recipe_that_sets_what_the_method_needs(method: Method) -> None:
    recipe = load_recipe(example_recipe(method))
    assert recipe.merge_method == method.name
    sources = [*recipe.modules[0].models, *(each for one in recipe.modules[0].slices for each in one.sources)]
    assert (recipe.base_model is not None) == (method.base in {Base.REQUIRED, Base.FIRST})
    for parameter in method.parameters:
        if parameter.name in method.example:
            holders = sources if parameter.per_input else [recipe]
            assert all(parameter.name in holder.parameters for holder in holders)
