"""`trim_scope: model` keeps floor(density * n) changes of a whole model; equal ones go by tensor, then by index."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import llama_config, llama_shapes, read_tensors, write_config, write_tokenizer, write_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from merges import folder_digest, kill_when, start_merge

import raymerge
from raymerge.errors import PlanError
from raymerge.events import Event, RunStarted, TaskFinished, TaskSurveyed
from raymerge.methods.survey import Answer, SurveyedTensor
from raymerge.methods.trim_scope import WHOLE_MODEL

SHAPE: dict[str, Any] = {"layers": 3, "hidden": 32, "heads": 4, "vocab": 96}
Arrays = dict[str, np.ndarray]


def write_model(folder: Path, arrays: Arrays, codes: str | dict[str, str] = "BF16") -> None:
    write_weights(folder, arrays, codes)
    write_config(folder, llama_config(**SHAPE))
    write_tokenizer(folder, vocab=SHAPE["vocab"])


def grid_models(root: Path, codes: str | dict[str, str] = "BF16") -> Path:
    """Changes of few magnitudes: multiples of 1/128 around numbers from 1 to 2, so that most are equal to others.

    Layers change by more the higher they are: over the whole model some keep everything, others nothing.
    """
    rng = np.random.default_rng(0)
    base, tunes = {}, {"a": {}, "b": {}}
    for place, (name, shape) in enumerate(llama_shapes(**SHAPE).items()):
        base[name] = rng.choice([-1.25, -1.125, 1.125, 1.25], size=shape).astype(np.float32)
        for tune in tunes.values():
            most = 1 + place // 8
            tune[name] = base[name] + rng.integers(-most, most + 1, size=shape).astype(np.float32) / 128
    for name, arrays in {"base": base, **tunes}.items():
        write_model(root / name, arrays, codes)
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grid_models(tmp_path_factory.mktemp("grid"))


def recipe(root: Path, densities: Sequence[Any], **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": "ties",
        "base_model": str(root / "base"),
        "models": [
            {"model": str(root / name), "parameters": {"weight": weight, "density": density}}
            for name, weight, density in zip("ab", (0.6, 0.5), densities, strict=False)
        ],
        "parameters": {"trim_scope": "model", **parameters},
        "dtype": "float32",
    }


def trimmed(deltas: Arrays, density: float) -> Arrays:
    """The floor(density * n) largest entries of all arrays together, the others 0: by one sort over the model."""
    flat = np.concatenate([delta.reshape(-1) for delta in deltas.values()])
    kept = min(flat.size, max(1, int(density * flat.size))) if density > 0 else 0
    order = np.lexsort((np.arange(flat.size), -np.abs(flat)))
    mask = np.zeros(flat.size, bool)
    mask[order[:kept]] = True
    parts = np.split(np.where(mask, flat, 0), np.cumsum([delta.size for delta in deltas.values()])[:-1])
    return {name: part.reshape(delta.shape) for (name, delta), part in zip(deltas.items(), parts, strict=True)}


def oracle(root: Path, densities: Sequence[float]) -> Arrays:
    """TIES in float64, trimmed over the whole model."""
    base = {name: array.astype(np.float64) for name, array in read_tensors(root / "base").items()}
    weights, kept = (0.6, 0.5), []
    for name, density in zip("ab", densities, strict=False):
        tune = read_tensors(root / name)
        kept.append(trimmed({tensor: tune[tensor].astype(np.float64) - base[tensor] for tensor in base}, density))
    merged = {}
    for tensor, array in base.items():
        votes = np.stack([weight * each[tensor] for weight, each in zip(weights, kept, strict=False)])
        total = votes.sum(0)
        total[np.abs(total) < 1e-13] = 0
        agrees = (np.sign(votes) == np.where(total >= 0, 1, -1)) & (votes != 0)
        divisor = sum(weight * agree for weight, agree in zip(weights, agrees, strict=False))
        merged[tensor] = array + (votes * agrees).sum(0) / np.where(divisor == 0, 1, divisor)
    return merged


@pytest.mark.parametrize("densities", [(0.3, 0.6), (0.05, 0.9), (0.5, 1.0), (0.0, 0.5), (1e-9, 0.999), (1.0, 2.0)])
def test_the_whole_model_is_trimmed_as_one_sort_would(models: Path, tmp_path: Path, densities: Any) -> None:
    raymerge.merge(recipe(models, densities), tmp_path / "out", executor="inline", out_shard_size="20KB")
    merged, exact = read_tensors(tmp_path / "out"), oracle(models, densities)
    assert merged.keys() == exact.keys()
    for name, tensor in merged.items():
        np.testing.assert_allclose(tensor, exact[name], rtol=1e-7, err_msg=name)


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 0.6])
def test_exactly_the_share_is_kept_whatever_the_files(models: Path, tmp_path: Path, density: float) -> None:
    config = recipe(models, (density,))
    expected = trimmed(
        {name: read_tensors(models / "a")[name] - array for name, array in read_tensors(models / "base").items()},
        density,
    )
    count = sum(array.size for array in expected.values())
    for size in ("1B", "10KB", "40KB"):
        raymerge.merge(config, tmp_path / size, executor="inline", out_shard_size=size)
        merged, base = read_tensors(tmp_path / size), read_tensors(models / "base")
        kept = {name: merged[name] - base[name] for name in expected}
        assert sum(np.count_nonzero(array) for array in kept.values()) == int(density * count)
        for name, array in expected.items():
            np.testing.assert_array_equal(kept[name] != 0, array != 0, err_msg=f"{name} in files of {size}")


def test_some_tensors_keep_most_and_others_nothing(models: Path, tmp_path: Path) -> None:
    """Unlike trimming each tensor for itself."""
    shares = {}
    for scope in ("tensor", "model"):
        merged = dict(raymerge.tensors(recipe(models, (0.4,), trim_scope=scope)))
        base, tune = read_tensors(models / "base"), read_tensors(models / "a")
        shares[scope] = [
            np.count_nonzero(merged[name].numpy() != base[name]) / np.count_nonzero(tune[name] != base[name])
            for name in base
        ]
    assert min(shares["model"]) == 0
    assert max(shares["model"]) > 0.75
    assert min(shares["tensor"]) > 0.4


def test_threads_memory_and_blocks_do_not_change_a_byte(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raymerge.merging import survey

    config = recipe(models, (0.3, 0.6))
    raymerge.merge(config, tmp_path / "one", executor="inline", task_cpus=1, out_shard_size="20KB")
    raymerge.merge(config, tmp_path / "two", executor="inline", task_cpus=2, out_shard_size="20KB")
    monkeypatch.setattr(survey, "BLOCK_ELEMENTS", 1024)
    monkeypatch.setattr(survey, "room_bytes", lambda *_: 10_000)
    seen = []
    stream = survey._Run._stream
    monkeypatch.setattr(survey._Run, "_stream", lambda self, job: (seen.append(job), stream(self, job))[1])
    raymerge.merge(config, tmp_path / "streamed", executor="inline", task_cpus=2, out_shard_size="20KB")
    assert seen
    first = folder_digest(tmp_path / "one")
    assert folder_digest(tmp_path / "two") == first
    assert folder_digest(tmp_path / "streamed") == first


def test_ray_writes_the_same_bytes_and_tells_of_the_first_phase(models: Path, tmp_path: Path) -> None:
    config = recipe(models, (0.3, 0.6))
    raymerge.merge(config, tmp_path / "inline", executor="inline", out_shard_size="20KB")
    events: list[Event] = []
    result = raymerge.merge(config, tmp_path / "ray", out_shard_size="20KB", on_event=events.append)
    assert folder_digest(tmp_path / "ray") == folder_digest(tmp_path / "inline")
    surveyed = [event for event in events if isinstance(event, TaskSurveyed)]
    finished = [event for event in events if isinstance(event, TaskFinished)]
    assert len(finished) == result.shard_count
    assert result.shard_count * 2 <= len(surveyed) <= result.shard_count * 2 + 2
    (started,) = [event for event in events if isinstance(event, RunStarted)]
    read = sum(event.read_bytes for event in (*surveyed[: 2 * result.shard_count], *finished))
    assert started.read_bytes == read


def test_files_of_any_size_hold_the_same_tensors_with_mixed_types(tmp_path: Path) -> None:
    """Wider types go to the front of a file, so that the order of tensors differs from file to file; ties' does not."""
    codes = {name: "F32" if len(shape) == 1 else "BF16" for name, shape in llama_shapes(**SHAPE).items()}
    models = grid_models(tmp_path / "models", codes)
    config = recipe(models, (0.3, 0.45))
    del config["dtype"]
    found = []
    for size in ("1B", "10KB", "40KB"):
        raymerge.merge(config, tmp_path / size, executor="inline", out_shard_size=size)
        found.append(read_tensors(tmp_path / size))
    assert list(found[0]) != list(found[1])
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        for name, tensor in found[0].items():
            np.testing.assert_array_equal(tensor, other[name], err_msg=name)


