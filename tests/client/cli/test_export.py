"""`export` in each form, from a real coordinator."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from flexlora_client.cli import agent_extra, export_options
from flexlora_client.errors import Exit
from flexlora_client.files import sha256_of
from tests.support.command import Result, call
from tests.support.kit import OPERATOR_KEY, Served, encode, served_on_sqlite, tensors
from tests.support.tiny_models import make_llama, make_run


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator with the run `run`, of which a round with one random update is published."""
    with served_on_sqlite(tmp_path_factory.mktemp("coordinator")) as running:
        run = running.run()
        somebody = running.enroll("somebody")
        somebody.declare("run", 8)
        somebody.upload(somebody.task("run"), encode(tensors(run, 8)))
        assert running.work() == 1
        yield running


@pytest.fixture
def operator(site: Served) -> dict[str, str]:
    return {"FLEXLORA_URL": site.url, "FLEXLORA_OPERATOR_KEY": OPERATOR_KEY}


def export(operator: dict[str, str], *more: str | Path) -> Result:
    return call("export", "run", *more, env=operator)


def test_the_portable_form_is_the_default(site: Served, operator: dict[str, str], tmp_path: Path) -> None:
    assert export(operator, "--rank", "4", "--exact", "-o", tmp_path / "exact").code == Exit.OK
    done = export(operator, "--rank", "4", "-o", tmp_path / "portable", "--json")
    assert done.code == Exit.OK, done.err
    exact, portable = (json.loads((tmp_path / f / "adapter_config.json").read_bytes()) for f in ("exact", "portable"))
    assert (exact["r"], exact["lora_alpha"]) == (4, 8.0)
    assert (portable["r"], portable["lora_alpha"]) == (4, 4)
    key = "base_model.model.layers.0.q_proj.lora_B.weight"
    B = [load_file(tmp_path / form / "adapter_model.safetensors")[key] for form in ("exact", "portable")]
    assert (2 * B[0] == B[1]).all()
    assert done.json["form"] == "portable"
    served = sha256_of(tmp_path / "exact" / "adapter_model.safetensors")
    assert done.json["sha256"] == served
    card = (tmp_path / "portable" / "README.md").read_text()
    assert served in card
    assert f"`{sha256_of(tmp_path / 'portable' / 'adapter_model.safetensors')}`" in card
    assert "- **Participants of the round:** 1 of rank 8" in card
    assert "somebody" not in card, "a card is made to be published"


def test_a_rank_is_chosen_by_its_energy(site: Served, operator: dict[str, str], tmp_path: Path) -> None:
    shares = {kept["rank"]: kept["share"] for kept in site.round("run", 1)["summary"]["energy_kept"]}
    between = (shares[2] + shares[4]) / 2
    done = export(operator, "--energy", str(between), "-o", tmp_path / "adapter")
    assert done.code == Exit.OK, done.err
    assert done.out == (
        f"round 1 of run at rank 4, which keeps {100 * shares[4]:.2f} % of the energy, is in {tmp_path / 'adapter'}\n"
    )
    assert f"{100 * shares[4]:.2f} %" in (tmp_path / "adapter" / "README.md").read_text()
    nothing = export(operator, "--energy", "0.9", "--round", "0", "-o", tmp_path / "none")
    assert (nothing.code, "has no spectrum" in nothing.err) == (Exit.BAD_INPUT, True)


