"""Random matrices that are numbered instead of stored: every entry is a hash of its seed, its matrix and its place.

A generator would have to draw all that comes before an entry, and draws other numbers on another device. Here integers alone are
computed, of 32 bits and wrapping, so that every device comes to the same bits, in any order and in parts of any size.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor

ENTRIES = {"cpu": 1 << 20}
"""Entries that are made at a time: enough for the calls not to count, and no more memory than that."""
ENTRIES_ELSEWHERE = 1 << 24
MIX = ((16, 0x7FEB352D), (15, 0x846CA68B))
"""Shifts and odd factors of a 32-bit mixer whose outputs depend nearly evenly on all bits of the input (Wellons' lowbias32)."""
STEP = 0x9E3779B97F4A7C15
"""Distance of the numbers from which the keys of neighbouring matrices are mixed (SplitMix64)."""


def uniform(seed: int, first: int, count: int, entries: int, device: torch.device) -> Tensor:
    """Matrices ``first`` to ``first + count`` of the family ``seed``, [count, entries], float32.

    Uniform over the middles of the 2^16 parts of (-1, 1); a hash of 32 bits makes two neighbouring entries.
    """
    low, high = _keys(seed, first, count)
    pairs = torch.arange((entries + 1) // 2, dtype=torch.int32, device=device).mul_(_signed(STEP >> 32 | 1, 32))
    h = _mix(_mix(pairs + low.to(device)[:, None]).bitwise_xor_(high.to(device)[:, None]))
    return h.view(torch.int16)[:, :entries].float().add_(0.5).mul_(2**-15)


def _keys(seed: int, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Two keys of 32 bits for each matrix: SplitMix64's outputs number ``first`` and on."""
    z = torch.arange(first + 1, first + count + 1).mul_(_signed(STEP, 64)).add_(seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(_signed(factor, 64))
    z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))
    both = z.view(torch.int32).view(-1, 2)
    return both[:, 0], both[:, 1]


def _mix(h: Tensor) -> Tensor:
    for shift, factor in MIX:
        h.bitwise_xor_((h >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(_signed(factor, 32))
    return h.bitwise_xor_((h >> 16).bitwise_and_(0xFFFF))


def _signed(x: int, bits: int) -> int:
    """The same bits as a signed number, which is what tensors take."""
    return x - (1 << bits) if x >> (bits - 1) else x


def _parts(count: int, entries: int, device: torch.device) -> list[tuple[int, int]]:
    """First and number of the matrices of each part."""
    most = max(1, ENTRIES.get(device.type, ENTRIES_ELSEWHERE) // entries)
    return [(first, min(most, count - first)) for first in range(0, count, most)]


@torch.library.custom_op("trainwright::combine_bases", mutates_args=())
def combine(coefficients: Tensor, seed: int, rows: int, columns: int) -> Tensor:
    """The sum over i of c_i M_i, [rows, columns], M_i uniform in (-1, 1) / sqrt(number of coefficients).

    Neither forward nor backward ever holds more than a part of the matrices; only the coefficients have a gradient.
    """
    with torch.autocast(coefficients.device.type, enabled=False):
        total = coefficients.new_zeros(rows * columns)
        for first, count in _parts(len(coefficients), rows * columns, coefficients.device):
            total.addmv_(uniform(seed, first, count, rows * columns, coefficients.device).T, coefficients[first:first + count])
        return total.view(rows, columns).div_(math.sqrt(len(coefficients)))


@torch.library.custom_op("trainwright::project_on_bases", mutates_args=())
def project(matrix: Tensor, seed: int, count: int) -> Tensor:
    """The inner products of ``matrix`` with M_1 to M_count: the transpose of ``combine``."""
    with torch.autocast(matrix.device.type, enabled=False):
        flat = matrix.flatten().float()
        parts = [uniform(seed, first, n, len(flat), matrix.device) @ flat for first, n in _parts(count, len(flat), matrix.device)]
        return torch.cat(parts).div_(math.sqrt(count))


@combine.register_fake
def _(coefficients: Tensor, seed: int, rows: int, columns: int) -> Tensor:
    return coefficients.new_empty(rows, columns)


@project.register_fake
def _(matrix: Tensor, seed: int, count: int) -> Tensor:
    return matrix.new_empty(count, dtype=torch.float32)


def _setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, int, int, int], output: Tensor) -> None:
    ctx.seed, ctx.count = inputs[1], len(inputs[0])


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return project(grad, ctx.seed, ctx.count), None, None, None


combine.register_autograd(_backward, setup_context=_setup)
