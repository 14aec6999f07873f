"""Orthogonal matching pursuit against two independent implementations, and at its edges."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp

from tokensurgeon.solvers import dictionary as dictionaries
from tokensurgeon.solvers import omp as solver
from tokensurgeon.solvers.dictionary import Dictionary


@pytest.fixture(autouse=True, params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def product_dtype(request, monkeypatch):
    """Every property holds whatever the large products run in."""
    monkeypatch.setattr(dictionaries, "fast_dtype", lambda device: request.param)
    return request.param


def omp(targets, atoms, k, normalize_atoms=True, **options):
    return solver.omp(targets, Dictionary.prepare(atoms, normalize_atoms), k, **options)


def random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=1)


def reference(target, atoms, k, normalize):
    """The textbook algorithm for one target in float64: indices, coefficients, relative residual."""
    target, atoms = target.double().numpy(), atoms.double().numpy()
    weights = 1 / np.linalg.norm(atoms, axis=1) if normalize else np.ones(len(atoms))
    chosen, coefs, left = [], np.zeros(0), target
    for _ in range(k):
        chosen.append(int(np.argmax(np.abs(atoms @ left) * weights)))
        coefs = np.linalg.lstsq(atoms[chosen].T, target, rcond=None)[0]
        left = target - coefs @ atoms[chosen]
    return chosen, coefs, np.linalg.norm(left) / np.linalg.norm(target)


def rebuild(result, atoms):
    """Rows that indices and coefficients stand for, in float64."""
    chosen = atoms.double()[result.indices.clamp(min=0)]
    return (result.coefs.double()[:, :, None] * chosen).sum(dim=1)


@pytest.mark.parametrize(("atoms", "width", "k"), [(40, 16, 5), (200, 32, 12), (20, 30, 20)])
def test_support_and_coefficients_are_those_of_scikit_learn(atoms, width, k):
    dictionary, targets = unit(random(1, atoms, width)), random(2, 8, width)
    result = omp(targets, dictionary, k)
    theirs = orthogonal_mp(
        dictionary.double().numpy().T, targets.double().numpy().T, n_nonzero_coefs=k
    ).T.reshape(8, atoms)
    ours = np.zeros((8, atoms))
    np.put_along_axis(ours, result.indices.numpy(), result.coefs.numpy(), axis=1)
    assert np.array_equal(ours != 0, theirs != 0)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_order_coefficients_and_residual_are_those_of_the_textbook(normalize, seed):
    lengths = torch.logspace(-1, 1, 60)[torch.randperm(60, generator=torch.Generator().manual_seed(seed))]
    atoms, targets = unit(random(seed, 60, 24)) * lengths[:, None], random(seed + 100, 6, 24)
    result = omp(targets, atoms, 7, normalize_atoms=normalize)
    for row, target in enumerate(targets):
        indices, coefs, residual = reference(target, atoms, 7, normalize)
        assert result.indices[row].tolist() == indices
        np.testing.assert_allclose(result.coefs[row], coefs, rtol=1e-4, atol=1e-5)
        assert float(result.residual[row]) == pytest.approx(residual, rel=1e-5)


def test_normalised_atoms_are_chosen_by_angle_and_others_by_length():
    atoms = torch.tensor([[10.0, 10.0], [1.0, 0.0]])
    target = torch.tensor([[1.0, 0.1]])
    assert omp(target, atoms, 1).indices.tolist() == [[1]]
    assert omp(target, atoms, 1, normalize_atoms=False).indices.tolist() == [[0]]


def test_a_sparse_combination_is_found_again():
    atoms = random(3, 120, 64) * torch.linspace(0.2, 5, 120)[:, None]
    support = torch.tensor([[5, 40, 99], [119, 0, 61]])
    weights = torch.tensor([[1.0, -0.6, 0.8], [0.7, 2.0, -1.0]])
    targets = (weights[:, :, None] * unit(atoms)[support]).sum(dim=1)
    result = omp(targets, atoms, 10, tolerance=1e-5)
    assert result.n_active.tolist() == [3, 3]
    assert [sorted(row[:3]) for row in result.indices.tolist()] == [[5, 40, 99], [0, 61, 119]]
    assert result.residual.max() < 1e-6
    torch.testing.assert_close(rebuild(result, atoms).float(), targets)


def test_the_residual_is_what_the_combination_leaves():
    atoms, targets = random(4, 50, 20), random(5, 9, 20) * 7
    result = omp(targets, atoms, 6)
    left = (targets.double() - rebuild(result, atoms)).norm(dim=1) / targets.double().norm(dim=1)
    torch.testing.assert_close(result.residual.double(), left, rtol=1e-5, atol=1e-6)


def test_the_residual_is_orthogonal_to_the_atoms_taken():
    atoms, targets = random(4, 50, 20), random(5, 9, 20)
    result = omp(targets, atoms, 6)
    left = targets.double() - rebuild(result, atoms)
    overlap = (atoms.double()[result.indices] @ left[:, :, None]).abs()
    assert overlap.max() < 1e-5


def test_more_atoms_never_leave_more():
    atoms, targets = random(6, 40, 16), random(7, 5, 16)
    residuals = torch.stack([omp(targets, atoms, k).residual for k in range(1, 12)])
    assert (residuals.diff(dim=0) < 0).all()
    assert omp(targets, atoms, 11).indices[:, :4].equal(omp(targets, atoms, 4).indices)


class TestTies:
    def test_ties_go_to_the_lowest_index(self):
        atoms = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0]])
        assert omp(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), atoms, 1).indices.tolist() == [[1], [0]]

    def test_of_equal_atoms_the_first_is_taken_in_any_batch(self):
        once = random(8, 333, 37)
        atoms = torch.cat([once, once, once])[torch.randperm(999, generator=torch.Generator().manual_seed(0))]
        first = {}
        for index, atom in enumerate(atoms):
            first.setdefault(tuple(atom.tolist()), index)
        for batch_size in (1, 2, 3, 7, 50):
            result = omp(random(9, 50, 37), atoms, 12, batch_size=batch_size)
            assert set(result.indices.flatten().tolist()) <= set(first.values())


class TestEdges:
    def test_a_zero_target_takes_nothing_and_leaves_nothing(self):
        result = omp(torch.zeros(1, 4), random(1, 6, 4), 3)
        assert result.indices.tolist() == [[-1, -1, -1]]
        assert result.coefs.tolist() == [[0, 0, 0]]
        assert (result.residual.tolist(), result.n_active.tolist()) == ([0], [0])

    def test_without_atoms_everything_is_left(self):
        result = omp(random(1, 2, 4), torch.zeros(0, 4), 3)
        assert result.indices.shape == result.coefs.shape == (2, 0)
        assert (result.residual.tolist(), result.n_active.tolist()) == ([1, 1], [0, 0])

    def test_k_0_takes_nothing(self):
        result = omp(random(1, 2, 4), random(2, 6, 4), 0)
        assert result.indices.shape == (2, 0)
        assert result.residual.tolist() == [1, 1]

    def test_without_targets_there_is_no_result(self):
        result = omp(torch.zeros(0, 4), random(2, 6, 4), 3)
        assert result.indices.shape == result.coefs.shape == (0, 3)
        assert result.residual.shape == result.n_active.shape == (0,)

    def test_one_atom_is_a_projection(self):
        result = omp(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]]), 64)
        assert (result.indices.tolist(), result.coefs.tolist()) == ([[0]], [[1.5]])
        assert float(result.residual) == pytest.approx(0.8)

    def test_k_is_cut_to_the_number_of_atoms_and_to_the_width(self):
        assert omp(random(1, 2, 8), random(2, 5, 8), 64).n_active.tolist() == [5, 5]
        assert omp(random(1, 2, 3), random(2, 50, 3), 64).indices.shape == (2, 3)

    def test_zero_atoms_are_never_taken(self):
        atoms = torch.cat([torch.zeros(3, 6), random(2, 4, 6), torch.zeros(2, 6)])
        result = omp(random(1, 5, 6), atoms, 6)
        assert result.n_active.tolist() == [4] * 5
        assert set(result.indices.flatten().tolist()) == {-1, 3, 4, 5, 6}

    def test_zero_atoms_alone_leave_everything(self):
        result = omp(random(1, 2, 6), torch.zeros(5, 6), 3)
        assert (result.n_active.tolist(), result.residual.tolist()) == ([0, 0], [1, 1])

    def test_k_above_the_rank_stops_at_the_rank(self):
        # 30 atoms of 10 dimensions that span only 4 of them.
        atoms = random(1, 30, 4) @ random(2, 4, 10)
        result = omp(random(3, 6, 10), atoms, 10)
        assert result.n_active.tolist() == [4] * 6
        assert torch.isfinite(result.coefs).all()
        assert result.coefs.abs().max() < 10

    def test_a_row_that_has_stopped_is_filled_up_with_minus_one_and_zero(self):
        result = omp(random(3, 6, 10), random(1, 3, 10).repeat(3, 1), 8)
        assert result.n_active.tolist() == [3] * 6
        assert (result.indices[:, 3:] == -1).all()
        assert (result.coefs[:, 3:] == 0).all()
        assert all(set(row[:3]) == {0, 1, 2} for row in result.indices.tolist())

    @pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 0])
    def test_nearly_parallel_atoms_have_finite_coefficients(self, distance):
        atoms = random(1, 1, 16) + distance * random(2, 40, 16)
        result = omp(random(3, 8, 16), atoms, 16)
        assert torch.isfinite(result.coefs).all()
        # A direction that is kept is at least 1e-4 away from the others, so coefficients are bounded.
        assert (rebuild(result, atoms).norm(dim=1) < 2 * random(3, 8, 16).norm(dim=1)).all()
        assert result.residual.max() <= 1

    def test_atoms_that_rounding_cannot_tell_apart_are_not_combined(self):
        result = omp(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [1.0, 1e-5]]), 2)
        assert result.n_active.tolist() == [1]
        assert result.coefs.abs().max() < 2


class TestTolerance:
    def test_a_row_stops_when_its_residual_is_small_enough(self):
        atoms, targets = random(1, 200, 32), random(2, 10, 32)
        full = omp(targets, atoms, 32)
        result = omp(targets, atoms, 32, tolerance=0.3)
        assert (result.residual <= 0.3).all()
        for row, taken in enumerate(result.n_active.tolist()):
            assert result.indices[row, :taken].equal(full.indices[row, :taken])
            assert omp(targets[row : row + 1], atoms, taken - 1).residual > 0.3

    def test_rows_stop_independently(self):
        atoms = torch.eye(4)
        targets = torch.tensor([[1.0, 0.0, 0.0, 0.0], [4.0, 3.0, 2.0, 1.0]])
        assert omp(targets, atoms, 4, tolerance=0.01).n_active.tolist() == [1, 4]

    def test_it_is_relative_to_the_target(self):
        atoms, targets = random(1, 60, 16), random(2, 4, 16)
        small = omp(targets * 1e-3, atoms, 16, tolerance=0.2)
        assert small.indices.equal(omp(targets, atoms, 16, tolerance=0.2).indices)


class TestBatches:
    @pytest.mark.parametrize("batch_size", [1, 3, 16, 512])
    def test_the_result_does_not_depend_on_the_batch_size(self, batch_size):
        atoms, targets = random(1, 501, 48), random(2, 40, 48)
        whole = omp(targets, atoms, 12, tolerance=0.3, batch_size=40)
        split = omp(targets, atoms, 12, tolerance=0.3, batch_size=batch_size)
        assert split.indices.equal(whole.indices)
        torch.testing.assert_close(split.coefs, whole.coefs, rtol=1e-6, atol=1e-6)

    def test_the_result_does_not_depend_on_the_order_of_the_targets(self):
        atoms, targets = random(1, 100, 24), random(2, 12, 24)
        assert omp(targets.flip(0), atoms, 6).indices.flip(0).equal(omp(targets, atoms, 6).indices)

    def test_progress_adds_up_to_all_targets(self):
        finished = []
        omp(random(2, 10, 6), random(1, 20, 6), 2, batch_size=4, advance=finished.append)
        assert finished == [4, 4, 2]

    def test_inputs_are_left_as_they_were(self):
        atoms, targets = random(1, 20, 6), random(2, 10, 6)
        omp(targets, atoms, 4, normalize_atoms=False)
        assert atoms.equal(random(1, 20, 6))
        assert targets.equal(random(2, 10, 6))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_any_floating_dtype_is_read(self, dtype):
        atoms, targets = random(1, 20, 6).to(dtype), random(2, 3, 6).to(dtype)
        result = omp(targets, atoms, 4)
        assert result.coefs.dtype is torch.float32
        assert result.indices.equal(omp(targets.float(), atoms.float(), 4).indices)


class TestErrors:
    @pytest.mark.parametrize(("targets", "atoms"), [((2, 3), (5, 4)), ((3,), (5, 3)), ((2, 3), (5, 3, 1))])
    def test_shapes_that_do_not_fit_are_named(self, targets, atoms):
        with pytest.raises(ValueError, match=r"atoms \(.*\) need (one dimension D|two dimensions)"):
            omp(torch.zeros(targets), torch.zeros(atoms), 2)

    def test_a_negative_k_is_refused(self):
        with pytest.raises(ValueError, match="k is -1, expected 0 or more"):
            omp(torch.zeros(1, 2), torch.zeros(3, 2), -1)


class TestProof:
    """Exact mode may look for atoms in bfloat16; what it takes is proven to be what float32 takes."""

    def test_products_in_bfloat16_take_the_atoms_that_float32_takes(self):
        atoms, targets = random(1, 3000, 96), random(2, 200, 96)
        coarse = Dictionary.prepare(atoms, coarse_dtype=torch.bfloat16)
        result = solver.omp(targets, coarse, 20)
        assert result.indices.equal(solver.omp(targets, coarse.with_float32_products(), 20).indices)
        assert result.proven.equal(result.n_active)

    def test_a_shortlist_that_proves_nothing_is_not_trusted(self):
        # Atoms closer together than bfloat16 can tell: any 16 of them may fill the shortlist.
        atoms = random(1, 1, 64) + 1e-3 * random(2, 500, 64)
        targets = atoms[torch.arange(7, 500, 50)] + 1e-3 * random(3, 10, 64)
        coarse = Dictionary.prepare(atoms, coarse_dtype=torch.bfloat16)
        _, doubtful = solver._pursue(solver._pad(targets), coarse, 3, 0.0)
        assert doubtful.any()
        result = solver.omp(targets, coarse, 3)
        assert result.indices.equal(solver.omp(targets, coarse.with_float32_products(), 3).indices)

    def test_finished_rows_are_not_in_doubt(self):
        coarse = Dictionary.prepare(random(1, 300, 32), coarse_dtype=torch.bfloat16)
        _, doubtful = solver._pursue(torch.zeros(64, 32), coarse, 3, 0.0)
        assert not doubtful.any()


class TestScreened:
    @pytest.mark.parametrize("normalize", [True, False])
    def test_it_leaves_hardly_more_than_exact(self, normalize):
        atoms, targets = random(1, 4000, 128), random(2, 100, 128)
        exact = omp(targets, atoms, 24, normalize)
        screened = omp(targets, atoms, 24, normalize, mode="screened")
        # Random atoms are harder than a model's rows, where scripts/bench_omp.py sees half a percent.
        assert screened.residual.mean() < 1.04 * exact.residual.mean()
        assert screened.n_active.equal(exact.n_active)

    def test_it_is_exact_when_every_atom_is_on_the_shortlist(self, product_dtype):
        atoms, targets = random(1, 60, 32), random(2, 20, 32)
        exact, screened = omp(targets, atoms, 12), omp(targets, atoms, 12, mode="screened")
        assert screened.proven.equal(screened.n_active)
        if product_dtype is torch.float32:
            assert screened.indices.equal(exact.indices)
            torch.testing.assert_close(screened.coefs, exact.coefs, rtol=1e-5, atol=1e-6)
        else:
            # Atoms as good as each other up to bfloat16 may change places.
            assert screened.residual.mean() < 1.01 * exact.residual.mean()

    def test_the_first_atom_after_a_product_is_proven_and_later_ones_seldom_are(self):
        result = omp(random(2, 100, 128), random(1, 4000, 128), 24, mode="screened")
        products = len(list(solver._stages(24)))
        assert (result.proven >= products - 1).all()
        assert (result.proven < result.n_active).all()

    def test_coefficients_are_a_least_squares_fit(self):
        atoms, targets = random(1, 500, 48), random(2, 20, 48)
        result = omp(targets, atoms, 16, mode="screened")
        left = targets.double() - rebuild(result, atoms)
        assert (atoms.double()[result.indices] @ left[:, :, None]).abs().max() < 1e-4

    def test_a_sparse_combination_is_found_again(self):
        atoms = random(3, 400, 64)
        support = torch.tensor([[5, 40, 99], [119, 0, 61]])
        targets = unit(atoms)[support].sum(dim=1)
        result = omp(targets, atoms, 10, mode="screened", tolerance=1e-3)
        assert [sorted(row[:3]) for row in result.indices.tolist()] == [[5, 40, 99], [0, 61, 119]]
        # A row looks at its true residual at every product, so it may take a few atoms that it does not need.
        assert result.n_active.max() <= 5
        assert result.coefs[:, 3:].abs().max() < 1e-5

    def test_no_atom_is_taken_twice_and_equal_atoms_count_as_one(self):
        once = random(8, 100, 24)
        result = omp(random(9, 30, 24), torch.cat([once, once]), 20, mode="screened")
        for row in result.indices.tolist():
            taken = [index for index in row if index >= 0]
            assert len(set(taken)) == len(taken) == 20
            assert max(taken) < 100

    def test_it_takes_no_more_atoms_than_the_rank(self):
        atoms = random(1, 30, 4) @ random(2, 4, 10)
        result = omp(random(3, 6, 10), atoms, 10, mode="screened")
        assert result.n_active.tolist() == [4] * 6
        assert torch.isfinite(result.coefs).all()

    def test_zero_targets_zero_atoms_and_k_0(self):
        assert omp(torch.zeros(2, 6), random(1, 9, 6), 3, mode="screened").n_active.tolist() == [0, 0]
        assert omp(random(1, 2, 6), torch.zeros(5, 6), 3, mode="screened").residual.tolist() == [1, 1]
        assert omp(random(1, 2, 6), random(2, 9, 6), 0, mode="screened").indices.shape == (2, 0)


class TestReproducibility:
    """Batches, threads and neighbours change no bit."""

    @pytest.mark.parametrize("mode", ["exact", "screened"])
    def test_no_bit_depends_on_batches_or_threads(self, mode):
        atoms, targets = random(1, 2000, 96), random(2, 70, 96)
        threads = torch.get_num_threads()
        results = []
        try:
            for batch_size, count in ((70, threads), (64, 1), (7, 1), (33, 2), (70, 2)):
                torch.set_num_threads(count)
                results.append(omp(targets, atoms, 8, mode=mode, batch_size=batch_size))
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            for name in ("indices", "coefs", "residual", "n_active", "proven"):
                assert getattr(other, name).equal(getattr(results[0], name)), name

    @pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
    def test_a_batch_that_does_not_fit_into_memory_is_halved(self, error, monkeypatch):
        atoms, targets = random(1, 300, 32), random(2, 400, 32)
        whole, solve, sizes = omp(targets, atoms, 8, batch_size=400), solver._solve, []

        def solve_little(batch, *rest):
            sizes.append(len(batch))
            if len(batch) > 100:
                raise error("no room")
            return solve(batch, *rest)

        monkeypatch.setattr(solver, "_solve", solve_little)
        done = []
        halved = omp(targets, atoms, 8, batch_size=400, advance=done.append)
        assert sizes == [400, 200, 100, 100, 100, 100]
        assert done == [100] * 4
        assert halved.coefs.equal(whole.coefs)

    def test_when_the_smallest_batch_does_not_fit_the_error_stands(self, monkeypatch):
        def fail(*_):
            raise torch.OutOfMemoryError("no room")

        monkeypatch.setattr(solver, "_solve", fail)
        with pytest.raises(torch.OutOfMemoryError):
            omp(random(1, 200, 8), random(2, 30, 8), 2)

    def test_another_error_is_no_reason_to_halve(self, monkeypatch):
        def fail(*_):
            raise RuntimeError("a bug")

        monkeypatch.setattr(solver, "_solve", fail)
        with pytest.raises(RuntimeError, match="a bug"):
            omp(random(1, 200, 8), random(2, 30, 8), 2)


def test_memory_of_a_target_grows_with_atoms_width_and_k():
    whole = solver.bytes_per_target(46_000, 640, 64)
    assert whole > solver.bytes_per_target(40_000, 640, 64)
    assert whole > solver.bytes_per_target(46_000, 512, 64)
    assert whole > solver.bytes_per_target(46_000, 640, 32)
    assert solver.bytes_per_target(10, 640, 64) == solver.bytes_per_target(10, 640, 10)
