"""THE outer loop, behind `datadistill.distill()`. Read this first.

A run is a chain of states. Each outer step draws a real batch, asks the method for the gradient of the outer loss with
respect to the distilled data, and takes one optimiser step. Every so often *validation* measures the data on the
held-out slice of the training split, remembers the best, and saves a checkpoint. The test split is not touched.

Every random draw comes from a generator made from the seed and the step's number, and a state is immutable, so a run
that was killed and resumed goes through the same states, to the bit, as one left alone (on a CPU, with the same number
of threads, and with `iterations`; a `budget` follows the clock and cannot).
"""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from datadistill.data import Datasets, RealData, as_real
from datadistill.distillation.budget import Length, parse_duration
from datadistill.distillation.config import KEYWORDS, RunConfig, config_of
from datadistill.distillation.history import remember, rewind_history
from datadistill.distillation.longer import before_longer, check_can_be_longer, is_longer, lengthened, what_to_do
from datadistill.distillation.memory import Fallback
from datadistill.distillation.optimizer import Outer, Variables, filled, improve
from datadistill.distillation.problem import check_asked, make_problem, with_kernels
from datadistill.distillation.result import Run, with_cost
from datadistill.distillation.run_folder import RunFolder
from datadistill.distillation.settings import Settings, settings_of
from datadistill.distillation.state import Best, RunState, pack, unpack
from datadistill.distillation.synthesis import synthesise
from datadistill.distillation.validation import held_out, is_finite, is_sound, slower
from datadistill.distilled import FILE_NAME, DistilledData
from datadistill.engine import Engine
from datadistill.methods import record_of
from datadistill.methods.base import Context, Method, Problem, State, Step, Synthesis, plan
from datadistill.training.accuracy import Accuracy
from datadistill.utils import ranks
from datadistill.utils.errors import DamagedFileError, DatadistillError, Interrupted, RequestError
from datadistill.utils.fields import with_options
from datadistill.utils.interrupts import Stopped, StopRequest, number_of
from datadistill.utils.progress import Reporter, Silent, Status
from datadistill.utils.runtime import peak_memory, stream, versions

ROLLBACKS = 3
DIVERGED = 2.0


@with_options(KEYWORDS)
def distill(
    real: RealData | Datasets,
    method: Method | Synthesis | None = None,
    *,
    config: RunConfig | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
    **options: Any,
) -> Run:
    """Distil a dataset.

    Args:
        real: the dataset; or a training and a test `Dataset` of pairs (image, label), as for `from_datasets`.
        method: with its hyper-parameters; that of the config without one.
        config: what is asked for, all in one; keywords are put on top of it.
        out: a folder for the run; without one nothing is written.
        resume: go on from the last checkpoint in `out`, which must hold a run with these settings.
        command: what to record as the command that made the result.
        reporter: is told how the run is doing; `with Progress() as bar: distill(..., reporter=bar)` shows a bar.
        **options: what else is asked for, by the names of `RunConfig`'s fields:

    Raises:
        RequestError: the request was wrong.
        TypeError: there is no option of that name.
        Interrupted: Ctrl-C, or another of `SIGNALS`; the run is saved in `out`.
        DatadistillError: it could not go on.
    """
    config, reporter = config_of(method, config, options), (reporter if ranks.leads() else None) or Silent()
    method, length = config.method, Length(config.iterations, parse_duration(config.budget))
    problem = make_problem(as_real(real), config)
    for remark in problem.network.remarks:
        reporter.say(remark)
    check_asked(method, problem)
    resolved = method.resolve(problem)
    started = None if isinstance(resolved, Synthesis) else resolved.init(problem, stream(problem.seed, "start"))
    facts = {"versions": versions(), "threads": torch.get_num_threads(), "recipe": command}
    settings = settings_of(problem, config, **facts)
    folder = None if out is None or not ranks.leads() else RunFolder(Path(out))
    before = ranks.from_first(lambda: folder.settings() if folder and resume and folder.exists() else None)
    command = before.recipe if before is not None else command
    if before is not None and folder is not None:
        if is_longer(before, settings):
            check_can_be_longer(before_longer(before, config), folder.path)
            command = lengthened(before, settings.asked["iterations"]).recipe
        _check_same(folder, before, settings)
    with StopRequest() as stop, folder.locked() if folder else nullcontext() as folder:
        # Nothing is known to be wrong with the request: now it is worth the wait for a compiler.
        problem, operations = with_kernels(problem, None if before is None else before.kernels, reporter)
        settings = replace(settings, kernels=list(operations))
        if isinstance(resolved, Synthesis):
            if folder is not None and before is None:
                folder.begin(settings)
            return synthesise(resolved, problem, folder, command, reporter, stop)
        assert started is not None
        template, method_state = started
        template = template.noted(recipe=command, versions=versions())
        fallback = _planned(problem, resolved)
        loop = _Loop(problem, resolved, config.outer, length, template, method_state, fallback, reporter, folder)
        state = loop.first() if folder is None else _open(folder, before, settings, loop, config, resume)
        return loop.finish(loop.run(loop.agreed(state), stop))


