"""The processes of one run, as ``accelerate launch`` or ``torchrun`` start them; usually there is one."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from tokensurgeon.errors import ResourceError, TokensurgeonError

T = TypeVar("T")

# The others wait while the main process writes and verifies, however long that takes.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class _Failure:
    """Sent in place of a contribution.

    Attributes:
        error: What a user can read, or None for a bug, whose traceback its own process prints.
    """

    error: TokensurgeonError | None


class Processes:
    """Processes that run the same recipe and exchange what they have done.

    Args:
        rank: Place of this process among them.
        count: How many there are.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank = rank
        self.count = count
        self._failed = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes the output."""
        return self.rank == 0

    def exchange(self, contribution: T) -> list[T]:
        """Give every process what each has to give, and wait until all have.

        Args:
            contribution: Anything that can be pickled, on the CPU.

        Returns:
            Contributions in rank order.

        Raises:
            TokensurgeonError: Another process failed with this error, or is gone.
            SystemExit: Another process failed with a bug.
        """
        if self.count == 1:
            return [contribution]
        gathered = self._gather(contribution)
        for item in gathered:
            if isinstance(item, _Failure):
                self._failed = True
                raise item.error or SystemExit(1)
        return gathered

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that fails in all processes when it fails in one.

        Yields:
            Nothing.
        """
        try:
            yield
        except Exception as error:
            if self.count > 1 and not self._failed:
                # The others are at an exchange, or will be, and find this instead.
                self._failed = True
                self._gather(_Failure(error if isinstance(error, TokensurgeonError) else None))
            raise

    def _gather(self, item: Any) -> list[Any]:  # noqa: ANN401 - anything that can be pickled
        from accelerate.utils import gather_object

        try:
            gathered: list[Any] = gather_object([item])
        except RuntimeError as error:
            self._failed = True
            raise ResourceError(f"another process of this run is gone ({error})") from error
        return gathered


def connect(device: str) -> Processes:
    """Join the processes this one was started with.

    Args:
        device: The recipe's device; ``cpu`` keeps the processes off GPUs.

    Returns:
        The processes; one when nothing in the environment says otherwise.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    import torch

    # Before there is a group: its functions take the group of their import as a default, and a group that is
    # held for ever has threads that outlive the interpreter, which then aborts now and then.
    import torch.distributed.nn
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=_PATIENCE)
    atexit.register(state.destroy_process_group)
    return Processes(state.process_index, state.num_processes)
