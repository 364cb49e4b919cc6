"""The journal of a grown model: its history as data, and a model put together again from it."""

from splitgrow.growth.journal.holding import states_of
from splitgrow.growth.journal.journal import FadeShare, Journal
from splitgrow.growth.journal.replay import rebuild_, restore_, widen_inputs_
from splitgrow.growth.journal.taking import journal_of

__all__ = [
    "FadeShare",
    "Journal",
    "journal_of",
    "rebuild_",
    "restore_",
    "states_of",
    "widen_inputs_",
]
