"""Rows that training never moved are found; learnt ones are left alone."""

import pytest
import torch

from tokensurgeon.methods.learnt import near_copies, near_zero_rows, untrained_rows


def marked(flags):
    return flags.nonzero()[:, 0].tolist()


class TestUntrained:
    @pytest.fixture
    def table(self, tools):
        """200 learnt rows that share a large component; 10 unused rows that lie close together."""
        shared, unused = 3 * tools.random(1, 1, 128), 2 * tools.random(2, 1, 128)
        return tools.random(3, 200, 128) + shared, shared + unused + 0.1 * tools.random(4, 10, 128)

    def test_rows_like_those_of_unused_tokens_are_marked(self, table):
        rows, unused = table
        rows[[5, 77]] = unused[:2] + 0.01
        assert marked(untrained_rows(rows, unused, ["Latin"] * 200)) == [5, 77]

    def test_a_component_that_all_rows_share_is_no_mark(self, table):
        rows, unused = table
        assert marked(untrained_rows(rows, unused, ["Latin"] * 200)) == []

    def test_few_unused_rows_tell_nothing(self, table):
        rows, unused = table
        rows[5] = unused[0]
        assert marked(untrained_rows(rows, unused[:7], ["Latin"] * 200)) == []

    def test_a_script_that_is_like_that_throughout_is_left_alone(self, table):
        rows, unused = table
        rows[:20] = unused[0] + 0.01 * rows[:20]
        scripts = ["Cuneiform"] * 20 + ["Latin"] * 180
        assert not set(marked(untrained_rows(rows, unused, scripts))) & set(range(20))
        assert set(range(20)) <= set(marked(untrained_rows(rows, unused, ["Latin"] * 200)))

    def test_no_rows_are_no_error(self, table):
        assert marked(untrained_rows(table[0][:0], table[1], [])) == []


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

    @pytest.mark.parametrize("seed", range(3))
    def test_the_marks_are_those_of_comparing_every_pair(self, tools, seed):
        # Groups at all distances around that of a near copy.
        centres = tools.random(seed, 150, 48)[torch.arange(1500) % 150]
        noise = torch.logspace(-2.5, -0.5, 1500)[:, None]
        rows = centres + noise * tools.random(seed + 10, 1500, 48)
        unit = torch.nn.functional.normalize(rows.double(), dim=1)
        pairs = unit @ unit.T > 0.999
        expected = pairs.fill_diagonal_(False).any(dim=1)
        assert 300 < expected.sum() < 1200
        assert near_copies(rows).equal(expected)

    def test_a_large_group_of_copies_is_marked_in_little_memory(self, tools):
        # Comparing every pair of the group in full took gigabytes.
        rows = tools.random(1, 5000, 512)
        rows[1000:] = rows[0]
        assert marked(near_copies(rows)) == [0, *range(1000, 5000)]

    def test_rows_that_are_no_numbers_hide_no_copies(self, tools):
        rows = tools.random(1, 60, 32)
        rows[40] = rows[8].clone()
        rows[[1, 2, 50], 0] = torch.tensor([torch.nan, torch.inf, -torch.inf])
        assert marked(near_copies(rows)) == [8, 40]

    def test_two_zero_rows_have_no_direction_to_share(self, tools):
        rows = tools.random(1, 20, 32)
        rows[[3, 4]] = 0
        assert marked(near_copies(rows)) == []


@pytest.mark.parametrize("find", [near_zero_rows, near_copies])
def test_without_rows_nothing_is_marked(find):
    flags = find(torch.zeros(0, 8))
    assert flags.shape == (0,)
    assert flags.dtype is torch.bool