def test_float64_models_are_trimmed_by_their_own_bits(tmp_path: Path) -> None:
    models = grid_models(tmp_path / "models", "F64")
    config = {**recipe(models, (0.3, 0.6)), "dtype": "float64"}
    raymerge.merge(config, tmp_path / "out", executor="inline", out_shard_size="20KB")
    exact = oracle(models, (0.3, 0.6))
    for name, tensor in read_tensors(tmp_path / "out").items():
        np.testing.assert_allclose(tensor, exact[name], rtol=1e-15, err_msg=name)


def test_tensors_in_memory_are_those_of_the_files(models: Path, tmp_path: Path) -> None:
    config = recipe(models, (0.3, 0.6))
    raymerge.merge(config, tmp_path / "out", executor="inline")
    stored = read_tensors(tmp_path / "out")
    for name, tensor in raymerge.tensors(config):
        np.testing.assert_array_equal(tensor.numpy(), stored[name])


def test_the_digest_covers_the_scope(models: Path) -> None:
    digests = {
        scope: raymerge.plan(recipe(models, (0.3, 0.6), trim_scope=scope)).digest for scope in ("tensor", "model")
    }
    assert digests["tensor"] != digests["model"]
    by_default = recipe(models, (0.3, 0.6))
    del by_default["parameters"]["trim_scope"]
    assert raymerge.plan(by_default).digest == digests["tensor"]


