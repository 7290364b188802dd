"""The GPU's scan against the reference in float64; interpreted where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ScanInputs, deviation, scan_inputs
from interpreter import interpreted_device
from torch import Tensor

from mambaad import triton_support
from mambaad.errors import BackendError
from mambaad.scan import cross_scan, reference, resolve_backend, tuning
from mambaad.scan.tuning import Tiling

DEVICE = interpreted_device()

from mambaad.scan import cuda  # noqa: E402 - Triton reads where to run when it is imported

ROUNDINGS = 2 if DEVICE.type == "cuda" else 4
"""Errors of plain float32 allowed; the interpreter's multiply-add rounds twice, a GPU's once."""

NAMES = ("y", "x", "projections", "a_log", "dt_weight", "dt_bias", "skip")


def make(
    batch: int,
    pixels: tuple[int, int],
    channels: int,
    size: int,
    rank: int,
    paths: int,
    **more: Any,
) -> tuple[ScanInputs, Tensor]:
    """Inputs in float64, and a gradient of the output."""
    leaves = scan_inputs(batch, *pixels, channels, size, rank, paths, dtype=torch.float64, **more)
    inputs = ScanInputs(*(None if t is None else t.detach() for t in leaves))
    generator = torch.Generator().manual_seed(1)
    return inputs, torch.randn(inputs.x.shape, generator=generator, dtype=torch.float64)


def truth(inputs: ScanInputs, dy: Tensor) -> dict[str, Tensor]:
    found = (reference.forward(*inputs), *reference.backward(dy, *inputs))
    return dict(zip(NAMES, found, strict=True))


def on_gpu(inputs: ScanInputs, dy: Tensor, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Output and gradients of the kernels; x, projections and dy in ``dtype``."""
    tensors = [None if t is None else t.to(DEVICE) for t in inputs]
    wide = [t if t is None or t.dtype == torch.int32 else t.float() for t in tensors]
    wide[0], wide[1] = wide[0].to(dtype), wide[1].to(dtype)
    y, states = cuda.forward(*wide, save=True)
    gradients = cuda.backward(dy.to(DEVICE, dtype), *wide, saved=states)
    return dict(zip(NAMES, (y, *gradients), strict=True))


