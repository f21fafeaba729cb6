"""Options that every training frame shares; read without torch when a config is checked."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from r2q.config import QuantizerOptions

Loss = Literal["ce", "forward_kl", "reverse_kl", "jsd", "cakld"]
Gradient = Literal["identity", "clipped", "through-scales"]


class TrainingOptions(QuantizerOptions):
    """Options of a training frame. Its own file sets the defaults that its paper or code has."""

    counts_with: ClassVar = dict.fromkeys(("coefficient", "coefficient_batches"), ("loss", "cakld"))
    loss: Loss = "forward_kl"  # see r2q/training/losses.py; all are means per token
    gradient: Gradient = "identity"  # how the gradient passes the quantizer; see r2q/training/fake_quant.py
    # cakld's weight of the reverse divergence: the teacher's mean largest probability (BitDistiller's code), its mean
    # probability of the label (its paper), or a number
    coefficient: Literal["max_probability", "label_probability"] | float = "max_probability"
    coefficient_batches: int = Field(default=10, ge=1, le=10**6)  # training batches that the coefficient is measured on
    start: str | None = None  # a recipe of the same run and granularity that does not train, to start from; null = none
    # what of it. `levels`: latent weights are first clamped to the range of its levels, group by group (with
    # bitdistiller_clip it is BitDistiller's first stage). `weights`: they are that recipe's own weights, as gptq's
    # error feedback or efficientqat_block's training left them just before they were rounded
    start_from: Literal["levels", "weights"] = "levels"
    # what learns: `all` parameters, or only the latent weights of the quantized `layers`
    train: Literal["all", "layers"] = "all"
    # tokens that count: `all`, or those of the `response`; auto = response for supervised data, else all
    loss_on: Literal["auto", "all", "response"] = "auto"
    steps: int = Field(default=200, ge=1, le=10**7)  # optimizer steps
    batch_rows: int = Field(default=128, ge=1, le=10**6)  # rows a step
    # rows at once, in each process; gradients of a step are accumulated. 0 = all
    micro_rows: int = Field(default=0, ge=0, le=10**6)
    # AdamW, or AdamW whose two moments take 8 bits each (torchao's, in blocks of 256; arXiv 2110.02861)
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    learning_rate: float = Field(default=8e-6, gt=0)  # the highest one
    # after the warmup: constant, linear to 0, or cosine to a twentieth
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0, le=10**7)  # steps of linear increase
    weight_decay: float = Field(default=0.0, ge=0)  # AdamW's, on everything that is trained
    beta2: float = Field(default=0.999, gt=0, lt=1)  # AdamW's second decay; the first is 0.9
    # gradients are scaled down to this global norm; null = never
    max_gradient_norm: float | None = Field(default=1.0, gt=0)
    # number type of latent weights and optimizer states; bfloat16 ones are rounded by chance: to nearest most steps of
    # a small rate would be lost
    latent: Literal["float32", "bfloat16"] = "float32"
    # number type of the layers' arithmetic, where latent weights are float32, else it is theirs; auto = bfloat16 on a
    # GPU, float32 elsewhere
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    # compile every decoder block of student and teacher (torch.compile): faster steps, other last digits
    compiled: bool = False
    # only kernels that repeat themselves, so that the same training on the same GPU ends with the same bits; slower. On
    # a CPU it always does
    deterministic: bool = False
    # compute activations again in the backward pass instead of keeping them, and quantize weights in every pass instead
    # of once a step
    activation_checkpointing: bool = False
    # the weights that become the result: of the last step, or of the least held-out loss
    keep: Literal["last", "best"] = "last"
    # steps between held-out losses; the first and the last step always have one
    evaluate_every: int = Field(default=20, ge=1, le=10**7)
    checkpoint_every: int = Field(default=50, ge=0, le=10**7)  # steps between checkpoints to resume from; 0 = none
    # steps between records of the gradient norm of every layer; 0 = none
    gradients_every: int = Field(default=10, ge=0, le=10**7)
    # steps between records of the share of codes that flipped in one step; 0 = none
    flips_every: int = Field(default=1, ge=0, le=10**7)
    chunk: int = Field(default=4096, ge=1, le=2**24)  # tokens whose logits are in memory at once

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.latent == "bfloat16" and self.compute == "float32":
            raise ValueError("compute: float32 needs latent: float32; bfloat16 weights are multiplied as they are")
        if isinstance(self.coefficient, float) and not 0 <= self.coefficient <= 1:
            raise ValueError(f"coefficient: {self.coefficient} is not between 0 and 1")
        batches = type(self).model_fields["coefficient_batches"].default
        if isinstance(self.coefficient, float) and self.coefficient_batches != batches:
            raise ValueError("coefficient_batches: nothing is measured, coefficient is a number")
        if self.start is None and self.start_from == "weights":
            raise ValueError("start_from: counts with a start alone")
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps: {self.warmup_steps} are more than the {self.steps} steps there are")
        if self.warmup_steps == self.steps and self.schedule != "constant":
            raise ValueError(f"warmup_steps: {self.steps} of {self.steps} steps leave none for {self.schedule}")
        return self

    @property
    def spreads(self) -> bool:
        """Whether several processes can train so: torchao 0.18 does not view parts of 8-bit moments in bfloat16."""
        return self.optimizer != "adamw_8bit" or self.latent != "bfloat16"

    def problems(self, recipe: Any, config: Any) -> list[str]:
        """A step with more rows than there are, responses where rows have none, an optimizer that is not spread over
        processes, beside what the quantizer says."""
        found, rows = super().problems(recipe, config), config.training.rows if config.training is not None else None
        if rows is not None and self.batch_rows > rows >= 1:
            held_out = config.training.held_out
            found.append(f"batch_rows: {self.batch_rows} are more than the {rows} rows ({held_out} more are held out)")
        if self.loss_on == "response" and config.training is not None and config.training.kind == "text":
            found.append("loss_on: response is all of a row of text (training.kind), which has none")
        if config.limits.training_processes > 1 and not self.spreads:
            processes = config.limits.training_processes
            found.append(
                f"optimizer: adamw_8bit with latent: bfloat16 fails in torchao on {processes} processes "
                "(limits.training_processes); use one of the two"
            )
        return found
