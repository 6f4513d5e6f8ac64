"""The versions of program and protocol, and what is said where two sides do not speak the same protocol."""

import re

import pytest

from flexlora_shared.versions import PROTOCOL, disagreement, version, version_headers, version_line


def said(**headers: str) -> str | None:
    return disagreement(
        {f"FlexLoRA-{name}": value for name, value in headers.items()}, "the client", "this coordinator"
    )


def test_the_programs_version_is_the_packages() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", version())
    assert version_line("flexlora-server") == f"flexlora-server {version()} (protocol {PROTOCOL})"


def test_who_speaks_the_same_protocol_or_says_nothing_agrees() -> None:
    assert disagreement(version_headers(), "they", "we") is None
    assert said(Protocol=str(PROTOCOL), Version="99") is None
    assert said() is None
    assert said(Version="99") is None


@pytest.mark.parametrize(
    ("told", "older"),
    [
        (str(PROTOCOL + 1), "this coordinator"),
        (str(PROTOCOL - 1), "the client"),
        ("9" * 5000, "this coordinator"),
        ("1.5", "the older of the two"),
        ("", "the older of the two"),
        ("²", "the older of the two"),
    ],
)
def test_the_older_side_is_to_be_updated(told: str, older: str) -> None:
    sentence = said(Protocol=told, Version="7.0.0")
    assert sentence is not None
    assert sentence.startswith(f"the client (FlexLoRA 7.0.0) speaks protocol {told[:40]}, this coordinator (FlexLoRA ")
    assert sentence.endswith(f") speaks protocol {PROTOCOL}; update {older}")


def test_what_the_other_side_says_is_shown_short_and_on_one_line() -> None:
    sentence = said(Protocol="x" * 1000, Version="a\x1b[2J\nb" + "y" * 1000)
    assert sentence is not None
    assert sentence.isprintable()
    assert len(sentence) < 250
