import json
from pathlib import Path

import pytest

from pagestream.worker.bench.datasets import (
    BadDataset,
    Dataset,
    Sample,
    check_lengths,
    fit_to_vocabulary,
    nano,
    prefix_repetition,
    random_lengths,
    share,
    small,
)


@pytest.mark.parametrize(
    ("make", "requests", "tokens_in", "tokens_out"),
    [(nano, 256, 142_827, 133_966), (share, 1000, 206_722, 192_965), (small, 64, 4962, 4618)],
)
def test_the_fixed_ones_are_exactly_these(make, requests, tokens_in, tokens_out):
    workload = make()
    assert len(workload) == requests
    assert sum(len(ids) for ids, _ in workload) == tokens_in
    assert sum(tokens for _, tokens in workload) == tokens_out


def test_a_cut_takes_the_first():
    cut = Dataset(name="nano", requests=3, max_output_tokens=200).load()
    assert cut == [Sample(ids, min(tokens, 200)) for ids, tokens in nano()[:3]]
    with pytest.raises(BadDataset, match="nano has 256 requests, not 257"):
        Dataset(name="nano", requests=257).load()


def test_random_lengths_keep_to_their_range():
    exact = random_lengths(5, 40, 20, 0.0, seed=3)
    assert {(len(ids), tokens) for ids, tokens in exact} == {(40, 20)}
    ranged = random_lengths(300, 40, 20, 0.5, seed=3)
    assert {len(ids) for ids, _ in ranged} == set(range(20, 61))
    assert {tokens for _, tokens in ranged} == set(range(10, 31))
    assert random_lengths(5, 40, 20, 0.5, 3) == random_lengths(5, 40, 20, 0.5, 3)
    assert random_lengths(5, 40, 20, 0.5, 3) != random_lengths(5, 40, 20, 0.5, 4)


def test_prefixes_repeat_in_turn_and_suffixes_do_not():
    workload = prefix_repetition(6, 2, 32, 8, 5, seed=0)
    heads = [tuple(ids[:32]) for ids, _ in workload]
    assert heads == [heads[0], heads[1]] * 3
    assert heads[0] != heads[1]
    assert len({tuple(ids[32:]) for ids, _ in workload}) == 6
    assert {(len(ids), tokens) for ids, tokens in workload} == {(40, 5)}


def test_moved_ids_share_what_they_shared_and_nothing_with_before():
    workload = prefix_repetition(4, 2, 32, 8, 5, seed=0)
    moved = fit_to_vocabulary(workload, 500, shift=3)
    assert moved[0].prompt_ids[:32] == moved[2].prompt_ids[:32]
    assert all(0 <= token_id < 500 for ids, _ in moved for token_id in ids)
    plain = fit_to_vocabulary(workload, 500)
    assert not {tuple(ids[:16]) for ids, _ in moved} & {tuple(ids[:16]) for ids, _ in plain}


def test_what_is_too_long_is_named():
    workload = [Sample([1] * 8, 8), Sample([1] * 8, 9)]
    check_lengths(workload, 17)
    with pytest.raises(BadDataset, match="request 1 has 8 tokens in and 9 out"):
        check_lengths(workload, 16)


def encode(text: str) -> list[int]:
    return [len(word) for word in text.split()]


def share_gpt_file(folder: Path, content: object) -> Path:
    path = folder / "dataset.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def turns(*lengths: int) -> dict[str, object]:
    values = [" ".join(["word"] * length) for length in lengths]
    return {"id": "x", "conversations": [{"from": "human", "value": value} for value in values]}


def test_a_share_gpt_file_gives_first_questions_and_answers_lengths(tmp_path):
    content = [
        turns(10, 20, 5),
        turns(3, 20),  # too short a question
        turns(10, 2),  # too short an answer
        turns(1025, 20),  # too long a question
        turns(1000, 1049),  # too long together
        turns(30),  # nobody answered
        {"id": "empty"},
        turns(12, 7),
    ]
    dataset = Dataset(name="sharegpt", path=share_gpt_file(tmp_path, content))
    lengths = sorted((len(ids), tokens) for ids, tokens in dataset.load(encode))
    assert lengths == [(10, 20), (12, 7)]
    one = Dataset(name="sharegpt", path=dataset.path, requests=1, seed=5)
    assert len(one.load(encode)) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{not json", "not ShareGPT's format"),
        ('{"conversations": []}', "not ShareGPT's format"),
        ([{"conversations": [{"from": "human"}]}], "value"),
        ([{"conversations": [{"value": 4}]}], r"conversations\[0\].value"),
        ("[]", "none of the 0 conversations"),
        ([turns(2, 2)], "none of the 1 conversations"),
    ],
)
def test_a_malformed_share_gpt_file_is_a_sentence(tmp_path, content, reason):
    with pytest.raises(BadDataset, match=reason):
        Dataset(name="sharegpt", path=share_gpt_file(tmp_path, content)).load(encode)


def test_what_a_dataset_lacks_is_said(tmp_path):
    with pytest.raises(BadDataset, match="cannot be read"):
        Dataset(name="sharegpt", path=tmp_path / "absent.json").load(encode)
    with pytest.raises(BadDataset, match="--dataset-path"):
        Dataset(name="sharegpt").load(encode)
    with pytest.raises(BadDataset, match="tokenizer"):
        Dataset(name="sharegpt", path=share_gpt_file(tmp_path, [turns(9, 9)])).load()
    with pytest.raises(BadDataset, match=r"no dataset 'nani'.*sharegpt .its file: --dataset-path"):
        Dataset(name="nani").load()
