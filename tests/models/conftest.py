"""Merged folders as their users meet them: through transformers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def load() -> Callable[..., Any]:
    """load(folder, "AutoModelForCausalLM") gives the model if every weight found its place."""
    import transformers

    def load_whole(folder: Path, kind: str) -> Any:
        model, told = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True, dtype="auto")
        assert not any(told.values()), told
        return model.eval()

    return load_whole


@pytest.fixture(scope="session")
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """tell(text) shows figures at the end of the test run, whether tests fail or not."""
    return request.config.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    figures = config.stash.get(FIGURES, [])
    if figures:
        terminalreporter.section("figures of merged models")
        for text in figures:
            terminalreporter.write_line(text)
