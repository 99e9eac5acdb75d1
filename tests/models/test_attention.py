"""Packed attention: which one is taken, and what it is told about the images' lengths."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from timm.layers import Attention
from torch import Tensor

from fsdino.models import attention

CUDA = torch.device("cuda")
LENGTHS = [5, 2, 7]


def per_image(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of [N, heads, D] within each of LENGTHS, one image at a time."""
    outputs = []
    for q, k, v in zip(*(x.split(LENGTHS) for x in (query, key, value)), strict=True):
        scores = torch.einsum("nhd,mhd->hnm", q, k) / q.shape[-1] ** 0.5
        outputs.append(torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v))
    return torch.cat(outputs)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The variable-length modules that count as installed; a GPU that runs all of them."""
    modules: set[str] = set()
    monkeypatch.setattr(attention, "_has", modules.__contains__)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    return modules


def test_no_packed_attention_without_a_gpu(installed: set[str]) -> None:
    """On a CPU images run one by one, whatever is installed."""
    installed |= {"torch.nn.attention.varlen", "xformers"}
    assert attention.packed(torch.device("cpu"), torch.bfloat16, 64) is None


@pytest.mark.parametrize(
    ("modules", "dtype", "head_dim", "expected"),
    [
        ((), torch.bfloat16, 64, None),
        (("torch.nn.attention.varlen",), torch.bfloat16, 64, "_torch_varlen"),
        (("torch.nn.attention.varlen",), torch.float16, 64, "_torch_varlen"),
        (("torch.nn.attention.varlen",), torch.float32, 64, None),  # it takes half precision only
        (("torch.nn.attention.varlen", "xformers"), torch.float32, 64, "_xformers"),
        (("torch.nn.attention.varlen", "xformers"), torch.bfloat16, 64, "_torch_varlen"),
        (("xformers",), torch.bfloat16, 64, "_xformers"),
        (("torch.nn.attention.varlen", "xformers"), torch.bfloat16, 12, None),  # no multiple of 8
    ],
)
def test_uses_whichever_attention_is_there(
    installed: set[str],
    modules: tuple[str, ...],
    dtype: torch.dtype,
    head_dim: int,
    expected: str | None,
) -> None:
    """PyTorch's own where it takes the dtype, else xformers, else none."""
    installed |= set(modules)
    found = attention.packed(CUDA, dtype, head_dim)
    assert getattr(found, "__name__", None) == expected


def test_old_gpus_have_no_varlen_of_pytorch(
    installed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flash attention starts at sm_80: a T4 falls back instead of failing."""
    installed |= {"torch.nn.attention.varlen"}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert attention.packed(CUDA, torch.float16, 64) is None


def test_modules_that_do_not_exist_are_not_installed() -> None:
    """Neither a missing package nor a submodule of a missing package raises."""
    assert attention._has("torch.nn")
    assert not attention._has("no_such_package")
    assert not attention._has("no_such_package.attention.varlen")


def test_torch_varlen_is_told_where_each_image_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """`varlen_attn` gets int32 cumulative lengths and the longest one."""
    query, key, value = torch.randn(3, sum(LENGTHS), 2, 8).unbind()
    told: dict[str, Any] = {}

    def varlen_attn(q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor,
                    longest_q: int, longest_k: int) -> Tensor:  # fmt: skip
        told.update(q=q, ends=(ends_q, ends_k), longest=(longest_q, longest_k))
        return per_image(q, k, v)

    module = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_attn
    monkeypatch.setitem(sys.modules, module.__name__, module)
    out = attention._torch_varlen(query, key, value, LENGTHS)
    torch.testing.assert_close(out, per_image(query, key, value))
    assert [ends.tolist() for ends in told["ends"]] == [[0, 5, 7, 14]] * 2
    assert {ends.dtype for ends in told["ends"]} == {torch.int32}
    assert told["longest"] == (7, 7)


def test_xformers_gets_one_block_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """xformers takes a batch of one with a block-diagonal bias made from the lengths."""
    query, key, value = torch.randn(3, sum(LENGTHS), 2, 8).unbind()

    def memory_efficient_attention(q: Tensor, k: Tensor, v: Tensor, attn_bias: object) -> Tensor:
        assert attn_bias == ("block-diagonal", LENGTHS)
        assert q.shape == (1, sum(LENGTHS), 2, 8)
        return per_image(q[0], k[0], v[0])[None]

    modules = {name: ModuleType(name) for name in ("xformers", "xformers.ops", "xformers.ops.fmha")}
    bias = ModuleType("xformers.ops.fmha.attn_bias")
    bias.BlockDiagonalMask = SimpleNamespace(
        from_seqlens=lambda lengths: ("block-diagonal", lengths)
    )
    modules["xformers.ops"].memory_efficient_attention = memory_efficient_attention
    for name, module in {**modules, bias.__name__: bias}.items():
        monkeypatch.setitem(sys.modules, name, module)
    out = attention._xformers(query, key, value, LENGTHS)
    torch.testing.assert_close(out, per_image(query, key, value))


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"scale_norm": True}])
def test_attend_runs_timms_layer(options: dict[str, bool]) -> None:
    """Packed tokens go through the same projections and norms as timm's own forward."""
    layer = Attention(16, num_heads=2, qkv_bias=True, norm_layer=torch.nn.LayerNorm, **options)
    x = torch.randn(sum(LENGTHS), 16)
    found = attention.attend(layer, x, LENGTHS, lambda q, k, v, _: per_image(q, k, v))
    expected = torch.cat([layer(part[None])[0] for part in x.split(LENGTHS)])
    torch.testing.assert_close(found, expected)


def test_attend_keeps_one_dtype_under_autocast() -> None:
    """Kernels refuse mixed dtypes, and autocast leaves a norm's output in float32."""
    layer = Attention(16, num_heads=2, qk_norm=True, norm_layer=torch.nn.LayerNorm)
    dtypes = set()

    def record(query: Tensor, key: Tensor, value: Tensor, _lengths: object) -> Tensor:
        dtypes.update(x.dtype for x in (query, key, value))
        return value

    with torch.autocast("cpu", dtype=torch.bfloat16):
        attention.attend(layer, torch.randn(sum(LENGTHS), 16), LENGTHS, record)
    assert dtypes == {torch.bfloat16}
