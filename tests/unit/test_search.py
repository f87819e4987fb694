"""Nearest rows by inner product: the exact products, and the recall of the approximate search."""

import pytest
import torch

from lib.search.approximate import ApproximateSearch, recall
from lib.search.exact import inner_products, nearest
from tests.helpers.rows import unit_rows


@pytest.mark.parametrize("dim", [5, 128])
def test_equal_rows_give_equal_inner_products_in_matrices_of_any_size(dim):
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
def test_inner_products_are_those_of_the_matrix_product(queries, rows):
    a, b = unit_rows(queries, 7, 1), unit_rows(rows, 7, 2)
    torch.testing.assert_close(inner_products(a, b), a @ b.t())


def test_recall_by_hand():
    true = torch.tensor([[0.9, 0.8], [0.7, 0.6], [-0.5, -0.6], [0.0, -0.1]])
    found = torch.tensor([[0.9, 0.1], [0.6, 0.5], [-0.5, -0.7], [-0.1, -0.1]])  # found, missed, found, missed
    assert recall(found, true) == 0.5


def test_recall_compares_similarities_not_row_numbers():
    """By row numbers, a wrong row with a higher number would pass for a nearer one."""
    database = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    wrong = torch.tensor([[2], [2]])  # the first query's nearest row is 0, the second's is 3
    true = nearest(queries, database, 1)[0]
    found = (queries @ database.t()).gather(1, wrong)
    assert recall(found, true) == 0.0
    found[0] = true[0]
    assert recall(found, true) == 0.5


def test_recall_counts_another_row_of_equal_similarity_as_found():
    assert recall(torch.tensor([[0.5]]), torch.tensor([[0.5 + 1e-7]])) == 1.0


def test_the_search_misses_nothing_when_it_scans_every_list():
    rows = unit_rows(16, 8, 0)
    queries = unit_rows(5, 8, 1)
    found, true = ApproximateSearch(rows)(queries, 3), nearest(queries, rows, 3)
    torch.testing.assert_close(found[0], true[0])
    assert recall(found[0], true[0]) == 1.0
