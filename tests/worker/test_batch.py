import torch

from pagestream.worker.engine.batch import Batch, StepShape
from pagestream.worker.engine.plan import Plan, Work
from pagestream.worker.engine.request import Request
from pagestream.worker.messages import Sampling


def batch() -> Batch:
    return Batch(
        max_running=4,
        max_step_tokens=64,
        max_model_tokens=64,
        block_tokens=16,
        device=torch.device("cpu"),
    )


def request(name, prompt, row, blocks) -> Request:
    made = Request(name, prompt, Sampling())
    made.row, made.blocks = row, blocks
    return made


def staged(made: Batch, plan: Plan, shape: StepShape | None = None):
    """The inputs of a step, padded to `shape` if that is larger."""
    shape = shape or StepShape.of(plan)
    made.stage(plan, shape)
    return made.inputs(shape)


def test_a_mixed_step_becomes_tensors():
    made = batch()
    decode, prefill = request("d", [7] * 20, 2, [5, 3]), request("p", list(range(40)), 0, [9, 1, 4])
    plan = Plan(
        decodes=[Work(decode, 2, 20, 1, True)],
        prefills=[Work(prefill, 0, 16, 3, False)],
        admitted=[decode, prefill],
    )
    assert made.admit(plan.admitted).tolist() == [2, 0]
    made.keep_drawn(torch.tensor([2], dtype=torch.int32), torch.tensor([77], dtype=torch.int32))
    assert StepShape.of(plan) == StepShape(2, 4, True, 1, 21)
    inputs = staged(made, plan)
    assert inputs.input_ids.tolist() == [77, 16, 17, 18]
    assert inputs.positions.tolist() == [20, 16, 17, 18]
    assert inputs.slot_mapping.tolist() == [3 * 16 + 4, 16, 17, 18]
    assert inputs.cu_q.tolist() == [0, 1, 4]
    assert inputs.kv_lens.tolist() == [21, 19]
    assert inputs.rows.tolist() == [2, 0]
    assert inputs.prompt_lens[[2, 0]].tolist() == [20, 40]
    assert inputs.decode_lens.tolist() == [21, 0]
    assert inputs.prefill_cu_q.tolist() == [1, 1, 4]
    assert (inputs.has_decodes, inputs.max_prefills, inputs.max_kv_len) == (True, 1, 21)


def test_a_mixed_step_in_a_larger_shape_pads_with_nobody():
    made = batch()
    decode, prefill = request("d", [7] * 20, 2, [5, 3]), request("p", list(range(40)), 0, [9, 1, 4])
    made.admit([decode, prefill])
    plan = Plan(
        decodes=[Work(decode, 2, 20, 1, True)],
        prefills=[Work(prefill, 0, 16, 3, False)],
    )
    inputs = staged(made, plan, StepShape(4, 8, True, 3, 64))
    assert inputs.input_ids.tolist() == [0, 16, 17, 18, 0, 0, 0, 0]
    assert inputs.slot_mapping.tolist() == [3 * 16 + 4, 16, 17, 18, 0, 0, 0, 0]
    assert inputs.rows.tolist() == [2, 0, 4, 4]
    assert inputs.cu_q.tolist() == [0, 1, 4, 4, 4]
    assert inputs.prefill_cu_q.tolist() == [1, 1, 4, 4, 4]
    assert inputs.decode_lens.tolist() == [21, 0, 0, 0]


def test_blocks_given_out_later_reach_the_table():
    made = batch()
    grown = request("r", [1] * 16, 1, [6])
    made.admit([grown])
    staged(made, Plan(prefills=[Work(grown, 1, 0, 16, True)]))
    grown.blocks.append(8)
    for start in (16, 17):
        inputs = staged(made, Plan(decodes=[Work(grown, 1, start, 1, True)]))
        assert inputs.slot_mapping.tolist() == [8 * 16 + start - 16]
        assert inputs.block_table[1].tolist() == [6, 8, 0, 0]


def test_a_row_taken_over_forgets_its_former_blocks():
    made = batch()
    first = request("a", [1] * 40, 1, [6, 7, 8])
    made.admit([first])
    staged(made, Plan(prefills=[Work(first, 1, 0, 40, True)]))
    second = request("b", [1] * 4, 1, [2])
    made.admit([second])
    inputs = staged(made, Plan(prefills=[Work(second, 1, 0, 4, True)]))
    assert inputs.slot_mapping.tolist() == [32, 33, 34, 35]


def test_decodes_of_nobody_write_to_the_padding_block():
    made = batch()
    real = request("r", [1] * 16, 1, [6, 7])
    made.admit([real])
    plan = Plan(decodes=[Work(real, 1, 16, 1, True)])
    inputs = staged(made, plan, StepShape(4, 4, True, 0, 64))
    assert inputs.slot_mapping.tolist() == [7 * 16, 0, 0, 0]
    assert inputs.decode_lens.tolist() == [17, 0, 0, 0]


def test_the_largest_prefill_of_nobody_fits_the_tables():
    made = batch()
    shape = made.stage_prefill_of_nobody(64)
    assert (shape.num_seqs, shape.num_tokens) == (1, 64)
    assert made.inputs(shape).slot_mapping.max() < 16