def test_a_killed_run_surveys_again_and_a_finished_one_does_not(models: Path, tmp_path: Path) -> None:
    config = recipe(models, (0.3, 0.6))
    options = {"executor": "inline", "out_shard_size": "10KB"}
    raymerge.merge(config, tmp_path / "undisturbed", **options)
    out = tmp_path / "out"
    process = start_merge(config, out, seconds_per_tensor=0.05, **options)
    kill_when(process, lambda: len(list(out.glob("*.safetensors"))) >= 3)
    finished = {path.name: path.stat().st_ino for path in out.glob("*.safetensors")}
    events: list[Event] = []
    result = raymerge.merge(config, out, on_event=events.append, **options)
    assert 0 < result.kept_count < result.shard_count
    assert any(isinstance(event, TaskSurveyed) for event in events)
    assert all((out / name).stat().st_ino == inode for name, inode in finished.items())
    assert folder_digest(out) == folder_digest(tmp_path / "undisturbed")
    events.clear()
    raymerge.merge(config, out, on_event=events.append, **options)
    assert not any(isinstance(event, TaskSurveyed) for event in events)


def test_a_run_killed_in_its_first_phase_is_continued(models: Path, tmp_path: Path) -> None:
    config = recipe(models, (0.3, 0.6))
    raymerge.merge(config, tmp_path / "undisturbed", executor="inline")

    class Killed(BaseException):
        pass

    def kill(event: Event) -> None:
        if isinstance(event, TaskSurveyed):
            raise Killed

    with pytest.raises(Killed):
        raymerge.merge(config, tmp_path / "out", executor="inline", on_event=kill)
    assert json.loads((tmp_path / "out" / "raymerge.json").read_text())["state"] == "running"
    assert not list((tmp_path / "out").glob("*.safetensors"))
    raymerge.merge(config, tmp_path / "out", executor="inline")
    assert folder_digest(tmp_path / "out") == folder_digest(tmp_path / "undisturbed")


def test_a_density_that_changes_over_the_model_is_refused(models: Path) -> None:
    by_name = [{"filter": "mlp", "value": 0.2}, {"value": 0.5}]
    for density, finding in (([0.2, 0.4], "from 0.2 to 0.4"), (by_name, "from 0.2 to 0.5")):
        with pytest.raises(PlanError, match=rf"trim_scope: model: takes one density .*/a goes {finding}"):
            raymerge.plan(recipe(models, (density, 0.5)))
    assert raymerge.plan(recipe(models, ([0.5, 0.5], 0.5))).survey_passes == 2
    assert raymerge.plan(recipe(models, (1.0, 0.0))).survey_passes == 0


