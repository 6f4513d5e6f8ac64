"""What a participant has of a run: the adapters it trained itself, before they were averaged, and the last one it was served.

Kept in the work folder: `own/` with at most two adapters, the last and the best by held-out loss, as PEFT folders;
`results.json`, which names them and is replaced as a whole once they are on disk; `run.json`, the run's definition.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from flexlora_client.agent.agreement import check_definition, only_known
from flexlora_client.errors import BadInput
from flexlora_client.files import make_folder, sha256_of, sync_file, sync_folder, write_whole
from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE
from flexlora_shared.messages.base import Message, Metrics, RankPattern, Sha256
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.versions import version

SPEC_FILE = "run.json"
SPEC_VERSION_FILE = "run.version"  # of the agent that wrote it
Source = Literal["global", "own", "best"]


class KeptAdapter(Message):
    """An adapter on disk, and its metrics on the held-out examples where there are any."""

    own: bool  # trained here, or served
    folder: str  # in the run's folder
    sha256: Sha256  # of its tensors' file
    round: int  # that trained it, or that published it
    rank: int
    rank_pattern: RankPattern = {}
    metrics: Metrics = {}
    basis: str = ""  # who trained it on which examples; losses on other ones do not compare
    sample: int = 0  # held-out examples that the loss is over; nor do losses over more or fewer

    @property
    def loss(self) -> float | None:
        """The held-out loss."""
        return self.metrics.get("loss")


class KeptAdapters(Message):
    """Content of `results.json`."""

    last: KeptAdapter | None = None
    best: KeptAdapter | None = None
    served: KeptAdapter | None = None


class Results:
    """The results in one run's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index = folder / "results.json"
        self.kept = self._load()

    def agree(self, spec: RunSpec) -> bool:
        """Keep the run's definition, which can then be used without the coordinator; whether it was not kept before.

        Another version of the agent may have kept it without fields that it did not know: those alone may be new.

        Raises:
            NotAgreed: another one was kept.
        """
        path, by = self._folder / SPEC_FILE, self._folder / SPEC_VERSION_FILE
        joined = path.exists()
        if joined:
            same_version = by.exists() and by.read_text() == version()
            known = spec if same_version else only_known(spec, json.loads(path.read_bytes()))
            check_definition(self.spec(), known, path)
            if same_version:
                return False
        write_whole(path, spec.model_dump_json(indent=2).encode())
        write_whole(by, version().encode())
        return not joined

    def spec(self) -> RunSpec:
        """The run's definition. Raises: BadInput, where no agent took part in the run from this home folder."""
        return read_spec(self._folder)

    def keep_own(self, adapter: Path, trained: KeptAdapter) -> None:
        """Copy the adapter in folder `adapter` under `trained.folder`; the last one, and the best where its loss is least.

        Where its loss does not compare with that of the best, it is the best.

        Repeating it changes nothing. Raises: OSError, where the disk is full.
        """
        if self.kept.last is not None and self.kept.last.sha256 == trained.sha256:
            return
        target = self._folder / trained.folder
        make_folder(target.parent)
        part = target.with_name(f".{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for name in (CONFIG_FILE, ADAPTER_FILE):
            shutil.copyfile(adapter / name, part / name)
            sync_file(part / name)
        shutil.rmtree(target, ignore_errors=True)
        part.replace(target)
        sync_folder(target.parent)
        best = self.kept.best
        if best is None or not _comparable(best, trained) or _less(trained, best):
            best = trained
        self._save(self.kept.model_copy(update={"last": trained, "best": best}))

    def note_served(self, served: KeptAdapter) -> None:
        """Record the slice served last; it lies in the cache of slices."""
        before = self.kept.served
        if before is not None and before.sha256 == served.sha256 and not served.metrics:
            return
        self._save(self.kept.model_copy(update={"served": served}))

    def choose(self, source: Source) -> tuple[KeptAdapter, Path]:
        """The adapter asked for, and its folder: `own` is the best own one, `best` the better of it and the one served.

        Raises: BadInput, where there is none, or no held-out losses that compare to choose by.
        """
        own, served = self.kept.best, self.kept.served
        chosen = own if source == "own" else served
        if source == "best" and own is not None and served is not None:
            if own.loss is None or served.loss is None:
                raise BadInput(
                    "nothing was measured on held-out data, so neither adapter is the better; name own or global"
                )
            if not _comparable(own, served):
                raise BadInput(
                    "the adapter trained here and the one served were measured on different examples, so neither is known to be "
                    "the better; name own or global, and let a larger --evaluation-share measure all held-out examples"
                )
            chosen = own if own.loss < served.loss else served
        if chosen is None:
            what = "no adapter trained here" if source == "own" else "no adapter from the coordinator"
            raise BadInput(f"{self._folder} holds {what} yet; take part in the run first, or name another one")
        folder = self._folder / chosen.folder
        path = folder / ADAPTER_FILE
        if not path.is_file() or sha256_of(path) != chosen.sha256:
            raise BadInput(f"the adapter in {folder} is gone or damaged; export it from the coordinator")
        return chosen, folder

    def last_own(self) -> Path | None:
        """The folder of the adapter trained last."""
        return None if self.kept.last is None else self._folder / self.kept.last.folder

    def _save(self, kept: KeptAdapters) -> None:
        write_whole(self._index, kept.model_dump_json(indent=2).encode())
        self.kept = kept
        named = {Path(one.folder).name for one in (kept.last, kept.best) if one is not None}
        for path in (self._folder / "own").glob("*"):
            if path.name not in named:
                shutil.rmtree(path, ignore_errors=True)

    def _load(self) -> KeptAdapters:
        """The saved index; a damaged one counts as none."""
        try:
            return KeptAdapters.model_validate_json(self._index.read_bytes())
        except (FileNotFoundError, ValidationError):
            return KeptAdapters()


def read_spec(folder: Path) -> RunSpec:
    """The run's definition in an exported folder or a run's folder. Raises: BadInput."""
    try:
        return RunSpec.model_validate_json((folder / SPEC_FILE).read_bytes())
    except (OSError, ValidationError):
        raise BadInput(
            f"{folder / SPEC_FILE} holds no run's definition; name a folder with an adapter that `export` made (a merged model "
            "is loaded by transformers alone), or a run that was taken part in from this --home"
        ) from None


def own_adapter(
    adapter: Path,
    round_: int,
    rank: int,
    rank_pattern: Mapping[str, int],
    metrics: Mapping[str, float],
    basis: str,
    sample: int = 0,
) -> KeptAdapter:
    """What `keep_own` records of the adapter in folder `adapter`."""
    sha256 = sha256_of(adapter / ADAPTER_FILE)
    return KeptAdapter(
        own=True,
        folder=f"own/round-{round_}-{sha256[:12]}",
        sha256=sha256,
        round=round_,
        rank=rank,
        rank_pattern=dict(rank_pattern),
        metrics=dict(metrics),
        basis=basis,
        sample=sample,
    )


def _comparable(one: KeptAdapter, other: KeptAdapter) -> bool:
    """Whether their losses, where there are any, are over the same examples."""
    return one.basis == other.basis and (one.sample == other.sample or None in (one.loss, other.loss))


def _less(one: KeptAdapter, other: KeptAdapter) -> bool:
    """Whether the loss of `one` is less; a later one without a loss replaces one without."""
    if one.loss is None or other.loss is None:
        return other.loss is None
    return one.loss < other.loss
