"""An engine that gives up its weights where it may."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from appo.engines import HFEngine
from appo.engines.base import started


@dataclass
class DroppingEngine(HFEngine):
    """Overwrites its weights at each sleep that an update follows, as an engine on a GPU gives back their memory."""

    num_dropped: ClassVar[int] = 0
    """Times that one has done so since a test has set it to 0."""

    def sleep(self, weights_follow: bool = False) -> None:
        if weights_follow:
            session = started(self._session)
            session.tracker.has_weights = False
            with torch.no_grad():
                for parameter in session.model.parameters():
                    parameter.fill_(torch.nan)
            DroppingEngine.num_dropped += 1

    @property
    def has_weights(self) -> bool:
        return started(self._session).tracker.has_weights
