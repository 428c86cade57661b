"""Vectors in shards: the same bytes whoever makes them, resumed, and refused where they are not what they should be."""

import json

import numpy as np
import pyarrow as pa
import pytest

from helpers.base.errors import DataError, SettingError
from helpers.dataset import PassageIndex
from helpers.topics.shards import Shards, encode_shard, finish_shards, open_shards, shard_path, shard_rows


def make(folder, encoder, passages, count=5):
    return [encode_shard(encoder, passages, folder, number, count) for number in range(count)]


@pytest.fixture(scope="module")
def few(sample):
    return PassageIndex(sample.corpus.select(range(43)))


@pytest.fixture(scope="module")
def made(few, short_bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    assert make(folder, short_bert, few) == [True] * 5
    finish_shards(folder, 5)
    return folder


@pytest.fixture
def copy(made, tmp_path):
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_every_row_is_in_one_shard_of_equal_size():
    for passages, count in ((10, 3), (7, 7), (1000, 16), (5, 1)):
        rows = [shard_rows(number, count, passages) for number in range(count)]
        assert [row for part in rows for row in part] == list(range(passages))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
    for number, count in ((-1, 3), (3, 3), (0, 0), (0, 11)):
        with pytest.raises(SettingError, match=f"shard {number} of {count}"):
            shard_rows(number, count, 10)


def test_shards_hold_the_encoders_vectors_and_the_ids(made, few, short_bert):
    shards = open_shards(made, short_bert)
    starts, parts = zip(*shards.blocks(), strict=True)
    assert starts == (0, 8, 17, 25, 34) and {part.dtype for part in parts} == {np.dtype(np.float16)}
    whole = short_bert.search_vectors(few.texts, "passage")
    assert np.abs(np.concatenate(parts) - whole).max() < 5e-4  # float16 between 0.5 and 1
    assert list(shards.ids()) == list(few.ids) and len(shards) == 43
    assert shards.nbytes == 43 * short_bert.dimension * 2


def test_some_rows_are_read_as_float32_wherever_they_lie(made, few):
    shards = open_shards(made, passages=few)
    whole = np.concatenate([vectors for _, vectors in shards.blocks()]).astype(np.float32)
    rows = [42, 0, 7, 8, 8, 33, 34]
    assert np.array_equal(shards[rows].numpy(), whole[rows]) and shards[[]].shape == (0, whole.shape[1])
    assert np.array_equal(shards[np.array([16, 17])].numpy(), whole[16:18])


def test_shards_of_other_passages_are_refused(made, sample):
    one_other = PassageIndex(sample.corpus.select([*range(42), 100]))
    for others in (one_other, PassageIndex(sample.corpus.select(range(44))), PassageIndex(sample.corpus.select([0]))):
        with pytest.raises(DataError, match="is of other passages; encode again"):
            open_shards(made, passages=others)


def test_only_what_is_missing_is_made_and_with_the_same_bytes(copy, few, short_bert):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    shard_path(copy, 3, 5).unlink()
    (copy / f".{shard_path(copy, 1, 5).name}.999999.tmp").write_bytes(b"left by a process that was killed")
    with pytest.raises(DataError, match=r"1 of 5 shards are missing, first 3; start the encoding again"):
        finish_shards(copy, 5)
    assert make(copy, short_bert, few) == [False, False, False, True, False]
    finish_shards(copy, 5)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_other_texts_another_encoder_or_precision_are_refused(copy, few, short_bert, sample, own_bert):
    with pytest.raises(DataError, match="has encoder"):
        next(own_bert.parameters()).data.add_(1)
        encode_shard(own_bert, few, copy, 0, 5)
    with pytest.raises(DataError, match="made by encoder"):
        open_shards(copy, own_bert)
    others = PassageIndex(sample.corpus.select([*range(42), 100]))
    assert not encode_shard(short_bert, others, copy, 0, 5)  # its own texts are the same
    with pytest.raises(DataError, match="has texts"):
        encode_shard(short_bert, others, copy, 4, 5)
    short_bert.precision = "bf16"
    try:
        with pytest.raises(DataError, match="has precision 'fp32', here 'bf16'"):
            encode_shard(short_bert, few, copy, 0, 5)
    finally:
        short_bert.precision = "fp32"


def test_damage_is_found(copy, few, short_bert):
    path = shard_path(copy, 2, 5)
    whole = path.read_bytes()
    at = whole.index(
        np.ascontiguousarray(next(v for s, v in Shards(copy, _entries(copy)).blocks() if s == 17)).tobytes()
    )
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(DataError, match="is damaged; delete it"):
        finish_shards(copy, 5)
    for broken in (b"", whole[: len(whole) // 2], b"nonsense" * 100):
        path.write_bytes(broken)
        for use in (lambda: open_shards(copy), lambda: encode_shard(short_bert, few, copy, 2, 5)):
            with pytest.raises(DataError, match="is damaged; delete it"):
                use()


def _entries(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["shards"]


def test_unfinished_folders_and_exchanged_shards_are_not_opened(copy):
    path = shard_path(copy, 2, 5)
    other = shard_path(copy, 1, 5).read_bytes()
    path.write_bytes(other)
    with pytest.raises(DataError, match="is not the one that was checked"):
        open_shards(copy)
    with pytest.raises(DataError, match=r"holds rows \[8, 17\], but 17 comes next"):
        finish_shards(copy, 5)
    (copy / "manifest.json").unlink()
    with pytest.raises(DataError, match="it is not finished"):
        open_shards(copy)


def test_an_id_that_is_there_twice_is_found(tmp_path, few, short_bert):
    twice = PassageIndex(few.corpus.select([0, 1, 2, 3, 0]))
    make(tmp_path, short_bert, twice, 2)
    with pytest.raises(DataError, match="an id is there twice"):
        finish_shards(tmp_path, 2)


def test_vectors_that_float16_cannot_hold_and_full_disks_leave_nothing(tmp_path, few, short_bert, own_bert, full_disk):
    own_bert.model.embeddings.LayerNorm.weight.data[0] = float("nan")
    with pytest.raises(DataError, match="is not finite in float16"):
        encode_shard(own_bert, few, tmp_path, 0, 5)
    with full_disk(1000), pytest.raises(DataError, match="free some space"):
        encode_shard(short_bert, few, tmp_path, 0, 5)
    assert list(tmp_path.iterdir()) == []


def test_any_tool_reads_a_shard(made):
    table = pa.ipc.open_file(str(shard_path(made, 0, 5))).read_all()
    assert table.column_names == ["_id", "vector"] and table.schema.field("vector").type.value_type == pa.float16()
