from __future__ import annotations

import pytest
import torch

from tests.exports import remembering


@pytest.fixture(scope="session", autouse=True)
def _exports(tmp_path_factory: pytest.TempPathFactory, worker_id: str):
    """Tests of one run share their exports of the same small modules."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "exports"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", remembering(torch.onnx.export, folder))
        yield
