"""AdamW with moments of 8 bits, where torchao is installed (it is in the extra `gpu`, not in the lock)."""

from pathlib import Path
from typing import Any

import pytest
import torch

from r2q.models.targets import list_targets
from r2q.quantization.method import Recipe, make_method
from r2q.training.state import Store
from tests.models.tiny import needs_gpu, tiny_model
from tests.training import test_gpu
from tests.training.rows import random_data
from tests.training.test_trainer import OPTIONS, train

pytest.importorskip("torchao", reason="needs torchao")


def test_eight_bit_moments_resume_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao's step runs uncompiled here: the same arithmetic, without a compiler's half minute."""

    def run(folder: Path) -> dict[str, torch.Tensor]:
        model = tiny_model("llama")
        model.resize_token_embeddings(512)  # 512 x 64 values: moments of fewer than 4,096 stay in 32 bits
        options = OPTIONS | {"quantizer": "r2q", "optimizer": "adamw_8bit"}
        recipe = Recipe("recipe", "bitdistiller", "g32", options=options)
        data = random_data(folder, identity="x")
        with torch.compiler.set_stance("force_eager"):
            return make_method(recipe).quantize(model, list_targets(model), data).other

    save, states = Store.save, []

    def save_and_stop(self: Store, name: str, state: Any) -> None:
        save(self, name, state)
        states.append(state)
        if len(states) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "a")
    moments = [one["exp_avg"] for one in states[0]["optimizer"]["state"].values()]
    assert any(moment.codes.dtype == torch.uint8 for moment in moments if hasattr(moment, "codes"))
    again, whole = run(tmp_path / "a"), run(tmp_path / "b")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    plain = train(tmp_path / "c")
    assert not torch.equal(plain["model.norm.weight"], whole["model.norm.weight"])


@needs_gpu
def test_eight_bit_moments_on_the_gpu(tmp_path: Path) -> None:
    plain, small = (
        test_gpu.train(tmp_path / name, quantizer="rtn", optimizer=name)[1] for name in ("adamw", "adamw_8bit")
    )
    assert small[:2] == pytest.approx(plain[:2], rel=1e-2)
    assert small == pytest.approx(plain, rel=0.2)
