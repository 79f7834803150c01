"""`attend` is softmax attention inside segments, whatever their lengths, and on whichever kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from docvit.model import attention
from docvit.model.attention import Segments, attend

LENGTHS = [
    [5],
    [1],
    [4, 4, 4],
    [1, 2, 3],  # already shortest first
    [7, 1, 3, 7, 1, 2],
    [3, 0, 5, 0, 0, 1],
    [0, 4],
    [6, 2, 0],
]


def bounds_of(lengths) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def qkv(tokens, heads=3, width=8, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, heads, width, generator=generator, dtype=dtype) for _ in range(3)]


def dense(q, k, v, lengths, attending=slice(None)):
    """Softmax attention over all T tokens at once, with everything outside a token's own segment masked out."""
    segment = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)]).to(q.device)
    scores = torch.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(segment[attending, None] != segment[None, :], float("-inf"))
    return torch.einsum("hts,shd->thd", scores.softmax(-1), v)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equals_dense_masked_softmax_in_outputs_and_gradients(lengths):
    ours, theirs = ([x.requires_grad_() for x in qkv(sum(lengths))] for _ in range(2))
    out, expected = attend(*ours, bounds_of(lengths)), dense(*theirs, lengths)
    assert_alike(out, expected, ours, theirs)


def assert_alike(out, expected, ours, theirs):
    """Outputs, and the gradients of what they come from."""
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("lengths", "attending"),
    [
        ([4, 4, 4], [0, 4, 8]),
        ([7, 1, 3, 7, 1, 2], [0, 7, 8, 11, 18, 19]),  # one of each segment, as class tokens are of pages
        ([5, 5, 2, 5], [0, 1, 4, 5, 10, 11, 12, 13]),  # as many keys, other numbers of queries
        ([3, 0, 5, 0, 0, 1], [2, 3, 7]),
        ([6, 2], [1]),
        ([6, 2], []),
        ([0], []),
    ],
    ids=str,
)
def test_where_few_tokens_attend_the_others_are_keys_all_the_same(lengths, attending):
    of_ours, of_theirs = ([x.requires_grad_() for x in qkv(sum(lengths))] for _ in range(2))
    attending = torch.tensor(attending, dtype=torch.long)
    segments = Segments.of(bounds_of(lengths), attending=attending)
    out = attend(of_ours[0][attending], *of_ours[1:], segments)
    expected = dense(of_theirs[0][attending], *of_theirs[1:], lengths, attending)
    assert_alike(out, expected, of_ours, of_theirs)


def test_a_segment_of_one_token_is_its_own_value():
    q, k, v = qkv(3)
    torch.testing.assert_close(attend(q, k, v, torch.arange(4)), v)


def test_no_tokens_at_all():
    q, k, v = qkv(0)
    assert attend(q, k, v, torch.zeros(3, dtype=torch.long)).shape == v.shape
    assert attend(q, k, v, torch.zeros(1, dtype=torch.long)).shape == v.shape


def test_order_of_the_tokens_is_kept():
    lengths = [6, 1, 4, 6, 2]
    q, k, _ = qkv(sum(lengths))
    segment = torch.repeat_interleave(torch.arange(5.0), torch.tensor(lengths))
    v = segment[:, None, None].expand(-1, 3, 8)  # a mean over a segment of its own number is that number
    torch.testing.assert_close(attend(q, k, v, bounds_of(lengths)), v)


def test_plain_bounds_and_segments_built_once_say_the_same():
    lengths = [5, 2, 9, 2]
    segments = Segments.of(bounds_of(lengths))
    for seed in range(3):
        q, k, v = qkv(18, seed=seed)
        expected = attend(q, k, v, bounds_of(lengths))
        assert torch.equal(attend(q, k, v, segments), expected)
        assert torch.equal(attend(q, k, v, bounds_of(lengths).int()), expected)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_segments_describe_their_boundaries(lengths):
    segments = Segments.of(bounds_of(lengths))
    keys = segments.keys
    assert segments.queries is keys
    assert keys.bounds.dtype == torch.int32
    assert keys.bounds.tolist() == bounds_of(lengths).tolist()
    assert keys.max_length == max(lengths)
    assert [pair for count, *pair in segments.groups for _ in range(count)] == [[n, n] for n in sorted(lengths)]
    assert len(segments.groups) == len(set(lengths))
    assert (keys.order is None) == (lengths == sorted(lengths))
    if keys.order is not None:
        assert keys.order[keys.inverse].tolist() == list(range(sum(lengths)))


