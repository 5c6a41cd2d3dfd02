"""The candidates of bench-step: how each is made, and their rounds side by side in one process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from rsbdali.bench.measure import meter
from rsbdali.bench.measure.phases import Markable
from rsbdali.bench.measure.timing import finisher
from rsbdali.bench.race.model_step import warm_up_steps
from rsbdali.bench.race.our_step import OurStep
from rsbdali.bench.race.out_of_memory import OUT_OF_MEMORY, out_of_memory
from rsbdali.bench.race.race import Keep, forget
from rsbdali.errors import DeviceError, counted
from rsbdali.recipe import Recipe
from rsbdali.training.acceleration import OFF, PLAIN, Acceleration

Say = Callable[[str], None]
OURS = "rsbdali"
NOTES = {
    OURS: "mixes a uint8 batch, then trains",
    "rsbdali-nomix": "trains on one batch, mixed before",
    "timm": "its Mixup on the batch, then trains",
    "timm-nomix": "trains on one batch, mixed before as by its workers",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A step that takes part.

    Attributes:
        team: `rsbdali` or a peer.
        mixed: whether the batch is mixed in each step.
        acceleration: torch.compile, and for ours CUDA graphs.
    """

    team: str
    mixed: bool
    acceleration: Acceleration = PLAIN

    @property
    def name(self) -> str:
        """The team, and what is different from its plain step."""
        compiled, graphed = self.acceleration.torch_compile != OFF, self.acceleration.cuda_graph
        words = {"nomix": not self.mixed, "compile": compiled, "graph": graphed}
        return "-".join([self.team, *(word for word, holds in words.items() if holds)])

    @property
    def is_plain(self) -> bool:
        """Whether it is neither compiled nor captured."""
        return self.acceleration == PLAIN

    @property
    def note(self) -> str:
        """What a reader should know of it."""
        said = [NOTES[self.team if self.mixed else f"{self.team}-nomix"]]
        if self.acceleration.torch_compile != OFF:
            said.append(f"torch.compile {self.acceleration.torch_compile}")
        if self.acceleration.cuda_graph:
            said.append("as CUDA graphs")
        return "; ".join(said)

    def build(self, recipe: Recipe, device: torch.device) -> Markable:
        """The step, with its own model and optimizer."""
        if self.team == OURS:
            return OurStep(recipe, device, mixed=self.mixed, acceleration=self.acceleration)
        from rsbdali.bench.race.timm_step import TimmStep

        mode = self.acceleration.torch_compile
        return TimmStep(recipe, device, mixed=self.mixed, compile_mode=None if mode == OFF else mode)


def entries(peers: tuple[str, ...], acceleration: Acceleration = PLAIN) -> list[Entry]:
    """Who takes part, ours first: each with and without mixing, plain, and with each switch that was asked for.

    CUDA graphs of a whole step are ours alone; timm's way to them is torch.compile's reduce-overhead.
    """
    found = [Entry(team=team, mixed=mixed) for team in (OURS, *peers) for mixed in (True, False)]
    if acceleration.torch_compile != OFF:
        compiled = replace(acceleration, cuda_graph=False)
        found += [replace(entry, acceleration=compiled) for entry in found]
    if acceleration.cuda_graph:
        found.append(Entry(team=OURS, mixed=True, acceleration=replace(acceleration, torch_compile=OFF)))
    if acceleration.cuda_graph and acceleration.torch_compile != OFF:
        found.append(Entry(team=OURS, mixed=True, acceleration=acceleration))
    return found


class Race:
    """Starts the entries, then measures them in interleaved rounds; one that fails is left out, but for ours, eager.

    Out of GPU memory, ours is left out too, but for the plain step with mixing, to which all others are compared.

    Args:
        recipe: from `synthetic.step_recipe`.
        device: of all steps.
        say: called with a line on what is being done.

    Attributes:
        steps: the steps that still take part, by name.
        skipped: why the others do not.
    """

    def __init__(self, recipe: Recipe, device: torch.device, say: Say) -> None:
        self._recipe, self._device, self._say = recipe, device, say
        self.steps: dict[str, Markable] = {}
        self.skipped: dict[str, str] = {}

    def start(self, entry: Entry) -> None:
        """Build one and make its first steps: kernels are chosen or compiled, memory is taken."""
        self._say(f"starting {entry.name}")

        def start() -> None:
            step = entry.build(self._recipe, self._device)
            for _ in range(warm_up_steps(self._device)):
                step()
            self.steps[entry.name] = step

        self._guard(entry, start)

    def run(
        self, entries: Sequence[Entry], rounds: int, seconds: float, keep: Keep = forget
    ) -> dict[str, tuple[meter.Round, ...]]:
        """The rounds of all that took part to the end; `keep` as in `race.race`."""
        found: dict[str, list[meter.Round]] = {entry.name: [] for entry in entries}
        for number in range(rounds):
            for entry in entries:
                if entry.name in self.steps:
                    self._guard(entry, partial(self._round, entry.name, found[entry.name], seconds))
                if entry.name in self.steps:
                    rate = found[entry.name][-1].images_per_s
                    self._say(f"round {number + 1}/{rounds}: {entry.name} {rate:,.1f} images/s")
            keep({name: done for name, done in found.items() if name in self.steps})
        return {name: tuple(done) for name, done in found.items() if name in self.steps}

    def _round(self, name: str, done: list[meter.Round], seconds: float) -> None:
        warm_up = 1 if self._device.type == "cuda" else 0  # nothing idles down on a CPU, where a step takes long
        finish = finisher(self._device)
        done.append(meter.measure(self.steps[name], seconds=seconds, warm_up=warm_up, finish=finish))

    def _guard(self, entry: Entry, work: Callable[[], None]) -> None:
        """Do an entry's work; torch's own errors (no memory, no compiler) are its end, but for our plain steps."""
        try:
            work()
            return
        except (RuntimeError, DeviceError) as error:  # our training step makes its own error of missing memory
            memory = out_of_memory(str(error))
            if entry.team == OURS and entry.is_plain and not memory:
                raise
            reason = OUT_OF_MEMORY if memory else str(error).strip().partition("\n")[0]
        # behind the handler, where the error no longer holds on to the step's tensors
        self.steps.pop(entry.name, None)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if entry.name == OURS:
            raise DeviceError(
                f"{reason} at {counted(self._recipe.global_batch_size, 'row')}: try a smaller --batch-size"
            )
        self.skipped[entry.name] = reason
        self._say(f"{entry.name} is left out: {reason}")
