"""A plan in parts is the same plan."""

import random

import pytest

from pagestream.worker.engine.plan import Plan, Work
from pagestream.worker.engine.request import Request
from pagestream.worker.messages import Sampling


def work(name: str, row: int, start: int, num_tokens: int, draws: bool) -> Work:
    request = Request(name, [5] * (start + num_tokens), Sampling(max_tokens=9))
    return Work(request, row, start, num_tokens, draws)


def plan_of(decodes: int, prefills: list[int]) -> Plan:
    plan = Plan(
        [work(f"d{n}", n, 40 - n, 1, True) for n in range(decodes)],
        [
            work(f"p{n}", decodes + n, 16 * n, num_tokens, n % 2 == 0)
            for n, num_tokens in enumerate(prefills)
        ],
    )
    plan.admitted.append(plan.prefills[-1].request if prefills else plan.decodes[-1].request)
    return plan


def parts_of(plan: Plan, num_tokens: int) -> list[Plan]:
    parts = []
    while len(plan):
        part, plan = plan.cut(num_tokens)
        parts.append(part)
    return parts


def pieces(plan: Plan) -> list[tuple[int, int, bool]]:
    return [(work.start, work.num_tokens, work.draws) for work in plan.prefills]


def test_a_plan_that_fits_is_not_cut():
    plan = plan_of(3, [5, 7])
    part, rest = plan.cut(plan.num_tokens)
    assert part is plan
    assert not len(rest)


def test_a_prefill_is_cut_where_the_part_is_full():
    part, rest = plan_of(2, [4, 10, 3]).cut(9)
    cut, last = rest.prefills
    assert part.num_tokens == 9
    assert pieces(part) == [(0, 4, True), (16, 3, False)]
    assert pieces(rest) == [(19, 7, False), (32, 3, True)]
    assert cut.request is part.prefills[1].request
    assert cut.row == part.prefills[1].row
    assert last.request.request_id == "p2"


@pytest.mark.parametrize("seed", range(20))
def test_parts_hold_every_token_once_and_in_order(seed):
    rng = random.Random(seed)
    prefills = [rng.randrange(1, 40) for _ in range(rng.randrange(4))]
    plan = plan_of(rng.randrange(1, 9), prefills)
    most = rng.randrange(1, 30)
    parts = parts_of(plan, most)
    assert all(0 < part.num_tokens <= most for part in parts)
    tokens = [
        (w.request.request_id, w.row, w.start + n)
        for part in parts
        for w in part
        for n in range(w.num_tokens)
    ]
    whole = [(w.request.request_id, w.row, w.start + n) for w in plan for n in range(w.num_tokens)]
    assert tokens == whole
    drawn = [w.request.request_id for part in parts for w in part if w.draws]
    assert drawn == [w.request.request_id for w in plan if w.draws]
    assert [part.admitted for part in parts] == [plan.admitted] + [[]] * (len(parts) - 1)
