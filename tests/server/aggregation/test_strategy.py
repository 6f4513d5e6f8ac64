"""The register, and what every strategy refuses and promises."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from flexlora_server.aggregation.errors import AggregationError
from flexlora_server.aggregation.factors import Update
from flexlora_server.aggregation.strategy import Strategy, register, strategies, strategy
from tests.server.aggregation.cases import Round, random_round

NAMES = ("fedavg", "ffa", "flexlora", "flexlora-residual", "flora", "hetlora")
ONE_RANK = ("fedavg", "ffa")


def case_of(name: str, ranks: Sequence[int], **shape: int) -> Round:
    """A round that this strategy can aggregate."""
    case = random_round(ranks, **shape)
    if strategy(name).agents_train != "B":
        return case
    return replace(case, updates=tuple(replace(update, A=case.previous.A) for update in case.updates))


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


@pytest.mark.slow
def test_the_same_updates_give_the_same_bytes_in_any_process() -> None:
    script = (
        "import torch; torch.set_num_threads(1)\n"
        "from tests.server.aggregation.test_strategy import NAMES, digest\n"
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


def test_a_new_strategy_is_registered_by_name_once() -> None:
    """What a researcher writes: a module with one function, and a line."""
    uniform = Strategy("uniform-for-a-test", module="tests.server.aggregation.uniform")
    register(uniform)
    assert strategy("uniform-for-a-test") is uniform
    case = random_round([2, 6])
    equal = [replace(update, weight=1 / 2) for update in case.updates]
    wanted = strategy("flexlora").aggregate(equal, case.previous, torch.float32)
    result = uniform.aggregate(case.updates, case.previous, torch.float32)
    assert torch.equal(result.factors.B, wanted.factors.B)
    with pytest.raises(AggregationError, match="already registered"):
        register(Strategy("uniform-for-a-test", module="tests.server.aggregation.uniform"))


@pytest.mark.parametrize("module", ["flexlora_server.aggregation.flexlro", "nowhere.at.all", ".here", "__main__"])
def test_a_strategy_whose_module_is_missing_is_refused_before_anybody_trains(module: str) -> None:
    with pytest.raises(AggregationError, match=f"module {module}"):
        register(Strategy("lost", module=module))


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
        "does not fit into float32": changed(good, scaling=1e39),
    }
    for message, updates in bad.items():
        with pytest.raises(AggregationError, match=message):
            strategy(name).aggregate(updates, case.previous, torch.float32)
    if name == "flora":  # keeps A in float32 whatever is served
        return
    with pytest.raises(AggregationError, match="cannot be served: choose float32"):
        strategy(name).aggregate([good], case.previous, torch.float64)
