"""The benchmark of a GPU, as far as a CPU can try it: what it counts, and that it runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

PATH = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
spec = importlib.util.spec_from_file_location("gpu", PATH)
gpu = sys.modules["gpu"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)


@pytest.mark.parametrize("name", gpu.METHODS)
def test_the_operations_of_an_update_are_those_that_torch_counts(name):
    case = gpu.Case(name, n_visible=24, n_hidden=16, batch=10, precision="float32")
    rows = gpu.random_rows(case, 1, torch.device("cpu"))
    trainer = gpu.make_trainer(case, rows)
    trainer.update(rows)
    with FlopCounterMode(display=False) as update:
        trainer.update(rows)
    with FlopCounterMode(display=False) as products:
        gpu.products(case, rows)()
    assert update.get_total_flops() == products.get_total_flops() == case.operations


def test_without_a_gpu_it_says_so_and_measures_nothing(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    gpu.main()
    assert capsys.readouterr().out.startswith("No GPU is at hand")


def test_a_small_case_runs_on_a_cpu(monkeypatch, capsys):
    arguments = "--device cpu --updates 4 --rounds 1 --precision float32 bf16 --json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments.split()])
    gpu.main()
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["case"], row["precision"]) for row in rows] == [
        (name, precision) for name in gpu.METHODS for precision in ("float32", "bf16")
    ]
    for row in rows:
        assert row["updates/s"] > 0
        assert row["share"] > 0
