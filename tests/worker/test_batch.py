import torch

from pagestream.worker.engine.batch import Batch
from pagestream.worker.engine.request import Request
from pagestream.worker.engine.scheduler import Plan, Work
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
    shape = made.stage(plan)
    inputs = made.inputs(shape)
    assert inputs.input_ids.tolist() == [77, 16, 17, 18]
    assert inputs.positions.tolist() == [20, 16, 17, 18]
    assert inputs.slot_mapping.tolist() == [3 * 16 + 4, 16, 17, 18]
    assert inputs.cu_q.tolist() == [0, 1, 4]
    assert inputs.kv_lens.tolist() == [21, 19]
    assert inputs.rows.tolist() == [2, 0]
    assert inputs.prompt_lens[[2, 0]].tolist() == [20, 40]
    assert (inputs.num_decodes, inputs.max_q_len, inputs.max_kv_len) == (1, 3, 21)


def test_blocks_given_out_later_reach_the_table():
    made = batch()
    grown = request("r", [1] * 16, 1, [6])
    made.admit([grown])
    made.stage(Plan(prefills=[Work(grown, 1, 0, 16, True)]))
    grown.blocks.append(8)
    inputs = made.inputs(made.stage(Plan(decodes=[Work(grown, 1, 16, 1, True)])))
    assert inputs.slot_mapping.tolist() == [8 * 16]


def test_a_row_taken_over_forgets_its_former_blocks():
    made = batch()
    first = request("a", [1] * 40, 1, [6, 7, 8])
    made.admit([first])
    made.stage(Plan(prefills=[Work(first, 1, 0, 40, True)]))
    second = request("b", [1] * 4, 1, [2])
    made.admit([second])
    inputs = made.inputs(made.stage(Plan(prefills=[Work(second, 1, 0, 4, True)])))
    assert inputs.slot_mapping.tolist() == [32, 33, 34, 35]


def test_padding_sequences_write_to_the_padding_block():
    made = batch()
    real = request("r", [1] * 16, 1, [6, 7])
    made.admit([real])
    shape = made.stage(Plan(decodes=[Work(real, 1, 16, 1, True)]), pad_to=4)
    inputs = made.inputs(shape)
    assert (shape.num_seqs, shape.num_decodes, shape.num_tokens) == (4, 4, 4)
    assert inputs.slot_mapping.tolist() == [7 * 16, 0, 0, 0]
    assert inputs.kv_lens.tolist() == [17, 1, 1, 1]


def test_the_largest_prefill_of_nobody_fits_the_tables():
    made = batch()
    shape = made.stage_prefill_of_nobody(64)
    assert (shape.num_seqs, shape.num_tokens) == (1, 64)
    assert made.inputs(shape).slot_mapping.max() < 16
