"""Products in bfloat16: where they are faster, in training alone, and each number near enough."""

from pathlib import Path

import pytest
import torch

from tessera.client import cohort, evaluation
from tessera.client.histories import histories
from tessera.common.config.settings import LocalSettings
from tessera.common.metrics.records import read_result
from tessera.common.utils.computing import precision
from tessera.common.utils.computing.precision import products, resolved
from tessera.deploy.executors import inline
from tests.support.catalogues import small_job, small_split


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_products_are_as_asked_within_the_block_alone() -> None:
    left, right = draw(64, 448), draw(448, 300)
    exact, usual = left.double() @ right.double(), torch.get_float32_matmul_precision()
    with products("bfloat16"):
        rounded = left @ right
        assert torch.equal(left.double() @ right.double(), exact), "products in double precision are left as they are"
    with pytest.raises(ZeroDivisionError), products("bfloat16"):
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == usual
    with products("float32"):
        torch.testing.assert_close((left @ right).double(), exact, rtol=0, atol=1e-3)
    assert float((rounded - exact).norm() / exact.norm()) < 2**-8


def test_auto_is_what_is_faster_here_and_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for ratio, wanted in ((4.0, "bfloat16"), (0.3, "float32"), (1.2, "float32")):
        resolved.cache_clear()
        monkeypatch.setattr(precision, "speedup", lambda device, ratio=ratio: ratio)
        assert resolved("auto") == wanted
        monkeypatch.setattr(precision, "speedup", lambda device: pytest.fail("it was measured before"))
        assert resolved("auto") == wanted
    resolved.cache_clear()
    monkeypatch.undo()
    assert precision.speedup() > 0
    assert (resolved("float32"), resolved("bfloat16")) == ("float32", "bfloat16")


@pytest.mark.parametrize("loss", ["softmax", "next", "bce"])
def test_gradients_are_those_of_float32_to_a_few_parts_in_a_hundred(loss: str) -> None:
    split, found = small_split(n_users=40, n_items=200), {}
    sent = {"views": draw(5, 200, 16), "history": draw(200, 16)}
    for kind in ("float32", "bfloat16"):
        local = LocalSettings.model_validate({"backbone": "history", "loss": loss, "precision": kind})
        state = cohort.start_state(split.users, local, sent["views"], seed=1)
        moved, update = cohort.train(state, sent, histories(split), local, seed=1, round=1)
        assert {value.dtype for value in (*moved.parameters.values(), *update.gradients.values())} == {torch.float32}
        found[kind] = update.gradients["views"]
    assert float((found["bfloat16"] - found["float32"]).norm() / found["float32"].norm()) < 0.03


def test_a_run_resumes_bit_for_bit_evaluates_in_float32_and_says_its_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    within, evaluate = [], evaluation.evaluate
    monkeypatch.setattr(
        evaluation,
        "evaluate",
        lambda *given: (within.append(torch.get_float32_matmul_precision()), evaluate(*given))[1],
    )
    local = {"backbone": "history", "loss": "softmax", "precision": "bfloat16"}
    for name, rounds, resume in (("whole", 6, False), ("parts", 4, False), ("parts", 6, True)):
        inline.execute(small_job(tmp_path, name, 2, rounds=rounds, resume=resume, local=local), lambda line: None)
    from tests.deploy.test_executors import assert_bitwise

    assert_bitwise(tmp_path / "whole", tmp_path / "parts")
    assert set(within) == {"highest"}
    assert read_result(tmp_path / "whole").precision == "bfloat16"
