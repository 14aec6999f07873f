"""Rows that training never moved are found; learnt ones are left alone."""

import pytest
import torch

from tokensurgeon.methods.learnt import near_copies, near_zero_rows


def marked(flags):
    return flags.nonzero()[:, 0].tolist()


class TestNearZero:
    def test_much_shorter_rows_are_marked(self, tools):
        rows = tools.random(1, 50, 16)
        rows[[3, 20]] *= 1e-3
        rows[7] = 0
        assert marked(near_zero_rows(rows)) == [3, 7, 20]

    def test_an_all_negative_row_is_not_marked(self, tools):
        rows = tools.random(1, 50, 16)
        rows[4] = -rows[4].abs()
        rows[5] = -rows[5].abs() - 3
        assert marked(near_zero_rows(rows)) == []

    def test_short_is_relative_to_the_other_rows(self, tools):
        rows = tools.random(1, 50, 16)
        rows[3] *= 1e-3
        for factor in (1e-6, 1e6):
            assert marked(near_zero_rows(rows * factor)) == [3]

    def test_learnt_rows_of_different_lengths_are_left_alone(self, tools):
        rows = torch.nn.functional.normalize(tools.random(1, 50, 16), dim=1)
        assert marked(near_zero_rows(rows * torch.linspace(0.3, 3, 50)[:, None])) == []

    def test_rows_that_are_no_numbers_are_marked(self, tools):
        rows = tools.random(1, 50, 16)
        rows[9, 3] = torch.nan
        assert 9 in marked(near_zero_rows(rows))

    def test_of_zero_rows_all_are_marked(self):
        assert near_zero_rows(torch.zeros(4, 8)).all()


class TestNearCopies:
    def test_every_member_of_a_group_is_marked_and_nothing_else(self, tools):
        rows = tools.random(1, 200, 32)
        rows[[50, 199]] = rows[3].clone()
        rows[120] = rows[119].clone()
        assert marked(near_copies(rows)) == [3, 50, 119, 120, 199]

    @pytest.mark.parametrize("width", [8, 64, 600])
    def test_different_rows_are_left_alone_in_any_width(self, tools, width):
        assert marked(near_copies(tools.random(1, 300, width))) == []

    def test_scaled_copies_are_copies(self, tools):
        rows = tools.random(1, 60, 32)
        rows[40] = 3.7 * rows[8]
        assert marked(near_copies(rows)) == [8, 40]

    def test_copies_up_to_rounding_are_copies(self, tools):
        rows = tools.random(1, 60, 32)
        rows[40] = rows[8].bfloat16().float()
        assert marked(near_copies(rows)) == [8, 40]

    def test_the_opposite_row_is_no_copy(self, tools):
        rows = tools.random(1, 60, 32)
        rows[40] = -rows[8]
        assert marked(near_copies(rows)) == []

    def test_similar_rows_are_no_copies(self, tools):
        rows = tools.random(1, 60, 32)
        rows[40] = rows[8] + 0.1 * tools.random(2, 32)
        assert torch.cosine_similarity(rows[40], rows[8], dim=0) > 0.98
        assert marked(near_copies(rows)) == []

    @pytest.mark.parametrize("block", [1, 7, 64, 1000])
    def test_the_result_does_not_depend_on_the_block(self, tools, block):
        rows = tools.random(1, 100, 32)
        rows[[6, 7, 63, 64, 99]] = rows[0].clone()
        assert marked(near_copies(rows, block=block)) == [0, 6, 7, 63, 64, 99]

    def test_two_zero_rows_have_no_direction_to_share(self, tools):
        rows = tools.random(1, 20, 32)
        rows[[3, 4]] = 0
        assert marked(near_copies(rows)) == []


@pytest.mark.parametrize("find", [near_zero_rows, near_copies])
def test_without_rows_nothing_is_marked(find):
    flags = find(torch.zeros(0, 8))
    assert flags.shape == (0,)
    assert flags.dtype is torch.bool
