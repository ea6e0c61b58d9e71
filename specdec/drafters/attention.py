"""Attention of unrolled draft positions: the documents' base-fed rows, and a few own rows of each query.

Two parts share one softmax. Over the context runs a flash kernel that hands out the logarithm of its normaliser;
the few own keys are merged by it:

    L = log(exp(l) + sum_j exp(s_j))        out = exp(l - L) context + sum_j exp(s_j - L) v_j

Going backward, the same kernel gives the exact gradients of its part when it gets `out` and L of the whole, because
it rebuilds its weights as exp(s - L). So no score outlives its tile, on the way there or back. On an NVIDIA GPU the
kernel is FlexAttention's, which skips the blocks between documents and takes the gradients of `l` too. Where there is
neither, blocks of queries are recomputed in the backward pass instead.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

QUERY_BLOCK = 256  # queries that look at their keys at once, where there is no kernel

Chain = list[tuple[Tensor, Tensor]]  # keys and values [n, kv, D], one pair an own row
Mask = Tensor | BlockMask | None
_KERNEL: Any = {"BACKEND": "TRITON"}  # left to itself it takes one for decoding where rows are short, and fails

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_to(
    query: Tensor,
    rows: Tensor,
    keys: Tensor,
    values: Tensor,
    chain: Chain,
    documents: Tensor,
    mask: Mask = None,
) -> Tensor:
    """query[n, h, D] at flat rows[n] of documents[B, T] -> [n, h*D].

    keys, values[B*T, kv, D]: seen up to the row itself, within its document. chain: what each query sees besides.
    mask: `mask_of` the documents, for callers that ask often.
    """
    mask = mask_of(documents, query.dtype) if mask is None else mask
    if isinstance(mask, BlockMask):
        return flexible(query, rows, keys, values, chain, documents, mask)
    if mask is None:
        return blockwise(query, rows, keys, values, chain, documents)
    flat = [t for pair in chain for t in pair]
    found: Tensor = _Merged.apply(query, keys, values, rows, documents, mask, *flat)
    return found


def mask_of(documents: Tensor, dtype: torch.dtype) -> Mask:
    """What the kernel of this device takes; None where there is no kernel."""
    if documents.device.type == "cpu":
        return additive_mask(documents, dtype)
    return block_mask(documents) if documents.is_cuda and dtype is not torch.float64 else None


def seen(documents: Tensor, queries: slice, keys: int) -> Tensor:
    """bool[B, 1, i, j]: which of the first `keys` rows each query row sees."""
    place = torch.arange(keys, device=documents.device)
    earlier = place[None, :] <= place[queries, None]
    return (earlier & (documents[:, queries, None] == documents[:, None, :keys]))[:, None]


def additive_mask(documents: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, T, T]: 0 where a row sees another, -inf elsewhere."""
    batch, length = documents.shape
    mask = torch.zeros(batch, 1, length, length, dtype=dtype, device=documents.device)
    return mask.masked_fill_(~seen(documents, slice(0, length), length), float("-inf"))


