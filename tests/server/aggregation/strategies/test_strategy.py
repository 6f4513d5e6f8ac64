"""The register, and what every strategy refuses and promises."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from flexlora_server.aggregation.factors import Update
from flexlora_server.aggregation.strategies.registry import strategies, strategy
from flexlora_server.errors import AggregationError, PluginUnusable, UnsupportedRun
from flexlora_shared.messages.strategy_options import StrategyOptions
from flexlora_shared.plugins import STRATEGY_GROUP
from tests.server.aggregation.cases import Round, random_round
from tests.support.plugins import install

NAMES = ("fedavg", "fedsvd", "ffa", "flexlora", "flexlora-residual", "flora", "hetlora", "raflora", "rolora")
ONE_RANK = ("fedavg", "ffa", "rolora")


def case_of(name: str, ranks: Sequence[int], **shape: int) -> Round:
    """A round that this strategy can aggregate."""
    case = random_round(ranks, **shape)
    if strategy(name).agents_train != "B":
        return case
    return replace(case, updates=tuple(replace(update, A=case.previous.A[: update.rank]) for update in case.updates))


def digest(name: str) -> str:
    case = case_of(name, [48] * 4 if name in ONE_RANK else [4, 16, 32, 48], d=320, k=256)
    start = replace(case.previous, B=torch.randn(320, 48, generator=torch.Generator().manual_seed(9)))
    result = strategy(name).aggregate(case.updates, start, torch.bfloat16)
    data = result.factors.A.numpy().tobytes() + result.factors.B.numpy().tobytes()
    return hashlib.sha256(data + repr((result.singular_values, result.total_energy)).encode()).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_updates_give_the_same_bytes_in_any_thread(name: str) -> None:
    first = digest(name)
    with ThreadPoolExecutor(max_workers=4) as pool:
        assert set(pool.map(digest, [name] * 8)) == {first}


@pytest.mark.parametrize("name", NAMES)
def test_products_handed_on_are_those_of_the_updates(name: str) -> None:
    """Figures of the round are computed from them, and another rule's stack has other terms."""
    case = case_of(name, [16] * 3 if name in ONE_RANK else [8, 16, 24], d=1024, k=900)
    found = strategy(name).aggregate(case.updates, case.previous, torch.float32).products
    assert (found is not None) == (name in ("flexlora", "flexlora-residual", "flora"))
    if found is not None:
        A = torch.cat([u.A for u in case.updates]).double()
        B = torch.cat([u.weight * u.scaling * u.B.double() for u in case.updates], dim=1)
        expected = (B.mT @ B) * (A @ A.mT)
        assert torch.allclose(found[: len(A), : len(A)], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_the_same_updates_give_the_same_bytes_in_any_process() -> None:
    script = (
        "import torch; torch.set_num_threads(1)\n"
        "from tests.server.aggregation.strategies.test_strategy import NAMES, digest\n"
        "print(*map(digest, NAMES))"
    )
    for threads in ("1", "4"):  # what the process starts with does not matter once torch is told to use one
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.stdout.split() == [digest(name) for name in NAMES], done.stderr


def test_built_in_strategies() -> None:
    assert set(NAMES) <= set(strategies())
    assert [strategy(name).name for name in NAMES] == list(NAMES)


@pytest.mark.parametrize("name", sorted(set(NAMES).difference(ONE_RANK)))
def test_any_mix_of_ranks_can_be_served(name: str) -> None:
    strategy(name).check([2, 4, 200])


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AggregationError, match=f"choose one of {', '.join(NAMES)}"):
        strategy("fedprox")


OFFER = "from flexlora_server.aggregation.strategies.registry import Strategy\nmine = Strategy({name!r}, module={module!r})\n"


