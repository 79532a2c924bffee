"""Memory told without doing the work."""

import pytest
import torch
import torch.nn.functional as F

from latentgen.runtime.memory import peak_bytes

N = 1000  # float32 values in each tensor below


@pytest.fixture(params=["meta", "cpu"])
def x(request):
    return torch.zeros(N, device=request.param)


def test_what_is_alive_together_is_counted(x):
    def work():
        a = x + 1
        b = a + 1
        del a
        c = b + 1
        return c

    assert peak_bytes(work, [x]) == 2 * 4 * N


def test_what_is_kept_is_counted_to_the_end(x):
    assert peak_bytes(lambda: [x + k for k in range(5)], [x]) == 5 * 4 * N


def test_views_and_work_in_place_take_nothing(x):
    def work():
        a = x + 1
        a.view(10, -1).t().add_(1)
        return a[: N // 2]

    assert peak_bytes(work, [x]) == 4 * N


def test_what_is_known_is_not_counted(x):
    weight = torch.zeros(N, N // 10, device=x.device)
    assert peak_bytes(lambda: x @ weight, [x, weight]) == 4 * N // 10
    assert peak_bytes(lambda: x @ weight.t().t(), [x]) > 4 * N * N // 10  # a view of something unknown is found


def test_formats_have_their_sizes(x):
    assert peak_bytes(lambda: x.half(), [x]) == 2 * N


def test_attention_makes_no_table():
    q = torch.zeros(1, 2, 4096, 8, device="meta")
    assert peak_bytes(lambda: F.scaled_dot_product_attention(q, q, q), [q]) == q.nbytes


def test_nothing_stays_switched_on(x):
    peak_bytes(lambda: x + 1)
    q = torch.randn(1, 1, 4, 8)
    assert torch.allclose(
        F.scaled_dot_product_attention(q, q, q)[0, 0], (q @ q.mT / 8**0.5).softmax(-1)[0, 0] @ q[0, 0], atol=1e-5
    )
    with pytest.raises(ZeroDivisionError):
        peak_bytes(lambda: 1 / 0)
    assert torch.is_grad_enabled()
