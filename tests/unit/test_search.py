"""What the search by lists is judged by."""

import torch

from lib.search.approximate import ApproximateSearch, recall
from lib.search.exact import nearest
from tests.helpers.rows import unit_rows


def test_recall_by_hand():
    true = torch.tensor([[0.9, 0.8], [0.7, 0.6], [-0.5, -0.6], [0.0, -0.1]])
    found = torch.tensor([[0.9, 0.1], [0.6, 0.5], [-0.5, -0.7], [-0.1, -0.1]])  # found, missed, found, missed
    assert recall(found, true) == 0.5


def test_a_wrong_row_is_missed_whatever_its_number():
    """Similarities are compared, not row numbers, where a later row would pass for a nearer one."""
    database = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    wrong = torch.tensor([[2], [2]])  # the first query's nearest row is 0, the second's is 3
    true = nearest(queries, database, 1)[0]
    found = (queries @ database.t()).gather(1, wrong)
    assert recall(found, true) == 0.0
    found[0] = true[0]
    assert recall(found, true) == 0.5


def test_another_row_as_near_as_the_nearest_counts_as_found():
    assert recall(torch.tensor([[0.5]]), torch.tensor([[0.5 + 1e-7]])) == 1.0


def test_lists_that_are_all_looked_into_miss_nothing():
    rows = unit_rows(16, 8, 0)
    queries = unit_rows(5, 8, 1)
    found, true = ApproximateSearch(rows)(queries, 3), nearest(queries, rows, 3)
    torch.testing.assert_close(found[0], true[0])
    assert recall(found[0], true[0]) == 1.0
