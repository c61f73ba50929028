"""Tables of addresses and chunks: every element once, fast only where it may be, uploaded only when something moved."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from shaped_kernels.tables import BLOCK, BLOCKS_PER_CHUNK, AddressTable, chunk_rows


@given(st.lists(st.tuples(st.integers(0, 3000), st.booleans()), max_size=12), st.sampled_from([16, 64]))
def test_every_element_is_in_one_chunk(tensors: list[tuple[int, bool]], block: int) -> None:
    sizes, aligned = [n for n, _ in tensors], [a for _, a in tensors]
    seen = [torch.zeros(n, dtype=torch.int64) for n in sizes]
    for t, start, count, fast in chunk_rows(
        torch.tensor(sizes, dtype=torch.int64), torch.tensor(aligned, dtype=torch.bool), block
    ).tolist():
        seen[t][start : start + count] += 1
        assert count <= block * BLOCKS_PER_CHUNK
        assert start % block == 0
        assert not fast or (aligned[t] and count % block == 0)

    assert all(bool((s == 1).all()) for s in seen)


def test_offsets_beyond_32_bits_are_exact() -> None:
    n = 2**32 + 3 * BLOCK + 5
    rows = chunk_rows(torch.tensor([n]), torch.tensor([True]), BLOCK)

    assert int(rows[:, 2].sum()) == n
    assert rows[-1].tolist() == [0, n - 5, 5, 0]
    assert int(rows[:-1, 1].max()) >= 2**32
    assert bool(((rows[:, 1] >> 32) == ((rows[:, 1] + rows[:, 2] - 1) >> 32)).all())  # what the random bits rely on


def test_tables_are_made_again_only_when_something_moved() -> None:
    table = AddressTable([100, 40], torch.device("cpu"), block=16)
    p, g = [torch.zeros(100), torch.zeros(40)], [torch.zeros(100), torch.zeros(40)]
    table.point([p, g])
    addresses, chunks = table.addresses, table.chunks
    table.point([p, g])
    assert table.addresses is addresses
    table.point([p, [g[0], torch.zeros(40)]])
    assert table.addresses is not addresses
    assert table.chunks is chunks
    table.point([p, [g[0], torch.zeros(41)[1:]]])

    assert table.chunks is not chunks
    assert int(table.chunks[table.chunks[:, 0] == 1][:, 3].sum()) == 0
