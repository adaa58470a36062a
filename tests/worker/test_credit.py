from pagestream.worker.messages import Load, Ready
from pagestream.worker.queue.credit import Credit


def ready(num_blocks: int) -> Ready:
    return Ready(
        max_model_tokens=64,
        max_running=8,
        num_blocks=num_blocks,
        block_tokens=16,
        vocab_size=10,
        device="cpu",
        weight_bytes=0,
        kv_bytes=0,
    )


def test_a_new_engine_counts_with_the_blocks_that_it_has():
    credit = Credit(ready(101))
    assert credit.of([]) == (8, 1600)
    credit.load = Load(step=7)
    credit.renew(ready(11))
    assert credit.of([]) == (8, 160)
    assert credit.engine_step == 0
