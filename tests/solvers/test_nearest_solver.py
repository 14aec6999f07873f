"""Every back end finds the nearest atoms, the same ones, and says how near they are."""

from __future__ import annotations

import faiss
import pytest
import torch
from torch.nn.functional import normalize

from tokensurgeon.solvers.nearest import FaissFlat, FaissIvf, TorchNearest, build_index

EXACT = [TorchNearest, FaissFlat]
ALL = [*EXACT, FaissIvf]
SIMILARITIES = ["cosine", "dot"]
exact = pytest.mark.parametrize("back_end", EXACT)
every = pytest.mark.parametrize("back_end", ALL)
similarly = pytest.mark.parametrize("similarity", SIMILARITIES)


def random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def clustered(seed, count, width):
    """Rows in tight groups, as embeddings of rare tokens are: most similarities differ by rounding only."""
    centres = random(seed, 12, width)
    return centres[torch.arange(count) % 12] * (1 + 1e-7 * random(seed + 1, count, width))


def reference(queries, atoms, k, similarity):
    """All similarities in float64, rounded once and sorted: indices, similarities."""
    queries, atoms = queries.double(), atoms.double()
    if similarity == "cosine":
        queries, atoms = normalize(queries, dim=1), normalize(atoms, dim=1)
    values, indices = (queries @ atoms.T).float().sort(dim=1, descending=True, stable=True)
    return indices[:, :k], values[:, :k]


def same(one, other):
    return one.indices.equal(other.indices) and one.similarities.equal(other.similarities)


class TestAgreement:
    @exact
    @similarly
    @pytest.mark.parametrize("k", [1, 5, 64])
    @pytest.mark.parametrize("rows", [random, clustered])
    def test_the_nearest_are_those_of_brute_force(self, back_end, similarity, k, rows):
        atoms = rows(1, 3000, 48) * torch.linspace(0.2, 3, 3000)[:, None]
        queries = torch.cat([rows(1, 30, 48), random(3, 60, 48)])
        found = back_end(atoms, similarity=similarity).search(queries, k)
        indices, similarities = reference(queries, atoms, k, similarity)
        assert found.indices.equal(indices)
        torch.testing.assert_close(found.similarities, similarities, rtol=1e-6, atol=1e-7)

    @similarly
    @pytest.mark.parametrize("rows", [random, clustered])
    def test_back_ends_give_the_same_numbers(self, similarity, rows):
        atoms, queries = rows(1, 2000, 40), torch.cat([rows(1, 30, 40), random(3, 30, 40)])
        one, other = (back_end(atoms, similarity=similarity).search(queries, 20) for back_end in EXACT)
        assert same(one, other)

    @every
    @similarly
    def test_similarities_are_those_of_the_atoms_found(self, back_end, similarity):
        atoms, queries = random(1, 2000, 40), random(2, 30, 40)
        found = back_end(atoms, similarity=similarity).search(queries, 7)
        full = reference(queries, atoms, 2000, similarity)
        values = torch.empty(30, 2000).scatter_(1, *full)
        torch.testing.assert_close(found.similarities, values.gather(1, found.indices), rtol=1e-6, atol=1e-7)
        assert (found.similarities.diff(dim=1) <= 0).all()

    @every
    def test_an_atom_is_its_own_nearest_at_cosine_1(self, back_end):
        atoms = random(1, 500, 24)
        found = back_end(atoms).search(3.7 * atoms, 1)
        assert found.indices[:, 0].equal(torch.arange(500))
        torch.testing.assert_close(found.similarities, torch.ones(500, 1))

    def test_cosine_goes_by_angle_and_dot_by_length(self):
        atoms = torch.tensor([[10.0, 10.0], [1.0, 0.0]])
        query = torch.tensor([[1.0, 0.1]])
        assert TorchNearest(atoms).search(query, 1).indices.tolist() == [[1]]
        assert TorchNearest(atoms, similarity="dot").search(query, 1).indices.tolist() == [[0]]