def _planned(problem: Problem, method: Method) -> Fallback:
    """Engine of a run, planned once, before the first step."""
    workload = method.workload(problem).of_rank(ranks.count())
    engine = ranks.from_first(lambda: plan(method, problem))
    return Fallback(engine, workload, problem.with_model(workload.model).network, problem.device)


def _check_same(folder: RunFolder, before: Settings, settings: Settings) -> None:
    if is_longer(before, settings):
        before = lengthened(before, settings.asked["iterations"])
    difference = before.difference(settings)
    if difference:
        raise RequestError(
            f"the run in {folder.path} has other settings: {difference}; leave that out, or give another --out"
        )


def _open(
    folder: RunFolder, before: Settings | None, settings: Settings, loop: "_Loop", config: RunConfig, resume: bool
) -> RunState:
    """The state to go on from."""
    if before is None:
        folder.begin(settings)
        if resume:
            loop.reporter.say(f"{folder.path} holds no run yet: starting from the beginning.")
        remember(folder.path, 0, loop.template)
        return loop.first()
    if (before.threads, before.versions.get("torch")) != (settings.threads, settings.versions.get("torch")):
        loop.reporter.say(
            f"the run was started with {before.threads} threads and torch {before.versions.get('torch')}, which "
            f"differ from {settings.threads} and {settings.versions.get('torch')}: its last bits will differ too."
        )
    checkpoint, complaints = folder.latest()
    for complaint in complaints:
        loop.reporter.say(complaint)
    try:
        state = loop.first() if checkpoint is None else unpack(checkpoint, loop.first())
    except DamagedFileError as error:
        raise DamagedFileError(f"the checkpoint in {folder.path} is not of this run: {error}") from error
    if is_longer(before, settings):
        state = loop.made_longer(state, before, config)
    folder.rewind(state.step)
    rewind_history(folder.path, state.step)
    if state.step == 0:
        remember(folder.path, 0, loop.template)
    if state.finished:
        loop.reporter.say(what_to_do(config, folder.path, state))
    else:
        loop.reporter.say(f"resuming {folder.path} at step {state.step}.")
    return state


class _Watched(Context):
    """A context that remembers whether its progress was asked for."""

    asked: list[None]

    @property
    def progress(self) -> float:
        self.asked.append(None)
        return self[2]