@pytest.fixture
def tile(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Fix how the scan is cut up."""

    def fix(*values: int) -> None:
        monkeypatch.setattr(cuda, "tiling", lambda *_: Tiling(*values))

    return fix


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ((1, (3, 3), 5, 8, 2, 2), (8, 4, 4, 1)),  # steps beyond the end; lanes without a channel
        ((1, (2, 4), 5, 16, 4, 2), (4, 4, 2, 2)),  # two segments
        ((1, (3, 3), 5, 16, 4, 2), (2, 2, 2, 2, 2)),  # two pieces of each of two segments
        ((2, (1, 5), 33, 8, 3, 2), (2, 2, 2, 3)),  # two blocks, a segment that is short, odd rank
        ((1, (1, 4), 3, 32, 12, 2), (4, 4, 4, 1)),  # the step projection by matrix products
        ((1, (1, 2), 2, 8, 33, 2), (2, 2, 2, 1)),  # more inputs of the step size than lanes
        ((1, (1, 2), 1, 8, 1, 2), (4, 4, 4, 1)),
        ((1, (2, 3), 4, 16, 4, 2), (4, 2, 1, 2)),  # backwards by single steps
    ],
    ids=str,
)
def test_forward_and_every_gradient(
    shape: Any, values: tuple[int, ...], tile: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile(*values)
    monkeypatch.setattr(cuda.tuning, "warps_at_once", lambda *_: 3)  # each has more than one path
    # what is not written stays NaN
    empty, new_empty = torch.empty_like, torch.Tensor.new_empty

    def poisoned(tensor: Tensor) -> Tensor:
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty_like", lambda t, **more: poisoned(empty(t, **more)))
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda t, *size, **more: poisoned(new_empty(t, *size, **more))
    )
    monkeypatch.setattr(
        cuda._Problem,
        "empty",
        lambda p, *sizes, dtype=torch.float32: torch.full(
            sizes, torch.nan, dtype=dtype, device=p.x.device
        ),
    )
    inputs, dy = make(*shape)
    expected, plain = truth(inputs, dy), truth(inputs.to(torch.float32), dy.float())
    for name, value in on_gpu(inputs, dy).items():
        rounding = deviation(plain[name].detach(), expected[name])
        assert deviation(value.cpu(), expected[name]) < 3e-7 + ROUNDINGS * rounding, name


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has bfloat16 states kept, or float32 ones."""
    return lambda value: monkeypatch.setattr(cuda.tuning, "short_states", lambda: value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits(dtype: torch.dtype, tile: Any) -> None:
    """The inputs are rounded first, so that only arithmetic and the results' rounding differ."""
    tile(4, 2, 2, 2)
    assert_near_rounded(dtype, (1, (2, 3), 4, 8, 3, 2), {"a_log", "dt_bias", "skip"})


@pytest.mark.parametrize(
    ("dtype", "shape", "values"),
    [
        (torch.bfloat16, (1, (2, 3), 4, 8, 3, 2), (4, 2, 2, 2)),
        (torch.bfloat16, (1, (2, 4), 32, 16, 4, 2), (4, 2, 2, 1, 1, 16)),  # words of two numbers
        (torch.bfloat16, (1, (1, 4), 5, 32, 8, 2), (2, 2, 2, 1, 1, 12)),
    ],
    ids=str,
)
def test_short_states(
    dtype: torch.dtype, shape: Any, values: tuple[int, ...], tile: Any, short: Any
) -> None:
    """The states kept for the gradient are rounded, too."""
    tile(*values)
    short(True)
    assert_near_rounded(dtype, shape, {"skip"})


def assert_near_rounded(dtype: torch.dtype, shape: Any, exact: set[str]) -> None:
    """``exact`` are the gradients that no rounding to 16 bits goes into."""
    inputs, dy = make(*shape)
    rounded = inputs._replace(
        x=inputs.x.to(dtype).double(), projections=inputs.projections.to(dtype).double()
    )
    expected = truth(rounded, dy.to(dtype).double())
    for name, value in on_gpu(inputs, dy, dtype).items():
        assert value.dtype == (dtype if name in ("y", "x", "projections") else torch.float32)
        # the interpreter cuts bfloat16 off where a GPU rounds
        limit = 1e-6 if name in exact else torch.finfo(dtype).eps
        assert deviation(value.cpu(), expected[name]) < limit, name


@pytest.mark.parametrize(
    ("dtype", "asked", "kept"),
    [
        (torch.float32, True, torch.float32),
        (torch.float16, True, torch.float32),
        (torch.bfloat16, False, torch.float32),
        (torch.bfloat16, True, torch.bfloat16),
    ],
    ids=str,
)
def test_states_kept_for_the_gradient(
    dtype: torch.dtype, asked: bool, kept: torch.dtype, tile: Any, short: Any
) -> None:
    """Those before every chunk, as wide as promised to the compiler."""
    tile(2, 2, 2, 1)
    short(asked)
    inputs, _ = make(1, (1, 4), 3, 8, 2, 2)
    wide = [None if t is None else t.to(DEVICE) for t in inputs.to(torch.float32)]
    x, projections = wide[0].to(dtype), wide[1].to(dtype)
    _, states = torch.ops.mambaad.cross_scan(x, projections, *wide[2:], "triton", True)
    assert (states.dtype, states.shape) == (kept, cuda.states_shape(x, wide[2], wide[6]))
    first, second = states.float().unbind(2)
    assert not first.any()
    assert second.any()
    torch.library.opcheck(
        torch.ops.mambaad.cross_scan,
        (x, projections, *wide[2:], "triton", True),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_large_ranks_leave_the_step_projection_to_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 5 on in 16 bits, 9 in 32: the kernel then leaves Δ's gradient for them."""
    found = []
    products = cuda._sum_of_products
    monkeypatch.setattr(
        cuda, "_sum_of_products", lambda *pair: found.append(pair[0].dtype) or products(*pair)
    )
    for dtype in (torch.float32, torch.bfloat16):
        inputs, dy = make(1, (1, 2), 2, 8, 5, 2)
        on_gpu(inputs, dy, dtype)
    assert found == [torch.bfloat16]


def test_without_skip_and_the_same_bits_twice(tile: Any) -> None:
    """Without the skip term nothing hides an error of the states."""
    tile(4, 2, 2, 2)
    inputs, dy = make(1, (2, 3), 3, 8, 2, 2, skip=False)
    first, second = on_gpu(inputs, dy), on_gpu(inputs, dy)
    expected = truth(inputs, dy)
    for name, value in first.items():
        assert torch.equal(value, second[name])
        if name != "skip":
            assert deviation(value.cpu(), expected[name]) < 1e-6, name


@pytest.mark.parametrize("rank", [2, 12])
def test_pictures_in_parts_give_the_same_bits(
    rank: int, tile: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three pictures, two and one at a time."""
    tile(4, 2, 2, 1)
    inputs, dy = make(3, (1, 3), 3, 8, rank, 2)
    whole, sizes = on_gpu(inputs, dy), []
    planes = cuda._Problem.planes
    monkeypatch.setattr(cuda._Problem, "planes", lambda p, n: sizes.append(n) or planes(p, n))
    monkeypatch.setattr(cuda, "_TRANSIENT", 0)
    monkeypatch.setattr(tuning, "warps_at_once", lambda *_: 3)  # a picture has two
    parts = on_gpu(inputs, dy)
    assert sizes == [3, 2, 1]  # forwards it is all of them
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_behind_the_operator(tile: Any) -> None:
    tile(4, 4, 2, 1)
    inputs, dy = make(1, (2, 2), 3, 8, 2, 2)
    leaves = {n: t.float().to(DEVICE).requires_grad_() for n, t in inputs.leaves().items()}
    y = cross_scan(*leaves.values(), inputs.orders.to(DEVICE), backend="triton")
    gradients = torch.autograd.grad(y, list(leaves.values()), dy.float().to(DEVICE))
    expected = truth(inputs, dy)
    assert deviation(y.detach().cpu(), expected["y"]) < 1e-6
    for name, value in zip(leaves, gradients, strict=True):
        assert deviation(value.cpu(), expected[name]) < 1e-6, name
    with torch.no_grad():
        tensors = [t.detach() for t in leaves.values()]
        plain = cross_scan(*tensors, inputs.orders.to(DEVICE), backend="triton")
    assert torch.equal(plain, y)  # the same with nothing kept for a gradient


def test_operator_is_registered_properly(tile: Any) -> None:
    tile(4, 4, 2, 1)
    inputs, _ = make(1, (2, 2), 2, 8, 2, 2)
    tensors = [t.float().to(DEVICE) for t in inputs.leaves().values()]
    for save in (True, False):
        torch.library.opcheck(
            torch.ops.mambaad.cross_scan,
            (*tensors, inputs.orders.to(DEVICE), "triton", save),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_forced_tilings_agree_and_reach_both_passes() -> None:
    inputs, dy = make(1, (2, 4), 3, 8, 2, 2)
    tensors = [None if t is None else t.to(DEVICE) for t in inputs.to(torch.float32)]
    expected = truth(inputs, dy)
    for cut in (Tiling(8, 4, 2, 1), Tiling(2, 2, 2, 2, 2)):
        with tuning.forced(cut):
            assert cuda.tiling(1, 2, 8, 3) == cut
            _, states = cuda.forward(*tensors, save=True)
            assert states.shape[2] == 8 // cut.chunk
            assert deviation(on_gpu(inputs, dy)["a_log"].cpu(), expected["a_log"]) < 1e-6
    assert cuda.tiling(1, 2, 8, 3) == tuning.find(tuning.Size(1, 2, 8, 3)).tiling


@pytest.mark.parametrize("kernel", ["forward", "summary", "backward"])
def test_the_compiler_takes_what_the_interpreter_runs(kernel: str, tmp_path: Path) -> None:
    """Such as a name of two types, which has stopped a GPU before. No GPU is needed."""
    program = Path(__file__).with_name("compile_scan.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, program, kernel],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    name, size = run.stdout.split()
    assert name == kernel
    assert int(size) > 10_000


def test_compiled_for_any_batch() -> None:
    """The compiler asks for the states' shape with sizes that it does not know."""
    scan = torch.compile(
        lambda *inputs: cross_scan(*inputs, backend="triton"), backend="eager", dynamic=True
    )
    for batch in (2, 3):
        inputs = scan_inputs(batch, 1, 4, 3, 8, 2, 2).map(lambda t: t.to(DEVICE))
        inputs = inputs.to(torch.float32)._replace(orders=inputs.orders.to(DEVICE))  # leaves
        assert torch.equal(scan(*inputs), cross_scan(*inputs, backend="triton"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": torch.float64}, "it computes in float32, got torch.float64"),
        ({"size": 12}, r"takes \[8, 16, 32\] states and 1 to 16 paths, got 12 and 8"),
        ({"paths": 17}, "got 16 and 17"),
        ({"device": torch.device("meta")}, "it needs tensors on a CUDA device, got meta"),
    ],
)
def test_what_it_cannot_take(settings: dict[str, Any], message: str) -> None:
    device, dtype = settings.pop("device", DEVICE), settings.pop("dtype", torch.float32)
    with pytest.raises(BackendError, match=f"backend='triton' cannot run: .*{message}"):
        resolve_backend("triton", device, dtype, **settings)


def test_auto_on_a_gpu_without_triton_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import mambaad.scan as scan

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_support, "find_spec", lambda _: None)
    triton_support.missing_for_triton.cache_clear()
    scan._tell_once.cache_clear()
    gpu = torch.device("cuda")
    assert [resolve_backend("auto", gpu, torch.float32) for _ in range(2)] == ["torch", "torch"]
    assert [r.getMessage() for r in caplog.records] == [
        "the scan runs without its GPU kernel, many times slower: "
        "Triton is not installed (pip install triton)"
    ]
    triton_support.missing_for_triton.cache_clear()


def test_long_sums_over_the_batch_lose_nothing() -> None:
    count, paths, channels, size = 600, 1, 4, 8
    generator = torch.Generator().manual_seed(0)
    # like signs: where the parts of a sum cancel each other, its own rounding says little
    parts = 1 + torch.rand(count, paths, channels, size, generator=generator)
    more = 1 + torch.rand(count, paths, 2, channels, generator=generator)
    a_log = torch.zeros(paths, channels, size)
    outputs = [torch.full_like(a_log, torch.nan)]
    outputs += [torch.full((paths, channels), torch.nan) for _ in range(2)]
    cuda.cuda_sums.sum_parameters_kernel[(2,)](
        parts.to(DEVICE), more.to(DEVICE), a_log.to(DEVICE),
        *(found := [o.to(DEVICE) for o in outputs]), torch.zeros(0, device=DEVICE),
        count, paths, channels, R=1, N=size, FUSED=False, BLOCK=512, num_warps=4,
    )  # fmt: skip
    truths = [-parts.double().sum(0), *more.double().sum(0).unbind(1)]
    roundings = torch.finfo(torch.float32).eps / 2
    for ours, truth in zip(found, truths, strict=True):
        assert ((ours.cpu().double() - truth).abs() <= 2 * roundings * truth.abs()).all()
    naive = torch.zeros(paths, channels, size)
    for part in parts:
        naive += part
    assert ((naive - parts.double().sum(0)).abs() > 4 * roundings * naive).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_short_numbers_are_not_short(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """The gradient of dt_weight for large ranks: rounded to 16 bits it would be off by 4e-3."""
    multiply = torch.bmm

    def wide(left: Tensor, right: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
        if out_dtype is None:
            return multiply(left, right)
        return multiply(left.to(out_dtype), right.to(out_dtype))

    if DEVICE.type == "cpu":  # where torch has no such product
        assert not cuda._has_wide_products(DEVICE, dtype)
        cuda._has_wide_products.cache_clear()
        monkeypatch.setattr(torch, "bmm", wide)
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(2, 8, 64, generator=generator).to(DEVICE, dtype)
    right = torch.randn(2, 64, 16, generator=generator).to(DEVICE, dtype)
    product = cuda._sum_of_products(left, right)
    cuda._has_wide_products.cache_clear()
    assert product.dtype == torch.float32
    assert deviation(product.cpu(), (left.double() @ right.double()).cpu()) < 1e-6


def test_without_such_products_they_are_rounded() -> None:
    """As by torch before 2.8."""
    ones = torch.ones(1, 8, 8, dtype=torch.bfloat16)
    assert cuda._sum_of_products(ones, ones).dtype == torch.float32
