"""Stage 1: only what is new learns, so that each swapped layer's output comes near that of its softmax."""

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from subquad.hf._find import find_attention
from subquad.hf._stand_in import CHILD, awake, run_alone
from subquad.hf._swap import swapped_attention


def new_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Those of the mixers that stand in, by their names in the model."""
    return {name: parameter for name, parameter in model.named_parameters() if f".{CHILD}." in name}


@contextlib.contextmanager
def only_learning(model: PreTrainedModel, parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    """The model in evaluation mode, in which only these parameters want gradients; afterwards as before."""
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    training, chosen = model.training, set(parameters.values())
    for parameter in wanted:
        parameter.requires_grad_(parameter in chosen)
    model.eval()
    try:
        yield
    finally:
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)
        model.train(training)


class Transfer:
    """Adds up gradients of how far each swapped layer is from its softmax teacher.

    loss = mean_layers |student(x) - teacher(x)|^2 / |teacher(x)|^2 ,

    both on the input x that the layer has in the teacher. A layer's graph is freed before the next layer runs, so
    memory does not grow with their number.

    Source: LoLCATs (arXiv 2410.10254), eq. 7, there without the denominator and before the output projection.
    """

    def __init__(self, model: PreTrainedModel, teacher: PreTrainedModel | None):
        self.model, self.teacher = model, model if teacher is None else teacher
        self.students = dict(swapped_attention(model))
        by_index = {module.layer_idx: module for _, module in find_attention(self.teacher).values()}
        self.teachers = {name: by_index[module.layer_idx] for name, module in self.students.items()}

    def learn(self, tokens: Tensor) -> float:
        """Add up gradients of the loss on tokens (b, t); its value."""
        losses = self.losses(tokens, learn=True)
        return sum(losses.values()) / len(losses)

    def losses(self, tokens: Tensor, *, learn: bool) -> dict[str, float]:
        """Run tokens (b, t) through the teacher; name of each student -> its loss. With `learn`, also gradients."""
        losses: dict[str, Tensor] = {}
        with contextlib.ExitStack() as stack:
            for name, student in self.students.items():
                hook = functools.partial(self._compare, name, losses, learn)
                stack.callback(self.teachers[name].register_forward_hook(hook, with_kwargs=True).remove)
                if self.teacher is self.model:
                    stack.enter_context(awake(student, False))
            stack.enter_context(torch.no_grad())
            self.teacher.base_model(tokens.to(self.teacher.device), use_cache=False)
        return {name: loss.item() for name, loss in losses.items()}

    def _compare(self, name: str, losses: dict[str, Tensor], learn: bool, module, args, kwargs, output) -> None:
        """A forward hook of a teacher's attention module: let the student have the same input."""
        target = output[0].float()
        with torch.set_grad_enabled(learn), awake(self.students[name], True):
            mine = run_alone(self.students[name], args, kwargs).float()
            loss = (mine - target).square().mean() / target.square().mean()
            if learn:
                (loss / len(self.students)).backward()
        losses[name] = loss.detach()