def test_a_share_that_no_rank_keeps(site: Served, operator: dict[str, str], tmp_path: Path) -> None:
    few = site.run("few", ranks=[2, 4], min_clients=2, min_updates=2)
    both = [site.enroll(name) for name in ("first", "second")]
    for participant in both:
        participant.declare("few", 4)
    for seed, participant in enumerate(both):  # together of rank 8
        participant.upload(participant.task("few"), encode(tensors(few, 4, seed=seed)))
    site.work()
    refused = call("export", "few", "--energy", "0.999", "-o", tmp_path / "out", env=operator)
    assert (refused.code, "name that --rank, or a smaller --energy" in refused.err) == (Exit.BAD_INPUT, True)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--rank", "4", "--energy", "0.9"], "either --rank or --energy"),
        ([], "either --rank or --energy"),
        (["--energy", "0.9", "--rank-pattern", "q_proj=2"], "chooses one rank for all modules"),
        (["--from", "own", "--energy", "0.9"], "leave them out"),
        (["--rank", "4", "--exact", "--merge"], "--exact and --merge are different forms"),
        (["--rank", "4", "--model", "x"], "--model is for --merge and --gguf"),
        (["--rank", "4", "--gguf", "--dtype", "float16"], "--dtype is for --merge"),
    ],
)
def test_options_that_do_not_fit_together(options: list[str], part: str, tmp_path: Path) -> None:
    result = call("export", "run", *options, "-o", tmp_path / "out")
    assert result.code == Exit.USAGE
    assert part in " ".join(result.err.split())


def test_a_record_alone_takes_no_options_of_adapters(tmp_path: Path) -> None:
    for options in (["--rank", "4"], ["--energy", "0.9"], ["--rank-pattern", "q_proj=2"], ["--merge"]):
        result = call("export", "run", "--record", tmp_path / "record", *options)
        assert (result.code, "are for an adapter" in result.err) == (Exit.USAGE, True)


def test_no_record_is_written_where_the_adapter_is_refused(
    site: Served, operator: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    refused = export(operator, "--record", tmp_path / "record", "--rank", "4", "-o", tmp_path / "full")
    assert (refused.code, (tmp_path / "record").exists()) == (Exit.BAD_INPUT, False)
    refused = export(operator, "--record", tmp_path / "record", "-o", tmp_path / "adapter")
    assert (refused.code, (tmp_path / "record").exists()) == (Exit.USAGE, False)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export_options, "find_spec", lambda name: None)
    lacking = call("export", "run", "--rank", "4", "--gguf", "-o", tmp_path / "out")
    assert (lacking.code, "pip install 'flexlora[agent,gguf]'" in lacking.err) == (Exit.BAD_INPUT, True)
    monkeypatch.setattr(agent_extra, "LIBRARIES", ("no_such_library",))
    lacking = call("export", "run", "--rank", "4", "-o", tmp_path / "out")
    assert lacking.code == Exit.BAD_INPUT
    assert "--exact, which saves the adapter as it is served, needs nothing" in lacking.err


def test_other_forms(site: Served, operator: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    spec = make_run(make_llama(tmp_path / "llama"), target="q_proj").model_copy(update={"name": "real"})
    site.operator.expect(201, "POST", "/v1/runs", json=spec.model_dump(mode="json"))
    site.operator.expect(200, "POST", "/v1/runs/real/start")
    site.work()
    merged = call(
        "export",
        "real",
        "--rank",
        "2",
        "--merge",
        "--dtype",
        "bfloat16",
        "-o",
        tmp_path / "merged",
        "--json",
        env=operator,
    )
    assert merged.code == Exit.OK, merged.err
    assert merged.json["form"] == "merged"
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "README.md"} <= names
    assert not names & {"adapter_model.safetensors", "adapter_config.json", "run.json"}
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "merged into the base model's weights, in bfloat16" in card
    assert f"`{sha256_of(tmp_path / 'merged' / 'model.safetensors')}`" in card
    gguf = call("export", "real", "--rank", "2", "--gguf", "-o", tmp_path / "gguf", env=operator)
    assert gguf.code == Exit.OK, gguf.err
    assert {"adapter.gguf", "adapter_model.safetensors"} <= {path.name for path in (tmp_path / "gguf").iterdir()}
    gone = call(
        "export",
        "real",
        "--rank",
        "2",
        "--merge",
        "--model",
        tmp_path / "nowhere",
        "-o",
        tmp_path / "out",
        env=operator,
    )
    assert gone.code == Exit.BAD_INPUT
    assert "give the local path of a directory that holds it" in gone.err
    assert not (tmp_path / "out").exists()
