"""Permutations that are computed by index: number i of a shuffled order, without the others.

A stored permutation of 10^8 samples takes 16 bytes a sample and 10 seconds before the first batch,
and again to go on at the end of an epoch. Here an index is encrypted instead: a cipher over the
numbers below n is a permutation of them, and its key chooses which.

The cipher is the generalised Feistel network with cycle walking of J. Black and P. Rogaway,
"Ciphers with Arbitrary Finite Domains" (CT-RSA 2002). A number is written as two digits of bases
a and b with a * b >= n, a keyed hash of one digit is added to the other in turn, and what comes out
at n or above is encrypted again until it is below. As a * b - n < a + b, that is nearly never.
"""

from __future__ import annotations

import math

from torch import Tensor

from danling.seed import derive

__all__ = ["draw", "permute"]


ROUNDS = 8  # four make a good cipher of random functions (Luby and Rackoff, 1988)
LARGEST = 2**62  # digits of 31 bits, so that no product below has more than 63

_WORD = 0xFFFFFFFF
_MULTIPLIER = 0x45D9F3B  # of 27 bits


def permute(indices: Tensor, population: int, key: int) -> Tensor:
    """The places of indices in the permutation that a key chooses.

    Args:
        indices: Numbers of type int64 with shape (n,), each below `population`.
        population: The number of things that are permuted, at most 2^62.
        key: A number of 63 bits.

    Returns:
        Numbers of type int64 with shape (n,), each below `population`.

    Example:
        >>> import torch
        >>> permute(torch.arange(6), 6, key=1).sort().values.tolist()
        [0, 1, 2, 3, 4, 5]
        >>> whole = permute(torch.arange(10**6), 10**6, key=1)
        >>> torch.equal(permute(torch.tensor([123456]), 10**6, key=1), whole[123456:123457])
        True
    """
    rows = math.isqrt(max(population - 1, 0)) + 1
    columns = -(-population // rows)
    keys = [derive(key, "round", number) & _WORD for number in range(ROUNDS)]
    result = _encrypt(indices, rows, columns, keys)
    while len(outside := (result >= population).nonzero().flatten()):
        result[outside] = _encrypt(result[outside], rows, columns, keys)
    return result


def draw(indices: Tensor, population: int, key: int) -> Tensor:
    """Random numbers below `population`, each a function of its index and the key alone.

    Args:
        indices: Numbers of type int64 with shape (n,), each below 2^62.
        population: The number of things that are drawn from, at most 2^62.
        key: A number of 63 bits.

    Example:
        >>> import torch
        >>> bool((draw(torch.arange(1000), 7, key=1) < 7).all())
        True
    """
    low, high = indices & 0x7FFFFFFF, indices >> 31
    words = []
    for number in range(2):
        seed = derive(key, "word", number)
        words.append(_hash(_hash(low, seed & _WORD) ^ high, seed >> 32) & 0x7FFFFFFF)
    return ((words[0] << 31) | words[1]) % population


def _encrypt(indices: Tensor, rows: int, columns: int, keys: list[int]) -> Tensor:
    row, column = indices % rows, indices // rows
    for number, key in enumerate(keys):
        if number % 2 == 0:
            row = (row + _hash(column, key)) % rows
        else:
            column = (column + _hash(row, key)) % columns
    return column * rows + row


def _hash(words: Tensor, key: int) -> Tensor:
    """Words of 32 bits that depend on words of 32 bits and a key, mixed as MurmurHash3 does."""
    for shift in (16, 15):
        words = (((words ^ key) >> shift) ^ words ^ key) * _MULTIPLIER & _WORD
    return (words >> 16) ^ words
