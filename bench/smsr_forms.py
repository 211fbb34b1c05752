"""SMSR in the forms that its sparse inference is measured against: unmasked, and skipping as the public code does.

Both read the weights of an :class:`sparsemask.spaces.sparse_conv.SMSR`. The public style was written from its
description: batch 1, contiguous NCHW, every kept location's neighbourhood fetched by fancy indexing into columns, one
matrix product for all that concerns kept locations, dense channels convolved everywhere, sparse ones scattered back
into a map of zeros.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseForm(nn.Module):
    """The network with nothing masked and no mask branches: what masking must beat."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) to (N, 3, s·H, s·W)."""
        x, base, head = self.model.begin(x)
        features, outputs = head, []
        for module in self.model.body:
            y, layers = features, []
            for layer in module.body.body:
                y = F.relu(F.conv2d(y, layer.weight, None, padding=1))
                layers.append(y)
            y = module.body.collect(torch.cat(layers, 1))
            features = features + y * module.ca(y.mean((2, 3), keepdim=True))
            outputs.append(features)
        return self.model.end(self.model.collect[0](torch.cat(outputs, 1)), head, base)


class PublicStyle(nn.Module):
    """Skipping by fancy indexing. Split weights are made once; H and W are even."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.parts = [_Split(module.body) for module in model.body]

    def forward(self, x: Tensor) -> Tensor:
        """One picture (1, 3, H, W)."""
        x = x.contiguous()
        x = self.model.sub_mean(x)
        base, head = self.model.skip(x), self.model.head(x)
        features, outputs = head, []
        for module, parts in zip(self.model.body, self.parts, strict=True):
            y = parts.run(features, module.spa_mask(features))
            features = features + y * module.ca(y.mean((2, 3), keepdim=True))
            outputs.append(features)
        return self.model.end(self.model.collect[0](torch.cat(outputs, 1)), head, base)


class _Split:
    """A module's kernels by where their inputs and outputs are computed."""

    def __init__(self, body: nn.Module):
        before = torch.ones(body.channels().shape[1], dtype=torch.bool)
        self.layers = []
        for layer, dense in zip(body.body, body.channels(), strict=True):
            self.layers.append(_Kernels(layer.weight.detach(), None, before, dense))
            before = dense
        everything = torch.ones(body.collect.out_channels, dtype=torch.bool)
        weight, bias = body.collect.weight.detach(), body.collect.bias.detach()
        self.fuse = _Kernels(weight, bias, body.channels().flatten(), everything)

    def run(self, x: Tensor, mask: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows, columns = mask[0, 0].nonzero(as_tuple=True)
        near = torch.arange(-1, 2)
        around = (  # into the padded map
            (rows[None] + 1 + near.repeat_interleave(3)[:, None]).flatten(),
            (columns[None] + 1 + near.repeat(3)[:, None]).flatten(),
        )
        place = (rows, columns)
        dense, sparse = x, None
        all_dense, all_sparse = [], []
        for kernels in self.layers:
            dense, sparse = kernels.run(dense, sparse, place, around, height, width)
            dense = F.relu(dense) if dense is not None else None
            sparse = F.relu(sparse) if sparse is not None else None
            all_dense += [dense] if dense is not None else []
            all_sparse += [sparse] if sparse is not None else []
        dense = torch.cat(all_dense, 1) if all_dense else None
        sparse = torch.cat(all_sparse, 1) if all_sparse else None
        return self.fuse.run(dense, sparse, place, place, height, width)[0]


class _Kernels:
    """D→D as a convolution, D→S and S→both as matrices over columns of kept locations."""

    def __init__(self, weight: Tensor, bias: Tensor | None, ins: Tensor, outs: Tensor):
        self.size, self.bias = weight.shape[2], bias
        self.n_dense, self.n_sparse = int(outs.sum()), int((~outs).sum())
        order = torch.cat([outs.nonzero().flatten(), (~outs).nonzero().flatten()])
        self.everywhere = weight[outs][:, ins].contiguous()
        self.to_sparse = weight[~outs][:, ins].flatten(1).contiguous()
        self.from_sparse = weight[order][:, ~ins].flatten(1).contiguous()

    def run(self, dense, sparse, place, around, height: int, width: int):
        rows, columns = place
        out = kept = None
        if self.n_dense:
            if dense is not None and dense.shape[1]:
                out = F.conv2d(dense, self.everywhere, self.bias, padding=self.size // 2)
            else:
                out = torch.zeros(1, self.n_dense, height, width)
                out += self.bias.view(1, -1, 1, 1) if self.bias is not None else 0
        if self.n_sparse and dense is not None and dense.shape[1]:
            kept = self.to_sparse @ self._columns(dense, around)
        if sparse is not None and sparse.shape[1]:
            more = self.from_sparse @ self._columns(sparse, around)
            if self.n_dense:
                out[0, :, rows, columns] += more[: self.n_dense]
            if self.n_sparse:
                kept = more[self.n_dense :] if kept is None else kept + more[self.n_dense :]
        if kept is None:
            return out, None
        spread = torch.zeros(1, self.n_sparse, height, width)
        spread[0, :, rows, columns] = kept
        return out, spread

    def _columns(self, x: Tensor, around) -> Tensor:
        if self.size > 1:
            x = F.pad(x, (1, 1, 1, 1))
        found = x[0][:, around[0], around[1]]
        return found.reshape(x.shape[1] * self.size**2, -1)
