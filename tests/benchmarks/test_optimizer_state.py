"""The moments' projection, and the benchmark in small."""

import pytest
import torch

from benchmarks.lib.moments import projected
from benchmarks.optimizer_state import STATES, main


def test_moments_in_other_factors_of_the_same_product_are_those_of_its_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    A, B, mixed = (torch.randn(*shape, generator=generator).double() for shape in ((3, 7), (5, 3), (3, 3)))
    gradients = torch.randn(4, 5, 7, generator=generator).double()
    inverse = torch.linalg.inv(mixed)
    old, new = (A, B), (mixed @ A, B @ inverse)
    decays = torch.tensor([0.9**n for n in range(4)]).double()

    def first(A: torch.Tensor, B: torch.Tensor) -> list[torch.Tensor]:
        return [torch.einsum("n,nij->ij", decays, each) for each in (B.mT @ gradients, gradients @ A.mT)]

    moments = [{"exp_avg": each, "exp_avg_sq": torch.ones_like(each)} for each in first(*old)]
    found = projected(moments[0], moments[1], old, new)
    for each, expected in zip(found, first(*new), strict=True):
        torch.testing.assert_close(each["exp_avg"], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[0]["exp_avg_sq"], inverse.mT.square() @ torch.ones(3, 7).double())


@pytest.mark.slow
def test_a_table_of_every_state(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seeds", "1", "--rounds", "2", "--steps", "1", "--rates", "0.001", "--case", "one, fedavg"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[2] for line in lines[2:]] == list(STATES)
    losses = [float(line.split(" | ")[3].rstrip(" |")) for line in lines[2:]]
    assert losses[1] == pytest.approx(losses[2], abs=1e-3), "under fedavg one participant is served its own factors"
    assert losses[0] != losses[1]
