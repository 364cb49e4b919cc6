"""The process that measures one part after the other; its parent may end it at any moment."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.__main__ import measure
from benchmarks.gpu.running import DONE, FAILED, STARTED
from benchmarks.speed.catalogue import CLAIMS
from benchmarks.speed.results import Entry, read, write
from benchmarks.speed.settings import Settings


def main() -> None:
    """Measures the parts that the arguments name: claim:seconds:rounds each."""
    device, size, json_path, *parts = sys.argv[1:]
    path, claims = Path(json_path), {claim.name: claim for claim in CLAIMS}
    settings = Settings(quick=size == "quick", device=device, threads=torch.get_num_threads())
    settings.prepare()
    gc.freeze()
    for part in parts:
        name, seconds, rounds = part.split(":")
        print(STARTED, name, flush=True)

        def keep(entry: Entry) -> None:
            known = {**read(path), entry.claim: entry}
            write(path, [known[each] for each in claims if each in known])

        started = time.monotonic()
        try:
            own = replace(settings, rounds=2 if settings.quick else int(rounds))
            measure(claims[name], own, keep, float(seconds))
            if time.monotonic() - started > float(seconds):
                print(FAILED, f"its {seconds} s were over, later cases are missing", flush=True)
        except Exception as error:  # noqa: BLE001 - the other parts are still to be measured
            traceback.print_exc()
            words = " ".join(str(error).split())
            print(FAILED, f"{type(error).__name__}: {words[:300]}", flush=True)
        print(DONE, name, flush=True)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
