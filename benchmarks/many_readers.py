"""Whether readers slow the engine down: steps of a workload with few and with many readers.

    python benchmarks/many_readers.py --model benchmarks/models/llama-3.1-8b --load-format dummy

A Redis, a worker and the readers run as processes of their own. Every reader process reads every
reply to its end, so `--readers 1 8` are 256 and 2,048 concurrent readers of `nano`. Publishing
coalesces what waits, so a busy Redis means larger entries and never a waiting engine: the step's
time says whether that holds.
"""

import argparse
import asyncio
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

from rich.console import Console

from pagestream.producer import AsyncClient, AsyncJob, SamplingParams
from pagestream.producer.request import JobSpec
from pagestream.worker.bench.datasets import WORKLOADS, Workload, fit_to_vocabulary, shift_of
from pagestream.worker.bench.serve import QUEUE, started

RETENTION_MS = 60_000


async def _tokens_of(job: AsyncJob) -> int:
    return sum([len(chunk.ids) async for chunk in job.stream()])


async def _read_all(url: str, job_ids: list[str]) -> int:
    async with AsyncClient(url, queue=QUEUE) as client:
        return sum(await asyncio.gather(*(_tokens_of(client.job(job_id)) for job_id in job_ids)))


def read_all(url: str, job_ids: list[str]) -> int:
    """Main function of a reader process: read every reply to its end; returns the tokens."""
    return asyncio.run(_read_all(url, job_ids))


async def submit(url: str, workload: Workload, name: str) -> list[str]:
    async with AsyncClient(url, queue=QUEUE) as client:
        jobs = await client.submit_many(
            JobSpec(
                prompt_ids=ids,
                id=f"{name}-{place}",
                sampling=SamplingParams(temperature=0, ignore_eos=True, max_tokens=tokens),
                retention_ms=RETENTION_MS,
            )
            for place, (ids, tokens) in enumerate(workload)
        )
    return [job.id for job in jobs if isinstance(job, AsyncJob)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--load-format", default=None)
    parser.add_argument("--max-model-len", type=int, default=None)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="nano")
    parser.add_argument("--readers", type=int, nargs="+", default=[1, 8], help="a reply")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    workload = WORKLOADS[arguments.workload]()
    flags = {
        name: getattr(arguments, name) for name in ("model", "load_format", "max_model_len")
    } | {"enable_prefix_caching": False}
    max_readers = max(arguments.readers)
    spawn = multiprocessing.get_context("spawn")
    processes = ProcessPoolExecutor(max_readers, mp_context=spawn)
    with processes, started(flags, Console(stderr=True)) as (service, _):
        service.warm_up(workload)
        workers = service.workers
        assert workers, "they were started with the Redis that can be asked"
        # Every reader process is up before the first run.
        for idle in [processes.submit(read_all, workers.url, []) for _ in range(max_readers)]:
            idle.result()
        for repeat in range(arguments.repeats):
            for readers in arguments.readers:
                samples = fit_to_vocabulary(
                    workload, service.model.vocab_size, shift_of(repeat + 1)
                )
                before = workers.load()
                begin_s = time.perf_counter()
                job_ids = asyncio.run(submit(workers.url, samples, f"r{repeat}-{readers}"))
                reading = [processes.submit(read_all, workers.url, job_ids) for _ in range(readers)]
                tokens = sum(one.result() for one in reading)
                wall_s = time.perf_counter() - begin_s
                steps = workers.load(beyond=before).step - before.step
                print(
                    f"{readers * len(job_ids):5} readers: {steps} steps, "
                    f"{wall_s / steps * 1000:.3f} ms a step, {wall_s:.2f} s, "
                    f"{tokens} tokens read, {tokens / readers / wall_s:.0f} generated a second",
                    flush=True,
                )


if __name__ == "__main__":
    main()
