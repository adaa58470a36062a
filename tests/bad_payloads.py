"""Payloads that must end in an error: name -> (bytes, error code, a word of the message)."""

from typing import Any

import msgspec

CONTEXT = 64
VOCAB = 270


def pack(**fields: Any) -> bytes:
    return msgspec.msgpack.encode({"v": 1, **fields})


def sampling(**fields: Any) -> bytes:
    return pack(prompt="a", sampling=fields)


def chat(**message: Any) -> bytes:
    return pack(messages=[message])


_UNREADABLE = {
    "not msgpack": b"\xc1\x00",
    "truncated": pack(prompt="hello")[:-2],
    "a list": msgspec.msgpack.encode([1]),
    "not JSON": b'{"v": 1, "prompt": ',
    "deep JSON": b'{"v":1,"messages":' + b"[" * 100_000,
    "no version": msgspec.msgpack.encode({"prompt": "a"}),
    "prompt of a wrong type": pack(prompt=7),
    "invalid UTF-8": b"\x82\xa1v\x01\xa6prompt\xa2\xff\xfe",
    "invalid UTF-8 JSON": b'{"v":1,"prompt":"\xff"}',
    "lone surrogate bytes": b"\x82\xa1v\x01\xa6prompt\xa3\xed\xa0\x80",
    "lone surrogate JSON": b'{"v":1,"prompt":"a\\ud800b"}',
    "lone surrogate in a chat": b'{"v":1,"messages":[{"role":"user","content":"\\udfff"}]}',
}

_INVALID = {
    "no prompt": (pack(), "exactly one"),
    "two prompts": (pack(prompt="a", prompt_ids=[1]), "exactly one"),
    "empty prompt": (pack(prompt=""), "empty"),
    "no ids": (pack(prompt_ids=[]), "empty"),
    "no messages": (pack(messages=[]), "empty"),
    "long prompt": (pack(prompt="a" * CONTEXT), "context"),
    "prompt fills the context": (pack(prompt_ids=[1] * CONTEXT), "context"),
    "id too high": (pack(prompt_ids=[1, VOCAB]), f"{VOCAB}"),
    "id negative": (pack(prompt_ids=[-1]), "-1"),
    "id huge": (pack(prompt_ids=[2**64 - 1]), "prompt_ids"),
    "message without a role": (chat(content="a"), "role"),
    "image in a chat": (chat(role="user", content=[{"type": "image_url"}]), "image_url"),
    "template error": (chat(role="forbidden", content="a"), "role forbidden"),
    "unknown parameter": (sampling(temprature=1), "temprature"),
    "temperature": (sampling(temperature=3.0), "temperature"),
    "temperature NaN": (sampling(temperature=float("nan")), "temperature"),
    "top_p": (sampling(top_p=0.0), "top_p"),
    "min_p": (sampling(min_p=-0.1), "min_p"),
    "top_k": (sampling(top_k=-1), "top_k"),
    "max_tokens 0": (sampling(max_tokens=0), "max_tokens"),
    "max_tokens negative": (sampling(max_tokens=-5), "max_tokens"),
    "min above max": (sampling(max_tokens=2, min_tokens=3), "min_tokens"),
    "seed": (sampling(seed=-1), "seed"),
    "10k stop strings": (sampling(stop=["x"] * 10_000), "stop"),
    "empty stop string": (sampling(stop=[""]), "stop"),
    "stop id too high": (sampling(stop_token_ids=[VOCAB]), "stop_token_ids"),
}

BAD = {
    **{name: (data, "invalid_request", "cannot be read") for name, data in _UNREADABLE.items()},
    **{name: (data, "invalid_request", word) for name, (data, word) in _INVALID.items()},
    "next version": (msgspec.msgpack.encode({"v": 2}), "unsupported_version", "v=2"),
    "other model": (pack(prompt="a", model="gpt"), "unknown_model", "'gpt'"),
    "not built yet": (sampling(n=2), "unsupported_parameter", "n=2"),
}