class TestTies:
    @exact
    @similarly
    def test_of_equal_atoms_the_lowest_go_first(self, back_end, similarity):
        # More copies than a search for 5 would propose at first.
        atoms = random(1, 10, 32).repeat(50, 1)
        found = back_end(atoms, similarity=similarity).search(atoms[:10], 5)
        assert found.indices.tolist() == [[row, row + 10, row + 20, row + 30, row + 40] for row in range(10)]

    @exact
    def test_scaled_copies_have_one_cosine(self, back_end):
        # Whole numbers, so that the copies are parallel to the last digit.
        atoms = random(1, 1, 32).mul(100).round() * torch.arange(40, 0, -1)[:, None]
        found = back_end(atoms).search(random(2, 8, 32), 12)
        assert found.indices.tolist() == [list(range(12))] * 8

    @exact
    def test_a_zero_atom_has_cosine_0(self, back_end):
        atoms = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
        found = back_end(atoms).search(torch.tensor([[2.0, 0.0]]), 4)
        assert found.indices.tolist() == [[2, 1, 3, 0]]
        assert found.similarities.tolist() == [[1, 0, 0, -1]]

    @every
    @similarly
    def test_to_a_zero_query_everything_is_0(self, back_end, similarity):
        found = back_end(random(1, 300, 16), similarity=similarity).search(torch.zeros(2, 16), 3)
        assert found.indices.tolist() == [[0, 1, 2]] * 2
        assert found.similarities.tolist() == [[0, 0, 0]] * 2


class TestSplits:
    @exact
    @pytest.mark.parametrize("size", [1, 3, 64, 100])
    @pytest.mark.parametrize("rows", [random, clustered])
    def test_the_result_does_not_depend_on_the_split_of_the_queries(self, back_end, size, rows):
        index, queries = back_end(rows(1, 1001, 37)), rows(1, 200, 37)
        whole = index.search(queries, 6)
        parts = [index.search(part, 6) for part in queries.split(size)]
        assert torch.cat([part.indices for part in parts]).equal(whole.indices)
        assert torch.cat([part.similarities for part in parts]).equal(whole.similarities)

    @pytest.mark.parametrize("memory", [1, 30_000, 10**9])
    def test_nor_on_the_memory(self, memory):
        atoms, queries = random(1, 1001, 37), random(2, 50, 37)
        assert same(
            TorchNearest(atoms, memory=memory).search(queries, 6), TorchNearest(atoms).search(queries, 6)
        )

    @exact
    def test_fewer_neighbours_are_the_first_of_more(self, back_end):
        index, queries = back_end(random(1, 800, 24)), random(2, 40, 24)
        assert index.search(queries, 3).indices.equal(index.search(queries, 30).indices[:, :3])

    @exact
    def test_inputs_are_left_as_they_were(self, back_end):
        atoms, queries = random(1, 100, 8), random(2, 10, 8)
        back_end(atoms).search(queries, 3)
        assert atoms.equal(random(1, 100, 8))
        assert queries.equal(random(2, 10, 8))

    @exact
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_any_floating_dtype_is_read(self, back_end, dtype):
        atoms, queries = random(1, 300, 16).to(dtype), random(2, 20, 16).to(dtype)
        found = back_end(atoms).search(queries, 4)
        assert found.similarities.dtype is torch.float32
        assert found.indices.equal(reference(queries, atoms, 4, "cosine")[0])

    @exact
    @similarly
    @pytest.mark.parametrize("scale", [1e-15, 1e15])
    def test_tiny_and_huge_rows_are_ranked_as_others(self, back_end, similarity, scale):
        atoms, queries = random(1, 300, 16), random(2, 20, 16)
        found = back_end(atoms * scale, similarity=similarity).search(queries, 4)
        assert found.indices.equal(reference(queries, atoms, 4, similarity)[0])


class TestEdges:
    @every
    def test_k_is_cut_to_the_number_of_atoms(self, back_end):
        atoms, queries = random(1, 5, 8), random(2, 3, 8)
        found = back_end(atoms).search(queries, 64)
        assert found.indices.equal(reference(queries, atoms, 5, "cosine")[0])

    @every
    @pytest.mark.parametrize(("atoms", "queries", "k"), [(0, 3, 2), (5, 0, 2), (5, 3, 0), (0, 0, 0)])
    def test_without_atoms_queries_or_neighbours_the_result_is_empty(self, back_end, atoms, queries, k):
        found = back_end(random(1, atoms, 8)).search(random(2, queries, 8), k)
        assert found.indices.shape == found.similarities.shape == (queries, min(k, atoms))
        assert (found.indices.dtype, found.similarities.dtype) == (torch.int64, torch.float32)

    @every
    @pytest.mark.parametrize("atoms", [torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(2, 3).long()])
    def test_atoms_that_are_no_floating_matrix_are_named(self, back_end, atoms):
        with pytest.raises(ValueError, match=r"atoms are \(.*\) torch.*, expected floating \(N, D\)"):
            back_end(atoms)

    @every
    @pytest.mark.parametrize("queries", [torch.zeros(4), torch.zeros(2, 3), torch.zeros(2, 4).long()])
    def test_queries_that_do_not_fit_are_named(self, back_end, queries):
        with pytest.raises(ValueError, match=r"queries are \(.*\) torch.*, expected floating \(B, 4\)"):
            back_end(torch.zeros(5, 4)).search(queries, 1)

    @every
    def test_a_negative_k_is_refused(self, back_end):
        with pytest.raises(ValueError, match="k is -1, expected 0 or more"):
            back_end(torch.zeros(5, 4)).search(torch.zeros(2, 4), -1)


