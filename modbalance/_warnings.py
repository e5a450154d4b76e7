"""Warnings about a training that goes on, but in another way than its user would expect; each is given once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from modbalance import _reporting, gradients
from modbalance._in_place import GradientWatch
from modbalance._invariance import MOST, kept_update
from modbalance._plugins import Hooks
from modbalance._reporting import Notices
from modbalance._training import Training
from modbalance.method import Method, WindowedMethod


class TrainingWarnings:
    """Notes what a training does, and compares it with what its methods need.

    Attributes:
        notices: The warnings that were given.
        hooks: The hooks of the methods.
        epoch_was_set: Whether the epoch ever moved, by the user or at the end of one.
    """

    hooks: Hooks

    def __init__(self, training: Training) -> None:
        self.training = training
        self.notices = Notices()
        self.epoch_was_set = False
        self._checked_epoch = -1
        self._evaluations = 0
        self._learns_unseen = False
        self._gradient_watch: GradientWatch | None = None

    def watch_gradients(self) -> None:
        """Watch a parameter of an encoder, if a method edits gradients between the backward and the inner step."""
        hooks = ("modbalance_coefficients", "modbalance_gradients")
        if not any(self.hooks.implementers(hook) for hook in hooks):
            return
        structure = self.training.structure
        ours = {id(each) for each in gradients.optimized(self.training.optimizer)}
        listed = (each for modality in structure.modalities for _, each in structure.listed(modality))
        parameter = next((each for each in listed if each.requires_grad and id(each) in ours), None)
        self._gradient_watch = None if parameter is None else GradientWatch(parameter)

    def detach(self) -> None:
        """Take all hooks off the model."""
        if self._gradient_watch is not None:
            self._gradient_watch.remove()

    def saw_evaluation(self, *, learns: bool) -> None:
        """Note a criterion call that methods do not observe; ``learns``: gradients flow from it all the same."""
        self._learns_unseen = learns

    def saw_training_again(self) -> None:
        """Note that training follows an evaluation; warn if no epoch ever ended where methods go by epochs."""
        self._evaluations += 1
        count = self._evaluations
        if count < 2 or self.training.epoch or self.epoch_was_set:
            return
        ending = self.hooks.implementers("modbalance_epoch_end")
        windowed = [each for each in self.hooks.methods if isinstance(each, WindowedMethod)]
        missing = [each.name for each in windowed if each in ending or _window_changes(each, count)]
        if missing:
            methods = " and ".join(missing)
            self.notices.give(_reporting.EPOCH_NEVER_MOVES, methods=methods, count=str(count))

    def saw_step(self) -> None:
        """Note that an inner step was taken."""
        self._learns_unseen = False

    def of_missing_criterion(self, acting: Sequence[Method]) -> None:
        """Warn before a step that follows a forward in training mode without a criterion call.

        Args:
            acting: The methods that would act in this step.
        """
        if not acting:
            return
        training = self.training
        # torch's checkpoint helpers take a step with learning rate 0 before any forward, to create the state.
        took_forward = training.watch.forward is not None or self._learns_unseen
        rates = [group.get("lr") for group in training.optimizer.param_groups]
        learns = any(rate != 0.0 for rate in rates if not isinstance(rate, Tensor))
        if took_forward or (training.structure.model is None and learns):
            replacing = self.hooks.implementers("modbalance_features", acting)
            methods = " and ".join(f"`{method.name}`" for method in replacing or acting)
            notice = _reporting.MISSING_LOSS if replacing else _reporting.MISSING_CRITERION
            self.notices.give(notice, methods=methods)

    def of_parameters(self) -> None:
        """Compare the optimizer's parameters with the model's, before the first step of each epoch.

        Raises:
            ConfigError: They have none in common.
        """
        training, epoch = self.training, self.training.epoch
        if self._checked_epoch == epoch:
            return
        self._checked_epoch = epoch
        names = training.structure.replaced_parameters(training.optimizer)
        if names:
            self.notices.give(_reporting.REPLACED_PARAMETERS, count=str(len(names)), name=names[0])
        scaling = self.hooks.implementers("modbalance_coefficients", self.hooks.active(epoch))
        if scaling and not any(training.ownership.parameters(epoch).values()):
            methods = " and ".join(f"`{method.name}`" for method in scaling)
            self.notices.give(_reporting.NOTHING_TO_SCALE, methods=methods)

    def of_invariance(self) -> None:
        """Warn if the inner optimizer keeps most of its step where a method scales the gradient."""
        structure = self.training.structure
        named = [each for modality in structure.modalities for each in structure.listed(modality)]
        scaled = {
            method.name: [parameter for name, parameter in named if method.modulates(name, parameter)]
            for method in self.hooks.implementers("modbalance_coefficients")
        }
        parameters = [parameter for each in scaled.values() for parameter in each]
        share, name = kept_update(self.training.optimizer, parameters)
        if share > MOST:
            methods = " and ".join(f"`{method}`" for method, parameters in scaled.items() if parameters)
            self.notices.give(_reporting.SCALE_INVARIANCE, methods=methods, optimizer=name, share=f"{share:.2g}")

    def of_changed_gradients(self) -> None:
        """Warn before a modulation of gradients that were changed in place since the backward."""
        watch = None if self.training.dry_run else self._gradient_watch
        if watch is not None and watch.was_changed():
            methods = " and ".join(f"`{method.name}`" for method in self.hooks.methods)
            self.notices.give(_reporting.CHANGED_GRADIENTS, methods=methods)

    def __getstate__(self) -> dict[str, object]:
        state = self.__dict__ | {"_gradient_watch": None}
        state.pop("hooks", None)
        return state


def _window_changes(method: WindowedMethod, epoch: int) -> bool:
    """Return whether a window begins or ends after epoch 0, up to ``epoch``."""
    return 0 < method.start_epoch <= epoch or (method.end_epoch is not None and method.end_epoch < epoch)
