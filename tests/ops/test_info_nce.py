"""info_nce against cross-entropy over the whole similarity matrix in float64; two ranks against one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.multiprocessing.spawn import spawn

from maekernels import info_nce
from maekernels.info_nce import _contrast, _contrast_backward, _products, _unit_rows, _unit_rows_backward
from tests.ops.mae_oracle import assert_same, assert_within

SHAPES = [(8, 16), (5, 33), (1, 4), (70, 6)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make(batch: int, dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Pairs that resemble each other, of any norm."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, batch, dim, generator=generator, dtype=torch.float64)
    return (3 * a).to(dtype), (a + 0.5 * b).to(dtype)


def run(rows: Sequence[Tensor], temperature: float, **options) -> Tensor:
    return info_nce(rows[0], rows[1], temperature, **options)


def oracle(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    logits = F.normalize(a.double()) @ F.normalize(b.double()).T / temperature
    target = torch.arange(len(a))
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


@pytest.mark.parametrize("temperature", [0.07, 1.0], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "dim"), SHAPES, ids=str)
def test_loss_and_gradient(batch, dim, dtype, temperature):
    rows = [x.requires_grad_() for x in make(batch, dim, dtype)]
    wide = [x.detach().double().requires_grad_() for x in rows]
    loss, expected = run(rows, temperature), oracle(wide[0], wide[1], temperature)
    assert loss.dtype == torch.float32
    # Unit rows are rounded to the type of the input, so the error of s is one rounding over the temperature.
    slack = 4 * torch.finfo(dtype).eps / temperature
    torch.testing.assert_close(loss.double(), expected, rtol=0, atol=slack)
    grads, expected_grads = torch.autograd.grad(loss, rows), torch.autograd.grad(expected, wide)
    for grad, wide_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.double(), wide_grad, rtol=0, atol=(slack * wide_grad.abs().max() + slack / 50))
    plain = run(rows, temperature, backend="torch")
    torch.testing.assert_close(plain, loss)


def test_gradcheck():
    rows = [x.requires_grad_() for x in make(5, 4, torch.float64)]
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, 0.3), rows)


@pytest.mark.parametrize(("first", "both"), [(0, True), (0, False), (3, False)], ids=str)
def test_contrast_gradcheck(first, both):
    """The parts: both directions of one rank, and one direction of one rank among several."""
    q, k = make(8, 5, torch.float64)
    q, k = q[: 8 if both else 4].requires_grad_(), k.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k: _contrast(q, k, first, 2.0, both)[0], (q, k))


def test_backward_in_strips_is_the_backward(monkeypatch):
    rows = [x.requires_grad_() for x in make(70, 6)]
    whole = torch.autograd.grad(run(rows, 0.2), rows)
    monkeypatch.setattr(sys.modules["maekernels.info_nce"], "_STRIP", 16 * 70)
    for a, b in zip(torch.autograd.grad(run(rows, 0.2), rows), whole, strict=True):
        torch.testing.assert_close(a, b)


def test_a_stored_matrix_changes_nothing(monkeypatch):
    """On a CPU small matrices are stored: the same loss and gradients as from a matrix made twice."""
    rows = [x.requires_grad_() for x in make(70, 6)]
    stored = run(rows, 0.2)
    grads = torch.autograd.grad(stored, rows)
    monkeypatch.setattr(sys.modules["maekernels.info_nce"], "_STRIP", 70 * 70 - 1)
    again = run(rows, 0.2)
    torch.testing.assert_close(stored, again)
    for a, b in zip(grads, torch.autograd.grad(again, rows), strict=True):
        torch.testing.assert_close(a, b)


def test_is_symmetric_and_blind_to_norms():
    a, b = make(8, 16)
    torch.testing.assert_close(info_nce(a, b, 0.1), info_nce(b, a, 0.1))
    torch.testing.assert_close(info_nce(7 * a, b / 9, 0.1), info_nce(a, b, 0.1))


def test_small_temperatures_do_not_overflow():
    a, b = make(8, 16)
    assert_within(info_nce(a, b, 0.001), oracle(a, b, 0.001), ulps=4000)
    assert info_nce(a, -a, 0.001).item() == pytest.approx(oracle(a, -a, 0.001).item(), rel=1e-4)


def test_types_may_differ():
    a, b = make(8, 16)
    assert info_nce(a.bfloat16(), b, 0.1).item() == pytest.approx(info_nce(a.bfloat16().float(), b, 0.1).item())


def test_autocast_does_not_touch_the_products():
    a, b = (x.requires_grad_() for x in make(8, 16))
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(a, b, 0.1)
        grads = torch.autograd.grad(loss, (a, b))
    assert_same(loss, info_nce(a, b, 0.1))
    for found, expected in zip(grads, torch.autograd.grad(info_nce(a, b, 0.1), (a, b)), strict=True):
        assert_same(found, expected)


def test_strided():
    a, b = make(8, 16)
    assert_same(info_nce(a.T.contiguous().T, b[:, :16], 0.1), info_nce(a, b, 0.1))


def test_deterministic():
    rows = [x.requires_grad_() for x in make(70, 6)]
    runs = [torch.autograd.grad(run(rows, 0.1), rows) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("both", [True, False], ids=["both", "rows"])
def test_opcheck(both):
    q, k = (F.normalize(x) for x in make(6, 8))
    grad, rows, columns = torch.tensor(1.0), torch.rand(6), torch.rand(6 if both else 0)
    torch.library.opcheck(_contrast, (q.requires_grad_(), k.requires_grad_(), 0, 0.5, both))
    torch.library.opcheck(_contrast_backward, (grad, q.detach(), k.detach(), rows, columns, 0, 0.5, both))
    torch.library.opcheck(_products, (q, k.detach().requires_grad_()))
    torch.library.opcheck(_unit_rows, (make(6, 8)[0].requires_grad_(),))
    torch.library.opcheck(_unit_rows, (make(6, 8)[0].T,))
    torch.library.opcheck(_unit_rows_backward, (torch.rand(8, 6).T, q.detach(), torch.rand(6)))


def test_compile():
    rows = [x.requires_grad_() for x in make(8, 16)]
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for a, b in zip(*(torch.autograd.grad(f(rows, 0.1), rows) for f in (compiled, run)), strict=True):
        assert_same(a, b)


def test_one_graph_for_all_sizes():
    """Sizes beyond those at which a CPU keeps the whole matrix: the ops of a GPU."""
    torch._dynamo.reset()
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=counted)
    for size in (2050, 2060, 2070):
        rows = make(size, 2)
        torch.testing.assert_close(compiled(rows, 0.1), run(rows, 0.1))
    assert len(graphs) == 1


def test_export():
    class Contrast(torch.nn.Module):
        def forward(self, a, b):
            return info_nce(a, b, 0.1)

    a, b = make(8, 16)
    assert_same(torch.export.export(Contrast(), (a, b)).module()(b, a), info_nce(b, a, 0.1))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch.func.jvp itself
@pytest.mark.parametrize("kept", [True, False], ids=["stored matrix", "strips"])
def test_forward_mode_is_refused_and_not_silently_nothing(kept, monkeypatch):
    monkeypatch.setattr(sys.modules["maekernels.info_nce"], "_STRIP", 2**22 if kept else 1)
    a, b = make(8, 16)
    for loss, x in ((lambda x: info_nce(x, b, 0.1), a), (lambda x: info_nce(a, x, 0.1), b)):
        with pytest.raises(NotImplementedError, match="forward-mode derivatives"):
            torch.func.jvp(loss, (x,), (x,))
        with forward_ad.dual_level():
            assert_same(loss(x), info_nce(a, b, 0.1))
            with pytest.raises(NotImplementedError, match="forward-mode derivatives"):
                loss(forward_ad.make_dual(x, x))


def one_rank(rank: int, file: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    mine = [x[rank * 4 : (rank + 1) * 4].requires_grad_() for x in make(8, 16)]
    loss = run(mine, 0.1)
    torch.save((loss.detach(), torch.autograd.grad(loss, mine)), f"{out}/{rank}")
    dist.barrier()  # gloo aborts a rank whose peer has left while its messages are under way
    dist.destroy_process_group()


def test_two_ranks_are_one_batch(tmp_path):
    """Mean of the losses; gradients averaged over ranks, as DDP averages those of the parameters behind the rows."""
    spawn(one_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    losses, grads = zip(*(torch.load(tmp_path / str(rank)) for rank in range(2)), strict=True)
    rows = [x.requires_grad_() for x in make(8, 16)]
    whole = run(rows, 0.1)
    torch.testing.assert_close(torch.stack(losses).mean(), whole.detach())
    for i, expected in enumerate(torch.autograd.grad(whole, rows)):
        torch.testing.assert_close(torch.cat([grad[i] for grad in grads]) / 2, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.zeros(8)}, r"a=float32\[8\] on cpu: must be a float tensor \[B, D\]"),
        ({"a": torch.zeros(8, 4, dtype=torch.int32)}, r"a=int32"),
        ({"b": torch.zeros(7, 4)}, r"b=float32\[7, 4\] on cpu: must be in the shape and device of a=float32\[8, 4\]"),
        ({"a": torch.zeros(0, 4), "b": torch.zeros(0, 4)}, r"a=float32\[0, 4\] on cpu: must be at least one row"),
        ({"temperature": 0.0}, r"temperature=0.0: must be positive"),
        ({"temperature": torch.ones(())}, r"temperature=float32\[\] on cpu: must be a positive number, not a tensor"),
        ({"backend": "triton"}, r"backend='triton'"),
    ],
    ids=["rank", "dtype", "shapes", "empty", "temperature", "tensor", "backend"],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        info_nce(**{"a": torch.zeros(8, 4), "b": torch.zeros(8, 4), "temperature": 0.1} | change)
