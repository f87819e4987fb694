"""Inner products of equal rows are equal wherever they stand."""

import pytest
import torch

from lib.search.exact import inner_products
from tests.helpers.rows import unit_rows


@pytest.mark.parametrize("dim", [5, 128])
def test_equal_rows_give_equal_products_in_matrices_of_any_size(dim):
    query, row = unit_rows(2, dim, 0).split(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {
            value
            for q in (1, 2, 3, 8, 17, 50)
            for t in (1, 2, 7, 16, 17, 50, 1000)
            for value in inner_products(query.repeat(q, 1), row.repeat(t, 1)).unique().tolist()
        }
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


@pytest.mark.parametrize("queries", [0, 1, 16, 35])
@pytest.mark.parametrize("rows", [1, 15, 16, 35])
def test_they_are_the_plain_products(queries, rows):
    a, b = unit_rows(queries, 7, 1), unit_rows(rows, 7, 2)
    torch.testing.assert_close(inner_products(a, b), a @ b.t())
