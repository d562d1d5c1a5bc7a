"""What a watch takes for silence."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from slipstream.distributed import Watch, watch


def test_time_in_which_this_process_was_stopped_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    slept = 0.0
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + slept, sleep=time.sleep))
    verdicts: list[str] = []
    monkeypatch.setattr(Watch, "_leave", lambda self, verdict, *_: verdicts.append(verdict))
    own = Watch(0, 2, silence=3.0, host="127.0.0.1", port=store.port, prefix="here")
    own.__enter__()
    time.sleep(1.2)  # rank 1 is silent, though not for long
    slept = 60.0
    time.sleep(1.0)
    assert not verdicts, "all may have been stopped"
    time.sleep(3.0)
    assert verdicts and "rank 1 of 2 gave no sign of life for 3 s" in verdicts[0]
    own._done.set()
    own._over.set()
    own._thread.join()
    del store
