"""Training in stages that survives a kill: what is finished is on disk, and a new process goes on from there."""

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

CHECKPOINT = "linearize.pt"
SAVE_EVERY = 60.0  # seconds
CURVE_POINTS = 50
CLIP_NORM = 1.0

Curve = list[tuple[int, float]]  # step, mean loss since the point before


class Trainer:
    """Runs stages one after the other.

    Args:
        out: folder of the checkpoint; nothing is kept if None.
        settings: what must be the same for a checkpoint to be gone on from.
        resume: go on from the checkpoint in `out`.

    Raises:
        ValueError: no checkpoint, or one of other settings. FileExistsError: a new run in a folder that is not empty.
    """

    def __init__(self, out: Path | None, settings: Mapping[str, Any], resume: bool):
        self.path, self.settings = None if out is None else out / CHECKPOINT, dict(settings)
        self.stages: list[dict[str, Any]] = []
        self.stage, seconds = 0, 0.0
        if resume:
            if self.path is None or not self.path.exists():
                raise ValueError(f"linearize: nothing to resume, there is no {self.path or 'out'}")
            stored = torch.load(self.path, map_location="cpu", weights_only=True)
            other = [name for name, value in settings.items() if stored["settings"].get(name) != value]
            if other:
                raise ValueError(f"linearize: the checkpoint {self.path} was made with other {', '.join(other)}")
            self.stages, seconds = stored["stages"], stored["seconds"]
        elif out is not None and out.exists() and any(out.iterdir()):
            raise FileExistsError(f"linearize: {out} is not empty; name a new folder, or go on with resume=True")
        self.started = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Of all processes that took part."""
        return time.perf_counter() - self.started

    def run(
        self,
        title: str,
        parameters: Mapping[str, nn.Parameter],
        batches: Tensor,
        gradients: Callable[[Tensor], float],
        lr: float,
    ) -> Curve:
        """The next stage: one AdamW step for each batch, at a rate that falls from `lr` as a cosine.

        Args:
            title: of the progress bar.
            parameters: what learns, by name.
            batches: (steps, b, t) token ids.
            gradients: adds up the gradients of a batch (b, t) and returns its loss.
            lr: learning rate of the first step.
        """
        optimizer = torch.optim.AdamW(parameters.values(), lr=lr, weight_decay=0.0)
        step, losses, curve = self._begin(parameters, optimizer)
        total, saved = len(batches), time.perf_counter()
        with tqdm(total=total, initial=step, desc=title) as bar:
            while step < total:
                for group in optimizer.param_groups:
                    group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / total))
                optimizer.zero_grad()
                losses.append(gradients(batches[step]))
                torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP_NORM)
                optimizer.step()
                step += 1
                bar.update()
                if step % max(1, total // CURVE_POINTS) == 0 or step == total:
                    curve.append((step, sum(losses) / len(losses)))
                    losses.clear()
                    bar.set_postfix(loss=f"{curve[-1][1]:.4f}")
                if step == total or time.perf_counter() - saved > SAVE_EVERY:
                    self._save(parameters, optimizer, step, losses, curve)
                    saved = time.perf_counter()
        optimizer.zero_grad()
        self.stage += 1
        return curve

    def _begin(
        self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> tuple[int, list[float], Curve]:
        """Steps done, losses since the last point, and the curve."""
        if self.stage >= len(self.stages):  # it has not begun
            return 0, [], []
        stored = self.stages[self.stage]
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(stored["parameters"][name])
        optimizer.load_state_dict(stored["optimizer"])
        return stored["step"], stored["losses"], [tuple(point) for point in stored["curve"]]

    def _save(self, parameters, optimizer, step: int, losses: list[float], curve: Curve) -> None:
        """A checkpoint is whole or not there: it is written beside the old one, then takes its place."""
        if self.path is None:
            return
        values = {name: parameter.detach() for name, parameter in parameters.items()}
        current = dict(parameters=values, optimizer=optimizer.state_dict(), step=step, losses=losses, curve=curve)
        self.stages[self.stage :] = [current]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".tmp")
        torch.save(dict(settings=self.settings, seconds=self.seconds, stages=self.stages), unfinished)
        os.replace(unfinished, self.path)