def block_mask(documents: Tensor) -> BlockMask:
    def sees(batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (documents[batch, query] == documents[batch, key])

    batch, length = documents.shape
    return create_block_mask(sees, batch, None, length, length, device=documents.device)


def flexible(
    query: Tensor, rows: Tensor, keys: Tensor, values: Tensor, chain: Chain, documents: Tensor, mask: BlockMask
) -> Tensor:
    """`attend_to` by FlexAttention."""
    batch, length = documents.shape
    whole = [_spread(query, rows, documents)]
    whole += [x.view(batch, length, *x.shape[1:]).transpose(1, 2) for x in (keys, values)]
    run = _kernel(query.is_cuda)
    out, more = run(*whole, block_mask=mask, enable_gqa=True, return_aux=AuxRequest(lse=True), kernel_options=_KERNEL)
    out, normaliser = _gather(out, rows), _gather(more.lse[..., None], rows)
    if chain:
        scale = query.shape[-1] ** -0.5
        scores = torch.cat([(query * _grown(k, query)).sum(-1, keepdim=True) for k, _ in chain], -1).float() * scale
        total = torch.cat([normaliser, scores], -1).logsumexp(-1, keepdim=True)
        shares = (scores - total).exp().to(out.dtype)
        out = out * (normaliser - total).exp().to(out.dtype)
        for j, (_, value) in enumerate(chain):
            out = out + shares[..., j, None] * _grown(value, query)
    return out.flatten(1)


@cache
def _kernel(compiled: bool) -> Any:
    return torch.compile(flex_attention) if compiled else flex_attention


class _Merged(Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        rows: Tensor,
        documents: Tensor,
        mask: Tensor,
        *chain: Tensor,
    ) -> Tensor:
        scale = query.shape[-1] ** -0.5
        whole = [_spread(query, rows, documents), *(_heads(x, documents, query.shape[1]) for x in (keys, values))]
        out, normaliser = _flash(*whole, attn_mask=mask, scale=scale)
        normaliser = _gather(normaliser[..., None], rows).squeeze(-1)  # in float32 for half precision too
        out = _gather(out, rows).to(normaliser.dtype)
        scores = None
        if chain:
            scores = torch.stack([(query * _grown(k, query)).sum(-1) for k in chain[::2]], -1) * scale
            total = torch.cat([normaliser[..., None], scores], -1).logsumexp(-1)
            out = out * (normaliser - total).exp()[..., None]
            shares = (scores - total[..., None]).exp()
            for j, value in enumerate(chain[1::2]):
                out = out.addcmul(shares[..., j, None], _grown(value, query))
            normaliser = total
        out = out.to(query.dtype)
        ctx.save_for_backward(query, keys, values, rows, documents, mask, out, normaliser, scores, *chain)
        return out.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, values, rows, documents, mask, out, normaliser, scores, *chain = ctx.saved_tensors
        heads, size = query.shape[1:]
        scale = size**-0.5
        gradient = gradient.unflatten(1, (heads, size)).contiguous()
        whole = [_spread(query, rows, documents), *(_heads(x, documents, heads) for x in (keys, values))]
        to_query, to_keys, to_values = _flash_backward(
            _spread(gradient, rows, documents),
            *whole,
            _spread(out, rows, documents),
            _spread(normaliser[..., None], rows, documents).squeeze(-1).contiguous(),
            0.0,
            False,
            attn_mask=mask,
            scale=scale,
        )
        to_query = _gather(to_query, rows)
        further: list[Tensor] = []
        delta = (gradient * out).sum(-1)
        for j in range(len(chain) // 2):
            key, value = _grown(chain[2 * j], query), _grown(chain[2 * j + 1], query)
            share = (scores[..., j] - normaliser).exp()
            slope = (share * ((gradient * value).sum(-1) - delta) * scale).to(query.dtype)[..., None]
            to_query = to_query.addcmul(slope, key)
            kv = chain[2 * j].shape[1]
            further += [_folded(slope * query, kv), _folded(share[..., None].to(query.dtype) * gradient, kv)]
        kv = keys.shape[1]
        folded = [_folded(x.transpose(1, 2).reshape(-1, heads, size), kv) for x in (to_keys, to_values)]
        return to_query, *folded, None, None, None, *further


def _spread(x: Tensor, rows: Tensor, documents: Tensor) -> Tensor:
    """x[n, h, D] at flat rows -> [B, h, T, D], zero elsewhere."""
    batch, length = documents.shape
    spread = x.new_zeros(batch * length, *x.shape[1:]).index_copy_(0, rows, x)
    return spread.view(batch, length, *x.shape[1:]).transpose(1, 2)


def _gather(x: Tensor, rows: Tensor) -> Tensor:
    """[B, h, T, D] -> [n, h, D] at flat rows."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])[rows]


def _heads(x: Tensor, documents: Tensor, heads: int) -> Tensor:
    """keys or values[B*T, kv, D] -> [B, h, T, D], each for the heads of its group."""
    batch, length = documents.shape
    return x.view(batch, length, *x.shape[1:]).transpose(1, 2).repeat_interleave(heads // x.shape[1], 1)


def _grown(x: Tensor, query: Tensor) -> Tensor:
    """[n, kv, D] -> [n, h, D]."""
    return x.repeat_interleave(query.shape[1] // x.shape[1], 1)


def _folded(x: Tensor, kv: int) -> Tensor:
    """[n, h, D] -> [n, kv, D]: the sum over each group of heads."""
    return x.unflatten(1, (kv, x.shape[1] // kv)).sum(2)


def blockwise(query: Tensor, rows: Tensor, keys: Tensor, values: Tensor, chain: Chain, documents: Tensor) -> Tensor:
    """`attend_to` in plain operations, one block of queries at a time."""
    length = documents.shape[1]
    heads, size = query.shape[1:]
    whole = _spread(query, rows, documents)
    all_keys, all_values = _heads(keys, documents, heads), _heads(values, documents, heads)
    own = [(_spread(_grown(k, query), rows, documents), _spread(_grown(v, query), rows, documents)) for k, v in chain]
    found = []
    for start in range(0, length, QUERY_BLOCK):
        block = slice(start, min(start + QUERY_BLOCK, length))
        part = (
            whole[:, :, block],
            all_keys[:, :, : block.stop],
            all_values[:, :, : block.stop],
            [(k[:, :, block], v[:, :, block]) for k, v in own],
            seen(documents, block, block.stop),
        )
        found.append(checkpoint(_block, *part, use_reentrant=False) if torch.is_grad_enabled() else _block(*part))
    return _gather(torch.cat(found, 2), rows).reshape(-1, heads * size)


def _block(query: Tensor, keys: Tensor, values: Tensor, own: Chain, mask: Tensor) -> Tensor:
    """query[B, h, i, D], keys[B, h, j, D], own pairs[B, h, i, D], mask[B, 1, i, j] -> [B, h, i, D]."""
    scale = query.shape[-1] ** -0.5
    scores = (query @ keys.transpose(-1, -2)).masked_fill(~mask, float("-inf"))
    further = [(query * k).sum(-1, keepdim=True) for k, _ in own]
    shares = (torch.cat([scores, *further], -1).float() * scale).softmax(-1).to(values.dtype)
    found = shares[..., : keys.shape[2]] @ values
    for j, (_, value) in enumerate(own):
        found = found + shares[..., keys.shape[2] + j, None] * value
    return found