def test_an_installed_package_offers_a_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a researcher writes: a module with one function, what must be known of it, and an entry point."""
    source = OFFER.format(name="uniform", module="tests.server.aggregation.strategies.uniform")
    install(monkeypatch, tmp_path, "uniform", STRATEGY_GROUP, {"uniform": "uniform_offer:mine"}, uniform_offer=source)
    assert "uniform" in strategies()
    case = random_round([2, 6])
    equal = [replace(update, weight=1 / 2) for update in case.updates]
    wanted = strategy("flexlora").aggregate(equal, case.previous, torch.float32)
    result = strategy("uniform").aggregate(case.updates, case.previous, torch.float32)
    assert torch.equal(result.factors.B, wanted.factors.B)


def test_an_option_that_is_given_must_be_the_strategys() -> None:
    for name in NAMES:
        strategy(name).check([4], StrategyOptions(leak=0.0))  # as if it had been left out
    with pytest.raises(UnsupportedRun, match=r"fedavg has no option 'leak': .*\(it takes none\)"):
        strategy("fedavg").check([4], StrategyOptions(leak=0.1))
    with pytest.raises(UnsupportedRun, match=r"flexlora has no option 'shrink': .*\(it takes energy\)"):
        strategy("flexlora").check([4], StrategyOptions(energy=0.9, shrink=0.1))
    strategy("flexlora-residual").check([4], StrategyOptions(leak=0.1, shrink=0.5))


def test_a_package_takes_the_options_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer = (
        "from flexlora_server.aggregation.strategies.registry import Strategy\n"
        "module = 'flexlora_server.aggregation.strategies.residual'\n"
        "mine = Strategy('mine', module=module, options=('leak',))\n"
        "odd = Strategy('odd', module=module, options=('leak', 'gain'))\n"
    )
    offered = {"mine": "offer_of_mine:mine", "odd": "offer_of_mine:odd"}
    install(monkeypatch, tmp_path, "mine", STRATEGY_GROUP, offered, offer_of_mine=offer)
    case, options = random_round([2, 6]), StrategyOptions(leak=0.5)
    got = strategy("mine").aggregate(case.updates, case.previous, torch.float32, options=options)
    want = strategy("flexlora-residual").aggregate(case.updates, case.previous, torch.float32, options=options)
    assert torch.equal(got.factors.B, want.factors.B)
    with pytest.raises(PluginUnusable, match="names the option 'gain', which runs do not have"):
        strategy("odd")


def test_a_built_in_name_stays_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, "taken", STRATEGY_GROUP, {"flexlora": "nowhere:mine"})
    assert strategy("flexlora").module == "flexlora_server.aggregation.strategies.flexlora"
    assert strategies().count("flexlora") == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("broken", "broken_offer:mine", "cannot be loaded .*ZeroDivisionError"),
        ("absent", "absent_offer:mine", "cannot be loaded .*ModuleNotFoundError"),
        ("no-strategy", "other_offer:other", "which is no Strategy"),
        ("misnamed", "other_offer:mine", "offers a strategy named 'other'"),
        ("lost", "lost_offer:mine", "there is no module nowhere_at_all"),
        ("lost-too", "lost_too_offer:mine", "the module nowhere.at.all cannot be looked for"),
    ],
)
def test_a_strategy_that_cannot_be_used_is_refused_before_anybody_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    sources = {
        "broken_offer": "1 / 0",
        "other_offer": OFFER.format(name="other", module="tests.server.aggregation.strategies.uniform") + "other = 1",
        "lost_offer": OFFER.format(name="lost", module="nowhere_at_all"),
        "lost_too_offer": OFFER.format(name="lost-too", module="nowhere.at.all"),
    }
    install(monkeypatch, tmp_path, "odd", STRATEGY_GROUP, {name: value}, **sources)
    with pytest.raises(AggregationError, match=message):
        strategy(name)


def test_two_packages_with_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, "one", STRATEGY_GROUP, {"twice": "one_offer:mine"})
    install(monkeypatch, tmp_path, "two", STRATEGY_GROUP, {"twice": "two_offer:mine"})
    with pytest.raises(AggregationError, match="offered as one_offer:mine and as two_offer:mine: uninstall one"):
        strategy("twice")


@pytest.mark.parametrize("spec", [None, find_spec("json.tool")])
def test_the_program_that_runs_is_no_module_of_a_strategy(
    spec: ModuleSpec | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it was started: as a file or, with `python -m`, as a module, which has a specification."""
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    source = OFFER.format(name="program", module="__main__")
    install(monkeypatch, tmp_path, "program", STRATEGY_GROUP, {"program": "program_offer:mine"}, program_offer=source)
    with pytest.raises(AggregationError, match="module __main__"):
        strategy("program")


def changed(update: Update, **fields: object) -> list[Update]:
    return [replace(update, **fields)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_bad_updates_are_refused(name: str) -> None:
    case = case_of(name, [6])
    (good,) = case.updates
    holed = good.B.clone()
    holed[3, 2] = float("nan")
    bad = {
        "there is no update": [],
        "lora_B of update 0 holds a NaN": changed(good, B=holed),
        r"needs \(6, 40\) and \(24, 6\)": changed(good, B=good.B[:-1]),
        "has rank 7: the global update holds ranks 1 to 6": changed(good, A=torch.ones(7, 40), B=torch.ones(24, 7)),
        "has scaling 0.0: it must be positive": changed(good, scaling=0.0),
        "has served_scaling inf": changed(good, served_scaling=float("inf")),
        "weights must sum to 1, not 0.5": changed(good, weight=0.5),
        "weights must be finite and not negative": changed(good, weight=float("nan")),
        "does not fit into float32": changed(good, scaling=1e41),
    }
    for message, updates in bad.items():
        with pytest.raises(AggregationError, match=message):
            strategy(name).aggregate(updates, case.previous, torch.float32)
    if name == "flora":  # keeps A in float32 whatever is served
        return
    with pytest.raises(AggregationError, match="cannot be served: choose float32"):
        strategy(name).aggregate([good], case.previous, torch.float64)
