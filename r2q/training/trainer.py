"""The training loop: one recipe, from the full-precision model to a trained student, with records of every step.

A plain loop over torch's own parts (autocast, activation checkpointing, FSDP2, AdamW): what a library's trainer would
add (resuming to the last bit, one data order for all recipes, records of gradients and codes, losses in chunks) had to
be written anyway. Everything random depends on the seed and the step alone, so a run that is killed and started again
ends with the same bits on the same machine; on a GPU, where sums come in any order, with `deterministic` alone.
"""

import math
import time
from typing import Any

import torch

from r2q.records import Gradient, Step
from r2q.training.data import Order, Rows, TrainingData
from r2q.training.losses import SplitModel, Sums, chunked_losses, confidence
from r2q.training.options import TrainingOptions
from r2q.training.processes import Group, like, own, whole
from r2q.training.schedule import autocast, compute_dtype, learning_rate, make_optimizer, set_rate, take_step
from r2q.training.state import Store
from r2q.training.student import Student
from r2q.training.watch import flipped, gradient_norms

SILENCE = 30  # seconds without a line on the terminal
SAID = {"loss": "loss", "held-out loss": "held_out_loss"}


class Diverged(ArithmeticError):
    """A loss or gradient is not finite. The message begins with `diverged` and names step and last good checkpoint."""


