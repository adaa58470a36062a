"""The tests' own server: it is real, private, and a test may crash and restart one of its own."""

import redis


def test_the_server_keeps_what_it_was_told_over_a_crash(own_server):
    server = own_server("--appendfsync", "always")
    with redis.Redis.from_url(server.url) as client:
        client.set("key", "value")
        server.kill()
        server.start()
        assert client.get("key") == b"value"


def test_the_server_is_private_and_durable(redis_client, redis_server):
    assert redis_server.socket.stat().st_mode & 0o077 == 0
    config = redis_client.config_get("append*") | redis_client.config_get("maxmemory-policy")
    assert config["appendonly"] == "yes"
    assert config["appendfsync"] == "everysec"
    assert config["maxmemory-policy"] == "noeviction"
