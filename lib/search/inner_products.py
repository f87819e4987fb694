"""Inner products that do not depend on where in a matrix a row stands."""

import torch
from torch import Tensor
from torch.nn import functional as F

STEP = 16
"""The blocks of matrix products on CPUs divide it; what is left over at an edge is summed in another order."""


def inner_products(queries: Tensor, rows: Tensor) -> Tensor:
    """All inner products (Q, T) of queries (Q, D) and rows (T, D).

    Equal rows are to give equal products, to the bit, whatever stands beside them and in whichever call, so that ties
    can be told by them. A plain product rounds otherwise at its edges; so both sides are filled up to whole blocks.
    PyTorch's libraries do not promise that this is enough: on one thread we have seen no exception, on several a few.
    """
    spare_queries, spare_rows = -len(queries) % STEP, -len(rows) % STEP
    if spare_queries > 0:
        queries = F.pad(queries, (0, 0, 0, spare_queries))
    whole = len(rows) // STEP * STEP
    if spare_rows == 0:
        products = queries @ rows.t()
    elif whole == 0:
        products = queries @ F.pad(rows, (0, 0, 0, spare_rows)).t()
    else:  # the last few alone: filling up all rows would copy them
        products = queries.new_empty(len(queries), len(rows))
        torch.mm(queries, rows[:whole].t(), out=products[:, :whole])
        last = queries @ F.pad(rows[whole:], (0, 0, 0, spare_rows)).t()
        products[:, whole:] = last[:, : len(rows) - whole]
    return products[: len(products) - spare_queries, : len(rows)]
