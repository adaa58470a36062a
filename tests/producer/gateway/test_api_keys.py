"""The file of API keys: what it may say, and what is said of one that cannot be read."""

import json

import pytest

from pagestream.producer.errors import InvalidRequest
from pagestream.producer.gateway.api_keys import ApiKey, ApiKeys


def test_a_key_has_a_tenant_and_perhaps_a_bound(tmp_path):
    file = tmp_path / "keys.json"
    file.write_text('{"sk-a": "anna", "sk-b": {"tenant": "ben", "queue_limit": 5}}')
    keys = ApiKeys.read(file)
    assert keys.of("Bearer sk-a") == ApiKey("anna")
    assert keys.of("bearer  sk-b ") == ApiKey("ben", queue_limit=5)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ([], "keys.json is not a JSON file of keys"),
        ({"sk": 1}, "keys.json"),
        ({"sk": "two words"}, "tenant 'two words'"),
        ({"sk": {"queue_limit": 1}}, "tenant"),
        ({"sk": {"tenant": "a", "queue_limit": 0}}, ">= 1"),
        ({"sk": {"tenant": "a", "requests_per_second": 3}}, "requests_per_second"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path, said, named):
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(said))
    with pytest.raises(InvalidRequest, match=named):
        ApiKeys.read(file)