@dataclass(frozen=True, eq=False)
class _Loop:
    """Constants of a run, and its loop."""

    problem: Problem
    method: Method
    outer: Outer
    length: Length
    template: DistilledData
    method_state: State
    fallback: Fallback
    reporter: Reporter
    folder: RunFolder | None

    def first(self) -> RunState:
        """Initial run state."""
        variables = Variables.of(self.template, record_of(self.method).learns, self.outer)
        return RunState(variables, method_state=self.method_state)

    def agreed(self, state: RunState) -> RunState:
        """The state of rank 0, which is that of all ranks but for what the last bits of other processors do."""
        if ranks.count() == 1:
            return state
        checkpoint = ranks.from_first(lambda: pack(state))
        return state if ranks.leads() else unpack(checkpoint, self.first())

    def made_longer(self, state: RunState, before: Settings, config: RunConfig) -> RunState:
        """A state that a longer run goes through too: the last look of a run is none of its own, unless it was due.

        Raises:
            RequestError: a longer run would have gone through others.
        """
        folder, iterations = self.folder, self.length.iterations
        assert folder is not None
        assert iterations is not None
        check_can_be_longer(before_longer(before, config), folder.path, state)
        if state.finished and state.step % self.outer.eval_every:
            folder.forget(state.step)
            checkpoint, _ = folder.latest()
            state = self.first() if checkpoint is None else unpack(checkpoint, self.first())
        elif state.finished:
            state = replace(state, finished=False)
            folder.save(state.step, pack(state))
        if state.best is not None:  # what was best at the last look may be none of a longer run's
            self._result(state, state.best).save(folder.place(FILE_NAME))
        folder.change(lengthened(before, iterations))
        return state

    def run(self, state: RunState, stop: StopRequest) -> RunState:
        """The outer loop."""
        good = state.good or state
        state = replace(state, good=None)
        began = time.perf_counter() - state.seconds
        while not state.finished:
            try:
                state, good = self._advance(state, good, began)
            except KeyboardInterrupt as error:  # amid a step, which is taken again
                self._interrupt(state, good, number_of(error))
            if stop.requested and not state.finished:
                self._interrupt(state, good, stop.requested)
        return state

    def _advance(self, state: RunState, good: RunState, began: float) -> tuple[RunState, RunState]:
        """The state after one outer step and what belongs to it, and the one to roll back to."""
        progress = self.length.progress(state.step, state.seconds)
        step, fallbacks, remarks, is_paced = self._step(state, progress)
        if not is_finite(step):
            return (self._roll_back(good, state, "the outer loss or its gradient is not finite"),) * 2
        for remark in remarks:
            self._say(remark)
        is_paced = is_paced or state.is_paced
        state = replace(state, fallbacks=fallbacks, remarks=(*state.remarks, *remarks), is_paced=is_paced)
        state = self._improve(state, step, progress, self._seconds(began))
        loss = state.loss
        if state.step % self.outer.eval_every == 0 or self._is_over(state):
            if self._has_diverged(state):
                return (self._roll_back(good, state, f"the outer loss rose to {state.loss:.3g}"),) * 2
            validated = self._validate(self.agreed(state))
            if validated is None:
                return (self._roll_back(good, state, "the held-out loss is not finite"),) * 2
            state = good = validated
        self._report(state, progress, loss)
        return state, good

    def finish(self, state: RunState) -> Run:
        """Result of a finished run: the best data, with its cost."""
        if self.length.iterations and self.length.budget and state.step < self.length.iterations:
            self._say(f"the clock ended it after {state.step:,} of {self.length.iterations:,} outer steps.")
        best = state.best
        assert best is not None, "a finished run was validated at least once"
        # With protocol dc there are no rates of steps to choose, and that many networks would take hours.
        settle = self.outer.settle and not self.template.is_condensed
        if settle:
            best = self._settled(state, best)
        distilled = self._result(state, best)
        if settle and self.folder is not None:
            distilled.save(self.folder.place(FILE_NAME))
        return Run(
            distilled=distilled,
            held_out=Accuracy(best.correct, best.loss),
            steps=state.step,
            seconds=state.seconds,
            folder=self.folder.path if self.folder else None,
            remarks=state.remarks,
        )

    def _settled(self, state: RunState, best: Best) -> Best:
        """The best of the validated data and the last, with learning rates scaled by `SLOWER`, on more networks."""
        last = replace(best, step=state.step, values=state.variables.average)
        candidates = slower(best) + (slower(last) if state.step != best.step else [])
        self.reporter.say(f"choosing between {len(candidates)} results with {self.outer.settle} networks each.")
        measured = []
        for candidate in candidates:
            distilled = filled(self.template, candidate.values)
            if is_sound(distilled):
                seen = held_out(self.problem, distilled, self.outer.settle, "settle")
                measured.append(replace(candidate, correct=seen.correct, loss=seen.loss))
        return max(measured, key=lambda one: (one.correct, -one.loss))

    def _step(self, state: RunState, progress: float) -> tuple[Step, int, tuple[str, ...], bool]:
        """The method's step, the choices of the engine that are given up by now, and sentences on new ones.

        Last, whether the method has asked for the progress.
        """
        distilled, asked = filled(self.template, state.variables.values), list[None]()

        def step(engine: Engine) -> Step:
            generator = stream(self.problem.seed, "step", state.step, state.rollbacks)
            context = _Watched(self.problem, engine, progress)
            context.asked = asked
            return self.method.step(distilled, state.method_state, context, generator)

        return *self.fallback.run(state.fallbacks, step), bool(asked)

    def _seconds(self, began: float) -> float:
        """Seconds of the run; where it ends by the clock, by that of rank 0."""
        seconds = time.perf_counter() - began
        return seconds if self.length.budget is None else ranks.from_first(lambda: seconds)

    def _improve(self, state: RunState, step: Step, progress: float, seconds: float) -> RunState:
        rate = self._rate(state, progress)
        loss = float(step.loss)
        return replace(
            state,
            variables=improve(state.variables, step.gradients, self.outer, rate, record_of(self.method).non_negative),
            step=state.step + 1,
            seconds=seconds,
            method_state=step.state,
            loss_sum=state.loss_sum + loss,
            loss_count=state.loss_count + 1,
            first_loss=loss if state.first_loss is None else state.first_loss,
        )

    def _report(self, state: RunState, progress: float, loss: float) -> None:
        done = self.length.progress(state.step, state.seconds)
        memory = peak_memory(self.problem.device)
        self.reporter.update(
            Status(
                step=state.step,
                fraction=done,
                seconds=state.seconds,
                loss=loss,
                accuracy=state.accuracy,
                rate=self._rate(state, progress),
                memory=memory,
            )
        )

    def _validate(self, state: RunState) -> RunState | None:
        """Validation: the state with the best data so far, saved; None where the held-out loss is not finite."""
        distilled = filled(self.template, state.variables.average)
        if not (state.variables.are_sound() and is_sound(distilled)):
            return None
        seen = held_out(self.problem, distilled)
        if not math.isfinite(seen.loss):
            return None
        best = state.best
        better = best is None or (seen.correct, -seen.loss) > (best.correct, -best.loss)
        if best is None or better:
            best = Best(seen.correct, seen.loss, state.step, state.variables.average)
        validated = replace(
            state, best=best, accuracy=seen.correct, loss_sum=0.0, loss_count=0, finished=self._is_over(state)
        )
        if self.folder is not None:
            self.folder.record(self._metrics(state, seen, distilled))
            remember(self.folder.path, state.step, distilled)
            if better:
                self._result(validated, best).save(self.folder.place(FILE_NAME))
            self.folder.save(state.step, pack(validated))
        return validated

    def _metrics(self, state: RunState, seen: Accuracy, distilled: DistilledData) -> dict[str, object]:
        rates = distilled.learning_rates
        return {
            "step": state.step,
            "seconds": round(state.seconds, 3),
            "outer_loss": state.loss,
            "held_out_accuracy": seen.correct,
            "held_out_loss": seen.loss,
            "rate": self._rate(state, self.length.progress(state.step, state.seconds)),
            "learning_rates": None if rates is None else [float(f"{rate:.6g}") for rate in rates.tolist()],
            "peak_bytes": peak_memory(self.problem.device),
        }

    def _rate(self, state: RunState, progress: float) -> float:
        return self.outer.lr_at(progress) * 0.5**state.rollbacks

    def _is_over(self, state: RunState) -> bool:
        return self.length.progress(state.step, state.seconds) >= 1

    def _has_diverged(self, state: RunState) -> bool:
        chance = math.log(self.problem.real.num_classes)
        return state.loss > DIVERGED * max(chance, state.first_loss or 0.0)

    def _roll_back(self, good: RunState, state: RunState, trouble: str) -> RunState:
        """The last good state with half the outer learning rate; after three times, the end."""
        if good.rollbacks == ROLLBACKS:
            remark = f"step {state.step}: {trouble}, for the {ROLLBACKS + 1}th time; stopped with the best so far."
            validated = good if good.best is not None else self._validate(good)
            if validated is None:
                raise DatadistillError("the loss is not finite even at the start: give a lower --learning-rate")
            ended = replace(validated, finished=True)
        else:
            rate = self.outer.lr * 0.5 ** (good.rollbacks + 1)
            remark = f"step {state.step}: {trouble}; back to step {good.step}, outer learning rate halved to {rate:g}."
            ended = replace(good, rollbacks=good.rollbacks + 1)
        self._say(remark)
        ended = replace(ended, remarks=(*good.remarks, remark), seconds=state.seconds)
        if ended.finished and self.folder is not None:
            self.folder.save(ended.step, pack(ended))
        return ended

    def _interrupt(self, state: RunState, good: RunState, number: int) -> NoReturn:
        """Save between two validations and leave, because of this signal.

        Raises:
            Interrupted: always.
        """
        if self.folder is None:
            raise Stopped(number)
        self.folder.save(state.step, pack(state if good is state else replace(state, good=good)))
        raise Interrupted(f"interrupted at step {state.step} and saved", self.folder.path, number)

    def _say(self, text: str) -> None:
        self.reporter.say(text)
        if self.folder is not None:
            self.folder.log(text)

    def _result(self, state: RunState, best: Best) -> DistilledData:
        distilled = filled(self.template, best.values)
        return with_cost(distilled, round(state.seconds, 3), state.step, best.correct, best.step)
