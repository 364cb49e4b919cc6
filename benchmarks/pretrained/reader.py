"""A process without splitgrow: it reads checkpoints by from_pretrained and says what they compute.

Requests come as lines of JSON on standard input, answers go to standard output. The tensors lie in
files of torch.
"""

from __future__ import annotations

import importlib.abc
import json
import sys
from typing import Any


class Blocker(importlib.abc.MetaPathFinder):
    """Makes splitgrow a package that cannot be imported."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        """Raises for splitgrow and its modules.

        Raises:
            ModuleNotFoundError: For these.
        """
        del path, target
        if fullname.partition(".")[0] == "splitgrow":
            raise ModuleNotFoundError("splitgrow is not installed here")


def answers(request: dict[str, str]) -> dict[str, Any]:
    """What the checkpoint of a request computes: "outputs", and "text" where it writes any."""
    import torch  # noqa: PLC0415 - the blocker comes first
    import transformers  # noqa: PLC0415

    told = torch.load(request["inputs"], weights_only=False)
    kind = getattr(transformers, request["class"])
    model = kind.from_pretrained(request["directory"], dtype=told["dtype"]).eval()
    if told["dtype"] is torch.float64 and model._can_set_experts_implementation():  # noqa: SLF001
        model.set_experts_implementation("eager")  # the library's faster ways know no doubles
    with torch.no_grad():
        found = model(*told["inputs"])
        kept = ("logits", "last_hidden_state", "pooler_output")
        result = {"outputs": [found[name] for name in kept if found.get(name) is not None]}
        if told["generates"]:
            options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
            result["text"] = model.generate(told["inputs"][0], pad_token_id=0, **options)
    return result


def main() -> None:
    """Answers requests until the input ends."""
    sys.meta_path.insert(0, Blocker())
    from benchmarks.vision import torchvision  # noqa: PLC0415

    torchvision()
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    transformers.logging.set_verbosity_error()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            torch.save(answers(request), request["answer"])
            told = ""
        except Exception as error:  # noqa: BLE001 - the asker judges
            told = f"{type(error).__name__}: {error}"
        print(json.dumps({"error": told}), flush=True)


if __name__ == "__main__":
    main()
