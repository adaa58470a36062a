"""Whatever fits the published schema, or does not: the gateway answers, and never with a 500."""

import os

import hypothesis
import pytest
import schemathesis

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def fuzz(gateway, queue_name: str, examples: int) -> None:
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def answered(case):
            # A name that is served, so that what is behind the first check is met too.
            if isinstance(case.body, dict) and "model" in case.body:
                case.body |= {"model": queue_name, "max_tokens": 2}
            response = case.call(timeout=30)
            assert response.status_code < 500, gateway.log[-3_000:]

        answered()


def test_no_request_is_a_500(gateways, worker, queue_name):
    fuzz(gateways[0], queue_name, 12)


@pytest.mark.slow
def test_no_request_is_a_500_at_length(gateways, worker, queue_name):
    fuzz(gateways[0], queue_name, int(os.environ.get("PAGESTREAM_FUZZ_EXAMPLES", "300")))