def test_a_scope_that_changes_over_the_model_is_refused(models: Path) -> None:
    scope = [{"filter": "mlp", "value": "model"}, {"value": "tensor"}]
    with pytest.raises(PlanError, match=r"holds for 9 of 30 tensors.*one choice for the whole model"):
        raymerge.plan(recipe(models, (0.5, 0.5), trim_scope=scope))


def test_parts_of_models_are_refused(models: Path) -> None:
    config = recipe(models, (0.5, 0.5))
    sources = [{"model": str(models / "base"), "layer_range": [0, 2]}]
    sources += [{**each, "layer_range": [0, 2]} for each in config.pop("models")]
    with pytest.raises(PlanError, match="found slices or modules; list whole models"):
        raymerge.plan({**config, "slices": [{"sources": sources}]})


def test_types_whose_magnitudes_share_no_table_are_refused(tmp_path: Path) -> None:
    codes = {name: "F64" if len(shape) == 1 else "BF16" for name, shape in llama_shapes(**SHAPE).items()}
    with pytest.raises(PlanError, match="all float64 or all narrower"):
        raymerge.plan(recipe(grid_models(tmp_path, codes), (0.5, 0.5)))


def test_a_plan_tells_what_the_first_phase_reads(models: Path) -> None:
    plan = raymerge.plan(recipe(models, (0.3, 0.6)))
    assert plan.survey_bytes == 2 * plan.read_bytes
    assert list(plan.surveyed) == list(read_tensors(models / "base"))


MAGNITUDES = st.sampled_from([0.0, 0.5, 1.0, 1.0 + 2**-23, 3.5, 2.0**-140, float("inf")])


@settings(max_examples=200, deadline=None)
@given(
    tensors=st.lists(st.tuples(st.booleans(), st.lists(MAGNITUDES, min_size=1, max_size=6)), min_size=1, max_size=12),
    density=st.floats(0.01, 0.99),
)
def test_rounds_deal_out_what_one_sort_keeps(tensors: list[tuple[bool, list[float]]], density: float) -> None:
    """`starts` says whether a tensor is the first of a task."""
    arrays = [np.array(values, np.float32) for _, values in tensors]
    positions = np.cumsum([starts for starts, _ in tensors])
    positions -= positions[0]
    facts = [
        SurveyedTensor(task=int(task), element_count=array.size, is_wide=False, each=({"density": density},))
        for task, array in zip(positions, arrays, strict=True)
    ]
    rounds = WHOLE_MODEL.rounds(facts)
    asked = 0
    try:
        question = next(rounds)
        while True:
            asked += 1
            question = rounds.send(answer_all(question, facts, arrays))
    except StopIteration as end:
        found = end.value
    assert asked <= WHOLE_MODEL.passes(facts) + 1
    expected = trimmed({str(i): array + 1 for i, array in enumerate(ranked(arrays))}, density)
    for i, (array, (given_to,)) in enumerate(zip(arrays, found, strict=True)):
        threshold = given_to["threshold"]
        if threshold is None:
            kept = np.full(array.size, sum(map(len, arrays)) == 1)
        else:
            equal = array == np.float32(threshold.value)
            first = np.cumsum(equal) <= (
                array.size if threshold.keep_equal == threshold.equal else threshold.keep_equal
            )
            kept = (array > np.float32(threshold.value)) | (equal & first)
        np.testing.assert_array_equal(kept, expected[str(i)] != 0)


def ranked(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Small whole numbers in the order of the magnitudes, so that infinity has one too."""
    values = np.unique(np.concatenate(arrays))
    return [np.searchsorted(values, array).astype(np.float64) for array in arrays]


def answer_all(question: Any, facts: Sequence[SurveyedTensor], arrays: Sequence[np.ndarray]) -> dict[int, Answer]:
    """What tasks would answer: counts of bit patterns."""
    answers = {}
    for task in sorted({fact.task for fact in facts}) if question.tasks is None else question.tasks:
        tables = []
        for fact, array in zip(facts, arrays, strict=True):
            if fact.task == task:
                bits = array.view(np.uint32).astype(np.int64)
                ((_, low, shift, bins),) = question.details
                places = np.minimum((bits[bits >= low] - low) >> shift, bins)
                tables.append(np.bincount(places, minlength=bins + 1)[None])
        answers[task] = Answer.of(np.stack(tables) if question.each_tensor else sum(tables))
    return answers
