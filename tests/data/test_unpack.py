from __future__ import annotations

import pytest
import torch

from u2pl.config import DataSettings
from u2pl.data.photometric import draw_colors
from u2pl.data.unpack import label_dtype, unpack
from waiting import waiting_is_an_error

CPU = torch.device("cpu")


def _item(*, with_unlabeled: bool) -> dict[str, torch.Tensor]:
    pixels = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    item = {"image": pixels, "label": torch.full((2, 4, 5), 255, dtype=torch.uint8)}
    if not with_unlabeled:
        return item
    draws = torch.stack([draw_colors(torch.Generator().manual_seed(n)) for n in range(4)])
    return item | {
        "weak": pixels,
        "colors": draws.view(2, 2, -1),
        "valid": torch.ones(2, 4, 5, dtype=torch.bool),
        "possible_classes": torch.ones(2, 3, dtype=torch.bool),
    }


def test_bytes_become_what_the_step_computes_with() -> None:
    batch = unpack(_item(with_unlabeled=True), DataSettings(), CPU)
    assert batch.unlabeled is not None
    assert batch.labeled.images.dtype == torch.float32
    assert batch.labeled.images[0, 0, 0, 3] == torch.tensor(3 / 255)
    assert batch.labeled.labels.dtype == torch.int64
    assert batch.labeled.labels.unique().tolist() == [255]
    assert batch.labeled.strong is None
    assert torch.equal(batch.unlabeled.weak, batch.labeled.images)
    assert [view.shape for view in batch.unlabeled.strong] == [(2, 3, 4, 5)] * 2
    assert not torch.equal(*batch.unlabeled.strong)


def test_images_without_draws_have_no_strong_view() -> None:
    assert unpack(_item(with_unlabeled=False), DataSettings(), CPU).unlabeled is None


@pytest.mark.parametrize(("classes", "ignore"), [(2, 255), (255, 255), (300, 65535), (3, 65535)])
def test_labels_fit_their_type(classes: int, ignore: int) -> None:
    dtype = label_dtype(classes, ignore)
    highest = max(classes - 1, ignore)
    assert int(torch.tensor(highest).to(dtype)) == highest
    assert (dtype == torch.uint8) == (highest < 256)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gets_its_batch_without_waiting() -> None:
    item = {name: tensor.pin_memory() for name, tensor in _item(with_unlabeled=True).items()}
    device = torch.device("cuda")
    unpack(item, DataSettings(), device)  # kernels are loaded
    with waiting_is_an_error():
        batch = unpack(item, DataSettings(), device)
    assert batch.labeled.images.is_cuda
