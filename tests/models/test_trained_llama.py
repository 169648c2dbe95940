"""A Llama of 130,000 parameters that learns bytes, fine-tuned twice: merged, it must be good at both tasks.

All text is of the standard library: the base reads Python modules; one expert continues with the language reference
(English prose), the other with the tables of character encodings. Losses are on the last tenth of each text, in nats a
byte; they differ a little between versions of Python, and every asserted order holds by more than that.
"""

from __future__ import annotations

import copy
import math
import pydoc_data.topics
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import raymerge
from raymerge.cli.screens.methods import example_recipe
from raymerge.methods import Base, Method, all_methods

STEPS, RATE, EXPERT_STEPS = 300, 3e-3, 60
# The tables are regular: learnt as fast as prose, they move the weights so far that trimming leaves little of it.
EXPERT_RATES = {"prose": 1e-3, "tables": 4e-4}
TASKS = ("prose", "tables")
BATCH, CONTEXT = 16, 64
# Methods that take all of both experts. The others stay near one of their inputs by design (model_stock and nearswap
# at these settings), take the largest changes alone (arcee_fusion), or stack layers (passthrough).
BLENDS = (
    "linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "ties", "dare_linear", "dare_ties",
    "breadcrumbs", "breadcrumbs_ties", "della", "della_linear", "sce", "ram", "ramplus_tl",
)  # fmt: skip
Losses = tuple[float, float]
Measure = Callable[[Path], Losses]


@dataclass(frozen=True)
class Trained:
    base: Path
    prose: Path
    tables: Path
    losses: dict[str, Losses]

    @property
    def expert_mean(self) -> Losses:
        """On each task the mean over both experts, of which one knows it."""
        return mean((self.losses["prose"][0], self.losses["tables"][0])), mean(
            (self.losses["prose"][1], self.losses["tables"][1])
        )


def mean(values: tuple[float, float]) -> float:
    return sum(values) / 2


@pytest.fixture(scope="session")
def texts() -> dict[str, Any]:
    """What each model learns, as bytes below 128."""
    import torch

    library = Path(sysconfig.get_paths()["stdlib"])

    def modules(folder: Path, pattern: str) -> str:
        return "\n".join(path.read_text("utf-8", "ignore") for path in sorted(folder.glob(pattern)))

    found = {
        "code": modules(library, "*.py")[:2_000_000],
        "prose": "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items())),
        "tables": modules(library / "encodings", "cp*.py"),
    }
    return {name: torch.tensor(list(text.encode("ascii", "ignore"))) for name, text in found.items()}


def batch(text: Any, generator: Any, size: int) -> Any:
    import torch

    starts = torch.randint(len(text) - CONTEXT, (size,), generator=generator)
    return torch.stack([text[start : start + CONTEXT] for start in starts])


def train(model: Any, text: Any, *, steps: int, rate: float, seed: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(steps):
        ids = batch(text, generator, BATCH)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Layers this small gain nothing from threads, and lose minutes where the cores are shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def measure(texts: dict[str, Any], load: Callable[..., Any], one_thread: None) -> Measure:
    """The losses of a saved model on both tasks, on text that nobody trained on."""
    import torch

    def losses(folder: Path) -> Losses:
        model = load(folder, "AutoModelForCausalLM").float()
        found = []
        for task in TASKS:
            ids = batch(texts[task][-len(texts[task]) // 10 :], torch.Generator().manual_seed(7), 256)
            with torch.no_grad():
                found.append(model(input_ids=ids, labels=ids).loss.item())
        return found[0], found[1]

    return losses


@pytest.fixture(scope="session")
def trained(
    texts: dict[str, Any], measure: Measure, one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    models = {"base": train(LlamaForCausalLM(shape), texts["code"], steps=STEPS, rate=RATE, seed=1)}
    for seed, task in enumerate(TASKS, start=2):
        known = texts[task][: len(texts[task]) * 9 // 10]
        rate = EXPERT_RATES[task]
        models[task] = train(copy.deepcopy(models["base"]), known, steps=EXPERT_STEPS, rate=rate, seed=seed)
    for name, model in models.items():
        model.to(torch.bfloat16).save_pretrained(folder / name)
    losses = {name: measure(folder / name) for name in models}
    return Trained(base=folder / "base", prose=folder / "prose", tables=folder / "tables", losses=losses)


def recipe(method: Method, trained: Trained) -> str:
    """The method's own example, with the experts in the places of its models."""
    experts = (str(trained.prose), str(trained.tables))
    if method.base is Base.FIRST or (method.base is Base.REQUIRED and method.max_inputs == 1):
        text = example_recipe(method, base=experts[0], models=experts[1:])
    else:
        text = example_recipe(method, base=str(trained.base), models=experts)
    ranges = iter(("[0, 2]", "[1, 3]"))  # the examples' model has 24 layers, ours has 3
    return re.sub(r"(?<=layer_range: )\[.*\]", lambda _: next(ranges), text)


def line(name: str, losses: Losses) -> str:
    return f"{name:18}  {losses[0]:6.3f}  {losses[1]:6.3f}  {mean(losses):6.3f}"


@pytest.mark.parametrize("name", ["ties", "task_arithmetic"])
def test_the_merged_model_beats_the_mean_of_the_experts_on_both_tasks(
    name: str, trained: Trained, measure: Measure, tell: Callable[[str], None], tmp_path: Path
) -> None:
    raymerge.merge(recipe(all_methods()[name], trained), tmp_path / "out", executor="inline")
    losses = measure(tmp_path / "out")
    tell(
        f"{name}: prose {losses[0]:.3f}, tables {losses[1]:.3f} nats a byte; "
        f"mean of the experts {trained.expert_mean[0]:.3f}, {trained.expert_mean[1]:.3f}"
    )
    for found, experts in zip(losses, trained.expert_mean, strict=True):
        assert found < experts - 0.05  # 0.11 to 0.16 with Python 3.11's texts


def test_every_method_in_one_table(
    trained: Trained, measure: Measure, tell: Callable[[str], None], tmp_path: Path
) -> None:
    losses = dict(trained.losses)
    for name, method in all_methods().items():
        raymerge.merge(recipe(method, trained), tmp_path / name, executor="inline", write_model_card=False)
        losses[name] = measure(tmp_path / name)
    losses["(experts' mean)"] = trained.expert_mean
    tell(f"{'nats a byte':18}  {TASKS[0]:>6}  {TASKS[1]:>6}  {'mean':>6}")
    for name, found in losses.items():
        tell(line(name, found))
    assert all(math.isfinite(loss) for found in losses.values() for loss in found)
    for name in BLENDS:
        assert mean(losses[name]) < mean(trained.expert_mean) - 0.05, name
        assert mean(losses[name]) < mean(losses["base"]) - 0.2, name
    assert losses["arcee_fusion"][1] < losses["prose"][1] - 0.2, "it brings some of the tables into the prose expert"
    assert abs(losses["nearswap"][0] - losses["prose"][0]) < 0.05
