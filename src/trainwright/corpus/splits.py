"""Which split each document of a corpus belongs to: by a hash of its id, or where the document is that it was
written from.

A rephrase of a document that is kept back tells what that document says. So a written document follows its
root, the first-hand document at the beginning of the chain of writers that it comes from, whether the root is
still in the corpus or not.
"""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trainwright.core.errors import UserError
from trainwright.corpus.tokens import SPLITS, uniform

Ids = NDArray[np.object_]


def roots(origins: Mapping[str, str], seen: Mapping[str, str]) -> dict[str, str]:
    """The root of each document of ``origins``, which says what each was written from. ``seen`` says so of
    every document that any method has seen, also of those that are in the corpus no more."""
    return {name: root for name, origin in origins.items() if (root := _root(origin, seen)) != name}


def _root(name: str, seen: Mapping[str, str]) -> str:
    path: dict[str, None] = {name: None}
    while (before := seen.get(name, name)) != name:
        if before in path:
            raise UserError(f"documents were written from each other in a circle: {', '.join(path)}.")
        path[before], name = None, before
    return name


def assign(ids: Ids, domains: Ids, tune: float, test: float, roots: Mapping[str, str],
           gone: Mapping[str, str]) -> NDArray[np.int64]:
    """Index into ``SPLITS`` for each document.

    Args:
        roots: of each written document the first-hand one that it comes from; these are what is split.
        gone: the domains of roots that are not in the corpus themselves. One that nobody knows counts to the
            domain of what was written from it.
    """
    if not roots:
        return by_hash(ids, domains, tune, test)
    first = np.array([name not in roots for name in ids])
    there = set(ids[first])
    missing = {roots[name]: domain
               for name, domain in sorted(zip(ids[~first], domains[~first], strict=True), reverse=True)
               if roots[name] not in there}
    missing |= {name: gone[name] for name in missing if name in gone}
    every = np.array([*ids[first], *missing], dtype=object)
    found = by_hash(every, np.array([*domains[first], *missing.values()], dtype=object), tune, test)
    split = dict(zip(every, found, strict=True))
    return np.array([split[roots.get(name, name)] for name in ids], dtype=np.int64)


def kept(ids: Ids, roots: Mapping[str, str], held: Mapping[str, str]) -> NDArray[np.int64]:
    """The same for a corpus made of an earlier one, whose documents that are kept back ``held`` names: all
    others are for training, but for those that were written from one kept back."""
    return np.array([SPLITS.index(held.get(name) or held.get(roots.get(name, name), "train"))
                     for name in ids], dtype=np.int64)


def by_hash(ids: Ids, domains: Ids, tune: float, test: float) -> NDArray[np.int64]:
    """Index into ``SPLITS`` for each document, by a hash of its id within its domain.

    A domain of three documents and more has at least one in each split whose share is above 0; a smaller one
    is all for training.
    """
    place = np.array([uniform(name, "split") for name in ids])
    found = np.zeros(len(place), dtype=np.int64)
    for domain in set(domains):
        members = np.flatnonzero(domains == domain)
        if len(members) < 3:
            continue
        order = members[np.argsort(place[members], kind="stable")]
        tested = max(int((place[order] < test).sum()), int(test > 0))
        held = max(int((place[order] < test + tune).sum()), tested + int(tune > 0))
        held = min(held, len(order) - 1)
        tested = min(tested, held - int(tune > 0))
        found[order[:tested]], found[order[tested:held]] = SPLITS.index("test"), SPLITS.index("tune")
    return found
