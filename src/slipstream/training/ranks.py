"""The processes of one training, each with a replica of the model: what a trainer asks of the others.

Every rank reads the same data and has the policy decide on all of it, so all hold the same batches; each trains on its
part, and applies the rows and the dense gradient of all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from hashlib import sha256
from types import TracebackType
from typing import Any, ClassVar

import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]

from slipstream import distributed
from slipstream.data.batch import Batch
from slipstream.distributed import Ledger, Watch
from slipstream.distributed.meeting import Met, meet
from slipstream.distributed.watch import of_network
from slipstream.embedding.table import Table
from slipstream.errors import ConfigError
from slipstream.models import Recommender
from slipstream.report.machine import versions
from slipstream.training.checkpoint.folder import Loaded
from slipstream.training.checkpoint.manifest import CheckpointManifest
from slipstream.training.checkpoint.tree import join_tree, split_tree
from slipstream.training.config import TrainConfig
from slipstream.training.termination import Termination

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_OWN = ("data", "cache", "columns", "out", "continue_from", "threads", "max_memory")
"""Settings that ranks may have of their own."""
_ALIKE = ("slipstream-rec", "torch")
"""Packages of which ranks must have one version: they decide, and compute, alike."""
_START = "start it as torchrun --nproc-per-node N -m slipstream train … --distributed"
_PIECE = 1 << 30
"""Bytes of a state that are sent at a time."""


class Ranks:
    """Meets the other processes that torchrun started, and watches over them while the block runs.

    Attributes:
        rank: This one's number.
        world: How many there are, W.
        bytes: Bytes that this rank handed to the collectives of its steps.
        wishes: Whether this rank wants to stop, and whether it wants to save; asked once a step.
        tell: Called with each table and the rows, int64 [U], that a step is going to update.

    Args:
        silence: Seconds without a sign of life after which a rank is lost.
        patience: Seconds to wait for all ranks at the start: machines start at different times.

    Raises:
        ConfigError: torchrun's variables are not set, or make no sense; on entering: not all ranks have come.
    """

    _names: ClassVar[str | None] = None
    """Prefix of this start's names at the meeting point, once this process has met the others."""

    def __init__(self, *, silence: float = 30.0, patience: float = 600.0) -> None:
        missing = [name for name in _VARIABLES if not os.environ.get(name)]
        if missing:
            raise ConfigError(f"training on several ranks needs {', '.join(missing)} in the environment", remedy=_START)
        self.world = _number("WORLD_SIZE", 1)
        self.rank = _number("RANK", 0, self.world - 1)
        self._port, self._local = _number("MASTER_PORT", 1, 65535), _number("LOCAL_RANK", 0)
        self._restarts = _number("TORCHELASTIC_RESTART_COUNT", 0)
        self.restarted = False
        """Whether torchrun has started all processes anew; rank 0 knows, which decides on it, once the block runs."""
        self.bytes = 0
        self._silence, self._patience = silence, patience
        self.wishes: Callable[[], tuple[bool, bool]] = lambda: (False, False)
        self.tell: Callable[[Table, Tensor], None] | None = None
        self.ledger = Ledger()
        self._agreed = (False, False)
        self._watch: Watch | None = None
        self._termination = Termination()

    @property
    def first(self) -> bool:
        """Whether this one writes what is written."""
        return self.rank == 0

    def __enter__(self) -> Ranks:
        again = "start all ranks again with --resume (torchrun --max-restarts does), and look for its own message"
        with ExitStack() as stack:
            stack.enter_context(self._termination)
            with self._meeting():
                met = None if dist.is_initialized() else self._meet()
                watch = Watch(self.rank, self.world, silence=self._silence, again=again, prefix=Ranks._names)
                self._watch = stack.enter_context(watch)
                if met is not None:
                    self._join(met)
                else:
                    self.restarted = self._restarts > 0
            stack.pop_all()  # left in __exit__
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # torchrun sends SIGTERM as soon as it sees that a rank is gone: there must be time to say which.
        try:
            with self._termination.deferred():
                if self._watch is not None:
                    self._watch.__exit__(kind, error, trace)
        finally:
            self._termination.__exit__(None, None, None)

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        """Turns errors of the network in the block, which has the ranks meet, into ones that say where."""
        try:
            yield
        except (dist.DistError, RuntimeError) as error:
            if not of_network(error):
                raise
            where = f"{os.environ['MASTER_ADDR']}:{self._port}"
            device = " and GLOO_SOCKET_IFNAME names an interface" if os.environ.get("GLOO_SOCKET_IFNAME") else ""
            raise ConfigError(
                f"rank {self.rank} cannot meet the others at {where} ({str(error).splitlines()[0]})",
                remedy=f"see that the machine can be reached{',' if device else ' and'} the port is free{device}",
            ) from error

    def _meet(self) -> Met:
        """Waits for the others."""
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        met = meet(
            self.rank,
            self.world,
            os.environ["MASTER_ADDR"],
            self._port,
            hosts=not agent,
            restarts=self._restarts,
            patience=self._patience,
        )
        self.restarted, Ranks._names = met.restarted, met.prefix
        return met

    def _join(self, met: Met) -> None:
        """Makes the process group; under the watch, as torch waits where no signal is answered."""
        dist.init_process_group(
            "gloo",
            store=PrefixStore(f"{met.prefix}/group", met.store),
            rank=self.rank,
            world_size=self.world,
            # Who is gone is the watch's to find; to wait for a rank that writes or prepares is no failure.
            timeout=timedelta(days=1),
        )

    @staticmethod
    def check(config: TrainConfig, model: Recommender) -> None:
        """Whether this training can be shared out.

        Raises:
            ConfigError: It cannot; says why.
        """
        if config.engine != "slipstream":
            what = f"engine {config.engine} has sparse gradients, and ranks exchange rows as (ids, values)"
            raise ConfigError(what, remedy="use engine slipstream")
        if config.device != "cpu" or config.row_cache_bytes is not None:
            what = "training on several ranks is on the CPU: several GPUs, or tables behind a row cache, are untested"
            raise ConfigError(what, remedy="set device to cpu, without row_cache_bytes, or train on one GPU")
        if not model.separable:
            what = "the loss of a sample depends on all others of its batch (softmax), and a rank holds only its part"
            raise ConfigError(what, remedy="use objective logistic")

    @contextmanager
    def one_after_another(self) -> Iterator[None]:
        """The block runs on the first rank of each machine, then on the others: what is prepared once is there."""
        late = self._local > 0
        if late:
            dist.barrier()
        yield
        if not late:
            dist.barrier()

    def check_settings(self, config: TrainConfig) -> None:
        """Raise ConfigError unless all ranks train by the same settings; paths and threads may be a machine's own."""
        installed = versions()
        for package in _ALIKE:
            version = installed.get(package, "not installed")
            self.check_same(f"versions of {package} (here {version})", version, "install the same on all machines")
        mine = config.model_dump(mode="json", exclude=set(_OWN))
        mine |= {"saved": config.out is not None, "continued": config.continue_from is not None}
        self.check_same("settings", sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest())

    def check_same(self, what: str, value: str, remedy: str = "give all machines the same data and settings") -> None:
        """Raise ConfigError unless all ranks have the same text, of 128 bytes at most."""
        mine = torch.frombuffer(bytearray(value.encode().ljust(128)[:128]), dtype=torch.uint8)
        if distributed.same_everywhere({what: mine}):
            raise ConfigError(f"the ranks have different {what}", remedy=remedy)

    def part(self, batch: Batch) -> Batch:
        """This rank's part of a batch, which is noted down."""
        own = distributed.part(batch)
        self.ledger.add(batch.index, own.index)
        return own

    def mean_dense(self, model: nn.Module, loss: float) -> float:
        """Exchanges the dense gradients; returns the sum of the ranks' shares of the loss."""
        stop, save = self.wishes()
        sums, sent = distributed.mean_dense(model, torch.tensor([loss, float(stop), float(save)]))
        self._agreed = (sums[1].item() > 0, sums[2].item() > 0)
        self.bytes += sent
        return sums[0].item()

    def exchange(self, model: nn.Module, *, send_frozen: bool) -> None:
        """Exchanges the rows."""
        self.bytes += distributed.exchange(model, send_frozen=send_frozen, tell=self.tell).bytes

    def agreed(self) -> tuple[bool, bool]:
        """Whether any rank wanted to stop, and whether any wanted to save, at the last step; once for each step."""
        agreed, self._agreed = self._agreed, (False, False)
        return agreed

    def share(self, start: int, stop: int) -> tuple[int, int]:
        """This rank's share of the samples ``start`` to ``stop``."""
        first, last = distributed.bounds(stop - start)
        return start + first, start + last

    def gather(self, own: npt.NDArray[Any], samples: int) -> npt.NDArray[Any]:
        """What all ranks have of their shares, in order."""
        return distributed.gather(torch.from_numpy(own), samples).numpy()

    def broadcast_model(self, model: nn.Module) -> None:
        """All ranks begin as rank 0 does."""
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), src=0)

    def broadcast_loaded(self, loaded: Loaded | None) -> Loaded | None:
        """What rank 0 has read: a folder that the other ranks need not see."""
        if loaded is not None:
            manifest = loaded.manifest.model_copy(update={"files": {}, "tensors": {}, "state": None})
            self.broadcast({"manifest": manifest.model_dump_json(), "state": loaded.state, "path": str(loaded.path)})
            return loaded
        state = self.broadcast(None)
        if state is None:
            return None
        return Loaded(state["path"], CheckpointManifest.model_validate_json(state["manifest"]), state["state"])

    def broadcast(self, state: Any) -> Any:
        """Rank 0's nested dicts, lists and tuples of tensors, numbers, texts and None, on all ranks."""
        tree, tensors = split_tree(state if self.first else None)
        kinds = [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()]
        text = json.dumps([tree, kinds]).encode()
        length = torch.tensor([len(text)])
        dist.broadcast(length, src=0)
        letters = torch.frombuffer(bytearray(text.ljust(int(length))), dtype=torch.uint8)[: int(length)].clone()
        _send(letters)
        if self.first:
            for tensor in tensors.values():
                _send(_bytes_of(tensor.contiguous()))
            return state
        tree, kinds = json.loads(letters.numpy().tobytes())
        found = {name: torch.empty(shape, dtype=getattr(torch, kind)) for name, kind, shape in kinds}
        for tensor in found.values():
            _send(_bytes_of(tensor))
        return join_tree(tree, found)


def _number(name: str, least: int, most: int | None = None) -> int:
    """What a variable of torchrun's says; unset: 0.

    Raises:
        ConfigError: No whole number, or not within these.
    """
    text = os.environ.get(name) or "0"
    try:
        found = int(text)
    except ValueError:
        found = least - 1
    if found < least or (most is not None and found > most):
        bounds = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise ConfigError(f"{name} is {text!r} in the environment, not a whole number {bounds}", remedy=_START)
    return found


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


def _send(content: Tensor) -> None:
    for piece in content.split(_PIECE):
        if len(piece):
            dist.broadcast(piece, src=0)