class TestLists:
    """The approximate back end."""

    @similarly
    def test_the_stated_recall_holds_for_other_queries(self, similarity):
        # Rows around centres, as embeddings of related tokens are.
        atoms = random(1, 200, 32)[torch.arange(20_000) % 200] + 0.5 * random(2, 20_000, 32)
        queries = atoms[::97] + 0.2 * random(3, 207, 32)
        index = FaissIvf(atoms, similarity=similarity)
        assert 0.95 <= index.recall <= 1
        assert index.probes < 512
        wanted = TorchNearest(atoms, similarity=similarity).search(queries, 10).indices
        found = index.search(queries, 10).indices
        assert (wanted[:, :, None] == found[:, None]).any(dim=2).float().mean() >= 0.95

    def test_a_higher_recall_looks_through_more_lists(self):
        atoms = random(1, 4000, 16)
        low, high = FaissIvf(atoms, recall=0.5), FaissIvf(atoms, recall=1.0)
        assert low.probes < high.probes
        assert 0.5 <= low.recall < high.recall == 1

    def test_the_recall_can_be_that_of_queries_to_come(self):
        atoms, queries = random(1, 4000, 16), random(2, 100, 16)
        index = FaissIvf(atoms, recall=0.9, sample=queries)
        wanted, found = TorchNearest(atoms).search(queries, 10), index.search(queries, 10)
        recall = (wanted.indices[:, :, None] == found.indices[:, None]).any(dim=2).float().mean()
        assert recall >= index.recall >= 0.9

    def test_every_query_gets_k_atoms_though_its_lists_hold_fewer(self):
        atoms = clustered(1, 4000, 16)
        found = FaissIvf(atoms, recall=0.1).search(random(2, 20, 16), 2000)
        assert found.indices.min() >= 0
        assert all(len(set(row)) == 2000 for row in found.indices.tolist())

    def test_the_seed_decides(self):
        atoms, queries = random(1, 4000, 16), random(2, 50, 16)
        one, other = (FaissIvf(atoms, recall=0.5, seed=3) for _ in range(2))
        assert (one.probes, one.recall) == (other.probes, other.recall)
        assert same(one.search(queries, 10), other.search(queries, 10))


class TestChoice:
    @pytest.mark.parametrize(
        ("backend", "kind"),
        [("auto", TorchNearest), ("torch", TorchNearest), ("faiss", FaissFlat), ("faiss-ivf", FaissIvf)],
    )
    def test_a_back_end_is_built_by_name(self, backend, kind):
        index = build_index(random(1, 50, 8), similarity="dot", backend=backend)
        assert type(index) is kind
        assert index.search(torch.ones(2, 8), 3).indices.shape == (2, 3)

    @pytest.mark.parametrize("backend", ["faiss", "faiss-ivf"])
    def test_faiss_is_refused_elsewhere_than_on_the_cpu(self, backend):
        with pytest.raises(ValueError, match=f"backend {backend} on meta: FAISS searches on the CPU only"):
            build_index(random(1, 50, 8), device="meta", backend=backend)

    @pytest.mark.parametrize("back_end", [FaissFlat, FaissIvf])
    def test_faiss_uses_as_many_threads_as_torch(self, back_end):
        threads = torch.get_num_threads()
        index = back_end(random(1, 50, 8))
        try:
            for number in (1, 2):
                torch.set_num_threads(number)
                index.search(random(2, 3, 8), 1)
                assert faiss.omp_get_max_threads() == number
        finally:
            torch.set_num_threads(threads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@similarly
def test_the_device_does_not_change_the_answer(similarity):
    atoms, queries = clustered(1, 5000, 64), torch.cat([clustered(1, 100, 64), random(2, 300, 64)])
    here = TorchNearest(atoms, similarity=similarity).search(queries, 16)
    there = build_index(atoms, similarity=similarity, device="cuda").search(queries, 16)
    assert there.indices.is_cuda
    assert here.indices.equal(there.indices.cpu())
    torch.testing.assert_close(here.similarities, there.similarities.cpu())
