"""ScalarTrainer: a proved loss, its parameters, and every way to take a step with them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from shaped.arguments import OWN, checked
from shaped.backends import (
    Auto,
    Backend,
    Comparison,
    Compiled,
    CompileError,
    Eager,
    Executors,
    KeptProgram,
    Program,
    Sizes,
    TrainerOptions,
    checked_count,
    compare,
    keep_program,
    settled,
    shelf_for,
)
from shaped.errors import ShapedError
from shaped.given import GivenOptimizer
from shaped.optim import AdamW
from shaped.params import ParamList
from shaped.proof import Proof
from shaped.remaking import refrozen, remade
from shaped.scaling import LossScale, made_scaler, scaled_loss
from shaped.sharing import Zero, share
from shaped.state import TrainingState
from shaped.stepping import Stepping
from shaped.strategies import GradientStrategy


class ScalarTrainer(Stepping):
    """Forward, backward and update of one scalar loss, whose shapes are proved at construction.

    The parameters are trained in place. Every method checks its whole input before anything changes.

    Args:
        loss: `loss(params, *inputs) -> Float[Tensor, ""]`, annotated; for a module also a loss over the module or over
            its output. It may return more, as a tuple or a NamedTuple with the loss first: it stands in `returned`.
        params: A ParamList or an nn.Module.
        backend: "eager" (autograd, operation by operation) or "compiled" (the proved graph with the update, one
            callable), which give the same numbers up to rounding; or "auto": eager at once, compiled as soon as another
            process has compiled it, and eager with a warning if the compiler refuses.
        optimizer: For `train_step`: of `shaped.optim`, over these parameters, or `Muon`; several in a list, each over
            its own; eagerly any of torch.optim.
        assume: Relations between sizes to take as given, as for `prove`.
        static: Dimension names that are proved at each size as it comes; "auto" takes those that the loss reads as
            plain numbers, and the proof names them.
        max_executors: How many compiled callables may exist; one more is an error that names this argument.
        max_norm: Scale gradients to a global 2-norm of at most this before each update; where the optimizer has a
            `max_norm` too, once, to the smaller.
        nonfinite: What a NaN or infinite loss or gradient does, whatever the optimizer's `skip_nonfinite` is: "raise"
            NonFiniteError, or "skip" the update and count it in `skipped`. Parameters and state stay in both.
        accumulate: Take an update at every n-th step only, with the mean gradient over all samples of the n batches.
        autocast: Run the loss under torch.autocast in this dtype (torch.bfloat16, or "bf16").
        check: Compare every batch with the signature. False only if something before does.
        allow_unused: A parameter that does not influence the loss gets a zero gradient and no update, not an error.
        sizes: "static": an executor for each tuple of sizes. "dynamic": one for all. "auto": the first, then the second
            when another size comes, so that a smaller last batch makes two executors, whatever sizes follow.
        samples: How many samples a batch has, for `accumulate` and means: `"batch*seq"`, or a function of a batch. The
            default is what the loss divides by (what its mask keeps), otherwise the dimension that leads the first
            input, where no parameter has it.
        capture: On a GPU, replay each compiled step as one captured graph after some warm-up steps.
        verify: Hold each new executor against eager once, on copies, at its first batch; a difference is an error.
        strategy: How the gradients come from the loss: `OneStep()`, or a function; None is full backpropagation.
        loss_scale: "dynamic", or a `LossScaler`: scale the loss for float16; what overflows is skipped and lowers it.
        save_frozen: False leaves frozen parameters out of the state; loading then compares them by checksum.
        mesh: The processes to train on together, as `ranks.join()` or `init_device_mesh` give them: each takes its own
            part of a batch, and a step is that of one process on all of it. "alone": each process trains for itself.
        shard: Which dimension of the batch lies over which axis of the mesh: `{"batch": "dp"}`. The default is the one
            that leads the first input, over the mesh's one axis.
        zero: 0 keeps parameters, gradients and moments whole on each rank, as DDP does. 3 keeps an even part of each on
            each rank, and gathers a parameter where it is read, as fully_shard does.
        names: For `shard`, the axes of a module's parameters by path or pattern: `{"*.up.weight": "hidden dim"}`; its
            classes may declare them too. A ParamList has them.
        inside: Names of `shard` that lie within the program even where ranks could each take rows: for a loss that is
            no mean over its batch. All ranks are given whole batches; what an operation must see whole is gathered.
        program: A file of `save_program`, as `load_program` takes it: nothing is proved or compiled that is in it.
        keep: A folder, or True for the user's own: what is compiled is kept there as soon as it was held against eager,
            and a process that makes this very trainer again starts with it; see Kept programs in docs/compiled-step.md.

    Raises:
        SignatureError, ProofError, Unprovable, GradientError: The loss or its annotations are wrong.
        ValueError: An argument is out of range.
        StateError: The kept program is not this one.
    """

    @checked
    def __init__(
        self,
        loss: Callable[..., Any],
        params: ParamList | nn.Module,
        *,
        backend: Literal["eager", "compiled", "auto"] = "eager",
        optimizer: Annotated[GivenOptimizer | None, OWN] = None,
        assume: Annotated[Sequence[str], OWN] = (),
        static: Annotated[Sequence[str] | Mapping[str, int] | Literal["auto"], OWN] = (),
        max_executors: int = 20,
        max_norm: float | None = None,
        nonfinite: Literal["raise", "skip"] = "raise",
        accumulate: int = 1,
        autocast: torch.dtype | str | None = None,
        check: bool = True,
        allow_unused: bool = False,
        sizes: Sizes = "auto",
        samples: Annotated[str | Callable[..., Any] | None, OWN] = None,
        capture: bool = True,
        verify: bool = True,
        strategy: GradientStrategy | None = None,
        loss_scale: Annotated[LossScale | None, OWN] = None,
        save_frozen: bool = True,
        mesh: Annotated[Any, OWN] = None,
        shard: Mapping[str, str] | None = None,
        zero: Zero = 0,
        names: Mapping[str, str] | None = None,
        inside: Sequence[str] = (),
        program: str | PathLike[str] | None = None,
        keep: bool | str | PathLike[str] = False,
    ) -> None:
        nonfinite = "skip" if loss_scale is not None else nonfinite
        options = TrainerOptions(max_executors, max_norm, nonfinite, accumulate, sizes, capture, verify)
        proving: dict[str, Any] = {"assume": assume, "static": static, "autocast": autocast, "check": check}
        proving |= {"samples": samples, "allow_unused": allow_unused, "strategy": strategy}
        alone = {"mesh": mesh} if mesh is not None else {}
        given = {**asdict(options), **proving, "save_frozen": save_frozen, "loss_scale": loss_scale, **alone}
        given["keep"] = keep
        shelf = shelf_for(keep, static, verify)
        try:
            taken, scaling = (loss, {}) if loss_scale is None else scaled_loss(loss, samples)
            kept = None if program is None else KeptProgram(program, loss, params, given)
            if shelf is not None and kept is None and backend != "eager":
                kept = shelf.find(loss, params, given)
            made = settled(taken, params, **{**proving, **scaling}, kept=kept)
            if static == "auto":
                given["static"] = made.proof.per_size
            if accumulate > 1:
                made.hold_to_one_count()
            share(made, options, mesh, shard, zero, save_frozen, names, inside)
        except ShapedError as error:
            raise error.with_traceback(None) from None  # the message shows the user's line; our frames would hide it
        self._made_of = (loss, params, given)
        self._options = options
        scaler = made_scaler(loss_scale, strategy, made.params.device)
        self._shared = TrainingState(made, optimizer, options, save_frozen, scaler)
        self._shared.keep_in(shelf, self._made_of)
        self._chosen = backend
        self._backend: Backend = self._shared.backend(backend)

    # -- what is there ---------------------------------------------------------------------------------------------

    @property
    def backend(self) -> str:
        """ "eager" or "compiled"."""
        return self._backend.name

    @property
    def params(self) -> ParamList:
        """The parameters that are trained (not a copy). Raises ValueError where a rank has parts of them alone."""
        if self.parted:
            how = "with zero=3" if self.zero else "by name"
            raise ValueError(f"{how} the parameters lie in parts over the ranks: get_params() gathers them")
        return self._program.params

    @property
    def proof(self) -> Proof:
        """What was proved before the first step."""
        together = self._program.together
        return self._program.proof if together is None else together.statement

    @property
    def executors(self) -> Executors:
        """The compiled callables so far; print it for a table. Empty on the eager backend."""
        return self._backend.executors

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The nn.Module that is trained and all inside it; empty for a ParamList."""
        return tuple(self._program.modules)

    @property
    def accumulate(self) -> int:
        """Calls of a step for each update."""
        return self._options.accumulate

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer of `train_step`, as it was given."""
        return self._shared.given

    @property
    def steps(self) -> int:
        """Updates taken. Reading it waits for the device where compiled steps count there (`nonfinite="skip"`)."""
        return self._shared.counters.taken

    @property
    def skipped(self) -> int:
        """Batches left out because something was not finite (`nonfinite="skip"`); waits as `steps` does."""
        return self._shared.counters.left_out

    @property
    def grad_norm(self) -> Tensor | None:
        """The global 2-norm of the last update's gradients before clipping; None where no `max_norm` asked for it."""
        return self._shared.counters.grad_norm

    @property
    def returned(self) -> Any:
        """What the loss returned in the last pass or step, as it is declared, where it returns more than the scalar.

        Without gradients, and a copy where it is a parameter. Raises ValueError where there is none.
        """
        if not self._program.returned:
            raise ValueError(f"`{self._program.signature.name}` returns the loss alone, or has not run yet")
        return self._program.signature.returns.build(self._program.returned)

    @property
    def _program(self) -> Program:  # type: ignore[override]
        return self._shared.program

    def get_params(self) -> ParamList:
        """A synchronised copy of the parameters; with zero=3 gathered, so that all ranks call it."""
        program, together = self._program, self._program.together
        if together is None:
            return program.params.values()
        if together.parted:
            together.come("get_params")
        return program.params.like([together.whole(i, t).detach().clone() for i, t in enumerate(program.tensors)])

    # -- without an update -----------------------------------------------------------------------------------------

    def forward(self, *inputs: Any, **named: Any) -> Float[Tensor, ""]:
        """The loss of a batch, shape (), on the parameters' device.

        Args:
            inputs, named: The batch: a tensor, or a container of tensors, for each input of the signature, by position
                or by name.

        Raises:
            ShapeError: The batch breaks the signature.
        """
        with self._together(forward=True):
            return self._backend.forward(self._program.arrange(inputs, named))

    def count(self, *inputs: Any, **named: Any) -> float:
        """How many samples a batch has: what it weighs in a mean over batches. Waits for the device.

        Raises ShapeError where the batch breaks the signature, ValueError where `samples` gives no count for it.
        """
        return checked_count(self._program.count_now(self._program.arrange(inputs, named)))

    def backward(self, *inputs: Any, **named: Any) -> ParamList:
        """The gradients of a batch: a list of the parameters' class and signature.

        A frozen parameter's gradient is zero (a read-only view of one zero, so it takes no memory).
        """
        return self.loss_and_backward(*inputs, **named)[1]

    def loss_and_backward(self, *inputs: Any, **named: Any) -> tuple[Float[Tensor, ""], ParamList]:
        """The loss of a batch and its gradients, from one pass."""
        with self._together():
            loss, gradients, _ = self._backend.loss_and_backward(self._program.arrange(inputs, named))
        params, found = self._program.params, dict(zip(self._program.used, gradients, strict=True))
        together = self._program.together
        shapes = [p.shape if together is None else together.whole_shape(i) for i, p in enumerate(params)]
        return loss, params.like(
            [found[i] if i in found else p.new_zeros(()).expand(shapes[i]) for i, p in enumerate(params)]
        )

    # -- two backends ----------------------------------------------------------------------------------------------

    @checked
    def with_backend(self, backend: Literal["eager", "compiled", "auto"]) -> "ScalarTrainer":
        """A trainer on another backend that shares parameters, proof, optimizers and step count with this one."""
        other = copy.copy(self)  # another handle on the same run
        other._chosen, other._backend = backend, self._shared.backend(backend)
        return other

    @checked
    def with_frozen(self, paths: Sequence[str]) -> "ScalarTrainer":
        """A trainer of the same loss over the same memory: these entries are frozen, and the others are trained.

        It goes on with this one's optimizers and counts: moments are kept (of what is frozen where an `optimizer` was
        given), and what was never trained begins. Use it instead of this one from then on. Paths are as for
        `ParamList.with_frozen`; none unfreezes all.

        Raises SignatureError where a path matches nothing, ValueError for a module or where gradients wait.
        """
        if self.ranks is not None:
            raise ValueError("with_frozen is not done on several ranks as yet: make a trainer of frozen parameters")
        return refrozen(self, paths)

    @checked
    def precompile(self, *shapes: Any, method: str | None = None, **sizes: int) -> Executors:
        """Compile for a batch before there is one: `precompile(batch=64)`, or `precompile((64, 784), (64,))`.

        Args:
            shapes: A shape, or a tensor of the shape and dtype, for each input of the signature. Values are not read.
            method: The method to compile for; that of the optimizer given at construction, otherwise "adamw_step".
            sizes: Instead of shapes, the dimensions that the parameters do not fix, by name.

        Returns:
            The executors; the ones that were there already are not made again.

        Raises:
            ValueError: This is the eager backend, or there is no such method or dimension.
            ShapeError, ExecutorError: As for a step with such a batch.
        """
        method = method or ("train_step" if self.optimizer is not None else "adamw_step")
        mode, optimizer = self._shared.compiles(method)
        backend = self._backend.compiled if isinstance(self._backend, Auto) else self._backend
        if not isinstance(backend, Compiled):
            raise ValueError("the eager backend compiles nothing: with_backend('compiled').precompile(...)")
        try:
            backend.precompile(mode, self._program.examples(shapes, sizes), optimizer)
        except CompileError as error:
            if not isinstance(self._backend, Auto):
                raise
            self._backend.leave(error)
        return backend.executors

    def compare_backends(self, *inputs: Any, **named: Any) -> Comparison:
        """Eager against compiled on a batch: loss, gradients, and every parameter after one step. Changes nothing.

        The step is that of the optimizer that took the last one; before any, that of `train_step`, or AdamW at lr 1e-3.
        What is compiled for it takes no place among the executors, and is let go.

        Returns:
            Relative differences, each with a bound on what rounding can do, and a verdict: `.agree`.

        Raises:
            ValueError: The loss draws at random, or is not finite.
        """
        if self.ranks is not None:
            raise ValueError("compare_backends takes a step of one process: compare in a trainer without a mesh")
        flat = self._program.arrange(inputs, named)
        optimizer = self._shared.last_optimizer or AdamW(self._program.used_tensors, lr=1e-3)
        return compare(self._shared.eager, self._shared.compiled.aside(), flat, optimizer)

    # -- kept programs ---------------------------------------------------------------------------------------------

    @property
    def _compiling(self) -> Compiled | None:
        """The backend that compiles, where this trainer may use one."""
        return None if isinstance(self._backend, Eager) else self._shared.compiled

    @checked
    def save_program(self, path: str | PathLike[str]) -> list[str]:
        """Keep what was proved and compiled so far, so that another process starts at once: `load_program`.

        The file has no code of yours and no values of parameters. It is written whole or not at all, for its owner.

        Returns:
            What was compiled and is not in it, with the reason; empty where all of it is.

        Raises:
            ValueError: Nothing was compiled as yet, or it is of a kind that is not kept; the message says which.
            OSError: The file cannot be written.
        """
        backend = self._backend.compiled if isinstance(self._backend, Auto) else self._backend
        if not isinstance(backend, Compiled):
            raise ValueError("the eager backend compiles nothing: with_backend('compiled').save_program(...)")
        self._program.follow_storage()
        self._program.outside.look(eager=False)
        return keep_program(path, self._program, list(backend.made()), self._made_of)

    @classmethod
    @checked
    def load_program(
        cls, path: str | PathLike[str], loss: Callable[..., Any], params: ParamList | nn.Module, **options: Any
    ) -> "ScalarTrainer":
        """A trainer that starts with a kept program: nothing is traced, proved or compiled for what is in it.

        It is taken only where all that it depends on is as it was: the code that the loss and what it calls consist of,
        and the values that they can reach; the files of the project that they stand in; versions of Python and of all
        installed packages; the processor, threads and settings of torch; the options here. Another batch, another value
        outside or another optimizer is proved and compiled as ever. **Loading runs code that is in the file.**

        Args:
            path: A file of `save_program`, which nobody but its owner may write to.
            loss, params: As for the constructor; their code is not in the file.
            options: The other arguments of the constructor, as for the trainer that was kept.

        Raises:
            StateError: It does not fit, is damaged or cannot be read; the message says what differs.
        """
        return cls(loss, params, program=path, **options)

    # -- state -----------------------------------------------------------------------------------------------------

    @checked
    def state_dict(self, *, parts: bool = False) -> dict[str, Any]:
        """Parameters, optimizer state with step counts and hyper-parameters, and the signature they obey.

        Gradients that wait for `accumulate` are part of it. Tensors are copies. With zero=3 they are gathered, so that
        all ranks call it.

        Args:
            parts: With zero=3, give this rank's `Piece` of each tensor that lies in parts instead, gathering nothing.
        """
        return self._shared.pack(parts)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, all or nothing: of one process or of many, or this rank's pieces of one.

        Raises:
            StateError: It does not fit; every difference is listed and nothing has changed.
            ShapeError: Something was replaced in the module, as merged adapters replace a weight.
        """
        self._shared.ready(state)()

    def __copy__(self) -> "ScalarTrainer":  # another handle on the same run, as `with_backend` gives
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and deep-copied as what it was made of, with its state. The copy proves anew and has no executors."""
        if self.ranks is not None:
            raise TypeError(
                "a trainer on several ranks is not copied: make one of the same mesh, and load state_dict()"
            )
        last = self._shared.last_optimizer
        path = next((path for path, optimizer in self._shared.optimizers().items() if optimizer is last), None)
        return remade, (type(self), *self._made_of, self._chosen, self.optimizer, self.state_dict(), path)

    def __repr__(self) -> str:
        why = f" by choice ({self._backend.why})" if isinstance(self._backend, Auto) and self._backend.why else ""
        backend = f"{self.backend!r}{why}"
        said = f"{self._program.signature}, backend={backend}, {self.steps} steps{self._shared.said}"
        return f"ScalarTrainer({said})"