class Trainer:
    """Trains a student."""

    def __init__(
        self,
        student: Student,  # the model with its quantized layers
        teacher: SplitModel,  # the full-precision model
        options: TrainingOptions,  # of the recipe
        data: TrainingData,  # rows, folder
        seed: int,  # of the data order
        group: Group,  # this process among those of the run; each computes on its share of every batch
    ) -> None:
        self.student, self.teacher, self.options, self.data, self.group = student, teacher, options, data, group
        self.order = Order(len(data.train), options.batch_rows, seed)
        self.loss_on = data.loss_on(options.loss_on)
        self.store = Store(data.folder, data.identity, group)
        self.parameters = student.trained()
        self.optimizer = make_optimizer(options, self.parameters.values(), group.device)
        self.rows: list[dict[str, Any]] = []  # records of the steps, see :class:`r2q.records.Step`
        self.gradients: list[dict[str, Any]] = []
        self.tokens, self.kept_step, self.saved_step, self.least = 0, options.steps, 0, math.inf
        self.gamma = math.nan  # the confidence coefficient, when the loss has one
        self.best: dict[str, Any] = {}  # step and parameters of the least held-out loss, where they are to be kept
        plain = compute_dtype(options, "cpu") == torch.float32 and not options.compiled
        self.known_states = group.device.type == "cpu" and plain
        self.spoken = time.monotonic()
        if options.activation_checkpointing:
            student.checkpoint_activations()

    def run(self) -> None:
        """Train to the last step, from the checkpoint if there is one.

        Raises:
            Diverged: a loss or gradient is not finite.
            ValueError: no token of a batch or of the held-out rows counts.
        """
        with torch.enable_grad():
            start = self._resume()
            if start == 0:
                self.gamma = self._coefficient()
                self._record_held_out({"step": 0, "tokens": 0})
            before = self.student.codes() if self._compares(start + 1) else None
            for step in range(start + 1, self.options.steps + 1):
                batch = self.data.train[self.order(step - 1)]
                total = int(batch.counted(self.loss_on).sum())
                if total == 0:
                    raise ValueError(f"step {step}: no token of the batch counts for the loss ({self.loss_on})")
                try:
                    before = self._step(step, batch, total, before)
                except ValueError as error:  # a latent weight left the numbers that the quantizer takes
                    self._write_records()
                    raise Diverged(self._diverged(step, str(error))) from None
        if self.options.keep == "best":
            self.kept_step = self.best["step"]
            self._load_parameters(self.best["parameters"])
        self._write_records()

    def _step(self, step: int, batch: Rows, total: int, before: list[torch.Tensor] | None) -> list[torch.Tensor] | None:
        """One optimizer step; takes and returns the packed codes before and after, where they are compared."""
        started, options = time.perf_counter(), self.options
        rate = learning_rate(options, step)
        set_rate(self.optimizer, rate)
        sums = torch.zeros(3, device=self.group.device)
        for rows in self._micro(batch):
            scale = self.group.count / total  # processes' gradients are averaged
            part = self.losses(rows, self._teaches(step), scale)
            part.objective.backward()
            sums += torch.stack([part.loss, part.forward_kl, part.reverse_kl])
        limit = math.inf if options.max_gradient_norm is None else options.max_gradient_norm
        every = options.gradients_every
        layer_norms = gradient_norms(self.student, step) if every and step % every == 0 else []
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit)))
        loss, forward, reverse = (self.group.total(sums) / total).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._write_records()
            raise Diverged(self._diverged(step, f"loss {loss}, gradient norm {norm}"))
        take_step(self.optimizer, options, step, self.group.device)
        self.optimizer.zero_grad(set_to_none=True)
        self.student.requantize()
        self.tokens += total
        following = step < options.steps and self._compares(step + 1)
        after = self.student.codes() if following or before is not None else None
        row: dict[str, Any] = {"step": step, "loss": loss, "forward_kl": forward, "reverse_kl": reverse}
        row |= {"gradient_norm": norm, "learning_rate": rate, "tokens": self.tokens}
        if before is not None and after is not None:
            row["flipped"] = flipped(self.student, before, after)
        row["seconds"] = round(time.perf_counter() - started, 4)
        self.gradients += layer_norms
        if step % options.evaluate_every == 0 or step == options.steps:
            self._record_held_out(row)
        else:
            self.rows.append(row)
            if time.monotonic() - self.spoken > SILENCE:
                self._say(row)
        if options.checkpoint_every and (step == options.steps or step % options.checkpoint_every == 0):
            self._save(step)
        return after if following else None

    def losses(self, rows: Rows, with_teacher: bool = True, scale: float = 1.0) -> Sums:
        """Sums of the recipe's loss and both divergences over the tokens of ``rows`` that count."""
        tokens, counted, labels = self._placed(rows)
        hidden_teacher = None
        if with_teacher:
            hidden_teacher = self._taught(rows, tokens, counted)

        def work() -> Sums:
            return chunked_losses(
                self.options.loss,
                self.student.split.hidden(tokens, counted),
                self._head(),
                hidden_teacher,
                self.teacher.head,
                labels,
                0.0 if math.isnan(self.gamma) else self.gamma,
                self.options.chunk,
                scale,
            )

        with autocast(self.options, self.group.device.type):
            return self.student.split.run(work)

    @torch.no_grad()
    def _taught(self, rows: Rows, tokens: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        """The teacher's hidden states of the counted places ``[counted, features]``: those that came with the rows,
        where this training computes as they were computed."""
        if rows.states is not None and self.known_states:
            return rows.states.flatten(0, 1).index_select(0, counted)
        return self.teacher.run(lambda: self.teacher.hidden(tokens, counted))

    def _placed(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """On the device, without a wait for it: tokens, the places in them that predict a token that counts (int64, of
        the flattened rows), and those tokens."""
        counted = torch.nn.functional.pad(rows.counted(self.loss_on), (0, 1)).flatten().nonzero()[:, 0]
        parts = [rows.tokens, counted, rows.tokens.flatten()[counted + 1]]
        if self.group.device.type == "cuda":
            parts = [part.pin_memory() for part in parts]
        tokens, counted, labels = (part.to(self.group.device, non_blocking=True) for part in parts)
        return tokens, counted, labels

    def _head(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of the student's output layer; a quantized one is quantized once, not once a chunk."""
        head: Any = self.student.split.head
        layers = getattr(head, "fake_layers", None)
        return head.weight if layers is None else layers["weight"].weight(), head.bias

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Loss and both divergences per held-out token."""
        sums = torch.zeros(4, dtype=torch.float64, device=self.group.device)
        for rows in self._micro(self.data.held_out):
            part = self.losses(rows)
            sums[:3] += torch.stack([part.loss, part.forward_kl, part.reverse_kl])
            sums[3] += part.tokens
        *totals, count = self.group.total(sums).tolist()
        if count == 0:
            raise ValueError(f"no held-out token counts for the loss ({self.loss_on})")
        loss, forward, reverse = (total / count for total in totals)
        return {"held_out_loss": loss, "held_out_forward_kl": forward, "held_out_reverse_kl": reverse}

    def _record_held_out(self, row: dict[str, Any]) -> None:
        found = self.held_out()
        self.rows.append(row | found)
        self._say(row | found)
        self._write_records()
        loss = found["held_out_loss"]
        if not math.isfinite(loss):
            raise Diverged(self._diverged(row["step"], f"held-out loss {loss}"))
        if self.options.keep == "best" and loss < self.least:
            self.least = loss
            self.best = {"step": row["step"], "parameters": self._copies()}

    @torch.no_grad()
    def _coefficient(self) -> float:
        """gamma of cakld, measured on the first batches of the training order; NaN for the other losses."""
        wanted = self.options.coefficient
        if self.options.loss != "cakld":
            return math.nan
        if isinstance(wanted, float):
            return wanted
        sums = torch.zeros(2, dtype=torch.float64, device=self.group.device)
        for number in range(self.options.coefficient_batches):
            for rows in self._micro(self.data.train[self.order(number)]):
                tokens, counted, labels = self._placed(rows)
                hidden = self._taught(rows, tokens, counted)
                for h, y in zip(hidden.split(self.options.chunk), labels.split(self.options.chunk), strict=True):
                    sums[0] += confidence(wanted, self.teacher.head(h), y)
                sums[1] += len(labels)
        total, count = self.group.total(sums).tolist()
        if count == 0:
            raise ValueError(f"no token of the first batches counts for the loss ({self.loss_on})")
        return total / count

    def _teaches(self, step: int) -> bool:
        """Whether a step runs the teacher: always for distillation, else only where it is recorded."""
        return self.options.loss != "ce" or step % self.options.evaluate_every == 0

    def _micro(self, rows: Rows) -> list[Rows]:
        """This process's share of rows, in pieces."""
        rows = rows.share(self.group.rank, self.group.count)
        size = self.options.micro_rows or self.options.batch_rows
        return [rows[slice(i, i + size)] for i in range(0, len(rows), size)]

    def _compares(self, step: int) -> bool:
        return bool(self.options.flips_every) and step % self.options.flips_every == 0

    def _say(self, row: dict[str, Any]) -> None:
        """How far it is, on the terminal."""
        self.spoken = time.monotonic()
        if not self.group.first:
            return
        found = [f"{name} {row[key]:.4g}" for name, key in SAID.items() if row.get(key) is not None]
        if row.get("seconds"):
            left = row["seconds"] * (self.options.steps - row["step"])
            found += [f"{row['seconds']:.2g} s a step", f"{left / 60:.0f} min left"]
        print(f"step {row['step']} of {self.options.steps}: {', '.join(found)}", flush=True)

    def _diverged(self, step: int, reason: str) -> str:
        """The sentence of a row that diverged."""
        kept = f"the checkpoint of step {self.saved_step} is kept" if self.saved_step else "no checkpoint before it"
        return f"diverged at step {step}: {reason}; {kept}"

    def _copies(self) -> dict[str, torch.Tensor]:
        return {name: own(p.detach()).clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def _load_parameters(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            own(parameter).copy_(values[name])
        self.student.requantize()

    def _save(self, step: int) -> None:
        if self.store.folder is None:
            return
        parameters = {name: own(p.detach()) for name, p in self.parameters.items()}
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {i: {k: own(v) for k, v in one.items()} for i, one in optimizer["state"].items()}
        state = {"step": step, "parameters": parameters, "optimizer": optimizer}
        records = {"rows": self.rows, "gradients": self.gradients, "tokens": self.tokens}
        self.store.save("checkpoint", state | records | {"gamma": self.gamma, "least": self.least, "best": self.best})
        self.saved_step = step

    def _resume(self) -> int:
        """Load the last good state; returns its step, 0 for a new run."""
        state = self.store.load("checkpoint", self.group.device)
        if state is None:
            return 0
        self._load_parameters(state["parameters"])
        parameters = list(self.parameters.values())
        for number, moments in state["optimizer"]["state"].items():
            moments |= {key: like(value, parameters[number]) for key, value in moments.items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.rows, self.gradients, self.tokens = state["rows"], state["gradients"], state["tokens"]
        self.gamma, self.least, self.best = state["gamma"], state["least"], state["best"]
        self.saved_step = state["step"]
        if self.group.first:
            print(f"training goes on after step {state['step']} of {self.options.steps}", flush=True)
        return state["step"]

    def _write_records(self) -> None:
        self.store.write_csv("training", Step, self.rows)
        self.store.write_csv("gradients", Gradient, self.gradients)
