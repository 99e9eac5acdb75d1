"""What exported graphs compute in place of PyTorch's operations and of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch._inductor
from torch import Tensor, nn
from torch.export import Dim

from fsdino import ops
from fsdino.bench import formulation
from fsdino.export import lowering, plain4d
from fsdino.models.hypercorrelation import CorrelationPrior


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [3, 40])
def test_linear_systems_are_solved(size: int) -> None:
    root = draw(2, size, 3 * size)
    systems, sides = root @ root.mT / size + torch.eye(size), draw(2, size, 4, seed=1)
    table = lowering.shared()
    solve = table[torch.ops.aten.linalg_solve.default]
    assert torch.allclose(solve(systems, sides), torch.linalg.solve(systems, sides), atol=1e-4)
    alone = solve(systems, sides[..., 0])
    assert torch.allclose(alone, torch.linalg.solve(systems, sides[..., 0]), atol=1e-4)


def test_conjugate_gradients_end_where_there_is_nothing_to_solve() -> None:
    systems = torch.diag(torch.tensor([1.0, 2.0, 4.0]))
    sides = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    found = lowering.conjugate_gradients(lambda x, a: a @ x, sides, systems)
    assert torch.allclose(found, torch.tensor([[1.0, 0.0]] * 3), atol=1e-5)


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.eye(x.shape[-1])


def test_large_identities() -> None:
    """PyTorch's own decomposition counts 256 rows and more in uint16, which its arange lacks."""
    x = draw(300, 300)
    table = {**torch.export.default_decompositions(), **lowering.shared()}
    program = torch.export.export(Identity(), (x,)).run_decompositions(table)
    assert torch.equal(program.module()(x), torch.diag(x.diagonal()))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("reduced", [False, True])
def test_blocks(stride: int, reduced: bool) -> None:
    x, weight_query, weight_support = draw(2, 3, 4, 5, 6, 7), draw(8, 3, 3, 3), draw(8, 3, 5, 5)
    rest = [draw(8, seed=seed) for seed in (1, 2, 3)]
    found, *_ = plain4d.center_pivot_block4d(
        x, weight_query, weight_support, *rest, 4, 1e-5, stride, reduced, False
    )
    expected = formulation.center_pivot_block4d(
        *(tensor.double() for tensor in (x, weight_query, weight_support, *rest)),
        num_groups=4,
        norm_eps=1e-5,
        support_stride=stride,
        reduce_support=reduced,
    )
    assert torch.allclose(found.double(), expected, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_squeezing(weighted: bool) -> None:
    query, support = draw(2, 3, 6, 4, 5), draw(2, 3, 6, 6, 7, seed=1)
    weight = draw(2, 6, 7, seed=2).clamp(-1, 1) if weighted else None
    kinds = [
        [draw(4, 3, 3, 3, seed=3), draw(8, 4, 3, 3, seed=4)],
        [draw(4, 3, 3, 3, seed=5), draw(8, 4, 3, 3, seed=6)],
        *([draw(4, seed=seed), draw(8, seed=seed)] for seed in (7, 8, 9)),
    ]
    found = plain4d.squeeze4d(query, support, weight, *kinds, [2, 2], 4, 1e-5, 1e-5)
    doubled = None if weight is None else weight.double()
    expected = formulation.correlation4d(query.double(), support.double(), doubled, eps=1e-5)
    volume = plain4d.correlation4d(query, support, weight, 1e-5)
    assert torch.allclose(volume.double(), expected, atol=1e-6)
    for index in range(2):
        expected = formulation.center_pivot_block4d(
            expected,
            *(kind[index].double() for kind in kinds),
            num_groups=4,
            norm_eps=1e-5,
            support_stride=2,
            reduce_support=index == 1,
        )
    assert torch.allclose(found.double(), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("compiles_packages")
def test_squeezing_in_a_package(tmp_path: Path) -> None:
    """AOTInductor compiles it where the batch is a product of two lengths, as in `QueryGraph`."""

    class Flattened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prior = CorrelationPrior(3, (4, 8))

        def forward(self, *tensors: Tensor) -> Tensor:
            return self.prior(*(tensor.flatten(0, 1) for tensor in tensors))

    def inputs(*batch: int) -> tuple[Tensor, ...]:
        shapes = (3, 6, 4, 5), (3, 6, 6, 7), (6, 7)
        return tuple(draw(*batch, *shape, seed=len(shape)).clamp(-1, 1) for shape in shapes)

    model = Flattened().eval()
    free = {0: Dim("classes", min=1), 1: Dim("shots", min=1)}
    with torch.no_grad(), ops.use_backend("reference"):
        program = torch.export.export(model, inputs(2, 3), dynamic_shapes=((free,) * 3,))
        package = torch._inductor.aoti_compile_and_package(
            program.run_decompositions(lowering.plain()),
            package_path=str(tmp_path / "squeeze.pt2"),
        )
        run = torch._inductor.aoti_load_package(package)
        assert torch.allclose(run(*inputs(1, 2)), model(*inputs(1, 2)), atol=1e-5)
