"""Evaluation counts every labeled image once, whatever the batches."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from helpers import fakes
from helpers.common import CPU
from rsbdali.errors import DataError
from rsbdali.training.evaluate import Stopped, evaluate


class Scores(torch.nn.Module):
    """The images are the scores."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def batches(scores_NC: torch.Tensor, label_N: torch.Tensor, size: int) -> Iterator[SimpleNamespace]:
    for start in range(0, len(label_N), size):
        rows = slice(start, start + size)
        yield SimpleNamespace(images=scores_NC[rows], label_N=label_N[rows])


@pytest.mark.parametrize("size", [1, 7, 50, 64])
def test_counts_by_hand(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores_NC, label_N = torch.randn(50, 20, generator=generator), torch.randint(20, (50,), generator=generator)
    label_N[[3, 17, 49]] = -1
    result = evaluate(Scores(), batches(scores_NC, label_N, size), device=CPU)
    kept = label_N >= 0
    ranks = (scores_NC[kept].argsort(dim=1, descending=True) == label_N[kept, None]).float().argmax(dim=1)
    assert result.n == 47
    assert result.top1 == pytest.approx(100 * (ranks == 0).double().mean().item())
    assert result.top5 == pytest.approx(100 * (ranks < 5).double().mean().item())
    assert result.loss == pytest.approx(F.cross_entropy(scores_NC[kept].double(), label_N[kept]).item(), rel=1e-6)


def test_fewer_than_five_classes_and_an_empty_batch() -> None:
    label_N = torch.tensor([0, 1, 2])
    loader = [SimpleNamespace(images=torch.empty(0, 3), label_N=label_N[:0]), *batches(torch.eye(3), label_N, 2)]
    result = evaluate(Scores(), loader, device=CPU)
    assert (result.top1, result.top5, result.n) == (100, 100, 3)


def test_no_label_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="no labeled image"):
        evaluate(Scores(), batches(torch.eye(3), torch.full((3,), -1), 2), device=CPU)


def test_a_stop_ends_it() -> None:
    with pytest.raises(Stopped):
        evaluate(Scores(), batches(torch.eye(9), torch.arange(9), 1), device=CPU, should_stop=lambda: True)


def test_the_same_figures_at_every_call() -> None:
    from rsbdali.training.model import create_model

    recipe = fakes.recipe()
    model = create_model(recipe, fakes.CLASSES)
    first, second = (evaluate(model, fakes.FakeEvalLoader(recipe), device=CPU) for _ in range(2))
    assert first == second
    assert not model.training