def test_segments_do_not_see_one_another():
    lengths = [4, 3, 6]
    q, k, v = qkv(13)
    before = attend(q, k, v, bounds_of(lengths))
    k[4:7], v[4:7] = 100.0, float("nan")
    after = attend(q, k, v, bounds_of(lengths))
    assert torch.equal(before[:4], after[:4])
    assert torch.equal(before[7:], after[7:])
    assert after[4:7].isnan().all()


class OnCuda(Tensor):
    """A CPU tensor that says it is on a GPU."""

    @property
    def is_cuda(self):
        return True


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.bfloat16, True), (torch.float16, True), (torch.float32, False)], ids=str
)
def test_the_kernel_for_gpus_is_called_for_half_precision_alone(monkeypatch, dtype, expected):
    lengths, calls = [5, 1, 3], []

    def kernel(q, k, v, bounds_q, bounds_k, longest_q, longest_k):
        calls.append((bounds_q, bounds_k, longest_q, longest_k))
        return dense(*(x.as_subclass(Tensor).float() for x in (q, k, v)), lengths).to(dtype)

    monkeypatch.setattr(attention, "varlen_kernel", lambda: kernel)
    q, k, v = qkv(9, dtype=dtype)
    out = attend(*(x.as_subclass(OnCuda) for x in (q, k, v)), bounds_of(lengths)).as_subclass(Tensor)
    torch.testing.assert_close(out.float(), dense(q.float(), k.float(), v.float(), lengths), atol=1e-2, rtol=1e-2)
    assert bool(calls) == expected
    for bounds_q, bounds_k, *longest in calls:
        assert bounds_q.tolist() == bounds_k.tolist() == [0, 5, 6, 9]
        assert bounds_q.dtype == torch.int32
        assert longest == [5, 5]


def test_the_kernel_for_gpus_is_given_which_tokens_attend(monkeypatch):
    lengths, attending, calls = [5, 1, 3], torch.tensor([0, 4, 5, 8]), []

    def kernel(q, k, v, *bounds):
        calls.append((q.shape[0], k.shape[0], *bounds))
        return q

    monkeypatch.setattr(attention, "varlen_kernel", lambda: kernel)
    q, k, v = (x.as_subclass(OnCuda) for x in qkv(9, dtype=torch.bfloat16))
    attend(q[attending], k, v, Segments.of(bounds_of(lengths), "cpu", attending=attending))
    ((queries, keys, of_queries, of_keys, *longest),) = calls
    assert (queries, keys, *longest) == (4, 9, 2, 5)
    assert (of_queries.tolist(), of_keys.tolist()) == ([0, 2, 3, 4], [0, 5, 6, 9])
    assert of_queries.dtype == of_keys.dtype == torch.int32


def test_without_the_kernel_half_precision_takes_the_other_path(monkeypatch):
    monkeypatch.setattr(attention, "varlen_kernel", lambda: None)
    q, k, v = qkv(9, dtype=torch.bfloat16)
    out = attend(*(x.as_subclass(OnCuda) for x in (q, k, v)), bounds_of([5, 1, 3])).as_subclass(Tensor)
    assert torch.equal(out, attend(q, k, v, bounds_of([5, 1, 3])))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_both_paths_agree_on_a_gpu():
    lengths = [70, 1, 33, 70, 128]
    ours, theirs = ([x.cuda().bfloat16().requires_grad_() for x in qkv(302, width=64)] for _ in range(2))
    segments = Segments.of(bounds_of(lengths), "cuda")
    out, expected = attend(*ours, segments), attention._attend_grouped(*theirs, segments)
    torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)
    out.float().square().sum().backward()
    expected.float().square().sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=5e-2, rtol=5e-2)
